"""Manifest and index to arrays: a shard set, opened without reading a pixel.

Columns are memory-mapped, so opening ten million patches takes a moment and the processes of a node share them.
Every shard is checked to be there and of the right size before anything starts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from dynaclr_wds import contract
from dynaclr_wds.contract import Manifest
from dynaclr_wds.errors import FormatError
from dynaclr_wds.plan.index import PlanColumns, PlanIndex, plan_index, read_strata


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """A directory of shards with its index."""

    root: Path
    manifest: Manifest
    arrays: dict[str, Shaped[np.ndarray, "*shape"]]
    """`contract.ARRAYS`, memory-mapped."""

    @classmethod
    def open(cls, root: str | Path) -> ShardSet:
        """Open a shard set.

        Raises
        ------
        FileNotFoundError
            There is no manifest: nothing was built there, or the build did not end.
        FormatError
            The manifest is of another format, or a file is missing, of another size or dtype.
        """
        root = Path(root)
        path = root / contract.MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"shards={str(root)!r}: there is no {contract.MANIFEST}. Build the shards with "
                f"`python -m etl.build_shards experiments.yaml --out {root}`, or name the folder that holds them."
            )
        manifest = contract.parse_manifest(path.read_text(), str(path))
        for path_and_size in [(f.path, f.bytes) for f in manifest.files] + [(s.path, s.bytes) for s in manifest.shards]:
            _check_size(root / path_and_size[0], path_and_size[1])
        kinds = contract.ARRAYS | {
            f"label_{contract.quote_name(r.name)}": contract.LABEL_DTYPE for r in manifest.labels
        }
        arrays = {name: _map_array(root, name, dtype) for name, dtype in kinds.items()}
        return cls(root=root, manifest=manifest, arrays=arrays)

    @cached_property
    def z_range(self) -> tuple[int, int]:
        """Stored slices of the plates' stack, start and stop."""
        stored = self.manifest.config.get("z_range")
        return (int(stored[0]), int(stored[1])) if stored else (0, max(e.shape[1] for e in self.manifest.experiments))

    @property
    def experiments(self) -> tuple[str, ...]:
        """Names, in the order of the build."""
        return tuple(e.name for e in self.manifest.experiments)

    @cached_property
    def fov_experiment(self) -> Int64[np.ndarray, " f"]:
        """Experiment of each FOV, as its place in `experiments`."""
        number = {name: place for place, name in enumerate(self.experiments)}
        return np.array([number[fov.experiment] for fov in self.manifest.fovs], np.int64)

    @cached_property
    def clip_experiment(self) -> Int64[np.ndarray, " c"]:
        """Experiment of each clip, as its place in `experiments`."""
        a = self.arrays
        return self.fov_experiment[a["obs_fov"][a["patch_obs"][a["clip_first"][:-1]]]]

    @cached_property
    def columns(self) -> PlanColumns:
        """What the plan reads."""
        a = self.arrays
        shard_partition = np.array([s.partition for s in self.manifest.shards], np.int32)
        return PlanColumns(
            patch_obs=a["patch_obs"],
            patch_clip=a["patch_clip"],
            patch_t=a["patch_t"],
            patch_is_anchor=a["patch_has_candidate"],
            clip_first=a["clip_first"],
            clip_lineage=a["clip_lineage"],
            clip_block=a["clip_block"],
            block_first=a["block_first"],
            block_bytes=a["block_end"] - a["block_begin"],
            block_stratum=shard_partition[a["block_shard"]],
            obs_track=a["obs_track"],
            obs_fov=a["obs_fov"],
        )

    def labels_of(self, observation: int) -> dict[str, str | None]:
        """Return the label values of an observation."""
        codes = {
            r.name: int(self.arrays[f"label_{contract.quote_name(r.name)}"][observation]) for r in self.manifest.labels
        }
        return {r.name: r.values[codes[r.name]] if codes[r.name] >= 0 else None for r in self.manifest.labels}

    def check_experiments(self, names: Collection[str], where: str) -> None:
        """Raise if a name is not one of the set's experiments.

        Raises
        ------
        ValueError
            Lists the names that are.
        """
        unknown = sorted(set(names) - set(self.experiments))
        if unknown:
            raise ValueError(
                f"{where} names {unknown}, which are not in {self.root}. It holds {list(self.experiments)}."
            )

    def plan_index(
        self,
        experiments: Collection[str],
        tau_range_hours: tuple[float, float],
        include_wells: Sequence[str] | None = None,
        exclude_fovs: Sequence[str] | None = None,
    ) -> PlanIndex:
        """List the anchors of some experiments.

        Parameters
        ----------
        experiments
            Names.
        tau_range_hours
            τ range of the draws, within the one the shards were built for.
        include_wells
            `row/col`; all wells when None.
        exclude_fovs
            `row/col/fov`.

        Raises
        ------
        ValueError
            An unknown experiment, well or FOV, or a τ range the shards don't hold.
        """
        self.check_experiments(experiments, "experiments")
        records = {e.name: e for e in self.manifest.experiments}
        strata = read_strata(
            [(str(p.labels["experiment"]), str(p.labels["condition"])) for p in self.manifest.partitions],
            {name: (e.interval_minutes, e.start_hpi) for name, e in records.items()},
            tau_range_hours,
        )
        return plan_index(
            self.columns,
            strata,
            built_tau_frames=[records[s.experiment].tau_frames for s in strata],
            keep_stratum=[s.experiment in experiments for s in strata],
            keep_fov=self.keep_fovs(include_wells, exclude_fovs),
        )

    def keep_fovs(
        self, include_wells: Sequence[str] | None, exclude_fovs: Sequence[str] | None
    ) -> Bool[np.ndarray, " f"] | None:
        """Say which FOVs may be used; None when nothing is filtered.

        Raises
        ------
        ValueError
            A well or FOV that no experiment has.
        """
        if include_wells is None and not exclude_fovs:
            return None
        fovs = self.manifest.fovs
        for field, asked, known in (
            ("include_wells", include_wells or (), {f.well for f in fovs}),
            ("exclude_fovs", exclude_fovs or (), {f.fov_name for f in fovs}),
        ):
            unknown = sorted(set(asked) - known)
            if unknown:
                raise ValueError(f"{field} names {unknown}, which no experiment has. Known: {sorted(known)}.")
        wells = {f.well for f in fovs} if include_wells is None else set(include_wells)
        excluded = set(exclude_fovs or ())
        return np.array([f.well in wells and f.fov_name not in excluded for f in fovs])


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise FormatError(f"{path}: is missing, though the manifest lists it. Restore it, or build the shards again.")
    found = path.stat().st_size
    if found != size:
        raise FormatError(
            f"{path}: has {found:,} bytes, the manifest says {size:,}. Copy it again, or build the shards again."
        )


def _map_array(root: Path, name: str, dtype: str) -> Shaped[np.ndarray, "*shape"]:
    path = root / contract.ARRAYS_DIR / f"{name}.npy"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: can't be mapped ({error}). Build the shards again.") from error
    if array.dtype != np.dtype(dtype):
        raise FormatError(f"{path}: has dtype {array.dtype}, the format says {dtype}. Build the shards again.")
    return array.view(np.ndarray)
