"""Manifest and index to arrays: a shard set, opened without reading a pixel.

Columns are memory-mapped, so the processes of a node share them. Before anything starts, every shard is checked to be
there and of the right size, and every index file to be what was written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from dynaclr_wds import contract
from dynaclr_wds.addresses import Addresses, find_addresses
from dynaclr_wds.contract import Manifest
from dynaclr_wds.errors import ConfigError, FormatError
from dynaclr_wds.file_checks import PARQUET_ERRORS
from dynaclr_wds.fov_names import Places, check_experiments, keep_fovs
from dynaclr_wds.index_checks import check_arrays
from dynaclr_wds.known_files import KnownFiles, find_memory
from dynaclr_wds.npy_files import map_array
from dynaclr_wds.plan.channels import ChannelChoices, ChannelsPerSample, list_choices
from dynaclr_wds.plan.columns import CodeBook, ExperimentClock, PlanColumns, keep_lineages
from dynaclr_wds.plan.config import TEMPORAL, PositiveRule
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.listing import plan_index
from dynaclr_wds.shard_files import RemoteFiles, check_contents, find_local, find_remote, list_arrays
from dynaclr_wds.split import LabelledCells, Side, Split, split_fovs, split_lineages
from dynaclr_wds.split_config import EXPERIMENTS, FOVS, SplitConfig
from dynaclr_wds.storage.location import Place, parse_place
from dynaclr_wds.storage.options import StorageOptions, parse_options
from dynaclr_wds.words import count_of


@dataclass(frozen=True, kw_only=True, repr=False)
class ShardSet:
    """A folder of shards with its index, on a disk or in object storage."""

    root: Place
    manifest: Manifest
    arrays: dict[str, Shaped[np.ndarray, "*shape"]]
    """`contract.ARRAYS` and the labels, memory-mapped."""
    remote: RemoteFiles | None = None
    """Where the files are; None = in `root`, on a disk."""
    verify: bool = True
    """Check the checksum of a table of the index before it is read."""

    def __repr__(self) -> str:
        m = self.manifest
        samples, size = len(self.arrays["obs_fov"]), sum(s.bytes for s in m.shards)
        shapes = sorted({"x".join(map(str, e.shape)) + f" {np.dtype(e.dtype).name}" for e in m.experiments})
        experiments = count_of(len(m.experiments), "experiment")
        return (
            f"ShardSet({str(self.root)!r}, {experiments}, {count_of(samples, 'sample')} of "
            f"{' or '.join(shapes)}, {count_of(len(m.shards), 'shard')}, {size / 2**30:.2f} GiB)"
        )

    @classmethod
    def open(
        cls,
        root: str | Place,
        *,
        verify: bool = True,
        storage_options: Mapping[str, Any] | StorageOptions | None = None,
        cache_dir: str | Path | None = None,
        version: int | None = None,
    ) -> ShardSet:
        """Open a shard set.

        Parameters
        ----------
        root
            The folder of the manifest: a path, or a URL such as `s3://bucket/prefix`.
        verify
            Check the checksums of the index: of its arrays now, of a table when it is first read. Arrays that were
            found whole on this node, and that nobody has touched since, are not read through again.
        storage_options
            How requests to object storage are made; see `dynaclr_wds.storage.options`.
        cache_dir
            Where index files from object storage are kept on this node, and what is known of those on a disk; None =
            the cache folder of the user.
        version
            Version of the set that is opened (`Manifest.set_version`); None = the newest. Whatever a build adds or
            replaces, the version that was opened is read on.

        Raises
        ------
        FileNotFoundError
            There is no manifest: nothing was built there, or the build did not end.
        ConfigError
            `root` is a URL that can't be read, there are no credentials for it, or no such version is there.
        FormatError
            The manifest is of another format, a file is missing, of another size or dtype, or the index arrays do
            not fit each other.
        ChecksumError
            The manifest or an index file isn't what was written.
        StorageError
            A request to object storage failed.
        """
        place, remote, known = parse_place(root), None, None
        if isinstance(place, Path):
            record, manifest = find_local(place, version)
            folder = place
            files = [record, *(place / file.path for file in list_arrays(manifest))]
            known = KnownFiles(find_memory(cache_dir), str(place.resolve() / manifest.index), files)
        else:
            remote = find_remote(place, parse_options(storage_options), cache_dir, version, verify=verify)
            manifest, folder = remote.manifest, remote.index.folder
        try:
            arrays = _map_arrays(folder, manifest, known, verify=verify)
        except FormatError as error:
            error.add_note(f"in the shard set {place}")
            raise
        return cls(root=place, manifest=manifest, arrays=arrays, remote=remote, verify=verify)

    def find_table(self, name: str) -> Path:
        """Return where a table of the index is on this node, such as `contract.OBSERVATIONS`."""
        path = self.manifest.index_file(name)
        if self.remote is not None:
            return self.remote.find_table(path)
        folder = Path(str(self.root))
        if self.verify:
            check_contents(folder, [file for file in self.manifest.files if file.path == path])
        return folder / path

    @cached_property
    def z_range(self) -> tuple[int, int]:
        """Stored slices of the plates' stack, start and stop; counted from 0 where these differ by experiment or frame.

        They do so around the focus, and where slices were resampled or reduced to one.
        """
        stored, depths = self.manifest.config.get("z_range"), {e.shape[1] for e in self.manifest.experiments}
        if stored and depths == {stored[1] - stored[0]}:
            return int(stored[0]), int(stored[1])
        return 0, max(depths)

    @property
    def experiments(self) -> tuple[str, ...]:
        """Names, in the order of the build."""
        return tuple(e.name for e in self.manifest.experiments)

    @property
    def pixel_sizes_um(self) -> dict[str, tuple[float | None, float | None, float | None]]:
        """Experiment → micrometres per pixel along z, y and x; None where it is not known."""
        return {e.name: e.pixel_size_um for e in self.manifest.experiments}

    @cached_property
    def fov_experiment(self) -> Int64[np.ndarray, " f"]:
        """Experiment of each FOV, as its place in `experiments`."""
        number = {name: place for place, name in enumerate(self.experiments)}
        return np.array([number[fov.experiment] for fov in self.manifest.fovs], np.int64)

    @cached_property
    def clip_experiment(self) -> Int64[np.ndarray, " c"]:
        """Experiment of each clip, as its place in `experiments`."""
        a, number = self.arrays, {name: place for place, name in enumerate(self.experiments)}
        if "experiment" in self.manifest.shard_by:  # then partitions tell it, and no observation is looked up
            of_partition = [
                number.get(str(partition.labels["experiment"]), -1) for partition in self.manifest.partitions
            ]
            of_shard = np.array([of_partition[shard.partition] for shard in self.manifest.shards], np.int64)
            return np.repeat(of_shard[a["block_shard"]], np.diff(a["block_first"]))
        return self.fov_experiment[a["obs_fov"][a["patch_obs"][a["clip_first"][:-1]]]]

    @cached_property
    def addresses(self) -> Addresses:
        """Where patches and blocks are, as whoever reads them counts bytes."""
        return find_addresses(self.manifest, self.arrays, self.clip_experiment)

    @property
    def statistics(self) -> dict[str, Float32[np.ndarray, "rows c k"]]:
        """Level → statistics of every frame, FOV or experiment, the last axis as `contract.STATISTICS`."""
        return {level: self.arrays[f"stats_{level}"] for level in contract.LEVELS}

    @property
    def statistics_experiments(self) -> dict[str, list[str]]:
        """Level → experiment of each row of its statistics."""
        fovs = [fov.experiment for fov in self.manifest.fovs]
        frames = np.diff(self.arrays["fov_first_frame"]).tolist()
        timepoints = [name for name, count in zip(fovs, frames, strict=True) for _ in range(count)]
        return {"timepoint": timepoints, "fov": fovs, "dataset": list(self.experiments)}

    @cached_property
    def columns(self) -> PlanColumns:
        """What the plan reads."""
        a = self.arrays
        shard_partition = np.array([s.partition for s in self.manifest.shards], np.int32)
        return PlanColumns(
            patch_obs=a["patch_obs"],
            patch_clip=a["patch_clip"],
            patch_t=a["patch_t"],
            patch_is_sample=a["patch_is_sample"],
            patch_has_candidate=a["patch_has_candidate"],
            clip_first=a["clip_first"],
            clip_lineage=a["clip_lineage"],
            clip_block=a["clip_block"],
            block_first=a["block_first"],
            block_bytes=self.addresses.block_bytes,
            block_partition=shard_partition[a["block_shard"]],
            obs_track=a["obs_track"],
            obs_track_id=a["obs_track_id"],
            obs_parent_track_id=a["obs_parent_track_id"],
            obs_fov=a["obs_fov"],
            fov_experiment=self.fov_experiment,
            labels={record.name: a[contract.label_array(record.name)] for record in self.manifest.labels},
        )

    @cached_property
    def codes(self) -> CodeBook:
        """What the codes in `columns` stand for."""
        return CodeBook(
            values={record.name: record.values for record in self.manifest.labels},
            partitions=[partition.labels for partition in self.manifest.partitions],
            experiments=[
                ExperimentClock(
                    name=record.name,
                    interval_minutes=record.interval_minutes,
                    start_hpi=record.start_hpi,
                    tau_frames=record.tau_frames,
                )
                for record in self.manifest.experiments
            ],
        )

    def labels_of(self, observation: int) -> dict[str, str | None]:
        """Return the label values of an observation."""
        codes = self.codes_of(observation)
        return {r.name: r.values[codes[r.name]] if r.name in codes else None for r in self.manifest.labels}

    def codes_of(self, observation: int) -> dict[str, int]:
        """Return the place of each label's value in the manifest, for an observation; without those that are null."""
        codes = {r.name: int(self.arrays[contract.label_array(r.name)][observation]) for r in self.manifest.labels}
        return {name: code for name, code in codes.items() if code >= 0}

    @cached_property
    def lineage_ids(self) -> tuple[str, ...]:
        """`lineage_id` of each lineage: the `global_track_id` of its root.

        Read from the index table when first asked for: the root's own observations may not be stored, so the mapped
        arrays can't tell its track.
        """
        import pyarrow.parquet as pq  # only those who look at identities need it

        path = self.find_table(contract.OBSERVATIONS)
        lineage, column = self.arrays["obs_lineage"], None
        try:
            with pq.ParquetFile(path, read_dictionary=["lineage_id"]) as table:
                rows = table.metadata.num_rows
                if rows == len(lineage):
                    column = table.read(columns=["lineage_id"])["lineage_id"].combine_chunks()
                    rows = len(column)
        except PARQUET_ERRORS as error:
            raise FormatError(f"{path}: the lineages can't be read ({error}). Build the shards again.") from error
        if column is None or rows != len(lineage):
            raise FormatError(
                f"{path}: has {rows:,} rows, the index arrays have {len(lineage):,}. Build the shards again."
            )
        some = np.zeros(int(lineage.max(initial=-1)) + 1, np.int64)
        some[lineage] = np.arange(len(lineage))
        return tuple(column.take(some).to_pylist())

    def plan_split(
        self, asked: SplitConfig, include_wells: Places | None = None, exclude_fovs: Places | None = None
    ) -> Split:
        """Decide which FOVs and lineages are for training and which for validation.

        Parameters
        ----------
        asked
            What to hold out.
        include_wells, exclude_fovs
            What may be used at all; see `dynaclr_wds.fov_names.Places`.

        Raises
        ------
        ValueError
            An unknown experiment, well, FOV, label or value.
        """
        usable = keep_fovs(self.manifest.fovs, include_wells, exclude_fovs)
        if asked.split in (EXPERIMENTS, FOVS):
            plates = {e["name"]: str(e["data_path"]) for e in self.manifest.config["experiments"]}
            return split_fovs(asked, self.manifest.fovs, usable, plates)
        values = {record.name: record.values for record in self.manifest.labels}
        if asked.split not in values:
            raise ConfigError(
                f"split={asked.split!r} must be {EXPERIMENTS!r}, {FOVS!r} or one of the labels {sorted(values)}. "
                "Correct it."
            )
        code = self.arrays[contract.label_array(asked.split)]
        cells = LabelledCells(values[asked.split], code, self.arrays["obs_lineage"], self.arrays["obs_fov"])
        return split_lineages(asked, cells, usable)

    def plan_index(
        self,
        experiments: Collection[str],
        tau_range_hours: tuple[float, float],
        include_wells: Places | None = None,
        exclude_fovs: Places | None = None,
        batch_group_by: Sequence[str] = ("experiment",),
        stratify_by: Sequence[str] = ("condition",),
        *,
        side: Side | None = None,
        positives: PositiveRule = TEMPORAL,
        channels_per_sample: ChannelsPerSample = None,
    ) -> PlanIndex:
        """List the anchors of some experiments.

        Parameters
        ----------
        experiments
            Names.
        tau_range_hours
            τ range of the draws, within the one the shards were built for.
        include_wells, exclude_fovs
            What may be used at all, see `dynaclr_wds.fov_names.Places`; all wells when None.
        batch_group_by, stratify_by
            Labels that make groups and stratify values; see `dynaclr_wds.plan`.
        side
            Side of a split to draw from; None = both.
        positives
            What may be a positive, and so which observations are anchors.
        channels_per_sample
            Channels that a sample holds; see `list_choices`.

        Raises
        ------
        ValueError
            An unknown experiment, well, FOV or label, or a τ range the shards don't hold.
        """
        check_experiments(experiments, self.experiments, "experiments")
        keep, columns = keep_fovs(self.manifest.fovs, include_wells, exclude_fovs), self.columns
        used = set(range(len(self.experiments)))
        if side is not None:
            keep &= side.fovs
            used = set(self.fov_experiment[keep].tolist())
            columns = columns if side.lineages is None else keep_lineages(columns, side.lineages)
        drawn = [name for place, name in enumerate(self.experiments) if name in experiments and place in used]
        index = plan_index(
            columns,
            replace(self.codes, choices=self.list_choices(channels_per_sample, drawn)),
            tau_range_hours,
            batch_group_by=tuple(batch_group_by),
            stratify_by=tuple(stratify_by),
            keep_experiment=[name in drawn for name in self.experiments],
            keep_fov=keep,
            positives=positives,
        )
        places = {"include_wells": include_wells, "exclude_fovs": exclude_fovs}
        said = [side.said if side else "all cells", *(f"{name}={given}" for name, given in places.items() if given)]
        return replace(index, chosen_by=", ".join(said))

    def list_choices(
        self, channels_per_sample: ChannelsPerSample, experiments: Collection[str]
    ) -> ChannelChoices | None:
        """List the choices of channels that samples of some experiments have; None where they hold all."""
        records = self.manifest.experiments
        if channels_per_sample is None:
            return None
        return list_choices(
            [e.name for e in records],
            [e.source_channel for e in records],
            [e.markers for e in records],
            channels_per_sample,
            [e.name in experiments for e in records],
        )


def _map_arrays(
    folder: Path, manifest: Manifest, known: KnownFiles | None, *, verify: bool
) -> dict[str, Shaped[np.ndarray, "*shape"]]:
    """Map the arrays of the index, and check those that are not known to be whole."""
    is_known = known is not None and known.are_known()
    if known is not None and verify and not is_known:
        check_contents(folder, list_arrays(manifest))
    paths = {name: manifest.index_file(contract.array_path(name)) for name in contract.array_dtypes(manifest)}
    arrays = {name: map_array(folder / path) for name, path in paths.items()}
    if not is_known:
        check_arrays(manifest, arrays)
        if known is not None and verify:
            known.remember()
    return arrays
