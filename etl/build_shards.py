"""Builds shards from experiments.yaml: the command that runs index, cut and pack.

What it imports at the top is light, so that the command answers at once, also to Ctrl-C; the stages of a build are in
`etl.run.update`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.local_paths import parse_local_path, parse_yaml_place
from dynaclr_wds.program import CommandParser, called_as, run_command
from dynaclr_wds.storage.location import Location, Place, parse_place

if TYPE_CHECKING:
    from dynaclr_wds.contract import Manifest
    from etl.run.executors import MakeExecutor
    from etl.run.progress import Progress
    from etl.source.experiments import BuildConfig
    from etl.upload.build import UploadOptions


def build_shards(
    config: BuildConfig,
    out: str | Path | Location,
    *,
    replace: bool = False,
    overwrite: bool = False,
    repair: bool = False,
    trust_sources: bool = False,
    progress: Progress | None = None,
    make_executor: MakeExecutor | None = None,
    upload: UploadOptions | None = None,
) -> Manifest:
    """Build a shard set, bring it up to date, or find that it is.

    Parameters
    ----------
    config
        What to build.
    out
        Folder for it, made if absent; or a place in object storage, such as `s3://bucket/prefix`.
    replace
        Replace a set of another config. Experiments that both have, with the same options, keep their shards.
    overwrite
        Build everything anew, even when the set is up to date.
    repair
        Compare every file of the set with its checksum, and build again what is bad.
    trust_sources
        Don't look whether plates and tracks changed since the set was built.
    progress
        Shows what happens; None shows nothing.
    make_executor
        (workers, advance) → executor that runs the units; None runs threads.
    upload
        Where a set that goes to object storage is built first, and how requests are made.

    Raises
    ------
    ConfigError, PlateError
        Bad input. What is in `out` stays as it was.
    BuildError
        A set of another config is there, the disk is full or failed, sources changed while they were read, or another
        build writes to the same place in object storage.
    StorageError
        A request failed, or the key may not write.
    """
    from etl.run.executors import ThreadUnits
    from etl.run.progress import Progress
    from etl.run.update import BuildMode, build_set

    place = parse_place(out, "out")
    mode = BuildMode(replace=replace or overwrite, overwrite=overwrite, repair=repair, trust_sources=trust_sources)
    if isinstance(place, Path):
        if upload is not None:
            raise ConfigError(
                f"out={str(out)!r} is a folder: {', '.join(_UPLOAD)} are for object storage. Leave them out."
            )
        return build_set(config, place, mode, progress or Progress(), make_executor or ThreadUnits)
    from etl.upload.build import UploadOptions, build_to_storage

    told, units = progress or Progress(), make_executor or ThreadUnits
    return build_to_storage(config, place, upload or UploadOptions(), mode, told, units)


_EXAMPLES = """
examples:
  %(prog)s experiments.yaml
      build ./shards with the options in the YAML's `shards:` section, or the defaults
  %(prog)s experiments.yaml --yx_patch_size 192 192 --z_range 10 20 --out /fast/disk/shards
      smaller patches, ten slices of the stack
  %(prog)s experiments.yaml --include_wells A/1 B/1 --exclude_fovs A/1/3
      two wells, one bad field of view left out
  %(prog)s experiments.yaml --out s3://bucket/sets/first
      build in a local folder, then send it to a bucket; nothing there is visible before it is whole
  %(prog)s experiments.yaml --repair
      compare every file with its checksum, build again what is bad

The command may be stopped at any time (Ctrl-C): given again, it goes on where it was. Given after it has ended, it
looks whether plates or tracks changed since: it names them and rebuilds what they touch, or says "up to date". Options
win over the YAML. experiments.yaml lists the experiments:

  experiments:
    - name: zikv_2024_11
      data_path: plate.zarr            # OME-Zarr HCS, relative to the YAML, or a URL; ${VAR} is expanded
      tracks_path: tracks              # <row>/<col>/<fov>/*.csv (.tsv, .txt, .csv.gz, .parquet)
      columns: {FRAME: t}              # only where the tables have other names than track_id, t, y, x
      channel_names: [Phase3D, GFP]    # all channels of the plate
      source_channel: [Phase3D, GFP]   # those to store, in this order
      condition_wells: {mock: [A/1], infected: [B/1, B/2]}
      interval_minutes: 30.0           # or left out, if the plate's time axis says it; 0 for one frame
      start_hpi: 3.0
