"""Index arrays to batches: the cascade that composes them, as a batch sampler.

Experiment by weight, leak, condition balance, temporal focus: the reference implementation's cascade
(mehta-lab/VisCy, `FlexibleBatchSampler`), under laws that it doesn't keep: quotas hold jointly and are exact, no two
anchors of a batch share a lineage while the pool allows it, an epoch covers what it can, ranks do equal work, and
batch i can be planned without the batches before it. Pure: opens nothing, decides everything. See `docs/SAMPLING.md`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.audit.bytes_read import account_traffic
from dynaclr_wds.plan.audit.ledger import Ledger, Report
from dynaclr_wds.plan.batch import BatchPlan, BlockReads
from dynaclr_wds.plan.compose.negatives import Offer, make_offer, sample_negatives
from dynaclr_wds.plan.compose.positives import sample_positives
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.rng import Tag, make_generator
from dynaclr_wds.plan.streaming.mixer import Mixer, MixerStream
from dynaclr_wds.plan.streaming.planner import BlockSchedule, StreamPlanner, WholeStream

_CHUNK = 1 << 16


class FlexibleBatchSampler:
    """Batches of row numbers, composed exactly; a `batch_sampler` for `ThreadDataLoader`.

    Parameters
    ----------
    index
        Anchors that may be drawn.
    config
        What is asked of a batch.
    rank, world_size
        Which of how many processes this is. The global sequence of batches does not depend on them: at
        each step, the ranks take the next `world_size` batches of it.
    window
        None: exact mode, everything is within reach. Else streaming: most bytes of blocks that are within reach at
        a time, over all ranks.
    num_streams
        Streaming only: logical streams, a multiple of `world_size`; 8 by default, or `world_size` if that is more.

    Raises
    ------
    ValueError
        There is no anchor, or the config names what isn't there.
    """

    def __init__(
        self,
        index: PlanIndex,
        config: SamplingConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        window: int | None = None,
        num_streams: int | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must be in [0, world_size={world_size}).")
        if not len(index.row):
            raise ValueError("There is no anchor to draw. Check the experiments, wells and tau_range asked for.")
        self.index = index
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.window = window
        self.epoch = 0
        self.start = 0
        self.steps_before = 0
        self.delivered = 0
        if window is None:
            self._planners = [StreamPlanner(WholeStream(index, config), config, 0)]
        else:
            streams = _check_streams(num_streams, world_size)
            mixer = Mixer(index, config, window, streams)
            self._planners = [StreamPlanner(MixerStream(mixer, k), config, k) for k in range(streams)]

    @property
    def global_batches(self) -> int:
        """Batches of an epoch over all ranks."""
        return sum(len(p) for p in self._planners)

    @property
    def sampler(self) -> FlexibleBatchSampler:
        """Itself: where Lightning looks for `set_epoch`."""
        return self

    def __len__(self) -> int:
        """Batches that this rank yields from where the epoch was (re)started: the same on every rank."""
        return (self.global_batches - self.start) // self.world_size

    def __iter__(self) -> Iterator[BatchPlan]:
        """Yield this rank's batches, from where the epoch was (re)started to its end."""
        for step in range(len(self)):
            yield self.plan(self.start + step * self.world_size + self.rank)

    def plan(self, number: int) -> BatchPlan:
        """Plan one batch of the epoch's global sequence; any one, in any order."""
        streams = len(self._planners)
        planner = self._planners[number % streams]
        return planner.plan(self.epoch, number // streams, number)

    @property
    def num_streams(self) -> int:
        """Logical streams; 1 in exact mode."""
        return len(self._planners)

    def blocks(self, stream: int) -> BlockSchedule | None:
        """Blocks that a stream of the epoch reads; None in exact mode."""
        return self._planners[stream].epoch(self.epoch).blocks

    def block_reads(self) -> BlockReads | None:
        """Put the blocks that the rank's streams read into one order, from where the epoch stands."""
        if self.window is None:
            return None
        first = {}
        for number in range(self.start + self.rank, self.start + self.rank + self.num_streams):
            if (number - self.start - self.rank) % self.world_size == 0:
                first[number % self.num_streams] = number // self.num_streams
        parts = []
        for stream, batch in first.items():
            blocks = self.blocks(stream)
            assert blocks is not None
            at = np.flatnonzero(blocks.retire >= batch)
            columns = (blocks.fetch, blocks.admit, np.full(len(blocks.block), stream), blocks.block, blocks.retire)
            parts.append(np.stack([c[at] for c in (*columns, blocks.bytes)]))
        table = np.concatenate(parts, axis=1)
        # fetch and admit both rise within a stream, so what a batch needs comes before what a later one does
        _, admit, stream, block, retire, size = table[:, np.lexsort((table[2], table[1], table[0]))]
        return BlockReads(
            stream=stream,
            block=block,
            admit=admit,
            retire=retire,
            bytes=size,
            first=first,
            num_streams=self.num_streams,
            limit_bytes=self.window // self.world_size,
        )

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch, from its first batch; the epoch at hand goes on where it was."""
        if epoch != self.epoch:
            self.epoch, self.start, self.steps_before, self.delivered = epoch, 0, 0, 0

    def deliver(self, steps: int) -> None:
        """Note that `steps` batches of each rank have reached the training loop since the (re)start."""
        self.delivered = steps

    @property
    def identity(self) -> dict[str, Any]:
        """All that the order depends on beside the epoch, as plain values."""
        sizes = zip(self.index.strata, self.index.sizes, strict=True)
        return {
            **dataclasses.asdict(self.config),
            "window": self.window,
            "num_streams": self.num_streams,
            "anchors": {f"{s.experiment}/{s.condition}": int(n) for s, n in sizes},
            "tau_frames": {s.experiment: list(s.tau_frames) for s in self.index.strata},
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands: epoch, position in the global sequence, steps that each rank has made.

        With it goes what the order depends on; plain values, a line per stratum however large the set is.
        """
        return {
            "epoch": self.epoch,
            "position": self.position,
            "steps": self.steps_before + self.delivered,
            "identity": self.identity,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another sampler stood, whatever its world size.

        Raises
        ------
        ValueError
            The state is of another order: another seed, sampling, window or set of anchors.
        """
        mine, theirs = self.identity, state["identity"]
        other = [f"{k}={theirs.get(k)!r}, but {k}={v!r}" for k, v in mine.items() if theirs.get(k) != v]
        if other:
            raise ValueError(
                f"The checkpoint was written with {'; '.join(other)} now. The order depends on it: set what it was "
                "to go on, or start anew without ckpt_path."
            )
        self.epoch, self.start = int(state["epoch"]), int(state["position"])
        self.steps_before, self.delivered = int(state["steps"]), 0

    @property
    def position(self) -> int:
        """Batches of the global sequence that have reached the training loops of all ranks."""
        return self.start + self.delivered * self.world_size

    def report(self, batches: int | None = None, *, held_peak_bytes: int | None = None) -> Report:
        """Plan the epoch, all ranks, and say what it holds; costs what planning it costs.

        Parameters
        ----------
        batches
            Of the global sequence, from its beginning; None = all that the ranks share out. What streaming reads and
            holds is of the whole epoch in any case.
        held_peak_bytes
            Most bytes of blocks that were held at a time, as the loader measured; reported beside the planned peak.
        """
        ledger = Ledger(self.index, self.config)
        usable = self.global_batches // self.world_size * self.world_size
        for number in range(usable if batches is None else batches):
            ledger.add(self.plan(number))
        schedules = [blocks for k in range(self.num_streams) if (blocks := self.blocks(k)) is not None]
        each = self.global_batches // self.num_streams
        streaming = account_traffic(self.index, schedules, each) if schedules else {}
        if held_peak_bytes is not None:
            streaming["held_peak_bytes"] = float(held_peak_bytes)
        return ledger.report(streaming or None)


def _check_streams(num_streams: int | None, world_size: int) -> int:
    streams = max(8, world_size) if num_streams is None else num_streams
    if streams < 1 or streams % world_size:
        fitting = world_size * max(1, -(-streams // world_size))
        raise ValueError(
            f"num_streams={streams} must be a multiple of the world size, {world_size}, so that every rank runs as "
            f"many streams. Give num_streams={fitting}, or start another number of processes."
        )
    return streams


def plan_validation(index: PlanIndex, config: SamplingConfig) -> BatchPlan:
    """List every anchor once, with a positive (and a negative, if asked for) that depends on the seed alone.

    The first anchor of every clip comes first, then every second one, …: so a batch of consecutive
    samples holds few of a lineage, as far as there are clips.
    """
    clip = index.clip(np.arange(len(index.row)))
    start = np.flatnonzero(np.diff(clip, prepend=-1))
    rank = np.arange(len(clip)) - np.repeat(start, np.diff(np.append(start, len(clip))))
    anchors = np.lexsort((clip, rank))
    rng = make_generator(Tag.POSITIVE, config.seed)
    chunks = [anchors[a : a + _CHUNK] for a in range(0, len(anchors), _CHUNK)]
    positive = [sample_positives(rng, index, chunk, config.tau_decay_rate) for chunk in chunks]
    negative = None
    if config.return_negative:
        rng = make_generator(Tag.NEGATIVE, config.seed)
        found = [_validation_negatives(rng, index, chunk) for chunk in chunks]
        negative = index.row[np.concatenate(found)].astype(np.int64)
    return BatchPlan(
        number=0,
        anchor=index.row[anchors].astype(np.int64),
        positive=np.concatenate(positive) if positive else np.zeros(0, np.int64),
        negative=negative,
    )


def _validation_negatives(
    rng: np.random.Generator, index: PlanIndex, anchors: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    names = [s.experiment for s in index.strata]

    def draw(experiment: str, count: int) -> Offer:
        # the strata of an experiment stand together
        first = names.index(experiment)
        last = first + names.count(experiment)
        return make_offer(index, rng.integers(index.first[first], index.first[last], count))

    return sample_negatives(rng, index, anchors, float("nan"), 0.0, draw)
