"""Plans to batches as a training step gets them: read, moved, normalised and augmented by the DataModule's own hooks.

A Trainer is attached that says it is training, so nothing of the way from shards to network is done a second time here.
Augmentations are drawn anew, by the seed; a training draws others, of the same kind.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.preview.company import Company, choose_samples, describe_company
from dynaclr_wds.preview.pixels import Brightness, measure_brightness, measure_filled
from dynaclr_wds.words import count_of

_MOST_BYTES = 1 << 28
"""Of anchors in float32 that are augmented at once; larger batches are cut to their first samples and those shown."""
_TAG = 0x9E3


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which batches to look at."""

    batches: int = 3
    first: int = 0
    """First of them in the epoch, from 0."""
    epoch: int = 0
    samples: int = 8
    """Samples of each batch to keep the pixels of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample of a batch, with its pixels."""

    anchor: Mapping[str, Any]
    """Who it is, as `anchor_meta` says."""
    positive: Mapping[str, Any]
    plain: Float32[np.ndarray, "two c z y x"]
    """Anchor and positive, normalised and cropped, but not augmented."""
    seen: Float32[np.ndarray, "two c z2 y2 x2"]
    """Anchor and positive as the network sees them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenBatch:
    """A batch, looked at."""

    company: Company
    channels: tuple[str, ...]
    """Name of each channel; where experiments of the batch name it differently, all its names."""
    dropout: Mapping[int, float]
    """Channel → probability that a training drops it."""
    samples: tuple[Sample, ...]
    names: tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...]
    """Who anchor and positive of every sample are."""
    plain: Brightness
    """Of anchors and positives before augmentation."""
    seen: Brightness
    """Of what the network sees."""
    filled: float
    """Share of pixels that augmentations fill, as corners of patches that are turned."""
    augmented: int
    """Samples that were augmented to be measured: all of them, unless the batch is large."""


def attach_trainer(data: MultiExperimentDataModule, epoch: int) -> None:
    """Give a DataModule a Trainer that is in an epoch of a training on the CPU."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it lists devices, which play no part
    try:
        quiet: dict[str, Any] = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = Trainer(accelerator="cpu", devices=1, use_distributed_sampler=False, **quiet)
    finally:
        logger.setLevel(level)
    trainer.state.fn = TrainerFn.FITTING
    trainer.training = True
    trainer.fit_loop.epoch_progress.current.completed = epoch
    data.trainer = trainer


def look_at(data: MultiExperimentDataModule, chosen: Chosen) -> Iterator[SeenBatch]:
    """Read batches of an epoch and look at each.

    Parameters
    ----------
    data
        After `attach_trainer` and `setup("fit")`.
    chosen
        Which batches.

    Raises
    ------
    ConfigError
        The epoch has fewer batches.
    """
    sampler = data.train_sampler
    if sampler is None:
        raise ConfigError("The DataModule has no sampler yet. Call attach_trainer and setup('fit') before look_at.")
    sampler.set_epoch(chosen.epoch)
    _check_batches(sampler, chosen)
    here = {"epoch": chosen.epoch, "position": chosen.first, "steps": chosen.first}
    data.load_state_dict({**data.state_dict(), **here})
    with _reading_here(data):
        batches = data.train_dataloader()
        for number, batch in enumerate(islice(batches, chosen.batches), start=chosen.first):
            company = describe_company(sampler.plan(number), sampler.index, sampler.epoch_config)
            yield _look(data, batch, company, chosen)


def _check_batches(sampler: FlexibleBatchSampler, chosen: Chosen) -> None:
    there, last = sampler.global_batches, chosen.first + chosen.batches
    if last > there:
        raise ConfigError(
            f"Batches {chosen.first + 1} to {last} are asked for, but an epoch has "
            f"{count_of(there, 'batch', 'batches')} of {sampler.config.batch_size}. Ask for fewer (--batches), or for "
            "earlier ones (--from)."
        )


