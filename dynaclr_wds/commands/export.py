"""Checkpoint to ONNX: `dynaclr-wds export last.ckpt encoder.onnx`, checked against torch before it gets its name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dynaclr_wds.files import check_new_file
from dynaclr_wds.local_paths import parse_local_path
from dynaclr_wds.program import CommandParser, called_as, run_command

_EPILOG = """examples:
  %(prog)s logs/fit/version_0/checkpoints/last.ckpt encoder.onnx

The file takes patches as the network sees them, (batch, channel, Z, Y, X) in float32, normalised and cropped, and
gives features and projections; any batch size will do. Its metadata say channels, normalisation and crop, which are not
part of it. Needs dynaclr-wds[onnx].
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for a mistake in what was asked."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    given = make_parser().parse_args(argv)
    out: Path = given.out
    if out.suffix != ".onnx":
        raise ValueError(f"{out}: must end in .onnx, which is what is written. Give such a name.")
    check_new_file(out, overwrite=given.overwrite, option="--overwrite")
    from dynaclr_wds.commands.quiet import quiet_libraries
    from dynaclr_wds.train.onnx_export import export_checkpoint

    quiet_libraries()
    made = export_checkpoint(str(given.ckpt), out)
    shape = " × ".join(map(str, made.shape))
    print(
        f"Wrote {out}: patches (batch, {shape}) to features ({made.features}) and projections ({made.projections}).\n"
        f"onnxruntime and torch differ by at most {made.difference:.1e} of the largest value, in batches of 1 and 3."
    )
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = CommandParser(
        prog=called_as("export"),
        usage="%(prog)s CKPT OUT.onnx [options]",
        description="Write the encoder of a checkpoint as ONNX, for programs without torch.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ckpt", type=parse_local_path, help="checkpoint of a training")
    parser.add_argument("out", type=parse_local_path, metavar="OUT.onnx", help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    return parser
