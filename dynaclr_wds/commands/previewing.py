"""What `preview` does: makes the DataModule of a config, looks at batches of an epoch, and measures the epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from dynaclr_wds.commands.mixing import Request, measure
from dynaclr_wds.commands.tables import Mode, coverage_table, mixing_table, quota_table, render
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.pages.markup import Level
from dynaclr_wds.pages.shell import write_page
from dynaclr_wds.plan.audit.expected_pairs import UniformDraw
from dynaclr_wds.plan.audit.verdict import Note, count_judged
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.preview.configured import make_data
from dynaclr_wds.preview.findings import list_findings
from dynaclr_wds.preview.look import Chosen, SeenBatch, attach_trainer, look_at
from dynaclr_wds.preview.page import EpochTable, Shown, make_page
from dynaclr_wds.preview.tables import (
    Rows,
    describe_batch,
    describe_lineages,
    describe_tau,
    list_asked,
    list_brightness,
    list_parts,
    list_samples,
)
from dynaclr_wds.train.plan_verdict import judge_view

_MOST_MEASURED = 2_000_000
"""Anchors; to compare an epoch with chance takes minutes beyond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command was given; numbers are counted from 1."""

    shards: str | None = None
    config: Path | None = None
    batches: int = 3
    first: int = 1
    epoch: int = 1
    samples: int = 8
    seed: int | None = None
    html: Path | None = None
    options: Sequence[str] = ()
    """Options of the DataModule, as `fit` takes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What came of it."""

    data: MultiExperimentDataModule
    sampler: FlexibleBatchSampler
    epoch: int
    """From 0."""
    batches: tuple[SeenBatch, ...]
    modes: tuple[Mode, ...]
    """The epoch as planned, and an ideal draw to compare with; none of a set that is too large."""
    findings: tuple[tuple[Level, str], ...]

    @property
    def window_hours(self) -> float | None:
        """Half-width of the window that most samples lie in; None without one."""
        config = self.sampler.config
        return config.temporal_window_hours if config.temporal_enrichment else None


def preview(asked: Asked) -> Preview:
    """Look at batches and at their epoch.

    Raises
    ------
    ConfigError
        The config, an option or the shards are not what is needed, or the epoch has fewer batches.
    """
    seed = () if asked.seed is None else ("--data.seed", str(asked.seed))
    data = make_data(asked.config, asked.shards, [*asked.options, *seed])
    chosen = Chosen(batches=asked.batches, first=asked.first - 1, epoch=asked.epoch - 1, samples=asked.samples)
    return preview_data(data, chosen)


def preview_data(data: MultiExperimentDataModule, chosen: Chosen) -> Preview:
    """Look at batches of a DataModule as a training would get them; it is set up for that."""
    attach_trainer(data, chosen.epoch)
    data.setup("fit")
    batches = tuple(look_at(data, chosen))
    sampler = data.train_sampler
    assert sampler is not None
    modes = _measure_epoch(sampler, chosen.epoch)
    notes: list[Note] = [*(modes[0].notes if modes else ()), *judge_view(data)]
    findings = [*list_findings(batches), *((note.level, note.text) for note in notes)]
    order = ("bad", "fair", "good")
    return Preview(
        data=data,
        sampler=sampler,
        epoch=chosen.epoch,
        batches=batches,
        modes=modes,
        findings=tuple(sorted(findings, key=lambda found: order.index(found[0]))),
    )


def _measure_epoch(sampler: FlexibleBatchSampler, epoch: int) -> tuple[Mode, ...]:
    """Measure the epoch, or batches that stand for it where it is long, beside an ideal draw."""
    index = sampler.index
    if len(index.row) > _MOST_MEASURED:
        return ()
    request = Request(
        index=index,
        config=sampler.config,
        window_bytes=sampler.window_bytes,
        num_streams=sampler.num_streams,
        epochs=1,
        first_epoch=epoch,
        most_batches=count_judged(sampler.config.batch_size),
    )
    name = "exact" if sampler.window_bytes is None else "streaming"
    return tuple(measure(name, sampler, UniformDraw(index), request, ideal=True))


def format_preview(found: Preview) -> str:
    """Lay out a preview for a terminal."""
    parts: list[str | Table] = []
    for batch in found.batches:
        company = batch.company
        parts += [describe_batch(company, found.sampler.global_batches, found.window_hours)]
        parts += [describe_lineages(company), *filter(None, [describe_tau(company)])]
        parts.append(_lay_out("", list_parts(company, found.sampler.index.value_label)))
        if company.asked:
            parts.append(_lay_out("", list_asked(company)))
        head, rows = list_samples(batch, found.data.stratify_by)
        shown = _lay_out(f"Its first samples, of {len(company):,}", (head, rows[: len(batch.samples)]))
        parts += [shown, *["* shares its lineage with another sample."] * bool(company.meet.any()), ""]
    parts.append(
        _lay_out("Pixels, before the augmentations and as the network sees them", list_brightness(found.batches))
    )
    parts += [*_describe_epoch(found), *(table for table in _epoch_tables(found))]
    parts += ["", *(f"{level}: {words}" for level, words in found.findings)]
    return render(parts)


def write_report(found: Preview, path: Path, made_by: str) -> int:
    """Write the page; returns its bytes."""
    shown = Shown(
        shards=str(found.data.shards),
        batches=found.batches,
        batches_of_epoch=found.sampler.global_batches,
        epoch=found.epoch,
        value_label=found.sampler.index.value_label,
        labels=found.data.stratify_by,
        window_hours=found.window_hours,
        findings=found.findings,
        epoch_tables=[_to_page(table) for table in _epoch_tables(found)],
        epoch_said=_describe_epoch(found),
        made_by=made_by,
    )
    return write_page(path, make_page(shown))


def _describe_epoch(found: Preview) -> list[str]:
    if not found.modes:
        return ["The set is large: `dynaclr-wds shuffle` measures how well an epoch is mixed."]
    planned, there = found.modes[0].report.batches, found.sampler.global_batches
    if planned == there:
        return []
    return [f"Measured by {planned:,} of the {there:,} batches, evenly taken; `dynaclr-wds shuffle` plans all of them."]


def _epoch_tables(found: Preview) -> list[Table]:
    """Lay out the epoch; which anchors it draws only where all of it was planned."""
    if not found.modes:
        return []
    report = found.modes[0].report
    tables = [mixing_table(found.modes), quota_table([(found.modes[0].name, report)])]
    return [*tables, coverage_table(report)] if report.batches == found.sampler.global_batches else tables


def _to_page(made: Table) -> EpochTable:
    head = [str(column.header) for column in made.columns]
    rows = [[str(cell) for cell in row] for row in zip(*(column.cells for column in made.columns), strict=True)]
    remarks = str(made.caption).splitlines() if made.caption else []
    return EpochTable(title=str(made.title), rows=(head, rows), remarks=remarks)


def _lay_out(title: str, rows: Rows) -> Table:
    made = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in rows[0]:
        made.add_column(name)
    for row in rows[1]:
        made.add_row(*row)
    return made
