"""The files of a set, wherever they are: says which are not what was written, and opens them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from etl.pack.read_back import Readable
from etl.run.output import describe_fault


@runtime_checkable
class SetFiles(Protocol):
    """The files of a set; paths are those of the manifest."""

    @property
    def folder(self) -> Path:
        """Folder of this machine with the files that are here; index files are once they were checked."""
        ...

    @property
    def checks_at_a_time(self) -> int:
        """Number of files to check at a time."""
        ...

    def describe_fault(self, path: str, size: int, xxh3: str | None = None) -> str | None:
        """Say why a file is not the one that was written; None where it is.

        Parameters
        ----------
        size, xxh3
            What the manifest says of it; without a checksum, only the size is compared.

        Raises
        ------
        StorageError
            A request failed, so nothing is known.
        """
        ...

    def open(self, path: str) -> AbstractContextManager[Readable]:
        """Open a file for reading."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """The files of a set on a disk."""

    folder: Path
    checks_at_a_time: int = 1

    def describe_fault(self, path: str, size: int, xxh3: str | None = None) -> str | None:
        """Say why a file is not the one that was written; None where it is."""
        return describe_fault(self.folder / path, size, xxh3)

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading."""
        return (self.folder / path).open("rb")
