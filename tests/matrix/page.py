"""Writes outcomes as the tables of docs/RELIABILITY.md, and reads them there.

`python -m tests.matrix.page` carries out all trials, and writes the tables anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.matrix.objects import OBJECTS, Scene
from tests.matrix.outcomes import EITHER, EQUAL, Outcome, run_trials
from tests.matrix.trials import ALWAYS, HARMLESS, ONCE, TRIALS, TWICE, Trial
from tests.servers.faults import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "RELIABILITY.md"
BEGIN, END = "<!-- fault matrix: written by `python -m tests.matrix.page` -->\n", "<!-- end of fault matrix -->\n"
BUCKET = "fault-matrix"
"""The name decides, with the seeds, what goes wrong."""

Column = dict[str, tuple[str, str]]
"""Kind of fault → what came of it where it passes, and where it stays."""


def make_column(outcomes: Mapping[Trial, Outcome]) -> Column:
    """Say in a few words what came of each fault, for one kind of object."""
    column = {}
    for kind in KINDS:
        by_length: dict[str, list[Outcome]] = {ONCE: [], TWICE: [], ALWAYS: []}
        for trial, outcome in outcomes.items():
            if trial.kind == kind:
                by_length[trial.length].append(outcome)
        (twice,), (always,) = by_length[TWICE], by_length[ALWAYS]
        words = {outcome.words for outcome in by_length[ONCE]}
        assert words in ({EQUAL}, {EITHER}), kind
        tries = (
            f" after {max(outcome.tries for outcome in by_length[ONCE])}"
            if words == {EQUAL} and kind not in HARMLESS
            else ""
        )
        if {twice.words} == words:
            tries += f" and {twice.tries}" * bool(tries)
            column[kind] = words.pop() + tries, always.words
        else:
            column[kind] = f"{words.pop()}{tries}; after {twice.tries}: {twice.words}", always.words
    return column


def write_tables(columns: Mapping[str, Column]) -> str:
    """Write both tables: a row for each fault, a column for each kind of object."""
    lines = [f"{len(columns) * len(TRIALS)} schedules: {len(columns)} objects, {len(KINDS)} faults, four each."]
    for place, what in enumerate(("fails once, or twice", "fails whenever it is made")):
        lines += ["", f"| each request {what}: | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
        lines += [f"| {kind} | {' | '.join(columns[name][kind][place] for name in columns)} |" for kind in KINDS]
    return "\n".join(lines) + "\n"


def read_tables(text: str) -> dict[str, Column]:
    """Read both tables from the page."""
    block = text.split(BEGIN)[1].split(END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if line[:1] == "|"]
    heads = [number for number, row in enumerate(rows) if row[0].startswith("each request")]
    tables = [rows[heads[0] : heads[1]], rows[heads[1] :]]
    names = tables[0][0][1:]
    cells = [{row[0]: row[1:] for row in table[2:]} for table in tables]
    return {
        name: {kind: (cells[0][kind][place], cells[1][kind][place]) for kind in cells[0]}
        for place, name in enumerate(names)
    }


def main() -> None:
    """Carry out all trials and write the tables into the page."""
    from tests.conftest import make_matrix_set
    from tests.servers.seaweedfs import SeaweedFS

    with SeaweedFS() as server, tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scene = Scene.make(make_matrix_set(root), server.bucket(BUCKET), root / "cache")
        columns = {name: make_column(run_trials(name, scene)) for name in OBJECTS}
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{write_tables(columns)}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
