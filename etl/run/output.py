"""Writes files that are whole or absent, with checksums on the way, and owns the build's folder.

All that a build leaves unfinished lives in `<out>/.build-<token>/`: patches as they are cut, and new files of the set
under `staged/`. The folder is removed when the set is whole. Only folders that bear our mark are ever removed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import xxhash

from dynaclr_wds.contract import FORMAT_NAME, format_checksum
from dynaclr_wds.errors import BuildError
from dynaclr_wds.files import write_whole
from etl.run.in_use import keeping_units_out

_FULL = (errno.ENOSPC, errno.EDQUOT)
_MARK = "made-by-etl.build_shards"
_PARTIAL = ".partial"
_STAGED = "staged"
_SCRATCH = "scratch-"
PARTS_OF = "parts-of-"
"""Begin of the name of an empty file that says in how many parts the set is built."""
_MUCH = 1 << 20


class HashingFile:
    """A file being written: counts and hashes what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._whole = xxhash.xxh3_64()
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        """Append."""
        self._file.write(data)
        self._whole.update(data)
        if len(data) >= _MUCH and hasattr(os, "posix_fadvise"):  # so that the disk begins now, and not at the end
            os.posix_fadvise(self._file.fileno(), self.bytes, len(data), os.POSIX_FADV_DONTNEED)
        self.bytes += len(data)
        return len(data)

    @property
    def xxh3(self) -> str:
        """Checksum, in hex, of what was written so far."""
        return format_checksum(self._whole.intdigest())


