"""Shards and a config to a look at batches: `dynaclr-wds preview shards -c fit.yaml` shows what a training would see.

This module is the command line, and light; `dynaclr_wds.commands.previewing` is its work.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynaclr_wds.errors import ConfigError, WindowError
from dynaclr_wds.files import check_new_file
from dynaclr_wds.local_paths import parse_local_path
from dynaclr_wds.program import CommandParser, at_least, called_as, run_command

_EPILOG = """examples:
  %(prog)s -c configs/fit.yaml --html preview.html
  %(prog)s other_shards -c configs/fit.yaml --batches 1 --from 40 --epoch 3
  %(prog)s shards -c configs/fit.yaml --data.batch_size 64 --data.leaky 0.2

Batches come from the training's own sampler, reader, normalisation and augmentations, on the CPU; nothing is trained.
Every `--data.` option of `fit` is an option here. `shuffle` measures how epochs are mixed without reading a pixel.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for a mistake in what was asked."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    ours, options = split_options(argv)
    given = vars(make_parser().parse_args(ours))
    overwrite = given.pop("overwrite")
    if given["html"] is not None:
        check_new_file(given["html"], overwrite=overwrite, option="--overwrite")
    from dynaclr_wds.commands.previewing import Asked, format_preview, preview, write_report
    from dynaclr_wds.commands.quiet import quiet_libraries

    quiet_libraries()
    asked = Asked(**given, options=options)
    try:
        found = preview(asked)
    except WindowError as error:
        raise ConfigError(error.spell("--data.")) from error
    print(format_preview(found))
    if asked.html is not None:
        size = write_report(found, asked.html, f"{called_as('preview')} {shlex.join(argv)}")
        print(f"Wrote {asked.html} ({size:,} bytes): open it in a browser.", file=sys.stderr)
    return 0


def split_options(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part our own options from those of the DataModule, `--data.KEY VALUE` or `--data.KEY=VALUE`."""
    ours: list[str] = []
    options: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--data."):
            ours.append(word)
            continue
        options.append(word)
        if "=" not in word and words and not words[0].startswith("--"):
            options.append(words.pop(0))
    return ours, options


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; options of the DataModule are left over."""
    parser = CommandParser(
        prog=called_as("preview"),
        usage="%(prog)s [SHARDS] [-c CONFIG] [options] [--data.KEY VALUE …]",
        description="Show batches as a training would see them: pairs, augmented views, and who shares a batch.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add("shards", nargs="?", help="folder that `dynaclr-wds build` wrote, or its URL (default: the config's)")
    add("-c", "--config", type=Path, metavar="CONFIG", help="config of a training; its `data:` section is used")
    add("--batches", type=at_least(1), default=3, metavar="N", help="how many batches to show (default: 3)")
    add("--from", type=at_least(1), default=1, dest="first", metavar="N", help="the first of them (default: 1)")
    add("--epoch", type=at_least(1), default=1, metavar="N", help="of this epoch (default: 1)")
    add("--samples", type=at_least(1), default=8, metavar="N", help="pairs to show of each batch (default: 8)")
    add("--seed", type=int, metavar="N", help="of the order and all draws (default: the config's)")
    add = parser.add_argument_group("output").add_argument
    add("--html", type=parse_local_path, metavar="FILE.html", help="write a page with pictures, in one file")
    add("--overwrite", action="store_true", help="replace the page if it is there")
    return parser
