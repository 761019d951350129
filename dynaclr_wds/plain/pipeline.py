"""Makes triplet batches from shard URLs alone: a plain WebDataset pipeline, for people who have no index.

It needs no manifest: shards are read front to back, triplets are drawn from the JSON of each clip and mixed in a
shuffle buffer. It keeps few of the laws of `FlexibleBatchSampler`. A batch holds whatever the buffer holds, so nothing
is promised about experiments, conditions, focal windows, or how often a lineage stands in a batch; ranks may get
unequal numbers of batches; a stopped run can't be resumed. Every observation that has a temporal candidate is an anchor
once in a pass. Its positive depends on seed, pass and clip alone. Experiments whose patches differ in shape can't
share a batch here: make one pipeline for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial as partial_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import webdataset as wds

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plain.clips import collate_triplets, sample_triplets
from dynaclr_wds.plain.tars import read_clips
from dynaclr_wds.plan.rng import Tag, make_generator
from dynaclr_wds.storage.location import parse_place
from dynaclr_wds.storage.options import parse_options
from dynaclr_wds.tau import TauHours
from dynaclr_wds.words import count_of

if TYPE_CHECKING:
    from webdataset import DataPipeline
else:
    DataPipeline = object  # checkers at run time trip over its old generic bases

_MOST_WORKERS = 1024
_SHELL = "pipe:"
_SHARDS, _BUFFER = 1, 2  # parts of the generators' keys; 0 is the clips'


def triplet_pipeline(
    urls: str | Sequence[str],
    *,
    batch_size: int,
    tau_range_hours: TauHours | None = None,
    tau_decay_rate: float = 2.0,
    shuffle: int = 1000,
    seed: int = 0,
    partial: bool = True,
    nodesplitter: Callable[[Iterable[Any]], Iterable[Any]] = wds.split_by_node,
    storage_options: Mapping[str, Any] | None = None,
) -> DataPipeline:
    """Make a pipeline of triplet batches.

    Parameters
    ----------
    urls
        Shards: paths, or URLs of `s3://`, `gs://`, `az://` or `https://`, as a list or with braces
        (`a/mock-{000000..000007}.tar`).
    batch_size
        Triplets in a batch.
    tau_range_hours
        Shortest and longest time from anchor to positive in hours, within the range that the shards were built for;
        None = that range. An observation without a candidate in it is no anchor.
    tau_decay_rate
        Decay of P(τ) over the range; 0 draws τ uniformly.
    shuffle
        Triplets in the shuffle buffer, which holds two patches each; 0 keeps the order of the shards.
    seed
        Decides the order of the shards, the draws, and the order in which the buffer gives triplets back.
    partial
        Also yield the last, smaller batch.
    nodesplitter
        Chooses the shards of a rank: a function from an iterable of shards to another. Give every rank the same
        `urls` and `seed`.
    storage_options
        How shards in object storage are reached; see `dynaclr_wds.storage.options`.

    Returns
    -------
    A `wds.DataPipeline`, to be iterated or given to `wds.WebLoader(pipeline, batch_size=None, num_workers=4)`. A batch
    is a dict like that of `MultiExperimentTripletDataset`: `anchor`, `positive` (B, C, Z, Y, X) in the stored dtype
    (float32 if shards differ); `anchor_meta`, `positive_meta`: one dict per sample, with every label;
    `anchor_norm_meta`, `positive_norm_meta`: level → float32 (B, C, 8), the last axis as `contract.STATISTICS`.

    Raises
    ------
    ValueError
        A value out of range, a URL that runs a shell command, or a path that is no file; while iterating, a τ range
        that the shards were not built for.
    FormatError
        While iterating: a shard that is damaged, cut off or of another format, with the byte where that was noticed;
        experiments with patches of different shapes.

    Notes
    -----
    Each worker of each rank reads its own shards, so have at least as many shards as workers in all. Ranks see
    different numbers of batches; in distributed training end them alike with `.with_epoch(nbatches=…)`.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("shuffle", shuffle, 0), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value} must be >= {least}.")
    passes = _Passes()
    return wds.DataPipeline(
        _ShardOrder(_parse_urls(urls), seed, passes),
        nodesplitter,
        wds.split_by_worker,
        partial_of(read_clips, options=parse_options(storage_options)),
        _Draw(tau_range_hours, tau_decay_rate, seed, passes),
        _Buffer(shuffle, seed, passes),
        wds.batched(batch_size, collation_fn=collate_triplets, partial=partial),
    )


