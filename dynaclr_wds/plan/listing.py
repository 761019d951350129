"""Index arrays to anchors: lists the samples of every stratum that have a positive, and makes a `PlanIndex` of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from jaxtyping import Bool, Int64, Integer

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.channels import CHANNEL_LABELS
from dynaclr_wds.plan.columns import CodeBook, ExperimentClock, PatchRow, PlanColumns
from dynaclr_wds.plan.config import TEMPORAL, PositiveRule
from dynaclr_wds.plan.index import PlanIndex, Stratum
from dynaclr_wds.plan.matches import check_match_columns, find_matched, number_matches
from dynaclr_wds.plan.relatives import find_parents
from dynaclr_wds.plan.strata import (
    StratumSamples,
    find_strata,
    follows_from_partitions,
    has_candidate,
    split_by_channels,
)
from dynaclr_wds.tau import check_tau_range, tau_range_frames


def plan_index(
    columns: PlanColumns,
    codes: CodeBook,
    tau_range_hours: tuple[float, float],
    *,
    batch_group_by: tuple[str, ...] = ("experiment",),
    stratify_by: tuple[str, ...] = ("condition",),
    keep_experiment: Sequence[bool] | None = None,
    keep_fov: Bool[np.ndarray, " f"] | None = None,
    positives: PositiveRule = TEMPORAL,
) -> PlanIndex:
    """List the anchors that may be drawn, by stratum.

    Parameters
    ----------
    columns, codes
        The index in stored order, and what its codes stand for.
    tau_range_hours
        τ range of the draws, within the one that the shards were built for.
    batch_group_by, stratify_by
        Labels that make groups and stratify values.
    keep_experiment, keep_fov
        Whether each may be drawn from; all of them when None.
    positives
        What may be a positive, and so which samples are anchors. `tau_range_hours` matters for temporal ones only.

    Raises
    ------
    ConfigError
        A label that the set doesn't have, or positives by columns without a column.
    ValueError
        A τ range that the shards were not built for.
    """
    asked = {
        "batch_group_by": batch_group_by,
        "stratify_by": stratify_by,
        "positive_match_columns": positives.match_columns,
    }
    _check_labels(codes, asked)
    check_match_columns(codes, positives)
    keep = [True] * len(codes.experiments) if keep_experiment is None else list(keep_experiment)
    temporal = positives.kind == "temporal"
    tau = [
        _tau_frames(e, tau_range_hours) if k and temporal else (0, 0)
        for e, k in zip(codes.experiments, keep, strict=True)
    ]
    keep_fov = None if keep_fov is None or keep_fov.all() else keep_fov  # then FOVs need not be looked up
    labels = tuple(dict.fromkeys((*batch_group_by, *stratify_by)))
    parents = find_parents(columns) if positives.relatives == "descendants" else None
    strata, samples = [], []
    for found in _list_samples(columns, codes, labels, keep, keep_fov, tau, positives, parents):
        clock = codes.experiments[found.experiment]
        strata.append(_make_stratum(clock, tau[found.experiment], found.labels, batch_group_by, stratify_by))
        samples.append(found)
    rows = [s.row for s in samples]
    choices = [s.choice for s in samples if s.choice is not None]
    matches: list[Integer[np.ndarray, " _"]] = []
    if positives.kind == "columns":
        matches = number_matches(columns, codes, positives, rows, choices)
        kept = find_matched(columns, rows, matches)
        rows, choices, matches = ([a[k] for a, k in zip(of, kept, strict=False)] for of in (rows, choices, matches))
    has = [s for s, row in enumerate(rows) if len(row)]
    base = np.maximum.accumulate([s if of.first_of_patches else -1 for s, of in enumerate(samples)] or [0])
    by_channel = codes.choices is not None and not set(labels).isdisjoint(CHANNEL_LABELS)
    follows = follows_from_partitions(codes, tuple(n for n in labels if n not in CHANNEL_LABELS))
    return PlanIndex(
        columns=columns,
        batch_group_by=batch_group_by,
        stratify_by=stratify_by,
        strata=tuple(strata[s] for s in has),
        group_of=_number([strata[s].group_name for s in has]),
        value_of=_number([strata[s].value_name for s in has]),
        row=cast(PatchRow, _join([rows[s] for s in has])),
        first=np.cumsum([0, *(len(rows[s]) for s in has)]),
        without_positive=tuple(samples[s].samples - len(rows[s]) for s in has),
        base_of=_number_bases(base[has]),
        positives=positives,
        choices=codes.choices,
        choice=_join([choices[s] for s in has]) if codes.choices is not None else None,
        match=_join([matches[s] for s in has]) if matches else None,
        parents=parents,
        lineages_meet=(by_channel or not follows) and _lineages_meet(columns, [rows[s] for s in has]),
        barren=tuple(
            (strata[s], samples[s].samples) for s, row in enumerate(rows) if not len(row) and samples[s].samples
        ),
    )


def _list_samples(
    columns: PlanColumns,
    codes: CodeBook,
    labels: tuple[str, ...],
    keep: Sequence[bool],
    keep_fov: Bool[np.ndarray, " f"] | None,
    tau: Sequence[tuple[int, int]],
    positives: PositiveRule,
    parents: Int64[np.ndarray, " tracks"] | None,
) -> Iterator[StratumSamples]:
    """List the samples of each stratum that have a temporal candidate if they need one, with their channels."""
    own = tuple(n for n in labels if codes.choices is None or n not in CHANNEL_LABELS)
    of_channels = [n for n in labels if n not in own]
    behind = positives.tau_direction == "both"
    every = behind or positives.kind != "temporal"
    for found in find_strata(columns, codes, own, keep, keep_fov, every=every):
        span = tau[found.experiment]
        as_built = not every and parents is None and span == tuple(codes.experiments[found.experiment].tau_frames)
        if positives.kind == "temporal" and not as_built:
            row = found.row[has_candidate(columns, found.row, span, behind=behind, parents=parents)]
            found = replace(found, row=row)
        yield from [found] if codes.choices is None else split_by_channels(found, codes.choices, of_channels)


def _make_stratum(
    clock: ExperimentClock,
    tau_frames: tuple[int, int],
    labels: Mapping[str, str | None],
    batch_group_by: tuple[str, ...],
    stratify_by: tuple[str, ...],
) -> Stratum:
    return Stratum(
        experiment=clock.name,
        group=tuple(labels[name] for name in batch_group_by),
        value=tuple(labels[name] for name in stratify_by),
        interval_minutes=clock.interval_minutes,
        start_hpi=clock.start_hpi,
        tau_frames=tau_frames,
    )


def _join(parts: Sequence[Integer[np.ndarray, " _"]]) -> Integer[np.ndarray, " n"]:
    """Put parts one after another; nothing is copied where they stand so in one array already."""
    if not parts:
        return np.zeros(0, np.int32)
    base, where = parts[0].base, [part.ctypes.data for part in parts]
    ends = [at + part.nbytes for at, part in zip(where, parts, strict=True)]
    in_row = where[1:] == ends[:-1] and all(part.base is base and part.flags.c_contiguous for part in parts)
    if in_row and isinstance(base, np.ndarray) and base.ndim == 1 and base.dtype == parts[0].dtype:
        first = (where[0] - base.ctypes.data) // base.itemsize
        return base[first : first + sum(map(len, parts))]
    return np.concatenate(parts)


def _number_bases(base: Int64[np.ndarray, " s"]) -> Int64[np.ndarray, " s"]:
    """Turn the bases of the strata that are left into places among them."""
    _, first, number = np.unique(base, return_index=True, return_inverse=True)
    return first[number].astype(np.int64)


def _number(names: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """Number names in the order of their first place."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], np.int64)


