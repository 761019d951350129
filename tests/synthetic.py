"""Index arrays of collections that were never filmed: for tests and benchmarks of the plan, without pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynaclr_wds.plan.index import PlanColumns, PlanIndex, plan_index, read_strata


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """A collection of dividing lineages: a mother of `mother` frames, then two daughters of `daughter` frames."""

    experiments: int = 2
    conditions: tuple[str, ...] = ("mock", "infected")
    lineages: tuple[int, ...] = (60, 15)
    """Per stratum, by condition."""
    mother: int = 8
    daughter: int = 6
    frames: int = 96
    fovs: int = 4
    """Per stratum."""
    tau_frames: tuple[int, int] = (1, 4)
    clip_anchors: int = 8
    clips_per_block: int = 16
    patch_bytes: int = 1000
    seed: int = 0


def make_index(spec: Synthetic, **sizes: tuple[int, ...]) -> PlanIndex:
    """Make the anchors of a collection; `sizes[experiment]` overrides its lineages per condition."""
    template = _template(spec)
    parts, strata, clip_stratum = [], [], []
    rng = np.random.default_rng(spec.seed)
    lineage0 = track0 = obs0 = fov0 = 0
    for e in range(spec.experiments):
        for c, condition in enumerate(spec.conditions):
            count = sizes.get(f"e{e}", spec.lineages)[c]
            part, clips = _stratum(rng, spec, template, count, (lineage0, track0, obs0, fov0))
            parts.append(part)
            clip_stratum += [len(strata)] * clips
            strata.append((f"e{e}", condition))
            lineage0, track0 = lineage0 + count, track0 + 3 * count
            obs0, fov0 = obs0 + count * (spec.mother + 2 * spec.daughter), fov0 + spec.fovs
    joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return _index(spec, joined, np.array(clip_stratum), strata)


def _template(spec: Synthetic) -> list[dict[str, np.ndarray]]:
    """The clips of one lineage, cut as `etl.layout.clips` does: runs of anchors down the tree, with what they need."""
    m, d = spec.mother, spec.daughter
    track = np.repeat([0, 1, 2], [m, d, d])
    t = np.concatenate([np.arange(m), m + np.arange(d), m + np.arange(d)])
    low, high = max(spec.tau_frames[0], 1), spec.tau_frames[1]
    obs = np.arange(len(t))
    below = (track[:, None] == track) | (track[:, None] == 0)
    apart = t[None, :] - t[:, None]
    reach = below & (apart >= low) & (apart <= high)
    anchors = obs[reach.any(1)]
    clips = []
    for begin in range(0, len(anchors), spec.clip_anchors):
        own = anchors[begin : begin + spec.clip_anchors]
        rows = np.union1d(own, obs[reach[own].any(0)])
        rows = rows[np.lexsort((track[rows], t[rows]))]
        clips.append({"obs": rows, "t": t[rows], "anchor": np.isin(rows, own)})
    return clips


def _stratum(rng, spec, template, count, first):
    lineage0, track0, obs0, fov0 = first
    t0 = rng.integers(0, max(spec.frames - spec.mother - spec.daughter, 1), count)
    size = spec.mother + 2 * spec.daughter
    clips = [(k, lineage) for k in range(len(template)) for lineage in range(count)]
    order = rng.permutation(len(clips))
    kind = np.array([k for k, _ in clips], int)[order]
    lineage = np.array([n for _, n in clips], int)[order]
    lengths = np.array([len(c["t"]) for c in template])[kind]
    width = max((len(c["t"]) for c in template), default=0)
    # (clip, place) tables of the templates, padded, then flattened without the padding
    table = {k: np.zeros((len(template), width), int) for k in ("obs", "t", "anchor")}
    for n, clip in enumerate(template):
        for k in table:
            table[k][n, : len(clip["t"])] = clip[k]
    inside = np.arange(width)[None, :] < lengths[:, None]
    track_of = np.repeat([0, 1, 2], [spec.mother, spec.daughter, spec.daughter])
    obs_lineage = np.repeat(np.arange(count), size)
    part = {
        "patch_obs": (table["obs"][kind] + (obs0 + lineage * size)[:, None])[inside],
        "patch_t": (table["t"][kind] + t0[lineage][:, None])[inside],
        "patch_is_anchor": table["anchor"][kind][inside].astype(bool),
        "clip_length": lengths,
        "clip_lineage": lineage + lineage0,
        "obs_track": track0 + np.tile(track_of, count) + 3 * obs_lineage,
        "obs_fov": fov0 + rng.integers(0, spec.fovs, count)[obs_lineage] if count else np.zeros(0, int),
    }
    return part, len(clips)


def _index(spec, joined, clip_stratum, strata) -> PlanIndex:
    clip_first = np.concatenate([[0], np.cumsum(joined["clip_length"])])
    clip_block, block_first, block_stratum = np.zeros(len(clip_stratum), np.int32), [0], []
    for s in range(len(strata)):
        own = np.flatnonzero(clip_stratum == s)
        for begin in range(0, len(own), spec.clips_per_block):
            run = own[begin : begin + spec.clips_per_block]
            clip_block[run] = len(block_stratum)
            block_stratum.append(s)
            block_first.append(int(run[-1]) + 1)
    block_first = np.array(block_first, np.int32)
    columns = PlanColumns(
        patch_obs=joined["patch_obs"].astype(np.int32),
        patch_clip=np.repeat(np.arange(len(clip_stratum)), joined["clip_length"]).astype(np.int32),
        patch_t=joined["patch_t"].astype(np.int32),
        patch_is_anchor=joined["patch_is_anchor"],
        clip_first=clip_first,
        clip_lineage=joined["clip_lineage"].astype(np.int32),
        clip_block=clip_block,
        block_first=block_first,
        block_bytes=np.diff(clip_first[block_first]) * spec.patch_bytes,
        block_stratum=np.array(block_stratum, np.int32),
        obs_track=joined["obs_track"].astype(np.int32),
        obs_fov=joined["obs_fov"].astype(np.int32),
    )
    low, high = spec.tau_frames
    clock = {e: (30.0, 0.0) for e, _ in strata}
    return plan_index(
        columns,
        read_strata(strata, clock, (low / 2, high / 2)),
        built_tau_frames=[spec.tau_frames] * len(strata),
        keep_stratum=[True] * len(strata),
    )
