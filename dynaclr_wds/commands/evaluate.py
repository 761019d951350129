"""Embeddings to measures: `dynaclr-wds evaluate embeddings.parquet` judges tables that `predict` wrote, side by side.

This module is the command line, and light; `dynaclr_wds.evaluate` measures.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynaclr_wds.files import check_new_file
from dynaclr_wds.local_paths import parse_local_path
from dynaclr_wds.program import CommandParser, at_least, called_as, run_command

_EPILOG = """examples:
  %(prog)s embeddings.parquet --shards shards --html report.html
  %(prog)s ours=a.parquet theirs=b.zarr --labels annotations.csv --json
  %(prog)s embeddings.parquet --label condition cell_type --use projections

With --shards, principal components of the raw pixels are judged beside the embeddings, and the page shows pictures of
neighbours. docs/EVALUATION.md says what each measure means, and its source.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for a mistake in what was asked."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    given = vars(make_parser().parse_args(argv))
    if given["html"] is not None:
        check_new_file(given["html"], overwrite=given["overwrite"], option="--overwrite")
    from dynaclr_wds.commands.judging import Asked, evaluate, format_verdict, write_report
    from dynaclr_wds.evaluate.tables import to_json

    asked = Asked(**{name: value for name, value in given.items() if name not in ("json", "overwrite")})
    found = evaluate(asked)
    if given["json"]:
        print(json.dumps(to_json(found.verdict), indent=1, allow_nan=False))
    else:
        print(format_verdict(found))
    if asked.html is not None:
        size = write_report(found, asked, f"{called_as('evaluate')} {shlex.join(argv)}")
        print(f"Wrote {asked.html} ({size:,} bytes): open it in a browser.", file=sys.stderr)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = CommandParser(
        prog=called_as("evaluate"),
        usage="%(prog)s TABLE [TABLE …] [options]",
        description="Judge embeddings: smoothness, rank, probes, retrieval, batch effect.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add(
        "tables",
        nargs="+",
        metavar="TABLE",
        help="Parquet or AnnData (.zarr) that `predict` wrote, or the folder of its parts; NAME=TABLE names it",
    )
    add("--shards", metavar="FOLDER", help="the shards that were embedded, for raw pixels and pictures of cells")
    add("--labels", type=Path, metavar="FILE", help="annotations: .csv, .tsv or .parquet with fov_name, track_id[, t]")
    add("--label", nargs="+", metavar="NAME", help="labels to judge by (default: condition, and those of --labels)")
    add("--use", choices=("features", "projections"), default="features", help="which numbers (default: features)")
    add("--cells", type=at_least(10), default=10_000, metavar="N", help="judge so many cells at most, whole lineages")
    add("--tau", type=_hours, default=1.0, metavar="HOURS", help="how much later a cell is found again (default: 1)")
    add("--seed", type=int, default=0, help="of all draws (default: 0)")
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print JSON instead of tables")
    add("--html", type=parse_local_path, metavar="FILE.html", help="write a page with pictures, in one file")
    add("--umap", action="store_true", help="show UMAP beside PCA on the page; needs dynaclr-wds[umap]")
    add("--overwrite", action="store_true", help="replace the page if it is there")
    return parser


def _hours(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} must be > 0")
    return number
