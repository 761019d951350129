"""Index arrays to anchors: what the plan sees of a shard set.

Memory-mapped columns in stored order and one compact list of anchors, grouped by stratum because
that is how shards are stored. Whatever else is asked of an anchor is gathered when it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64, Integer

from dynaclr_wds.tau import tau_range_frames

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """One (experiment, condition) with its clock."""

    experiment: str
    condition: str
    interval_minutes: float
    start_hpi: float
    tau_frames: tuple[int, int]
    """τ range of the draws in frames, both ends included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanColumns:
    """Columns of the index in stored order, as `contract.ARRAYS` describes them."""

    patch_obs: Integer[np.ndarray, " p"]
    patch_clip: Integer[np.ndarray, " p"]
    patch_t: Integer[np.ndarray, " p"]
    patch_is_anchor: Bool[np.ndarray, " p"]
    clip_first: Integer[np.ndarray, " c1"]
    clip_lineage: Integer[np.ndarray, " c"]
    clip_block: Integer[np.ndarray, " c"]
    block_first: Integer[np.ndarray, " b1"]
    block_bytes: Integer[np.ndarray, " b"]
    block_stratum: Integer[np.ndarray, " b"]
    obs_track: Integer[np.ndarray, " o"]
    obs_fov: Integer[np.ndarray, " o"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanIndex:
    """The anchors that may be drawn, grouped by stratum.

    An anchor is named by its position in `row`, 0 … n − 1; a patch by its row in the index.
    """

    columns: PlanColumns
    strata: tuple[Stratum, ...]
    """Only those that have anchors here."""
    row: Integer[np.ndarray, " n"]
    """Patch row of each anchor, ascending, so grouped by stratum, block and clip."""
    first: Int64[np.ndarray, " s1"]
    """CSR: anchors of stratum s are `first[s]:first[s + 1]`."""
    without_positive: tuple[int, ...]
    """Anchors of each stratum that the τ range asked for leaves without a positive; not in `row`."""

    @property
    def sizes(self) -> Int64[np.ndarray, " s"]:
        """Anchors per stratum."""
        return np.diff(self.first)

    def first_of(self, blocks: Integer[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
        """First anchor at or after the beginning of each block; the number of anchors after the last block."""
        patch = self.columns.clip_first[self.columns.block_first[blocks]]
        return np.searchsorted(self.row, patch.astype(self.row.dtype))

    @property
    def stored_bytes(self) -> int:
        """Bytes of the blocks that hold anchors."""
        size = self.columns.block_bytes
        return int(size[np.diff(self.first_of(np.arange(len(size) + 1))) > 0].sum(dtype=np.int64))

    def clip(self, anchors: Integer[np.ndarray, "*n"]) -> Integer[np.ndarray, "*n"]:
        """Clip of each anchor."""
        return self.columns.patch_clip[self.row[anchors]]

    def lineage(self, anchors: Integer[np.ndarray, "*n"]) -> Integer[np.ndarray, "*n"]:
        """Lineage of each anchor."""
        return self.columns.clip_lineage[self.clip(anchors)]

    def track(self, anchors: Integer[np.ndarray, "*n"]) -> Integer[np.ndarray, "*n"]:
        """Track of each anchor."""
        return self.columns.obs_track[self.columns.patch_obs[self.row[anchors]]]

    def fov(self, anchors: Integer[np.ndarray, "*n"]) -> Integer[np.ndarray, "*n"]:
        """FOV of each anchor."""
        return self.columns.obs_fov[self.columns.patch_obs[self.row[anchors]]]

    def block(self, anchors: Integer[np.ndarray, "*n"]) -> Integer[np.ndarray, "*n"]:
        """Block of each anchor."""
        return self.columns.clip_block[self.clip(anchors)]

    def stratum(self, anchors: Integer[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
        """Stratum of each anchor."""
        return np.searchsorted(self.first, anchors, side="right") - 1

    def hpi(self, anchors: Integer[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
        """Hours post infection of each anchor."""
        start = np.array([s.start_hpi for s in self.strata])
        hours = np.array([s.interval_minutes / 60 for s in self.strata])
        stratum = self.stratum(anchors)
        return start[stratum] + self.columns.patch_t[self.row[anchors]] * hours[stratum]

    def tau_frames(self, anchors: Integer[np.ndarray, "*n"]) -> tuple[Int[np.ndarray, "*n"], Int[np.ndarray, "*n"]]:
        """Smallest and largest τ of each anchor, in frames."""
        low, high = np.array([s.tau_frames for s in self.strata]).reshape(-1, 2).T
        stratum = self.stratum(anchors)
        return low[stratum], high[stratum]


def plan_index(
    columns: PlanColumns,
    strata: Sequence[Stratum],
    *,
    built_tau_frames: Sequence[tuple[int, int]],
    keep_stratum: Sequence[bool],
    keep_fov: Bool[np.ndarray, " f"] | None = None,
) -> PlanIndex:
    """List the anchors that may be drawn.

    Parameters
    ----------
    columns
        The index in stored order.
    strata
        All strata of the set, in the numbering of `columns.block_stratum`, with the τ range asked for.
    built_tau_frames
        Of each stratum, the τ range that its clips serve.
    keep_stratum
        Of each stratum, whether it may be drawn from.
    keep_fov
        Of each FOV, whether it may be drawn from; all of them when None.

    Raises
    ------
    ValueError
        A τ range asked for that the shards were not built for.
    """
    rows, first, kept, barren = [], [0], [], []
    for s, stratum in enumerate(strata):
        if not keep_stratum[s]:
            continue
        _check_tau(stratum, built_tau_frames[s])
        row = _anchor_rows(columns, *_patch_range(columns, s))
        if keep_fov is not None:
            row = row[keep_fov[columns.obs_fov[columns.patch_obs[row]]]]
        found = len(row)
        if stratum.tau_frames != tuple(built_tau_frames[s]):
            row = row[_has_candidate(columns, row, stratum.tau_frames)]
        if len(row):
            rows.append(row)
            first.append(first[-1] + len(row))
            kept.append(stratum)
            barren.append(found - len(row))
    return PlanIndex(
        columns=columns,
        strata=tuple(kept),
        row=np.concatenate(rows) if rows else np.zeros(0, np.int32),
        first=np.array(first, np.int64),
        without_positive=tuple(barren),
    )


def read_strata(
    strata: Sequence[tuple[str, str]],
    experiments: Mapping[str, tuple[float, float]],
    tau_range_hours: tuple[float, float],
) -> tuple[Stratum, ...]:
    """Give each (experiment, condition) its clock: `experiments` maps name to (interval_minutes, start_hpi)."""
    return tuple(
        Stratum(
            experiment=e,
            condition=c,
            interval_minutes=experiments[e][0],
            start_hpi=experiments[e][1],
            tau_frames=tau_range_frames(tau_range_hours, experiments[e][0]),
        )
        for e, c in strata
    )


def _check_tau(stratum: Stratum, built: tuple[int, int]) -> None:
    low, high = stratum.tau_frames
    if low < built[0] or high > built[1] or high < max(low, 1):
        hours = stratum.interval_minutes / 60
        raise ValueError(
            f"tau_range: {low}…{high} frames ({low * hours:g}…{high * hours:g} h) in experiment "
            f"{stratum.experiment!r}, but its shards hold positives at {built[0]}…{built[1]} frames "
            f"({built[0] * hours:g}…{built[1] * hours:g} h). Ask for a range inside it that reaches one frame, "
            "or build the shards with a wider tau_range_hours."
        )


def _patch_range(columns: PlanColumns, stratum: int) -> tuple[int, int]:
    """Patch rows of a stratum: they are stored together."""
    blocks = np.flatnonzero(columns.block_stratum == stratum)
    if not len(blocks):
        return 0, 0
    begin, end = columns.block_first[blocks[0]], columns.block_first[blocks[-1] + 1]
    return int(columns.clip_first[begin]), int(columns.clip_first[end])


def _anchor_rows(columns: PlanColumns, begin: int, end: int) -> Integer[np.ndarray, " n"]:
    dtype = np.int32 if end < 2**31 else np.int64
    return (np.flatnonzero(columns.patch_is_anchor[begin:end]) + begin).astype(dtype)


def _has_candidate(
    columns: PlanColumns, row: Integer[np.ndarray, " n"], tau_frames: tuple[int, int]
) -> Bool[np.ndarray, " n"]:
    """Whether each anchor's clip holds a patch at t + τ for some τ of the range, τ ≠ 0."""
    low, high = max(tau_frames[0], 1), tau_frames[1]
    out = np.zeros(len(row), bool)
    for a in range(0, len(row), _CHUNK):
        part = row[a : a + _CHUNK]
        clip = columns.patch_clip[part].astype(np.int64)
        begin, end = columns.clip_first[clip[0]], columns.clip_first[clip[-1] + 1]
        # rows of the clips at hand, keyed by (clip, t): ascending, as clips are stored by t
        key = (columns.patch_clip[begin:end].astype(np.int64) << 32) + columns.patch_t[begin:end]
        want = (clip << 32) + columns.patch_t[part]
        out[a : a + _CHUNK] = np.searchsorted(key, want + low, "left") < np.searchsorted(key, want + high, "right")
    return out
