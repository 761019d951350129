"""Checkpoint to a table of embeddings: `dynaclr-wds predict --ckpt X --out Y.parquet`, or `--anndata Y.zarr`.

The checkpoint says all that decides what the network sees, so there is no config to get wrong.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dynaclr_wds.files import check_new_file, check_new_folder
from dynaclr_wds.local_paths import refuse_url
from dynaclr_wds.program import CommandParser, Terminated, at_least, called_as, run_command
from dynaclr_wds.storage.location import parse_place
from dynaclr_wds.words import count_of

if TYPE_CHECKING:
    from dynaclr_wds.train.prediction import Written

_EPILOG = """examples:
  dynaclr-wds predict --ckpt logs/fit/version_0/checkpoints/last.ckpt --out embeddings.parquet
  dynaclr-wds predict --ckpt last.ckpt --shards other_shards --experiments a549_zikv_2 --out new.parquet
  dynaclr-wds predict --ckpt last.ckpt --limit 1000 --out look.parquet
  dynaclr-wds predict --ckpt last.ckpt --tracks a549_zikv_2/A/1/0/17 tracks.csv --anndata some.zarr

Encoder, weights, normalisation, slices and crop are those of the training, and so are the shards unless --shards
names others; docs/CHECKPOINTS.md says what a checkpoint holds and how the table is laid out.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for a mistake, 130 after Ctrl-C, 143 after SIGTERM."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    given = vars(make_parser().parse_args(argv))
    try:
        written = _predict(given)
    except KeyboardInterrupt as stopped:
        terminated = isinstance(stopped, Terminated)
        by = " by SIGTERM" * terminated
        out = given.get("out", given.get("anndata"))
        print(f"stopped{by}; nothing was written to {out}. Give the command again to embed.", file=sys.stderr)
        return 143 if terminated else 130
    if written is not None:  # by the first rank
        print(format_written(written))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; every option is absent from the result unless it is given."""
    parser = CommandParser(
        prog=called_as("predict"),
        usage=f"{called_as('predict')} --ckpt CKPT --out FILE.parquet [--anndata FOLDER.zarr] [options]",
        description="Embed cells with a trained network: one row of a Parquet table for each.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--ckpt", required=True, help="checkpoint of a training")
    add(
        "--out",
        metavar="FILE.parquet",
        help="table to write, or its URL; with several ranks FILE-rank0.parquet, …",
    )
    add("--anndata", metavar="FOLDER.zarr", help="AnnData to write, beside or instead of the table; on this machine")
    add("--shards", metavar="FOLDER", help="shards to embed, or their URL (default: those of the training)")
    add("--overwrite", action="store_true", help="replace the table if it is there")
    add(
        "--override", action="store_true", help="go on where options or shards differ from the training, if that can be"
    )
    add = parser.add_argument_group("which cells (default: all)").add_argument
    add("--experiments", nargs="+", metavar="NAME", help="of these experiments only")
    add("--include_wells", nargs="+", metavar="ROW/COL", help="of these wells only, as A/1 or EXPERIMENT/A/1")
    add("--exclude_fovs", nargs="+", metavar="ROW/COL/FOV", help="not of these, as A/1/0 or EXPERIMENT/A/1/0")
    add(
        "--tracks",
        nargs="+",
        metavar="TRACK",
        help="of these tracks only: EXPERIMENT/ROW/COL/FOV/TRACK_ID, or .csv, .tsv, .parquet with a row for each",
    )
    add("--limit", type=at_least(1), metavar="N", help="the first N only, for a look")
    add = parser.add_argument_group("how it runs").add_argument
    add("--batch_size", type=at_least(1), metavar="N", help="cells at a time (default: as in training)")
    add("--num_workers", type=at_least(0), metavar="N", help="threads that read (default: as in training)")
    add("--accelerator", metavar="NAME", help="cpu, gpu, mps, … (default: what there is)")
    add("--devices", metavar="N", help="how many of them (default: 1)")
    add("--storage_options", nargs="+", metavar="KEY=VALUE", help="for object storage, as endpoint=https://…")
    add("--cache_dir", metavar="FOLDER", help="for shards in object storage: where to keep their index on this machine")
    add("--precision", metavar="NAME", help="such as bf16-mixed (default: 32-true)")
    add = parser.add_argument_group("as in training; another value needs --override").add_argument
    add("--z_range", nargs=2, type=int, metavar=("START", "STOP"), help="slices of the plates' stack")
    add("--yx_patch_size", nargs=2, type=int, metavar=("Y", "X"), help="pixels to read around each cell")
    add("--final_yx_patch_size", nargs=2, type=int, metavar=("Y", "X"), help="pixels that the network sees of them")
    return parser


def format_written(written: Written) -> str:
    """Say what was written, and where."""
    columns = ", ".join(
        f"{name} ({kind.rpartition('[')[2].rstrip(']')})" if kind.startswith("fixed_size_list") else name
        for name, kind in written.columns.items()
    )
    return f"Wrote {count_of(written.rows, 'row')} to {', '.join(written.files)}.\nColumns: {columns}."


def _predict(given: dict[str, object]) -> Written | None:
    """Check what can be known at once, then import what is heavy, and embed."""
    _check_output(given)
    from dynaclr_wds.commands.lightning import leave_processes
    from dynaclr_wds.commands.quiet import quiet_libraries
    from dynaclr_wds.storage.options import parse_words
    from dynaclr_wds.train.prediction import predict
    from dynaclr_wds.train.settle import Request

    pairs = ("z_range", "yx_patch_size", "final_yx_patch_size")
    values = {name: tuple(value) if name in pairs else value for name, value in given.items()}  # type: ignore[arg-type]
    if "storage_options" in values:
        values["storage_options"] = parse_words(given["storage_options"])  # type: ignore[arg-type]
    quiet_libraries()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    written = predict(Request(**values))  # type: ignore[arg-type]
    leave_processes()
    return written


def _check_output(given: dict[str, object]) -> None:
    """Check that what is to be written has a name that says what it is, and can be written."""
    if not given.keys() & {"out", "anndata"}:
        raise ValueError("predict needs --out FILE.parquet or --anndata FOLDER.zarr, what to write. Give one, or both.")
    overwrite = "overwrite" in given
    if "out" in given:
        out = parse_place(str(given["out"]), "--out")
        if PurePosixPath(out.name).suffix != ".parquet":
            raise ValueError(f"--out {out}: must end in .parquet, which is what is written. Give such a name.")
        if isinstance(out, Path):
            check_new_file(out, overwrite=overwrite, option="--overwrite")
    if "anndata" in given:
        refuse_url(str(given["anndata"]), "--anndata")
        folder = Path(str(given["anndata"]))
        if folder.suffix != ".zarr":
            raise ValueError(f"--anndata {folder}: must end in .zarr, which is what is written. Give such a name.")
        check_new_folder(folder, overwrite=overwrite, option="--overwrite")
