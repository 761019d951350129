"""Stops or requeues a training where its state is whole: after a step, between epochs, or in a validation."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from dynaclr_wds.train.stop_signals import Stopped, StopSignals


class TrainingStops:
    """Keeps Ctrl-C, SIGTERM and SLURM's signal to requeue until a training can follow them.

    Ranks agree, so that all of them save and stop at the same step, whichever got the signal.
    """

    def __init__(self) -> None:
        self._signals = StopSignals(waits=True)

    def install(self, trainer: Trainer) -> None:
        """Receive signals from now on, in place of Lightning, whose handlers act in the middle of a step."""
        came_before = trainer.received_sigterm
        self._signals.install()
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal:
            self._signals.defer(environment.requeue_signal)
        if came_before:
            self._signals.received = signal.SIGTERM

    def restore(self) -> None:
        """Give the signals back."""
        self._signals.restore()

    def requeue_if_asked(self, trainer: Trainer) -> None:
        """Let Lightning save and requeue, if SLURM asked any rank to."""
        if self._agree(trainer)[0]:
            self._signals.run_deferred()

    def follow(self, trainer: Trainer, save: Callable[[], None] | None) -> None:
        """Requeue, and stop, if any rank was asked to.

        Parameters
        ----------
        trainer
            Its state is whole.
        save
            Saves a checkpoint before the stop; None = there is one of this state.

        Raises
        ------
        Stopped
            Somebody asked to stop.
        """
        requeue, stop = self._agree(trainer)
        if requeue:
            self._signals.run_deferred()
        if stop:
            if save is not None:
                save()
            raise Stopped(self._signals.received or signal.SIGTERM)

    def _agree(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether any rank was asked to requeue, and to stop."""
        asked = self._signals.has_deferred, self._signals.received is not None
        if trainer.world_size == 1:
            return asked
        # Lightning waits for the device in every step of several ranks already, so this costs nothing more
        flags = torch.tensor(asked, dtype=torch.int, device=trainer.strategy.root_device)
        counts = trainer.strategy.reduce(flags, reduce_op="sum")
        return bool(counts[0]), bool(counts[1])


def is_in_earnest(trainer: Trainer) -> bool:
    """Whether this is a training: no other command, no sanity check before it, no trial with `fast_dev_run`."""
    trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not trial


def is_between_steps(trainer: Trainer) -> bool:
    """Whether, after a batch, nothing follows before the next batch: no validation and no end of the epoch."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    return not loop.batch_progress.is_last_batch and not (fetcher and loop._should_check_val_fx(fetcher))


@contextmanager
def unfinished_validation(trainer: Trainer) -> Iterator[None]:
    """Let a checkpoint say that the validation at hand is in its first batch, so that it is made again on resume."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    trackers = (progress.total, progress.current)
    before = [dict(vars(tracker)) for tracker in trackers]
    try:
        for tracker in trackers:
            vars(tracker).update(ready=1, started=1, processed=0, completed=0)
        yield
    finally:
        for tracker, values in zip(trackers, before, strict=True):
            vars(tracker).update(values)


def forget_unfinished_validation(trainer: Trainer) -> None:
    """Count a validation that is made again from its first batch; else later checkpoints would call it cut off too."""
    validation = trainer.fit_loop.epoch_loop.val_loop
    if validation.restarted_mid_evaluation:
        validation.batch_progress.total.reset()
