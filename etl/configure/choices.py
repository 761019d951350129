"""Chooses what the configs say for given experiments. Pure: facts in, values with their reasons out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt

from dynaclr_wds.channel_kinds import find_kind
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.hashed_sides import hold_out
from dynaclr_wds.tau import least_tau, tau_range_frames
from dynaclr_wds.words import count_of
from etl.configure.facts import ExperimentFacts, sum_lineages
from etl.configure.templates import Value
from etl.suspicious.words import write_bytes

MOST_SAMPLES, LEAST_SAMPLES = 256, 8
"""Of a batch."""

_SMALLEST_CROP = 32
_LEAST_SCALE = 0.8
"""Of the augmentations in the configs."""
_RATIO = 0.8
"""Share of training, where fields of view are split."""
_TRIED_SEEDS, _NEAR = 256, 0.01
"""Seeds of the split that are tried, until one comes so near to the share."""
_MOST_WARMUP, _WARMUP_DIVISOR = 500, 20
"""Steps of warmup at most, and which part of all steps they may be: a twentieth."""


def choose_values(
    facts: Sequence[ExperimentFacts], shards: str, tau_range_hours: tuple[float, float], memory: int, max_epochs: int
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
    max_epochs
        Of the training that the config is for.

    Returns
    -------
    dict
        Path of a key in a config → value and comment.

    Raises
    ------
    ConfigError
        The experiments store patches of different shapes, so no one network fits; or one has no time.
    """
    _check_one_shape(facts)
    _check_time(facts)
    channels, depth, height, width = facts[0].shape
    split, training = _choose_split(facts)
    batch_size = _choose_batch_size(training)
    return {
        "model.encoder.init_args.in_channels": Value(str(channels), _name_channels(facts)),
        "model.encoder.init_args.in_stack_depth": Value(str(depth), "planes per patch, after data.z_range"),
        "model.warmup_steps": _choose_warmup(training, int(batch_size.text), max_epochs),
        "data.shards": Value(quote(shards), "folder that `dynaclr-wds build` writes"),
        **split,
        "data.final_yx_patch_size": _choose_crop(height, width),
        "data.batch_size": batch_size,
        "data.window_bytes": _choose_window(facts, memory),
        "data.tau_range": _choose_tau_range(facts, tau_range_hours),
        "data.channel_dropout_channels": _choose_dropout(facts),
    }


