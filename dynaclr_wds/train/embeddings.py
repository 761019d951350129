"""Writes predictions to Parquet: one row per observation, with its name, its identity and its embedding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dynaclr_wds.errors import StorageError
from dynaclr_wds.files import check_new_file, partial_name, rename_whole

IDENTITY: dict[str, pa.DataType] = {
    "name": pa.string(),
    "experiment": pa.string(),
    "condition": pa.string(),
    "well": pa.string(),
    "fov_name": pa.string(),
    "global_track_id": pa.string(),
    "lineage_id": pa.string(),
    "lineage": pa.int64(),
    "observation": pa.int64(),
    "track_id": pa.int64(),
    "t": pa.int64(),
    "hpi": pa.float64(),
    "id": pa.int64(),
    "parent_track_id": pa.int64(),
    "parent_id": pa.int64(),
    "y": pa.float32(),
    "x": pa.float32(),
    "z": pa.float32(),
}
"""Columns that identify an observation, in this order. Those that a batch's index has are written; its other columns
are labels, which are text. `name` is `<experiment>/<fov>/<track_id>/<t>`, which no other row has."""

Predicted = Mapping[str, tuple[list[str | None], Float[Tensor, " b"]]]

METADATA_KEY = "dynaclr_wds"
"""Key of the file's schema metadata that holds JSON: what made the embeddings."""


class EmbeddingWriter(Callback):
    """Write what `ContrastiveModule.predict_step` returns, batch by batch, to a Parquet file.

    The columns are those of `IDENTITY` that the index has and its other labels, then `features` and `projections` as
    fixed-size lists of float32. Rows come in the order of the batches. While it is written the file is called
    `<path>.partial`; it gets its name when it is whole, and a prediction that fails leaves nothing. With more than one
    rank each rank writes its own part, `<stem>-rank<r>.parquet`; a reader takes the folder of parts as one table.

    This is a plain Callback, because Lightning's `BasePredictionWriter` would gather the indices of every batch.

    Parameters
    ----------
    path
        The file to write, such as `embeddings.parquet`. Its folder is made.
    row_group_rows
        Rows to gather before they are written. No more than these are kept in memory.
    overwrite
        Replace a file that is there. False: that is an error, before anything is computed.
    metadata
        JSON to keep in the file's schema metadata, under `METADATA_KEY`; None = nothing.

    Raises
    ------
    StorageError
        When prediction starts: a file is there already, or the folder can't be written. Later: the disk is full.
    """

    def __init__(
        self, path: str, row_group_rows: int = 65536, overwrite: bool = False, metadata: str | None = None
    ) -> None:
        super().__init__()
        if row_group_rows < 1:
            raise ValueError(f"EmbeddingWriter: row_group_rows={row_group_rows} must be >= 1.")
        self.path = Path(path)
        self.row_group_rows = row_group_rows
        self.overwrite = overwrite
        self.metadata = metadata
        self.rows = 0
        """Rows that were written, of this rank."""
        self.schema: pa.Schema | None = None
        """Columns that were written."""
        self._begun = False
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._target = self.path

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose this rank's file, and check that it can be written."""
        del pl_module
        self._discard()
        self.rows, self.schema = 0, None
        self._target = self.targets(trainer.world_size)[trainer.global_rank]
        if trainer.world_size > 1:
            self._check_parts(trainer.world_size)
        self._check_target()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the rows of a batch."""
        del trainer, pl_module, batch, batch_idx, dataloader_idx
        rows = make_rows(outputs["index"], outputs["features"], outputs["projections"], outputs.get("predicted") or {})
        self._waiting.append(rows)
        if sum(len(rows) for rows in self._waiting) >= self.row_group_rows:
            self._flush()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the file and give it its name."""
        del trainer, pl_module
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove what a failed prediction has written."""
        del trainer, pl_module, exception
        self._discard()

    @property
    def _partial(self) -> Path:
        return partial_name(self._target)

    def targets(self, world_size: int) -> list[Path]:
        """List the files that so many ranks write."""
        return [self.path] if world_size == 1 else [self._part(rank) for rank in range(world_size)]

    def _part(self, rank: int | str) -> Path:
        return self.path.with_name(f"{self.path.stem}-rank{rank}{self.path.suffix}")

    def _check_parts(self, world_size: int) -> None:
        """Refuse parts of another run, which a reader would take for parts of this one."""
        own = set(self.targets(world_size))
        there = {self.path, *self.path.parent.glob(self._part("*").name)}
        other = sorted(str(path) for path in there if path.exists() and not (self.overwrite and path in own))
        if other:
            raise StorageError(
                f"{', '.join(other)}: there already, and would be read together with the {world_size} parts of this "
                "run. Remove them, or give another name."
            )

    def _check_target(self) -> None:
        check_new_file(self._target, overwrite=self.overwrite)

    def _finish(self) -> None:
        self._flush()
        if self._writer is None:
            return
        with self._told():
            self._writer.close()
            self._writer = None
            rename_whole(self._partial, self._target)
            self._begun = False

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = pa.concat_tables(self._waiting)
        if self.metadata is not None:
            rows = rows.replace_schema_metadata({METADATA_KEY: self.metadata})
        self._waiting = []
        with self._told():
            if self._writer is None:
                self._target.parent.mkdir(parents=True, exist_ok=True)
                self._begun = True
                self._writer = pq.ParquetWriter(self._partial, rows.schema)
            self._writer.write_table(rows, row_group_size=len(rows))
        self.rows, self.schema = self.rows + len(rows), rows.schema

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Name the file in errors of the disk."""
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._target}: can't be written ({error}). Nothing is left of it. Make space, or choose another "
                "disk."
            ) from error

    def _discard(self) -> None:
        self._waiting = []
        if self._writer is not None:
            with suppress(OSError):  # of a disk that is full
                self._writer.close()
            self._writer = None
        if self._begun:
            self._partial.unlink(missing_ok=True)
            self._begun = False


