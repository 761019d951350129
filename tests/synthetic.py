"""Index arrays of collections that were never filmed: for tests and benchmarks of the plan, without pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynaclr_wds.plan.columns import CodeBook, ExperimentClock, PlanColumns
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.listing import plan_index


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """A collection of dividing lineages: a mother of `mother` frames, then two daughters of `daughter` frames.

    Its labels are experiment, condition, marker (of the experiment) and stage, which changes along a track.
    """

    experiments: int = 2
    conditions: tuple[str, ...] = ("mock", "infected")
    lineages: tuple[int, ...] = (60, 15)
    """Per experiment, by condition."""
    mother: int = 8
    daughter: int = 6
    frames: int = 96
    fovs: int = 4
    """Per experiment and condition."""
    tau_frames: tuple[int, int] = (1, 4)
    clip_anchors: int = 8
    clips_per_block: int = 16
    patch_bytes: int = 1000
    seed: int = 0
    markers: tuple[str, ...] = ("nuclei",)
    """Marker of experiment e is `markers[e % len(markers)]`."""
    shard_by: tuple[str, ...] = ("experiment", "condition")
    batch_group_by: tuple[str, ...] = ("experiment",)
    stratify_by: tuple[str, ...] = ("condition",)


def make_index(spec: Synthetic, **sizes: tuple[int, ...]) -> PlanIndex:
    """List the anchors of a collection; `sizes[experiment]` overrides its lineages per condition."""
    return index_columns(spec, *make_columns(spec, **sizes))


def index_columns(spec: Synthetic, columns: PlanColumns, codes: CodeBook, **filters) -> PlanIndex:
    """List the anchors; every experiment has a frame each 30 minutes from 0 h."""
    low, high = spec.tau_frames
    hours = filters.pop("tau_range_hours", (low / 2, high / 2))
    return plan_index(
        columns, codes, hours, batch_group_by=spec.batch_group_by, stratify_by=spec.stratify_by, **filters
    )


def make_columns(spec: Synthetic, **sizes: tuple[int, ...]) -> tuple[PlanColumns, CodeBook]:
    """Make the columns of a collection, and what their codes stand for."""
    template = _template(spec)
    parts, cohorts = [], []  # of (experiment, condition)
    rng = np.random.default_rng(spec.seed)
    first = np.zeros(4, int)  # lineages, tracks, observations, FOVs so far
    for e in range(spec.experiments):
        for c in range(len(spec.conditions)):
            count = sizes.get(f"e{e}", spec.lineages)[c]
            parts.append(_cohort(rng, spec, template, count, first))
            cohorts.append((e, c))
            first += count, 3 * count, count * (spec.mother + 2 * spec.daughter), spec.fovs
    joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    repeats = {k: [len(p[k]) for p in parts] for k in ("clip_length", "obs_track")}
    return _columns(spec, joined, cohorts, repeats)


def _template(spec: Synthetic) -> list[dict[str, np.ndarray]]:
    """The clips of one lineage: runs of observations down the tree, each with the positives that it can have."""
    m, d = spec.mother, spec.daughter
    track = np.repeat([0, 1, 2], [m, d, d])
    t = np.concatenate([np.arange(m), m + np.arange(d), m + np.arange(d)])
    low, high = max(spec.tau_frames[0], 1), spec.tau_frames[1]
    obs = np.arange(len(t))
    below = (track[:, None] == track) | (track[:, None] == 0)
    apart = t[None, :] - t[:, None]
    reach = below & (apart >= low) & (apart <= high)
    clips = []
    for begin in range(0, len(obs), spec.clip_anchors):
        own = obs[begin : begin + spec.clip_anchors]
        rows = np.union1d(own, obs[reach[own].any(0)])
        rows = rows[np.lexsort((track[rows], t[rows]))]
        sample = np.isin(rows, own)
        clips.append({"obs": rows, "t": t[rows], "sample": sample, "candidate": sample & reach[rows].any(1)})
    return clips


def _cohort(rng, spec, template, count, first):
    """Lineages of one experiment and condition, their clips in random order."""
    lineage0, track0, obs0, fov0 = first
    t0 = rng.integers(0, max(spec.frames - spec.mother - spec.daughter, 1), count)
    size = spec.mother + 2 * spec.daughter
    order = rng.permutation(len(template) * count)
    kind, lineage = np.divmod(order, max(count, 1))
    lengths = np.array([len(c["t"]) for c in template])[kind]
    width = max((len(c["t"]) for c in template), default=0)
    # (clip, place) tables of the templates, padded, then flattened without the padding
    table = {k: np.zeros((len(template), width), int) for k in ("obs", "t", "sample", "candidate")}
    for n, clip in enumerate(template):
        for k in table:
            table[k][n, : len(clip["t"])] = clip[k]
    inside = np.arange(width)[None, :] < lengths[:, None]
    track_of = np.repeat([0, 1, 2], [spec.mother, spec.daughter, spec.daughter])
    age_of = np.concatenate([np.arange(spec.mother), *[spec.mother + np.arange(spec.daughter)] * 2])
    obs_lineage = np.repeat(np.arange(count), size)
    return {
        "patch_obs": (table["obs"][kind] + (obs0 + lineage * size)[:, None])[inside].astype(np.int32),
        "patch_t": (table["t"][kind] + t0[lineage][:, None])[inside].astype(np.int32),
        "patch_is_sample": table["sample"][kind][inside].astype(bool),
        "patch_has_candidate": table["candidate"][kind][inside].astype(bool),
        "clip_length": lengths,
        "clip_lineage": (lineage + lineage0).astype(np.int32),
        "obs_track": (track0 + np.tile(track_of, count) + 3 * obs_lineage).astype(np.int32),
        "obs_fov": (fov0 + rng.integers(0, spec.fovs, count)[obs_lineage]).astype(np.int32),
        "obs_stage": np.tile(age_of >= spec.mother // 2, count).astype(np.int32),
    }


def _columns(spec, joined, cohorts, repeats) -> tuple[PlanColumns, CodeBook]:
    values = {
        "experiment": tuple(f"e{e}" for e in range(spec.experiments)),
        "condition": spec.conditions,
        "marker": tuple(dict.fromkeys(spec.markers)),
        "stage": ("early", "late"),
    }
    marker = [values["marker"].index(spec.markers[e % len(spec.markers)]) for e in range(spec.experiments)]
    code = np.array([(e, c, marker[e]) for e, c in cohorts], np.int32).reshape(-1, 3)
    of_obs = np.repeat(code, repeats["obs_track"], axis=0)
    labels = dict(zip(("experiment", "condition", "marker"), of_obs.T.copy(), strict=True))
    labels["stage"] = joined.pop("obs_stage")
    names = [dict(zip(("experiment", "condition", "marker"), c, strict=True)) for c in code.tolist()]
    keys = [tuple(values[k][n[k]] for k in spec.shard_by) for n in names]
    partitions = list(dict.fromkeys(keys))
    clip_partition = np.repeat([partitions.index(k) for k in keys], repeats["clip_length"])
    joined, clip_partition = _sort_clips(spec, joined, clip_partition, shuffle=len(partitions) < len(keys))
    clip_first = np.concatenate([[0], np.cumsum(joined.pop("clip_length"))])
    clip_block, block_first, block_partition = np.zeros(len(clip_partition), np.int32), [0], []
    for p in range(len(partitions)):
        own = np.flatnonzero(clip_partition == p)
        for begin in range(0, len(own), spec.clips_per_block):
            run = own[begin : begin + spec.clips_per_block]
            clip_block[run] = len(block_partition)
            block_partition.append(p)
            block_first.append(int(run[-1]) + 1)
    block_first = np.array(block_first, np.int32)
    columns = PlanColumns(
        **joined,
        patch_clip=np.repeat(np.arange(len(clip_partition)), np.diff(clip_first)).astype(np.int32),
        clip_first=clip_first,
        clip_block=clip_block,
        block_first=block_first,
        block_bytes=np.diff(clip_first[block_first]) * spec.patch_bytes,
        block_partition=np.array(block_partition, np.int32),
        fov_experiment=np.repeat(code[:, 0], spec.fovs),
        labels=labels,
    )
    clocks = [
        ExperimentClock(name=e, interval_minutes=30.0, start_hpi=0.0, tau_frames=spec.tau_frames)
        for e in values["experiment"]
    ]
    records = [dict(zip(spec.shard_by, key, strict=True)) for key in partitions]
    return columns, CodeBook(values=values, partitions=records, experiments=clocks)


def _sort_clips(spec, joined, clip_partition, shuffle):
    """Put the clips of each partition together, in random order where several cohorts share one."""
    place = np.random.default_rng([spec.seed, 1]).random(len(clip_partition)) * shuffle
    order = np.lexsort((place, clip_partition))
    if (order == np.arange(len(order))).all():
        return joined, clip_partition
    length = joined["clip_length"]
    first = np.cumsum(length) - length
    count = length[order]
    row = np.arange(count.sum()) + np.repeat(first[order] - (np.cumsum(count) - count), count)
    moved = {k: v[row] if k.startswith("patch_") else v for k, v in joined.items()}
    moved |= {k: joined[k][order] for k in ("clip_length", "clip_lineage")}
    return moved, clip_partition[order]
