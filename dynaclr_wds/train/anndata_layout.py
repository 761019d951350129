"""Rows of embeddings to an AnnData on disk, a block at a time: Zarr arrays as `anndata.read_zarr` opens them.

anndata writes what is in memory, which many embeddings aren't, so this follows the specification of its format
(https://anndata.readthedocs.io, "On-disk format", encoding version 0.1.0) in Zarr format 2, which every version reads.
Text columns are categorical: their values are kept in memory and written last. Zarr is imported when a file is begun,
not with this module.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

ROWS = 8192
"""Rows of a chunk of features."""
BLOCK = 8 * ROWS
"""Rows of a chunk of any other column. As many are written at a time, so that no chunk is written twice."""

ALIASES = {"perturbation": "condition", "hours_post_perturbation": "hpi"}
"""Names that programs made for VisCy's AnnData look for → ours; both are there."""
_ONE_MARKER = "all"

_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_TEXTS = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
_DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}
_CATEGORICAL = {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}


class AnnDataFile:
    """An AnnData that grows: features in X, projections in obsm, everything else in obs, named by `name`.

    Parameters
    ----------
    path
        Folder to write; must not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        zarr = import_module("zarr")
        self._root: Any = zarr.open_group(str(path), mode="w-", zarr_format=2)
        self._root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        self._obs: Any = self._root.create_group("obs")
        self._values: dict[str, dict[str, int]] = {}
        self._columns: list[str] = []
        self.rows = 0

    def append(self, rows: pa.Table) -> None:
        """Add rows. All calls but the last give a multiple of `BLOCK` rows; all give the same columns."""
        rows = _add_aliases(rows)
        if not self._columns:
            self._columns = [name for name in rows.column_names if name not in ("name", "features", "projections")]
        self._append(self._root, "X", _matrix(rows, "features"))
        self._append(self._group("obsm"), "X_projections", _matrix(rows, "projections"))
        self._append(self._obs, "_index", np.array(rows["name"].to_pylist(), dtype=np.dtypes.StringDType()))
        for name in self._columns:
            self._append_column(name, rows[name])
        self.rows += len(rows)

    def close(self, uns: Mapping[str, Any]) -> None:
        """Write the values of text columns, `uns`, and what AnnData wants besides; force all to the disk."""
        for name, values in self._values.items():
            self._append(self._obs[name], "categories", np.array(list(values), dtype=np.dtypes.StringDType()))
        frame = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
        self._obs.attrs.update({**frame, "column-order": self._columns})
        var = self._root.create_group("var")
        width = self._root["X"].shape[1]
        self._append(var, "_index", np.array([f"feature_{n}" for n in range(width)], dtype=np.dtypes.StringDType()))
        var.attrs.update({**frame, "column-order": []})
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            self._group(name).attrs.update(_DICT)
        self._write_dict(self._root["uns"], uns)
        import_module("zarr").consolidate_metadata(self._root.store, zarr_format=2)
        for file in self.path.rglob("*"):
            if file.is_file():
                _force_to_disk(file)

    def _append_column(self, name: str, column: pa.ChunkedArray) -> None:
        if not pa.types.is_string(column.type):
            kind = np.float64 if pa.types.is_floating(column.type) and column.null_count else None
            self._append(self._obs, name, np.asarray(column.to_numpy(), dtype=kind))
            return
        if name not in self._values:
            self._values[name] = {}
            self._obs.create_group(name).attrs.update(_CATEGORICAL)
        self._append(self._obs[name], "codes", _number(column, self._values[name]))

    def _group(self, name: str) -> Any:
        return self._root.require_group(name)

    def _append(self, group: Any, name: str, values: np.ndarray) -> None:
        text = isinstance(values.dtype, np.dtypes.StringDType)
        if name not in group:
            chunks = (ROWS if values.ndim == 2 else BLOCK, *values.shape[1:])
            made = group.create_array(
                name, shape=(0, *values.shape[1:]), chunks=chunks, dtype="string" if text else values.dtype
            )
            made.attrs.update(_TEXTS if text else _ARRAY)
        group[name].append(values)

    def _write_dict(self, group: Any, content: Mapping[str, Any]) -> None:
        for name, value in content.items():
            if isinstance(value, Mapping):
                inner = group.create_group(name)
                inner.attrs.update(_DICT)
                self._write_dict(inner, value)
                continue
            number = isinstance(value, int | float)
            kind = "numeric-scalar" if number else "string"
            made = group.create_array(name, shape=(), dtype=np.asarray(value).dtype if number else "string")
            made[...] = value if number else str(value)
            made.attrs.update({"encoding-type": kind, "encoding-version": "0.2.0"})


def _add_aliases(rows: pa.Table) -> pa.Table:
    """Add the names that other programs look for; they replace nothing."""
    for theirs, ours in ALIASES.items():
        if theirs not in rows.column_names and ours in rows.column_names:
            rows = rows.append_column(theirs, rows[ours])
    if "marker" not in rows.column_names:
        rows = rows.append_column("marker", pa.array([_ONE_MARKER] * len(rows), pa.string()))
    return rows


def _matrix(rows: pa.Table, name: str) -> np.ndarray:
    parts = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), -1) for chunk in rows[name].chunks]
    return np.concatenate(parts)


def _number(column: pa.ChunkedArray, known: dict[str, int]) -> Int32[np.ndarray, " n"]:
    """Number the values of a column as before, new ones after those; -1 where there is none."""
    encoded = column.combine_chunks().dictionary_encode()
    numbers = [known.setdefault(value, len(known)) for value in encoded.dictionary.to_pylist()]
    places = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.array([*numbers, -1], np.int32)[places]


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
