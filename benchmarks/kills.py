"""Kill builds at random and run them again: the bytes must be those of a build that was not disturbed.

    python -m benchmarks.kills --kills 60 --engine processes --seed 0

A build gets SIGKILL in a phase that is chosen beforehand, so that each phase has its share: while the index is made,
while units run, while what they noted is joined, while the set is put in place. The moment in the phase is random: a
file operation, a time, or a while after some unit began or ended. With processes, either all of them are killed, or
only the one that leads them. The same command follows, is killed, too, up to three times in all, and is then let
through. There are five kinds: a new set; one whose plates and tracks changed; one that is replaced by another config;
one that is repaired; and one in four parts, one of which runs twice at a time and loses a copy. Besides the bytes, each
trial checks that no unit is done again that had ended, and that no temporary file and no process is left. Needs Linux
or macOS, and a few megabytes. `--alone` says that nothing else here uses shared memory, and looks there, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tests`, which is not installed
from etl.run.semaphores import naming_semaphores
from tests.killed_builds import PHASES, WORKERS, Moment, Place, wait_for
from tests.lost_workers import read_units
from tests.plates import make_collection

_SMALL = {"lineages": 4, "shard_bytes": 60_000, "block_bytes": 9_000, "clip_anchors": 4, "group_bytes": 20_000}
KINDS = ("new", "changed", "replaced", "repaired", "parts")
_PARTS = 4
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of build to disturb, and what an undisturbed one is like."""

    name: str
    before: Path | None
    """A set that is there when the build begins."""
    flags: dict[str, Any]
    expected: dict[str, str]
    """What is there when it has ended."""
    units: int
    operations: dict[str, int]
    """File operations in each phase."""
    seconds: dict[str, float]
    """How long each phase takes."""


@dataclass(slots=True)
class Counts:
    """What the trials came to."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(kind, phase) → kills."""
    units: Counter[str] = field(default_factory=Counter)
    """Units that were needed, that began, and that were lost with their process."""
    builds: int = 0
    """Builds that were let through."""


def list_files(out: Path) -> dict[str, str]:
    """Return path → digest of every file in a folder, and the folders, without one."""
    paths = sorted(out.rglob("*"))
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in paths
    }


def apart(do: Callable[[], object]) -> None:
    """Call something in a process of its own, so that its libraries start no threads here, which a fork would lose."""
    process = os.fork()
    if not process:
        try:
            do()
        finally:
            os._exit(0)
    os.waitpid(process, 0)


def make_kinds(root: Path, engine: str, names: Sequence[str]) -> list[Kind]:
    """Make a collection, the sets that builds begin with, and the bytes that they must end with."""
    collection = root / "collection/experiments.yaml"
    apart(lambda: make_collection(collection.parent, **_SMALL))
    old, other, bad = root / "old", root / "other", root / "bad"

    def build(out: Path) -> None:
        wait_for(*Place(root=root / "making", collection=collection, engine="threads", out=out).start({}, None))

    text = collection.read_text()
    if "changed" in names:
        build(old)
    if "replaced" in names:
        collection.write_text(f"{text}  seed: 1\n")
        build(other)
        collection.write_text(text)
    change_sources(collection)
    if "repaired" in names:
        build(bad)
        shard = next(bad.rglob("*.tar"))
        data = shard.read_bytes()
        shard.write_bytes(data[:3000] + bytes([data[3000] ^ 1]) + data[3001:])
    before = {"new": (None, {}), "changed": (old, {}), "replaced": (other, {"replace": True})}
    before |= {"repaired": (bad, {"repair": True}), "parts": (None, {})}
    measured = {name: measure(root, engine, name, *before[name]) for name in names if name != "parts"}
    if "parts" in names:
        measured["parts"] = replace(measured.get("new") or measure(root, engine, "new", None, {}), name="parts")
    return list(measured.values())


def change_sources(collection: Path) -> None:
    """Take the last rows of a table of tracks away, and give a chunk of a plate the pixels of another."""
    tracks = collection.parent / "experiment1/tracks/B/2/0/tracks.csv"
    tracks.write_text("".join(tracks.read_text().splitlines(keepends=True)[:-2]))
    chunks = sorted(p for p in (collection.parent / "experiment0/plate.zarr/A/1/1/0").rglob("*") if p.name.isdigit())
    chunks = [path for path in chunks if path.is_file()]
    chunks[0].write_bytes(chunks[-1].read_bytes())


def measure(root: Path, engine: str, name: str, before: Path | None, flags: dict[str, Any]) -> Kind:
    """Run a kind undisturbed."""
    place = Place.of(root, f"undisturbed-{name}", engine, before)
    _, said = wait_for(*place.start(flags, None))
    measured = json.loads(said[said.index("{") :])
    units = len(read_units(place.log)["end"])
    return Kind(name=name, before=before, flags=flags, expected=list_files(place.out), units=units, **measured)


