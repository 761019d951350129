"""Faults of disks and files around a build: injects one, sees what finds and mends it, writes the table of the page.

`python -m tests.build_faults` writes the table of docs/RELIABILITY.md anew.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from dynaclr_wds.contract import PARTS_DIR, Manifest, array_path
from dynaclr_wds.errors import BuildError, DynaCLRError
from dynaclr_wds.manifest_checks import parse_manifest
from etl.build_shards import build_shards
from etl.run.progress import Progress
from etl.source.experiments import parse_build_config
from etl.verify import verify
from tests.plates import make_collection
from tests.set_files import digests

PAGE = Path(__file__).parents[1] / "docs" / "RELIABILITY.md"
BEGIN, END = (
    "<!-- faults of builds: written by `python -m tests.build_faults` -->\n",
    "<!-- end of faults of builds -->\n",
)

Undo = Callable[[], None]
COMMAND, REPAIR = "the same command", "`build --repair`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A collection of two FOVs, each a group, and a set that was built of it undisturbed."""

    collection: Path
    whole: Path

    @classmethod
    def make(cls, root: Path) -> Scene:
        """Make both in a folder."""
        small = {"shard_bytes": 60_000, "block_bytes": 9_000, "clip_anchors": 4, "group_bytes": 1, "workers": 1}
        fovs, shape = ("A/1/0", "B/2/0"), (6, 2, 1, 64, 64)
        collection = make_collection(root / "in", experiments=1, fovs=fovs, shape=shape, lineages=4, **small)
        build_shards(parse_build_config(collection, {}), root / "whole")
        return cls(collection=collection, whole=root / "whole")

    def build(self, out: Path, **flags: Any) -> list[str]:
        """Build, and return what was said."""
        told = Told()
        build_shards(parse_build_config(self.collection, {}), out, progress=told, **flags)
        return told.lines

    @property
    def chunks(self) -> Path:
        return self.collection.parent / "experiment0/plate.zarr/A/1/0/0"

    @property
    def tracks(self) -> Path:
        return self.collection.parent / "experiment0/tracks/A/1/0/tracks.csv"


