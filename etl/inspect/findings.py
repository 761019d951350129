"""What is odd about experiments, in words: what a build finds suspicious, and what counts and pixels show besides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dynaclr_wds.contract import ExperimentRecord, SkippedRecord
from dynaclr_wds.tau import least_tau
from dynaclr_wds.words import count_of, list_some, percent
from etl.inspect.collection import Collection
from etl.inspect.pixels import ChannelFacts
from etl.inspect.tally import ExperimentCount, Tally, quantile_of

_FEW = 0.25
"""Share of cells with a positive below which an interval, or τ, is questioned."""
_MANY_LOST = 0.1
"""Share of an experiment's cells near the border from which on it is said."""
_MOST_NAMED = 3
_CYCLES, _CYCLE_HOURS = 5, (0.15, 300.0)
"""Complete cell cycles that say something, and hours between which their median is believed."""

_SEVERE = ("no_anchors", "condition_gone", "cells_in_corner", "frames_from_one", "outside_movie", "outside_image")

Level = Literal["wrong", "doubtful"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something odd."""

    level: Level
    code: str
    experiment: str | None
    text: str
    """For people, in one line."""


def list_findings(
    collection: Collection, tally: Tally, looked: Sequence[tuple[Sequence[ChannelFacts], int, Sequence[str]]]
) -> tuple[Finding, ...]:
    """List what is odd, the worst first.

    Parameters
    ----------
    looked
        Of each experiment: its channels, how many frames were looked at, and why others can't be read.
    """
    found = [
        Finding(level="wrong" if s.code in _SEVERE else "doubtful", code=s.code, experiment=s.experiment, text=s.text)
        for s in collection.find_suspicious()
    ]
    for record, count, (facts, frames, unread) in zip(collection.experiments, tally.experiments, looked, strict=True):
        found += [_make(record, "wrong", "frame_unreadable", why) for why in unread]
        found += _find_skipped(record, collection.skipped)
        found += _find_in_channels(record, facts, frames, is_built=collection.is_built)
        found += _find_in_tracks(record, count)
    found += _find_at_border(collection, tally)
    found += _find_lone_conditions(collection, tally)
    return tuple(sorted(found, key=lambda finding: finding.level == "doubtful"))


def _find_skipped(record: ExperimentRecord, skipped: Sequence[SkippedRecord]) -> Iterator[Finding]:
    """Find fields of view that the build had to leave out; one finding for all, a table says why."""
    names = [one.fov_name for one in skipped if one.experiment == record.name]
    if names:
        yield _make(
            record, "doubtful", "fovs_skipped",
            f"the build left out {count_of(len(names), 'field of view', 'fields of view')} that can't be used: "
            f"{list_some(names, _MOST_NAMED)}. What was skipped is listed with the reason: mend it, and build again.",
        )  # fmt: skip


def _find_in_channels(
    record: ExperimentRecord, channels: Sequence[ChannelFacts], frames: int, *, is_built: bool
) -> Iterator[Finding]:
    of = f"of {count_of(frames, 'frame')}{'' if is_built else ' looked at'}"
    for channel in channels:
        examples = f" ({', '.join(channel.places)}{', …' if len(channel.places) > 3 else ''})"
        if channel.constant:
            level: Level = "wrong" if channel.constant + channel.blank == frames else "doubtful"
            where = "all" if channel.constant == frames else f"{channel.constant:,}"
            yield _make(
                record, level, "channel_constant",
                f"channel {channel.name!r} is constant in {where} {of}{examples}: every pixel has the same value, so "
                "it shows no cell. Look whether the right channel was written, or leave it out of source_channel.",
            )  # fmt: skip
        if channel.blank:
            level = "wrong" if channel.blank == frames else "doubtful"
            done = (
                "Cells there were left out, unless on_blank is keep." if is_built else "A build leaves cells there out."
            )
            yield _make(
                record, level, "frames_blank",
                f"channel {channel.name!r} is blank in {channel.blank:,} {of}{examples}: its pixels were never "
                f"written, or are zero. {done} Look at the acquisition, or restore the plate.",
            )  # fmt: skip
        if channel.nonfinite:
            yield _make(
                record, "doubtful", "pixels_not_finite",
                f"channel {channel.name!r} has pixels that are NaN or infinite in {channel.nonfinite:,} {of}{examples}"
                f", {channel.nonfinite_pixels:,} in all. A build stops where a cell's patch has any: mend the plate, "
                "or give on_nan: drop or zero.",
            )  # fmt: skip


def _find_in_tracks(record: ExperimentRecord, count: ExperimentCount) -> Iterator[Finding]:
    """Find an interval, or a τ, that doesn't fit the tracks."""
    minutes = record.interval_minutes
    if not minutes or not count.cells:
        return
    share, (low, high) = count.with_positive / count.cells, record.tau_frames
    if 0 < share < _FEW:
        median = quantile_of(count.lengths, 0.5)
        yield _make(
            record, "doubtful", "few_positives",
            f"only {percent(share)} of its cells have a positive: τ is {int(least_tau(low))} to {high} frames at "
            f"{minutes:g} minutes a frame, but half of its tracks have {count_of(median, 'cell')} or fewer."
            " Check interval_minutes; if it is right, lower tau_range_hours, or track cells for longer.",
        )  # fmt: skip
    steps, single = sum(count.steps.values()), count.steps.get(1, 0)
    if steps and single < steps / 2:
        usual = max(count.steps, key=lambda step: count.steps[step])
        yield _make(
            record, "doubtful", "frames_skipped",
            f"{percent(1 - single / steps)} of the steps of its tracks skip frames; the usual step is "
            f"{count_of(usual, 'frame')}. Either t counts something else, such as minutes, or the tracks are of "
            f"another interval than interval_minutes={minutes:g}: compare both with the movie.",
        )  # fmt: skip
    cycles = sum(count.cycles.values())
    hours = quantile_of(count.cycles, 0.5) * minutes / 60
    if cycles >= _CYCLES and not _CYCLE_HOURS[0] <= hours <= _CYCLE_HOURS[1]:
        yield _make(
            record, "doubtful", "cycle_unlikely",
            f"its cells would divide every {hours:.3g} h (median of {count_of(cycles, 'cycle')}), which hardly any "
            f"cell does. Check interval_minutes={minutes:g}, which says minutes, not seconds or hours, and the "
            "divisions of the tracks.",
        )  # fmt: skip


def _find_at_border(collection: Collection, tally: Tally) -> Iterator[Finding]:
    """Find experiments that lose many cells at the border; one finding for all."""
    shares = {}
    for record, count in zip(collection.experiments, tally.experiments, strict=True):
        lost = collection.dropped.get(record.name, {}).get("near_border", 0)
        if (share := lost / max(count.cells + lost, 1)) >= _MANY_LOST:
            shares[record.name] = share
    if not shares:
        return
    done = "were" if collection.is_built else "would be"
    listed = ", ".join(f"{percent(share)} of {name}" for name, share in list(shares.items())[:_MOST_NAMED])
    more = f" and many of {count_of(len(shares) - _MOST_NAMED, 'more experiment')}" if len(shares) > _MOST_NAMED else ""
    text = (
        f"many cells {done} left out, because they are near the border of the image: {listed}{more}. With a smaller "
        "yx_patch_size more of them are kept, and with border: pad all of them."
    )
    yield _make(None, "doubtful", "many_at_border", text)


def _find_lone_conditions(collection: Collection, tally: Tally) -> Iterator[Finding]:
    """Find conditions that one field of view alone has, where there are others to tell them from."""
    for label in collection.labels:
        counts = tally.labels[label.name][: len(label.values)]
        there = [(value, count) for value, count in zip(label.values, counts, strict=True) if count.cells]
        alone = [value for value, count in there if count.fovs == 1]
        if label.name != "condition" or len(there) < 2 or not alone:
            continue
        text = (
            f"one field of view only has the condition {list_some(alone, _MOST_NAMED)}: what a network finds there may "
            "be that image's light and focus, and no field of view with it can be held out. Film more, or judge by "
            "lineages, with care."
        )
        yield _make(None, "doubtful", "condition_in_one_fov", text)


def _make(record: ExperimentRecord | None, level: Level, code: str, text: str) -> Finding:
    """Make a finding of one experiment, or of none."""
    whole = text if record is None else f"{record.name}: {text}"
    line = "".join(letter if letter.isprintable() else "�" for letter in whole)
    return Finding(level=level, code=code, experiment=None if record is None else record.name, text=line)
