"""Track files: what is wrong is an error that names the file and the rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from dynaclr_wds.errors import ConfigError, StorageError
from etl import track_rows
from etl.index import Index
from etl.indexing import build_index
from etl.source.experiments import BuildConfig
from etl.source.preflight import open_plates
from etl.source.track_formats import READERS, TableFile
from tests.plates import Rows, cells, make_fov


def index_of(config: BuildConfig) -> Index:
    return build_index(config, open_plates(config))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (cells((3, 0, 3)), r"a/A/1/0: tracks are their own ancestors, each the daughter of the next: 3 → 3\."),
        (cells((1, 0, 2), (2, 1, 3), (3, 2, 2)), r"each the daughter of the next: 2 → 3 → 2\. Correct parent_track_id"),
        (cells((3, 0, 1), (3, 1, 2)), r"a/A/1/0: track 3 has parents 1 and 2 in different rows"),
        (cells((3, 0, None), (3, 1, 2)), r"track 3 has parents -1 and 2 in different rows \(-1 is none\)"),
        (
            cells((3, 0, -1), (4, 0, -1), (3, 0, -1)),
            r"tracks\.csv: \(track_id, t\) must be in one row only, but .* line 4 \(\[3 0\]\)",
        ),
        (
            cells((3, 0.5, -1)),
            r"tracks\.csv: t must be a whole number, but is not in line 2 \(0\.5\)\. Correct these lines",
        ),
        (cells((1, 0, -1), (1.5, 0, -1)), r"track_id must be a whole number, but is not in line 3 \(1\.5\)"),
        (cells((None, 0, -1), (1, 0, -1)), r"track_id must be a whole number, but is not in line 2 \(nan\)"),
        (cells((-1, 0, -1)), r"track_id must be ≥ 0, but is not in line 2 \(-1\)"),
        (cells((1, 0, "x"), (2, 0, 1)), r"parent_track_id must be a number, but is not in line 2 \(x\)"),
        (cells((1, 0, 0.5)), r"parent_track_id must be a whole number, but is not in line 2 \(0\.5\)"),
        (
            cells((1, 0, "nan"), header="track_id t y"),
            r"y must be a finite number of pixels, but is not in line 2 \(nan\)",
        ),
        (cells(*[(1, t, "inf") for t in range(7)], header="track_id t x"), r"line 6 \(inf\) and 2 more\."),
        (
            cells((1, 0, -1), header="track_id t parent_id"),
            r"'parent_id' is taken for `parent_id`.* say so in .*: `columns: {parent_id: parent_track_id}`",
        ),
        (cells((1, 0), header="track_id frame"), r"column 't' is missing; there are \['y', 'x', 'track_id', 'frame'\]"),
    ],
)
def test_wrong_tracks_are_an_error_that_names_them(tmp_path: Path, rows: Rows, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        index_of(make_fov(tmp_path, rows))


def test_wrong_files_are_errors_that_name_them(tmp_path: Path) -> None:
    config = make_fov(tmp_path, cells((1, 0, -1)))
    folder = tmp_path / "tracks/A/1/0"
    (folder / "more.parquet").touch()
    with pytest.raises(
        ConfigError, match=r"experiments\[0\]\.tracks_path=.* has 2 track files \(\['more\.parquet', 'tracks"
    ):
        index_of(config)
    (folder / "more.parquet").unlink()
    (folder / "tracks.csv").write_text("track_id,t,y,x\n1,2\n")
    with pytest.raises(ConfigError, match=r"tracks\.csv: line 2 has 2 fields \('1,2'\), but the header has 4"):
        index_of(config)
    (folder / "tracks.csv").write_text("track_id,t,y,x,t\n")
    with pytest.raises(ConfigError, match=r"tracks\.csv: column 't' is there twice\. Remove one"):
        index_of(config)
    (folder / "tracks.csv").write_text("")
    with pytest.raises(ConfigError, match=r"tracks\.csv: is empty, but the first line must name the"):
        index_of(config)
    (folder / "tracks.csv").unlink()
    with pytest.raises(
        ConfigError, match=r"has no track file for FOV 'A/1/0'\. Put exactly one table \(\.csv, \.tsv, .*\) into"
    ):
        index_of(config)
    table = pa.table({"track_id": [1], "t": [True], "y": [1.0], "x": [1.0]})
    pq.write_table(table, folder / "tracks.parquet")
    with pytest.raises(
        ConfigError,
        match=r"tracks\.parquet: t must be a number, .* row 0 \(True\)\. Correct these rows \(the first is row 0\)",
    ):
        index_of(config)


def test_a_csv_that_is_cut_is_an_error(tmp_path: Path) -> None:
    config = make_fov(tmp_path, cells((1, 0, -1), (1, 1, -1)))
    path = tmp_path / "tracks/A/1/0/tracks.csv"
    whole = path.read_bytes()
    index_of(config)
    # without its newline a table may be whole, or have lost digits of the last number: 12 of 127
    for cut in (2, 4):
        path.write_bytes(whole[:-cut])
        with pytest.raises(
            ConfigError, match=r"tracks\.csv: the last line \('.*'\) must end with a newline; the file may be cut short"
        ):
            index_of(config)
    path.write_bytes(whole.replace(b"\r\n", b"\n"))
    index_of(config)


def test_a_damaged_parquet_is_named(tmp_path: Path) -> None:
    rows = cells(*[(k, t, -1) for k in range(20) for t in range(10)])
    config = make_fov(tmp_path, rows, "tracks.parquet")
    path = tmp_path / "tracks/A/1/0/tracks.parquet"
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"\0" * len(whole), whole[:4] + b"\xff" * 200 + whole[204:]):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"tracks\.parquet: is not a (whole )?PARQUET .*Write it again"):
            index_of(config)


@pytest.mark.parametrize("name", ["tracks.csv", "tracks.parquet"])
def test_a_failing_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    config = make_fov(tmp_path, cells((1, 0, -1)), name)

    def fail(*_: object, **__: object) -> pa.Table:
        raise OSError(5, "Input/output error")

    def fail_in_duckdb(con: object, direct: Sequence[object], parsed: object) -> None:
        if direct:
            raise duckdb.IOException("Could not read from file")
        place(con, direct, parsed)

    place = track_rows._place
    monkeypatch.setattr(track_rows, "_place", fail_in_duckdb)
    monkeypatch.setattr(pa.csv, "read_csv", fail)
    monkeypatch.setattr(pq, "read_table", fail)
    with pytest.raises(StorageError, match=r"A/1/0/tracks\..*: could not be read \(\[Errno 5\].* Look at the disk"):
        index_of(config)


def test_a_new_format_is_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_psv(path: Path) -> TableFile:
        columns = path.read_text().splitlines()[0].split("|")
        options = pa.csv.ParseOptions(delimiter="|")

        def read(places: Sequence[int], text: Collection[int]) -> pa.Table:
            del text
            table = pa.csv.read_csv(path, parse_options=options)
            return pa.table({str(place): table.column(place) for place in places})

        return TableFile(path=path, header=tuple(columns), columns=tuple(columns), read=read)

    config = make_fov(tmp_path, cells((1, 0, -1), (2, 1, 1)))
    path = tmp_path / "tracks/A/1/0/tracks.csv"
    path.with_suffix(".psv").write_text(path.read_text().replace(",", "|"))
    expected = index_of(config).observations
    path.unlink()
    with pytest.raises(
        ConfigError, match=r"no track file \(there is \['tracks\.psv'\]\) for FOV 'A/1/0'\. Put exactly one table"
    ):
        index_of(config)
    monkeypatch.setitem(READERS, ".psv", open_psv)
    assert index_of(config).observations.equals(expected)