"""


def make_parser() -> CommandParser:
    """Make the command line; every build option has the name that it has in the YAML."""
    parser = CommandParser(
        prog=called_as("build", "etl.build_shards"),
        description="Cut the cells of OME-Zarr plates into WebDataset shards with an index.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "experiments_yaml", type=parse_yaml_place, help="which plates, tracks and wells, a path or URL; see below"
    )
    parser.add_argument(
        "--out",
        type=_parse_out,
        default=Path("shards"),
        help="folder to write, or s3://bucket/prefix, gs://… or az://… (default: %(default)s)",
    )
    for name, help_text in _SWITCHES.items():
        flags = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
        parser.add_argument(*flags, dest=name, action="store_true", help=help_text)
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument("--json", action="store_true", help="print summary and suspicions as one JSON object on stdout")
    _add_upload_options(parser)
    options = parser.add_argument_group("build options", "each may also stand under `shards:` in the YAML")

    def option(name: str, help_text: str, **settings: Any) -> None:
        flags = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
        options.add_argument(*flags, dest=name, default=None, help=help_text, **settings)

    option("yx_patch_size", "height and width of a patch in pixels (default: 256 256)", nargs=2, type=int, metavar="N")
    option("reference_pixel_size_um", _REFERENCE, nargs="+", type=float, metavar="UM")
    option("z_range", "first slice, one past the last (default: the whole stack)", nargs=2, type=int, metavar="Z")
    option("z_focus", _Z_FOCUS, nargs="+", type=_parse_pair, metavar="KEY=VALUE")
    option("z_reduction", _Z_REDUCTION, nargs="+", type=_parse_pair, metavar="KEY=VALUE")
    option("tau_range_hours", "hours from anchor to positive (default: 0.5 2.0)", nargs=2, type=float, metavar="H")
    option("clip_anchors", "cells per clip (default: eight times the longest tau in frames, at least 8)", type=int)
    option("shard_by", "labels to partition shards by (default: experiment condition)", nargs="+", metavar="LABEL")
    option("shard_bytes", "largest size of a shard, such as 64M (default: 512M)", metavar="SIZE")
    option("block_bytes", "size of a block, the unit of streaming, such as 512K (default: 8M)", metavar="SIZE")
    option("group_bytes", _GROUP, metavar="SIZE")
    option("dtype", "of the stored patches (default: source)", choices=("source", "float16", "float32"))
    option("codec", _CODEC, choices=("none", "gzip"))
    option("include_wells", "only these wells", nargs="+", metavar="ROW/COL")
    option("exclude_fovs", "leave these out", nargs="+", metavar="ROW/COL/FOV")
    option("border", _BORDER, choices=("shift", "pad", "drop"))
    option("max_border_shift_px", _MAX_SHIFT, type=float)
    option("on_blank", "cells with a channel of fill value only (default: drop)", choices=("drop", "keep"))
    option("on_nan", "NaN and infinite pixels in a patch (default: error)", choices=("error", "drop", "zero"))
    option("on_no_anchor", "no cell has a positive in the tau range (default: error)", choices=("error", "keep"))
    option("workers", "threads (default: all CPUs); changes no byte", type=int)
    option("memory_limit", _MEMORY, metavar="SIZE")
    option("seed", "order of the clips (default: 0)", type=int)
    return parser


def _parse_out(text: str) -> Place:
    try:
        return parse_place(text, "out")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def _add_upload_options(parser: CommandParser) -> None:
    group = parser.add_argument_group("object storage", "for URLs (docs/OBJECT_STORAGE.md)")
    group.add_argument(
        "--staging", type=parse_local_path, help="local folder to build in before sending (default: the user's cache)"
    )
    for name, help_text in _UPLOAD_SWITCHES.items():
        group.add_argument(f"--{name}", f"--{name.replace('_', '-')}", dest=name, action="store_true", help=help_text)
    group.add_argument(
        "--storage_options", "--storage-options", dest="storage_options", nargs="+", metavar="KEY=VALUE",
        help="how requests are made, to a YAML in object storage and to plates, too, unless it says so itself, such as "
        "endpoint=https://… region=… profile=…; keys come from the environment",
    )  # fmt: skip


def _read_upload(arguments: argparse.Namespace) -> UploadOptions | None:
    """Gather the options of an upload; None where none is given, and how requests are made is all that is said."""
    given = {name: getattr(arguments, name) for name in _UPLOAD}
    if not any(given.values()) and isinstance(arguments.out, Path):
        return None
    from dynaclr_wds.storage.options import parse_words
    from etl.upload.build import UploadOptions

    return UploadOptions(**given, storage_options=parse_words(arguments.storage_options or ()))


def _parse_pair(text: str) -> tuple[str, Any]:
    """Parse `KEY=VALUE`, the value as YAML has it."""
    import yaml

    key, equals, value = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE")
    return key, yaml.safe_load(value)


_Z_FOCUS = (
    "take slices around the focus of each frame, as the plate's focus_slice attributes say it, or measured: window "
    "(slices), channel (default: the first that is stored), offset (fraction below the focus, default: 0.5), level "
    "(timepoint, fov or dataset)"
)
_Z_REDUCTION = (
    "reduce each channel's slices to one: a channel, its marker, fluorescence, labelfree or default = center, mip "
    "(maximum) or none"
)
_CODEC = (
    "compress patches, for object storage behind a link below some 300 MB/s: docs/OBJECT_STORAGE.md (default: none)"
)
_REFERENCE = (
    "rescale patches to this pixel size in micrometres, so that cells have one size in every experiment: y and x, "
    "or z, y and x, or one number for y and x (default: each plate's own)"
)
_GROUP = (
    "patches of fields of view that are built together into shards of their own, such as 256M: what a change rebuilds, "
    "and what one worker holds in memory (default: 256M)"
)
_BORDER = (
    "patches that reach beyond the image: moved inside (shift, the default), filled with the nearest pixels so that "
    "the cell stays in the middle (pad), or left out with their cell (drop)"
)
_MAX_SHIFT = (
    "with --border shift, leave out cells whose patch would have to move by more stored pixels, so that all cells are "
    "near the middle of their patch (default: a quarter of the patch's larger side; 9999 keeps all)"
)
_MEMORY = (
    "most memory that the build takes, such as 8G (default: half of the machine's): what does not fit is read in "
    "pieces, or waits on the disk; changes no byte"
)
_SWITCHES = {
    "replace": "replace a set of another config; what both have in common is kept",
    "overwrite": "build everything anew, even a set that is up to date",
    "repair": "compare every file of the set with its checksum, build again what is bad",
    "trust_sources": "don't look whether plates and tracks changed since the set was built",
}
_UPLOAD_SWITCHES = {
    "keep_staging": "leave the local copy where it was built",
    "keep_replaced": "leave the objects of a set that is replaced, for trainings that still read it",
}
_UPLOAD = ("staging", *_UPLOAD_SWITCHES)
_NOT_OPTIONS = ("experiments_yaml", "out", "quiet", "json", "storage_options", *_SWITCHES, *_UPLOAD)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 2 bad input or no space, 130 stopped."""
    return run_command(_run, argv, when_stopped="stopped. Give the same command again to go on.")


def _run(argv: Sequence[str]) -> int:
    arguments = make_parser().parse_args(argv)
    from dynaclr_wds.storage.options import parse_words
    from etl.run.next_steps import list_next
    from etl.run.progress import make_progress, print_json, print_summary
    from etl.source.experiments import parse_build_config

    overrides = {k: v for k, v in vars(arguments).items() if k not in _NOT_OPTIONS and v is not None}
    overrides |= {name: dict(overrides[name]) for name in ("z_focus", "z_reduction") if name in overrides}
    switches = {name: getattr(arguments, name) for name in _SWITCHES}
    storage_options = parse_words(arguments.storage_options or ()) or None
    config = parse_build_config(arguments.experiments_yaml, overrides, storage_options)
    progress = make_progress(arguments.quiet)
    manifest = build_shards(config, arguments.out, progress=progress, upload=_read_upload(arguments), **switches)
    if arguments.json:
        print_json(manifest, arguments.out)
    elif not arguments.quiet and not progress.found_up_to_date:
        print_summary(manifest)
        print(f"{arguments.out}: built. Next:")
        for command in list_next(arguments.experiments_yaml, arguments.out):
            print(f"  {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
