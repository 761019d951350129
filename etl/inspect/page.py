"""An inspection as an HTML page: what there is, pairs, intensities, lineages, hours, places and what looks wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dynaclr_wds.pages.markup import Html, bullets, details, grid, heading, note, paragraph
from dynaclr_wds.pages.shell import Page, Section, write_page
from dynaclr_wds.pages.tables import table
from dynaclr_wds.words import count_of, list_some
from etl.inspect import tables
from etl.inspect.collection import name_stratum
from etl.inspect.figures import (
    draw_heat_map,
    draw_histogram,
    draw_lengths,
    draw_pair,
    draw_places,
    draw_taus,
    draw_tree,
)
from etl.inspect.lineage_trees import Tree
from etl.inspect.looking import MOST_STRATA, Inspection, Pair
from etl.inspect.tables import Rows

_MOST_EXPERIMENTS = 16
"""Experiments whose figures are shown."""
_MOST_CHANNELS, _MOST_LENGTHS, _MOST_TREES, _TREES_EACH = 24, 16, 12, 3
_MOST_ROWS = 30
_PAIR_PIXELS, _FEW_PIXELS, _FEW = 170, 270, 24
"""Least width of a pair on a screen, and that where there are few pairs."""
_PIXELS = 1_200_000
"""Pixels of all pairs together: at most 2.4 MB of the page, if they are noise."""

_READING = (
    "A stratum is a value of the labels that shards are partitioned by. An anchor is a cell that has a positive: a "
    "cell of its lineage, τ later. Cells without one are embedded, but no training step begins with them.",
    "Pairs: the anchor is on the left, its positive on the right, channels one below the other, each channel in one "
    "grey scale for the whole experiment. A positive that shows another cell means wrong tracks; pairs that don't "
    "differ at all mean a τ that is too short; black or flat pictures mean the wrong channel, slice or position.",
    "Intensities: pixels of the darkest and brightest thousandth are counted in the outermost bins.",
    "Lineages: time goes across, each line is a track, and where it divides, forks lead to its daughters. Lines that "
    "end early, and lineages that begin late, show where tracking lost cells.",
    "Hours and places: a condition that has no cells at some hours can't be compared there. Cells that crowd in a "
    "corner point to coordinates in another unit; stripes and holes to fields of view that were segmented badly.",
    "docs/INSPECT.md explains every number and every warning.",
)


def write_inspection(path: Path, found: Inspection, made_by: str = "") -> int:
    """Write the page of an inspection; returns its bytes.

    Raises
    ------
    StorageError
        The disk is full, or the page would be too large.
    """
    return write_page(path, make_page(found, made_by))


def make_page(found: Inspection, made_by: str = "") -> Page:
    """Put an inspection on a page."""
    sections = [
        Section(title="In short", content=_short(found)),
        Section(title="What there is", content=_counts(found)),
        Section(title="Pairs", content=_pairs(found)),
        Section(title="Intensities", content=_intensities(found)),
        Section(title="Lineages", content=_lineages(found)),
        Section(title="Hours and places", content=_hours_and_places(found)),
        Section(title="How to read this", content=[bullets(_READING)]),
    ]
    kind = "Shards" if found.collection.is_built else "Experiments"
    return Page(
        title=f"{kind}, inspected",
        lead=f"{found.collection.what}: {tables.describe(found)}",
        sections=[section for section in sections if section.content],
        made_by=made_by,
    )


def _short(found: Inspection) -> list[Html]:
    warnings = [note(one.text, "bad" if one.level == "wrong" else "fair", one.level) for one in found.findings]
    if not warnings:
        warnings = [note("Nothing looks wrong.", "good")]
    return [*warnings, paragraph(tables.describe_cost(found)), paragraph(tables.describe_looks(found))]


def _counts(found: Inspection) -> list[Html]:
    listed = [tables.list_experiments(found), tables.list_strata(found), *tables.list_labels(found)]
    return [_show(rows) for rows in (*listed, *tables.list_dropped(found), *tables.list_skipped(found))]


def _show(rows: Rows) -> Html:
    made = table(rows.head, rows.rows[:_MOST_ROWS], f"{rows.title}. {rows.remark}".rstrip(". ") + ".")
    if len(rows.rows) <= _MOST_ROWS:
        return made
    left = f"{count_of(len(rows.rows) - _MOST_ROWS, 'more row')} of: {rows.title}"
    return Html(made + details(left, table(rows.head, rows.rows[_MOST_ROWS:])))


def _pairs(found: Inspection) -> list[Html]:
    if not found.pairs:
        return [paragraph("No pixel was read.")]
    strata = list(dict.fromkeys(pair.place.stratum for pair in found.pairs))
    limits = _find_limits(found.pairs)
    side = _choose_side(found.pairs)
    source = "as they are stored" if found.collection.is_built else "as a build would cut them"
    is_deep = any(record.shape[1] > 1 for record in found.collection.experiments)
    slices = "; of a stack the middle slice" if is_deep else ""
    content = [paragraph(f"Anchor (left) and positive (right), drawn by chance, {source}{slices}.")]
    for stratum in strata:
        own = [pair for pair in found.pairs if pair.place.stratum == stratum]
        name = name_stratum(found.collection.strata[stratum])
        content.append(heading(name))
        channels = found.collection.experiments[own[0].experiment].source_channel
        if len(channels) > 1:
            content.append(paragraph(f"From the top: {', '.join(channels)}.", small=True))
        if own[0].place.positive is None:
            content.append(note("None of its cells has a positive: these are cells alone.", "fair", "doubtful"))
        shown = [
            draw_pair(pair.pixels, limits[pair.experiment], side, f"{name}, pair {number + 1}", _caption(found, pair))
            for number, pair in enumerate(own)
        ]
        content.append(grid(shown, _FEW_PIXELS if len(found.pairs) <= _FEW else _PAIR_PIXELS))
    left = len(found.collection.strata) - MOST_STRATA
    if left > 0:
        content.append(paragraph(f"{count_of(left, 'more stratum', 'more strata')} not shown.", small=True))
    return content


def _caption(found: Inspection, pair: Pair) -> str:
    fov = found.collection.fovs[pair.place.fov].fov_name
    record = found.collection.experiments[pair.experiment]
    hpi = record.start_hpi + pair.t[0] * record.interval_minutes / 60
    if len(pair.t) < 2:
        return f"{fov}, track {pair.tracks[0]}, t {pair.t[0]}, {hpi:.3g} h"
    tau = (pair.t[1] - pair.t[0]) * record.interval_minutes / 60
    tracks = (
        f"track {pair.tracks[0]}" if pair.tracks[0] == pair.tracks[1] else f"tracks {pair.tracks[0]} → {pair.tracks[1]}"
    )
    return f"{fov}, {tracks}, t {pair.t[0]} → {pair.t[1]}: {hpi:.3g} h, τ {tau:.3g} h"


def _find_limits(pairs: Sequence[Pair]) -> dict[int, list[tuple[float, float]]]:
    """Choose black and white of each channel of each experiment: all but half a percent of its pixels."""
    limits: dict[int, list[tuple[float, float]]] = {}
    for experiment in {pair.experiment for pair in pairs}:
        patches = [patch for pair in pairs if pair.experiment == experiment for patch in pair.pixels]
        limits[experiment] = []
        for channel in range(len(patches[0])):
            values = np.concatenate([patch[channel].ravel() for patch in patches])
            values = values[np.isfinite(values)]
            low, high = np.percentile(values, (0.5, 99.5)).tolist() if values.size else (0.0, 1.0)
            limits[experiment].append((low, high))
    return limits


def _choose_side(pairs: Sequence[Pair]) -> int:
    """Choose the size of patches such that the page stays light."""
    planes = sum(len(patch) for pair in pairs for patch in pair.pixels)
    return int(np.clip((_PIXELS / max(planes, 1)) ** 0.5, 24, 192))


def _intensities(found: Inspection) -> list[Html]:
    source = "of the patches above" if found.collection.is_built else "of the frames that were read"
    lines = "; lines: statistics of all frames" if found.collection.is_built else ""
    figures = [
        draw_histogram(channel, f"{record.name}, {channel.name}")
        for record, frames in zip(found.collection.experiments, found.frames, strict=True)
        for channel in frames.channels
        if channel.edges
    ]
    if not figures:
        return [_show(tables.list_channels(found))]
    content = [paragraph(f"Pixels {source}{lines}.", small=True), grid(figures[:_MOST_CHANNELS])]
    if left := len(figures) - len(figures[:_MOST_CHANNELS]):
        content.append(paragraph(f"{count_of(left, 'more channel')} not shown.", small=True))
    return [*content, _show(tables.list_channels(found))]


def _lineages(found: Inspection) -> list[Html]:
    collection, counts = found.collection, found.tally.experiments
    hours = [record.interval_minutes / 60 for record in collection.experiments]
    names = [record.name for record in collection.experiments]
    content = [_show(tables.list_taus(found))]
    if any(count.tau for count in counts):
        content.append(grid([draw_taus(counts, names, hours)], 420))
    content.append(heading("How long tracks are"))
    filled = [(count, name) for count, name in zip(counts, names, strict=True) if count.cells]
    content.append(grid([draw_lengths(count, name) for count, name in filled[:_MOST_LENGTHS]]))
    content.append(heading("The largest lineages that divide"))
    content.append(grid([_draw(found, tree) for tree in _choose_trees(found.tally.trees)], 380))
    without = [n for n, own, c in zip(names, found.tally.trees, counts, strict=True) if c.cells and not _divide(own)]
    if without:
        content.append(paragraph(f"No lineage divides in {list_some(without)}.", small=True))
    return content


def _divide(trees: Sequence[Tree]) -> list[Tree]:
    return [tree for tree in trees if len(tree.track_id) > 1]


def _choose_trees(trees: Sequence[Sequence[Tree]]) -> list[Tree]:
    """Choose the largest lineages that divide, of each experiment as many."""
    there = [own for own in map(_divide, trees) if own][:_MOST_TREES]
    each = min(max(_MOST_TREES // max(len(there), 1), 1), _TREES_EACH)
    return [tree for own in there for tree in own[:each]]


def _draw(found: Inspection, tree: Tree) -> Html:
    record, fov = found.collection.experiments[tree.experiment], found.collection.fovs[tree.fov]
    size = f"{count_of(len(tree.track_id), 'track')}, {count_of(tree.cells, 'cell')}"
    title = f"{record.name} {fov.fov_name}, track {tree.track_id[0]} and its descendants\n{size}"
    return draw_tree(tree, title, "hours post infection" if record.interval_minutes else "one frame")


def _hours_and_places(found: Inspection) -> list[Html]:
    collection, tally = found.collection, found.tally
    names = [name_stratum(labels) for labels in collection.strata]
    order = np.argsort(-tally.hpi.sum(axis=1), kind="stable")[:_MOST_ROWS]
    shown = np.sort(order)
    content = [heading("Cells by condition and hour")]
    if left := len(names) - len(shown):
        content.append(paragraph(f"The {len(shown)} largest strata; {left:,} more are not shown.", small=True))
    content.append(draw_heat_map(tally.hpi[shown], [names[n] for n in shown.tolist()], tally.hours))
    content.append(heading("Where cells lie in the field of view"))
    figures = []
    for number, record in list(enumerate(collection.experiments))[:_MOST_EXPERIMENTS]:
        own = next((fov for fov in collection.fovs if fov.experiment == record.name), None)
        if own is not None:
            figures.append(draw_places(tally.places[number], record.name, own.height / own.width))
    return [*content, grid(figures, 260)]
