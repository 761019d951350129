"""Checks that files of a shard set are what was written: their sizes and checksums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash

from dynaclr_wds import contract
from dynaclr_wds.contract import Manifest
from dynaclr_wds.errors import ChecksumError, FormatError, StorageError
from dynaclr_wds.manifest_checks import parse_manifest

MOST_MANIFEST_BYTES = 1 << 28
"""A larger manifest is not read: what is made of it takes many times its size."""

PARQUET_ERRORS = (OSError, ValueError, LookupError, NotImplementedError, MemoryError, OverflowError)
"""What pyarrow raises for tables that are damaged or forged; each of its own errors is also one of these."""


def read_manifest_file(path: Path, where: str | None = None) -> Manifest:
    """Read a manifest that is there, checking all of it; see `parse_manifest`.

    Parameters
    ----------
    where
        Named in errors; None = the path.
    """
    with path.open("rb") as file:
        content = file.read(MOST_MANIFEST_BYTES + 1)
    if len(content) > MOST_MANIFEST_BYTES:
        raise FormatError(
            f"{where or path}: has more than {MOST_MANIFEST_BYTES:,} bytes, which are not read. Build the shards again."
        )
    return parse_manifest(content, where or str(path))


def check_size(path: Path, size: int) -> None:
    """Check that a file is there and has the size that the manifest says.

    Raises
    ------
    FormatError
        It isn't so.
    """
    if not path.is_file():
        raise FormatError(f"{path}: is missing, though the manifest lists it. Restore it, or build the shards again.")
    found = path.stat().st_size
    if found != size:
        raise FormatError(
            f"{path}: has {found:,} bytes, the manifest says {size:,}. Copy it again, or build the shards again."
        )


def check_content(path: Path, expected: str) -> None:
    """Check that a file has the checksum that the manifest says; as fast as the disk, or some 10 GB/s.

    Raises
    ------
    ChecksumError
        It has another one.
    StorageError
        It can't be read.
    """
    digest, piece = xxhash.xxh3_64(), np.empty(1 << 20, np.uint8)
    try:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(piece.data):
                digest.update(piece[:size].data)
    except OSError as error:
        raise StorageError(f"{path}: can't be read ({error.strerror}). Look at the system's log.") from error
    found = contract.format_checksum(digest.intdigest())
    if found != expected:
        raise ChecksumError(
            f"{path}: was changed after it was written, or is damaged: its checksum is {found}, the manifest says "
            f"{expected}. Copy it again, or build the shards again."
        )
