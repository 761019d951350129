"""Writes predictions to Parquet: one row per observation, with its identity and its embedding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dynaclr_wds.files import partial_name, rename_whole

IDENTITY: dict[str, pa.DataType] = {
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
are labels, which are text."""


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
    """

    def __init__(self, path: str, row_group_rows: int = 65536) -> None:
        super().__init__()
        if row_group_rows < 1:
            raise ValueError(f"EmbeddingWriter: row_group_rows={row_group_rows} must be >= 1.")
        self.path = Path(path)
        self.row_group_rows = row_group_rows
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._target = self.path

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose this rank's file."""
        del pl_module
        self._discard()
        name = self.path.name
        if trainer.world_size > 1:
            name = f"{self.path.stem}-rank{trainer.global_rank}{self.path.suffix}"
        self._target = self.path.with_name(name)

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
        self._waiting.append(make_rows(outputs["index"], outputs["features"], outputs["projections"]))
        if sum(len(rows) for rows in self._waiting) >= self.row_group_rows:
            self._flush()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the file and give it its name."""
        del trainer, pl_module
        self._flush()
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        rename_whole(self._partial, self._target)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove what a failed prediction has written."""
        del trainer, pl_module, exception
        self._discard()

    @property
    def _partial(self) -> Path:
        return partial_name(self._target)

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = pa.concat_tables(self._waiting)
        self._waiting = []
        if self._writer is None:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._partial, rows.schema)
        self._writer.write_table(rows, row_group_size=len(rows))

    def _discard(self) -> None:
        self._waiting = []
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._partial.unlink(missing_ok=True)


def make_rows(
    index: Iterable[Mapping[str, Any]], features: Float[Tensor, "b f"], projections: Float[Tensor, "b p"]
) -> pa.Table:
    """Put identities and embeddings into one table.

    Parameters
    ----------
    index
        One dict per row.
    features, projections
        Embeddings, on any device, in any float dtype.

    Raises
    ------
    ValueError
        There are not as many identities as embeddings.
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
    return pa.table({**columns, "features": _lists(features), "projections": _lists(projections)})


def _lists(x: Float[Tensor, "b d"]) -> pa.FixedSizeListArray:
    values = x.detach().float().cpu().contiguous().numpy().reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), x.shape[1])
