"""Kill parts that meet in a bucket at random, and start them again: the objects must be those of a local build.

    python -m benchmarks.bucket_kills --rounds 10 --seed 0

Each round builds a set of six groups in three parts, in a random order, and joins them. Every part, and the join, gets
SIGKILL once or twice after a random time before it is let through; now and then a part of another config, which nobody
finishes, is killed between them. The bucket is one of moto, on this machine. Beside the objects, each round checks that
nothing is left in the local folder.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import obstore

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tests`, which is not installed
from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config
from tests.forked_builds import ForkedBuilds
from tests.plates import make_collection
from tests.servers.bucket import Bucket
from tests.servers.moto import Moto

_PARTS = 3
_MOST_SECONDS = 1.1
"""About what a part takes, or a join."""


class Round:
    """One set that is built in parts."""

    def __init__(self, root: Path, bucket: Bucket, builds: ForkedBuilds, number: int, rng: random.Random) -> None:
        self._root, self._bucket, self._builds, self._rng = root, bucket, builds, rng
        self._prefix, self._said, self._staging = f"round{number}", root / "said", root / "staging"
        self.kills = 0

    def run(self) -> None:
        """Build all parts and join them, each after it was killed.

        Raises
        ------
        RuntimeError
            A build failed by itself, or left something in the local folder.
        """
        parts = [["--part", f"{number}/{_PARTS}"] for number in range(1, _PARTS + 1)]
        self._rng.shuffle(parts)
        for step in (*parts, ["--finish"]):
            for _ in range(self._rng.choice((1, 2))):
                self._build(step, self._rng.uniform(0.05, _MOST_SECONDS))
            if self._rng.random() < 0.3:
                self._build(["--part", f"1/{_PARTS}", "--seed", "7"], self._rng.uniform(0.3, _MOST_SECONDS))
            if self._build(step):
                raise RuntimeError(f"{step} failed: {self._said.read_text()}")
        if self._staging.exists():
            raise RuntimeError(f"files are left: {sorted(map(str, self._staging.rglob('*')))}")

    def read_objects(self) -> dict[str, bytes]:
        """Return every object of the set."""
        store = self._bucket.store()
        names = [entry["path"] for entry in obstore.list(store, self._prefix).collect()]
        return {name.removeprefix(f"{self._prefix}/"): bytes(obstore.get(store, name).bytes()) for name in names}

    def _build(self, more: Sequence[str], kill_after: float | None = None) -> int:
        """Run the command; return its exit status."""
        keys = self._bucket.options
        environment = {"AWS_ACCESS_KEY_ID": keys["access_key_id"], "AWS_SECRET_ACCESS_KEY": keys["secret_access_key"]}
        words = [str(self._root / "experiments.yaml"), "--out", f"{self._bucket.url}/{self._prefix}", *more]
        words += ["--workers", "2", "--staging", str(self._staging)]
        words += ["--storage_options", f"endpoint={self._bucket.endpoint}", f"region={keys['region']}"]
        process = self._builds.start(words, self._said, environment)
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):  # it has ended
                os.kill(process, signal.SIGKILL)
        status = self._builds.wait()
        self.kills += status == -signal.SIGKILL
        return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rounds; return 1 where the objects of one are others."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m benchmarks.bucket_kills", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as scratch, ForkedBuilds() as builds, Moto() as server:
        root, bucket = Path(scratch), server.bucket("killed")
        fovs = tuple(f"A/1/{number}" for number in range(6))
        make_collection(root, experiments=1, fovs=fovs, shape=(5, 2, 1, 32, 32), lineages=2, group_bytes=1)
        local = root / "local"
        build_shards(parse_build_config(root / "experiments.yaml", {}), local)
        expected = {str(path.relative_to(local)): path.read_bytes() for path in local.rglob("*") if path.is_file()}
        rounds = [Round(root, bucket, builds, number, rng) for number in range(given.rounds)]
        for one in rounds:
            one.run()
        wrong = [number for number, one in enumerate(rounds) if one.read_objects() != expected]
    kills = sum(one.kills for one in rounds)
    print(f"{kills} kills in {given.rounds} rounds; other objects than those of a local build in rounds {wrong}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
