"""An inspection as tables: the same rows for a terminal and for a page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable

from dynaclr_wds.contract import NO_CODEC
from dynaclr_wds.tau import least_tau
from dynaclr_wds.time_left import write_duration
from dynaclr_wds.words import count_of, percent
from etl.inspect.as_json import summarise_lengths
from etl.inspect.collection import Sizes
from etl.inspect.looking import Inspection
from etl.inspect.tally import Count
from etl.run.progress import REASONS
from etl.suspicious.words import write_bytes

_MOST_VALUES = 12
"""Values of a label that are listed, the most frequent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A table."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    remark: str = ""


def describe(found: Inspection) -> str:
    """Say in a sentence what there is."""
    cells = count_of(sum(count.cells for count in found.tally.experiments), "cell")
    fovs = count_of(len(found.collection.fovs), "field of view", "fields of view")
    return f"{cells} of {count_of(len(found.collection.experiments), 'experiment')} in {fovs}."


def describe_cost(found: Inspection) -> str:
    """Say how large a set is, or would be, and how long a build would take."""
    sizes = found.sizes
    parts = f"{write_bytes(sum(sizes.bytes))} of shards and {write_bytes(sizes.index_bytes)} of index"
    if not sizes.is_estimate:
        return f"The set takes {write_bytes(sizes.total)}: {parts}."
    size = f"A build with these options would write about {write_bytes(sizes.total)}: {parts}."
    return " ".join(part for part in (size, _describe_codec(sizes), _describe_time(found)) if part)


def _describe_codec(sizes: Sizes) -> str:
    """Say where the size of compressed patches is from; nothing where they are stored as they are."""
    if sizes.codec == NO_CODEC:
        return ""
    if not sizes.compressed:
        return f"That is before {sizes.codec}: no frame was read, so nothing was compressed."
    low, high = (write_bytes(sizes.total + sign * sizes.spread) for sign in (-1, 1))
    return (
        f"Probably between {low} and {high}: {count_of(sizes.compressed, 'patch', 'patches')} of the frames that were "
        f"read were compressed with {sizes.codec}, and frames differ."
    )


def _describe_time(found: Inspection) -> str:
    """Guess how long a build would take; nothing where no frame was read."""
    if not found.seconds:
        return ""
    workers = count_of(found.workers, "worker")
    return (
        "Reading all frames, measuring them and cutting out the cells would take about "
        f"{write_duration(found.seconds)} with {workers}: a guess from the frames that were read just now, on this "
        "machine. Writing the files comes on top, and may take as long."
    )


def describe_looks(found: Inspection) -> str:
    """Say how many frames were looked at."""
    seen, every = sum(one.seen for one in found.frames), sum(one.all for one in found.frames)
    if found.collection.is_built:
        return f"All {count_of(every, 'frame')}, by the statistics that the build has noted."
    if not seen:
        return "No frame was read (--frames 0)."
    return f"A sample: {seen:,} of {count_of(every, 'frame')} were read (--frames)."


def list_tables(found: Inspection) -> list[Rows]:
    """List all tables."""
    return [
        list_experiments(found),
        list_strata(found),
        *list_labels(found),
        list_taus(found),
        list_channels(found),
        *list_dropped(found),
        *list_skipped(found),
    ]


def list_experiments(found: Inspection) -> Rows:
    """One row per experiment: cells, tracks, divisions, bytes."""
    head = ["experiment", "cells", "with a positive", "FOVs", "tracks", "lineages", "divisions", "tracks with gaps",
            "cells per track", "bytes"]  # fmt: skip
    rows = []
    for record, count, size in zip(
        found.collection.experiments, found.tally.experiments, found.sizes.bytes, strict=True
    ):
        lengths = summarise_lengths(count)
        said = ", ".join(f"{lengths[name]:g}" for name in ("p10", "median", "p90", "max"))
        rows.append([record.name, count.cells, _share(count), count.fovs, count.tracks, count.lineages, count.divisions,
                     count.tracks_with_gaps, said, write_bytes(size)])  # fmt: skip
    return Rows(title="Experiments", head=head, rows=rows, remark="Cells per track: 10 %, median, 90 %, most.")


def list_strata(found: Inspection) -> Rows:
    """One row per stratum."""
    names = list(found.collection.strata[0]) if found.collection.strata else []
    rows = [
        [*(value or "none" for value in labels.values()), *_list_counts(count)]
        for labels, count in zip(found.collection.strata, found.tally.strata, strict=True)
    ]
    return Rows(title="Strata: what shards are partitioned by", head=[*names, *_COUNTS], rows=rows)


_COUNTS = ["cells", "with a positive", "tracks", "lineages", "FOVs"]


def _list_counts(count: Count) -> list[object]:
    return [count.cells, _share(count), count.tracks, count.lineages, count.fovs]


def _share(count: Count) -> str:
    return f"{count.with_positive:,} ({percent(count.with_positive / count.cells)})" if count.cells else "0"


