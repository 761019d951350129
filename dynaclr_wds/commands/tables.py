"""Reports to tables for people: the ledger of an epoch, and how well ways of reading are mixed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table

from dynaclr_wds.plan.audit.quality import KINDS, Collisions, Quality
from dynaclr_wds.plan.audit.report import Composition, Report
from dynaclr_wds.plan.audit.verdict import Note
from dynaclr_wds.words import count_of, size_of

WIDTH = 110
_COLOURS = {"good": "[green]good[/]", "fair": "[yellow]fair[/]", "bad": "[red]bad[/] "}
_CAPTION = (
    "exact: training without window_bytes. streaming: with it. ideal: as many samples, drawn at random from all; to "
    "compare with.\n"
    "¹ In a batch, as a multiple of the pairs that chance would give: 2.00 is twice as many. In brackets: the worst "
    "batch.\n"
    "² The median. In brackets: one time in ten it comes as soon as this.\n"
    "³ Samples of one FOV, lineage or block are alike. A batch tells as much as so many samples drawn at random from "
    "the set; that a set has few FOVs does not show here."
)
_SHOWN = 8
"""Rows of a table of shares that are listed one by one; twice as many of a table of anchors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way of reading, measured."""

    name: str
    """`streaming`, `exact` or `ideal`."""
    report: Report
    quality: Quality
    ms_per_batch: float
    """Milliseconds to plan a batch, without the measuring."""
    notes: tuple[Note, ...] = ()
    """What is good about it and what is not; nothing of the ideal."""


def format_report(report: Report) -> str:
    """Write a ledger as text: quotas, coverage, relaxations, τ, bytes."""
    batches = count_of(report.batches, "batch", "batches")
    lines = [f"{batches} of {report.batch_size}; {report.seen:.1%} of the anchors seen"]
    relaxed = ", ".join(f"{name} {count:,}" for name, count in report.relaxed.items())
    tau = report.tau_hours
    lines.append(f"shared within a batch: {relaxed}")
    if tau:
        total = sum(tau.values())
        lines.append("τ: " + ", ".join(f"{hours:g} h {count / total:.0%}" for hours, count in tau.items()))
    if report.streaming:
        lines.append("bytes: " + ", ".join(_name_bytes(report.streaming)))
    return render([*lines, quota_table([("achieved", report)]), coverage_table(report)])


def format_modes(modes: Sequence[Mode]) -> RenderableType:
    """Lay out ways of reading side by side, and say in words what is good and what is not."""
    notes = [_lay_out(mode.name, note) for mode in modes for note in mode.notes]
    reports = [(mode.name, mode.report) for mode in modes if mode.name != "ideal"]
    return Group(mixing_table(modes), "", quota_table(reports), "", coverage_table(reports[0][1]), "", *notes)


def _lay_out(mode: str, note: Note) -> RenderableType:
    """Put level and mode before a sentence, and its further lines below its first."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=6)
    table.add_column(width=9)
    table.add_column()
    table.add_row(f"  {_COLOURS[note.level]}", mode, note.text)
    return table