def _parse_urls(urls: str | Sequence[str]) -> list[str]:
    """Expand braces and refuse a URL that would run a program.

    Raises
    ------
    ValueError
        No URL, one that runs a shell command, or a path that is no file.
    """
    found = wds.shardlists.expand_urls(urls) if isinstance(urls, str) else list(urls)
    if not found or not all(found):
        raise ValueError(f"urls={urls!r} names no shard. Give paths or URLs of .tar files.")
    for url in found:
        if url.lower().startswith(_SHELL):
            raise ValueError(f"urls: {url!r} runs a shell command, which is not done here. Give a path or a URL.")
    places = [(url, parse_place(url, "urls")) for url in found]
    absent = [(url, place) for url, place in places if isinstance(place, Path) and not place.is_file()]
    if absent:
        url, place = absent[0]
        count = f"{len(absent)} of {count_of(len(found), 'shard')}" if len(found) > 1 else "it"
        what = "is a folder, not a tar" if place.is_dir() else "is no file"
        raise ConfigError(
            f"urls: {url!r} {what}; every shard must be there before the first is read, and {count} "
            f"{'is' if len(absent) == 1 else 'are'} not. Give the .tar files of a build, as in "
            'sorted(map(str, Path("shards").rglob("*.tar"))).'
        )
    return found


class _Passes:
    """Counts the passes over the data, in memory that worker processes share with their parent.

    A loader starts new workers for each pass unless they are persistent; counts of their own would start at 0 again.
    """

    def __init__(self) -> None:
        self._begun = torch.zeros(_MOST_WORKERS, dtype=torch.int64)
        self._begun.share_memory_()  # type: ignore[no-untyped-call]
        self.now = 0

    def begin(self) -> int:
        """Start the next pass of this worker and return its number."""
        info = torch.utils.data.get_worker_info()
        worker = 0 if info is None else info.id
        self.now = int(self._begun[worker])
        self._begun[worker] += 1
        return self.now


class _ShardOrder:
    """Lists the shards in a new order each pass: the first stage."""

    def __init__(self, urls: list[str], seed: int, passes: _Passes) -> None:
        self._urls = urls
        self._seed = seed
        self._passes = passes

    def __call__(self) -> Iterator[dict[str, str]]:
        rng = make_generator(Tag.PLAIN, self._seed, _SHARDS, self._passes.begin())
        return iter([{"url": self._urls[k]} for k in rng.permutation(len(self._urls))])


class _Draw:
    """Draws a triplet for every sample of a clip that has a candidate."""

    def __init__(self, tau_range_hours: TauHours | None, decay: float, seed: int, passes: _Passes) -> None:
        self._hours = tau_range_hours
        self._decay = decay
        self._seed = seed
        self._passes = passes

    def __call__(self, clips: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        now = self._passes.now
        for clip in clips:
            yield from sample_triplets(clip, self._hours, self._decay, (self._seed, now))


class _Buffer:
    """Mixes triplets: holds `size` of them, and each new one replaces a random one, which is yielded."""

    def __init__(self, size: int, seed: int, passes: _Passes) -> None:
        self._size = size
        self._seed = seed
        self._passes = passes

    def __call__(self, triplets: Iterable[Any]) -> Iterator[Any]:
        rng = make_generator(Tag.PLAIN, self._seed, _BUFFER, self._passes.now)
        held: list[Any] = []
        for triplet in triplets:
            if len(held) < self._size:
                held.append(triplet)
            elif self._size:
                place = int(rng.integers(self._size))
                held[place], triplet = triplet, held[place]
                yield triplet
            else:
                yield triplet
        for place in rng.permutation(len(held)):
            yield held[place]
