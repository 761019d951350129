"""Ways out of a window that is too small, tried: plans an epoch with each, and says whether lineages repeat in it.

The batches that are planned are those that the verdict would look at, so that neither says what the other denies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from dynaclr_wds.byte_sizes import parse_size
from dynaclr_wds.errors import ConfigError, WindowError
from dynaclr_wds.plan.audit.ledger import find_anchors
from dynaclr_wds.plan.audit.verdict import count_judged
from dynaclr_wds.plan.config import PositiveRule
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.plan.streaming.window import EXACT, Way, Window
from dynaclr_wds.words import percent, size_option

_GROWTH = 1.4  # from one window that is tried to the next
_FEW = 64  # batches that are planned first
_MOST_ANCHORS = 2_000_000
"""Of more, to plan with each way would take more than some 15 seconds, in which an error only seems to hang."""
_DISTINCT = "no lineage twice in a batch"
_UNTRIED = "shuffle says whether lineages repeat"


@contextmanager
def window_as_typed(given: int | float | str | None) -> Iterator[None]:
    """Let an error about the window show what the user gave for it, and what each way out of it comes to."""
    try:
        yield
    except WindowError as error:
        error.typed = error.window_bytes if given is None else given
        if isinstance(error.asked, Window):
            small = len(error.asked.index.row) <= _MOST_ANCHORS
            error.ways = try_ways(error.asked, error.ways) if small else _leave_untried(error.ways)
        raise


def try_ways(asked: Window, ways: Sequence[Way]) -> list[Way]:
    """Plan an epoch with each way; those without a repeated lineage come first, the others say how many repeat.

    A window that is accepted but too small to keep lineages distinct gives way to a larger one that does.
    """
    good: list[Way] = []
    other: list[Way] = []
    for settings, remark in (_as_typed(*way) for way in ways):
        share = measure_shared(asked, settings)
        relaxed = "relax_lineages" in settings
        larger = _find_larger(asked, settings, remark) if share and "window_bytes" in settings and not relaxed else []
        if share == 0 and not relaxed:
            good.append((settings, _join(remark, _DISTINCT)))
        elif larger:
            good += [way for way in larger if way[0] not in [known for known, _ in good]]
        elif share is not None:  # else it is refused, too
            said = f"about {percent(share)} of the samples repeat one" if relaxed else _describe(share)
            other.append((settings, _join(remark, said if share else "")))
    return [*good, *other] or list(ways)


def _leave_untried(ways: Sequence[Way]) -> list[Way]:
    """Say of each window that keeps lineages apart where it can how one finds out whether it does."""
    typed = [_as_typed(*way) for way in ways]
    kept = [bool(settings.get("window_bytes")) and "relax_lineages" not in settings for settings, _ in typed]
    return [(way[0], _join(way[1], _UNTRIED)) if one else way for way, one in zip(typed, kept, strict=True)]


def measure_shared(asked: Window, settings: Mapping[str, Any]) -> float | None:
    """Return the fraction of samples whose lineage their batch holds already; None where nothing can be planned.

    A few batches tell it if lineages repeat in them; else all that the verdict would look at are planned.
    """
    changed = dict(settings)
    window, streams = changed.pop("window_bytes", asked.bytes), changed.pop("num_streams", asked.num_streams)
    index = dataclasses.replace(asked.index, positives=PositiveRule(kind="self"), match=None)  # only anchors matter
    config = dataclasses.replace(asked.config, **changed)
    try:
        sampler = FlexibleBatchSampler(
            index, config, window_bytes=window, num_streams=None if window is None else streams
        )
        for most in (_FEW, count_judged(config.batch_size)):
            plans = [sampler.plan(number) for number in sampler.sample_batches(most).tolist()]
            lineages = [index.lineage(find_anchors(index, plan)) for plan in plans]
            if repeats := sum(len(one) - len(np.unique(one)) for one in lineages):
                return repeats / sum(map(len, lineages))
    except ConfigError:
        return None
    return 0.0


def _find_larger(asked: Window, settings: Mapping[str, Any], remark: str) -> list[Way]:
    """Find a larger window that keeps lineages distinct; exact mode where there is none below what is stored."""
    if (size := settings["window_bytes"]) is None:
        return []
    while (size := parse_size(size_option(int(size * _GROWTH)))) < asked.index.stored_bytes:
        if measure_shared(asked, larger := {**settings, "window_bytes": size}) == 0:
            return [(larger, _join(remark, _DISTINCT))]
    exact: dict[str, object] = {"window_bytes": None}
    return [] if measure_shared(asked, exact) else [(exact, _join(EXACT, _DISTINCT))]


def _describe(share: float) -> str:
    return f"about {percent(share)} of the samples then have the lineage of another in their batch"


def _as_typed(settings: dict[str, object], remark: str) -> Way:
    """Round a window up to what stands in the message, so that it is tried as it will be typed."""
    if not (size := settings.get("window_bytes")):
        return settings, remark
    return {**settings, "window_bytes": parse_size(size_option(int(str(size))))}, remark


def _join(*remarks: str) -> str:
    return "; ".join(filter(None, remarks))
