"""Columns of numbers in files: appended batch by batch, read range by range, so that none is ever held whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from etl.run.output import naming_file

Columns = Mapping[str, Shaped[np.ndarray, " _"]]
"""Name → values, all of the same length."""


class ColumnFiles:
    """A table of numbers with one file a column, without headers: scratch, and not a format.

    Parameters
    ----------
    folder
        Made if it is not there; what it holds of these names is written over.
    dtypes
        Column → dtype.
    """

    def __init__(self, folder: Path, dtypes: Mapping[str, str]) -> None:
        self._folder, self._dtypes = folder, {name: np.dtype(code) for name, code in dtypes.items()}
        self.rows = 0
        with naming_file(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name in self._dtypes:
                self._path(name).write_bytes(b"")

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self._dtypes)

    def append(self, columns: Columns) -> None:
        """Append rows; all columns must be there.

        Raises
        ------
        BuildError
            The disk is full, or failed.
        """
        counts = {len(columns[name]) for name in self._dtypes}
        assert len(counts) == 1, "columns are of one length"
        for name, dtype in self._dtypes.items():
            with naming_file(self._path(name)), self._path(name).open("ab", buffering=0) as file:
                left = np.ascontiguousarray(columns[name], dtype).view(np.uint8)
                while left.size:
                    left = left[file.write(left.data) :]
        self.rows += counts.pop()

    def read(self, first: int, stop: int, *names: str) -> dict[str, Shaped[np.ndarray, " _"]]:
        """Read a range of rows of some columns, of all of them if none is named."""
        found = {}
        for name in names or self._dtypes:
            dtype = self._dtypes[name]
            with naming_file(self._path(name)):
                values = np.fromfile(self._path(name), dtype, stop - first, offset=first * dtype.itemsize)
            assert len(values) == stop - first, f"{self._path(name)} is as long as what was appended"
            found[name] = values
        return found

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.column"
