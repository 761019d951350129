"""What `inspect` does: counts cells, looks at frames, chooses and reads pairs, and says what is odd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from dynaclr_wds.contract import MANIFEST
from dynaclr_wds.errors import ConfigError, FovError
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.storage.location import Place, parse_place
from etl.inspect.choices import PairPlace, choose_fovs, choose_frames, choose_pairs
from etl.inspect.collection import Collection, Run, Sizes
from etl.inspect.findings import Finding, list_findings
from etl.inspect.frame_cuts import FrameCut
from etl.inspect.pixels import ChannelFacts, ChannelSums
from etl.inspect.plates import PlateCollection
from etl.inspect.shards import ShardCollection
from etl.inspect.tally import Tally, Tallying
from etl.run.executors import usable_cpus
from etl.run.progress import Progress
from etl.scratch import scratch_folder

FRAMES = 8
"""Frames of an experiment that are read before a build, unless told otherwise."""
_MOST_PAIRS, _PAIRS = 72, 6
"""Pairs altogether, and of a stratum."""
MOST_STRATA = 60
"""Strata whose pairs are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to look."""

    frames: int = FRAMES
    """Frames of each experiment that are read before a build; 0 reads none."""
    overrides: Mapping[str, Any] | None = None
    """Build options that win over those of the YAML."""
    storage_options: Mapping[str, Any] | None = None
    """How requests to object storage are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """What was looked at of an experiment."""

    seen: int
    """Frames."""
    all: int
    """Frames that there are."""
    channels: tuple[ChannelFacts, ...]
    seconds: float
    """Time to read all frames, and to cut all cells, guessed from the frames that were read; 0 after a build."""
    rate: float
    """Bytes of pixels per second that were read; 0 after a build."""
    unread: tuple[str, ...]
    """Why other frames can't be read."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """An anchor and its positive."""

    place: PairPlace
    experiment: int
    tracks: tuple[int, ...]
    """Of both, by name."""
    t: tuple[int, ...]
    pixels: tuple[Float32[np.ndarray, "c y x"], ...]
    """The middle slice of both, or of the anchor alone."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspection:
    """All that is shown."""

    collection: Collection
    tally: Tally
    sizes: Sizes
    frames: tuple[Frames, ...]
    """Of each experiment."""
    pairs: tuple[Pair, ...]
    findings: tuple[Finding, ...]

    @property
    def workers(self) -> int:
        """Threads of a build that this machine has CPUs for."""
        return max(min(self.collection.workers, usable_cpus()), 1)

    @property
    def seconds(self) -> float:
        """Guessed time of a build to read and to cut all frames."""
        return sum(one.seconds for one in self.frames) / self.workers


def inspect(what: str | Place, options: Options | None = None, progress: Progress | None = None) -> Inspection:
    """Inspect experiments before a build, or the shards of one.

    What is returned holds all that pages and tables show. The files of an index of plates are gone by then, so no more
    cells can be taken from its collection.

    Parameters
    ----------
    what
        An experiments.yaml, or a folder or URL with shards.
    progress
        Shows how far it is; None shows nothing.

    Raises
    ------
    ConfigError, PlateError, StorageError
        As a build would raise before it cuts.
    FovError
        No frame that was looked at can be read. Where some can, the others are findings.
    FileNotFoundError, FormatError
        There is no set of shards, or it is damaged.
    """
    with _opened(parse_place(what, "what"), options or Options(), progress or Progress()) as collection:
        return inspect_collection(collection, (options or Options()).frames, progress or Progress())


@contextmanager
def _opened(place: Place, options: Options, progress: Progress) -> Iterator[Collection]:
    if not place.name.lower().endswith((".yaml", ".yml")):
        yield _open_shards(place, options)
        return
    from etl.indexing import store_index
    from etl.source.experiments import parse_build_config
    from etl.source.preflight import open_plates
    from etl.source.scales import fill_in_from_plates

    config = parse_build_config(place, options.overrides, options.storage_options)
    plates = open_plates(config)
    config = fill_in_from_plates(config, plates)
    with scratch_folder("inspect") as folder:
        progress.say("inspect: reading tracks")
        yield PlateCollection(config, plates, store_index(config, plates, folder), str(place))


def _open_shards(place: Place, options: Options) -> Collection:
    if options.overrides:
        raise ConfigError(
            f"{place}: the options {list(options.overrides)} say how a build cuts, and these shards are cut. Leave "
            "them out, or give the experiments.yaml."
        )
    if isinstance(place, Path) and not (place / MANIFEST).is_file():
        raise ConfigError(f"{place}: {_describe_wrong(place)} Give an experiments.yaml, or a folder that a build made.")
    return ShardCollection(ShardSet.open(place, storage_options=options.storage_options), str(place))


def _describe_wrong(place: Path) -> str:
    if not place.exists():
        return "no such file or folder."
    if place.is_file():
        return f"is a file, and neither a YAML nor a folder with {MANIFEST}."
    if not any(place.iterdir()):
        return f"is an empty folder, without {MANIFEST}."
    if list(place.glob(".build-*")):
        return f"has no {MANIFEST}: a build began there and has not ended. Run it again to end it."
    yamls = sorted(path.name for path in place.glob("*.y*ml"))
    return f"has no {MANIFEST}, so it is no set of shards.{f' It holds {yamls[:3]}.' if yamls else ''}"


