"""Shows a build to people: bars with rates while it runs, a table of what was made and dropped after it.

On a terminal there are bars; elsewhere a line now and then, so that a log stays short. Progress goes to
stderr, the closing table to stdout.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from dynaclr_wds.contract import ExperimentRecord, Manifest
from dynaclr_wds.storage.location import Place
from dynaclr_wds.suspicions import FactsRecord
from dynaclr_wds.tau import least_tau
from dynaclr_wds.words import count_of
from etl.run.executors import Advance
from etl.suspicious.words import write_bytes, write_size

EVERY_SECONDS = 15.0
"""Between two lines where there is no terminal."""

BYTES = "bytes"
"""Unit of a stage that moves bytes: shown as MB, with the time that is left."""


class Progress:
    """Says nothing. What a build tells while it runs."""

    found_up_to_date = False
    """Whether the build found that there is nothing to do."""

    def say(self, text: str) -> None:
        """Tell something once."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:  # noqa: ARG002 - says nothing
        """Follow one stage of `total` units."""
        yield lambda _done, _bytes: None


class LineProgress(Progress):
    """A line at the end of each stage, and now and then in long ones."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Print how far it is, at most every `EVERY_SECONDS`, and at the end."""
        rate, lock = _Rate(total, unit), threading.Lock()
        last = time.monotonic()

        def advance(done: int, size: int) -> None:
            nonlocal last
            with lock:
                rate.add(done, size)
                if time.monotonic() - last < EVERY_SECONDS:
                    return
                last = time.monotonic()
            self.say(f"{name}: {rate}")

        yield advance
        self.say(f"{name}: {rate}")


class BarProgress(Progress):
    """One bar per stage, on a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Show a bar with the rate and the time that is left."""
        rate, lock = _Rate(total, unit), threading.Lock()
        columns = (
            TextColumn("{task.description:<6}"),
            BarColumn(),
            DownloadColumn() if unit == BYTES else MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self._console) as bars:
            task: TaskID = bars.add_task(name, total=total, rate="")

            def advance(done: int, size: int) -> None:
                with lock:
                    rate.add(done, size)
                    bars.update(task, advance=done, rate=rate.speed)

            yield advance


class _Rate:
    """How much of a stage is done, and how fast."""

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit, self._done, self._bytes = total, unit, 0, 0
        self._begin = time.monotonic()

    def add(self, done: int, size: int) -> None:
        self._done += done
        self._bytes += size

    @property
    def speed(self) -> str:
        seconds = max(time.monotonic() - self._begin, 1e-6)
        rate = f"{self._bytes / seconds / 1e6:,.0f} MB/s"
        return rate if self._unit == BYTES else f"{self._done / seconds:,.0f} {self._unit}/s, {rate}"

    def __str__(self) -> str:
        if self._unit != BYTES:
            return f"{self._done:,}/{self._total:,} {self._unit} ({self.speed})"
        return f"{self._done / 1e6:,.1f}/{self._total / 1e6:,.1f} MB ({self.speed}{self._left})"

    @property
    def _left(self) -> str:
        """How long the rest takes at the rate so far; empty at the end and before there is a rate."""
        left = self._total - self._done
        if left <= 0 or self._done <= 0:
            return ""
        seconds = left * (time.monotonic() - self._begin) / self._done
        return f", {timedelta(seconds=round(seconds))} left"


def make_progress(quiet: bool) -> Progress:
    """Choose how to tell: bars on a terminal, lines elsewhere, nothing when quiet."""
    if quiet:
        return Progress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()


