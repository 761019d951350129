"""Row numbers to identities: says who each cell of a batch is, in dicts that are made when they are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.channels import CHANNEL_LABELS, ChannelChoices
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.words import count_of

CODES = "labels"
"""Key of a row under which the number of each label's value stands, as losses and metrics take it."""

_COLUMNS = ("track_id", "t", "id", "parent_track_id", "parent_id", "z", "y", "x")


_KEYS = ("name", "fov_name", "global_track_id", "hpi", "observation", "lineage", *_COLUMNS, "lineage_id")


def check_meta_names(names: Mapping[str, str], shards: ShardSet, *, drawn: bool) -> None:
    """Check that more names for what rows hold stand for something, and are not taken.

    Parameters
    ----------
    drawn
        Whether samples hold some of the channels, so that rows say which.

    Raises
    ------
    ConfigError
        One isn't so; lists what rows hold.
    """
    labels = dict.fromkeys([*(record.name for record in shards.manifest.labels), *(CHANNEL_LABELS if drawn else ())])
    there = [*labels, *_KEYS]
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
    choices, choice
        Where samples hold some of the channels, which each holds: `channel` and `marker` are those, and `name` ends in
        the channel.
    """

    def __init__(
        self,
        shards: ShardSet,
        observations: Int64[np.ndarray, " b"],
        names: Mapping[str, str] | None = None,
        choices: ChannelChoices | None = None,
        choice: Int64[np.ndarray, " b"] | None = None,
    ) -> None:
        self._shards = shards
        self._names = names
        self.observations = observations
        self._choices = choices
        self.choice = choice

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, place: int) -> dict[str, Any]:
        found = self.glance(place)
        found["lineage_id"] = self._shards.lineage_ids[found["lineage"]]
        if self._names is None:
            return found
        named = {theirs: found[ours] for theirs, ours in self._names.items()}
        return {**found, **named, CODES: self._codes(found, place)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[place] for place in range(len(self)))

    def __repr__(self) -> str:
        return f"RowDicts({count_of(len(self), 'observation')})"

    def take(self, places: Int64[np.ndarray, " k"]) -> RowDicts:
        """Return some of the rows."""
        choice = None if self.choice is None else self.choice[places]
        return RowDicts(self._shards, self.observations[places], self._names, self._choices, choice)

    def without_names(self) -> RowDicts:
        """Return the same rows with our own names only."""
        return RowDicts(self._shards, self.observations, None, self._choices, self.choice)

    def glance(self, place: int) -> dict[str, Any]:
        """Return an identity without `lineage_id`, so that no table is read for it."""
        found = self._look_up(int(self.observations[place]))
        if self._choices is None or self.choice is None:
            return found
        shown = {
            name: self._choices.labels[name][self._experiment(found)][int(self.choice[place])]
            for name in CHANNEL_LABELS
        }
        return {**found, **shown, "name": f"{found['name']}/{shown['channel']}"}

    def _experiment(self, found: Mapping[str, Any]) -> int:
        return int(self._shards.fov_experiment[self._shards.arrays["obs_fov"][found["observation"]]])

    def _codes(self, found: Mapping[str, Any], place: int) -> dict[str, int]:
        """Number the values of a row's labels."""
        codes = self._shards.codes_of(found["observation"])
        if self._choices is not None and self.choice is not None:
            at = self._experiment(found), int(self.choice[place])
            codes |= {name: int(self._choices.codes(name)[0][at]) for name in CHANNEL_LABELS}
        names = self._names or {}
        return codes | {theirs: codes[ours] for theirs, ours in names.items() if ours in codes}

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
