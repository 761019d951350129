"""A verdict to an HTML page: measures with intervals, where cells lie, their neighbours, and lineages over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int64
from matplotlib.axes import Axes

from dynaclr_wds.evaluate.cells import Cells, Embedding, Rows, Text, number
from dynaclr_wds.evaluate.judge import Verdict
from dynaclr_wds.evaluate.mmd import MOST_CELLS
from dynaclr_wds.evaluate.strips import Strip
from dynaclr_wds.evaluate.tables import list_findings, list_groups, list_measures
from dynaclr_wds.pages.markup import Html, bullets, details, grid, heading, note, paragraph
from dynaclr_wds.pages.pictures import PALETTE, new_figure, show_figure, show_strip
from dynaclr_wds.pages.shell import Page, Section
from dynaclr_wds.pages.tables import table
from dynaclr_wds.words import count_of

Plane = Float32[np.ndarray, "n 2"]
_MOST_POINTS = 4000
_MOST_NAMES = 8
_TRAJECTORIES, _TRACKS = 6, 4
"""Lineages whose paths are drawn, and tracks of each."""
_TAG = 0x9A6E

_READING = (
    "Intervals hold 95 % of the values that come of drawing other lineages (bootstrap). Take two embeddings for "
    "different where their intervals are apart; all are of the same cells.",
    "Temporal smoothness: mean cosine distance of a track's adjacent frames over that of two cells at random. A "
    "collapsed embedding is smooth, too, so read it together with dynamic range and effective rank.",
    "Linear probe and kNN vote: balanced accuracy; what is named after “by” was never on both sides.",
    "MMD² between experiments is the batch effect, between conditions the effect that you look for. p is the share of "
    "deals of the lineages into two groups by chance that give as large an MMD².",
    "docs/EVALUATION.md gives every definition and its source.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An embedding in two dimensions."""

    embedding: str
    method: str
    """`PCA`, with its shares of variance, or `UMAP`."""
    plane: Plane


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a page is made of."""

    cells: Cells
    verdict: Verdict
    pictures: Sequence[Picture]
    labels: Sequence[str]
    """Labels to colour by."""
    strips: Sequence[tuple[str, Sequence[Strip]]] = field(default_factory=tuple)
    """Embedding → examples with their neighbours."""
    made_by: str = ""


def make_page(shown: Shown) -> Page:
    """Put a verdict on a page."""
    verdict = shown.verdict
    sections = [
        Section(title="In short", content=_short(verdict)),
        Section(title="Measures", content=_measures(verdict)),
        Section(title="Where cells lie", content=_scatter(shown)),
        Section(title="Lineages over time", content=_trajectories(shown)),
    ]
    if shown.strips:
        sections.append(Section(title="Nearest neighbours", content=_strips(shown)))
    sections.append(Section(title="How to read this", content=[bullets(_READING)]))
    names = ", ".join(one.name for one in verdict.embeddings)
    return Page(
        title="Embeddings of cells, judged",
        lead=(
            f"{names}: {count_of(verdict.cells, 'cell')} of {count_of(verdict.lineages, 'lineage')} in "
            f"{count_of(verdict.fovs, 'field of view', 'fields of view')} of "
            f"{count_of(verdict.experiments, 'experiment')}."
        ),
        sections=sections,
        made_by=shown.made_by,
    )


def _short(verdict: Verdict) -> list[Html]:
    found = [note(sentence, "bad" if level == "bad" else "fair") for level, sentence in list_findings(verdict)]
    if not found:
        found = [note("No embedding has collapsed, and every label is found better than by chance.", "good")]
    return [*found, *(note(sentence) for sentence in verdict.notes)]


def _measures(verdict: Verdict) -> list[Html]:
    content = [table(*list_measures(verdict), "Value (interval). Of the same cells, lineages and folds.")]
    for kind, title in (("condition", "Do conditions differ? MMD²"), ("experiment", "Do experiments differ? MMD²")):
        head, rows = list_groups(verdict, kind)
        if rows:
            content += [heading(title), table(head, rows)]
    if verdict.embeddings[0].groups:
        said = f"Of a group with more than {MOST_CELLS:,} cells, lineages of as many are compared, drawn by chance."
        content.append(paragraph(said, small=True))
    if left_out := verdict.embeddings[0].groups_left_out:
        pairs = count_of(left_out, "pair")
        said = f"{pairs} of groups left out: they have fewer than three lineages, or there are too many pairs."
        content.append(paragraph(said, small=True))
    return content


def _scatter(shown: Shown) -> list[Html]:
    rng = np.random.default_rng([_TAG, 0])
    rows = rng.permutation(len(shown.cells))[:_MOST_POINTS]
    content = [] if len(rows) == len(shown.cells) else [paragraph(f"{len(rows):,} cells, drawn by chance.", small=True)]
    cells = shown.cells.take(rows)
    for picture in shown.pictures:
        points = picture.plane[rows]
        panels = [_by_value(points, cells.labels[label], label, picture) for label in shown.labels]
        panels.append(_by_number(points, cells, picture))
        panels.append(_by_value(points, cells.experiment, "experiment", picture))
        content += [heading(f"{picture.embedding}, {picture.method}"), grid(panels)]
    return content


def _by_value(points: Plane, values: Text, label: str, picture: Picture) -> Html:
    figure = new_figure()
    axes = figure.subplots()
    known, code = number(values)
    frequent = np.argsort(-np.bincount(code), kind="stable")[: _MOST_NAMES - (len(known) > _MOST_NAMES)]
    colours = np.full(len(known), PALETTE[-2], object)
    colours[frequent] = [PALETTE[n] for n in range(len(frequent))]
    colours[known == ""] = "#c8ccd0"
    axes.scatter(points[:, 0], points[:, 1], s=5, c=colours[code].tolist(), alpha=0.55, linewidths=0)
    for n in sorted(frequent.tolist()):
        axes.scatter([], [], s=28, c=[colours[n]], label=_shorten(known[n] or f"no {label}"))
    if len(known) > len(frequent):
        axes.scatter([], [], s=28, c=[PALETTE[-2]], label=f"{len(known) - len(frequent)} others")
    axes.set_title(f"by {label}")
    _finish(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, handletextpad=0.1)
    return show_figure(figure, f"{picture.embedding}, {picture.method}: cells coloured by {label}")


def _by_number(points: Plane, cells: Cells, picture: Picture) -> Html:
    figure = new_figure()
    axes = figure.subplots()
    hours = np.isfinite(cells.hpi).any()
    values = cells.hpi if hours else cells.t.astype(np.float64)
    drawn = axes.scatter(points[:, 0], points[:, 1], s=5, c=values, cmap="viridis", alpha=0.6, linewidths=0)
    word = "hours post infection" if hours else "frame"
    figure.colorbar(drawn, ax=axes, shrink=0.8, location="bottom", label=word)
    axes.set_title(f"by {'HPI' if hours else 'frame'}")
    _finish(axes)
    return show_figure(figure, f"{picture.embedding}, {picture.method}: cells coloured by {word}")


def _finish(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right", "left", "bottom"]].set_color("#c0c6cc")


def _trajectories(shown: Shown) -> list[Html]:
    """Draw the lineages with most cells, on top of all cells."""
    lineages, code = number(shown.cells.lineage)
    largest = np.argsort(-np.bincount(code), kind="stable")[:_TRAJECTORIES]
    panels = [_draw_lineages(shown, picture, largest, code) for picture in shown.pictures]
    names = [f"{lineages[n]} ({count_of(int((code == n).sum()), 'cell')})" for n in largest]
    said = (
        f"The lineages with most cells, of each at most {_TRACKS} tracks, the longest. A line joins the frames of a "
        "track, from a ring (first) to a dot (last)."
    )
    return [paragraph(said), grid(panels), details("Which lineages", bullets(names))]


def _draw_lineages(shown: Shown, picture: Picture, largest: Rows, code: Int64[np.ndarray, " n"]) -> Html:
    figure = new_figure()
    axes = figure.subplots()
    cells, plane = shown.cells, picture.plane
    some = np.random.default_rng([_TAG, 1]).permutation(len(plane))[: _MOST_POINTS // 2]
    axes.scatter(plane[some, 0], plane[some, 1], s=3, c="#d5d9dd", linewidths=0)
    for n, lineage in enumerate(largest.tolist()):
        rows = np.flatnonzero(code == lineage)
        tracks, count = np.unique(cells.track[rows].astype(str), return_counts=True)
        for track in tracks[np.argsort(-count, kind="stable")[:_TRACKS]]:
            own = rows[cells.track[rows] == track]
            own = own[np.argsort(cells.t[own], kind="stable")]
            axes.plot(plane[own, 0], plane[own, 1], color=PALETTE[n], linewidth=1.1, alpha=0.85)
            axes.plot(*plane[own[0]], "o", markersize=4, markerfacecolor="white", markeredgecolor=PALETTE[n])
            axes.plot(*plane[own[-1]], "o", markersize=4, color=PALETTE[n])
    axes.set_title(f"{picture.embedding}, {picture.method.partition(' ')[0]}")
    _finish(axes)
    return show_figure(figure, f"{picture.embedding}, {picture.method}: paths of the largest lineages")


def _strips(shown: Shown) -> list[Html]:
    content = [
        paragraph(
            "First the example, then the cells that are nearest to it, of other lineages and other fields of view; of "
            "the same field of view, too, where no other has cells of the example's kind. Channels stand one below "
            "the other."
        )
    ]
    for name, strips in shown.strips:
        content.append(heading(name))
        content += [show_strip(s.images, s.captions, f"{name}, example {n + 1}") for n, s in enumerate(strips)]
    return content


def _shorten(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def list_pictures(embeddings: Sequence[Embedding], planes: Sequence[tuple[str, str, Plane]]) -> list[Picture]:
    """Order pictures by embedding."""
    return [
        Picture(embedding=name, method=method, plane=plane)
        for embedding in embeddings
        for name, method, plane in planes
        if name == embedding.name
    ]
