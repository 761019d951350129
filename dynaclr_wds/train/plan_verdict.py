"""Says before the first step what the plan knows: what batches will be like, what is bad, and what would help."""

from __future__ import annotations

import textwrap
import time
from dataclasses import replace

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.plan.audit.verdict import Note, Verdict, judge_crop, plan_verdict
from dynaclr_wds.read.crop import Crop
from dynaclr_wds.read.off_center import count_outside
from dynaclr_wds.words import count_of

_WIDTH = 118


class PlanVerdict(Callback):
    """Judge the plan of the first epoch before training begins, in the sentences that `shuffle` prints.

    The first rank plans the epoch, or a sample of its batches where it is long, and prints. No pixel is read for it.
    Beside that it counts the cells that lie outside what the network sees of their patches. One line when all is well;
    else a sentence for each thing that is not. Training goes on in any case.

    Parameters
    ----------
    enabled
        False does nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def __repr__(self) -> str:
        return f"PlanVerdict(enabled={self.enabled})"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the verdict."""
        del pl_module
        data = getattr(trainer, "datamodule", None)
        if not self.enabled or not trainer.is_global_zero or not isinstance(data, MultiExperimentDataModule):
            return
        sampler = data.train_sampler
        if sampler is None or trainer.sanity_checking:
            return
        begun = time.perf_counter()
        verdict = plan_verdict(sampler)
        verdict = replace(verdict, notes=(*verdict.notes, *judge_view(data)))
        print(format_verdict(verdict, data.batch_size, time.perf_counter() - begun), flush=True)


def judge_view(data: MultiExperimentDataModule) -> tuple[Note, ...]:
    """Say how many anchors of a training lie outside what the network sees of their patches."""
    yx, sampler = data.final_yx_patch_size or data.yx_patch_size, data.train_sampler
    if yx is None or sampler is None or data.shard_set is None:
        return ()
    height, width = yx
    found = count_outside(data.shard_set, sampler.index, Crop(z=slice(None), yx=(height, width)))
    return judge_crop(found.outside, found.cells, (height, width), found.least)


def format_verdict(verdict: Verdict, batch_size: int, seconds: float) -> str:
    """Write a verdict as text: one line when all is well, else a heading and what is not."""
    some = "" if verdict.planned == verdict.batches else f" by {verdict.planned:,} of them"
    batches = count_of(verdict.batches, "batch", "batches")
    head = f"plan of an epoch: {batches} of {batch_size:,}, judged{some} in {seconds:.1f} s"
    if not verdict.troubles:
        return f"{head}. All is well: " + " ".join(note.text for note in verdict.notes)
    lines = [
        textwrap.fill(note.text, _WIDTH, initial_indent=f"  {note.level:<5} ", subsequent_indent=" " * 8)
        for note in verdict.troubles
    ]
    return "\n".join([f"{head}:", *lines])
