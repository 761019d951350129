"""Shows a build to people: bars with rates while it runs, a table of what was made and dropped after it.

On a terminal there are bars; elsewhere a line now and then, so that a log stays short. Progress goes to
stderr, the closing table to stdout.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from dynaclr_wds.contract import ExperimentRecord, Manifest
from dynaclr_wds.program import called_as
from dynaclr_wds.storage.location import Place
from dynaclr_wds.suspicions import FactsRecord
from dynaclr_wds.tau import least_tau
from dynaclr_wds.time_left import TimeLeft, write_duration
from dynaclr_wds.words import count_of
from etl.run.executors import Advance
from etl.suspicious.words import write_bytes, write_size

EVERY_SECONDS = 15.0
"""Between two lines where there is no terminal."""
AT_LEAST_SECONDS = 300.0
"""Between two lines where nothing changes."""

Describe = Callable[[], str] | None
"""Returns what else is said of a stage."""

BYTES = "bytes"
"""Unit of a stage that moves bytes: shown as MB, with the time that is left."""


class Progress:
    """Says nothing. What a build tells while it runs."""

    found_up_to_date = False
    """Whether the build found that there is nothing to do."""

    def say(self, text: str) -> None:
        """Tell something once."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str, describe: Describe = None) -> Iterator[Advance]:  # noqa: ARG002
        """Follow one stage of `total` units.

        Parameters
        ----------
        describe
            Returns what else is said of it whenever it is shown.
        """
        yield lambda _done, _bytes: None


