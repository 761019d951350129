"""Knows which forms tracks come in: recognises what lies at a path, and opens it as the columns of a table.

A new format is one module beside this one, with a function path → `TableFile`, and one entry of `FORMATS` and
`recognise`. `tracks_format:` of an experiment names one of `FORMATS`; without it whatever is recognised is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from dynaclr_wds.errors import ConfigError, DynaCLRError
from etl.source.track_formats import (
    READERS,
    TableFile,
    TablePlace,
    choose_tables,
    naming_table,
    open_table,
    table_suffix,
)
from etl.source.track_sources import btrack_hdf5, ctc, geff, trackmate_xml

_FILES = {".xml": "trackmate", ".h5": "btrack", ".hdf5": "btrack"}
"""Suffix of files that are no tables → format."""
_ULTRACK_TABLE, _ULTRACK_LABELS = "tracks.csv", "segments.zarr"
KNOWN = (*READERS, *_FILES)
"""Suffixes of files that may hold tracks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackFormat:
    """One form that tracks come in."""

    what: str
    """What it is, for people."""
    kind: str
    """What errors call it."""
    open: Callable[[Path], TableFile]


def _open_ultrack(path: Path) -> TableFile:
    """Open the table of ultrack's export, which stands beside the labels."""
    return open_table(path / _ULTRACK_TABLE if path.is_dir() else path)


FORMATS: dict[str, TrackFormat] = {
    "table": TrackFormat(what=f"a table ({', '.join(READERS)})", kind="table", open=open_table),
    "ultrack": TrackFormat(
        what=f"a table of ultrack, or its export folder ({_ULTRACK_TABLE} and {_ULTRACK_LABELS})",
        kind="ultrack",
        open=_open_ultrack,
    ),
    "ctc": TrackFormat(
        what=f"a folder of the Cell Tracking Challenge ({' or '.join(ctc.TEXTS)}, and TIFF images of labels)",
        kind=ctc.KIND,
        open=ctc.open_ctc,
    ),
    "trackmate": TrackFormat(
        what="an XML file that TrackMate saved", kind=trackmate_xml.KIND, open=trackmate_xml.open_trackmate_xml
    ),
    "btrack": TrackFormat(
        what="an HDF5 file of btrack (.h5, .hdf5)", kind=btrack_hdf5.KIND, open=btrack_hdf5.open_btrack
    ),
    "geff": TrackFormat(what="a GEFF folder", kind=geff.KIND, open=geff.open_geff),
}
"""Name in `tracks_format:` → format."""


def recognise(path: Path) -> str | None:
    """Return the format of a file or folder; None where it holds no tracks that are known."""
    if path.is_dir():
        if ctc.is_ctc(path):
            return "ctc"
        if geff.is_geff(path):
            return "geff"
        return "ultrack" if (path / _ULTRACK_TABLE).is_file() and (path / _ULTRACK_LABELS).is_dir() else None
    if not path.is_file():
        return None
    if table_suffix(path) is not None:
        return "table"
    found = _FILES.get(path.suffix.lower())
    return None if found == "trackmate" and not trackmate_xml.is_trackmate_xml(path) else found


def list_sources(folder: Path, asked: str | None) -> dict[Path, str]:
    """List what holds tracks in the folder of a FOV, sorted: the folder itself, or what lies in it.

    Parameters
    ----------
    asked
        Only this format; None is all.

    Returns
    -------
    dict
        Path → format. A text file (.txt) counts only where there is no other table. Hidden files don't count.
    """
    own = recognise(folder)
    if own is not None and fits(own, asked):
        return {folder: asked or own}
    entries = {entry.name: entry for entry in folder.iterdir()} if folder.is_dir() else {}
    return {
        entries[name]: kind for name, kind in _choose(entries, lambda name: recognise(entries[name]), asked).items()
    }


def choose_files(names: Iterable[str], asked: str | None) -> dict[str, str]:
    """Choose what holds tracks among files that can't be looked into: name → format; see `list_sources`."""
    return _choose(names, lambda name: "table" if table_suffix(Path(name)) else _FILES.get(Path(name).suffix), asked)


def _choose(names: Iterable[str], find: Callable[[str], str | None], asked: str | None) -> dict[str, str]:
    shown = [name for name in sorted(names) if not name.startswith((".", "~$"))]
    kinds = {name: kind for name in shown if (kind := find(name)) is not None and fits(kind, asked)}
    tables = choose_tables(name for name, kind in kinds.items() if kind == "table")
    return {name: asked or kind for name, kind in kinds.items() if kind != "table" or name in tables}


def fits(found: str | None, asked: str | None) -> bool:
    """Whether a format that was recognised is the one that `tracks_format` asks for; None asks for any."""
    return found is not None and (asked in (None, found) or (asked == "ultrack" and found == "table"))


def open_source(place: TablePlace, form: str) -> TableFile:
    """Open tracks of a known format.

    Raises
    ------
    ConfigError
        The content is not what it should be, or a library that reads it is not installed.
    StorageError
        It cannot be read.
    """
    if form == "table" or (form == "ultrack" and place.path.is_file()):
        return open_table(place)
    known = FORMATS[form]
    with naming_table(place, known.kind), _guarding(place.name, known.kind):
        file = known.open(place.path)

    def read(places: Sequence[int], text: Collection[int]) -> pa.Table:
        with _guarding(place.name, known.kind):
            return file.read(places, text)

    return replace(file, name=place.name, kind=known.kind, read=read)


@contextmanager
def _guarding(name: str, kind: str) -> Iterator[None]:
    """Turn what libraries raise about damaged content into an error that names the file."""
    try:
        yield
    except (DynaCLRError, OSError):
        raise  # it says already what is wrong; or the disk failed
    except Exception as error:
        raise ConfigError(f"{name}: is not {kind} as it should be ({error!r:.200}). Write it again.") from error
