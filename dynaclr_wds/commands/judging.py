"""What `evaluate` does: reads tables and shards, judges, and lays out what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table as RichTable

from dynaclr_wds.commands.tables import render
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.evaluate.annotations import annotate
from dynaclr_wds.evaluate.cells import Cells, Embedding
from dynaclr_wds.evaluate.judge import Settings, Verdict, choose_labels, judge
from dynaclr_wds.evaluate.page import Plane, Shown, list_pictures, make_page
from dynaclr_wds.evaluate.pixels import Patches, embed_pixels
from dynaclr_wds.evaluate.projections import project_pca, project_umap
from dynaclr_wds.evaluate.reading import Which, align, parse_name, read_table
from dynaclr_wds.evaluate.strips import Strip, choose_examples, find_neighbours, make_strip
from dynaclr_wds.evaluate.tables import list_findings, list_groups, list_measures
from dynaclr_wds.pages.shell import write_page
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.words import count_of

_EXAMPLES, _NEIGHBOURS = 4, 6
_MOST_STRIPS = 3
"""Embeddings whose neighbours are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command was given."""

    tables: Sequence[str]
    shards: str | None = None
    labels: Path | None = None
    label: Sequence[str] | None = None
    use: Which = "features"
    cells: int = 10_000
    tau: float = 1.0
    seed: int = 0
    html: Path | None = None
    umap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of it."""

    cells: Cells
    embeddings: Sequence[Embedding]
    verdict: Verdict
    labels: Sequence[str]
    patches: Patches | None
    said: Sequence[str]
    """How many cells were judged, and which were not."""


def evaluate(asked: Asked) -> Found:
    """Read and judge.

    Raises
    ------
    ConfigError
        A table, a label or the shards are not what is needed.
    """
    named = [parse_name(given) for given in asked.tables]
    first = read_table(named[0][1], named[0][0], asked.use, asked.cells)
    tables = [first, *(read_table(path, name, asked.use, asked.cells, first.lineages) for name, path in named[1:])]
    cells, embeddings, left_out = align(tables)
    said = []
    if first.lineages is not None:
        said.append(
            f"{len(first.cells):,} of {first.total:,} rows are judged: whole lineages, drawn by name (--cells)."
        )
    if left_out:
        said.append(f"{count_of(left_out, 'cell')} left out: not all tables have them.")
    annotated: Sequence[str] = ()
    if asked.labels is not None:
        cells, annotated, unmatched = annotate(cells, asked.labels)
        said += [unmatched] if unmatched else []
    labels = choose_labels(cells, asked.label, annotated)
    patches = None
    if asked.shards is not None:
        patches = Patches(ShardSet.open(asked.shards), cells, first.yx)
        embeddings = [*embeddings, embed_pixels(patches, cells)]
    else:
        said.append("Without --shards there is no baseline of raw pixels.")
    verdict = judge(cells, embeddings, Settings(labels=labels, tau_hours=asked.tau, seed=asked.seed))
    return Found(cells=cells, embeddings=embeddings, verdict=verdict, labels=labels, patches=patches, said=said)


def format_verdict(found: Found) -> str:
    """Lay out a verdict for a terminal."""
    verdict = found.verdict
    parts = [_table("Measures", *list_measures(verdict))]
    for kind, title in (("condition", "MMD² between conditions"), ("experiment", "MMD² between experiments")):
        head, rows = list_groups(verdict, kind)
        if rows:
            parts.append(_table(title, head, rows))
    findings = [f"{level}: {sentence}" for level, sentence in list_findings(verdict)]
    counts = (
        f"{count_of(verdict.cells, 'cell')}, {count_of(verdict.lineages, 'lineage')}, "
        f"{count_of(verdict.fovs, 'FOV')}, {count_of(verdict.experiments, 'experiment')}."
    )
    return render([counts, *found.said, *verdict.notes, "", *parts, *findings])


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> RichTable:
    made = RichTable(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in head:
        made.add_column(name)
    for row in rows:
        made.add_row(*row)
    return made


def write_report(found: Found, asked: Asked, made_by: str) -> int:
    """Write the page; returns its bytes."""
    if asked.html is None:
        raise ConfigError("write_report needs asked.html, the file to write.")
    planes: list[tuple[str, str, Plane]] = []
    for embedding in found.embeddings:
        plane, shares = project_pca(embedding.features)
        planes.append((embedding.name, f"PCA ({shares[0]:.0%} and {shares[1]:.0%} of the variance)", plane))
        if asked.umap:
            planes.append((embedding.name, "UMAP", project_umap(embedding.features, asked.seed)))
    shown = Shown(
        cells=found.cells,
        verdict=found.verdict,
        pictures=list_pictures(found.embeddings, planes),
        labels=found.labels,
        strips=[] if found.patches is None else _strips(found, found.patches, asked.seed),
        made_by=made_by,
    )
    return write_page(asked.html, make_page(shown))


def _strips(found: Found, patches: Patches, seed: int) -> list[tuple[str, list[Strip]]]:
    label = found.labels[0] if found.labels else None
    examples = choose_examples(found.cells, label, _EXAMPLES, seed)
    made = []
    for embedding in [*found.embeddings[:_MOST_STRIPS], found.embeddings[-1]][: len(found.embeddings)]:
        strips = []
        for example in examples.tolist():
            near = find_neighbours(embedding, found.cells, example, _NEIGHBOURS, label)
            strips.append(make_strip(np.array([example, *near.tolist()], np.int64), found.cells, patches, label))
        made.append((embedding.name, strips))
    return made
