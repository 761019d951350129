"""Shows experiments before a build, or shards after it: the command `dynaclr-wds inspect`.

    dynaclr-wds inspect experiments.yaml [--html report.html] [--json]
    dynaclr-wds inspect shards [--html report.html] [--json]

This module is the command line, and light; `etl.inspect.looking` does the work. Nothing is written but the page.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from dynaclr_wds.files import check_new_file
from dynaclr_wds.local_paths import parse_local_path
from dynaclr_wds.program import CommandParser, at_least, called_as, run_command
from etl.build_options import add_build_options, read_build_options

_EPILOG = """examples:
  %(prog)s experiments.yaml
      what a build would store: cells of each condition, tracks, divisions, how many cells have a positive, bytes, and
      what looks wrong; a few frames of each experiment are read
  %(prog)s experiments.yaml --yx_patch_size 192 192 --frames 40 --html before.html
      the same with other options and more frames, as a page with pictures of pairs, lineages and intensities
  %(prog)s shards --html after.html
      the same of shards: pairs as they are stored, and statistics of all frames
  %(prog)s experiments.yaml --json | jq '.warnings[].text'
      for programs; docs/INSPECT.md says what each key means

Nothing is changed. Look before you build: a wrong interval, an empty channel and tracks that jump are cheap to mend
then.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 2 for a mistake in what was asked."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    given = make_parser().parse_args(argv)
    if given.html is not None:
        check_new_file(given.html, overwrite=given.overwrite, option="--overwrite")
    import json

    from rich.console import Console

    from dynaclr_wds.storage.options import parse_words
    from etl.inspect.as_json import to_json
    from etl.inspect.looking import Options, inspect
    from etl.inspect.tables import print_inspection
    from etl.run.progress import make_progress

    overrides = read_build_options(given)
    storage_options = parse_words(given.storage_options or ()) or None
    options = Options(frames=given.frames, overrides=overrides or None, storage_options=storage_options)
    found = inspect(given.what, options, make_progress(given.quiet))
    if given.json:
        print(json.dumps(to_json(found), indent=1, allow_nan=False))
    elif not given.quiet:
        print_inspection(found, Console(highlight=False, width=None if sys.stdout.isatty() else 140))
    if given.html is not None:
        from etl.inspect.page import write_inspection

        size = write_inspection(given.html, found, f"{called_as('inspect', 'etl.inspect')} {shlex.join(argv)}")
        print(f"Wrote {given.html} ({size:,} bytes): open it in a browser.", file=sys.stderr)
    return 0


def make_parser() -> CommandParser:
    """Make the command line."""
    parser = CommandParser(
        prog=called_as("inspect", "etl.inspect"),
        usage="%(prog)s experiments.yaml | SHARDS [options]",
        description="Show what experiments hold before a build, or shards after it, and what looks wrong.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add("what", metavar="WHAT", help="an experiments.yaml, or a folder or URL with shards")
    add("--frames", type=at_least(0), default=8, metavar="N",
        help="read so many frames of each experiment before a build, a few more where it has many conditions; 0 reads "
        "none (default: %(default)s)")  # fmt: skip
    add("--json", action="store_true", help="print JSON instead of tables")
    add("--html", type=parse_local_path, metavar="FILE.html", help="write a page with pictures, in one file")
    add("--overwrite", action="store_true", help="replace the page if it is there")
    add("--quiet", action="store_true", help="print errors only")
    add("--storage_options", "--storage-options", dest="storage_options", nargs="+", metavar="KEY=VALUE",
        help="how requests to object storage are made, such as endpoint=https://… region=…")  # fmt: skip
    add_build_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
