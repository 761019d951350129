"""Chooses what the configs say for given experiments. Pure: facts in, values with their reasons out.

How large batches are, and whether they are near one time, is tried on the plan of a training (`etl.configure.trial`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import sqrt
from typing import Any

import numpy as np

from dynaclr_wds.channel_kinds import find_kind
from dynaclr_wds.crop_sides import least_side
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.tau import least_tau, tau_range_frames
from dynaclr_wds.words import count_of, list_some
from etl.configure.facts import ExperimentFacts
from etl.configure.held_out import FEW, choose_split, count_distinct
from etl.configure.templates import Value, quote
from etl.configure.trial import MOST_SAMPLES, Batches, choose_batches
from etl.suspicious.words import write_bytes

_SMALLEST_CROP = 32
_LEAST_SCALE = 0.8
"""Of the augmentations in the configs."""
_MARGIN_DIVISOR = 32
"""Which part of the patch lies between the outermost cell and the edge of the crop."""


def choose_values(
    facts: Sequence[ExperimentFacts],
    shards: str,
    tau_range_hours: tuple[float, float],
    memory: int,
    template: Mapping[str, Any],
) -> dict[str, Value]:
    """Choose the values of all keys that depend on the data.

    Parameters
    ----------
    facts
        The experiments, in the order of the YAML.
    shards
        Folder of the shards.
    tau_range_hours
        What the shards are built for.
    memory
        Bytes of memory of the machine.
    template
        The config to fill in: how it composes batches matters for the choice.

    Returns
    -------
    dict
        Path of a key in a config → value and comment.

    Raises
    ------
    ConfigError
        The experiments store patches of different depths or sizes, so no one network fits; or one has no time.
    """
    _check_one_shape(facts)
    _check_time(facts)
    bag = is_bag(facts)
    split, training = choose_split(facts)
    asked = _read_sampling(template)
    batches = choose_batches(training, asked, min(count_distinct(fact) for fact in training))
    return {
        "model.encoder.init_args.in_channels": Value(*_choose_channels(facts)),
        "model.encoder.init_args.in_stack_depth": Value(str(facts[0].shape[1]), "planes per patch, after data.z_range"),
        "data.shards": Value(quote(shards), "folder that `dynaclr-wds build` writes"),
        **split,
        "data.final_yx_patch_size": _choose_crop(facts),
        "data.batch_size": _explain_batch_size(training, batches),
        "data.temporal_enrichment": _explain_enrichment(training, batches, asked),
        "data.window_bytes": _choose_window(facts, memory),
        "data.tau_range": _choose_tau_range(facts, tau_range_hours),
        "data.channels_per_sample": Value("1", explain_bag(facts)) if bag else Value("null", "null = all channels"),
        "data.channel_dropout_channels": Value("[]", "none") if bag else _choose_dropout(facts),
    }


def is_bag(facts: Sequence[ExperimentFacts]) -> bool:
    """Whether the network sees a channel at a time, because experiments store different numbers of them."""
    return len({len(fact.channels) for fact in facts}) > 1


def explain_bag(facts: Sequence[ExperimentFacts]) -> str:
    """Say why the network sees a channel at a time."""
    counts = ", ".join(f"{fact.name} {len(fact.channels)}" for fact in facts)
    return f"a bag of channels: every channel of a cell is a sample, as experiments store different numbers ({counts})"


def _choose_channels(facts: Sequence[ExperimentFacts]) -> tuple[str, str]:
    if is_bag(facts):
        return "1", "one channel at a time (data.channels_per_sample)"
    return str(len(facts[0].channels)), _name_channels(facts)


def _read_sampling(template: Mapping[str, Any]) -> SamplingConfig:
    """Return how a config composes batches, as far as a sampler knows of it."""
    known = {field.name for field in fields(SamplingConfig)}
    return SamplingConfig(**{key: value for key, value in template["data"].items() if key in known})


def _check_one_shape(facts: Sequence[ExperimentFacts]) -> None:
    for other in facts[1:]:
        if other.shape[1:] != facts[0].shape[1:]:
            shapes = {fact.name: "x".join(map(str, fact.shape)) for fact in facts}
            raise ConfigError(
                f"experiments store patches (C, Z, Y, X) of different shapes: {shapes}; one network needs one shape. "
                "Choose the same slices (shards.z_range) for all, or put them into separate YAMLs."
            )


def _check_time(facts: Sequence[ExperimentFacts]) -> None:
    if still := [fact.name for fact in facts if fact.interval_minutes == 0]:
        raise ConfigError(
            f"The configs that init fills in draw temporal positives, but of {', '.join(still)} there is one frame. "
            "Write a recipe with --recipe OPS-1000genes-lite (positive: self) or OPS-373genes (positive: columns), or "
            "leave out what has one frame."
        )


def _name_channels(facts: Sequence[ExperimentFacts]) -> str:
    return list_some(list(dict.fromkeys(" + ".join(fact.channels) for fact in facts)), 3)


def _choose_crop(facts: Sequence[ExperimentFacts]) -> Value:
    """Crop to what stays whole when the patch is turned and shrunk (the side over √2), but keep every cell inside.

    Cells near the border are off the middle of their patch; a margin lies between them and the edge of the crop.
    """
    stored, crop, whole = facts[0].shape[2:], [], []
    for axis, side in enumerate(stored):
        off = [max(fact.off_middle[axis][end] for fact in facts) for end in (0, 1)]
        kept = least_side(off[0], off[1]) + 2 * (side // _MARGIN_DIVISOR) if any(off) else 0
        whole.append(int(side * _LEAST_SCALE / sqrt(2)))
        crop.append(min(max(whole[-1] // 8 * 8, -(-kept // 8) * 8), side))
    if stored[0] == stored[1]:
        crop = [max(crop)] * 2
    if min(crop) < _SMALLEST_CROP:
        return Value("null", f"(Y, X) that the network sees; null = all of {list(stored)}, which is small")
    if crop == list(stored):
        return Value(
            "null", f"(Y, X) that the network sees; null = all of {crop}, as cells lie near the edge of patches"
        )
    if all(one <= most for one, most in zip(crop, whole, strict=True)):
        return Value(str(crop), f"of {list(stored)} stored, so that turning and shrinking bring in no black corners")
    said = "the least with every cell inside before augmentation, also those near the border"
    return Value(str(crop), f"of {list(stored)} stored: {said}")


def _explain_batch_size(training: Sequence[ExperimentFacts], batches: Batches) -> Value:
    """Say which experiment limits the batch."""
    poorest = min(training, key=count_distinct)
    least = count_of(min(poorest.lineages.values(), default=0), "lineage")
    said = f"per rank; at this size no batch holds a lineage twice; {poorest.name} has only {least} of a condition"
    if "lineages" in batches.troubles:
        said = f"per rank; {poorest.name} has only {least} of a condition, so some batches hold one twice"
    elif batches.size >= MOST_SAMPLES:
        said = "per rank; at this size no batch holds a lineage twice"
    elif batches.enriched:
        said += ", and fewer at one time"
    return Value(str(batches.size), said)


def _explain_enrichment(training: Sequence[ExperimentFacts], batches: Batches, asked: SamplingConfig) -> Value:
    """Say why most of a batch is near one time, or is not."""
    if batches.enriched:
        return Value("true", "most of a batch near one time after perturbation")
    shortest = min(training, key=_count_hours)
    hours = _count_hours(shortest)
    why = "there are too few lineages at one time for it"
    if hours * (1 - asked.temporal_global_fraction) <= 2 * asked.temporal_window_hours:
        why = f"the {hours:.3g} h in which cells of {shortest.name} have a positive are too short for it"
    return Value("false", f"true = most of a batch near one time; {why}")


def _count_hours(fact: ExperimentFacts) -> float:
    """Return the hours between the first and the last cell that has a positive."""
    return float(np.ptp(fact.cells.t)) * fact.interval_minutes / 60 if fact.anchors else 0.0


def _choose_window(facts: Sequence[ExperimentFacts], memory: int) -> Value:
    size, half = sum(fact.stored_bytes for fact in facts), memory // 2
    about = f"shards of about {write_bytes(size)}, memory {write_bytes(memory)}"
    if size <= half:
        return Value("null", f"null = all at hand: {about}")
    return Value(f"{half:_}", f"stream through half of the memory: {about}")


def _choose_tau_range(facts: Sequence[ExperimentFacts], hours: tuple[float, float]) -> Value:
    frames = {}
    for fact in facts:
        low, high = tau_range_frames(hours, fact.interval_minutes)
        frames[f"{fact.interval_minutes:g} min"] = f"{int(least_tau(low))} to {high}"
    shown = ", ".join(f"{span} frames of {interval}" for interval, span in list(frames.items())[:3])
    return Value(str(list(hours)), f"hours from anchor to positive, as the shards are built: {shown}")


def _choose_dropout(facts: Sequence[ExperimentFacts]) -> Value:
    """Drop fluorescence beside a label-free channel; a channel counts as that if its name does in every experiment."""
    bright = {place for fact in facts for place, name in enumerate(fact.channels) if find_kind(name) == "labelfree"}
    dark = [place for place in range(len(facts[0].channels)) if place not in bright]
    if not bright or not dark:
        return Value("[]", "no fluorescence beside a label-free channel, as far as names tell: none is dropped")
    names = ", ".join(facts[0].channels[place] for place in dark)
    return Value(str(dark), f"fluorescence by its name: {names}")


def describe(facts: Sequence[ExperimentFacts]) -> Mapping[str, str]:
    """Say per experiment what was found, and where there is little to train on."""
    return {
        fact.name: f"{count_of(sum(fact.lineages.values()), 'lineage')} with a positive; "
        f"{count_of(len(fact.channels), 'channel')} ({', '.join(fact.channels)}); patches (C, Z, Y, X) of "
        f"{' x '.join(map(str, fact.shape))}; about {write_bytes(fact.stored_bytes)}{_tell_border(fact)}"
        + _warn_of_few_lineages(fact)
        for fact in facts
    }


def _tell_border(fact: ExperimentFacts) -> str:
    if not fact.near_border:
        return ""
    every = fact.near_border + fact.observations
    cells = f"{fact.near_border:,} of {count_of(every, 'cell')} ({fact.near_border / every:.0%})"
    return f"; {cells} too near the border for such patches are left out (smaller patches, or border: pad, keep more)"


def _warn_of_few_lineages(fact: ExperimentFacts) -> str:
    room = count_distinct(fact)
    if room >= FEW:
        return ""
    return (
        f". Careful: that is little to learn from, as its batches can hold {count_of(room, 'distinct lineage')} with "
        "conditions in balance. Track more cells, or hold it out for validation (data.val_experiments)"
    )
