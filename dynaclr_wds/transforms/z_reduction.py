"""Reduces stacks to single planes: the maximum over Z for some channels, the centre for others.

What is done to a channel is a table of experiments and channels, made before training. Every batch brings the rows of
its samples (`<key>_channel_meta`), so samples of one batch may differ and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dynaclr_wds.channel_kinds import KINDS, find_kind
from dynaclr_wds.contract import ExperimentRecord

MIP = "mip"
"""Key of `<key>_channel_meta`: whether the maximum over Z is taken; (B, C)."""

LABELFREE = "labelfree"
"""Key of `<key>_channel_meta`: whether a channel is label-free; (B, C)."""


def table_labelfree(experiments: Sequence[ExperimentRecord]) -> Bool[np.ndarray, "e c"]:
    """Tell which stored channels of each experiment are label-free, by name or by marker."""
    table = np.zeros((len(experiments), max(e.shape[0] for e in experiments)), bool)
    for row, experiment in enumerate(experiments):
        for place, names in enumerate(zip(experiment.source_channel, experiment.markers, strict=True)):
            table[row, place] = any(find_kind(name) == "labelfree" for name in names)
    return table


def plan_z_reduction(rule: Mapping[str, str], experiments: Sequence[ExperimentRecord]) -> Bool[np.ndarray, "e c"]:
    """Tell for which stored channels of each experiment the maximum over Z is taken.

    Parameters
    ----------
    rule
        Name of a channel, its marker, `fluorescence`, `labelfree` or `default` → `mip` or `center`. The first of these
        that fits a channel decides, in this order; without `default` it is `center`.
    experiments
        As the manifest has them.

    Raises
    ------
    ValueError
        A name that no experiment has, or another value.
    """
    names = {name for e in experiments for name in (*e.source_channel, *e.markers)}
    for name, value in rule.items():
        if name not in {*names, *KINDS, "default"}:
            raise ValueError(
                f"z_reduction: {name!r} is no channel, marker or kind of channel (there are "
                f"{', '.join(sorted(names))}; fluorescence, labelfree; default). Name one of these."
            )
        if value not in ("mip", "center"):
            raise ValueError(f"z_reduction: {name}: {value!r} must be mip or center. Choose one of them.")
    kinds = table_labelfree(experiments)
    table = np.zeros_like(kinds)
    for row, e in enumerate(experiments):
        for place, (channel, marker) in enumerate(zip(e.source_channel, e.markers, strict=True)):
            order = (channel, marker, "labelfree" if kinds[row, place] else "fluorescence", "default")
            table[row, place] = next((rule[name] for name in order if name in rule), "center") == "mip"
    return table


def apply_z_reduction(x: Float[Tensor, "b c z y x"], mip: Bool[Tensor, "b c"]) -> Float[Tensor, "b c 1 y x"]:
    """Return one plane of each stack: the maximum over Z where `mip` says so, else the plane at `Z // 2`."""
    middle = x.shape[2] // 2
    center = x[:, :, middle : middle + 1]
    if x.shape[2] == 1:
        return center
    return torch.where(mip[:, :, None, None, None], x.amax(2, keepdim=True), center)
