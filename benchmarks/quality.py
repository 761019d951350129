"""Is streaming as good for the embedding as random access? Trains both ways, and others, and judges what comes of it.

The same network is trained from the same first weights on equally many batches, which are drawn in random access
(exact), in streaming, by naive shards, or in random access without the rules of the sampler. `dynaclr_wds.evaluate`
judges cells of experiments that were held out, with principal components of the pixels and an untrained network beside
them. What is done is kept in files, so a run that was stopped goes on. docs/BENCHMARKS.md says what came of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `benchmarks`, which is not installed
from benchmarks import quality_fucci
from benchmarks.quality_sets import Task, make_movies, make_simulated
from benchmarks.quality_training import ARMS, UNTRAINED, embed
from dynaclr_wds.evaluate.cells import Embedding
from dynaclr_wds.evaluate.judge import Settings, judge
from dynaclr_wds.evaluate.pixels import NAME, Patches, embed_pixels
from dynaclr_wds.evaluate.resampling import Estimate
from dynaclr_wds.files import write_whole
from dynaclr_wds.shardset import ShardSet

Measures = dict[str, Any]
"""Name → value, or [value, low, high]; None where it can't be had."""
Tables = dict[str, dict[str, list[Measures]]]
"""Set → arm → the measures of each seed."""

WITHOUT_SEED = (NAME, quality_fucci.MEAN)
COLUMNS: Mapping[str, str] = {
    "linear": "linear probe",
    "vote": "kNN vote",
    "nearest": "nearest to itself",
    "farther": "found again",
    "smoothness": "smoothness",
    "rank": "rank",
    "repeats": "repeated lineages",
}


def judge_arm(task: Task, name: str, seed: int) -> Measures:
    """Train by an arm, and judge the cells that it never saw."""
    found = embed(task, UNTRAINED if name == NAME else name, seed)
    held_out = found.cells.experiment if task.label == "experiment" else found.cells.labels[task.label]
    rows = np.flatnonzero(np.isin(held_out.astype(str), task.held_out))
    cells = found.cells.take(rows)
    embedding = Embedding(name=name, features=found.embedding.features[rows])
    if name == NAME:
        embedding = embed_pixels(Patches(ShardSet.open(task.shards), cells, (task.side, task.side)), cells)
    labels: tuple[str, ...] = ()
    if task.late_hpi is not None:
        labels = ("condition",)
        late = np.where(cells.hpi >= task.late_hpi, cells.labels["condition"], "").astype(object)
        cells = dataclasses.replace(cells, labels={"condition": late})
    (one,) = judge(cells, [embedding], Settings(labels=labels, tau_hours=task.again_hours)).embeddings
    probe = one.probes[0] if one.probes else None
    return {
        "linear": probe and _plain(probe.linear),
        "vote": probe and _plain(probe.vote),
        "nearest": _plain(one.retrieval.nearest),
        "farther": _plain(one.retrieval.farther),
        "smoothness": _plain(one.smoothness.score),
        "rank": one.rank,
        "repeats": found.repeats,
        "collapse": one.collapse,
        "chance": {
            "linear": probe and probe.chance,
            "vote": probe and probe.chance,
            "nearest": one.retrieval.nearest_by_chance,
            "farther": 0.5,
            "smoothness": 1.0,
        },
        "counts": {"cells": len(cells), "lineages": len(set(cells.lineage)), "probed": probe.cells if probe else 0},
    }


def judge_fucci(movie: quality_fucci.Movie, name: str, seed: int) -> Measures:
    """Judge how well phases are read off the other channel."""
    found = quality_fucci.judge_phases(movie, name, seed)
    chance = 1 / quality_fucci.PHASES
    return {what: _plain(one) for what, one in found.items()} | {"chance": dict.fromkeys(found, chance)}