def render(parts: Iterable[RenderableType]) -> str:
    """Render to plain text."""
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None).print(*parts, sep="\n", highlight=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def mixing_table(modes: Sequence[Mode]) -> Table:
    """Lay out how well each way of reading mixes."""
    table = Table(
        title="How well batches are mixed",
        caption=_CAPTION,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    for mode in modes:
        table.add_column(mode.name, justify="right")
    table.add_column("what is good")
    hints = {
        "value": "1: as asked",
        "fov": "about 1; above 1.3 too many are of one FOV",
        "lineage": "0: no lineage is in a batch twice",
        "block": "any, if those of FOV and lineage are good",
    }
    for kind in KINDS:
        found = [mode.quality.collisions[kind] for mode in modes]
        table.add_row(
            f"pairs of samples of one {_word(kind, modes[0].quality)}¹",
            *map(_ratio, found),
            hints[kind],
        )
    table.add_section()
    size = modes[0].quality.batch_size
    for kind in ("fov", "lineage", "block"):
        effective = [f"{mode.quality.collisions[kind].effective:.0f}" for mode in modes]
        table.add_row(
            f"independent samples of {size}, by {_word(kind, modes[0].quality)}³", *effective, "as many as the ideal"
        )
    table.add_section()
    distances = [(mode.quality.repeat_median, mode.quality.repeat_tenth) for mode in modes]
    cells = ["–" if median is None else f"{median:.0f} ({tenth:.0f})" for median, tenth in distances]
    table.add_row("batches until a lineage comes again²", *cells, "as many as the ideal, or more")
    seen = [f"{mode.report.seen:.1%}" for mode in modes]
    table.add_row("anchors seen in an epoch", *seen, "much; 100 % if nothing is balanced")
    table.add_section()
    for row in _byte_rows(modes):
        table.add_row(*row)
    return table


def _byte_rows(modes: Sequence[Mode]) -> list[list[str]]:
    used = [size_of(float(mode.report.bytes_used)) for mode in modes]
    rows = [["bytes of the patches drawn (each counted once)", *used, ""]]
    hints = {
        "bytes_read": ("bytes read", ""),
        "amplification": ("bytes read, as a multiple of those stored", "up to 1.05; more if small conditions repeat"),
        "planned_peak_bytes": ("most bytes in memory, as planned", "less than the window"),
        "held_peak_bytes": ("most bytes in memory, as measured", "less than the window"),
        "burst": ("most bytes of a step, as a multiple of the mean", "a few times the mean"),
        "groups": (f"{modes[0].report.group_label}s in memory at a time, per stream", "2 or more"),
    }
    for key, (name, hint) in hints.items():
        if any(key in mode.report.streaming for mode in modes):
            cells = [_value(key, mode.report.streaming.get(key)) for mode in modes]
            rows.append([name, *cells, hint])
    rows.append(
        ["milliseconds to plan a batch", *[f"{m.ms_per_batch:.2f}" if m.name != "ideal" else "–" for m in modes], ""]
    )
    return rows


def quota_table(reports: Sequence[tuple[str, Report]]) -> Table:
    """Lay out the shares of a batch that were asked for, beside those of each way of reading."""
    table = Table(
        title="Shares of a batch, as asked and as planned",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    table.add_column("asked", justify="right")
    for name, _ in reports:
        table.add_column(f"{name} (worst batch)", justify="right")
        table.add_column("batches more than one sample off", justify="right", max_width=22)
    first = reports[0][1]
    for share in first.groups[:_SHOWN]:
        others = [next(s for s in report.groups if s.group == share.group) for _, report in reports]
        cells = [cell for o in others for cell in (f"{o.achieved:.3f}", "")]
        table.add_row(f"batches of {share.group}", f"{share.asked:.3f}", *cells)
    if (left := len(first.groups) - _SHOWN) > 0:
        table.add_row(f"… and {left} more {first.group_label}s")
    table.add_section()
    found = {name: {c.name: c for c in report.composition} for name, report in reports}
    names = list(dict.fromkeys(c for known in found.values() for c in known))
    for name in _most_missed(names, found.values()):
        ones = [known.get(name) for known in found.values()]
        asked = next(c.asked for c in ones if c)
        title = next(c.title for c in ones if c)
        table.add_row(title, f"{asked:.3f}", *[cell for c in ones for cell in _quota(c)])
    if (left := len(names) - _SHOWN) > 0:
        table.add_row(f"… and {left} more, as good or better")
    return table


def _most_missed(names: list[str], found: Iterable[Mapping[str, Composition]]) -> list[str]:
    """Keep the quotas that are missed most, in their order."""
    known = list(found)
    missed = {n: max(k[n].missed / k[n].batches for k in known if n in k) for n in names}
    kept = sorted(names, key=lambda n: (n not in ("leak", "focal window"), -missed[n]))[:_SHOWN]
    return [n for n in names if n in kept]


def coverage_table(report: Report) -> Table:
    """Lay out which anchors an epoch draws, and how often."""
    names = dict.fromkeys(("experiment", report.group_label, report.value_label))
    title = f"Anchors of each {' and '.join(names)}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in names:
        table.add_column(name)
    for name in ("anchors", "seen", "never seen", "repeated draws", "most draws of one", "without a positive"):
        table.add_column(name, justify="right")
    for c in sorted(report.coverage, key=lambda c: c.unique / max(c.anchors, 1))[: 2 * _SHOWN]:
        labels = {"experiment": c.experiment, report.group_label: c.group, report.value_label: c.value}
        seen = f"{c.unique / c.anchors:.1%}" if c.anchors else "–"
        counts = (f"{c.anchors:,}", seen, f"{c.never_seen:,}", f"{c.repeated:,}", f"{c.most_repeats}×")
        table.add_row(*(labels[name] for name in names), *counts, f"{c.without_positive:,}")
    if (left := len(report.coverage) - 2 * _SHOWN) > 0:
        table.add_row(f"… and {left} more,", "seen better")
    return table


def _word(kind: str, quality: Quality) -> str:
    return {"fov": "FOV", "value": quality.value_label}.get(kind, kind)


def _ratio(found: Collisions) -> str:
    if found.ratio is None or found.worst is None:
        return "–"
    return f"{found.ratio:.2f} ({found.worst:.2f})"


def _quota(found: Composition | None) -> tuple[str, str]:
    if found is None:
        return "–", "–"
    return f"{found.mean:.3f} ({found.worst:.3f})", f"{found.missed:,} of {found.batches:,}"


def _value(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if key.endswith("bytes") or key.startswith("bytes"):
        return size_of(value)
    return f"{value:.0f}" if key == "groups" else f"{value:.2f}"


def _name_bytes(streaming: Mapping[str, float]) -> list[str]:
    return [f"{key.replace('bytes_', '').replace('_', ' ')} {_value(key, value)}" for key, value in streaming.items()]