def print_summary(manifest: Manifest) -> None:
    """Print what a shard set holds, partition by partition, and what was left out and why."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    cells = count_of(sum(p.observations for p in manifest.partitions), "cell")
    table = Table(title=f"{cells}; patches (C, Z, Y, X) of {_shape(manifest)}")
    for name in manifest.shard_by:
        table.add_column(name, overflow="fold")
    for name in _COUNTS:
        table.add_column(_HEADINGS.get(name, name), justify="right")
    for partition in manifest.partitions:
        numbers = [f"{getattr(partition, name):,}" for name in _COUNTS]
        table.add_row(*(partition.labels[name] or "" for name in manifest.shard_by), *numbers)
    if len(manifest.partitions) > 1:
        table.add_section()
        sums = [f"{sum(getattr(p, name) for p in manifest.partitions):,}" for name in _COUNTS]
        table.add_row("all", *[""] * (len(manifest.shard_by) - 1), *sums)
    console.print(table)
    for line in (*summarize_facts(manifest), *summarize_dropped(manifest), *list_suspicious(manifest)):
        console.print(_make_encodable(line, console.encoding), markup=False, soft_wrap=True)


def _make_encodable(line: str, encoding: str) -> str:
    """Write a line so that a terminal without Unicode can show it."""
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        plain = line.replace("τ", "tau").replace("µ", "u")
        return plain.encode(encoding, "replace").decode(encoding)
    return line


def print_json(manifest: Manifest, out: Place) -> None:
    """Print what `print_summary` says as one JSON object."""
    kept = ("tau_range_hours", "experiments", "shard_by", "partitions", "dropped", "facts", "suspicious")
    record = {name: value for name, value in dataclasses.asdict(manifest).items() if name in kept}
    sums = {name: sum(getattr(p, name) for p in manifest.partitions) for name in _COUNTS}
    print(json.dumps({"out": str(out), **sums, **record}, indent=1, sort_keys=True))


def summarize_facts(manifest: Manifest) -> list[str]:
    """Say what time, space and tracks of each experiment are like; one line per experiment."""
    facts = {record.experiment: record for record in manifest.facts}
    return [
        f"{experiment.name}: {_describe_scales(experiment)}; {_describe_tracks(facts[experiment.name])}"
        for experiment in manifest.experiments
        if experiment.name in facts
    ]


def _describe_scales(experiment: ExperimentRecord) -> str:
    (low, high), minutes = experiment.tau_frames, experiment.interval_minutes
    low = int(least_tau(low))
    size = write_size([value for value in experiment.pixel_size_um if value is not None])
    pixel = f"pixels of {size}" if size else "pixel size unknown"
    least, most = f"{low * minutes / 60:.3g}", f"{high * minutes / 60:.3g}"
    drawn = f"{least} to {most} h" if low < high else f"{least} h"
    later = f"{low} to {high} frames" if low < high else count_of(low, "frame")
    return f"{minutes:g} minutes a frame, positives {later} later ({drawn}), {pixel}"


def _describe_tracks(facts: FactsRecord) -> str:
    parts = [count_of(facts.tracks, "track"), count_of(facts.divisions, "division")]
    if facts.tracks_with_gaps:
        parts.append(f"gaps in {count_of(facts.tracks_with_gaps, 'track')}")
    if facts.moved_patches:
        moved = count_of(facts.moved_patches, "patch", "patches")
        parts.append(f"{moved} near the border moved into the image (by {facts.largest_move_px:g} px at most)")
    if facts.padded_patches:
        padded = count_of(facts.padded_patches, "patch", "patches")
        parts.append(f"{padded} near the border filled with the nearest pixels")
    if facts.empty_tables:
        parts.append(f"no cell in {count_of(facts.empty_tables, 'track table')}")
    if facts.measured_focus:
        parts.append(f"focus measured in {count_of(facts.measured_focus, 'field')} of view")
    if facts.clamped_stacks:
        parts.append(f"slices moved into the stack in {count_of(facts.clamped_stacks, 'frame')}")
    return ", ".join(parts)


def list_suspicious(manifest: Manifest) -> list[str]:
    """List what looks wrong, below a heading; nothing when all is well."""
    return ["suspicious:", *(f"- {record.text}" for record in manifest.suspicious)] if manifest.suspicious else []


def describe_up_to_date(manifest: Manifest) -> list[str]:
    """Say in one line what a set holds that needs no work, and in another how much of it is suspicious."""
    counts = [
        count_of(len(manifest.experiments), "experiment"),
        count_of(sum(p.observations for p in manifest.partitions), "cell"),
        count_of(sum(p.shards for p in manifest.partitions), "shard"),
        write_bytes(sum(p.bytes for p in manifest.partitions)),
    ]
    lines = [f"up to date, nothing to do: {', '.join(counts)}."]
    if manifest.suspicious:
        found = count_of(len(manifest.suspicious), "suspicious finding")
        lines.append(f"{found} about its data, as said when it was built; --json shows them again, and all counts.")
    return lines


_COUNTS = ("observations", "with_candidate", "lineages", "clips", "patches", "shards", "bytes")
_HEADINGS = {"observations": "cells", "with_candidate": "with a positive", "patches": "stored patches"}

_REASONS = {
    "outside_image": "cells whose centroid is outside the image",
    "outside_tracks": "spots of TrackMate that are in no track",
    "near_border": "cells so near the border that their patch would have to move too far (border, max_border_shift_px)",
    "outside_time": "cells at a time that is no frame of the movie",
    "blank_channel": "cells whose patch has a channel that is entirely fill value",
    "nan_pixels": "cells whose patch has NaN or infinite pixels",
}


def summarize_dropped(manifest: Manifest) -> list[str]:
    """Say what was left out, or kept in spite of a fault; one line per experiment and reason."""
    kept = {"blank_channel_kept": "cells whose patch has a channel that is entirely fill value"}
    if manifest.config.get("on_nan") == "zero":
        kept["nan_pixels"] = "cells whose patch had NaN or infinite pixels, which are 0 now"
    lines = [
        f"{'kept in' if reason in kept else 'dropped from'} {experiment}: "
        f"{_describe_reason(count, kept.get(reason) or _REASONS.get(reason, reason))} ({reason})"
        for experiment, reasons in manifest.dropped.items()
        for reason, count in sorted(reasons.items())
        if count and reason != "candidates_dropped"  # of large lineages, always: every cell keeps its own line
    ]
    return lines or ["nothing was dropped"]


def _describe_reason(count: int, text: str) -> str:
    """Put the number before a reason, whose first word and its verbs are plural."""
    if count != 1:
        return f"{count:,} {text}"
    text = text.replace("cells", "cell", 1).replace("spots", "spot", 1).replace("their", "its", 1)
    return f"1 {text.replace('that are', 'that is', 1)}"


def _shape(manifest: Manifest) -> str:
    shapes = dict.fromkeys(experiment.shape for experiment in manifest.experiments)
    return " and ".join(" x ".join(map(str, shape)) for shape in shapes)
