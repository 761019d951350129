"""Says what each training epoch covered and how it was composed, and keeps it beside the checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.plan.audit.report_text import summarize
from dynaclr_wds.train.progress import name_epoch


class EpochLedger(Callback):
    """Report what every training epoch has shown, over all ranks.

    The plan is a function of the epoch, so the first rank plans the epoch again and counts; ranks exchange
    nothing. This takes up to a millisecond per batch of 256.

    Parameters
    ----------
    folder
        Folder for `ledger-epoch=NNN.json`; None = that of the checkpoints, or `default_root_dir` where there are none.
    enabled
        False does nothing.
    """

    def __init__(self, folder: str | None = None, enabled: bool = True) -> None:
        self.folder = folder
        self.enabled = enabled

    def __repr__(self) -> str:
        return f"EpochLedger(folder={self.folder!r}, enabled={self.enabled})"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the ledger, print its summary, and log its sums."""
        del pl_module
        data = getattr(trainer, "datamodule", None)
        if not self.enabled or not isinstance(data, MultiExperimentDataModule) or data.train_sampler is None:
            return
        held, substituted = _add_up_held(trainer, data), _add_up_substituted(trainer, data)
        folder = self._find_folder(trainer)  # on every rank: Lightning tells the others where the first one logs
        if trainer.is_global_zero:
            report = data.train_sampler.report(
                data.train_sampler.position, held_peak_bytes=held, substituted=substituted
            )
            folder.mkdir(parents=True, exist_ok=True)
            report.write(folder / f"ledger-epoch={trainer.current_epoch:03d}.json")
            print(f"summary of {name_epoch(trainer)}: {summarize(report)}", flush=True)
            sums = {
                "ledger/anchors_seen": report.seen,
                "ledger/quotas_missed": float(sum(c.missed for c in report.composition)),
                **{f"ledger/relaxed_{name}": float(count) for name, count in report.relaxed.items()},
            }
            if substituted is not None:
                sums["ledger/substituted"] = float(sum(substituted.values()))
            if report.streaming:
                sums["ledger/peak_resident_bytes"] = float(report.streaming["held_peak_bytes"])
            for logger in trainer.loggers:
                logger.log_metrics(sums, step=trainer.global_step)

    def _find_folder(self, trainer: Trainer) -> Path:
        if self.folder is not None:
            return Path(self.folder)
        checkpoint = trainer.checkpoint_callback
        found = getattr(checkpoint, "dirpath", None) or trainer.log_dir or trainer.default_root_dir
        return Path(found)


def _add_up_held(trainer: Trainer, data: MultiExperimentDataModule) -> int | None:
    """Add up, over all ranks, the most bytes of blocks that each held at a time; None in exact mode."""
    if data.train_sampler is None or data.train_sampler.window_bytes is None or data.train_dataset is None:
        return None
    held = torch.tensor(data.train_dataset.held_peak_bytes, dtype=torch.float64, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(held, reduce_op="sum"))


def _add_up_substituted(trainer: Trainer, data: MultiExperimentDataModule) -> dict[str, int] | None:
    """Add up, over all ranks, the samples of each shard that were replaced; None where that is an error."""
    if data.train_dataset is None or data.train_dataset.substitution is None or data.shard_set is None:
        return None
    shards = data.shard_set.manifest.shards
    counts = torch.zeros(len(shards), dtype=torch.float64, device=trainer.strategy.root_device)
    for shard, count in data.train_dataset.substitution.replaced.items():
        counts[shard] = count
    total = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
    return {shard.path: int(count) for shard, count in zip(shards, total, strict=True) if count}
