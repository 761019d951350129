"""Checkpoint and shards to embeddings: what `dynaclr-wds predict` does.

`settle` says what the network will see. Here are network and data made of the checkpoint, and run.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from dynaclr_wds.config_errors import explain_absent_device
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.describe import list_undescribed, make_modules
from dynaclr_wds.errors import CheckpointError, ConfigError
from dynaclr_wds.files import check_new_folder
from dynaclr_wds.local_paths import refuse_url
from dynaclr_wds.storage.location import name_place, parse_place
from dynaclr_wds.storage.options import parse_options
from dynaclr_wds.track_names import list_tracks
from dynaclr_wds.train.anndata_writer import AnnDataWriter
from dynaclr_wds.train.checkpoint_content import PACKAGE, Checkpoint, check_weights
from dynaclr_wds.train.device_names import describe_device
from dynaclr_wds.train.embeddings import EmbeddingWriter
from dynaclr_wds.train.engine import ContrastiveModule
from dynaclr_wds.train.progress import choose_progress
from dynaclr_wds.train.remote_table import RemoteTable, check_new_table
from dynaclr_wds.train.settle import Job, Request, choose_storage, settle
from dynaclr_wds.words import count_of

_WITH_WRITER = "call Trainer.predict with dynaclr_wds.train.EmbeddingWriter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What came of a prediction."""

    files: tuple[str, ...]
    rows: int
    columns: dict[str, str]
    """Name → type, in order; empty where this rank wrote no row."""


def predict(asked: Request) -> Written | None:
    """Embed cells with a trained network.

    Returns
    -------
    None on all ranks but the first.

    Raises
    ------
    CheckpointError
        The checkpoint can't be used.
    ConfigError, ValueError
        What is asked, or what the shards hold, is not what the network was trained on.
    StorageError
        The output is there already, or can't be written.
    """
    place = None if asked.out is None else parse_place(asked.out, "out")
    if place is not None:
        check_new_table(place, overwrite=asked.overwrite)
    if asked.anndata is not None:
        refuse_url(asked.anndata, "anndata")
        check_new_folder(Path(asked.anndata), overwrite=asked.overwrite)
    job = settle(asked)
    if place is None or isinstance(place, Path):
        return _embed(job, place, None)
    options = parse_options(choose_storage(asked, job.checkpoint)[0])
    table = RemoteTable(place, options, overwrite=asked.overwrite)
    try:
        return _embed(job, table.file, table)
    except BaseException:
        table.discard_unfinished()
        raise


def _embed(job: Job, out: Path | None, table: RemoteTable | None) -> Written | None:
    """Embed into a file and an AnnData, as asked; and send the file, where `table` says."""
    asked = job.asked
    data = make_data(job)
    cells = len(data.list_predicted(job.shards))
    module = make_network(job.checkpoint)
    writers = make_writers(job, out)
    trainer = make_trainer(asked, [*writers, *choose_progress(True, [])])
    if trainer.is_global_zero:
        print(describe_job(job, cells, trainer), file=sys.stderr, flush=True)
    run(trainer, module, data)
    files: list[Any] = [file for writer in writers for file in writer.targets(trainer.world_size)]
    if table is not None:
        own = files[trainer.global_rank]
        files[: trainer.world_size] = [table.place(file) for file in files[: trainer.world_size]]
        table.send(own)
    if not trainer.is_global_zero:
        return None
    schema = writers[0].schema
    columns = {} if schema is None else {name: str(schema.field(name).type) for name in schema.names}
    return Written(files=tuple(map(str, files)), rows=cells, columns=columns)


def make_writers(job: Job, out: Path | None) -> list[EmbeddingWriter]:
    """Make what writes the embeddings, the table first."""
    asked, origin = job.asked, json.dumps(describe_origin(job))
    made = [] if out is None else [EmbeddingWriter(str(out), overwrite=asked.overwrite, metadata=origin)]
    if asked.anndata is not None:
        made.append(AnnDataWriter(asked.anndata, overwrite=asked.overwrite, metadata=origin))
    return made


