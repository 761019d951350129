"""Row numbers to identities: says who each cell of a batch is, in dicts that are made when they are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.channels import CHANNEL_LABELS, ChannelChoices
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.words import count_of

_COLUMNS = ("track_id", "t", "id", "parent_track_id", "parent_id", "z", "y", "x")


class RowDicts:
    """One dict per sample: every label, name, fov_name, global_track_id, lineage_id, track_id, t, hpi, id, … .

    A sequence that makes a dict when it is asked for one, so a training loop that never looks pays nothing. The first
    dict reads the `lineage_id` column of the index table, once per set. Where channels are chosen, `channel` and
    `marker` are those that the sample holds, and `name` ends in the channel.
    """

    def __init__(
        self,
        shards: ShardSet,
        observations: Int64[np.ndarray, " b"],
        choices: ChannelChoices | None = None,
        choice: Int64[np.ndarray, " b"] | None = None,
    ) -> None:
        self._shards = shards
        self.observations = observations
        self._choices = choices
        self.choice = choice

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, place: int) -> dict[str, Any]:
        found = self.glance(place)
        return {**found, "lineage_id": self._shards.lineage_ids[found["lineage"]]}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[place] for place in range(len(self)))

    def __repr__(self) -> str:
        return f"RowDicts({count_of(len(self), 'observation')})"

    def glance(self, place: int) -> dict[str, Any]:
        """Return an identity without `lineage_id`, so that no table is read for it."""
        found = self._look_up(int(self.observations[place]))
        if self._choices is None or self.choice is None:
            return found
        experiment = int(self._shards.fov_experiment[self._shards.arrays["obs_fov"][found["observation"]]])
        shown = {name: self._choices.labels[name][experiment][int(self.choice[place])] for name in CHANNEL_LABELS}
        return {**found, **shown, "name": f"{found['name']}/{shown['channel']}"}

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
