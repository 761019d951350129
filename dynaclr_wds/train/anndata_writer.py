"""Writes predictions to an AnnData, batch by batch: for scanpy, napari, and programs made for VisCy's embeddings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dynaclr_wds.errors import StorageError
from dynaclr_wds.files import check_new_folder
from dynaclr_wds.train.anndata_layout import BLOCK, AnnDataFile
from dynaclr_wds.train.embeddings import METADATA_KEY, EmbeddingWriter


class AnnDataWriter(EmbeddingWriter):
    """Write what `ContrastiveModule.predict_step` returns, batch by batch, to an AnnData in a Zarr folder.

    Features are X, projections `obsm["X_projections"]`, and identity and labels obs, whose index is `name`; `metadata`
    is `uns["dynaclr_wds"]`. Beside our names obs has `perturbation`, `hours_post_perturbation` and `marker`, which
    programs made for VisCy's AnnData look for. No more than 65,536 rows are in memory. The rest is as in
    `EmbeddingWriter`: the folder gets its name when it is whole.

    Parameters
    ----------
    path
        The folder to write, such as `embeddings.zarr`.
    overwrite
        Replace a folder that is there.
    metadata
        JSON to keep in `uns`; None = nothing.

    Raises
    ------
    StorageError
        When prediction starts: it is there already, or can't be written. Later: the disk is full.
    """

    def __init__(self, path: str, overwrite: bool = False, metadata: str | None = None) -> None:
        super().__init__(path, BLOCK, overwrite, metadata)
        self._file: AnnDataFile | None = None

    def _check_target(self) -> None:
        check_new_folder(self._target, overwrite=self.overwrite)

    def _flush(self) -> None:
        """Write whole blocks; what is left over waits."""
        rows = pa.concat_tables(self._waiting)
        whole = len(rows) // BLOCK * BLOCK
        self._append(rows[:whole])
        self._waiting = [rows[whole:]]

    def _finish(self) -> None:
        if not self._waiting:
            return
        self._append(pa.concat_tables(self._waiting))
        self._waiting = []
        if self._file is None:
            return
        with self._told():
            self._file.close({} if self.metadata is None else {METADATA_KEY: _plain(json.loads(self.metadata))})
            self._file = None
            replace_folder(self._partial, self._target)
            self._begun = False

    def _append(self, rows: pa.Table) -> None:
        if not len(rows):
            return
        with self._told():
            if self._file is None:
                self._target.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(self._partial, ignore_errors=True)
                self._begun = True
                self._file = AnnDataFile(self._partial)
            self._file.append(rows)
        self.rows, self.schema = self.rows + len(rows), rows.schema

    def _discard(self) -> None:
        self._waiting, self._file = [], None
        if self._begun:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._begun = False


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Keep numbers and text; write the rest as JSON, as AnnData has no lists of mixed content."""
    return {
        name: value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)
        for name, value in content.items()
    }


def replace_folder(partial: Path, target: Path) -> None:
    """Give a finished folder its name; what had it is removed only then."""
    old = target.with_name(target.name + ".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        partial.rename(target)
    except OSError as error:
        if old.exists():
            old.rename(target)
        raise StorageError(f"{target}: can't be named ({error}). What was there is there still.") from error
    shutil.rmtree(old, ignore_errors=True)
