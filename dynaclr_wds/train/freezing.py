"""Freezes parts of an encoder: they have no gradients, are not in the optimizer, and are in evaluation always."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dynaclr_wds.errors import ConfigError


def freeze_parts(encoder: nn.Module, names: Sequence[str]) -> None:
    """Freeze parts of an encoder.

    Parameters
    ----------
    encoder
        The network.
    names
        Of its parts, such as `backbone` or `encoder.stages.0`.

    Raises
    ------
    ConfigError
        It has no such part.
    """
    parts = dict(encoder.named_modules())
    for name in names:
        if not name or name not in parts:
            raise ConfigError(
                f"model.freeze={name!r} is no part of {type(encoder).__name__}, which has "
                f"{', '.join(part for part, _ in encoder.named_children()) or 'no parts'} and what is in them. Give "
                "one of these."
            )
        parts[name].requires_grad_(False)
    keep_frozen(encoder, names)


def keep_frozen(encoder: nn.Module, names: Sequence[str]) -> None:
    """Keep the frozen parts of an encoder in evaluation, so that batch statistics stay too."""
    for name in names:
        encoder.get_submodule(name).eval()
