"""Looked-at batches to rows: the tables that a terminal and a page show alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dynaclr_wds.preview.company import Company
from dynaclr_wds.preview.look import SeenBatch
from dynaclr_wds.words import count_of

Rows = tuple[list[str], list[list[str]]]
"""Names of columns, and rows."""


def describe_batch(company: Company, batches: int, window_hours: float | None) -> str:
    """Say in a sentence what a batch is about.

    Parameters
    ----------
    batches
        Batches of the epoch.
    window_hours
        Half-width of the window that most samples lie in; None without one.
    """
    of = f" of {company.group}" if company.group else ""
    said = f"Batch {company.number + 1:,} of {batches:,}: {count_of(len(company), 'sample')}{of}"
    if window_hours is not None and math.isfinite(company.focal_hpi):
        said += f", most of them near {company.focal_hpi:.1f} hours post infection (±{window_hours:g})"
    return f"{said}."


def describe_lineages(company: Company) -> str:
    """Say whether samples of the batch share a lineage."""
    if not company.meet.any():
        return f"All {len(company):,} samples are of different lineages, so no negative is really a positive."
    return (
        f"{int(company.meet.sum()):,} of {count_of(len(company), 'sample')} share a lineage with another one of the "
        "batch: they are each other's negatives, although they are positives."
    )


def list_parts(company: Company, label: str) -> Rows:
    """List how many samples are of each experiment and value; `label` names the values."""
    head = [
        f"experiment and {label}" if label else "experiment",
        "samples",
        "share",
        "lineages",
        "FOVs",
        "HPI: median (range)",
    ]
    rows = []
    for part in company.parts:
        early, middle, late = part.hpi
        share = f"{part.samples / len(company):.1%}"
        times = f"{middle:.1f} ({early:.1f}–{late:.1f})"
        rows.append([part.name, f"{part.samples:,}", share, f"{part.lineages:,}", f"{part.fovs:,}", times])
    return head, rows


def list_asked(company: Company) -> Rows:
    """List the shares that were asked for, beside those of this batch."""
    rows = []
    for share in company.asked:
        off = (share.mean - share.asked) * len(company)
        fits = (
            "as asked"
            if not share.missed
            else f"{count_of(round(abs(off)), 'sample')} {'over' if off > 0 else 'under'}"
        )
        rows.append([share.title, f"{share.asked:.1%}", f"{share.mean:.1%}", fits])
    return ["share of the batch", "asked", "is", ""], rows


def describe_tau(company: Company) -> str:
    """Say how much later the positives are; nothing where they aren't."""
    total = sum(company.tau_hours.values())
    if not total:
        return ""
    shares = [f"{hours:.3g} h {count / total:.0%}" for hours, count in company.tau_hours.items()]
    return f"From anchor to positive (τ): {', '.join(shares)}."


def list_samples(batch: SeenBatch, labels: Sequence[str]) -> Rows:
    """List who the anchors and positives are, those that share a lineage marked."""
    names = [name for name in labels if name in batch.names[0][0]]
    head = ["", "anchor", *names, "HPI (h)", "positive", "τ (h)"]
    rows = []
    for number, (anchor, positive) in enumerate(batch.names):
        marked = f"{number + 1}{' *' if batch.company.meet[number] else ''}"
        hours = positive["hpi"] - anchor["hpi"]
        values = [str(anchor[name] or "–") for name in names]
        other = "itself" if positive["name"] == anchor["name"] else _tell_apart(positive, anchor)
        rows.append([marked, str(anchor["name"]), *values, f"{anchor['hpi']:.1f}", other, f"{hours:+.2f}"])
    return head, rows


def _tell_apart(positive: Mapping[str, Any], anchor: Mapping[str, Any]) -> str:
    """Name a positive by what differs: its frame, its track, or all of it."""
    if positive["global_track_id"] == anchor["global_track_id"] and "channel" not in positive:
        return f"frame {positive['t']}"
    if positive["lineage"] == anchor["lineage"] and "channel" not in positive:
        return f"track {positive['track_id']}, frame {positive['t']}"
    return str(positive["name"])


def list_brightness(batches: Sequence[SeenBatch]) -> Rows:
    """List what pixels are like in each batch and channel, before and after the augmentations."""
    head = ["batch and channel", "before: mean", "SD", "1 %", "99 %", "as seen: mean", "SD", "1 %", "99 %", "empty"]
    rows = []
    for batch in batches:
        for c, name in enumerate(batch.channels):
            row = [f"{batch.company.number + 1:,} {name}"]
            for part in (batch.plain, batch.seen):
                low, high = part.quantiles[c, 1], part.quantiles[c, 3]
                row += [f"{value:.3g}" for value in (part.mean[c], part.deviation[c], low, high)]
            rows.append([*row, f"{batch.seen.constant[c]:,} of {batch.seen.patches:,}"])
    return head, rows
