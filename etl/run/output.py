"""Files that are whole or not there: partial names, checksums, renames, and a journal to resume from.

Threads write them side by side; when one fails, the others stop. All that a build leaves unfinished lives in
`<out>/.build-<token>/`: the spill, partial files and the journal of finished shards. A file gets its name when its
bytes are on disk. A run of the same config finds that folder and goes on; a run of another config discards it with
the shards it lists.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

import xxhash

from dynaclr_wds.contract import MANIFEST, format_checksum, parse_manifest
from dynaclr_wds.errors import BuildError, FormatError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class Interrupted(Exception):
    """A thread was told to stop."""


def run_threads(
    work: Callable[[_Job], _Result], jobs: Iterable[_Job], workers: int, stop: threading.Event
) -> tuple[_Result, ...]:
    """Do every job, `workers` at a time; return what they return, in the order of jobs.

    Parameters
    ----------
    work
        Looks at `stop` now and then, and raises `Interrupted` when it is set.
    stop
        Set when a job fails or the caller is interrupted, before that is raised.
    """
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return tuple(future.result() for future in futures)


class HashingFile:
    """A file being written: counts and hashes what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._whole = xxhash.xxh3_64()
        self._piece = xxhash.xxh3_64()
        self._ends: deque[int] = deque()
        self.bytes = 0
        self.pieces: list[int] = []
        """Checksums of the pieces that were ended."""

    def write(self, data: bytes | memoryview) -> int:
        """Append."""
        self._file.write(data)
        self._whole.update(data)
        rest = memoryview(data)
        while self._ends and self.bytes + len(rest) >= self._ends[0]:
            inside = self._ends.popleft() - self.bytes
            self._piece.update(rest[:inside])
            self._end_piece()
            self.bytes, rest = self.bytes + inside, rest[inside:]
        self._piece.update(rest)
        self.bytes += len(rest)
        return len(data)

    def end_piece(self, at: int) -> None:
        """Note the checksum of a piece that ends at a byte of the file, which a buffering writer may write later."""
        assert at >= self.bytes, "what follows a piece is written after its end is known"
        if at == self.bytes:
            self._end_piece()
        else:
            self._ends.append(at)

    def _end_piece(self) -> None:
        self.pieces.append(self._piece.intdigest())
        self._piece.reset()

    @property
    def xxh3(self) -> str:
        """Checksum, in hex, of what was written so far."""
        return format_checksum(self._whole.intdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One shard that was finished."""

    path: str
    """Relative to the output folder."""
    bytes: int
    xxh3: str
    content: str
    """Digest of what was asked to be in it."""
    pieces: tuple[int, ...]
    """Checksums of its blocks."""


@dataclass(frozen=True, slots=True)
class OutFolder:
    """Where a shard set is written, by one build at a time."""

    out: Path
    token: str
    """Of the config."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def work(self) -> Path:
        """Folder of all that is unfinished."""
        return self.out / f".build-{self.token[:12]}"

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Own the folder; calls `waiting` first when another build has it."""
        self.out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.out, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def writing(self, path: str, content: str | None = None) -> Iterator[HashingFile]:
        """Write a file that gets its name when the block ends; nothing is left when the block raises.

        Parameters
        ----------
        path
            Relative to the output folder, `/` as separator.
        content
            Digest of what should be in it: put in the journal, so that another run can keep the file.
        """
        final = self.out / path
        partial = self.work / f"{path.replace('/', '__')}.partial"
        try:
            with disk_full_named(final), partial.open("wb") as raw:
                file = HashingFile(raw)
                yield file
                raw.flush()
                os.fsync(raw.fileno())
                if content is not None:  # before the rename: a shard that is not in the journal has no name
                    self._append(
                        JournalEntry(
                            path=path, bytes=file.bytes, xxh3=file.xxh3, content=content, pieces=tuple(file.pieces)
                        )
                    )
                final.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(final)
                _sync_folder(final.parent)
        finally:
            partial.unlink(missing_ok=True)

    def _append(self, entry: JournalEntry) -> None:
        line = json.dumps([entry.path, entry.bytes, entry.xxh3, entry.content, entry.pieces]) + "\n"
        with self._lock, (self.work / "journal").open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read_journal(self) -> dict[str, JournalEntry]:
        """Return finished shards by path; the last entry of a path counts."""
        return _read_journal(self.work)

    def is_whole(self, entry: JournalEntry) -> bool:
        """Check a finished shard against the disk: its size and its checksum."""
        path = self.out / entry.path
        if not path.is_file() or path.stat().st_size != entry.bytes:
            return False
        return checksum_file(path) == entry.xxh3

    def discard_stale_work(self) -> None:
        """Remove what builds of other configs left unfinished, their shards included."""
        for folder in sorted(self.out.glob(".build-*")):
            if folder != self.work:
                for path in _read_journal(folder):
                    self._remove(path)
                shutil.rmtree(folder)

    def discard_set(self) -> None:
        """Remove the shard set that is there, its manifest first."""
        manifest = self.out / MANIFEST
        try:
            found = parse_manifest(manifest.read_text(encoding="utf-8"), str(manifest))
            paths = [shard.path for shard in found.shards] + [file.path for file in found.files]
        except FormatError:
            paths = []  # damaged or foreign: the files that this build writes replace those of the same name
        manifest.unlink()
        for path in paths:
            self._remove(path)

    def _remove(self, path: str) -> None:
        target = (self.out / path).resolve()
        if self.out.resolve() not in target.parents:
            raise BuildError(f"{self.out}: lists the file {path!r}, which is outside. Remove the folder by hand.")
        target.unlink(missing_ok=True)
        for folder in target.parents:
            if folder == self.out.resolve() or not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()

    def finish(self) -> None:
        """Remove the work folder."""
        shutil.rmtree(self.work, ignore_errors=True)

    def check_space(self, needed_bytes: int) -> None:
        """Fail early when the disk can't hold what will be written.

        Raises
        ------
        BuildError
            Says how much is needed and how much is free.
        """
        there = sum(f.stat().st_size for f in self.work.rglob("*") if f.is_file())
        there += sum(entry.bytes for entry in self.read_journal().values() if (self.out / entry.path).is_file())
        free = shutil.disk_usage(self.out).free
        if needed_bytes - there > free:
            raise BuildError(
                f"{self.out}: the build needs about {needed_bytes - there:,} bytes, but {free:,} are free. "
                "Free space, choose another --out, or store less (--yx_patch_size, --z_range, --dtype float16)."
            )


def checksum_file(path: Path) -> str:
    """Return the checksum of a file, in hex."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Turn "no space left" into an error that says where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise BuildError(
            f"{path}: the disk is full ({error.strerror}). No partial file was left under a final name. "
            "Free space and run the same command again: it goes on where it stopped."
        ) from error


def _read_journal(work: Path) -> dict[str, JournalEntry]:
    journal = work / "journal"
    entries = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []:
        try:
            path, size, xxh3, content, pieces = json.loads(line)
        except ValueError:  # cut off in the middle by a kill: that shard is written again
            continue
        entries[path] = JournalEntry(path=path, bytes=size, xxh3=xxh3, content=content, pieces=tuple(pieces))
    return entries


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
