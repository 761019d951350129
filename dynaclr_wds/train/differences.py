"""What differs from the training: each difference with what to do, told once, and refused unless it is overridden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynaclr_wds.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something that the caller or the shards say otherwise than the training."""

    what: str
    instead: str
    """What to do, without a full stop."""
    fatal: bool = False
    """Whether it can't be overridden."""
    options: tuple[str, ...] = ()
    """Options that it follows from, where they are given and say otherwise than the training."""


def refuse(found: Sequence[Difference], override: bool) -> None:
    """Raise one error about all differences that are not overridden.

    Raises
    ------
    ConfigError
        There are any.
    """
    wrong = [d for d in found if d.fatal or not override]
    if not wrong:
        return
    nevertheless = "" if any(d.fatal for d in wrong) else "add --override to embed nevertheless."
    if len(wrong) == 1:
        raise ConfigError(f"{wrong[0].what}. {wrong[0].instead}" + (f", or {nevertheless}" if nevertheless else "."))
    told = " ".join(f"({number}) {d.what}. {d.instead}." for number, d in enumerate(wrong, 1))
    raise ConfigError(f"{len(wrong)} things differ from the training. {told} {nevertheless.capitalize()}".rstrip())


def tell_once(found: Sequence[Difference], of_options: Sequence[Difference]) -> list[Difference]:
    """Leave out what follows from an option, and an option that can't be had: each of the two is told once.

    Parameters
    ----------
    found
        What the shards come to, with the options.
    of_options
        The options that say otherwise than the training.
    """
    given = {name for d in of_options for name in d.options}
    impossible = {name for d in found if d.fatal for name in d.options}
    kept = [d for d in found if d.fatal or not given.intersection(d.options)]
    return [*kept, *(d for d in of_options if not impossible.intersection(d.options))]
