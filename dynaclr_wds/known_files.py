"""Remembers index files that were found whole, so that a set which nobody has touched is not read through each time.

What is remembered is what the file system says of each file: size, times, number and device. Whoever writes to a file
changes its times, and then it is checked again. A file that was changed a moment ago is not remembered: within the
steps of the clock, a second change would not show (git calls that racy).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dynaclr_wds.contract import checksum, format_checksum
from dynaclr_wds.files import write_whole
from dynaclr_wds.storage.index_cache import default_folder

_CHECKS = 1
"""Raised when more is checked than before."""
_SETTLED_NS = 2_000_000_000
"""Nanoseconds since a file's last change, from which on a further change shows."""


def find_memory(cache_dir: str | Path | None) -> Path:
    """Return the folder for what is remembered, below that of caches; None = the user's."""
    return (default_folder() if cache_dir is None else Path(cache_dir).expanduser()) / "known"


class KnownFiles:
    """The index files of one set, as they are now, and as they were when they were found whole.

    Parameters
    ----------
    memory
        Folder for what is remembered; nothing is where it can't be written.
    identity
        Of the set: its manifest's checksum and folder.
    files
        The files.
    """

    def __init__(self, memory: Path, identity: str, files: Sequence[Path]) -> None:
        name = format_checksum(checksum(json.dumps([_CHECKS, identity]).encode()))
        self._path, self._files = memory / f"{name}.json", tuple(files)
        self._now = self._look()

    def are_known(self) -> bool:
        """Whether all files are as they were when they were found whole."""
        try:
            return bool(json.loads(self._path.read_bytes()) == self._now)
        except (OSError, ValueError):
            return False

    def remember(self) -> None:
        """Remember that the files are whole, if nothing has changed since they were looked at first."""
        last_change = max((max(times) for _, *times, _, _ in self._now), default=0)
        if self._look() == self._now and time.time_ns() - last_change > _SETTLED_NS:
            with suppress(OSError), write_whole(self._path) as file:
                file.write(json.dumps(self._now).encode())

    def _look(self) -> list[list[int]]:
        found = [file.stat() for file in self._files]
        return [[s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev] for s in found]
