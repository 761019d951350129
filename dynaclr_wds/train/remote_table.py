"""Sends tables of embeddings to object storage: written on this machine first, then put there whole.

That it can be done is tried before cells are embedded. Where it fails in the end, the table stays on this machine and
the error says where.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from dynaclr_wds.errors import ConfigError, StorageError
from dynaclr_wds.files import check_new_file
from dynaclr_wds.storage.client import DeniedError, Storage
from dynaclr_wds.storage.location import Location, Place
from dynaclr_wds.storage.options import StorageOptions
from dynaclr_wds.storage.sending import checksum_of, open_for_sending, send_file
from dynaclr_wds.storage.writing import ConflictError, UnsupportedError, create, remove, write

_ONE_REQUEST = 1 << 26
"""Tables of so many bytes are sent with one request, which fails where a table came there meanwhile."""


def check_new_table(place: Place, *, overwrite: bool, option: str = "overwrite=True") -> None:
    """Check what can be known of an output before anything is opened.

    Raises
    ------
    ConfigError
        It is on a web server.
    StorageError
        It is a local file that is there already, or can't be written.
    """
    if isinstance(place, Path):
        check_new_file(place, overwrite=overwrite, option=option)
    elif place.scheme in ("http", "https"):
        raise ConfigError(
            f"out={str(place)!r}: {place.scheme}:// can be read, but not written to. Give s3://, gs://, az:// or a "
            "file."
        )


class RemoteTable:
    """A table that goes to object storage.

    Parameters
    ----------
    where
        Its name there.
    options
        How requests are made.
    overwrite
        Whether it may be there.

    Raises
    ------
    StorageError
        It is there already, or the key may not write there.
    """

    def __init__(self, where: Location, options: StorageOptions, *, overwrite: bool) -> None:
        parent, _, name = where.key.rpartition("/")
        self._storage = Storage(Location(where.scheme, where.bucket, parent), options)
        self._overwrite = overwrite
        self._refuse_present(name)
        self._try_writing(f"{name}.partial")
        self._folder = Path(tempfile.mkdtemp(prefix="dynaclr-embeddings-"))
        self.file = self._folder / name
        """Where to write the table."""

    def place(self, file: Path) -> Location:
        """Return where a file goes that was written beside `file`."""
        return self._storage.root / file.name

    def send(self, file: Path) -> None:
        """Put a file that was written beside `file` in its place, and remove it here.

        Raises
        ------
        StorageError
            A table came there meanwhile, or requests failed; the file is still here.
        """
        try:
            self._put(file)
        except StorageError as error:
            error.add_note(f"The table is whole on this machine: {file}. Copy it from there.")
            raise
        shutil.rmtree(self._folder, ignore_errors=True)

    def discard_unfinished(self) -> None:
        """Remove what is on this machine, unless a table is whole."""
        if not list(self._folder.glob("*.parquet")):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _put(self, file: Path) -> None:
        if not self._overwrite:
            self._refuse_present(file.name)
            if file.stat().st_size <= _ONE_REQUEST:
                with suppress(UnsupportedError):
                    self._create(file)
                    return
        sending = open_for_sending(self._storage.root, self._storage.options)
        send_file(sending, file.name, file, checksum_of(file), lambda _: None)

    def _create(self, file: Path) -> None:
        try:
            create(self._storage, file.name, file.read_bytes())
        except ConflictError:
            self._refuse_present(file.name)
            raise

    def _refuse_present(self, name: str) -> None:
        if self._overwrite:
            return
        with suppress(FileNotFoundError):
            self._storage.info(name)
            raise StorageError(
                f"{self._storage.root / name}: is there already. Give another name, or --overwrite to replace it."
            )

    def _try_writing(self, name: str) -> None:
        try:
            write(self._storage, name, b"")
        except DeniedError as error:
            raise StorageError(
                f"{self._storage.root / name}: the key may read there, but not write ({error.cause}). Give a key that "
                "may, or another --out."
            ) from None
        with suppress(StorageError):  # a key that may write but not remove leaves an empty object
            remove(self._storage, [name])