@contextmanager
def writing(path: Path) -> Iterator[HashingFile]:
    """Write a file that gets its name when the block ends; nothing is left when the block raises.

    Two that write the same file at a time do so under names of their own, and the later one replaces the other.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{_PARTIAL}")
    with naming_file(path), write_whole(path, partial) as raw:
        yield HashingFile(raw)


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one that names the file and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise BuildError(
                f"{path}: the disk is full ({error.strerror}). No partial file was left under a final name. "
                "Free space and run the same command again: it goes on where it stopped."
            ) from error
        if error.filename is None and error.errno is not None:
            raise BuildError(
                f"{path}: {error.strerror or error} (errno {error.errno}). The disk failed while the file was used. "
                "Look at the disk, then run the same command again."
            ) from error
        raise


def checksum_file(path: Path) -> str:
    """Return the checksum of a file, in hex."""
    with naming_file(path), path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()


def describe_fault(path: Path, size: int, xxh3: str | None = None) -> str | None:
    """Say why a file is not the one that was written; None where it is.

    Parameters
    ----------
    size, xxh3
        What the manifest says of it; without a checksum, only the size is compared.
    """
    there = file_size(path)
    if there != size or xxh3 is None:
        return describe_damage(there, size)
    return describe_damage(there, size, checksum_file(path), xxh3)


def describe_damage(there: int, size: int, found: str | None = None, xxh3: str | None = None) -> str | None:
    """Say how a file differs from what the manifest says of it; None where it does not.

    Parameters
    ----------
    there, size
        Its size, -1 where there is none, and the manifest's.
    found, xxh3
        Its checksum and the manifest's; None was not looked at.
    """
    if there < 0:
        return "is missing"
    if there != size:
        return f"has {there:,} bytes, the manifest says {size:,}"
    if found != xxh3:
        return f"the bytes are not those that were written (checksum {found}, the manifest says {xxh3})"
    return None


def file_size(path: Path) -> int:
    """Size of a file; -1 where there is none."""
    return path.stat().st_size if path.is_file() else -1


@dataclass(frozen=True, slots=True)
class OutFolder:
    """Where a shard set is written, by one build at a time."""

    out: Path
    token: str
    """Hash of the config."""

    @property
    def work(self) -> Path:
        """Folder of all that is unfinished."""
        return self.out / f".build-{self.token[:12]}"

    @property
    def staged(self) -> Path:
        """Folder of files that are whole and wait for the set to be."""
        return self.work / _STAGED

    @property
    def index(self) -> Path:
        """Folder of an index that is being written."""
        return self.work / "index"

    @contextmanager
    def locked(self, waiting: Callable[[], None], *, shared: bool = False) -> Iterator[None]:
        """Own the folder, or share it with others who do; calls `waiting` first when another build has it.

        What was made for a build which then fails before it has written anything is removed again.
        """
        made = [folder for folder in (self.out, *self.out.parents) if not folder.exists()]
        descriptor = self._lock(waiting, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        try:
            for work in () if shared else self.work_folders():
                with keeping_units_out(work / _STAGED, waiting):
                    pass
            yield
        except BaseException:
            if made or not shared:
                self._remove_unused(made)
            raise
        finally:
            os.close(descriptor)

    def _lock(self, waiting: Callable[[], None], how: int) -> int:
        """Make the folder and lock it; return its descriptor."""
        while True:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.out, os.O_RDONLY)
            except FileNotFoundError:
                continue  # removed in between, by a build that failed
            except OSError as error:
                raise BuildError(
                    f"{self.out}: can't be made ({error.strerror}). Give a folder, or a path in one that may be "
                    "written, with --out."
                ) from error
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, how)
            if self.out.exists() and os.path.samestat(os.fstat(descriptor), self.out.stat()):
                return descriptor
            os.close(descriptor)  # the build that was waited for failed, and removed its folder

    def _remove_unused(self, made: Sequence[Path]) -> None:
        """Remove work folders that hold nothing, and the folders that this build made, innermost first."""
        for work in self.work_folders():
            names = {path.name for path in work.rglob("*") if not path.is_dir()}
            if all(name == _MARK or name.startswith(PARTS_OF) for name in names):
                discard_work(work)
        with suppress(OSError):  # one that holds something stays, and so do those around it
            for folder in made:
                folder.rmdir()

    def begin(self) -> None:
        """Make the work folder, or take that of a build of the same config which was stopped.

        Raises
        ------
        BuildError
            Something else has its name.
        """
        if self.work.exists() and not is_ours(self.work):
            raise BuildError(
                f"{self.work}: has the name of the build's work folder, but was not made by a build. Move it away."
            )
        with naming_file(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
            if not (self.work / _MARK).exists():
                (self.work / _MARK).write_text(json.dumps([FORMAT_NAME, self.token]), encoding="utf-8")
            self.staged.mkdir(exist_ok=True)
        shutil.rmtree(self.index, ignore_errors=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Begin the work, and make a folder in it for this process, which goes when the block ends."""
        self.begin()
        with naming_file(self.work), tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=self.work) as scratch:
            yield Path(scratch)

    def discard_scratch(self) -> None:
        """Remove the scratch of builds that were killed; nobody else may be building."""
        for scratch in self.work.glob(f"{_SCRATCH}*") if self.work.exists() and is_ours(self.work) else ():
            shutil.rmtree(scratch)

    def work_folders(self) -> tuple[Path, ...]:
        """Return the work folders of builds, this one's or others', that were stopped."""
        return tuple(folder for folder in sorted(self.out.glob(".build-*")) if is_ours(folder))

    def discard_others(self) -> None:
        """Remove what builds of other configs left unfinished."""
        for folder in self.work_folders():
            if folder != self.work:
                discard_work(folder)

    def check_space(self, needed_bytes: int) -> None:
        """Fail early when the disk can't hold what will be written beside what is there.

        Raises
        ------
        BuildError
            Says how much is needed and how much is free.
        """
        there = sum(f.stat().st_size for f in self.staged.rglob("*") if f.is_file())
        free = shutil.disk_usage(self.out).free
        if needed_bytes - there > free:
            raise BuildError(
                f"{self.out}: the build needs about {needed_bytes - there:,} bytes, but {free:,} are free. "
                "Free space, choose another --out, or store less (--yx_patch_size, --z_range, --dtype float16)."
            )


def is_ours(folder: Path) -> bool:
    """Whether a build made this folder: it bears our mark, or holds only what a kill, or a unit on its own, leaves."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    names = {path.name for path in folder.iterdir()}
    return _MARK in names or names <= {_STAGED}


def discard_work(folder: Path) -> None:
    """Remove a work folder, its mark last: what a kill leaves is still known as ours.

    One that units still write to stays, for the next build to remove.
    """
    if not is_ours(folder):
        return
    with keeping_units_out(folder / _STAGED) as is_free:
        if is_free:
            _remove_work(folder)


def _remove_work(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)  # a unit on another machine may just have added a file
        elif path.name != _MARK:
            path.unlink()
    if {path.name for path in folder.iterdir()} <= {_MARK}:
        (folder / _MARK).unlink(missing_ok=True)
        folder.rmdir()
