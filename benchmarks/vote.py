"""Embeddings to a number: how well a k-nearest-neighbour vote tells the conditions of an experiment apart.

A cell is judged by cells of other fields of view only: neighbours from its own lineage, or from beside it on the same
image, would vote for it whatever the embedding. Folds hold out one FOV of every condition, so both conditions stay
equally frequent among the voters. The same vote on principal components of the raw pixels is what there is to beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int64, Shaped
from sklearn.decomposition import PCA
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.fov_names import keep_experiments
from dynaclr_wds.read.crop import plan_crop
from dynaclr_wds.read.dataset import list_observations
from dynaclr_wds.read.opening import open_store
from dynaclr_wds.read.patches import PatchReader, level_statistics
from dynaclr_wds.shardset import ShardSet

NEIGHBOURS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCells:
    """Observations of one experiment, row by row with their features."""

    condition: Shaped[np.ndarray, " n"]
    fold: Int64[np.ndarray, " n"]
    """FOVs of a fold are judged by those of the other folds."""
    hpi: Shaped[np.ndarray, " n"]


def read_embeddings(path: Path, experiment: str) -> tuple[LabelledCells, Float32[np.ndarray, "n d"]]:
    """Read the cells of one experiment and their features from the file that `predict` wrote."""
    table = pq.read_table(path, filters=pc.field("experiment") == experiment)
    features = np.stack(table["features"].to_numpy())
    return _cells({name: table[name].to_numpy() for name in ("condition", "fov_name", "hpi")}), features


def read_channel_embeddings(path: Path, experiment: str) -> tuple[LabelledCells, dict[str, Float32[np.ndarray, "n d"]]]:
    """Read the cells of one experiment, and per channel their features, from a table with a row per cell and channel.

    Raises
    ------
    ValueError
        A channel lacks cells that another has.
    """
    table = pq.read_table(path, filters=pc.field("experiment") == experiment).sort_by("observation")
    names = table["channel"].unique().to_pylist()
    rows = {name: table.filter(pc.field("channel") == name) for name in names}
    first = rows[names[0]]
    for name, own in rows.items():
        if own["observation"].to_pylist() != first["observation"].to_pylist():
            raise ValueError(f"{path}: {name!r} and {names[0]!r} are channels of different cells. Embed all channels.")
    features = {name: np.stack(own["features"].to_numpy()) for name, own in rows.items()}
    return _cells({name: first[name].to_numpy() for name in ("condition", "fov_name", "hpi")}), features


def read_pixels(
    shards: ShardSet, experiment: str, yx: tuple[int, int] | None = None
) -> tuple[LabelledCells, Float32[np.ndarray, "n d"]]:
    """Read the cells of one experiment and their pixels, normalised per FOV and channel as for the network.

    Parameters
    ----------
    shards
        The set.
    experiment
        Name.
    yx
        Middle (Y, X) of the patch that counts; None = all that is stored.
    """
    rows = list_observations(shards, keep_experiments(shards.manifest.fovs, [experiment])).anchor
    reader = PatchReader(shards, plan_crop(shards, None, yx), open_store(shards))
    pixels = np.empty((len(rows), *reader.layout(rows)[0]), np.float32)
    reader.read(rows, pixels)
    observation = shards.arrays["patch_obs"][rows].astype(np.int64)
    statistics = level_statistics(shards, observation)["fov"][..., None, None, None, :]
    pixels -= statistics[..., STATISTICS.index("mean")]
    pixels /= statistics[..., STATISTICS.index("std")]
    fovs = [shards.manifest.fovs[i] for i in shards.arrays["obs_fov"][observation]]
    record = next(e for e in shards.manifest.experiments if e.name == experiment)
    columns = {
        "condition": np.array([str(shards.labels_of(n)["condition"]) for n in observation.tolist()]),
        "fov_name": np.array([fov.fov_name for fov in fovs]),
        "hpi": record.start_hpi + shards.arrays["obs_t"][observation] * record.interval_minutes / 60,
    }
    return _cells(columns), pixels.reshape(len(rows), -1)


def _cells(columns: Mapping[str, Shaped[np.ndarray, " n"]]) -> LabelledCells:
    """Number the FOVs of each condition; equal numbers make a fold."""
    fold = np.zeros(len(columns["hpi"]), np.int64)
    for condition in np.unique(columns["condition"]):
        of_condition = columns["condition"] == condition
        fold[of_condition] = np.unique(columns["fov_name"][of_condition], return_inverse=True)[1]
    return LabelledCells(condition=columns["condition"], fold=fold, hpi=columns["hpi"])


def score_vote(cells: LabelledCells, features: Float32[np.ndarray, "n d"], keep: Bool[np.ndarray, " n"]) -> float:
    """Balanced accuracy of the vote on the condition, among the cells to keep; 1 / conditions is chance.

    Neighbours are the nearest by Euclidean distance; give features of unit length for cosine.

    Raises
    ------
    ValueError
        Fewer than two folds: nobody is left to vote.
    """
    truth, fold, x = cells.condition[keep], cells.fold[keep], features[keep]
    if len(np.unique(fold)) < 2:
        raise ValueError("The vote needs at least two FOVs per condition, so that one can judge the other.")
    guess = truth.copy()
    for number in np.unique(fold):
        judged = fold == number
        voters = KNeighborsClassifier(min(NEIGHBOURS, int((~judged).sum()))).fit(x[~judged], truth[~judged])
        guess[judged] = voters.predict(x[judged])
    return float(balanced_accuracy_score(truth, guess))


def unit_length(features: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Scale rows to length 1, so that Euclidean neighbours are cosine neighbours."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def principal_components(pixels: Float32[np.ndarray, "n d"], count: int = 32) -> Float32[np.ndarray, "n k"]:
    """Project pixels on their first principal components."""
    return PCA(min(count, *pixels.shape), svd_solver="randomized", random_state=0).fit_transform(pixels)
