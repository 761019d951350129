"""Report of an epoch to a few lines of text: what `print(sampler.report())` shows, and the line after each epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynaclr_wds.words import count_of

if TYPE_CHECKING:
    from dynaclr_wds.plan.audit.report import Report

_LISTED = 4


def summarize(report: Report) -> str:
    """Sum up an epoch in one line: coverage, repeats, lineages that met, shares that were missed."""
    replaced = (
        [f"{count_of(total, 'unreadable sample')} replaced"] if (total := sum(report.substituted.values())) else []
    )
    return ", ".join([*_describe_anchors(report), _describe_lineages(report), _describe_missed(report), *replaced])


def describe_report(report: Report) -> str:
    """Lay out an epoch in a few lines; every number of it is an attribute of the report."""
    lines = [
        f"{count_of(report.batches, 'batch', 'batches')} of {count_of(report.batch_size, 'sample')}",
        f"coverage: {', '.join(_describe_anchors(report))}",
        f"lineages: {_describe_lineages(report)}",
    ]
    if report.groups:
        shares = [f"{share.group} {share.achieved:.0%}" for share in report.groups]
        lines.append(f"batches by {report.group_label}: {_list_some(shares)}")
    lines.append(f"asked of a batch: {_describe_missed(report)}")
    total = sum(report.tau_hours.values())
    if total:
        shares = [f"{hours:.3g} h {count / total:.0%}" for hours, count in report.tau_hours.items()]
        lines.append(f"time from anchor to positive (τ): {_list_some(shares, 2 * _LISTED)}")
    if lost := sum(c.without_positive for c in report.coverage):
        lines.append(f"never drawn: {count_of(lost, 'sample')} without a positive")
    for kind, number in report.partners.items():
        if number:
            told = "the anchor itself" if kind == "itself" else "of the anchor's lineage"
            lines.append(f"positives that are {told}, as no other agrees: {number:,}")
    for shard, number in report.substituted.items():
        lines.append(f"replaced, because {shard} can't be read: {count_of(number, 'sample')}")
    if report.streaming:
        read, stored = report.streaming["bytes_read"], report.streaming["bytes_stored"]
        peak = report.streaming["planned_peak_bytes"]
        lines.append(f"bytes: {read:,.0f} read of {stored:,.0f} stored, at most {peak:,.0f} in memory at a time")
    return "\n".join(lines)


def _describe_anchors(report: Report) -> list[str]:
    repeated = sum(c.repeated for c in report.coverage)
    return [f"{report.seen:.1%} of the anchors seen", count_of(repeated, "repeated draw")]


def _describe_lineages(report: Report) -> str:
    shared = report.relaxed["lineage"]
    if not shared:
        return "no lineage twice in a batch"
    return f"{count_of(shared, 'sample')} with the lineage of another in the batch"


def _describe_missed(report: Report) -> str:
    missed = [c for c in report.composition if c.missed]
    if not missed:
        return "every batch as asked"
    worst = max(missed, key=lambda c: c.missed)
    told = f"{worst.title} off by more than one in {worst.missed:,} of {count_of(worst.batches, 'batch', 'batches')}"
    return f"{told}, and {count_of(len(missed) - 1, 'other share')} in fewer" if len(missed) > 1 else told


def _list_some(names: list[str], most: int = _LISTED) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
