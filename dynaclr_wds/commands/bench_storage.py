"""A set in object storage to settings: `dynaclr-wds bench-storage URL` measures the link and says what to set.

It reads ranges of the shards at several sizes, several at a time, and nothing else but the manifest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.program import CommandParser, called_as, run_command

_EPILOG = """examples:
  %(prog)s s3://lab/shards
  %(prog)s s3://lab/shards --storage_options endpoint=https://s3.lab.example.org --json

It takes half a minute, and reads as many bytes as the link carries in that time. docs/OBJECT_STORAGE.md explains the
options.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for a mistake in what was asked."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    given = make_parser().parse_args(argv)
    from dynaclr_wds.shard_files import read_manifest  # not for help
    from dynaclr_wds.storage.client import Storage
    from dynaclr_wds.storage.location import parse_place
    from dynaclr_wds.storage.options import MIB, parse_options, parse_words
    from dynaclr_wds.storage.speed import advise, format_rates, measure_link

    place = parse_place(given.url, "URL")
    if isinstance(place, Path):
        raise ConfigError(
            f"{given.url}: is a path, and there is no link to measure. Give a URL such as s3://lab/shards."
        )
    if not given.seconds > 0:
        raise ConfigError(f"--seconds {given.seconds} must be > 0.")
    storage = Storage(place, parse_options(parse_words(given.storage_options)))
    _, manifest = read_manifest(storage)
    patch = max(experiment.patch_bytes for experiment in manifest.experiments)
    rates = measure_link(storage, manifest, sorted({patch, MIB, 8 * MIB}), given.seconds)
    advice = advise(rates, manifest, patch)
    if given.json:
        measured = [dataclasses.asdict(rate) for rate in rates]
        print(json.dumps({"patch_bytes": patch, "rates": measured, "advice": advice}, indent=1))
    else:
        print(format_rates(rates, patch, advice))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = CommandParser(
        prog=called_as("bench-storage"),
        usage="%(prog)s URL [options]",
        description="Measure how fast shards come from object storage, and say what to set.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("url", metavar="URL", help="of a shard set, as s3://bucket/prefix")
    add("--storage_options", nargs="+", default=[], metavar="KEY=VALUE", help="as endpoint=https://…")
    add("--seconds", type=float, default=2.0, metavar="S", help="of each measurement (default: %(default)s)")
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser
