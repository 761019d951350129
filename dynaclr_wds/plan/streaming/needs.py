"""Strata to needs: counts the blocks that hold a batch of distinct lineages, and the bytes of a window for them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.focal_window import in_focal_window
from dynaclr_wds.plan.compose.group_quotas import Group
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.streaming.partition import make_part

_SAMPLE = 1 << 20  # anchors of a stratum to count lineages in; blocks are random samples, so the first will do
_SPARE_LINEAGES = 1.25  # lineages within reach, over those that a batch takes of a stratum
_SPARE_BLOCKS = 3  # beside those: one that comes, one that goes, one that a round reaches into
_THREADS = 2  # that look at strata at a time
FEW_BLOCKS = 4  # least blocks of a stratum that are held when lineages may repeat


@dataclass(frozen=True, slots=True)
class Needs:
    """What each stratum asks of the window, per stream; 0 blocks where nothing is drawn."""

    block_bytes: Float64[np.ndarray, " s"]
    """Where strata of a group share blocks, because they differ in channels only, each counts its part of them."""
    block_anchors: Float64[np.ndarray, " s"]
    blocks: Int64[np.ndarray, " s"]
    """All blocks of the stratum that a stream owns."""
    lineages: Int64[np.ndarray, " s"]
    """Lineages that a batch takes."""
    least: Int64[np.ndarray, " s"]
    """Blocks that hold a batch's worth of lineages."""
    alone: Bool[np.ndarray, " s"]
    """False for strata whose blocks a stratum of an earlier group has counted."""

    @property
    def total_bytes(self) -> float:
        """Bytes of all blocks of a stream."""
        return float((self.blocks * self.block_bytes)[self.alone].sum())


def plan_needs(index: PlanIndex, groups: tuple[Group, ...], config: SamplingConfig, num_streams: int) -> Needs:
    """Measure the blocks of each stratum, and count those that hold what a batch takes of it."""
    strata = len(index.strata)
    size, anchors, share = np.ones(strata), np.ones(strata), np.zeros(strata)
    blocks, least = np.zeros(strata, np.int64), np.zeros(strata, np.int64)
    for group in groups:
        share[group.strata] = group.share

    def measure(s: int) -> None:
        part = make_part(index, s)
        alike = (index.base_of == index.base_of[s]) & (index.group_of == index.group_of[s]) & (share > 0)
        size[s] = float(index.columns.block_bytes[part.blocks].max()) / int(alike.sum())
        anchors[s] = part.size / len(part.blocks)
        # a stratum with fewer blocks than streams is read by all of them
        blocks[s] = len(part.blocks) if len(part.blocks) < num_streams else -(-len(part.blocks) // num_streams)
        some = part.cut(0, min(part.size, _SAMPLE // num_streams + 1)).anchors
        of_batch = _blocks_of_a_batch(index, s, some, share[s] * config.batch_size, config)
        least[s] = min(blocks[s], of_batch + _SPARE_BLOCKS)

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="dynaclr-plan") as pool:
        for _ in pool.map(measure, np.flatnonzero(share).tolist()):
            pass
    counted: dict[int, int] = {}  # base → group
    alone = np.ones(strata, bool)
    for s in np.flatnonzero(share).tolist():
        alone[s] = counted.setdefault(int(index.base_of[s]), int(index.group_of[s])) == index.group_of[s]
    return Needs(size, anchors, blocks, np.ceil(share * config.batch_size).astype(np.int64), least, alone)


def _blocks_of_a_batch(
    index: PlanIndex, stratum: int, some: Integer[SampleIndex, " n"], lineages: float, config: SamplingConfig
) -> int:
    """Count the blocks of a stratum that hold what a batch takes of it, inside its focal window too."""
    clip = index.clip(some)
    first = np.flatnonzero(np.diff(clip, prepend=-1))  # a clip is of one lineage, and its anchors stand together
    block, lineage = index.columns.clip_block[clip[first]], index.columns.clip_lineage[clip[first]]
    need = _blocks_needed(block, lineage, lineages, np.ones(len(first), bool))
    if config.temporal_enrichment:
        start, hours = index.clock[stratum]
        hpi, width = start + index.columns.patch_t[index.row[some]] * hours, config.temporal_window_hours
        focal = (1 - config.temporal_global_fraction) * lineages
        for centre in (hpi.min() + width, np.median(hpi), hpi.max() - width):  # the ends hold fewest lineages
            usable = np.logical_or.reduceat(in_focal_window(hpi, float(centre), width), first)
            need = max(need, _blocks_needed(block, lineage, focal, usable))
    return need


def _blocks_needed(
    block: Integer[np.ndarray, " n"],
    lineage: Integer[np.ndarray, " n"],
    lineages: float,
    usable: Bool[np.ndarray, " n"],
) -> int:
    """Count the blocks that together hold so many different lineages, if blocks are random samples.

    k blocks with λ lineages each, out of L, hold L (1 − (1 − λ/L)^k) different ones.

    Parameters
    ----------
    block, lineage
        Of each clip.
    """
    found = len(np.unique(block))
    total = len(np.unique(lineage[usable]))
    pairs = len(np.unique(block[usable].astype(np.int64) << 32 | lineage[usable]))
    each, wanted = pairs / found, _SPARE_LINEAGES * lineages
    if wanted >= total or each >= total:
        return found if wanted >= total else 1
    return int(np.ceil(np.log1p(-wanted / total) / np.log1p(-each / total)))


def find_least_window(needs: Needs, groups: tuple[Group, ...], config: SamplingConfig, num_streams: int) -> int:
    """Find the smallest window that is accepted, in bytes."""
    wanted = min(2, len(groups))
    most = max(bytes_of_groups(groups, needs, relaxed=config.relax_lineages))
    return int(np.ceil(min(most * wanted, needs.total_bytes))) * num_streams


def bytes_of_groups(groups: tuple[Group, ...], needs: Needs, *, relaxed: bool) -> list[float]:
    """Bytes that a stream must hold of each group: a batch's worth of lineages, or a few blocks of each stratum."""
    blocks = np.minimum(needs.least, FEW_BLOCKS) if relaxed else needs.least
    return [float((blocks * needs.block_bytes)[g.strata].sum()) for g in groups]
