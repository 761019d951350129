"""Cell cycle without labels by hand: the phase that one channel shows, read off an embedding of the other channel.

The movie has two FUCCI reporters. Network and pixels are given the cyan one alone; their shards hold no other channel.
The label is the other one, magenta: the mean of a disc around the cell, cut at the terciles of all cells of the movie,
as reporters of the cell cycle rise and fall with it. Lineages are dealt to two sides. Of each side, network and probe
are trained on the other one, so neither has seen the lineages that are judged.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float32, Float64, Int64

from benchmarks.quality_sets import Task, build
from benchmarks.quality_training import EXACT, UNTRAINED, embed
from dynaclr_wds.evaluate.cells import Cells, number
from dynaclr_wds.evaluate.pixels import NAME, Patches, embed_pixels
from dynaclr_wds.evaluate.probes import Folds, balanced_accuracy, guess_linear, guess_vote
from dynaclr_wds.evaluate.resampling import Estimate, draw_lineages
from dynaclr_wds.shardset import ShardSet

EXPERIMENT = "hacat_fucci"
SEEN, HIDDEN = "FUCCI cyan", "FUCCI magenta"
MEAN = "mean of the same disc"
ROWS = (EXACT, UNTRAINED, NAME, MEAN)
"""What phases are read off."""
SIDES = ("a", "b")
TAU_HOURS = (0.25, 1.0)
RADIUS = 8
"""Of the disc, in pixels: 4.4 µm, within a nucleus."""
PHASES = 3
STEPS = 960
"""Of each training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Movie:
    """The movie, built once for each channel."""

    seen: Path
    hidden: Path

    def task(self, side: str) -> Task:
        """Say what is trained to judge the lineages of a side."""
        return Task(
            name=EXPERIMENT,
            shards=self.seen,
            label="side",
            held_out=(side,),
            tau_hours=TAU_HOURS,
            again_hours=1.0,
            steps=STEPS,
        )


def make_movie(root: Path, experiments: Path) -> Movie:
    """Build shards of each channel, with the side of every lineage as a label."""
    document: dict[str, Any] = yaml.safe_load(experiments.read_text())
    (entry,) = [entry for entry in document["experiments"] if entry["name"] == EXPERIMENT]
    tracks = root / "fucci" / "tracks"
    _deal_tracks(experiments.parent / entry["tracks_path"], tracks)
    shards = {}
    for name, channel in (("seen", SEEN), ("hidden", HIDDEN)):
        own = {
            **entry,
            "data_path": str((experiments.parent / entry["data_path"]).resolve()),
            "tracks_path": str(tracks.resolve()),
            "source_channel": [channel],
            "label_columns": ["side"],
        }
        path = root / "fucci" / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"experiments": [own]}, sort_keys=False))
        shards[name] = build(path, root / "fucci" / name, TAU_HOURS, shard_by=["experiment", "side"])
    return Movie(**shards)


def _deal_tracks(source: Path, target: Path) -> None:
    """Copy track tables with a column `side`; the largest lineages are dealt first, one to each side in turn."""
    for path in sorted(source.rglob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        parents = {row["track_id"]: row["parent_track_id"] for row in rows}
        roots = {track: _find_root(track, parents) for track in parents}
        sizes = Counter(roots[row["track_id"]] for row in rows)
        side = {root: SIDES[n % 2] for n, (root, _) in enumerate(sizes.most_common())}
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with copy.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "side"])
            writer.writeheader()
            writer.writerows({**row, "side": side[roots[row["track_id"]]]} for row in rows)


def _find_root(track: str, parents: Mapping[str, str]) -> str:
    while parents.get(track, "-1") in parents:
        track = parents[track]
    return track


def measure_disc(shards: Path, cells: Cells) -> Float64[np.ndarray, " n"]:
    """Mean of a disc in the middle of each cell's patch, in standard deviations of the movie."""
    patches = Patches(ShardSet.open(shards), cells, None).read(np.arange(len(cells)))[:, 0]
    y, x = (np.arange(size) - (size - 1) / 2 for size in patches.shape[1:])
    return patches[:, y[:, None] ** 2 + x**2 <= RADIUS**2].mean(axis=1).astype(np.float64)


def cut_phases(intensity: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Number the tercile of each intensity, from low to high."""
    return np.searchsorted(np.quantile(intensity, [1 / 3, 2 / 3]), intensity)


def judge_phases(movie: Movie, name: str, seed: int) -> dict[str, Estimate | None]:
    """Guess the phases of each side by what was learned from the other, and judge all guesses together."""
    guesses: dict[str, Int64[np.ndarray, " n"]] = {}
    for side in SIDES:
        cells, features = _embed(movie.task(side), name, seed)
        code = cut_phases(measure_disc(movie.hidden, cells))
        judged = cells.labels["side"] == side
        folds = Folds(number=np.where(judged, 0, -1), held_out="lineage", count=len(SIDES))
        for what, guess in (("linear", guess_linear), ("vote", guess_vote)):
            found = guess(features.astype(np.float64), code, folds)
            guesses.setdefault(what, np.full(len(code), -1))[judged] = found[judged]
    lineages, lineage = number(cells.lineage)
    weights = draw_lineages(len(lineages), 0)
    found = {what: balanced_accuracy(guess, code, lineage, weights) for what, guess in guesses.items()}
    return found | ({"vote": None} if name == MEAN else {})  # of one number, all cosines are 1 or -1


def _embed(task: Task, name: str, seed: int) -> tuple[Cells, Float32[np.ndarray, "n d"]]:
    found = embed(task, UNTRAINED if name in (NAME, MEAN) else name, seed)
    if name == NAME:
        patches = Patches(ShardSet.open(task.shards), found.cells, (task.side, task.side))
        return found.cells, embed_pixels(patches, found.cells).features
    if name == MEAN:
        return found.cells, measure_disc(task.shards, found.cells)[:, None].astype(np.float32)
    return found.cells, found.embedding.features
