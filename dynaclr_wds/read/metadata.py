"""Row numbers to identities: says who each cell of a batch is, in dicts that are made when they are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.shardset import ShardSet

CODES = "labels"
"""Key of a row under which the number of each label's value stands, as losses and metrics take it."""

_COLUMNS = ("track_id", "t", "id", "parent_track_id", "parent_id", "z", "y", "x")


_KEYS = ("name", "fov_name", "global_track_id", "hpi", "observation", "lineage", *_COLUMNS, "lineage_id")


def check_meta_names(names: Mapping[str, str], shards: ShardSet) -> None:
    """Check that more names for what rows hold stand for something, and are not taken.

    Raises
    ------
    ConfigError
        One isn't so; lists what rows hold.
    """
    there = [*(record.name for record in shards.manifest.labels), *_KEYS]
    for theirs, ours in names.items():
        if ours not in there:
            raise ConfigError(
                f"meta_names: {theirs}={ours!r} must be a label or another key of the rows, which hold {there}. "
                "Correct it, or give the label in experiments.yaml."
            )
        if theirs == CODES or (theirs in there and theirs != ours):
            raise ConfigError(f"meta_names: {theirs!r} is a key of the rows already. Choose another name.")


class RowDicts:
    """One dict per sample: every label, name, fov_name, global_track_id, lineage_id, track_id, t, hpi, id, … .

    A sequence that makes a dict when it is asked for one, so a training loop that never looks pays nothing. The first
    dict reads the `lineage_id` column of the index table, once per set.

    Parameters
    ----------
    names
        More names: name → label or key of a row. When given, even if there are none, a row also has `labels`: label
        (and each of the names that stands for one) → place of its value in the manifest; without null.
    """

    def __init__(
        self, shards: ShardSet, observations: Int64[np.ndarray, " b"], names: Mapping[str, str] | None = None
    ) -> None:
        self._shards = shards
        self._names = names
        self.observations = observations

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self._describe(int(self.observations[place]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self._describe(int(o)) for o in self.observations)

    def __repr__(self) -> str:
        return f"RowDicts({len(self)} observations)"

    def without_names(self) -> RowDicts:
        """Return the same rows with our own names only."""
        return RowDicts(self._shards, self.observations)

    def glance(self, place: int) -> dict[str, Any]:
        """Return an identity without `lineage_id`, so that no table is read for it."""
        return self._look_up(int(self.observations[place]))

    def _describe(self, observation: int) -> dict[str, Any]:
        found = self._look_up(observation)
        found["lineage_id"] = self._shards.lineage_ids[found["lineage"]]
        if self._names is None:
            return found
        codes = self._shards.codes_of(observation)
        codes |= {theirs: codes[ours] for theirs, ours in self._names.items() if ours in codes}
        return {**found, **{theirs: found[ours] for theirs, ours in self._names.items()}, CODES: codes}

    def _look_up(self, observation: int) -> dict[str, Any]:
        arrays, manifest = self._shards.arrays, self._shards.manifest
        fov = manifest.fovs[int(arrays["obs_fov"][observation])]
        experiment = manifest.experiments[int(self._shards.fov_experiment[arrays["obs_fov"][observation]])]
        lineage = int(arrays["obs_lineage"][observation])
        row = {name: arrays[f"obs_{name}"][observation].item() for name in _COLUMNS}
        track = f"{fov.experiment}/{fov.fov_name}/{row['track_id']}"
        return {
            **self._shards.labels_of(observation),
            "name": f"{track}/{row['t']}",
            "fov_name": fov.fov_name,
            "global_track_id": track,
            "hpi": experiment.start_hpi + row["t"] * experiment.interval_minutes / 60,
            "observation": observation,
            "lineage": lineage,
            **row,
        }
