"""Stops a training whose loss is not finite, and names the batch."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dynaclr_wds.errors import NotFiniteError
from dynaclr_wds.transforms.batch import IMAGE_KEYS
from dynaclr_wds.words import count_of

NAMED_CELLS = 5
"""Cells that an error lists."""
STEPS_LATE = 4
"""Steps by which a loss on a GPU may be known late."""
STEPS_UNCHECKED = 32
"""The same on other accelerators, where looking at a loss waits for all that was queued before it."""

ADVICE = (
    "lower model.lr, lengthen model.warmup_steps, or compute in more digits (trainer.precision=32-true, or bf16-mixed "
    "in place of 16-mixed)"
)


class FiniteLoss(Callback):
    """Stop a training whose loss is NaN or infinite, with an error that names the batch and its cells.

    On a CPU the loss is checked before the weights change. On a GPU its value is copied while the GPU goes on
    computing, and is looked at up to four steps later, so that no step waits for it. With each loss comes the sum of
    every input channel, which is not finite if any of its pixels is not.

    Parameters
    ----------
    enabled
        False does nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._batch: tuple[Any, int] = (None, 0)
        self._seen: deque[_Seen] = deque()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an earlier training left."""
        del trainer, pl_module
        self._seen.clear()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch until its loss is known."""
        del trainer, pl_module
        self._batch = (batch, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look at the loss before the weights change."""
        del pl_module
        if self.enabled and not _is_scaled(trainer):
            self._look(trainer, loss, trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at a loss that was scaled before; its scaler leaves out steps that would break the weights."""
        del pl_module, batch, batch_idx
        if self.enabled and _is_scaled(trainer) and outputs is not None:
            self._look(trainer, outputs["loss"] if isinstance(outputs, dict) else outputs, trainer.global_step)
        self._batch = (None, 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last losses of the epoch, before anything is saved."""
        del pl_module
        self.check_all(trainer)

    def check_all(self, trainer: Trainer) -> None:
        """Wait for all losses that were not known yet, and raise for the first that is not finite."""
        while self._seen:
            self._check_first(trainer)

    def _look(self, trainer: Trainer, loss: Tensor, step: int) -> None:
        batch, number = self._batch
        if loss.device.type == "cpu":
            if not bool(loss.isfinite().all()):
                raise_not_finite(trainer, _see(trainer, batch, number, loss, step), step)
            return
        self._seen.append(_see(trainer, batch, number, loss, step))
        while self._seen and self._seen[0].is_known():
            self._check_first(trainer)
        if self._seen and self._seen[0].event is None:  # only CUDA says when a copy is there
            if len(self._seen) >= STEPS_UNCHECKED:
                self.check_all(trainer)
        elif len(self._seen) > STEPS_LATE:
            self._check_first(trainer)

    def _check_first(self, trainer: Trainer) -> None:
        seen = self._seen.popleft()
        if not bool(seen.wait()[0].isfinite()):
            raise_not_finite(trainer, seen, trainer.global_step)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of a step until its loss is known: no pixels.

    `values` is the loss, then the sums of the inputs: per key, a row per sample and a column per channel.
    """

    epoch: int
    step: int
    batch: int
    cells: Any
    inputs: dict[str, tuple[int, int]]
    values: Tensor
    event: torch.cuda.Event | None

    def is_known(self) -> bool:
        """Whether the values have arrived."""
        return self.event is not None and self.event.query()  # type: ignore[no-untyped-call]

    def wait(self) -> Tensor:
        """Return the values, on the CPU."""
        if self.event is not None:
            self.event.synchronize()
        return self.values.cpu()


def _see(trainer: Trainer, batch: Any, number: int, loss: Tensor, step: int) -> _Seen:
    held = batch if isinstance(batch, dict) else {}
    images = {key: held[key].detach() for key in IMAGE_KEYS if isinstance(held.get(key), Tensor) and held[key].ndim > 2}
    sums = [image.flatten(2).sum(2, dtype=torch.float32).flatten() for image in images.values()]
    values, event = torch.cat([loss.detach().float().mean().reshape(1), *sums]), None
    if values.is_cuda:
        values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
    shapes = {key: (image.shape[0], image.shape[1]) for key, image in images.items()}
    return _Seen(trainer.current_epoch, step, number, held.get("anchor_meta", ()), shapes, values, event)


def raise_not_finite(trainer: Trainer, seen: _Seen, known_at: int) -> None:
    """Raise the error that names the batch.

    Parameters
    ----------
    trainer
        Its module's settings are named.
    seen
        The step.
    known_at
        Number of the step after which the loss was known.
    """
    values = seen.wait()
    bad, at = {}, 1
    for key, (rows, channels) in seen.inputs.items():
        sums = values[at : at + rows * channels].reshape(rows, channels)
        bad[key] = ~sums.isfinite()
        at += rows * channels
    late = f", known {count_of(known_at - seen.step, 'step')} later" if known_at > seen.step else ""
    broken = any(bool(mask.any()) for mask in bad.values())
    advice = f"Look at these patches and their normalisation; else {ADVICE}." if broken else f"To go on: {ADVICE}."
    lr = getattr(trainer.lightning_module, "lr", None)
    raise NotFiniteError(
        f"The loss is {float(values[0])} in step {seen.step} (epoch {seen.epoch + 1}, batch {seen.batch + 1} of the "
        f"epoch{late}), so training stopped. {_describe_cells(seen.cells, bad)} {_describe_inputs(bad)} {advice}"
        + (f" model.lr is {lr:g}." if isinstance(lr, float) else "")
        + " Checkpoints that were saved before are untouched."
    )


def _describe_cells(cells: Any, bad: dict[str, Tensor]) -> str:
    if not len(cells):
        return "The batch does not say which cells it holds."
    rows = sorted({int(row) for mask in bad.values() for row in mask.any(1).nonzero()}) or list(range(len(cells)))
    found = Counter(str(cell.get("experiment", "unknown")) for cell in cells)
    experiments = ", ".join(f"{name} ({count_of(count, 'cell')})" for name, count in found.most_common())
    named = "; ".join(_describe_cell(cells[row], row, bad) for row in rows[:NAMED_CELLS] if row < len(cells))
    more = f"; and {len(rows) - NAMED_CELLS} more" if len(rows) > NAMED_CELLS else ""
    return f"The batch is of {experiments}. Cells: {named}{more}."


def _describe_cell(cell: dict[str, Any], row: int, bad: dict[str, Tensor]) -> str:
    name = f"{cell.get('experiment')} fov {cell.get('fov_name')} track {cell.get('track_id')} t {cell.get('t')}"
    parts = [
        f"{key} channel {list(map(int, mask[row].nonzero()))}" for key, mask in bad.items() if bool(mask[row].any())
    ]
    return f"{name} ({', '.join(parts)} not finite)" if parts else name


def _describe_inputs(bad: dict[str, Tensor]) -> str:
    if not any(bool(mask.any()) for mask in bad.values()):
        return "All inputs of the batch are finite: the network has diverged."
    counts = [f"{int(mask.any(1).sum())} of {len(mask)} patches of {key!r}" for key, mask in bad.items()]
    return f"Not finite, as the network got them: {', '.join(counts)}."


def check_weights(module: LightningModule) -> None:
    """Raise if a weight or a buffer is not finite. Looks at all of them, which waits for the device.

    Raises
    ------
    NotFiniteError
        Names the first such weight.
    """
    weights = {name: value for name, value in module.state_dict().items() if _is_float(value)}
    if weights and not bool(torch.stack([value.isfinite().all() for value in weights.values()]).all()):
        names = [name for name, value in weights.items() if not bool(value.isfinite().all())]
        raise NotFiniteError(
            f"{len(names)} of {len(weights)} weights are not finite, {names[0]!r} first. No checkpoint was saved of "
            f"them, and training stopped. To go on: {ADVICE}. Checkpoints that were saved before are untouched."
        )


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_scaled(trainer: Trainer) -> bool:
    """Whether the loss is multiplied before `backward` (16-mixed)."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None
