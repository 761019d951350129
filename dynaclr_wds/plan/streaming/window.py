"""Bytes to a window: reads the size that is asked for, counts the groups that fit, or says what else would do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from dynaclr_wds.byte_sizes import SIZES, parse_size
from dynaclr_wds.errors import ConfigError, WindowError
from dynaclr_wds.plan.compose.group_quotas import Group
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.streaming.needs import FEW_BLOCKS, Needs, bytes_of_groups, find_least_window, plan_needs
from dynaclr_wds.words import count_of, size_of

EXACT = "exact mode, which needs no window"
_RANKS = "must be a multiple of the number of ranks"
_COMFORT = 2.0  # groups share the window only as long as each has this times the least it needs
Way = tuple[dict[str, object], str]
"""Settings that would be accepted, and a remark. `plan.audit.window_offers` finds out what batches are like then."""


def parse_window(given: int | float | str | None, used: int) -> int | None:
    """Read a number of bytes: `4000000`, `512M`, `1.5GiB`, or `10%` of the bytes that are used.

    Parameters
    ----------
    given
        What the user wrote; None, `none` or `null` = exact mode.
    used
        Bytes of the blocks that hold anchors, `PlanIndex.stored_bytes`.

    Raises
    ------
    ConfigError
        It is none of these.
    """
    if given is None or isinstance(given, int):
        return given
    text = str(given).strip()
    if text.lower() in ("none", "null"):
        return None
    try:
        return int(float(text[:-1]) * (used / 100)) if text.endswith("%") else parse_size(text)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"window_bytes={text!r} is no size. Give bytes ({SIZES}) or a share of what is used (10%), or leave it out "
            "for exact mode."
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What is to be read through so many bytes."""

    index: PlanIndex
    groups: tuple[Group, ...]
    config: SamplingConfig
    bytes: int
    num_streams: int


def plan_active(window: Window, needs: Needs) -> int:
    """Count the groups that are within reach at a time: as many as the window holds in comfort, at least two.

    Raises
    ------
    WindowError
        The window can't hold a batch of distinct lineages of each; says which stratum limits it and what would do. With
        `relax_lineages`, only a window that can't hold a few blocks of each stratum is refused.
    """
    groups, share_bytes = window.groups, window.bytes // window.num_streams
    if needs.total_bytes <= share_bytes:
        return len(groups)
    wanted = min(2, len(groups))
    bytes_of = bytes_of_groups(groups, needs, relaxed=False)
    if max(bytes_of) * wanted <= share_bytes:
        return int(np.clip(int(share_bytes / (_COMFORT * max(bytes_of))), wanted, len(groups)))
    if not window.config.relax_lineages or max(bytes_of_groups(groups, needs, relaxed=True)) * wanted > share_bytes:
        raise WindowError(window.bytes, _describe_limit(window, needs), list_ways(window), window)
    return wanted


def _describe_limit(window: Window, needs: Needs) -> str:
    """Say what a stream must hold, of which stratum most, and what that comes to."""
    index, groups, relaxed = window.index, window.groups, window.config.relax_lineages
    group = groups[int(np.argmax(bytes_of_groups(groups, needs, relaxed=relaxed)))]
    s = int(group.strata[np.argmax((needs.least * needs.block_bytes)[group.strata])])
    blocks = min(int(needs.least[s]), FEW_BLOCKS) if relaxed else int(needs.least[s])
    streams = "The one stream" if window.num_streams == 1 else f"Each of {window.num_streams} streams"
    of = "what two batches draw from" if len(groups) > 1 else "what a batch draws from"
    why = "" if relaxed else f", because a batch takes {count_of(int(needs.lineages[s]), 'different lineage')} of it"
    enough, stored = find_least_window(needs, groups, window.config, window.num_streams), index.stored_bytes
    more = ""
    if size_of(enough) == size_of(stored):
        more = ", as much as is stored"
    elif enough > stored:
        more = f", more than the {size_of(stored)} that are stored, because {_explain_more(window)}"
    return (
        f"{streams} must hold {of}; of {index.strata[s].name} alone these are {blocks} of its "
        f"{count_of(int(needs.blocks[s]), 'block')}, up to {size_of(blocks * needs.block_bytes[s])}{why}. "
        f"In all, {size_of(enough)} are needed{more}."
    )


