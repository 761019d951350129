"""experiments.yaml to shards: the command that runs index, cut and pack.

One build at a time owns the output folder. The manifest is written last, so a folder with a manifest
is a whole set. A build that was stopped anywhere goes on when the same command is given again, and
ends with the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynaclr_wds.contract import MANIFEST, Manifest, parse_manifest
from dynaclr_wds.errors import BuildError, ConfigError, FormatError, PlateError
from etl.cut.frames import FovCut, cut_fovs
from etl.cut.intensities import plan_intensities
from etl.index import Index, build_index, drop_observations
from etl.labels import label_codes
from etl.layout.clips import Clips, plan_shards
from etl.layout.jobs import (
    SpillPlan,
    index_fovs,
    lineage_ids,
    plan_experiments,
    plan_named_clips,
    plan_spill,
    read_columns,
)
from etl.pack.clip_json import PackJob
from etl.pack.manifest import write_index, write_manifest
from etl.pack.tars import estimate_clip_bytes, pack_shards
from etl.run.output import OutFolder
from etl.run.progress import Progress, make_progress, print_summary
from etl.source.experiments import BuildConfig, parse_build_config
from etl.source.plates import Plate
from etl.source.preflight import open_plates

_INDEX_BYTES_PER_PATCH = 300


def build_shards(
    config: BuildConfig, out: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Manifest:
    """Build a shard set, or find that it is there.

    Parameters
    ----------
    config
        What to build.
    out
        Folder for it, made if absent.
    overwrite
        Replace a set of another config.
    progress
        Told what happens; None tells nobody.

    Raises
    ------
    ConfigError, PlateError
        Bad input, found before any work.
    BuildError
        A set of another config is there, or the disk is full.
    """
    progress = progress or Progress()
    folder = OutFolder(Path(out), config.token)
    with folder.locked(lambda: progress.say(f"{out}: another build is running there; waiting for it to end.")):
        found = _read_finished(folder, overwrite)
        if found is not None:
            folder.finish()
            progress.say(f"{out}: up to date, nothing to do.")
            return found
        plates = open_plates(config)
        progress.say("index: reading tracks")
        index = build_index(config, plates)
        for note in index.notes:
            progress.say(note)
        if (folder.out / MANIFEST).exists():
            folder.discard_set()
        folder.discard_stale_work()
        folder.work.mkdir(exist_ok=True)
        manifest = _run(config, folder, plates, index, progress)
        folder.finish()
        return manifest


def _read_finished(folder: OutFolder, overwrite: bool) -> Manifest | None:
    """Return the manifest of the set that is asked for, if that is there and whole."""
    path = folder.out / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = parse_manifest(path.read_text(encoding="utf-8"), str(path))
    except FormatError as error:
        if overwrite:
            return None
        raise BuildError(f"{error} Give --overwrite to replace it, or another --out.") from error
    if manifest.config_hash != folder.token:
        if overwrite:
            return None
        raise BuildError(
            f"{path}: holds shards of another config (config_hash={manifest.config_hash[:12]}, "
            f"asked for {folder.token[:12]}). Give --overwrite to replace them, or another --out."
        )
    sizes = {shard.path: shard.bytes for shard in manifest.shards} | {file.path: file.bytes for file in manifest.files}
    whole = all(_size(folder.out / name) == size for name, size in sizes.items())
    return manifest if whole else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _run(
    config: BuildConfig, folder: OutFolder, plates: Mapping[str, Plate], index: Index, progress: Progress
) -> Manifest:
    """Cut, pack, and write the index and the manifest."""
    spill = plan_spill(config, index, index_fovs(index, plates))
    clips, keys = plan_named_clips(config, index)
    sizes = _clip_bytes(spill, clips)
    spilled = sum(job.t.size * job.patch_bytes for job in spill.jobs)
    folder.check_space(int(sizes.sum()) + spilled + _INDEX_BYTES_PER_PATCH * clips.patch_obs.size)
    frames = sum(job.fov.shape[0] for job in spill.jobs)
    with progress.stage("cut", frames, "frames") as advance:
        cuts = cut_fovs(spill.jobs, folder.work, config.workers, advance)
    keep = _find_kept(index, spill, cuts)
    if not keep.all():
        tau = {experiment.name: config.tau_frames(experiment) for experiment in config.experiments}
        index, spill = drop_observations(index, keep, "zero_frame", tau), spill.kept(keep)
        clips, keys = plan_named_clips(config, index)
        sizes = _clip_bytes(spill, clips)
    job = _plan_pack(config, folder, plates, index, spill, cuts, clips, keys, sizes)
    with progress.stage("pack", clips.patch_obs.size, "patches") as advance:
        packed = pack_shards(job, folder, config.workers, advance)
    files = write_index(folder, job, packed, index)
    return write_manifest(folder, config, job, packed, files, index)


def _clip_bytes(spill: SpillPlan, clips: Clips) -> Any:
    job = spill.obs_job[clips.clip_head]
    patch_bytes = np.array([job.patch_bytes for job in spill.jobs])
    channels = np.array([len(job.channels) for job in spill.jobs])
    return estimate_clip_bytes(clips, patch_bytes[job], channels[job])


def _find_kept(index: Index, spill: SpillPlan, cuts: Sequence[FovCut]) -> Any:
    """Say which observations are in a frame that is not entirely zero."""
    t = index.observations["t"].to_numpy()
    first = np.cumsum([0, *(cut.zero.size for cut in cuts)])
    zero = np.concatenate([cut.zero for cut in cuts])
    return ~zero[first[spill.obs_job] + t]


def _plan_pack(
    config: BuildConfig,
    folder: OutFolder,
    plates: Mapping[str, Plate],
    index: Index,
    spill: SpillPlan,
    cuts: Sequence[FovCut],
    clips: Clips,
    keys: Any,
    sizes: Any,
) -> PackJob:
    """Gather all that the shards are made of."""
    by_name = dict(zip(spill.names, cuts, strict=True))
    experiments = plan_experiments(config, plates)
    return PackJob(
        clips=clips,
        keys=keys,
        shards=plan_shards(clips.clip_partition, sizes, config.shard_bytes, config.block_bytes),
        labels=index.labels,
        label_codes={label.name: label_codes(index.observations, label) for label in index.labels},
        shard_by=config.shard_by,
        partitions=index.partitions,
        fovs=index.fovs,
        experiments=experiments,
        columns=read_columns(index.observations),
        lineage_ids=lineage_ids(index),
        intensities=plan_intensities(
            index.fovs,
            index_fovs(index, plates),
            [by_name[record.experiment, record.fov_name] for record in index.fovs],
            [(record.name, record.source_channel) for record in experiments],
        ),
        spill=[job.spill(folder.work) for job in spill.jobs],
        obs_spill=spill.obs_job,
        obs_slot=spill.obs_slot,
    )


_EXAMPLES = """
examples:
  python -m etl.build_shards experiments.yaml
      build ./shards with the options in the YAML's `shards:` section, or the defaults
  python -m etl.build_shards experiments.yaml --yx_patch_size 192 192 --z_range 10 20 --out /fast/disk/shards
      smaller patches, ten slices of the stack
  python -m etl.build_shards experiments.yaml --include_wells A/1 B/1 --exclude_fovs A/1/3
      two wells, one bad field of view left out