def list_labels(found: Inspection) -> list[Rows]:
    """One table per label that is no stratum of its own."""
    alone = {name for labels in found.collection.strata[:1] for name in labels} | {"experiment"}
    tables = []
    for label in found.collection.labels:
        if label.name in alone:
            continue
        counts = list(zip((*label.values, None), found.tally.labels[label.name], strict=True))
        there = sorted((pair for pair in counts if pair[1].cells), key=lambda pair: -pair[1].cells)
        shown = sorted(there[:_MOST_VALUES], key=lambda pair: _by_name(pair[0]))
        rows = [[value or "none", *_list_counts(count)] for value, count in shown]
        left = len(there) - _MOST_VALUES
        tables.append(
            Rows(
                title=f"Cells by the label {label.name}",
                head=[label.name, *_COUNTS],
                rows=rows,
                remark=f"and {count_of(left, 'value')} more, with fewer cells" if left > 0 else "",
            )
        )
    return tables


def _by_name(value: str | None) -> tuple[bool, list[tuple[int, str]]]:
    """Sort names as people do: A/2 before A/10; cells without a value last."""
    parts = re.findall(r"\d+|\D+", value or "")
    return value is None, [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def list_taus(found: Inspection) -> Rows:
    """One row per experiment: which τ its lineages serve."""
    rows = []
    for record, count in zip(found.collection.experiments, found.tally.experiments, strict=True):
        hours = record.interval_minutes / 60
        low, high = int(least_tau(record.tau_frames[0])), record.tau_frames[1]
        frames = f"{low} to {high}" if high > low else f"{low}"
        served = [f"{tau * hours:.3g} h {percent(cells / max(count.cells, 1))}" for tau, cells in count.tau.items()]
        shown = served if len(served) <= _SHOWN_TAUS else [*served[:2], "…", *served[-2:]]
        said = ", ".join(shown)
        rows.append(
            [record.name, f"{record.interval_minutes:g}", frames, _share(count), said]
            if hours
            else [record.name, "one frame", "–", "–", "no time"]
        )
    least, most = found.collection.tau_range_hours
    head = ["experiment", "minutes a frame", "τ in frames", "cells with any τ", "cells whose lineage is seen τ later"]
    return Rows(title=f"Time: τ of {least:g} to {most:g} h", head=head, rows=rows)


_SHOWN_TAUS = 5


def list_channels(found: Inspection) -> Rows:
    """One row per channel: how bright it is, and frames that are blank, constant or not finite."""
    rows = []
    for record, frames in zip(found.collection.experiments, found.frames, strict=True):
        for channel in frames.channels:
            numbers = [channel.statistics[name] for name in ("p1", "median", "p99")]
            shown = ["–" if value is None else f"{value:.5g}" for value in numbers]
            bad = channel.nonfinite if not found.collection.is_built else "see dropped"
            looked = f"{frames.seen:,} of {frames.all:,}"
            rows.append([record.name, channel.name, looked, channel.blank, channel.constant, bad, *shown])
    head = ["experiment", "channel", "frames looked at", "blank", "constant", "not finite", "p1", "median", "p99"]
    return Rows(title="Frames and channels", head=head, rows=rows, remark=describe_looks(found))


WHY = REASONS | {
    "near_border": "cells so near the border that their patch would have to move too far to lie inside the image",
    "blank_channel_kept": "cells that were kept although their patch has a channel that is entirely fill value",
    "candidates_dropped": "pairs of cousins that lie in different clips of a large lineage; no cell is missing",
}


def list_dropped(found: Inspection) -> list[Rows]:
    """One row per experiment and reason; no table where nothing is left out."""
    rows = [
        [experiment, count, WHY.get(reason, reason.replace("_", " "))]
        for experiment, reasons in found.collection.dropped.items()
        for reason, count in sorted(reasons.items())
        if count
    ]
    done = "was" if found.collection.is_built else "would be"
    return [Rows(title=f"What {done} left out", head=["experiment", "count", "why"], rows=rows)] if rows else []


def list_skipped(found: Inspection) -> list[Rows]:
    """One row per field of view that the build had to leave out; no table where there is none."""
    rows = [[one.experiment, one.fov_name, one.reason] for one in found.collection.skipped]
    return [Rows(title="What was skipped", head=["experiment", "field of view", "why"], rows=rows)] if rows else []


def format_inspection(found: Inspection, width: int) -> RenderableType:
    """Lay out an inspection for a terminal."""
    warnings = [f"- {one.level}: {one.text}" for one in found.findings]
    parts: list[RenderableType] = [f"{found.collection.what}: {describe(found)} {describe_cost(found)}", ""]
    for rows in list_tables(found):
        parts += [_lay_out(rows, width), ""]
    parts.append("Nothing looks wrong." if not warnings else "What looks wrong:")
    return Group(*parts, *warnings)


def _lay_out(rows: Rows, width: int) -> RichTable:
    made = RichTable(title=rows.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                     caption=rows.remark or None, caption_justify="left", caption_style="", width=None)  # fmt: skip
    for place, name in enumerate(rows.head):
        number = bool(rows.rows) and isinstance(rows.rows[0][place], int)
        made.add_column(name, justify="right" if number else "left", overflow="fold", max_width=max(width // 3, 24))
    for row in rows.rows:
        made.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row))
    return made


def print_inspection(found: Inspection, console: Console) -> None:
    """Print an inspection."""
    console.print(format_inspection(found, console.width), markup=False)
