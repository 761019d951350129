"""Index arrays to batches: the cascade that composes them, as a batch sampler.

Group by weight, leak, balance of values, temporal focus: this is the reference implementation's cascade
(mehta-lab/VisCy, `FlexibleBatchSampler`), with promises that it doesn't make: quotas hold jointly and are exact, no two
anchors of a batch share a lineage while the pool allows it, an epoch covers what it can, ranks do equal work, and
batch i can be planned without the batches before it. `docs/SAMPLING.md` explains how.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.contract import checksum, format_checksum
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.audit.bytes_read import account_bytes
from dynaclr_wds.plan.audit.ledger import Ledger
from dynaclr_wds.plan.audit.report import Report
from dynaclr_wds.plan.batch import BatchPlan, BlockReads
from dynaclr_wds.plan.compose.focal_window import check_time
from dynaclr_wds.plan.compose.stand_ins import StandIns
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.identity import list_differences
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.streaming.mixer import Mixer, MixerStream
from dynaclr_wds.plan.streaming.planner import BlockSchedule, StreamPlanner, WholeStream
from dynaclr_wds.words import count_of

_LISTED = 64  # strata that a state lists one by one
_THREADS = 2  # lay out streams
_SAMPLED_STREAMS = 2  # streams are dealt alike, and each has to be laid out before a batch of it can be planned


class FlexibleBatchSampler:
    """Batches of row numbers, composed exactly; a `batch_sampler` for `ThreadDataLoader`.

    Parameters
    ----------
    index
        Anchors that may be drawn.
    config
        What is asked of a batch.
    rank, world_size
        Number of this process, and how many there are. The global sequence of batches does not depend on them: at
        each step, the ranks take the next `world_size` batches of it.
    window_bytes
        None: exact mode, everything is within reach. Else streaming: most bytes of blocks that are within reach at
        a time, over all ranks.
    num_streams
        Streaming only: logical streams, a multiple of `world_size`; 8 by default, or `world_size` if that is more.

    Raises
    ------
    ConfigError
        There is no anchor, the config names what isn't there, or the window is too small.
    """

    def __init__(
        self,
        index: PlanIndex,
        config: SamplingConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        window_bytes: int | None = None,
        num_streams: int | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank={rank} must be in [0, world_size={world_size}).")
        if not len(index.row):
            raise ConfigError(
                "There is no anchor to draw: no sample is left, or none has a positive. "
                "Check the experiments, wells and tau_range asked for."
            )
        if window_bytes is not None and window_bytes <= 0:
            raise ConfigError(
                f"window_bytes={window_bytes:,} must be > 0. Give the bytes of memory to use, or None for exact mode."
            )
        self.index = index
        self.config = config = _settle(config, index)
        self.rank = rank
        self.world_size = world_size
        self.window_bytes = window_bytes
        self.epoch = 0
        self.start = 0
        self.steps_before = 0
        self.delivered = 0
        self._anchors_xxh3 = format_checksum(checksum(np.ascontiguousarray(index.row)))
        if window_bytes is None:
            self._planners = [StreamPlanner(WholeStream(index, config), config, 0)]
        else:
            streams = _check_streams(num_streams, world_size)
            mixer = Mixer(index, config, window_bytes, streams)
            self._planners = [StreamPlanner(MixerStream(mixer, k), config, k) for k in range(streams)]

    def __repr__(self) -> str:
        """Say how it reads, from what, and how much an epoch holds, in one line."""
        mode = "exact"
        if self.window_bytes is not None:
            mode = f"streaming in {self.window_bytes:,} bytes and {count_of(self.num_streams, 'stream')}"
        experiments = count_of(len({s.experiment for s in self.index.strata}), "experiment")
        return (
            f"FlexibleBatchSampler({mode}, {experiments}, {count_of(len(self.index.row), 'sample')}, "
            f"{count_of(self.global_batches, 'batch', 'batches')} of {self.config.batch_size})"
        )

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

    def stand_ins(self, plan: BatchPlan, place: int, taken: Collection[int]) -> StandIns:
        """List samples that may take the place of one of a batch that can't be read, the first to prefer first.

        They are of its stratum and within reach of the batch, the same in every run. Those whose lineage is in `taken`
        come last.
        """
        streams = len(self._planners)
        planner = self._planners[plan.number % streams]
        return planner.stand_ins(self.epoch, plan.number // streams, plan, place, taken)

    def sample_batches(self, most: int) -> Int64[np.ndarray, " n"]:
        """Choose batches of the epoch that stand for all of it, as numbers of the global sequence, ascending.

        All of them if there are no more than `most`. Else whole rounds, evenly spread over the rounds of all groups, of
        a few streams: what is planned together is looked at together, which is cheapest.
        """
        if self.global_batches <= most:
            return np.arange(self.global_batches)
        streams = min(len(self._planners), _SAMPLED_STREAMS)
        parts = [self._planners[k].sample_batches(self.epoch, most // streams) for k in range(streams)]
        return np.sort(np.concatenate([len(self._planners) * part + k for k, part in enumerate(parts)]))

    @property
    def num_streams(self) -> int:
        """Logical streams; 1 in exact mode."""
        return len(self._planners)

    def blocks(self, stream: int) -> BlockSchedule | None:
        """Blocks that a stream of the epoch reads; None in exact mode."""
        return self._planners[stream].epoch(self.epoch).blocks

    def block_reads(self) -> BlockReads | None:
        """Put the blocks that this rank's streams read into one order, from where the epoch stands; None in exact mode.

        The schedules of the streams say the order; what a batch needs comes before what a later one does.
        """
        if self.window_bytes is None:
            return None
        numbers = range(self.start + self.rank, self.start + self.rank + self.num_streams, self.world_size)
        first = {n % self.num_streams: n // self.num_streams for n in numbers}
        streams = list(first)
        schedules = [self.blocks(streams[0])]  # finds what the others begin with
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="dynaclr-plan") as pool:
            schedules += pool.map(self.blocks, streams[1:])
        parts = []
        for (stream, batch), blocks in zip(first.items(), schedules, strict=True):
            assert blocks is not None
            at = np.flatnonzero(blocks.retire >= batch)
            columns = (blocks.fetch, blocks.admit, np.full(len(blocks.block), stream), blocks.block, blocks.retire)
            parts.append(np.stack([c[at] for c in (*columns, blocks.bytes)]))
        table = np.concatenate(parts, axis=1)
        # fetch and admit both rise within a stream
        _, admit, stream, block, retire, size = table[:, np.lexsort((table[2], table[1], table[0]))]
        return BlockReads(
            stream=stream,
            block=block,
            admit=admit,
            retire=retire,
            bytes=size,
            first=first,
            num_streams=self.num_streams,
            limit_bytes=self.window_bytes // self.world_size,
        )

    @property
    def epoch_config(self) -> SamplingConfig:
        """What is asked of a batch in the epoch at hand, where weights change with the epoch."""
        return self.config.of_epoch(self.epoch)

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
        names = (s.name for s in self.index.strata)
        anchors: dict[str, int] | str = dict(zip(names, self.index.sizes.tolist(), strict=True))
        if len(anchors) > _LISTED:
            anchors = hashlib.sha256(json.dumps(anchors).encode()).hexdigest()
        positives, choices = dataclasses.asdict(self.index.positives), self.index.choices
        return {
            **self.config.to_plain(),
            "window_bytes": self.window_bytes,
            "num_streams": self.num_streams,
            "batch_group_by": list(self.index.batch_group_by),
            "stratify_by": list(self.index.stratify_by),
            "positives": {k: list(v) if isinstance(v, tuple) else v for k, v in positives.items()},
            "channels": None if choices is None else {k: [list(of) for of in v] for k, v in choices.labels.items()},
            "anchors": anchors,
            "anchors_xxh3": self._anchors_xxh3,
            "tau_frames": {s.experiment: list(s.tau_frames) for s in self.index.strata},
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands: epoch, position in the global sequence, steps that each rank has made.

        With it goes what the order depends on; plain values, a line per stratum, or a digest of many.
        """
        return {
            "epoch": self.epoch,
            "position": self.position,
            "steps": self.steps_before + self.delivered,
            "identity": self.identity,
            "chosen_by": self.index.chosen_by,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where another sampler stood, whatever its world size.

        Raises
        ------
        ConfigError
            The state is of another order: another seed, sampling, window or set of anchors.
        """
        chosen_by = (self.index.chosen_by, str(state.get("chosen_by")))
        other = list_differences(self.identity, state["identity"], chosen_by)
        if other:
            raise ConfigError(
                f"The checkpoint was written with {'; '.join(other)} now. The order depends on it: set what it was "
                "to resume, or start anew without ckpt_path."
            )
        self.epoch, self.start = int(state["epoch"]), int(state["position"])
        self.steps_before, self.delivered = int(state["steps"]), 0

    @property
    def position(self) -> int:
        """Batches of the global sequence that have reached the training loops of all ranks."""
        return self.start + self.delivered * self.world_size

    def report(
        self,
        batches: int | None = None,
        *,
        held_peak_bytes: int | None = None,
        substituted: Mapping[str, int] | None = None,
    ) -> Report:
        """Plan the epoch, all ranks, and say what it holds; costs what planning it costs.

        Parameters
        ----------
        batches
            How many batches of the global sequence to count, from its beginning; None = all that the ranks share out.
            What streaming reads and holds is always counted for the whole epoch.
        held_peak_bytes
            Most bytes of blocks that were held at a time, as the loader measured; reported beside the planned peak.
        substituted
            Shard → samples that could not be read, as the loader counted.
        """
        ledger = Ledger(self.index, self.epoch_config, substituted)
        usable = self.global_batches // self.world_size * self.world_size
        for number in range(usable if batches is None else batches):
            ledger.add(self.plan(number))
        schedules = [blocks for k in range(self.num_streams) if (blocks := self.blocks(k)) is not None]
        each = self.global_batches // self.num_streams
        streaming = account_bytes(self.index, schedules, each) if schedules else {}
        if held_peak_bytes is not None:
            streaming["held_peak_bytes"] = float(held_peak_bytes)
        return ledger.report(streaming)


def _settle(config: SamplingConfig, index: PlanIndex) -> SamplingConfig:
    """Ask nothing of groups and values where there are none; refuse what the index has no times for."""
    check_time(config, [s.experiment for s in index.strata if s.interval_minutes == 0])
    if not index.batch_group_by:
        config = dataclasses.replace(config, experiment_aware=False)
    return config if index.stratify_by else dataclasses.replace(config, condition_balanced=False)


def _check_streams(num_streams: int | None, world_size: int) -> int:
    streams = max(8, world_size) if num_streams is None else num_streams
    if streams < 1 or streams % world_size:
        fitting = world_size * max(1, -(-streams // world_size))
        raise ConfigError(
            f"num_streams={streams} must be a multiple of the world size, {world_size}, and at least that, so that "
            f"every rank runs as many streams. Give num_streams={fitting}, or start another number of processes."
        )
    return streams
