"""Kill builds at random and run them again: the bytes must be those of a build that was not disturbed.

    python -m benchmarks.kills --kills 40 --seed 0

Each trial starts a build in a process of its own, which gets SIGKILL at a random file operation (half of them among the
last ones, where the set is put in place) or after a random time; up to three times; then the build is let through.
There are four kinds: a new set; one whose plates and tracks changed; one that is replaced by another config; one that
is repaired. Needs Linux or macOS, and a few megabytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import etl.run.update  # noqa: F401 - before the forks, which then start at once
from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tests`, which is not installed
from tests.plates import make_collection

_OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of build to disturb."""

    name: str
    before: Path | None
    """A set that is there when the build begins."""
    expected: dict[str, str]
    """File → digest when it has ended."""
    operations: int
    """File operations of an undisturbed run."""
    seconds: float
    """Time of an undisturbed run."""
    flags: dict[str, Any]


def run_build(collection: Path, out: Path, flags: dict[str, Any], kill_at: int | None = None, counter: int = -1) -> int:
    """Build in a process of its own; return its id.

    Parameters
    ----------
    kill_at
        The process kills itself before its file operation of this number.
    counter
        Descriptor that gets the number of operations when the process ends; -1 for none.
    """
    process = os.fork()
    if process:
        return process
    done = 0

    def watch(event: str, _: Any) -> None:
        nonlocal done
        if event in _OPERATIONS:
            done += 1
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        sys.addaudithook(watch)
        os.fsync = lambda _: None  # only a power cut could tell the difference
        build_shards(parse_build_config(collection, {"workers": 2}), out, **flags)
        if counter >= 0:
            os.write(counter, str(done).encode())
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def wait_for(process: int) -> bool:
    """Wait for a build; return whether it ended well, False when it was killed.

    Raises
    ------
    RuntimeError
        It failed by itself.
    """
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise RuntimeError("a build failed; what it printed says why")
    return True


def hash_files(out: Path) -> dict[str, str]:
    """Return path → digest of every file in a folder."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def make_kinds(root: Path) -> tuple[Path, list[Kind]]:
    """Make a collection, the sets that builds begin with, and the bytes that they must end with."""
    collection = make_collection(root / "collection", lineages=4, shard_bytes=60_000, block_bytes=9_000, clip_anchors=4)
    old, other, bad = root / "old", root / "other", root / "bad"
    wait_for(run_build(collection, old, {}))
    text = collection.read_text()
    collection.write_text(text.replace("seed: 0", "seed: 1") if "seed: 0" in text else f"{text}  seed: 1\n")
    wait_for(run_build(collection, other, {}))
    collection.write_text(text)
    tracks = collection.parent / "experiment1/tracks/B/2/0/tracks.csv"
    tracks.write_text("".join(tracks.read_text().splitlines(keepends=True)[:-2]))
    chunks = sorted(p for p in (collection.parent / "experiment0/plate.zarr/A/1/1/0").rglob("*") if p.name.isdigit())
    chunks = [path for path in chunks if path.is_file()]
    chunks[0].write_bytes(chunks[-1].read_bytes())
    wait_for(run_build(collection, bad, {}))
    shard = next(bad.rglob("*.tar"))
    data = shard.read_bytes()
    shard.write_bytes(data[:3000] + bytes([data[3000] ^ 1]) + data[3001:])
    before = {"new": (None, {}), "changed": (old, {}), "replaced": (other, {"replace": True})}
    before["repaired"] = (bad, {"repair": True})
    return collection, [measure(root, collection, name, *pair) for name, pair in before.items()]


def measure(root: Path, collection: Path, name: str, before: Path | None, flags: dict[str, Any]) -> Kind:
    """Run a kind undisturbed."""
    out = root / f"undisturbed-{name}"
    if before is not None:
        shutil.copytree(before, out)
    read, write = os.pipe()
    begin = time.monotonic()
    wait_for(run_build(collection, out, flags, counter=write))
    seconds = time.monotonic() - begin
    os.close(write)
    operations = int(os.read(read, 20))
    os.close(read)
    return Kind(name=name, before=before, expected=hash_files(out), operations=operations, seconds=seconds, flags=flags)


def disturb(rng: random.Random, collection: Path, out: Path, kind: Kind) -> int:
    """Kill one build up to three times, let it through, and compare; return the number of kills.

    Raises
    ------
    RuntimeError
        The bytes differ from those of an undisturbed build.
    """
    if kind.before is not None:
        shutil.copytree(kind.before, out)
    kills, story = 0, []
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.3:
            delay = rng.uniform(0, kind.seconds)
            process = run_build(collection, out, kind.flags)
            time.sleep(delay)
            os.kill(process, signal.SIGKILL)
            story.append(f"{delay:.3f} s")
        else:
            least = 1 if rng.random() < 0.5 else kind.operations * 3 // 4
            at = rng.randint(least, kind.operations)
            process = run_build(collection, out, kind.flags, kill_at=at)
            story.append(f"operation {at} of {kind.operations}")
        kills += not wait_for(process)
    wait_for(run_build(collection, out, kind.flags))
    if hash_files(out) != kind.expected:
        raise RuntimeError(f"{kind.name}: other bytes after kills at {story}; look into {out}")
    shutil.rmtree(out)
    return kills


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m benchmarks.kills", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--kills", type=int, default=40, help="at least this many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    rng = random.Random(arguments.seed)
    root = Path(tempfile.mkdtemp(prefix="kills-"))
    collection, kinds = make_kinds(root)
    counts: Counter[str] = Counter()
    trials = 0
    while counts.total() < arguments.kills:
        kind = kinds[trials % len(kinds)]
        counts[kind.name] += disturb(rng, collection, root / f"trial-{trials}", kind)
        trials += 1
    shutil.rmtree(root)
    print(f"{counts.total()} kills in {trials} builds, all ended in the same bytes: {dict(counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