class Told(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault, and what the page says of it."""

    name: str
    at: Literal["new", "changed", "set"]
    """It hits a new build, a source after the build, or a finished set."""
    inject: Callable[[Scene, Path], tuple[Undo, str]]
    """(scene, set) → what undoes it, and what has to be named."""
    found: str
    names: str
    mended: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a fault."""

    found: str
    said: str
    mended: str


def run_fault(fault: Fault, scene: Scene, root: Path) -> tuple[Outcome, str]:
    """Inject a fault; return what came of it, and what had to be named.

    Raises
    ------
    AssertionError
        The bytes that were built at last are not those of an undisturbed build, or something is left.
    """
    out = root / "out"
    if fault.at != "new":
        shutil.copytree(scene.whole, out)
    undo, name = fault.inject(scene, out)
    try:
        found, said = _find(fault, scene, out)
    finally:
        undo()
    mended = COMMAND
    with suppress(BuildError):
        scene.build(out)
    if digests(out) != digests(scene.whole):
        mended = REPAIR
        scene.build(out, repair=True)
    assert digests(out) == digests(scene.whole)
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    return Outcome(found, said, mended), name


def _find(fault: Fault, scene: Scene, out: Path) -> tuple[str, str]:
    """Say what finds a fault, and what it says."""
    if fault.at == "set":
        found = verify(out, workers=1)
        return ("`verify`" if found else "nothing"), "\n".join(f"{one.path}: {one.what}" for one in found)
    before = digests(out) if out.exists() else {}
    try:
        lines = scene.build(out)
    except DynaCLRError as error:
        visible = {path: digest for path, digest in digests(out).items() if not path.startswith(".build-")}
        assert visible == before, "a build that failed changed what readers see"
        assert not list(out.rglob("*.partial"))
        return f"{type(error).__name__} of `build`", str(error)
    changes = [line for line in lines if line.startswith("changed since the set was built")]
    absent = [line for line in lines if "not there, in" in line]
    found = "the next `build`" if changes else "a line of `build`" if absent else "nothing"
    return found, "\n".join(changes or absent)


def _replaced(path: Path, data: bytes | None, link: str = "") -> Undo:
    """Write other bytes to a file, or remove it, or make it a link; return what puts it back as it was."""
    old, status = path.read_bytes(), path.stat()
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    elif link:
        path.symlink_to(link)

    def undo() -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(old)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    return undo


def _full(suffix: str, code: int = errno.ENOSPC, named: str = "") -> Callable[[Scene, Path], tuple[Undo, str]]:
    """Let writing to files of a kind fail, as on a disk that is full."""

    def inject(_: Scene, __: Path) -> tuple[Undo, str]:
        stack = ExitStack()
        stack.enter_context(patch.object(Path, "open", _failing(Path.open, suffix, code)))
        return stack.close, named or suffix

    return inject


def _failing(whole: Any, suffix: str, code: int) -> Any:
    def opened(self: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        if suffix not in self.name or mode[0] not in "wa":
            return whole(self, mode, *arguments, **keywords)
        return _full_file(whole(self, mode, *arguments, **keywords), code)

    return opened


@contextmanager
def _full_file(file: Any, code: int) -> Iterator[Any]:
    class Full:
        def write(self, _: Any) -> int:
            raise OSError(code, os.strerror(code))

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

    with file:
        yield Full()


def _chunk(change: Callable[[Path], Undo]) -> Callable[[Scene, Path], tuple[Undo, str]]:
    return lambda scene, _: (change(_some_chunk(scene)), "A/1/0")


def _some_chunk(scene: Scene) -> Path:
    return sorted(path for path in scene.chunks.rglob("*") if path.is_file() and path.name.isdigit())[5]


def _csv(change: Callable[[bytes], bytes], named: str) -> Callable[[Scene, Path], tuple[Undo, str]]:
    return lambda scene, _: (_replaced(scene.tracks, change(scene.tracks.read_bytes())), named)


def _file(pick: Callable[[Path], str], change: Callable[[bytes], bytes | None]) -> Callable[..., tuple[Undo, str]]:
    def inject(_: Scene, out: Path) -> tuple[Undo, str]:
        name = pick(out)
        _replaced(out / name, change((out / name).read_bytes()))
        return lambda: None, name

    return inject


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _cut_in_row(data: bytes) -> bytes:
    """Cut the last row behind its second comma."""
    last = data.rstrip(b"\n").rindex(b"\n") + 1
    return data[: data.index(b",", data.index(b",", last) + 1) + 1]


def _cut_behind_row(data: bytes) -> bytes:
    return data[: data.rindex(b"\n", 0, -1) + 1]


def _read(out: Path) -> Manifest:
    return parse_manifest((out / "manifest.json").read_bytes())


def _shard(out: Path) -> str:
    return _read(out).shards[0].path


def _part(out: Path) -> str:
    return next(file.path for file in _read(out).files if file.path.startswith(PARTS_DIR))


def _array(out: Path) -> str:
    return _read(out).index_file(array_path("obs_t"))


def _table(out: Path) -> str:
    return _read(out).index_file("observations.parquet")


_DISK = "BuildError of `build`"
FAULTS = (
    *(
        Fault(
            name=f"disk full (ENOSPC) at {what}", at="new", inject=_full(suffix, named=named), found=_DISK,
            names="the folder" if named else "the file", mended=COMMAND,
        )
        for what, suffix, named in (
            ("a column of the index", ".column", ".build-"),
            ("the work folder", "made-by", ".build-"),
            ("a shard", ".tar", ""),
            ("a part", ".npz", ""),
            ("an array", ".npy", ""),
            ("a table", ".parquet", ""),
            ("the manifest", "manifest.next", ""),
        )
    ),
    Fault(
        name="writing fails (EIO) at a shard", at="new", inject=_full(".tar", errno.EIO), found=_DISK, names="the file",
        mended=COMMAND,
    ),
    Fault(
        name="reading fails (EIO) at a chunk", at="new",
        inject=_chunk(lambda path: _replaced(path, None, "/proc/self/mem")),  # a file that gives EIO
        found="FovError of `build`", names="field of view, frames", mended=COMMAND,
    ),
    Fault(
        name="truncated chunk", at="new", inject=_chunk(lambda path: _replaced(path, _half(path.read_bytes()))),
        found="FovError of `build`", names="field of view, frames", mended=COMMAND,
    ),
    Fault(
        name="removed chunk", at="new", inject=_chunk(lambda path: _replaced(path, None)),
        found="a line of `build`", names="field of view, number of chunks", mended=COMMAND,
    ),
    Fault(
        name="removed chunk", at="changed", inject=_chunk(lambda path: _replaced(path, None)),
        found="the next `build`", names="field of view", mended=COMMAND,
    ),
    Fault(
        name="track CSV cut within a row", at="new", inject=_csv(_cut_in_row, "tracks.csv"),
        found="ConfigError of `build`", names="file, line", mended=COMMAND,
    ),
    Fault(
        name="track CSV cut within a row", at="changed", inject=_csv(_cut_in_row, "tracks.csv"),
        found="ConfigError of `build`", names="file, line", mended=COMMAND,
    ),
    Fault(
        name="track CSV cut behind a row", at="new", inject=_csv(_cut_behind_row, ""),
        found="nothing", names="", mended=COMMAND,
    ),
    Fault(
        name="track CSV cut behind a row", at="changed", inject=_csv(_cut_behind_row, "A/1/0"),
        found="the next `build`", names="field of view", mended=COMMAND,
    ),
    *(
        Fault(name=name, at="set", inject=_file(pick, change), found="`verify`", names="the file", mended=mended)
        for name, pick, change, mended in (
            ("flipped bit in a shard", _shard, _flip, REPAIR),
            ("truncated shard", _shard, _half, COMMAND),
            ("removed shard", _shard, lambda _: None, COMMAND),
            ("flipped bit in a part", _part, _flip, REPAIR),
            ("truncated part", _part, _half, COMMAND),
            ("flipped bit in an array", _array, _flip, REPAIR),
            ("truncated array", _array, _half, COMMAND),
            ("flipped bit in a table", _table, _flip, REPAIR),
            ("flipped bit in the manifest", lambda _: "manifest.json", _flip, REPAIR),
            ("truncated manifest", lambda _: "manifest.json", _half, REPAIR),
        )
    ),
)  # fmt: skip


_AT = {"new": "a new build", "changed": "a source, after the build", "set": "a finished set"}


def write_table() -> str:
    """Write the table of the page."""
    lines = ["| fault | hits | found by | is named | mended by |", "| --- | --- | --- | --- | --- |"]
    return (
        "\n".join([*lines, *(f"| {f.name} | {_AT[f.at]} | {f.found} | {f.names} | {f.mended} |" for f in FAULTS)])
        + "\n"
    )


def main() -> None:
    """Write the table into the page."""
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{write_table()}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
