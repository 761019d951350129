"""The command line of `build`: its options, what they are called, and what `--help` says of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.local_paths import parse_local_path, parse_yaml_place
from dynaclr_wds.program import CommandParser, called_as
from dynaclr_wds.storage.location import Place, parse_place

_EXAMPLES = """
examples:
  %(prog)s experiments.yaml
      build ./shards with the options in the YAML's `shards:` section, or the defaults
  %(prog)s experiments.yaml --yx_patch_size 192 192 --z_range 10 20 --out /fast/disk/shards
      smaller patches, ten slices of the stack
  %(prog)s experiments.yaml --include_wells A/1 B/1 --exclude_fovs A/1/3
      two wells, one bad field of view left out
  %(prog)s experiments.yaml --out s3://bucket/sets/first
      build group by group, and send each to a bucket; nothing there is visible before all is whole
  %(prog)s experiments.yaml --engine slurm --slurm slurm_partition=cpu mem_gb=16 timeout_min=120
      each group of fields of view is a job of SLURM (docs/CLUSTER.md)
  %(prog)s experiments.yaml --part 2/4
      the second of four parts, for job arrays, into a folder or a bucket; when all have ended, the same with --finish
  %(prog)s experiments.yaml --repair
      compare every file with its checksum, build again what is bad

The command may be stopped at any time (Ctrl-C): given again, it goes on where it was. Given after it has ended, it
looks whether plates or tracks changed since: it names them and rebuilds what they touch, or says "up to date". What is
added to the YAML is built alone; to drop something, give --prune; to store cells otherwise, --replace. Options win over
the YAML. experiments.yaml lists the experiments:

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
    for name, help_text in SWITCHES.items():
        flags = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
        parser.add_argument(*flags, dest=name, action="store_true", help=help_text)
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument("--json", action="store_true", help="print summary and suspicions as one JSON object on stdout")
    _add_engine_options(parser)
    _add_upload_options(parser)
    add_build_options(parser)
    return parser


def read_build_options(given: argparse.Namespace) -> dict[str, Any]:
    """Take the build options that were given on a command line with `add_build_options`."""
    found = {name: value for name in given.build_options if (value := getattr(given, name)) is not None}
    return found | {name: dict(found[name]) for name in ("z_focus", "z_reduction") if name in found}


def add_build_options(parser: CommandParser) -> None:
    """Add an option for everything that may stand under `shards:`; `build_options` names them."""
    options = parser.add_argument_group("build options", "each may also stand under `shards:` in the YAML")
    names: list[str] = []
    parser.set_defaults(build_options=names)

    def option(name: str, help_text: str, **settings: Any) -> None:
        names.append(name)
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
    option("segment_frames", _SEGMENT, type=int, metavar="N")
    option("dtype", "of the stored patches (default: source)", choices=("source", "float16", "float32"))
    option("codec", _CODEC, choices=("none", "gzip"))
    option("include_wells", "only these wells", nargs="+", metavar="ROW/COL")
    option("exclude_fovs", "leave these out", nargs="+", metavar="ROW/COL/FOV")
    option("border", _BORDER, choices=("shift", "pad", "drop"))
    option("max_border_shift_px", _MAX_SHIFT, type=float)
    option("on_blank", "cells with a channel of fill value only (default: drop)", choices=("drop", "keep"))
    option("on_nan", "NaN and infinite pixels in a patch (default: error)", choices=("error", "drop", "zero"))
    option("on_bad_fov", _ON_BAD_FOV, choices=("error", "skip"))
    option("on_no_anchor", "no cell has a positive in the tau range (default: error)", choices=("error", "keep"))
    option("workers", "threads (default: all CPUs); changes no byte", type=int)
    option("memory_limit", _MEMORY, metavar="SIZE")
    option("seed", "order of the clips (default: 0)", type=int)


def _parse_out(text: str) -> Place:
    try:
        return parse_place(text, "out")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def _add_engine_options(parser: CommandParser) -> None:
    group = parser.add_argument_group("where it runs", "whichever it is, the bytes are the same (docs/CLUSTER.md)")
    group.add_argument("--engine", choices=("threads", "processes", "slurm", "dask"), default="threads", help=_ENGINE)
    group.add_argument("--slurm", nargs="+", type=_parse_pair, metavar="KEY=VALUE", default=[], help=_SLURM)
    for name, metavar, help_text in (
        ("dask_address", "URL", "scheduler to use; without one, a cluster is started on this machine"),
        ("part", "I/N", "build only the i-th of n parts, for job arrays; --finish puts them together"),
    ):
        flags = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
        group.add_argument(*flags, dest=name, metavar=metavar, help=help_text)


_ENGINE = (
    "what does the work: threads (the default) or processes of this machine, jobs of SLURM through submitit, or "
    "workers of a Dask cluster"
)
_SLURM = "what submitit asks SLURM for, such as slurm_partition=cpu mem_gb=16 cpus_per_task=4 timeout_min=120"


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
_MEMORY = (
    "most memory that the build holds, such as 8G (default: half of the machine's, or of what a container or job may "
    "have): what does not fit is read in pieces or waits on the disk, and fewer units run at once; changes no byte"
)
_REFERENCE = (
    "rescale patches to this pixel size in micrometres, so that cells have one size in every experiment: y and x, "
    "or z, y and x, or one number for y and x (default: each plate's own)"
)
_ON_BAD_FOV = (
    "fields of view with unreadable chunks, metadata or tracks: stop (error, the default), or leave them out, list "
    "them in the manifest, and try them again in the next build (skip)"
)
_GROUP = (
    "patches of fields of view that are built together into shards of their own, such as 256M: what a change rebuilds "
    "(default: 256M)"
)
_SEGMENT = (
    "cut movies into segments of so many frames, whose shards stay as they are when frames are added to the plate "
    "(default: a movie is one segment, and built again)"
)
_BORDER = (
    "patches that reach beyond the image: moved inside (shift, the default), filled with the nearest pixels so that "
    "the cell stays in the middle (pad), or left out with their cell (drop)"
)
_MAX_SHIFT = (
    "with --border shift, leave out cells whose patch would have to move by more stored pixels, so that all cells are "
    "near the middle of their patch (default: a quarter of the patch's larger side; 9999 keeps all)"
)
SWITCHES = {
    "replace": "change what a set of another config holds; what both have in common is kept",
    "prune": "drop experiments, wells and fields of view that the YAML does not list any more, and remove the files "
    "that only earlier versions of the set need",
    "overwrite": "build everything anew, even a set that is up to date",
    "repair": "compare every file of the set with its checksum, build again what is bad",
    "trust_sources": "don't look whether plates and tracks changed since the set was built",
    "finish": "put together what parts have built; where groups are missing, an error that names the parts to run",
}
_UPLOAD_SWITCHES = {
    "keep_staging": "leave the local copy where it was built",
}
UPLOAD = ("staging", *_UPLOAD_SWITCHES)