def make_rows(
    index: Iterable[Mapping[str, Any]],
    features: Float[Tensor, "b f"],
    projections: Float[Tensor, "b p"],
    predicted: Predicted = MappingProxyType({}),
) -> pa.Table:
    """Put identities and embeddings into one table.

    Parameters
    ----------
    index
        One dict per row.
    features, projections
        Embeddings, on any device, in any float dtype.
    predicted
        Name of an auxiliary head → the value that it predicts of each row, and the probability of that; they become the
        columns `<name>_predicted` and `<name>_probability`.

    Raises
    ------
    ValueError
        There are not as many identities as embeddings, or a label has the name of a column of a head.
    """
    rows = list(index)
    if len(rows) != len(features):
        raise ValueError(
            f"{len(rows)} identities for {len(features)} embeddings. The index of a batch must have one dict per patch."
        )
    found = list(rows[0]) if rows else []
    kinds = {name: kind for name, kind in IDENTITY.items() if name in found}
    kinds |= {name: pa.string() for name in found if name not in IDENTITY}
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()}
    for name, (values, probability) in predicted.items():
        given = {f"{name}_predicted": pa.array(values, pa.string()), f"{name}_probability": _floats(probability)}
        if taken := sorted(columns.keys() & given.keys()):
            raise ValueError(
                f"The table has the label {taken[0]!r} already, which is a column of model.auxiliary_heads.{name} too. "
                "Give the head another name."
            )
        columns |= given
    return pa.table({**columns, "features": _lists(features), "projections": _lists(projections)})


def _lists(x: Float[Tensor, "b d"]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(_floats(x), x.shape[1])


def _floats(x: Float[Tensor, ...]) -> pa.Array:
    return pa.array(x.detach().float().cpu().contiguous().numpy().reshape(-1))
