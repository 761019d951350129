"""Tables as people have them: every dialect gives the index of the plain table; what can't be read is said."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dynaclr_wds.errors import ConfigError
from etl.index import Index
from etl.indexing import build_index
from etl.source.column_names import guess_columns
from etl.source.config import BuildConfig
from etl.source.experiments import parse_build_config
from etl.source.fingerprints import fingerprint_sources
from etl.source.preflight import open_plates
from etl.source.scales import fill_in_from_plates
from etl.source.track_formats import open_table, read_table
from etl.source.track_sources.formats import list_sources
from tests.plates import Rows, cells, make_fov, random_tracks, write_experiments, write_plate

FOLDER = "tracks/A/1/0"


def index_of(config: BuildConfig) -> Index:
    return build_index(config, open_plates(config))


def example() -> pd.DataFrame:
    """Tracks with divisions, a label with every awkward character, and columns that nobody asks for."""
    rows = random_tracks(np.random.default_rng(8), frames=8, height=32, width=32)
    kinds = ["naïve, T", 'big; "B"', "tab\there", "007", "", "µ-glia", "1,5"]
    frame = pd.DataFrame(rows).assign(kind=[kinds[n % len(kinds)] for n in range(len(rows))], note="x", area=1.25)
    frame["parent_track_id"] = frame["parent_track_id"].replace(-1, None)
    return frame


def plain(tmp_path: Path, frame: pd.DataFrame, **experiment: Any) -> BuildConfig:
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return make_fov(tmp_path, rows, "tracks.csv", experiment={"label_columns": ["kind"], **experiment})  # type: ignore[arg-type]


Writer = Callable[[pd.DataFrame, Path], object]

DIALECTS: dict[str, tuple[str, Writer]] = {
    "semicolons": ("t.csv", lambda f, p: f.to_csv(p, sep=";", index=False)),
    "tabs in a csv": ("t.csv", lambda f, p: f.to_csv(p, sep="\t", index=False)),
    "commas in a tsv": ("T.TSV", lambda f, p: f.to_csv(p, index=False)),
    "txt": ("t.txt", lambda f, p: f.to_csv(p, sep="\t", index=False)),
    "decimal comma": ("t.csv", lambda f, p: f.to_csv(p, sep=";", decimal=",", index=False)),
    "decimal comma and tabs": ("t.tsv", lambda f, p: f.to_csv(p, sep="\t", decimal=",", index=False)),
    "everything quoted": ("t.csv", lambda f, p: f.to_csv(p, index=False, quoting=1)),
    "names quoted": ("t.csv", lambda f, p: p.write_text(_quote_header(f.to_csv(sep=";", index=False)))),
    "UTF-8 with BOM": ("t.csv", lambda f, p: f.to_csv(p, index=False, encoding="utf-8-sig")),
    "UTF-16": ("t.csv", lambda f, p: f.to_csv(p, index=False, encoding="utf-16")),
    "UTF-16, big end first": (
        "t.csv",
        lambda f, p: p.write_bytes(b"\xfe\xff" + f.to_csv(index=False).encode("utf-16-be")),
    ),
    "Latin-1": ("t.csv", lambda f, p: f.to_csv(p, index=False, encoding="latin-1")),
    "gzip": ("t.csv.gz", lambda f, p: f.to_csv(p, index=False)),
    "gzip, tabs": ("T.tsv.GZ", lambda f, p: f.to_csv(p, sep="\t", index=False, compression="gzip")),
    "gzip by another name": ("t.csv", lambda f, p: f.to_csv(p, index=False, compression="gzip")),
    "parquet": ("t.parquet", lambda f, p: f.to_parquet(p, index=False)),
    "parquet with index": ("t.parquet", lambda f, p: f.set_index(f.index + 3).to_parquet(p)),
    "CRLF": ("t.csv", lambda f, p: f.to_csv(p, index=False, lineterminator="\r\n")),
    "CR": ("t.csv", lambda f, p: f.to_csv(p, index=False, lineterminator="\r")),
    "row numbers": ("t.csv", lambda f, p: f.to_csv(p)),
    "row numbers, named": ("t.csv", lambda f, p: f.to_csv(p, index_label="Unnamed: 0")),
    "delimiter at the end": ("t.csv", lambda f, p: f.assign(**{"": None}).to_csv(p, index=False)),
    "empty lines": ("t.csv", lambda f, p: p.write_text("\n\n" + f.to_csv(index=False) + "\n,,,,,,,\r\n;;;\n\n")),
    "spaces around names": ("t.csv", lambda f, p: f.rename(columns=lambda c: f" {c} ").to_csv(p, index=False)),
    "None for nothing": ("t.csv", lambda f, p: f.to_csv(p, index=False, na_rep="None")),
    "columns in another order": ("t.csv", lambda f, p: f[f.columns[::-1]].to_csv(p, index=False)),
}


def _quote_header(text: str) -> str:
    header, _, rows = text.partition("\n")
    return ";".join(f'"{name}"' for name in header.split(";")) + "\n" + rows


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_table_in_any_dialect_gives_the_same_index(tmp_path: Path, dialect: str) -> None:
    frame = example()
    config = plain(tmp_path, frame)
    expected = index_of(config)
    assert set(expected.observations["kind"].to_pylist()) == {*frame["kind"], None} - {""}
    (tmp_path / FOLDER / "tracks.csv").unlink()
    name, write = DIALECTS[dialect]
    write(frame, tmp_path / FOLDER / name)
    found = index_of(config)
    assert found.observations.equals(expected.observations)
    assert (found.labels, found.dropped) == (expected.labels, expected.dropped)
    assert len(found.notes) == (1 if dialect == "Latin-1" else 0)


def test_a_table_that_is_not_utf8_is_said_to_be_read_as_latin_1(tmp_path: Path) -> None:
    config = plain(tmp_path, example())
    path = tmp_path / FOLDER / "tracks.csv"
    path.write_bytes(path.read_bytes().decode().encode("latin-1"))
    assert index_of(config).notes == (
        f"not UTF-8, and their labels were read as Latin-1: {path}. If a label looks wrong, save the table as UTF-8.",
    )
    # where no label is read, nothing can look wrong
    assert index_of(dataclasses.replace(config, experiments=(_without_labels(config),))).notes == ()
    # a header in UTF-8 above rows that are not: neither encoding is right
    path.write_bytes("track_id,t,y,x,kind,µ\n1,0,16,16,a,b\n".encode() + b"1,1,16,16,\xff,b\n")
    with pytest.raises(
        ConfigError, match=r"tracks\.csv: begins as UTF-8 text, but line 3 is not \(invalid start byte\)"
    ):
        index_of(config)


def _without_labels(config: BuildConfig) -> Any:
    return dataclasses.replace(config.experiments[0], label_columns=())


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"is empty, but the first line must name the columns"),
        (b"\xef\xbb\xbf\n\n", r"is empty, but"),
        (
            b"PK\x03\x04" + bytes(100),
            r"is an Excel workbook \(or another zip file\), not a text table\. Export it as CSV",
        ),
        (b"\xd0\xcf\x11\xe0" + bytes(100), r"is an Excel workbook, not a text table"),
        (b"\n<!DOCTYPE html><html>\n", r"is HTML or XML, not a text table"),
        (b"PAR1" + bytes(100), r"is a Parquet file, not a text table"),
        ("track_id,t,y,x\n".encode("utf-16-le"), r"holds zero bytes, so it is not UTF-8 text\. Save it as UTF-8"),
        (
            gzip.compress(b"track_id,t,y,x\n1,0,16,16\n", mtime=0)[:-9],
            r"is not a whole gzip file \(.*\)\. Write it again",
        ),
        (
            b"track_id,t,y,x\n1,0,16,16\n1,1,16\n",
            r"line 3 has 3 fields \('1,1,16'\), but the header has 4, separated by ','",
        ),
        (
            b"track_id,t,y,x\n1,0,16,5,16,5\n",
            r"line 2 has 6 fields .* a decimal comma need ; or tabs between the columns",
        ),
        (b"track_id t y x\n1 0 16 16\n", r"'track_id' is missing; there are \['track_id t y x'\].* Only commas, semi"),
        (b"track_id;t;y;x\n1;0;1,5;16\n1;1;2.5;16\n", r"y must be a number, but is not in line 2 \(1,5\)"),
        (b'track_id,t,y,x\n1,0,"1,234",16\n', r"y must be a number, but is not in line 2 \(1,234\)"),
        (b"track_id;t;y;x\n1;0;16;1", r"the last line \('1;0;16;1'\) must end with a newline"),
        (gzip.compress(b"track_id;t;y;x\n1;0;16;1", mtime=0), r"the last line \('1;0;16;1'\) must end with a newline"),
    ],
)
def test_what_is_no_table_is_an_error_of_one_line(tmp_path: Path, content: bytes, match: str) -> None:
    config = make_fov(tmp_path, cells((1, 0, -1)))
    (tmp_path / FOLDER / "tracks.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^\S*/{FOLDER}/tracks\.csv: .*{match}") as caught:
        index_of(config)
    assert "\n" not in str(caught.value)


def test_errors_name_the_line_of_the_file_in_every_dialect(tmp_path: Path) -> None:
    config = make_fov(tmp_path, cells((1, 0, -1)))
    texts = {
        "track_id,t,y,x\n1,0,1,1\n1,z,1,1\n": 3,
        "\n\ntrack_id;t;y;x\n1;0;1,5;1\n1;z;1;1\n": 5,
        "track_id,t,y,x\r\n\r\n1,0,1,1\r\n\r\n1,z,1,1\r\n": 5,
    }
    for text, line in texts.items():
        (tmp_path / FOLDER / "tracks.csv").write_bytes(text.encode())
        said = rf"t must be a number, but is not in line {line} \(z\)\. Correct these lines\."
        with pytest.raises(ConfigError, match=said):
            index_of(config)
        (tmp_path / FOLDER / "tracks.csv").write_bytes(text.replace("z", "1;1" if ";" in text else "1,1").encode())
        with pytest.raises(ConfigError, match=rf"line {line} has \d fields .* Correct the line"):
            index_of(config)


def test_a_table_of_a_header_only_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("fov_name;track_id;t;kind\r\n")
    file = open_table(tmp_path / "cells.csv")
    table = read_table(file, ["track_id", "t"], ["fov_name", "kind"])
    assert (table.column_names, table.num_rows) == (["track_id", "t", "fov_name", "kind"], 0)


def test_a_header_longer_than_the_first_read_is_whole(tmp_path: Path) -> None:
    names = [f"feature_{n}" for n in range(20_000)]
    frame = pd.DataFrame([[*range(20_000), 1, 0, 16.0, 16.0]], columns=[*names, "track_id", "t", "y", "x"])
    config = make_fov(tmp_path, cells((1, 0, -1)))
    frame.to_csv(tmp_path / FOLDER / "tracks.csv", sep=";", index=False)
    assert index_of(config).observations["y"].to_pylist() == [16.0]


def test_a_text_file_is_a_table_only_where_there_is_no_other(tmp_path: Path) -> None:
    for name in ("notes.txt", ".hidden.csv", "~$tracks.csv", "tracks.csv.gz.part", "archive.gz", "plot.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_sources(tmp_path, None)] == ["notes.txt"]
    (tmp_path / "Tracks.CSV.gz").touch()
    assert [path.name for path in list_sources(tmp_path, None)] == ["Tracks.CSV.gz"]
    assert list_sources(tmp_path / "nothing", None) == {}


def test_fingerprints_are_of_the_file_that_is_read(tmp_path: Path) -> None:
    config = make_fov(tmp_path, cells((1, 0, -1)))

    def tracks() -> str:
        return fingerprint_sources(config, open_plates(config))["a", "A/1/0"].tracks

    folder = tmp_path / FOLDER
    text = (folder / "tracks.csv").read_bytes()
    first = tracks()
    (folder / "notes.txt").write_text("looked at by eye")
    assert tracks() == first
    (folder / "tracks.csv").unlink()
    (folder / "tracks.csv.gz").write_bytes(gzip.compress(text, mtime=0))
    second = tracks()
    assert second != first
    (folder / "tracks.csv.gz").write_bytes(gzip.compress(text + b"1,1,16,16,-1\n", mtime=0))
    assert tracks() not in (first, second)


# TrackMate 7: machine names, names, short names, units; spots in no track have no TRACK_ID
SPOTS = """\
LABEL,ID,TRACK_ID,QUALITY,POSITION_X,POSITION_Y,POSITION_Z,POSITION_T,FRAME,RADIUS,VISIBILITY,MANUAL_SPOT_COLOR
Label,Spot ID,Track ID,Quality,X,Y,Z,T,Frame,Radius,Visibility,Spot color
Label,Spot ID,Track ID,Quality,X,Y,Z,T,Frame,R,Visibility,Spot color
,,,(quality),(pixel),(pixel),(pixel),(sec),,(pixel),,
ID7,7,0,9.5,10.5,20.5,0.0,0.0,0,4.0,1,
ID8,8,,9.5,11.5,21.5,0.0,0.0,0,4.0,1,
ID9,9,0,9.5,12.5,22.5,0.0,900.0,1,4.0,1,
ID4,4,,9.5,12.5,22.5,0.0,900.0,1,4.0,1,
"""
TRACKMATE = {"TRACK_ID": "track_id", "FRAME": "t", "POSITION_Y": "y", "POSITION_X": "x", "ID": "id"}


def spots(tmp_path: Path, text: str, **experiment: Any) -> BuildConfig:
    config = make_fov(tmp_path, cells((1, 0, -1)), experiment={"columns": TRACKMATE, **experiment})
    (tmp_path / FOLDER / "tracks.csv").write_text(text)
    return config


def test_spots_of_trackmate_are_read_and_those_in_no_track_are_counted(tmp_path: Path) -> None:
    index = index_of(spots(tmp_path, SPOTS))
    names = ["track_id", "t", "y", "x", "id"]
    assert index.observations.select(names).to_pylist() == [
        dict(zip(names, row, strict=True)) for row in ((0, 0, 20.5, 10.5, 7), (0, 1, 22.5, 12.5, 9))
    ]
    assert index.dropped == {"a": {"outside_tracks": 2}}


def test_the_map_for_trackmate_is_offered(tmp_path: Path) -> None:
    offered = r"columns: {TRACK_ID: track_id, FRAME: t, POSITION_Y: y, POSITION_X: x, ID: id}`"
    where = r"Look whether this would do, in experiments\.yaml: experiments\[0\]: `"
    with pytest.raises(ConfigError, match=rf"column 'track_id' is missing; there are \['LABEL', .* {where}{offered}\."):
        index_of(spots(tmp_path, SPOTS, columns={}))
    with pytest.raises(ConfigError, match=rf"{where}{offered} and `tracks_unit: um`\."):
        index_of(spots(tmp_path, SPOTS.replace("pixel", "micron"), columns={}))
    with pytest.raises(ConfigError, match=r"`columns: {TRACK_ID: track_id, FRAME: t, POSITION_Y: y, POSITION_X: x, "):
        index_of(spots(tmp_path, SPOTS, columns={"TRACK_ID": "track_id"}))


def test_micrometres_are_converted_only_when_asked(tmp_path: Path) -> None:
    microns = SPOTS.replace("pixel", "micron")
    with pytest.raises(
        ConfigError,
        match=r"POSITION_X is in 'micron', but .*experiments\[0\]\.tracks_unit='pixel'\. Write `tracks_unit: um` there",
    ):
        index_of(spots(tmp_path, microns))
    with pytest.raises(
        ConfigError, match=r"POSITION_X is in 'pixel', but .*tracks_unit='um'\. Write `tracks_unit: pixel`"
    ):
        index_of(spots(tmp_path, SPOTS, tracks_unit="um", pixel_size_um=(1.0, 1.0)))
    with pytest.raises(ConfigError, match=r"POSITION_X is in 'inch', .* Export it in pixels"):
        index_of(spots(tmp_path, SPOTS.replace("pixel", "inch")))
    with pytest.raises(ConfigError, match=r"tracks_unit='um', but the pixel size is not known.* Give `pixel_size_um: "):
        index_of(spots(tmp_path, microns, tracks_unit="um"))
    index = index_of(spots(tmp_path, microns, tracks_unit="um", pixel_size_um=(2.0, 0.5)))
    assert index.observations["y"].to_pylist() == [10.25, 11.25]
    assert index.observations["x"].to_pylist() == [21.0, 25.0]


def test_micrometres_of_any_table_are_converted_with_z(tmp_path: Path) -> None:
    rows = cells((1, 0, 3.0, 8.0, 4.0), header="track_id t z y x")
    unit = {"tracks_unit": "um", "pixel_size_um": [1.5, 0.5, 0.25]}
    index = index_of(make_fov(tmp_path, rows, experiment=unit))
    assert index.observations.select(["z", "y", "x"]).to_pylist() == [{"z": 2.0, "y": 16.0, "x": 16.0}]
    unit["pixel_size_um"] = [0.5, 0.25]
    with pytest.raises(ConfigError, match=r"tracks\.csv: z must be 0 where pixel_size_um has no z .* line 2 \(3\.0\)"):
        index_of(make_fov(tmp_path, rows, experiment=unit))


def test_micrometres_are_converted_by_the_pixel_size_of_the_plate(tmp_path: Path) -> None:
    units = dict.fromkeys("zyx", "micrometer")
    scales = {"A/1/0": {"scale": [1, 1, 1, 2.0, 0.5], "units": units}}
    write_plate(tmp_path / "plate", shape=(10, 1, 1, 32, 32), dtype="uint8", channel_names=("Phase",), scales=scales)
    config = spots(tmp_path, SPOTS.replace("pixel", "micron"), tracks_unit="um")
    index = index_of(fill_in_from_plates(config, open_plates(config)))
    assert index.observations["y"].to_pylist() == [10.25, 11.25]
    assert index.observations["x"].to_pylist() == [21.0, 25.0]


def test_daughters_in_a_track_of_trackmate_are_explained(tmp_path: Path) -> None:
    divided = SPOTS + "ID5,5,0,9.5,14.5,24.5,0.0,900.0,1,4.0,1,\n"
    with pytest.raises(ConfigError, match=r"\(track_id, t\) must be in one row only, .* line 9 \(\[0 1\]\)") as caught:
        index_of(spots(tmp_path, divided))
    (said,) = caught.value.__notes__
    assert said.startswith(
        "TrackMate gives daughters the TRACK_ID of their mother, so after a division one track has two"
    )
    assert "`Branch hierarchy analysis`" in said


def test_time_in_seconds_is_no_frame(tmp_path: Path) -> None:
    columns = {"POSITION_T" if theirs == "FRAME" else theirs: ours for theirs, ours in TRACKMATE.items()}
    with pytest.raises(
        ConfigError, match=r"POSITION_T is in 'sec', but t must be frames\. Map FRAME to t in .*columns"
    ):
        index_of(spots(tmp_path, SPOTS, columns=columns))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("ID t x y z parent root", {"ID": "track_id", "parent": "parent_track_id"}),  # btrack
        ("track_id t z y x id parent_track_id parent_id", {}),  # ultrack
        ("particle frame y x mass", {"particle": "track_id", "frame": "t"}),  # trackpy
        (
            "ImageNumber ObjectNumber Nuclei_Location_Center_X Nuclei_Location_Center_Y Nuclei_TrackObjects_Label_50",
            {
                "Nuclei_TrackObjects_Label_50": "track_id",
                "ImageNumber": "t",
                "Nuclei_Location_Center_Y": "y",
                "Nuclei_Location_Center_X": "x",
            },
        ),
        (
            "label Frame centroid-0 centroid-1",
            {"label": "track_id", "Frame": "t", "centroid-0": "y", "centroid-1": "x"},
        ),
        ("cell_id TimePoint centroid-0 centroid-1 centroid-2", None),
        ("trackid Y X T", {"trackid": "track_id", "T": "t", "Y": "y", "X": "x"}),
        ("Trak_ID T Y_(µm) X_[px]", {"Trak_ID": "track_id", "T": "t", "Y_(µm)": "y", "X_[px]": "x"}),
        ("a b c", {}),
    ],
)
def test_well_known_names_are_guessed(header: str, expected: dict[str, str] | None) -> None:
    names = header.split()
    wanted = [name for name in ("track_id", "t", "y", "x", "parent_track_id") if name not in names]
    if expected is None:  # in three dimensions the first axis is z
        expected = {"cell_id": "track_id", "TimePoint": "t", "centroid-1": "y", "centroid-2": "x"}
    assert guess_columns(names, wanted) == expected


@pytest.mark.parametrize(
    ("header", "advice"),
    [
        (
            "a,b,t,y,x",
            r"Rename it in the table, or say in .*\[0\] which column it is: `columns: {<your name>: track_id}`\.",
        ),
        ("ID,b,c,y,x", r"in .*\[0\]: `columns: {ID: track_id}` and add \['t'\], for which no column looks right\."),
        ("track_id,t,y,x,Kind", r"label_columns asks for it\. .*`columns: {Kind: kind}`\."),
        ("track_id,t,y,x", r"column 'kind' is missing; .*`columns: {<your name>: kind}`\."),
    ],
)
def test_a_missing_column_says_which_map_would_do(tmp_path: Path, header: str, advice: str) -> None:
    config = make_fov(
        tmp_path, cells((1, 0, -1)), experiment={"label_columns": ["kind"] if "a" not in header[:1] else []}
    )
    if header.startswith("ID"):
        config = dataclasses.replace(config, experiments=(_without_labels(config),))
    (tmp_path / FOLDER / "tracks.csv").write_text(header + "\n")
    with pytest.raises(ConfigError, match=advice):
        index_of(config)


def test_a_map_gives_columns_our_names(tmp_path: Path) -> None:
    rows = cells((5, 0, 99, 2, "G1", 4), (5, 1, 99, 3, "S", 4), header="ID frame t z phase x_px")
    columns = {"ID": "track_id", "frame": "t", "phase": "state", "x_px": "x"}
    config = make_fov(tmp_path, rows, experiment={"columns": columns, "label_columns": ["state"]})
    found = index_of(config).observations.select(["track_id", "t", "z", "x", "state"]).to_pylist()
    # t and x of the table give way to those that the map names
    assert [list(row.values()) for row in found] == [[5, 0, 2, 4, "G1"], [5, 1, 3, 4, "S"]]


def test_a_map_must_name_columns_that_are_there(tmp_path: Path) -> None:
    rows: Rows = cells((5, 0), header="ID t")
    with pytest.raises(
        ConfigError,
        match=r"experiments\[0\]\.columns\.Id is no column of \S+tracks\.csv; there are \['y', 'x', 'ID', 't'\]\. "
        r"Did you mean 'ID'\?",
    ):
        index_of(make_fov(tmp_path, rows, experiment={"columns": {"Id": "track_id"}}))
    config = make_fov(tmp_path, rows, experiment={"columns": {"ID": "track_id"}})
    (tmp_path / FOLDER / "tracks.csv").write_text("ID,t,y,x,ID\n")
    with pytest.raises(ConfigError, match=r"tracks\.csv: column 'ID' is there twice\. Remove one"):
        index_of(config)


def test_annotations_have_a_map_of_their_own_and_the_same_dialects(tmp_path: Path) -> None:
    table = "Position;Cell;Frame;Type;Größe;\nA/1/0;1;0;T cell;1,5;\nA/1/0;1;1;B cell;2,5;\n;;;;;\n"
    (tmp_path / "cells.txt").write_bytes(table.encode("utf-16"))
    experiment: dict[str, Any] = {"annotations": str(tmp_path / "cells.txt")}
    rows = cells((1, 0, -1), (1, 1, -1))
    offered = r"`annotation_columns: {Position: fov_name, Cell: track_id, Frame: t}`\."
    with pytest.raises(ConfigError, match=rf"column 'fov_name' is missing; .*{offered}"):
        index_of(make_fov(tmp_path, rows, experiment=experiment))
    experiment["annotation_columns"] = {"Position": "fov_name", "Cell": "track_id", "Frame": "t", "Type": "cell_type"}
    index = index_of(make_fov(tmp_path, rows, experiment=experiment))
    assert index.observations["cell_type"].to_pylist() == ["T cell", "B cell"]
    assert index.observations["Größe"].to_pylist() == ["1,5", "2,5"]  # labels are text, as written
    assert index.notes == ()


ENTRY = {
    **{"name": "a", "data_path": "p", "tracks_path": "t", "channel_names": ["c"], "source_channel": ["c"]},
    "condition_wells": {"mock": ["A/1"]},
}


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        (
            {"columns": {"FRAME": "frame"}},
            r"experiments\[0\]\.columns\.FRAME='frame' must be one of \['track_id', 't', 'y', 'x', 'z', 'id', ",
        ),
        (
            {"columns": {"A": "t", "B": "t"}},
            r"columns\.B='t' must be the name of one column, but 'A' has it too\. Remove one",
        ),
        ({"columns": ["FRAME", "t"]}, r"columns=\['FRAME', 't'\] must be a mapping of your columns to ours"),
        ({"columns": {"FRAME": None}}, r"columns\.FRAME=None must be a non-empty string"),
        (
            {"annotation_columns": {"A": "t"}},
            r"annotation_columns=\{'A': 't'\} must be given with annotations only\. Remove it",
        ),
        ({"tracks_unit": "micron"}, r"tracks_unit='micron' must be one of \['pixel', 'um'\]"),
        ({"pixel_size_um": [0.5]}, r"pixel_size_um=\[0\.5\] must be a list of two or three numbers"),
        ({"pixel_size_um": [0.5, 0]}, r"pixel_size_um\[1\]=0 must be a number > 0"),
    ],
)
def test_wrong_maps_are_an_error_that_names_them(tmp_path: Path, keys: dict[str, Any], match: str) -> None:
    path = write_experiments(tmp_path / "experiments.yaml", [ENTRY | keys])
    with pytest.raises(ConfigError, match=match):
        parse_build_config(path)


def test_names_in_a_map_are_text_as_written(tmp_path: Path) -> None:
    """A table without names that pandas numbered: 0, 1, 2, 3."""
    path = write_experiments(tmp_path / "experiments.yaml", [ENTRY | {"columns": {0: "track_id", 1: "t"}}])
    assert parse_build_config(path).experiments[0].columns == {"0": "track_id", "1": "t"}
    assert parse_build_config(write_experiments(path, [ENTRY | {"columns": None}])).experiments[0].columns == {}