def draw_moment(rng: random.Random, kind: Kind, phase: str, engine: str) -> Moment:
    """Draw when to kill, within a phase."""
    group = engine == "threads" or rng.random() < 0.5
    if phase == "units" and (engine == "processes" or rng.random() < 0.5):
        each = kind.seconds.get(phase, 0) / max(kind.units, 1)
        notes = rng.randint(0, max(2 * kind.units - 1, 0))
        return Moment(phase=phase, notes=notes, seconds=rng.uniform(0, each), group=group)
    if rng.random() < 0.3:
        return Moment(phase=phase, seconds=rng.uniform(0, kind.seconds.get(phase, 0)), group=group)
    return Moment(phase=phase, operation=rng.randint(1, max(kind.operations.get(phase, 1), 1)), group=group)


def disturb(rng: random.Random, place: Place, kind: Kind, counts: Counts) -> None:
    """Kill one build up to three times, let it through, and look at what came of it.

    Raises
    ------
    RuntimeError
        It is not what comes of an undisturbed build, or work was done twice.
    """
    story = []
    for _ in range(rng.randint(1, 3)):
        phases = PHASES[:2] if kind.name == "parts" else PHASES  # a part neither joins nor puts in place
        of_phase = {phase: sum(counts.kills[name, phase] for name in KINDS) for phase in phases}
        phase = rng.choice([phase for phase in phases if of_phase[phase] <= min(of_phase.values()) + 1])
        moment = draw_moment(rng, kind, phase, place.engine)
        part = f"{rng.randint(1, _PARTS)}/{_PARTS}" if kind.name == "parts" else ""
        both = [place.start(kind.flags, moment, part)]
        both += [place.start(kind.flags, None, part)] if part else []
        ended, said = wait_for(*both[0])
        story.append(f"{moment} {part}".strip())
        if not ended:
            reached = next(name for name in PHASES if name[0] == said[-1])
            counts.kills[kind.name, reached] += 1
        for other in both[1:]:
            wait_for(*other)
    if kind.name == "parts":
        for number in rng.sample(range(1, _PARTS + 1), _PARTS):
            wait_for(*place.start(kind.flags, None, f"{number}/{_PARTS}"))
    wait_for(*place.start(kind.flags | ({"finish": True} if kind.name == "parts" else {}), None))
    check(place, kind, story, counts)


def check(place: Place, kind: Kind, story: Sequence[str], counts: Counts) -> None:
    """Compare what is there with what comes of an undisturbed build; count its units."""
    trial = f"{kind.name}: after kills at {list(story)}; look into {place.root}"
    found = list_files(place.out)
    if found != kind.expected:
        differ = [path for path in {**found, **kind.expected} if found.get(path) != kind.expected.get(path)]
        raise RuntimeError(f"{trial}: other bytes: {differ}")
    place.check_left()
    units = {what: len(digests) for what, digests in read_units(place.log).items()}
    if kind.name != "parts":
        lost = units["begin"] - units["end"]
        if units["end"] > kind.units or lost > WORKERS * len(story):
            raise RuntimeError(f"{trial}: {units}, and {kind.units} were needed")
        counts.units.update({"needed": kind.units, "begun": units["begin"], "lost": lost})
    counts.builds += 1
    shutil.rmtree(place.root)


def write_table(counts: Counts, kinds: Sequence[Kind]) -> str:
    """Write kills by kind and phase."""
    lines = ["| killed | " + " | ".join(PHASES) + " | all |", "| --- |" + " --- |" * (len(PHASES) + 1)]
    for kind in kinds:
        of = [counts.kills[kind.name, phase] for phase in PHASES]
        lines.append(f"| {kind.name} | " + " | ".join(map(str, [*of, sum(of)])) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m benchmarks.kills", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--kills", type=int, default=60, help="at least this many (default: %(default)s)")
    parser.add_argument("--engine", choices=("threads", "processes"), default="threads")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of builds (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="look for what is left in shared memory, too")
    arguments = parser.parse_args(argv)
    rng, counts = random.Random(arguments.seed), Counts()
    shared = set(_SHARED_MEMORY.iterdir()) if arguments.alone else set()
    root = Path(tempfile.mkdtemp(prefix="kills-"))
    kinds = make_kinds(root, arguments.engine, arguments.kinds)
    trials = 0
    while counts.kills.total() < arguments.kills:
        kind = kinds[trials % len(kinds)]
        disturb(rng, Place.of(root, f"trial-{trials}", arguments.engine, kind.before), kind, counts)
        trials += 1
    shutil.rmtree(root)
    with naming_semaphores():
        pass  # as the next build that starts processes would
    left = set(_SHARED_MEMORY.iterdir()) - shared if arguments.alone else set()
    if left:
        raise RuntimeError(f"left in shared memory: {sorted(left)}")
    print(write_table(counts, kinds))
    print(
        f"{arguments.engine}: {counts.kills.total()} kills in {counts.builds} builds, all ended in the same bytes. "
        f"{counts.units['needed']} units were needed, {counts.units['begun']} began, {counts.units['lost']} of them in "
        "processes that were killed."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
