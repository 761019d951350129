"""Checks a shard set: the command that compares every file, block and member with what was written.

    dynaclr-wds verify SHARDS [--quick] [--json]

Checks the manifest against itself; every index file against its checksum; the index arrays against each other; the
tables against the arrays; and, unless `--quick`, every shard and block against its checksum and every member against
the index. Reads only. Exit status: 0 all is well, 1 something is not, 2 there is no shard set to look at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.program import CommandParser, called_as, run_command
from dynaclr_wds.storage.location import Location, Place, parse_place
from dynaclr_wds.storage.options import StorageOptions, parse_options, parse_words
from dynaclr_wds.words import count_of

if TYPE_CHECKING:
    from dynaclr_wds.contract import Manifest
    from etl.pack.read_back import Finding
    from etl.run.progress import Progress
    from etl.run.verification import Verification


def verify(
    root: str | Path | Location,
    *,
    quick: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | StorageOptions | None = None,
) -> list[Finding]:
    """Check a shard set.

    Parameters
    ----------
    root
        Folder with the manifest, or a place in object storage such as `s3://bucket/prefix`.
    quick
        Leave the content of the shards out: sizes, manifest and index only.
    workers
        Threads; None is all CPUs, and 8 at least for object storage.
    progress
        Shows how far the check is; None shows nothing.
    storage_options
        How requests to object storage are made; see `dynaclr_wds.storage.options`.

    Returns
    -------
    list
        What is not as it should be; empty when all is well.

    Raises
    ------
    FileNotFoundError
        There is no manifest.
    StorageError
        The manifest in object storage can't be read. A shard that can't be is a finding.
    """
    from etl.run.progress import Progress

    return _verify(parse_place(root), quick, workers, progress or Progress(), parse_options(storage_options)).found


def _verify(
    place: Place, quick: bool, workers: int | None, progress: Progress, options: StorageOptions
) -> Verification:
    from etl.run.executors import usable_cpus
    from etl.run.verification import verify_set

    if isinstance(place, Path):
        return verify_set(place, quick=quick, workers=workers or usable_cpus(), progress=progress)
    from etl.upload.verification import verify_remote

    threads = workers or max(usable_cpus(), _REQUESTS)
    return verify_remote(place, options, quick=quick, workers=threads, progress=progress)


_REQUESTS = 8
"""Shards that are read at a time, from object storage."""


def make_parser() -> CommandParser:
    """Make the command line."""
    parser = CommandParser(
        prog=called_as("verify", "etl.verify"),
        description="Check every file of a shard set. Exit status: 0 all is well, 1 something is not, 2 no shard set.",
        epilog=f"`{called_as('build')} experiments.yaml --repair` builds again what is bad.",
    )
    parser.add_argument("shards", type=_parse_shards, help="folder with manifest.json, or its URL (s3://…)")
    parser.add_argument(
        "--quick", action="store_true", help="leave the content of the shards out: pixels are not checked"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per finding")
    parser.add_argument("--workers", type=int, default=None, help="threads (default: all CPUs)")
    parser.add_argument("--quiet", action="store_true", help="print findings only")
    parser.add_argument(
        "--storage_options", "--storage-options", dest="storage_options", nargs="+", metavar="KEY=VALUE", default=(),
        help="for shards in object storage, such as endpoint=https://…; keys come from the environment",
    )  # fmt: skip
    return parser


def _parse_shards(text: str) -> Place:
    try:
        return parse_place(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    arguments = make_parser().parse_args(argv)
    import dataclasses
    import json

    from etl.run.progress import make_progress

    options, progress = parse_options(parse_words(arguments.storage_options)), make_progress(arguments.quiet)
    checked = _verify(arguments.shards, arguments.quick, arguments.workers, progress, options)
    for finding in checked.found:
        print(json.dumps(dataclasses.asdict(finding)) if arguments.json else finding)
    if not arguments.quiet and not arguments.json:
        print(f"{arguments.shards}: {describe_result(checked, arguments.shards, arguments.quick)}")
    return 1 if checked.found else 0


def describe_result(checked: Verification, root: Place, quick: bool) -> str:
    """Say what was checked and what was not, what came of it, and what to do."""
    if checked.manifest is None:
        said = "the manifest is damaged. Nothing else was checked, because it says what the other files must be."
        return f"{said} {_advise(root, None)}"
    shards = count_of(len(checked.manifest.shards), "shard")
    size, verb = ("sizes", "have") if len(checked.manifest.shards) != 1 else ("size", "has")
    skipped = _describe_skipped(checked.manifest)
    if not checked.found and not quick:
        cells = count_of(sum(p.observations for p in checked.manifest.partitions), "cell")
        return f"all is well: manifest, index and {shards} ({cells}) were read and are what was written.{skipped}"
    not_read = f"The content of the {shards} was not read, so changed pixels are not found: leave out --quick for that."
    if not checked.found:
        return f"manifest and index are what was written, and {shards} {verb} the right {size}. {not_read}{skipped}"
    lines = [_count(checked)]
    if quick:
        lines.append(not_read)
    elif not checked.index_is_whole:
        lines.append(
            f"The index is damaged, which says where blocks and cells lie; so {count_of(checked.shards_read, 'shard')} "
            f"of {len(checked.manifest.shards):,} could be compared as whole files only."
        )
    return " ".join([*lines, _advise(root, checked.manifest)]) + skipped


def _describe_skipped(manifest: Manifest) -> str:
    """Say which fields of view were left out, because they could not be used; empty without any."""
    named = [f"{record.experiment}, {record.fov_name} ({record.reason})" for record in manifest.skipped[:_MOST_SKIPPED]]
    if not named:
        return ""
    count = len(manifest.skipped)
    more = f"; and {count - len(named):,} more" if count > len(named) else ""
    were = "was" if count == 1 else "were"
    return (
        f" {count_of(count, 'field')} of view {were} left out when the set was built: {'; '.join(named)}{more}. The "
        "next build tries again."
    )


_MOST_SKIPPED = 3


def _count(checked: Verification) -> str:
    from etl.pack.cells import count_cells

    assert checked.manifest is not None, "of a damaged manifest, no more is known"
    said, number = count_of(len(checked.found), "finding"), count_cells(c for f in checked.found for c in f.cells)
    if not number:
        return f"{said}."
    total = sum(p.observations for p in checked.manifest.partitions)
    damaged = "is" if number == 1 else "are"
    return f"{said}; up to {number:,} of {count_of(total, 'cell')} {damaged} damaged."


def _advise(root: Place, manifest: Manifest | None) -> str:
    from etl.run.next_steps import describe_repair

    return f"Copy what is damaged again, or mend it: {describe_repair(root, manifest)}."


if __name__ == "__main__":
    sys.exit(main())