def quote(text: str) -> str:
    """Write a text as YAML, in quotes where it would be read as something else."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./\-]*", text) and text.lower() not in (
        "null",
        "true",
        "false",
        "yes",
        "no",
        "on",
        "off",
    )
    return text if plain and text != "." else "'" + text.replace("'", "''") + "'"


def _check_one_shape(facts: Sequence[ExperimentFacts]) -> None:
    for other in facts[1:]:
        if other.shape != facts[0].shape:
            shapes = {fact.name: "x".join(map(str, fact.shape)) for fact in facts}
            raise ConfigError(
                f"experiments store patches (C, Z, Y, X) of different shapes: {shapes}; one network needs one shape. "
                "Choose as many channels for each (source_channel) and the same slices (shards.z_range), or put them "
                "into separate YAMLs; or write a config with data.channels_per_sample: 1, a channel at a time."
            )


def _check_time(facts: Sequence[ExperimentFacts]) -> None:
    if still := [fact.name for fact in facts if fact.interval_minutes == 0]:
        raise ConfigError(
            f"The configs that init fills in draw temporal positives, but of {', '.join(still)} there is one frame. "
            "Write a recipe with --recipe OPS-1000genes-lite (positive: self) or OPS-373genes (positive: columns), or "
            "leave out what has one frame."
        )


def _name_channels(facts: Sequence[ExperimentFacts]) -> str:
    return _shorten(list(dict.fromkeys(" + ".join(fact.channels) for fact in facts)))


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _choose_split(facts: Sequence[ExperimentFacts]) -> tuple[dict[str, Value], Sequence[ExperimentFacts]]:
    """Hold out an experiment, or FOVs where there is only one; also return what is trained on."""
    fovs = _choose_fovs(facts[0]) if len(facts) == 1 else None
    chosen = {
        "data.split": Value("experiments", "what is held out: experiments (by name), fovs, or values of a label"),
        "data.val_experiments": Value("[]", "none as a whole"),
        "data.split_ratio": Value("null", f"share of training, as {_RATIO}, where split is fovs or a label"),
        "data.split_seed": Value("0", "another one draws another split"),
    }
    if len(facts) > 1:
        held_out = _choose_held_out(facts)
        training = [fact for fact in facts if fact is not held_out]
        trained = _shorten([fact.name for fact in training])
        name = f"[{quote(held_out.name)}]"
        chosen["data.val_experiments"] = Value(name, f"held out for validation; trained on: {trained}")
        return chosen, training
    if fovs is None:
        spared = "none of its fields of view can be spared" if len(facts[0].fovs) > 1 else "one field of view"
        alone = f"one experiment, {spared}: nothing is held out, so there is no validation"
        chosen["data.val_experiments"] = Value("[]", alone)
        return chosen, facts
    seed, held = fovs
    kept = replace(
        facts[0],
        fovs={name: own for name, own in facts[0].fovs.items() if name not in held},
        anchors={name: own for name, own in facts[0].anchors.items() if name not in held},
    )
    share = 1 - sum(kept.lineages.values()) / sum(facts[0].lineages.values())
    said = f"held out for validation: {len(held)} of {len(facts[0].fovs)} fields of view, {share:.0%} of the lineages"
    chosen["data.split"] = Value("fovs", said)
    chosen["data.split_ratio"] = Value(
        str(_RATIO), "share of training; the side of a field of view is drawn by its name"
    )
    chosen["data.split_seed"] = Value(str(seed), "comes nearest to that in lineages, with every condition in training")
    return chosen, [kept]


def _choose_held_out(facts: Sequence[ExperimentFacts]) -> ExperimentFacts:
    """Choose the last experiment, or the one with fewest lineages where it has too few of them to be trained on."""
    fewest = min(reversed(facts), key=lambda fact: sum(fact.lineages.values()))
    return fewest if _warn_of_few_lineages(fewest) else facts[-1]


def _choose_fovs(fact: ExperimentFacts) -> tuple[int, set[str]] | None:
    """Choose the split seed that holds out the share nearest to the wanted one, and say which FOVs these are.

    Training keeps every condition, and validation has as many as possible; None where there is no such seed.
    """
    total = max(sum(fact.lineages.values()), 1)
    best: tuple[int, float] | None = None
    chosen = None
    for seed in range(_TRIED_SEEDS):
        out = hold_out([f"{fact.name}/{name}" for name in fact.fovs], _RATIO, seed)
        held = {name for name, is_out in zip(fact.fovs, out, strict=True) if is_out}
        sides = [
            sum_lineages(own for name, own in fact.fovs.items() if (name in held) == side) for side in (True, False)
        ]
        val, train = sides
        if not 0 < len(held) < len(fact.fovs) or set(train) != set(fact.lineages):
            continue
        score = len(train) - len(val), abs(sum(train.values()) / total - _RATIO)
        if best is None or score < best:
            best, chosen = score, (seed, held)
        if best[0] == 0 and best[1] < _NEAR:
            break
    return chosen


def _choose_crop(height: int, width: int) -> Value:
    """Crop to what stays whole when the patch is turned and shrunk: the side over √2, in multiples of 8."""
    crop = [8 * int(side * _LEAST_SCALE / sqrt(2) / 8) for side in (height, width)]
    if min(crop) < _SMALLEST_CROP:
        return Value("null", f"(Y, X) that the network sees; null = all of {[height, width]}, which is small")
    return Value(str(crop), f"of {[height, width]} stored, so that turning and shrinking bring in no black corners")


def _choose_batch_size(training: Sequence[ExperimentFacts]) -> Value:
    """Choose the largest power of two that every experiment can fill with distinct lineages, conditions in balance."""
    room = {fact.name: _count_distinct(fact) for fact in training}
    name = min(room, key=lambda key: room[key])
    size = LEAST_SAMPLES
    while 2 * size <= min(room[name], MOST_SAMPLES):
        size *= 2
    if room[name] < size:
        return Value(str(size), f"per rank; {name} fills {room[name]} with distinct lineages, so some share one")
    return Value(str(size), f"per rank; {name} can fill {room[name]} with distinct lineages, conditions in balance")


def _choose_warmup(training: Sequence[ExperimentFacts], batch_size: int, max_epochs: int) -> Value:
    """Warm up over a twentieth of the training: an epoch has the full batches of each experiment, at least one."""
    batches = sum(max(sum(fact.anchors.values()) // batch_size, 1) for fact in training)
    steps = batches * max_epochs
    epochs = f"{count_of(max_epochs, 'epoch')} ({count_of(batches, 'batch', 'batches')} each) on one device"
    said = f"{1 / _WARMUP_DIVISOR:.0%} of the {steps:,} steps of {epochs}, {_MOST_WARMUP} at most"
    return Value(str(min(steps // _WARMUP_DIVISOR, _MOST_WARMUP)), said)


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
    """Say per experiment what was found, and what a batch of the smallest size can't do with it."""
    return {
        fact.name: f"{count_of(sum(fact.lineages.values()), 'lineage')} with a positive; "
        f"{count_of(len(fact.channels), 'channel')} ({', '.join(fact.channels)}); patches (C, Z, Y, X) of "
        f"{' x '.join(map(str, fact.shape))}; about {write_bytes(fact.stored_bytes)}" + _warn_of_few_lineages(fact)
        for fact in facts
    }


def _warn_of_few_lineages(fact: ExperimentFacts) -> str:
    room = _count_distinct(fact)
    if room >= LEAST_SAMPLES:
        return ""
    return (
        f". Careful: a batch of {LEAST_SAMPLES} finds {count_of(room, 'lineage')} in it, conditions in balance, so "
        "some cells of one lineage would count as negatives of each other; leave it out, or hold it out for validation "
        "(data.val_experiments)"
    )


def _count_distinct(fact: ExperimentFacts) -> int:
    """Samples of distinct lineages that a batch can hold with conditions in balance."""
    return len(fact.lineages) * min(fact.lineages.values(), default=0)