def _plain(found: Estimate | None) -> list[float | None] | None:
    return None if found is None else [found.value, found.low, found.high]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is measured of one set, by one arm, with one seed."""

    of: str
    """Name of the set."""
    arm: str
    path: Path
    """Where the measures are kept."""
    asked: Mapping[str, Any]
    """Settings; measures of others are made again."""
    make: Callable[[], Measures]


def list_embedding(root: Path, tasks: Sequence[Task], seeds: Sequence[int]) -> list[Job]:
    """List every arm on every set, seed by seed."""
    return [
        Job(
            of=task.name,
            arm=arm,
            path=root / "results" / task.name / f"{arm}-{seed}.json",
            asked={"steps": task.steps, "batch_size": task.batch_size, "held_out": list(task.held_out)},
            make=partial(judge_arm, task, arm, seed),
        )
        for seed in seeds
        for task in tasks
        for arm in (*ARMS, NAME)
        if seed == seeds[0] or arm not in WITHOUT_SEED
    ]


def list_fucci(root: Path, movie: quality_fucci.Movie, seeds: Sequence[int]) -> list[Job]:
    """List what phases are read off, seed by seed."""
    return [
        Job(
            of="cell cycle",
            arm=arm,
            path=root / "results" / "fucci" / f"{arm}-{seed}.json",
            asked={"steps": quality_fucci.STEPS},
            make=partial(judge_fucci, movie, arm, seed),
        )
        for seed in seeds
        for arm in quality_fucci.ROWS
        if seed == seeds[0] or arm not in WITHOUT_SEED
    ]


def run(jobs: Sequence[Job], processes: int) -> Tables:
    """Do what isn't done yet."""
    if processes > 1:
        with ProcessPoolExecutor(processes, get_context("fork")) as pool:
            found = list(pool.map(do, jobs))
    else:
        found = [do(job) for job in jobs]
    tables: Tables = {}
    for job, measures in zip(jobs, found, strict=True):
        tables.setdefault(job.of, {}).setdefault(job.arm, []).append(measures)
    return tables


def do(job: Job) -> Measures:
    """Read what was measured before with the same settings, or measure it."""
    if job.path.exists():
        stored = json.loads(job.path.read_text())
        if stored["asked"] == job.asked:
            return dict(stored["found"])
    found = job.make()
    with write_whole(job.path) as file:
        file.write(json.dumps({"asked": job.asked, "found": found}, indent=1).encode())
    print(f"{job.of}, {job.path.stem}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def format_table(rows: Mapping[str, Sequence[Measures]]) -> str:
    """Lay out a set as Markdown: the mean over seeds, the mean of their intervals, and their standard deviation."""
    columns = [name for name in COLUMNS if any(one.get(name) is not None for own in rows.values() for one in own)]
    lines = ["| | " + " | ".join(COLUMNS[name] for name in columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for arm, own in rows.items():
        lines.append(f"| {arm} | " + " | ".join(_write([one.get(name) for one in own]) for name in columns) + " |")
    chance = next(iter(rows.values()))[0]["chance"]
    lines.append("| chance | " + " | ".join(_write([chance.get(name)]) for name in columns) + " |")
    return "\n".join(lines)


def _write(found: Sequence[Any]) -> str:
    """Write a measure of several seeds."""
    if not found or found[0] is None:
        return "–"
    values = np.array([one if isinstance(one, list) else [one] for one in found], np.float64)
    mean = values.mean(axis=0)
    digits = 1 if mean[0] > 2 else 2
    interval = f" ({mean[1]:.{digits}f}–{mean[2]:.{digits}f})" if len(mean) > 1 else ""
    spread = f" ±{statistics.stdev(values[:, 0].tolist()):.{digits}f}" if len(values) > 1 else ""
    return f"{mean[0]:.{digits}f}{interval}{spread}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what isn't done yet, and print the tables."""
    parser = argparse.ArgumentParser(prog="python benchmarks/quality.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("quality"), help="folder for plates, shards and results")
    parser.add_argument("--movies", type=Path, help="experiments.yaml of real movies with one channel each")
    parser.add_argument("--fucci", action="store_true", help="read the cell cycle off one of the movies, too")
    parser.add_argument("--only", nargs="+", help="of these sets only, such as: simulated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of each training (default: as docs/BENCHMARKS.md says)")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time, of one thread each")
    given = parser.parse_args(arguments)
    if given.fucci and given.movies is None:
        parser.error(f"--fucci needs --movies, an experiments.yaml with {quality_fucci.EXPERIMENT}")
    torch.set_num_threads(1)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)

    def plan(tasks: Sequence[Task]) -> list[Job]:
        wanted = [task for task in tasks if not given.only or task.name in given.only]
        steps = {} if given.steps is None else {"steps": given.steps}
        return list_embedding(given.out, [dataclasses.replace(task, **steps) for task in wanted], given.seeds)

    jobs = plan(make_simulated(given.out))
    if given.fucci:
        jobs += list_fucci(given.out, quality_fucci.make_movie(given.out, given.movies), given.seeds)
    if given.movies is not None:
        jobs += plan(make_movies(given.out, given.movies))
    found = run(jobs, given.processes)
    for name, rows in found.items():
        print(f"\n{name}\n\n{format_table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