The command may be stopped at any time (Ctrl-C): given again, it goes on where it was. Given after it has
ended, it says "up to date". Options win over the YAML. experiments.yaml lists the experiments:

  experiments:
    - name: zikv_2024_11
      data_path: plate.zarr            # OME-Zarr HCS, relative to the YAML; ${VAR} is expanded
      tracks_path: tracks              # <row>/<col>/<fov>/*.csv
      channel_names: [Phase3D, GFP]    # all channels of the plate
      source_channel: [Phase3D, GFP]   # those to store, in this order
      condition_wells: {mock: [A/1], infected: [B/1, B/2]}
      interval_minutes: 30.0
      start_hpi: 3.0
"""


def make_parser() -> argparse.ArgumentParser:
    """Make the command line; every build option has the name that it has in the YAML."""
    parser = argparse.ArgumentParser(
        prog="python -m etl.build_shards",
        description="Cut the cells of OME-Zarr plates into WebDataset shards with an index.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiments_yaml", type=Path, help="which plates, tracks and wells; see below")
    parser.add_argument("--out", type=Path, default=Path("shards"), help="folder to write (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a shard set of another config")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    options = parser.add_argument_group("build options", "each may also stand under `shards:` in the YAML")

    def option(name: str, help_text: str, **settings: Any) -> None:
        flags = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
        options.add_argument(*flags, dest=name, default=None, help=help_text, **settings)

    option("yx_patch_size", "height and width of a patch in pixels (default: 256 256)", nargs=2, type=int, metavar="N")
    option("z_range", "first slice, one past the last (default: the whole stack)", nargs=2, type=int, metavar="Z")
    option("tau_range_hours", "hours from anchor to positive (default: 0.5 2.0)", nargs=2, type=float, metavar="H")
    option("clip_anchors", "cells per clip (default: eight times the longest tau in frames, at least 8)", type=int)
    option("shard_by", "labels to partition shards by (default: experiment condition)", nargs="+", metavar="LABEL")
    option("shard_bytes", "largest size of a shard (default: 512 MiB)", type=int)
    option("block_bytes", "size of a block, the unit of streaming (default: 8 MiB)", type=int)
    option("dtype", "of the stored patches (default: source)", choices=("source", "float16", "float32"))
    option("include_wells", "only these wells", nargs="+", metavar="ROW/COL")
    option("exclude_fovs", "leave these out", nargs="+", metavar="ROW/COL/FOV")
    option("max_border_shift_px", "drop cells whose patch would move further than this from the border", type=float)
    option("workers", "threads (default: all CPUs); changes no byte", type=int)
    option("seed", "order of the clips (default: 0)", type=int)
    return parser


_NOT_OPTIONS = ("experiments_yaml", "out", "overwrite", "quiet")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 2 bad input or no space, 130 stopped."""
    arguments = make_parser().parse_args(argv)
    overrides = {k: v for k, v in vars(arguments).items() if k not in _NOT_OPTIONS and v is not None}
    try:
        config = parse_build_config(arguments.experiments_yaml, overrides)
        progress = make_progress(arguments.quiet)
        manifest = build_shards(config, arguments.out, overwrite=arguments.overwrite, progress=progress)
    except (ConfigError, PlateError, BuildError, OSError) as error:
        print("\n".join(["error: " + str(error), *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped. Give the same command again to go on.", file=sys.stderr)
        return 130
    if not arguments.quiet:
        print_summary(manifest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
