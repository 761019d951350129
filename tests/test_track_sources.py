"""Tracks as programs write them: every format gives the index of the same tracks as a table, and what is wrong is said.

Files of `data/tracks` were written by the programs themselves; README.md there says which, and who made the tables.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from dynaclr_wds.errors import ConfigError
from etl.index import Index
from etl.indexing import build_index
from etl.source.config import BuildConfig, ExperimentConfig
from etl.source.fingerprints import fingerprint_sources
from etl.source.preflight import open_plates
from etl.source.track_sources.graph import split_tracks
from tests.plates import KEEP_ALL, write_plate

FILES = Path(__file__).parent / "data/tracks"

FLAT = {"shape": (10, 1, 1, 64, 64), "pixel_size_um": (0.5, 0.5), "interval_minutes": 30.0}
CELEGANS = {
    "shape": (17, 1, 1, 295, 240),
    "pixel_size_um": (1.0, 0.1984666072986889, 0.1984666072986889),
    "interval_minutes": 2.0,
}
FAKE_TRACKS = {"shape": (6, 1, 1, 33, 43), "pixel_size_um": (0.5, 0.5), "interval_minutes": 30.0}

Case = tuple[str, str, dict[str, Any]]
CASES: dict[str, Case] = {
    "ultrack, table": ("ultrack.csv", "ultrack.csv", FLAT),
    "ultrack, zarr-napari": ("ultrack-export.tar.xz", "ultrack.csv", FLAT),
    "ultrack, ctc": ("ultrack-ctc.tar.xz", "ultrack-ctc.csv", FLAT),
    "ultrack, geff": ("ultrack-geff.tar.xz", "ultrack.csv", FLAT),
    "ultrack, trackmate": ("ultrack.xml", "ultrack.csv", FLAT),
    "btrack": ("btrack.h5", "btrack.csv", FLAT),
    "TrackMate, pixels": ("trackmate-fake-tracks.xml", "trackmate-fake-tracks.csv", FAKE_TRACKS),
    "TrackMate, µm and divisions": ("trackmate-celegans.xml.gz", "trackmate-celegans.csv", CELEGANS),
    "geff, µm and minutes": ("geff-own.tar.xz", "trackmate-celegans.csv", CELEGANS),
    "geff of TrackMate": ("geff-of-trackmate.tar.xz", "trackmate-celegans.csv", CELEGANS),
}


def put(name: str, folder: Path) -> Path:
    """Put a file of the data, unpacked, into a folder; return what tracks_path would be."""
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".tar.xz"):
        shutil.unpack_archive(FILES / name, folder, filter="data")
        return next(folder.iterdir())
    path = folder / name.removesuffix(".gz")
    data = (FILES / name).read_bytes()
    path.write_bytes(gzip.decompress(data) if name.endswith(".gz") else data)
    return path


def make(tmp_path: Path, tracks: Path, case: dict[str, Any], **experiment: Any) -> BuildConfig:
    """One experiment with one FOV, A/1/0; `case` says what its plate is."""
    if not (tmp_path / "plate").exists():
        write_plate(tmp_path / "plate", shape=case["shape"], dtype="uint8", channel_names=("Phase",))
    entry = ExperimentConfig(
        name="a",
        data_path=str(tmp_path / "plate"),
        tracks_path=str(tracks),
        channel_names=("Phase",),
        source_channel=("Phase",),
        **({"condition_wells": {"mock": ("A/1",)}} | {k: v for k, v in case.items() if k != "shape"} | experiment),
    )
    hours = (0.01, 1.0)
    return BuildConfig(experiments=(entry,), yx_patch_size=(8, 8), tau_range_hours=hours, **KEEP_ALL)


def index_of(config: BuildConfig) -> Index:
    return build_index(config, open_plates(config))


def anchors(index: Index) -> list[tuple[Any, ...]]:
    """List what is known of cells, whatever tracks are called: a track goes by the place of its first cell."""
    rows = index.observations.to_pylist()
    first: dict[str, dict[Any, Any]] = {"global_track_id": {}, "lineage_id": {}}
    for row in sorted(rows, key=lambda row: (row["t"], row["y"], row["x"])):
        for kind, known in first.items():
            known.setdefault(row[kind], (row["t"], round(row["y"], 3), round(row["x"], 3)))
    return sorted(
        (
            *(row["fov_name"], row["t"], round(row["y"], 3), round(row["x"], 3), row["y_clamp"], row["x_clamp"]),
            *(first["global_track_id"][row["global_track_id"]], first["lineage_id"][row["lineage_id"]]),
            *(row["hpi"], row["has_candidate"], row["is_candidate"]),
        )
        for row in rows
    )


@pytest.mark.parametrize("name", CASES)
def test_a_format_has_the_anchors_of_the_same_tracks_as_a_table(tmp_path: Path, name: str) -> None:
    file, table, case = CASES[name]
    expected = index_of(make(tmp_path, put(table, tmp_path / "table"), case))
    assert len(expected.observations) > 10
    found = index_of(make(tmp_path, put(file, tmp_path / "itself"), case))
    assert anchors(found) == anchors(expected)
    in_fov = put(file, tmp_path / "tracks/A/1/0")
    assert in_fov.is_relative_to(tmp_path / "tracks")
    again = index_of(make(tmp_path, tmp_path / "tracks", case))
    assert again.observations.equals(found.observations)


@pytest.mark.parametrize(
    ("name", "feature"), [("ultrack, geff", "area"), ("TrackMate, µm and divisions", "QUALITY"), ("btrack", "area")]
)
def test_features_of_cells_may_be_labels_by_their_own_names(tmp_path: Path, name: str, feature: str) -> None:
    file, _, case = CASES[name]
    source = put(file, tmp_path / "itself")
    renamed = index_of(make(tmp_path, source, case, columns={feature: "kind"}, label_columns=("kind",)))
    found = index_of(make(tmp_path, source, case, label_columns=(feature,)))
    values = found.observations[feature].to_pylist()
    assert values == renamed.observations["kind"].to_pylist()
    assert len(set(values)) > 1


def test_the_files_hold_divisions(tmp_path: Path) -> None:
    """Else the law above would not say that daughters find their mother."""
    for name, lineages, tracks in (("ultrack.csv", 3, 7), ("btrack.csv", 3, 7), ("trackmate-celegans.csv", 4, 12)):
        case = CELEGANS if "celegans" in name else FLAT
        index = index_of(make(tmp_path / name, put(name, tmp_path / name / "t"), case))
        names = ("lineage_id", "global_track_id")
        assert [len(set(index.observations[key].to_pylist())) for key in names] == [lineages, tracks]


ROWS = (
    *(("A/1/0", 1, t, 16.0, 16.0 + t, -1) for t in range(5)),
    *(("A/1/0", 2, t, 20.0, 20.0, 1) for t in range(5, 10)),
    *(("B/2/1", 1, t, 30.0 + t, 16.0, -1) for t in range(10)),
)


def write_rows(path: Path, rows: Any = ROWS, fov: str = "fov") -> Path:
    frame = pd.DataFrame(rows, columns=[fov, "track_id", "t", "y", "x", "parent_track_id"])
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


def two_wells(tmp_path: Path, tracks: str | Path, **experiment: Any) -> BuildConfig:
    """An experiment with the FOVs A/1/0 and B/2/1."""
    if not (tmp_path / "plate").exists():
        write_plate(tmp_path / "plate", fovs=("A/1/0", "B/2/1"), shape=(10, 1, 1, 64, 64), channel_names=("Phase",))
    wells = {"condition_wells": {"mock": ("A/1",), "infected": ("B/2",)}}
    return make(tmp_path, Path(tracks), FLAT, **(wells | experiment))


def separate(tmp_path: Path, pattern: str = "{fov}/tracks.csv") -> BuildConfig:
    """The same rows in one table per FOV."""
    for name in ("A/1/0", "B/2/1"):
        path = tmp_path / "tracks" / pattern.replace("{fov}", name)
        write_rows(path, [row for row in ROWS if row[0] == name])
    return two_wells(tmp_path, tmp_path / "tracks")


@pytest.mark.parametrize(
    ("file", "column", "more"),
    [
        ("all.csv", "fov", {}),
        ("all.csv.gz", "fov_name", {}),
        ("all.parquet", "fov", {}),
        ("all.parquet", "Position", {"columns": {"Position": "fov_name"}}),
    ],
)
def test_one_table_of_an_experiment_is_the_tables_of_its_fovs(
    tmp_path: Path, file: str, column: str, more: dict[str, Any]
) -> None:
    expected = index_of(separate(tmp_path)).observations
    rows = [ROWS[n] for n in np.random.default_rng(1).permutation(len(ROWS))] + [("C/3/0", 1, 0, 1.0, 1.0, -1)]
    found = index_of(two_wells(tmp_path, write_rows(tmp_path / file, rows, column), **more)).observations
    assert found.equals(expected)
    assert len(found) == 20


@pytest.mark.parametrize("file", ["all.csv", "all.parquet"])
def test_tables_that_programs_wrote_have_the_same_anchors_in_one_table_with_a_column_fov(
    tmp_path: Path, file: str
) -> None:
    """ultrack's table and btrack's, one for each FOV, as they are; and put together by pandas."""
    tables = {"A/1/0": "ultrack.csv", "B/2/1": "btrack.csv"}
    for fov, name in tables.items():
        put(name, tmp_path / "tracks" / fov)
    expected = index_of(two_wells(tmp_path, tmp_path / "tracks"))
    assert [len(set(expected.observations[key].to_pylist())) for key in ("fov_name", "global_track_id")] == [2, 14]
    frame = pd.concat([pd.read_csv(FILES / name).assign(fov=fov) for fov, name in tables.items()])
    frame.to_parquet(tmp_path / file) if file.endswith(".parquet") else frame.to_csv(tmp_path / file, index=False)
    assert anchors(index_of(two_wells(tmp_path, tmp_path / file))) == anchors(expected)


def test_a_table_of_an_experiment_has_rows_of_every_fov(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "all.csv", [row for row in ROWS if row[0] == "A/1/0"])
    with pytest.raises(ConfigError, match=r"all\.csv: no row is of FOV B/2/1; its FOVs are \['A/1/0'\]\. Write FOVs"):
        index_of(two_wells(tmp_path, path))
    write_rows(tmp_path / "all.csv", [("B/02/01" if row[0] == "B/2/1" else row[0], *row[1:]) for row in ROWS])
    with pytest.raises(ConfigError, match=r"Write FOVs with the zeros that the plate's names have there, list"):
        index_of(two_wells(tmp_path, path))
    write_rows(tmp_path / "all.csv", [*ROWS, ("B/2/1", 1, 9, 1.0, 1.0, -1)])
    with pytest.raises(ConfigError, match=r"\(fov_name, track_id, t\) must be in one row only.* line 22"):
        index_of(two_wells(tmp_path, path))
    write_rows(tmp_path / "all.csv", [*ROWS, (None, 1, 9, 1.0, 1.0, -1)])
    with pytest.raises(ConfigError, match=r"fov_name must be row/col/fov, but is not in line 22 \(empty\)"):
        index_of(two_wells(tmp_path, path))
    write_rows(tmp_path / "all.csv", ROWS, "where")
    with pytest.raises(ConfigError, match=r"column 'fov_name' is missing; there are \['where', "):
        index_of(two_wells(tmp_path, path))
    # where one FOV is built, no row need say which
    single = two_wells(tmp_path, write_rows(tmp_path / "one.csv", ROWS[:10], "where"), include_wells=("A/1",))
    assert len(index_of(single).observations) == 10


def test_a_change_in_the_table_of_an_experiment_is_noticed(tmp_path: Path) -> None:
    config = two_wells(tmp_path, write_rows(tmp_path / "all.csv"))
    plates = open_plates(config)
    before = fingerprint_sources(config, plates)
    assert fingerprint_sources(config, plates) == before
    write_rows(tmp_path / "all.csv", ROWS[:-1])
    after = fingerprint_sources(config, plates)
    assert [key for key in before if before[key].tracks != after[key].tracks] == [("a", "A/1/0"), ("a", "B/2/1")]


@pytest.mark.parametrize("file", ["ultrack-geff.tar.xz", "ultrack-ctc.tar.xz", "ultrack.xml"])
def test_a_change_in_a_source_is_noticed(tmp_path: Path, file: str) -> None:
    tracks = put(file, tmp_path / "tracks/A/1/0")
    config = make(tmp_path, tmp_path / "tracks", FLAT)
    plates = open_plates(config)
    before = fingerprint_sources(config, plates)["a", "A/1/0"].tracks
    assert fingerprint_sources(config, plates)["a", "A/1/0"].tracks == before
    changed = tracks if tracks.is_file() else sorted(path for path in tracks.rglob("*") if path.is_file())[-1]
    changed.write_bytes(changed.read_bytes() + b"\n")
    assert fingerprint_sources(config, plates)["a", "A/1/0"].tracks != before


def test_tracks_path_may_say_where_each_source_is(tmp_path: Path) -> None:
    expected = index_of(separate(tmp_path)).observations
    for name in ("A/1/0", "B/2/1"):
        write_rows(tmp_path / f"flat/{name.replace('/', '-')}.csv", [row for row in ROWS if row[0] == name])
    pattern = str(tmp_path / "flat/{row}-{col}-{fov}.csv")
    assert index_of(two_wells(tmp_path, pattern)).observations.equals(expected)
    with pytest.raises(ConfigError, match=r"must say where the tracks of each FOV are, with \{row\}, \{col\}, \{fov\}"):
        index_of(two_wells(tmp_path, str(tmp_path / "flat/{fov}.csv")))
    (tmp_path / "flat/A-1-0.csv").unlink()
    with pytest.raises(
        ConfigError, match=r"nothing that is known for FOV 'A/1/0' \(.*flat/A-1-0\.csv\)\. Put exactly "
    ):
        index_of(two_wells(tmp_path, pattern))


def test_tracks_format_chooses_among_several(tmp_path: Path) -> None:
    put("ultrack.csv", tmp_path / "tracks/A/1/0")
    (tmp_path / "unpacked").mkdir()
    put("ultrack-geff.tar.xz", tmp_path / "unpacked").rename(tmp_path / "tracks/A/1/0/tracks.geff")
    with pytest.raises(ConfigError, match=r"2 track files \(\['tracks\.geff', 'ultrack\.csv'\]\) for FOV 'A/1/0'"):
        index_of(make(tmp_path, tmp_path / "tracks", FLAT))
    found = [index_of(make(tmp_path, tmp_path / "tracks", FLAT, tracks_format=form)) for form in ("geff", "ultrack")]
    assert anchors(found[0]) == anchors(found[1])
    with pytest.raises(ConfigError, match=r"no track file .* Put exactly an HDF5 file of btrack \(\.h5, \.hdf5\) into"):
        index_of(make(tmp_path, tmp_path / "tracks", FLAT, tracks_format="btrack"))


def test_a_source_of_one_fov_is_refused_for_several(tmp_path: Path) -> None:
    tracks = put("btrack.h5", tmp_path / "t")
    match = r"is an HDF5 file of btrack \(.*\), which holds the tracks of one FOV, but 2 are built \(A/1/0, B/2/1"
    with pytest.raises(ConfigError, match=match):
        index_of(two_wells(tmp_path, tracks))


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, file, extra in (("h5py", "btrack.h5", "btrack"), ("tifffile", "ultrack-ctc.tar.xz", "ctc")):
        config = make(tmp_path, put(file, tmp_path / extra), FLAT)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            ConfigError, match=rf"is read with {module}, which is not .*: pip install 'dynaclr-wds\[{extra}\]'"
        ):
            index_of(config)


def unpack_geff(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    tracks = put("ultrack-geff.tar.xz", tmp_path / "t")
    return tracks, json.loads((tracks / ".zattrs").read_text())


def rewrite(tracks: Path, said: dict[str, Any], **changes: Any) -> None:
    (tracks / ".zattrs").write_text(json.dumps({"geff": said["geff"] | changes}))


def test_axes_of_a_geff_that_are_swapped_or_not_named_are_refused(tmp_path: Path) -> None:
    tracks, said = unpack_geff(tmp_path)
    expected = anchors(index_of(make(tmp_path, tracks, FLAT)))
    axes = {axis["name"]: axis for axis in said["geff"]["axes"]}
    swapped = [axes[name] for name in "tzxy"]
    hints = {"display_horizontal": "x", "display_vertical": "y"}
    offer = r"Say in .*experiments\[0\] which is which: `columns: \{y: y, x: x\}`"
    for changes, match in (
        ({"axes": swapped}, r"are in the order \['z', 'x', 'y'\], not z, y, x as in images, so they may be swapped\."),
        ({"axes": None}, r"its metadata name 0 axes of time, but there must be one\."),
        ({"axes": [axes["t"]]}, r"its axes of space are not named, which does not say which is y and which is x\."),
        (
            {"display_hints": {"display_horizontal": "y", "display_vertical": "x"}},
            r"its axes seem to be swapped: .* are meant\.",
        ),
    ):
        rewrite(tracks, said, **changes)
        with pytest.raises(ConfigError, match=match + (f" {offer}" if "time" not in match else "")):
            index_of(make(tmp_path, tracks, FLAT))
    rewrite(tracks, said, axes=None)
    columns = {"t": "t", "y": "y", "x": "x"}
    assert len(anchors(index_of(make(tmp_path, tracks, FLAT, columns=columns)))) == len(expected)
    # what settles it: a hint, or the user
    rewrite(tracks, said, axes=swapped, display_hints=hints)
    assert anchors(index_of(make(tmp_path, tracks, FLAT))) == expected
    rewrite(tracks, said, axes=swapped)
    assert anchors(index_of(make(tmp_path, tracks, FLAT, columns={"y": "y", "x": "x"}))) == expected


def test_units_of_a_geff_have_to_fit(tmp_path: Path) -> None:
    tracks, said = unpack_geff(tmp_path)
    expected = index_of(make(tmp_path, tracks, FLAT)).observations

    def with_units(space: str | None, time: str | None = None, offset: float | None = None) -> Path:
        axes = [{**a, "unit": time if a["type"] == "time" else space, "offset": offset} for a in said["geff"]["axes"]]
        rewrite(tracks, said, axes=axes)
        return tracks

    assert index_of(make(tmp_path, with_units("pixel", "frame"), FLAT)).observations.equals(expected)
    small = index_of(make(tmp_path, with_units("nanometer"), FLAT | {"pixel_size_um": (0.001, 0.001)})).observations
    assert small.equals(expected)
    for tracks_, case, match in (
        (
            (None, "minute"),
            FLAT,
            r"t must be a multiple of interval_minutes=30 \(it is in 'minute'\), but is not in row",
        ),
        (("inch", None), FLAT, r"[yx] is in 'inch', but .*tracks_unit='pixel'\. Export it in pixels"),
        (("micrometer", None), FLAT | {"pixel_size_um": None}, r"'micrometer', but the pixel size is not known"),
        ((None, None, 3.0), FLAT, r"axis 't' has offset=3\.0, but positions must count from the first pixel"),
        ((None, "parsec"), FLAT, r"t is in 'parsec', but t must be frames"),
    ):
        with pytest.raises(ConfigError, match=match):
            index_of(make(tmp_path, with_units(*tracks_), case))


def merge_geff(tracks: Path) -> None:
    """Let two more edges lead to one node."""
    edges = zarr.open_array(tracks / "edges/ids", mode="r+")
    found = edges[:]
    late = found[np.isin(found[:, 1], found[found[:, 1] // 1_000_000 == 6, 1])]  # ids begin with the frame
    more = np.stack([late[:1, 0], late[1:2, 1]], 1), np.stack([late[2:3, 0], late[1:2, 1]], 1)
    rows = np.concatenate([found, *more]).astype(found.dtype)
    edges.resize(rows.shape)
    edges[:] = rows


def merge_xml(tracks: Path) -> None:
    """Let the first edge be there once more, with the source of another of that frame."""
    text = tracks.read_text()
    edges = re.findall(r'<Edge SPOT_SOURCE_ID="(\d+)" SPOT_TARGET_ID="(\d+)"[^>]*/>', text)
    first = next(pair for pair in edges)
    other = next(
        pair for pair in edges if pair != first and pair[0][0] == first[0][0] and len(pair[0]) == len(first[0])
    )
    edge = f'<Edge SPOT_SOURCE_ID="{other[0]}" SPOT_TARGET_ID="{first[1]}"/>'
    tracks.write_text(text.replace("<Edge", edge + "<Edge", 1))


@pytest.mark.parametrize(("file", "merge"), [("ultrack-geff.tar.xz", merge_geff), ("ultrack.xml", merge_xml)])
def test_merges_are_refused_with_their_count(tmp_path: Path, file: str, merge: Callable[[Path], None]) -> None:
    tracks = put(file, tmp_path / "t")
    merge(tracks)
    with pytest.raises(
        ConfigError, match=r"tracks merge at 1 cell \(the first is node \d+, with [23] parents\), but a "
    ):
        index_of(make(tmp_path, tracks, FLAT))


def test_a_challenge_folder_may_have_the_names_of_the_ground_truth(tmp_path: Path) -> None:
    tracks = put("ultrack-ctc.tar.xz", tmp_path / "t")
    expected = anchors(index_of(make(tmp_path, tracks, FLAT)))
    for path in list(tracks.iterdir()):
        path.rename(path.with_name(path.name.replace("res_track", "man_track").replace("mask", "man_track")))
    assert {path.name for path in tracks.iterdir()} >= {"man_track.txt", "man_track000.tif", "man_track009.tif"}
    assert anchors(index_of(make(tmp_path, tracks, FLAT))) == expected


def test_images_and_text_of_a_challenge_folder_agree(tmp_path: Path) -> None:
    tracks = put("ultrack-ctc.tar.xz", tmp_path / "t")
    config = make(tmp_path, tracks, FLAT)
    text = tracks / "res_track.txt"
    whole, last = text.read_text(), tracks / "mask009.tif"
    for broken, match in (
        (whole.replace("1 0 9 0\n", ""), r"labels of the images are in no line of the text \(the first is 1\)"),
        (
            whole.replace("1 0 9 0", "1 0 8 0"),
            r"label 1 is in frames 0 to 8 by the text, but in frames 0 to 9 in the im",
        ),
        (whole + "99 0 9 0\n", r"label 99 is in frames 0 to 9 by the text, but nowhere in the images"),
        (whole + "1 0 9 0\n", r"res_track\.txt: label 1 is there twice, but must have one line"),
        (whole + "x 0 9\n", r"res_track\.txt: line 8 is 'x 0 9', but must be four whole numbers"),
    ):
        text.write_text(broken)
        with pytest.raises(ConfigError, match=match):
            index_of(config)
    text.write_text(whole)
    image = last.read_bytes()
    last.write_bytes(image[:100])
    with pytest.raises(ConfigError, match=r"mask009\.tif: can't be read as TIFF"):
        index_of(config)
    last.unlink()
    with pytest.raises(ConfigError, match=r"but in frames 0 to 8 in the images \(so it is with \d of 7 tracks\)"):
        index_of(config)


@pytest.mark.parametrize("file", ["btrack.h5", "ultrack.xml", "ultrack-geff.tar.xz"])
def test_a_cut_source_is_named(tmp_path: Path, file: str) -> None:
    tracks = put(file, tmp_path / "t")
    config = make(tmp_path, tracks, FLAT)
    target = tracks if tracks.is_file() else tracks / "nodes/props/y/values/0"
    target.write_bytes(target.read_bytes()[:-40])
    with pytest.raises(ConfigError, match=rf"{re.escape(str(tracks))}: (is|its|can)"):
        index_of(config)


@given(st.data())
def test_tracks_of_a_graph_are_its_branches(data: st.DataObject) -> None:
    """Against networkx: drop the edges behind divisions, and what hangs together is a track."""
    size = data.draw(st.integers(1, 12))
    ids = np.array(data.draw(st.permutations(range(100, 100 + size))), np.int64)
    t = np.array(data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size)), np.int64)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(size))
    for node in range(size):
        earlier = [other for other in range(size) if t[other] < t[node]]
        if earlier and data.draw(st.booleans()):
            graph.add_edge(data.draw(st.sampled_from(earlier)), node)
    flip = data.draw(st.booleans())
    edges = np.array([(ids[b], ids[a]) if flip else (ids[a], ids[b]) for a, b in graph.edges], np.int64).reshape(-1, 2)
    found = split_tracks(ids, t, edges, "graph")
    if not flip:
        trusting = split_tracks(ids, None, edges, "graph")
        assert (trusting.track_id == found.track_id).all()
    kept = nx.DiGraph(graph)
    kept.remove_edges_from([(a, b) for a, b in graph.edges if graph.out_degree(a) > 1])
    for branch in nx.weakly_connected_components(kept):
        head = min(branch, key=lambda node: t[node])
        mother = next(graph.predecessors(head), None)
        for node in branch:
            assert found.track_id[node] == ids[head]
            assert found.parent_track_id[node] == (-1 if mother is None else found.track_id[mother])


def test_edges_in_a_circle_are_refused() -> None:
    ids = np.arange(3)
    with pytest.raises(ConfigError, match="graph: edges lead in a circle, but must lead to later frames"):
        split_tracks(ids, None, np.array([[0, 1], [1, 2], [2, 0]]), "graph")
    with pytest.raises(ConfigError, match=r"1 edges join cells of one frame \(the first joins nodes \[0, 1\]"):
        split_tracks(ids, np.array([0, 0, 1]), np.array([[0, 1]]), "graph")
    with pytest.raises(ConfigError, match="edges lead to node 7, but there is no such node"):
        split_tracks(ids, ids, np.array([[0, 7]]), "graph")