def _explain_more(window: Window) -> str:
    """Say why a window would have to be larger than the set."""
    drawn = [s for group in window.groups for s in group.strata[group.share > 0].tolist()]
    if any(len(window.index.blocks_of(s)) < window.num_streams for s in drawn):
        return "there are few blocks, so that several streams hold the same ones, each for itself"
    return "each stream holds whole blocks, and each block counts as much as the largest"


def describe_overflow(window: Window, peak: int) -> WindowError:
    """Describe a layout of a stream that is larger than its share of the window, however it is made."""
    share, enough = window.bytes // window.num_streams, peak * window.num_streams
    problem = f"One stream needs {size_of(peak)} at a time, and its share is {size_of(share)}."
    ways: list[Way] = [({"window_bytes": enough}, "")]
    if window.index.stored_bytes <= enough:
        ways = [({"window_bytes": None}, EXACT)]
    if window.num_streams > 1:
        ways.append(({"num_streams": window.num_streams // 2}, _RANKS))
    return WindowError(window.bytes, problem, ways, window)


def list_ways(window: Window) -> list[Way]:
    """List what can be had: exact mode or a larger window, fewer streams, a smaller batch, repeated lineages."""
    enough, stored = _least(window), window.index.stored_bytes
    ways: list[Way] = [({"window_bytes": enough}, "")]
    if stored <= enough:  # no reason to stream
        ways = [({"window_bytes": None}, EXACT)]
    fewer = _list_fewer(window)
    fitting = next((n for n in fewer if _least(window, num_streams=n) <= window.bytes), None)
    others: list[dict[str, object]] = [{}]
    if fitting is not None:
        ways.append(({"num_streams": fitting}, _RANKS))
    elif fewer:
        others.append({"num_streams": 1})
        if (least := _least(window, num_streams=1)) < min(enough, stored):
            ways.append(({"window_bytes": least, "num_streams": 1}, "for one rank"))
    if window.config.relax_lineages:
        return ways
    return [*ways, *_list_sizes(window, others), *_list_relaxed(window, min(enough, stored), fitting or 0)]


def _list_fewer(window: Window) -> list[int]:
    return [window.num_streams // 2**k for k in range(1, window.num_streams.bit_length())]


def _list_sizes(window: Window, others: list[dict[str, object]]) -> list[Way]:
    """Name the largest batch that the window can hold, if need be with the other settings too."""
    for more in others:
        if (size := _find_batch_size(window, **more)) > 1:
            return [({"batch_size": size, **more}, "for one rank" if more else "")]
    return []


def _list_relaxed(window: Window, limit: int, fitting: int) -> list[Way]:
    """Name what would do where lineages may repeat: with as many streams as can be, else in the smallest window.

    Parameters
    ----------
    limit
        Bytes from which on a window is no better than without.
    fitting
        Streams that do without it; 0 if none do.
    """
    remark = "lineages may then repeat in a batch, and are counted"
    least = {n: _least(window, relax_lineages=True, num_streams=n) for n in (window.num_streams, *_list_fewer(window))}
    relaxed: dict[str, object] = {"relax_lineages": True}
    for streams, size in least.items():
        if size <= window.bytes and streams > fitting:
            same = streams == window.num_streams
            return [(relaxed, remark)] if same else [({**relaxed, "num_streams": streams}, f"{remark}; {_RANKS}")]
    streams = min(least, key=lambda n: least[n])
    if fitting or least[streams] >= limit:
        return []
    same = streams == window.num_streams
    return [({"window_bytes": least[streams], **relaxed, **({} if same else {"num_streams": streams})}, remark)]


def _least(window: Window, **changed: object) -> int:
    """Find the smallest window that is accepted with other settings."""
    streams = int(str(changed.pop("num_streams", window.num_streams)))
    config = dataclasses.replace(window.config, **changed)  # type: ignore[arg-type]
    needs = plan_needs(window.index, window.groups, config, streams)
    return find_least_window(needs, window.groups, config, streams)


def _find_batch_size(window: Window, **more: object) -> int:
    """Find the largest batch that the window can hold; 0 if there is none."""
    fits, above = 0, window.config.batch_size
    while above - fits > 1:
        middle = (fits + above) // 2
        fits, above = (middle, above) if _least(window, batch_size=middle, **more) <= window.bytes else (fits, middle)
    return fits