def make_data(job: Job) -> MultiExperimentDataModule:
    """Make the DataModule that reads and normalises cells as in training."""
    asked, trained = job.asked, job.checkpoint.data
    if missing := list_undescribed({"normalizations": trained.get("normalizations")}):
        raise CheckpointError(
            f"{job.checkpoint.path} can't say how its data were normalised: {missing['normalizations']} was made in "
            "Python and didn't keep its arguments. Embed from Python: give MultiExperimentDataModule the same "
            f"normalizations, and {_WITH_WRITER}."
        )
    options, cache_dir = choose_storage(asked, job.checkpoint)
    return MultiExperimentDataModule(
        str(job.shards.root),
        z_range=job.view.z_range,
        yx_patch_size=job.view.yx_patch_size,
        final_yx_patch_size=job.view.final_yx_patch_size,
        final_z=job.view.final_z,
        z_reduction=None if job.view.z_reduction is None else dict(job.view.z_reduction),
        channels_per_sample=trained.get("channels_per_sample"),
        batch_size=asked.batch_size or int(trained["batch_size"]),
        num_workers=int(trained["num_workers"]) if asked.num_workers is None else asked.num_workers,
        normalizations=list(make_modules(trained.get("normalizations"), "normalizations")),
        include_wells=None if asked.include_wells is None else list(asked.include_wells),
        exclude_fovs=None if asked.exclude_fovs is None else list(asked.exclude_fovs),
        predict_experiments=None if asked.experiments is None else list(asked.experiments),
        predict_tracks=None if asked.tracks is None else list_tracks(asked.tracks),
        predict_limit=asked.limit,
        storage_options=options,
        cache_dir=cache_dir,
    )


def make_network(checkpoint: Checkpoint) -> ContrastiveModule:
    """Make the encoder and the heads of a checkpoint, with their weights; the loss plays no part in prediction."""
    encoder = checkpoint.module.get("encoder")
    if missing := list_undescribed({"encoder": encoder}):
        raise CheckpointError(
            f"{checkpoint.path} can't say how to make its encoder: {missing['encoder']} was made in Python and didn't "
            f"keep its arguments. Embed from Python: load_from_checkpoint(path, encoder=…), then {_WITH_WRITER}."
        )
    if encoder is None:
        raise CheckpointError(f"{checkpoint.path}: names no encoder. It is damaged; give another one.")
    module = ContrastiveModule(encoder, auxiliary_heads=checkpoint.module.get("auxiliary_heads"))
    for part, prefix in ((module.encoder, "encoder."), (module.auxiliary_heads, "auxiliary_heads.")):
        weights = {n.removeprefix(prefix): value for n, value in checkpoint.weights.items() if n.startswith(prefix)}
        check_weights(part, weights, checkpoint.path)
        part.load_state_dict(weights)
    return module


def make_trainer(asked: Request, callbacks: list[Callback]) -> Trainer:
    """Make a Trainer that leaves nothing behind."""
    try:
        return Trainer(
            accelerator=asked.accelerator,
            devices=asked.devices,
            precision=asked.precision,  # type: ignore[arg-type]
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        if absent := explain_absent_device("--accelerator", asked.accelerator, str(error)):
            raise ConfigError(absent) from error
        raise ConfigError(
            f"--accelerator {asked.accelerator} --devices {asked.devices} --precision {asked.precision} can't be had: "
            f"{' '.join(str(error).split())}"
        ) from error


def run(trainer: Trainer, module: ContrastiveModule, data: MultiExperimentDataModule) -> None:
    """Predict; Ctrl-C comes out as KeyboardInterrupt, which Lightning turns into an exit."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.predict(module, datamodule=data, return_predictions=False)
    except torch.OutOfMemoryError as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(
            f"--batch_size {data.batch_size} is more than the device holds ({first}). Give a smaller one."
        ) from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise error.__context__ from None
        raise


def describe_origin(job: Job) -> dict[str, Any]:
    """Say what made a table of embeddings, for its metadata."""
    checkpoint, view = job.checkpoint, job.view
    return {
        "package": f"{PACKAGE} {version(PACKAGE)}",
        "checkpoint": str(Path(checkpoint.path).resolve()),
        "checkpoint_sha256": checkpoint.sha256,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "encoder": checkpoint.module.get("encoder"),
        "shards": name_place(job.shards.root),
        "shards_config_hash": job.shards.manifest.config_hash,
        "trained_on_config_hash": checkpoint.seen.config_hash,
        "normalizations": checkpoint.data.get("normalizations") or [],
        "z_range": list(view.z_range or job.shards.z_range),
        "yx_patch_size": view.yx_patch_size,
        "final_yx_patch_size": view.final_yx_patch_size,
        "final_z": view.final_z,
        "z_reduction": view.z_reduction,
        "precision": job.asked.precision,
        "overridden": list(job.overridden),
    }


def describe_job(job: Job, cells: int, trainer: Trainer) -> str:
    """Say what is going to be done."""
    checkpoint = job.checkpoint
    first = (
        f"Embedding {count_of(cells, 'cell')} of {count_of(len(job.experiments), 'experiment')} in {job.shards.root} "
        f"with {checkpoint.path} (epoch {checkpoint.epoch + 1}, step {checkpoint.step:,}) on "
        f"{describe_device(trainer)}."
    )
    return "\n".join([first, *(f"Overridden: {what}." for what in job.overridden)])
