"""Writes files that are whole or absent: the one home of temporary name, fsync and rename. Standard library only.

A reader never sees half a file under its final name, whatever stops the writer: the bytes go to `<name>.partial`, are
forced to disk, and only then get the name. A writer that raises leaves nothing behind. `check_new_file` and
`check_new_folder` say early whether that will work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dynaclr_wds.errors import StorageError


def partial_name(path: Path) -> Path:
    """Return the name under which a file is written until it is whole."""
    return path.with_name(path.name + ".partial")


@contextmanager
def write_whole(path: Path, partial: Path | None = None) -> Iterator[BinaryIO]:
    """Write a file that gets its name when the block ends.

    Parameters
    ----------
    path
        Final name; replaced if it is there. Its folder is made.
    partial
        Name until then, on the same file system; None is `partial_name(path)`.

    Yields
    ------
    The open file.
    """
    partial = partial_name(path) if partial is None else partial
    path.parent.mkdir(parents=True, exist_ok=True)
    if partial.is_symlink():  # never ours: somebody wants another file to be written over
        partial.unlink()
    try:
        with partial.open("wb") as file:
            yield file
        rename_whole(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def rename_whole(partial: Path, path: Path) -> None:
    """Give a finished file its final name; force its bytes to disk before, and the name after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_new_file(path: Path, *, overwrite: bool, option: str = "overwrite=True") -> None:
    """Check that a file can be written, before the work for it begins.

    Parameters
    ----------
    path
        The file.
    overwrite
        Whether it may be there.
    option
        How the caller says that it may, for the message.

    Raises
    ------
    StorageError
        It is there already and `overwrite` is False, it is a folder, or its folder can't be written.
    """
    if path.is_dir():
        raise StorageError(f"{path}: is a folder. Give the name of a file.")
    _check_new(path, overwrite=overwrite, option=option)


def check_new_folder(path: Path, *, overwrite: bool, option: str = "overwrite=True") -> None:
    """Check that a folder of data can be written, before the work for it begins.

    Raises
    ------
    StorageError
        It is there already and `overwrite` is False, it is a file, or its own folder can't be written.
    """
    if path.is_file():
        raise StorageError(f"{path}: is a file. Give the name of a folder.")
    _check_new(path, overwrite=overwrite, option=option)


def _check_new(path: Path, *, overwrite: bool, option: str) -> None:
    if path.exists() and not overwrite:
        raise StorageError(f"{path}: is there already. Give another name, or {option} to replace it.")
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        why = "may not be written" if folder.is_dir() else "is not a folder"
        raise StorageError(f"{path}: can't be written, because {folder} {why}. Choose a folder that you may write to.")
