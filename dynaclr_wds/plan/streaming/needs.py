"""Strata to needs: counts the blocks that hold a batch of distinct lineages, and the groups that fit the window."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.focal_window import in_focal_window
from dynaclr_wds.plan.compose.group_quotas import Group
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
    window_bytes: int,
    num_streams: int,
) -> int:
    """Count the groups that are within reach at a time: as many as the window holds in comfort, at least two.

    Raises
    ------
    ConfigError
        The window can't hold a batch of distinct lineages of each; says which stratum limits it and what would do. With
        `relax_lineages`, only a window that can't hold a few blocks of each stratum is refused.
    """
    share_bytes = window_bytes // num_streams
    if needs.total_bytes <= share_bytes:
        return len(groups)
    wanted = min(2, len(groups))
    bytes_of = _bytes_of(groups, needs, relaxed=False)
    if max(bytes_of) * wanted <= share_bytes:
        return int(np.clip(int(share_bytes / (_COMFORT * max(bytes_of))), wanted, len(groups)))
    if not config.relax_lineages or max(_bytes_of(groups, needs, relaxed=True)) * wanted > share_bytes:
        raise ConfigError(_describe_limit(index, groups, needs, config, window_bytes, num_streams))
    return wanted


def find_least_window(needs: Needs, groups: tuple[Group, ...], config: SamplingConfig, num_streams: int) -> int:
    """Find the smallest window that is accepted, in bytes."""
    wanted = min(2, len(groups))
    most = max(_bytes_of(groups, needs, relaxed=config.relax_lineages))
    return int(np.ceil(min(most * wanted, needs.total_bytes))) * num_streams


def _bytes_of(groups: tuple[Group, ...], needs: Needs, *, relaxed: bool) -> list[float]:
    """Bytes that a stream must hold of each group: a batch's worth of lineages, or a few blocks of each stratum."""
    blocks = np.minimum(needs.least, _FEW_BLOCKS) if relaxed else needs.least
    return [float((blocks * needs.block_bytes)[g.strata].sum()) for g in groups]


def _describe_limit(
    index: PlanIndex,
    groups: tuple[Group, ...],
    needs: Needs,
    config: SamplingConfig,
    window_bytes: int,
    num_streams: int,
) -> str:
    wanted, relaxed = min(2, len(groups)), config.relax_lineages
    group = groups[int(np.argmax(_bytes_of(groups, needs, relaxed=relaxed)))]
    s = int(group.strata[np.argmax((needs.least * needs.block_bytes)[group.strata])])
    held = int(needs.least[s] * needs.block_bytes[s])
    of_groups = f"{wanted} group{'s' * (wanted > 1)} in each of {num_streams} stream{'s' * (num_streams > 1)}"
    if relaxed:
        what = f"{_FEW_BLOCKS} blocks of each stratum of {of_groups}, even with relax_lineages."
    else:
        what = (
            f"one batch of distinct lineages of {of_groups}. What limits it is {index.strata[s].name}: a batch takes "
            f"{needs.lineages[s]} of its lineages, so a stream must hold {needs.least[s]} of its {needs.blocks[s]} "
            f"blocks, {held:,} bytes."
        )
    ways = _list_ways(index, groups, needs, config, window_bytes, num_streams)
    return (
        f"window_bytes={window_bytes:,} bytes can't hold {what} What would do: {'; or '.join(ways)}. "
        "Or build shards with a smaller block_bytes."
    )


def _list_ways(
    index: PlanIndex,
    groups: tuple[Group, ...],
    needs: Needs,
    config: SamplingConfig,
    window_bytes: int,
    num_streams: int,
) -> list[str]:
    """List what can be had: exact mode or a larger window, fewer streams, a smaller batch, repeated lineages."""
    enough = find_least_window(needs, groups, config, num_streams)
    ways = [f"window_bytes={enough:,}"]
    if index.stored_bytes <= enough:  # no reason to stream
        ways = [f"window_bytes=None (exact mode), as a window would have to hold all {index.stored_bytes:,} bytes"]

    def least(streams: int, batch_size: int) -> int:
        other = dataclasses.replace(config, batch_size=batch_size)
        return find_least_window(plan_needs(index, groups, other, streams), groups, other, streams)

    for streams in (num_streams // 2**k for k in range(1, num_streams.bit_length())):
        if least(streams, config.batch_size) <= window_bytes:
            ways.append(f"num_streams={streams} (has to be a multiple of the ranks)")
            break
    else:
        if (fewest := least(1, config.batch_size)) < min(enough, index.stored_bytes):
            ways.append(f"window_bytes={fewest:,} with num_streams=1 (one rank)")
    if not config.relax_lineages:
        fits, above = 0, config.batch_size
        while above - fits > 1:
            middle = (fits + above) // 2
            fits, above = (middle, above) if least(num_streams, middle) <= window_bytes else (fits, middle)
        ways += [f"batch_size={fits}"] if fits else []
        relaxed = dataclasses.replace(config, relax_lineages=True)
        if find_least_window(needs, groups, relaxed, num_streams) <= window_bytes:
            ways.append("relax_lineages=True, which lets lineages repeat in a batch and counts it")
    return ways