def _lineages_meet(columns: PlanColumns, rows: Sequence[Integer[np.ndarray, " _"]]) -> bool:
    """Whether a lineage has anchors in two strata; labels that shards are partitioned by never differ in a lineage."""
    if not rows:
        return False
    owner = np.full(int(columns.clip_lineage.max(initial=-1)) + 1, -1, np.int32)
    lineage = columns.clip_lineage[columns.patch_clip[np.concatenate(rows)]]
    stratum = np.repeat(np.arange(len(rows), dtype=np.int32), [len(row) for row in rows])
    owner[lineage] = stratum
    return bool((owner[lineage] != stratum).any())


def _check_labels(codes: CodeBook, asked: Mapping[str, Sequence[str]]) -> None:
    """Check that the set has the labels that each setting names."""
    known = {*codes.values, *(CHANNEL_LABELS if codes.choices is not None else ())}
    unknown = {setting: [name for name in names if name not in known] for setting, names in asked.items()}
    if any(unknown.values()):
        wrong = " and ".join(f"{setting} names {names}" for setting, names in unknown.items() if names)
        of_channels = sorted({name for names in unknown.values() for name in names} & set(CHANNEL_LABELS))
        has = f"where samples hold one channel (channels_per_sample=1), they have a {' and a '.join(of_channels)}; "
        raise ConfigError(
            f"{wrong}, which the shards don't have as a label. Their labels are {sorted(known)}. Name one of "
            f"these; {has if of_channels else ''}to add one, give it in experiments.yaml (labels, well_labels or "
            "label_columns) and build again."
        )


def _tau_frames(clock: ExperimentClock, tau_range_hours: tuple[float, float]) -> tuple[int, int]:
    frames = tau_range_frames(tau_range_hours, clock.interval_minutes)
    check_tau_range("tau_range", clock.name, frames, clock.tau_frames, clock.interval_minutes)
    return frames