class LineProgress(Progress):
    """A line at the end of each stage, and now and then in long ones."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    @contextmanager
    def stage(self, name: str, total: int, unit: str, describe: Describe = None) -> Iterator[Advance]:
        """Print how far it is, at most every `EVERY_SECONDS`, at least every `AT_LEAST_SECONDS`, and at the end."""
        rate, lock = _Rate(total, unit), threading.Lock()
        last, known = time.monotonic(), ""

        def advance(done: int, size: int) -> None:
            nonlocal last, known
            with lock:
                rate.add(done, size)
                silent, now = time.monotonic() - last, f"{rate.count()}; {describe()}" if describe else rate.count()
                if silent < (EVERY_SECONDS if now != known else AT_LEAST_SECONDS):
                    return
                last, known = time.monotonic(), now
            self.say(f"{name}: {rate}{f'; {describe()}' if describe else ''}")

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
    def stage(self, name: str, total: int, unit: str, describe: Describe = None) -> Iterator[Advance]:
        """Show a bar with the rate and, once it can be told, the time that is left."""
        rate, lock = _Rate(total, unit), threading.Lock()
        columns = (
            TextColumn("{task.description:<6}"),
            BarColumn(),
            *((DownloadColumn(),) if unit == BYTES else (MofNCompleteColumn(), TextColumn(unit))),
            TextColumn("{task.fields[rate]}"),
        )
        with Bars(*columns, console=self._console) as bars:
            task: TaskID = bars.add_task(name, total=total, rate="")

            def advance(done: int, size: int) -> None:
                with lock:
                    rate.add(done, size)
                    said = ", ".join(rate.describe())
                    bars.update(task, advance=done, rate=f"{said}; {describe()}".lstrip("; ") if describe else said)

            yield advance


class _Rate:
    """How much of a stage is done, how fast, and how long the rest takes.

    Units without bytes were kept from an earlier run: they count as done, but not for the rate.
    """

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit, self._done, self._new, self._bytes = total, unit, 0, 0, 0
        self._begin = self._last = time.monotonic()
        self._left = TimeLeft()

    def add(self, done: int, size: int) -> None:
        if not done:
            return
        now = time.monotonic()
        if size:
            self._left.add(done, now - self._last)
            self._new, self._bytes = self._new + done, self._bytes + size
        else:
            self._begin += now - self._last
        self._done, self._last = self._done + done, now

    def describe(self) -> list[str]:
        seconds, left = max(time.monotonic() - self._begin, 1e-6), self._left.guess(self._total - self._done)
        kept = self._done - self._new
        said = [f"{kept:,} kept"] if kept else []
        if self._bytes:
            said += [] if self._unit == BYTES else [f"{self._new / seconds:,.0f} {self._unit}/s"]
            said.append(f"{self._bytes / seconds / 1e6:,.0f} MB/s")
        return said + ([f"about {write_duration(left)} left"] if left else [])

    def count(self) -> str:
        if self._unit == BYTES:
            return f"{self._done / 1e6:,.1f}/{self._total / 1e6:,.1f} MB"
        return f"{self._done:,}/{self._total:,} {self._unit}"

    def __str__(self) -> str:
        return f"{self.count()} ({', '.join(self.describe())})"


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
    kept = ("tau_range_hours", "experiments", "shard_by", "partitions", "skipped", "dropped", "facts", "suspicious")
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
    if minutes == 0:
        return f"one frame, {pixel}"
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


def describe_up_to_date(where: str, manifest: Manifest) -> list[str]:
    """Say in one line what a set holds that needs no work, and in another how much of it is suspicious.

    Parameters
    ----------
    where
        Its folder or URL.
    """
    counts = [
        count_of(len(manifest.experiments), "experiment"),
        count_of(sum(p.observations for p in manifest.partitions), "cell"),
        count_of(sum(p.shards for p in manifest.partitions), "shard"),
        write_bytes(sum(p.bytes for p in manifest.partitions)),
    ]
    verify = f"{called_as('verify')} {shlex.quote(where)}"
    lines = [f"up to date, nothing to do: {', '.join(counts)}. (`{verify}` reads the files, too.)"]
    if manifest.suspicious:
        found = count_of(len(manifest.suspicious), "suspicious finding")
        lines.append(f"{found} about its data, as said when it was built; --json shows them again, and all counts.")
    return lines


_COUNTS = ("observations", "with_candidate", "lineages", "clips", "patches", "shards", "bytes")
_HEADINGS = {"observations": "cells", "with_candidate": "with a positive", "patches": "stored patches"}

_COUSINS = "candidates_dropped"

REASONS = {
    "outside_image": "cells whose centroid is outside the image",
    "outside_tracks": "spots of TrackMate that are in no track",
    "near_border": "cells so near the border that their patch would",
    "outside_time": "cells at a time that is no frame of the movie",
    "blank_channel": "cells whose patch has a channel that is entirely fill value",
    "nan_pixels": "cells whose patch has NaN or infinite pixels",
}


def summarize_dropped(manifest: Manifest) -> list[str]:
    """Say what was left out, or kept in spite of a fault; one line per experiment and reason."""
    kept = {"blank_channel_kept": "cells whose patch has a channel that is entirely fill value"}
    if manifest.config.get("on_nan") == "zero":
        kept["nan_pixels"] = "cells whose patch had NaN or infinite pixels, which are 0 now"
    far, cure = _describe_border(manifest)
    texts = {**REASONS, "near_border": REASONS["near_border"] + far, **kept}
    counts = [(e, r, n) for e, reasons in manifest.dropped.items() for r, n in sorted(reasons.items()) if n]
    lines = [
        f"{'kept in' if reason in kept else 'dropped from'} {experiment}: "
        f"{_describe_reason(count, texts.get(reason, reason))} ({reason}){cure if reason == 'near_border' else ''}"
        for experiment, reason, count in counts
        if reason != _COUSINS
    ]
    cousins = [
        f"not paired in {experiment}: {count_of(count, 'pair')} of cousins (cells on different branches of a lineage "
        "so large that it is stored in several clips); all cells, and the pairs along every line, are there "
        f"({_COUSINS})"
        for experiment, reason, count in counts
        if reason == _COUSINS
    ]
    return [*(lines or ["no cell was dropped" if cousins else "nothing was dropped"]), *cousins]


def _describe_border(manifest: Manifest) -> tuple[str, str]:
    """Say what patches of cells near the border would do, and how to keep the cells."""
    limits = manifest.config.get("max_border_shift_px")
    if limits is None:
        return " reach beyond the image", ". --border shift or pad keeps them"
    cure = "a smaller --yx_patch_size keeps more of them, --border pad or a larger --max_border_shift_px all"
    back = "" if limits[0] == limits[1] else f" down or right, or {limits[1]:g} up or left"
    return f" have to move by more than {limits[0]:g} pixels{back}", f"; {cure}"


def _describe_reason(count: int, text: str) -> str:
    """Put the number before a reason, whose first word and its verbs are plural."""
    if count != 1:
        return f"{count:,} {text}"
    text = text.replace("cells", "cell", 1).replace("spots", "spot", 1).replace("their", "its", 1)
    return f"1 {text.replace('that are', 'that is', 1)}"


def _shape(manifest: Manifest) -> str:
    shapes = dict.fromkeys(experiment.shape for experiment in manifest.experiments)
    return " and ".join(" x ".join(map(str, shape)) for shape in shapes)
