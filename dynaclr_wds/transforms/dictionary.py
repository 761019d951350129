"""Takes transforms of dictionaries of channels (`keys: [...]`), as MONAI and mehta-lab/VisCy have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.describe import Described, make_object
from dynaclr_wds.transforms.statistics import NormMeta
from dynaclr_wds.transforms.z_reduction import LABELFREE

Sample = dict[str, Any]
"""Name of a channel → (B, 1, Z, Y, X), and what else a transform asks for."""


class DictTransform(Described, nn.Module):
    """Apply a dictionary transform to patches: among `normalizations` or among `augmentations`.

    The transform gets a dict with the name of each channel → (B, 1, Z, Y, X), and

    - `norm_meta`: name → `timepoint_statistics`, `fov_statistics`, `dataset_statistics` → `mean`, `std`, … → (B,);
    - `_is_labelfree`: (B,), where patches have one channel;

    and returns such a dict. Draws follow `torch.manual_seed`: before each call, transforms that have `set_random_state`
    are given a seed that is drawn from torch's generator on the CPU. A foreign transform may wait for the device, and
    many do; where speed counts, prefer the modules of this package.

    Parameters
    ----------
    transform
        `class_path` and `init_args` of the transform, or a list of such, which are applied in this order.
    channel_names
        The keys that stand for the channels, in stored order; None = `channel_0`, `channel_1`, … .
    per_sample
        Call it once for every sample, with (1, Z, Y, X) per channel and no statistics: for transforms that know no
        batch, as those of MONAI itself. It is slow.

    Raises
    ------
    ValueError
        A class of MONAI's own without `per_sample`; in `forward`, other channels than named, or a result that can't be
        put together again.
    """

    def __init__(
        self,
        transform: dict[str, Any] | list[dict[str, Any]],
        channel_names: list[str] | None = None,
        per_sample: bool = False,
    ) -> None:
        super().__init__()
        given = transform if isinstance(transform, list) else [transform]
        self.transforms: list[Callable[[Sample], Sample]] = [make_object(t, "DictTransform.transform") for t in given]
        self.channel_names = None if channel_names is None else list(channel_names)
        self.per_sample = per_sample
        for t in self.transforms:
            if not per_sample and type(t).__module__.partition(".")[0] == "monai":
                raise ValueError(
                    f"DictTransform: {type(t).__name__} of MONAI takes one sample at a time and would take the samples "
                    "of a batch for channels. Give per_sample: true, or a module of dynaclr_wds.transforms."
                )

    def forward(
        self,
        x: Float[Tensor, "b c z y x"],
        norm_meta: NormMeta | None = None,
        channel_meta: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "b c z2 y2 x2"]:
        """Return the altered patches.

        Parameters
        ----------
        x
            Patches.
        norm_meta
            Statistics of the samples, if there are any.
        channel_meta
            What is known of each channel: `labelfree` → (B, C).
        """
        names = self._names(x.shape[1])
        if self.per_sample:
            return torch.stack([self._call({n: s[c : c + 1] for c, n in enumerate(names)}, names, 0) for s in x])
        sample: Sample = {name: x[:, c : c + 1] for c, name in enumerate(names)}
        if norm_meta is not None:
            sample["norm_meta"] = _sort_statistics(norm_meta, names)
        if channel_meta is not None and LABELFREE in channel_meta and x.shape[1] == 1:
            sample["_is_labelfree"] = channel_meta[LABELFREE][:, 0]
        return self._call(sample, names, 1)

    def _call(self, sample: Sample, names: Sequence[str], axis: int) -> Tensor:
        for t in self.transforms:
            if hasattr(t, "set_random_state"):
                t.set_random_state(seed=int(torch.randint(1 << 31, ())))
            try:
                sample = t(sample)
            except KeyError as error:
                error.add_note(f"DictTransform: {type(t).__name__} was given the channels {list(names)}.")
                raise
        parts = [_plain(sample[name]) for name in names if name in sample]
        if len(parts) < len(names) or len({part.shape for part in parts}) > 1:
            shapes = {name: tuple(sample[name].shape) for name in names if name in sample}
            raise ValueError(
                f"DictTransform: after {', '.join(type(t).__name__ for t in self.transforms)} the channels are "
                f"{shapes}, but each of {list(names)} must be there, in one shape. Name all of them in its keys."
            )
        return torch.cat(parts, dim=axis)

    def _names(self, count: int) -> list[str]:
        if self.channel_names is None:
            return [f"channel_{c}" for c in range(count)]
        if len(self.channel_names) != count:
            raise ValueError(
                f"DictTransform: channel_names={self.channel_names}, but the data have {count} channels. "
                "Name each of them once, in stored order."
            )
        return self.channel_names

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        names = ", ".join(type(t).__name__ for t in self.transforms)
        return f"{names}, channel_names={self.channel_names}, per_sample={self.per_sample}"


def _sort_statistics(norm_meta: NormMeta, names: Sequence[str]) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Sort statistics as VisCy's transforms look them up: channel → level → name → (B,)."""
    return {
        name: {
            f"{level}_statistics": {s: values[:, c, k] for k, s in enumerate(STATISTICS)}
            for level, values in norm_meta.items()
        }
        for c, name in enumerate(names)
    }


def _plain(value: Tensor) -> Tensor:
    """Return a plain tensor of what may be MONAI's."""
    return value.as_subclass(Tensor)