def inspect_collection(collection: Collection, frames: int, progress: Progress) -> Inspection:
    """Inspect what is opened."""
    tallying = Tallying(collection)
    with progress.stage("cells", len(collection.fovs), "FOVs") as advance:
        for run in collection.runs():
            tallying.add(run)
            advance(len(np.unique(run.fov)), run.y.nbytes + run.x.nbytes)
    tally = tallying.finish()
    places = _choose_places(collection, tally, frames) if collection.is_built or frames > 0 else []
    looks, pairs = [], list[Pair]()
    with progress.stage("pixels", len(collection.experiments) + len(places), "steps") as advance:
        for number in range(len(collection.experiments)):  # before pairs are read, so that it is timed cold
            looks.append(_look(collection, number, places, frames))
            advance(1, 1)
        for run, chosen in places:
            try:
                own = _read_pairs(collection, run, chosen)
            except FovError:  # its frames were looked at before
                own = []
            advance(1, sum(patch.nbytes for pair in own for patch in pair.pixels))
            pairs += own
    unread = [error for look in looks for error in look.unread]
    if unread and not any(look.seen for look in looks):
        raise unread[0]
    looked = [_finish(collection, number, look, pairs) for number, look in enumerate(looks)]
    sizes = collection.find_sizes([look.cuts for look in looks])
    found = list_findings(collection, tally, [(one.channels, one.seen, one.unread) for one in looked])
    return Inspection(
        collection=collection, tally=tally, sizes=sizes, frames=tuple(looked), pairs=tuple(pairs), findings=found
    )


def _choose_places(collection: Collection, tally: Tally, frames: int) -> list[tuple[Run, list[PairPlace]]]:
    """Choose the pairs of every stratum."""
    experiments = {record.name: number for number, record in enumerate(collection.experiments)}
    strata = list(enumerate(tally.stratum_fovs))[:MOST_STRATA]
    each = max(1, min(_PAIRS, _MOST_PAIRS // max(len(strata), 1)))
    sharing = np.zeros(len(experiments), np.int64)
    for _, fovs in strata:
        sharing[[experiments[collection.fovs[fov].experiment] for fov in list(fovs)[:1]]] += 1
    chosen = []
    for stratum, fovs in strata:
        if not fovs:
            continue
        experiment = experiments[collection.fovs[next(iter(fovs))].experiment]
        most = each if collection.is_built else max(1, frames // (4 * int(sharing[experiment])))
        names = choose_fovs(fovs, min(most, each), (stratum,))
        share = -(-each // len(names))
        for fov in names:
            run, tau = collection.take(fov), collection.experiments[experiment].tau_frames
            if collection.is_built:
                own = [pair for draw in range(share) for pair in choose_pairs(run, stratum, tau, 1, draw)]
            else:
                own = choose_pairs(run, stratum, tau, share)
            chosen.append((run, own))
    return chosen


def _read_pairs(collection: Collection, run: Run, chosen: list[PairPlace]) -> list[Pair]:
    rows = [row for pair in chosen for row in (pair.anchor, pair.positive) if row is not None]
    if not rows:
        return []
    patches = iter(collection.read_patches(chosen[0].fov, np.array(rows, np.int64)))
    pairs = []
    for place in chosen:
        own = [row for row in (place.anchor, place.positive) if row is not None]
        pairs.append(
            Pair(
                place=place,
                experiment=run.experiment,
                tracks=tuple(int(run.track_id[run.track[row]]) for row in own),
                t=tuple(int(run.t[row]) for row in own),
                pixels=tuple(next(patches) for _ in own),
            )
        )
    return pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What was seen of an experiment."""

    channels: list[ChannelSums]
    seen: int
    seconds: float
    """Of reading."""
    bytes: int
    cuts: list[FrameCut]
    unread: list[FovError]


def _look(collection: Collection, number: int, places: list[tuple[Run, list[PairPlace]]], frames: int) -> _Look:
    """Look at frames of an experiment: those of its pairs, and others that are spread."""
    record = collection.experiments[number]
    fovs = {place: fov for place, fov in enumerate(collection.fovs) if fov.experiment == record.name}
    wanted: list[tuple[int, int]] = []
    if fovs and not collection.is_built and frames:
        own = [(run, pair) for run, chosen in places if run.experiment == number for pair in chosen]
        rows = [(run, pair.fov, row) for run, pair in own for row in (pair.anchor, pair.positive) if row is not None]
        wanted = choose_frames(fovs, {(fov, int(run.t[row])) for run, fov, row in rows}, frames)
    sums = [ChannelSums(name) for name in record.source_channel]
    seen, seconds, size, cuts, unread = 0, 0.0, 0, list[FrameCut](), list[FovError]()
    for look in collection.look_at_frames(number, wanted):
        if look.error is not None:
            unread.append(look.error)
            continue
        for channel, one in zip(sums, look.channels, strict=True):
            channel.add(one, f"{collection.fovs[look.fov].fov_name} t={look.t}")
        seen, seconds, size = seen + 1, seconds + look.seconds, size + look.bytes
        cuts += [look.cut] if look.cut is not None else []
    return _Look(channels=sums, seen=seen, seconds=seconds, bytes=size, cuts=cuts, unread=unread)


def _finish(collection: Collection, number: int, look: _Look, pairs: list[Pair]) -> Frames:
    """Sum up what was seen of an experiment; after a build its pairs show how bright pixels are."""
    patches = [pixels for pair in pairs if pair.experiment == number for pixels in pair.pixels]
    total, known = collection.count_frames(number), collection.find_statistics(number)
    return Frames(
        seen=look.seen,
        all=total,
        channels=tuple(
            channel.finish(
                [pixels[c] for pixels in patches] if collection.is_built else (), None if known is None else known[c]
            )
            for c, channel in enumerate(look.channels)
        ),
        seconds=(look.seconds + sum(cut.seconds for cut in look.cuts)) / max(look.seen, 1) * total,
        rate=look.bytes / look.seconds if look.seconds else 0.0,
        unread=tuple(str(error) for error in look.unread),
    )
