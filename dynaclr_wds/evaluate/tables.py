"""A verdict to numbers for people: the rows of the tables that the command prints and the page shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from dynaclr_wds.evaluate.judge import Judged, Verdict
from dynaclr_wds.evaluate.mmd import Discrepancy
from dynaclr_wds.evaluate.pixels import NAME as PIXELS
from dynaclr_wds.evaluate.resampling import Estimate

Row = list[str]


def write_estimate(found: Estimate | None) -> str:
    """Write a measure with its interval: `0.81 (0.77–0.85)`."""
    if found is None:
        return "–"
    interval = "" if found.low is None or found.high is None else f" ({found.low:.2f}–{found.high:.2f})"
    return f"{found.value:.2f}{interval}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


_MEASURES: Sequence[tuple[str, str, str, Callable[[Judged], str]]] = (
    ("dimensions", "", "", lambda one: f"{one.dimensions:,}"),
    ("effective rank", "", "near the dimensions: all are used", lambda one: f"{one.rank:.1f}"),
    (
        "temporal smoothness",
        "1.00",
        "lower: frames follow smoothly",
        lambda one: write_estimate(one.smoothness.score),
    ),
    ("dynamic range", "", "higher: cells differ", lambda one: _number(one.smoothness.dynamic_range)),
    ("found again at t + τ", "0.50", "1 is best", lambda one: write_estimate(one.retrieval.farther)),
    ("nearest to itself at t + τ", "", "1 is best", lambda one: write_estimate(one.retrieval.nearest)),
)
"""Name, chance, what is good, and how it is written."""


def list_measures(verdict: Verdict) -> tuple[Row, list[Row]]:
    """Lay out all measures, a row for each: columns are the embeddings, chance, and what is good."""
    found = verdict.embeddings
    head = ["", *(one.name for one in found), "chance", "what is good"]
    tau = f"{verdict.tau_hours:g} h"
    rows = [[name.replace("τ", tau), *map(write, found), chance, hint] for name, chance, hint, write in _MEASURES]
    rows[-1][-2] = _number(found[0].retrieval.nearest_by_chance)
    for n, probe in enumerate(found[0].probes):
        for what in ("linear", "vote"):
            word = "linear probe" if what == "linear" else "kNN vote"
            values = [write_estimate(getattr(one.probes[n], what)) for one in found]
            rows.append([f"{word}: {probe.label}, by {probe.held_out}", *values, _number(probe.chance), "1 is best"])
    return head, rows


def list_groups(verdict: Verdict, kind: str) -> tuple[Row, list[Row]]:
    """Lay out the comparisons of one kind, `condition` or `experiment`: a row for each pair of groups."""
    found = verdict.embeddings
    pairs = [group for group in found[0].groups if group.kind == kind]
    head = ["", *(one.name for one in found), "cells compared", "lineages"]
    rows = []
    for pair in pairs:
        same = [next(g for g in one.groups if _key(g) == _key(pair)) for one in found]
        cells, lineages = (" / ".join(f"{n:,}" for n in both) for both in (pair.cells, pair.lineages))
        name = f"{pair.first} – {pair.second}" + (f" in {pair.within}" if pair.within else "")
        rows.append([name, *map(_write_group, same), cells, lineages])
    return head, rows


def _key(group: Discrepancy) -> tuple[str, ...]:
    return group.kind, group.within, group.first, group.second


def _write_group(group: Discrepancy) -> str:
    return f"{group.mmd2:.3f} (p {_write_p(group.p)})"


def _write_p(p: float) -> str:
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def list_findings(verdict: Verdict) -> list[tuple[str, str]]:
    """Say in sentences what stands out: (level, sentence), `bad` or `fair`."""
    found = [("bad", f"{one.name}: {one.collapse}") for one in verdict.embeddings if one.collapse]
    for one in verdict.embeddings:
        score, spread = one.smoothness.score, one.smoothness.dynamic_range
        if one.collapse is None and score is not None and score.value < 0.3 and (spread or 0) < 0.1:
            found.append(
                ("fair", f"{one.name}: smooth ({score.value:.2f}), but with a dynamic range of {spread or 0:.2f} cells "
                 "are hardly told apart.")
            )  # fmt: skip
        found += [
            (
                "fair",
                f"{one.name}: {probe.label} is not found better than by chance by {word} "
                f"({write_estimate(guess)}; chance {probe.chance:.2f}; held out by {probe.held_out}).",
            )
            for probe in one.probes
            for word, guess in (("the linear probe", probe.linear), ("the vote of neighbours", probe.vote))
            if one.collapse is None and guess.low is not None and guess.low <= probe.chance
        ]
    return found + _compare_with_pixels(verdict)


def _compare_with_pixels(verdict: Verdict) -> list[tuple[str, str]]:
    """Name the labels that an embedding finds better than by chance, but no better than raw pixels do."""
    pixels = next((one for one in verdict.embeddings if one.name == PIXELS), None)
    if pixels is None:
        return []
    return [
        (
            "fair",
            f"{one.name}: {probe.label} is found no better than from raw pixels by the linear probe "
            f"({write_estimate(probe.linear)}; {PIXELS} {write_estimate(raw.linear)}; held out by {probe.held_out}).",
        )
        for one in verdict.embeddings
        if one is not pixels and one.collapse is None
        for probe, raw in zip(one.probes, pixels.probes, strict=True)
        if (probe.linear.low or probe.linear.value) > probe.chance and probe.linear.value <= raw.linear.value
    ]


def to_json(verdict: Verdict) -> dict[str, Any]:
    """Turn a verdict into plain data; numbers that are not finite become null."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(verdict))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