@contextmanager
def _reading_here(data: MultiExperimentDataModule) -> Iterator[None]:
    """Read in this thread, so that no batch is read ahead that nobody looks at."""
    workers = data.num_workers
    data.num_workers = 0
    try:
        yield
    finally:
        data.num_workers = workers


def _look(data: MultiExperimentDataModule, batch: dict[str, Any], company: Company, chosen: Chosen) -> SeenBatch:
    names = tuple((batch["anchor_meta"].glance(n), batch["positive_meta"].glance(n)) for n in range(len(company)))
    shown = choose_samples(company.part_of, chosen.samples)
    places = _choose_augmented(batch, shown)
    part = batch if len(places) == len(company) else take_samples(batch, places)
    plain, seen = (_transform(data, part, company.number, chosen.epoch, training=on) for on in (False, True))
    at = np.searchsorted(places, shown).tolist()
    samples = tuple(
        Sample(anchor=names[n][0], positive=names[n][1], plain=_pair(plain, place), seen=_pair(seen, place))
        for n, place in zip(shown.tolist(), at, strict=True)
    )
    dropped = data.transforms[batch["anchor"].shape[1]].channel_dropout
    return SeenBatch(
        company=company,
        channels=_name_channels(data, [name["experiment"] for name, _ in names], plain["anchor"].shape[1]),
        dropout=dict.fromkeys(dropped.channels if dropped.p else (), dropped.p),
        samples=samples,
        names=names,
        plain=measure_brightness(plain["anchor"], plain["positive"]),
        seen=measure_brightness(seen["anchor"], seen["positive"]),
        filled=_measure_filled(data, part, company.number),
        augmented=len(places),
    )


def _name_channels(data: MultiExperimentDataModule, experiments: Sequence[str], count: int) -> tuple[str, ...]:
    named = [data.channel_names(experiment) for experiment in dict.fromkeys(experiments)]
    names = ["/".join(dict.fromkeys(of)) for of in zip(*named, strict=False)]
    return tuple(names if len(names) == count else [f"channel {c}" for c in range(count)])


def _transform(
    data: MultiExperimentDataModule, batch: dict[str, Any], number: int, epoch: int, *, training: bool
) -> dict[str, Any]:
    """Do to a batch what the Trainer has done to it; with `training=False`, all but what is random."""
    trainer = data.trainer
    assert trainer is not None
    with isolate_rng():
        seed = int(np.random.default_rng([_TAG, data.seed, epoch, number]).integers(1 << 31))
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  foreign transforms draw from it
        trainer.training = training
        try:
            moved = data.transfer_batch_to_device(dict(batch), torch.device("cpu"), 0)
            result: dict[str, Any] = data.on_after_batch_transfer(moved, 0)
        finally:
            trainer.training = True
    return result


def _measure_filled(data: MultiExperimentDataModule, batch: Mapping[str, Any], number: int) -> float:
    with isolate_rng():
        torch.manual_seed(number)
        return measure_filled(data.transforms[batch["anchor"].shape[1]], batch["anchor"])


def _choose_augmented(batch: Mapping[str, Any], shown: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " n"]:
    anchor: Tensor = batch["anchor"]
    most = max(_MOST_BYTES // (4 * anchor[0].numel()), len(shown))
    others = np.setdiff1d(np.arange(len(anchor)), shown)[: max(most - len(shown), 0)]
    return np.sort(np.concatenate([shown, others])).astype(np.int64)


def take_samples(value: Any, places: Int64[np.ndarray, " n"]) -> Any:
    """Take some samples of a batch, with all that belongs to them."""
    if isinstance(value, Mapping):
        return {key: take_samples(one, places) for key, one in value.items()}
    if isinstance(value, Tensor):
        return value[torch.from_numpy(places)]
    return value.take(places)


def _pair(batch: Mapping[str, Any], place: int) -> Float32[np.ndarray, "two c z y x"]:
    return np.stack([batch[key][place].numpy() for key in ("anchor", "positive")])
