"""Strata to needs: counts the blocks that hold a batch of distinct lineages, and the groups that fit the window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.focal_window import in_focal_window
from dynaclr_wds.plan.compose.schedule import Group
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.streaming.partition import make_part

_SAMPLE = 1 << 20  # anchors of a stratum to count lineages in; blocks are random samples, so the first will do
_SPARE_LINEAGES = 1.25  # lineages within reach, over those that a batch takes of a stratum
_SPARE_BLOCKS = 3  # beside those: one that comes, one that goes, one that a round reaches into
_FEW_BLOCKS = 4  # least blocks of a stratum that are held when lineages may repeat
_COMFORT = 2.0  # groups share the window only as long as each has this times the least it needs


@dataclass(frozen=True, slots=True)
class Needs:
    """What each stratum asks of the window, per stream; 0 blocks where nothing is drawn."""

    block_bytes: Float64[np.ndarray, " s"]
    block_anchors: Float64[np.ndarray, " s"]
    blocks: Int64[np.ndarray, " s"]
    """All blocks of the stratum that a stream owns."""
    lineages: Int64[np.ndarray, " s"]
    """Lineages that a batch takes."""
    least: Int64[np.ndarray, " s"]
    """Blocks that hold a batch's worth of lineages."""

    @property
    def total_bytes(self) -> float:
        """Bytes of all blocks of a stream."""
        return float((self.blocks * self.block_bytes).sum())


def plan_needs(index: PlanIndex, groups: tuple[Group, ...], config: SamplingConfig, num_streams: int) -> Needs:
    """Measure the blocks of each stratum, and count those that hold what a batch takes of it."""
    strata = len(index.strata)
    size, anchors, share = np.ones(strata), np.ones(strata), np.zeros(strata)
    blocks, least = np.zeros(strata, np.int64), np.zeros(strata, np.int64)
    for group in groups:
        share[group.strata] = group.share
    for s in np.flatnonzero(share).tolist():
        part = make_part(index, cast(SampleIndex, np.arange(index.first[s], index.first[s + 1])))
        size[s] = float(index.columns.block_bytes[part.blocks].max())
        anchors[s] = len(part.anchors) / len(part.blocks)
        # a stratum with fewer blocks than streams is read by all of them
        blocks[s] = len(part.blocks) if len(part.blocks) < num_streams else -(-len(part.blocks) // num_streams)
        some = cast(SampleIndex, part.anchors[: _SAMPLE // num_streams + 1])
        least[s] = min(blocks[s], _blocks_of_a_batch(index, some, share[s] * config.batch_size, config) + _SPARE_BLOCKS)
    return Needs(size, anchors, blocks, np.ceil(share * config.batch_size).astype(np.int64), least)


def _blocks_of_a_batch(
    index: PlanIndex, some: Integer[SampleIndex, " n"], lineages: float, config: SamplingConfig
) -> int:
    """Count the blocks of a stratum that hold what a batch takes of it, inside its focal window too."""
    block, lineage = index.block(some), index.lineage(some)
    need = _blocks_needed(block, lineage, lineages, np.ones(len(some), bool))
    if config.temporal_enrichment:
        hpi, width = index.hpi(some), config.temporal_window_hours
        focal = (1 - config.temporal_global_fraction) * lineages
        for centre in (hpi.min() + width, np.median(hpi), hpi.max() - width):  # the ends hold fewest lineages
            need = max(need, _blocks_needed(block, lineage, focal, in_focal_window(hpi, float(centre), width)))
    return need


def _blocks_needed(
    block: Integer[np.ndarray, " n"],
    lineage: Integer[np.ndarray, " n"],
    lineages: float,
    usable: Bool[np.ndarray, " n"],
) -> int:
    """Count the blocks that together hold so many different lineages, if blocks are random samples.

    k blocks with λ lineages each, out of L, hold L (1 − (1 − λ/L)^k) different ones.
    """
    found = len(np.unique(block))
    total = len(np.unique(lineage[usable]))
    pairs = len(np.unique(block[usable].astype(np.int64) << 32 | lineage[usable]))
    each, wanted = pairs / found, _SPARE_LINEAGES * lineages
    if wanted >= total or each >= total:
        return found if wanted >= total else 1
    return int(np.ceil(np.log1p(-wanted / total) / np.log1p(-each / total)))


def plan_active(
    index: PlanIndex,
    groups: tuple[Group, ...],
    needs: Needs,
    config: SamplingConfig,
    share_bytes: int,
    num_streams: int,
) -> int:
    """Count the groups that are within reach at a time: as many as the window holds in comfort, at least two.

    Parameters
    ----------
    share_bytes
        A stream's share of the window.

    Raises
    ------
    ConfigError
        The window can't hold a batch of distinct lineages of each; says which stratum limits it and what would do. With
        `relax_lineages`, only a window that can't hold a few blocks of each stratum is refused.
    """
    if needs.total_bytes <= share_bytes:
        return len(groups)
    wanted = min(2, len(groups))
    bytes_of = [float((needs.least * needs.block_bytes)[g.strata].sum()) for g in groups]
    few = [float((np.minimum(needs.least, _FEW_BLOCKS) * needs.block_bytes)[g.strata].sum()) for g in groups]
    if max(bytes_of) * wanted <= share_bytes:
        return int(np.clip(int(share_bytes / (_COMFORT * max(bytes_of))), wanted, len(groups)))
    if not config.relax_lineages:
        group = groups[int(np.argmax(bytes_of))]
        enough = int(np.ceil(min(max(bytes_of) * wanted, needs.total_bytes))) * num_streams
        raise ConfigError(_describe_limit(index, group, needs, wanted, share_bytes * num_streams, num_streams, enough))
    if max(few) * wanted > share_bytes:
        enough = int(np.ceil(max(few) * wanted)) * num_streams
        raise ConfigError(
            f"window_bytes={share_bytes * num_streams:,} bytes can't hold {_FEW_BLOCKS} blocks of each stratum of "
            f"{wanted} groups in each of {num_streams} streams, even with relax_lineages. "
            f"Give window_bytes={enough:,}, fewer num_streams, or shards with a smaller block_bytes."
        )
    return wanted


def _describe_limit(
    index: PlanIndex, group: Group, needs: Needs, wanted: int, window_bytes: int, num_streams: int, enough: int
) -> str:
    s = int(group.strata[np.argmax((needs.least * needs.block_bytes)[group.strata])])
    held = int(needs.least[s] * needs.block_bytes[s])
    better = ""
    if index.stored_bytes <= enough:
        better = " As that is no less than all that would be read, the best choice is window_bytes=None (exact mode)."
    return (
        f"window_bytes={window_bytes:,} bytes can't hold one batch of distinct lineages of {wanted} "
        f"group{'s' * (wanted > 1)} in each of {num_streams} streams. What limits it is {index.strata[s].name}: a "
        f"batch takes {needs.lineages[s]} of its lineages, so a stream must hold {needs.least[s]} of its "
        f"{needs.blocks[s]} blocks, {held:,} bytes. Give window_bytes={enough:,}, fewer num_streams, a smaller "
        "batch_size, or shards with a smaller block_bytes; or give relax_lineages=True, which lets lineages repeat "
        "and counts it."
        f"{better}"
    )
