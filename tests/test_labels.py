"""Labels: four sources, one column each, and the partitions that they make, recomputed with pandas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynaclr_wds.contract import LabelRecord
from dynaclr_wds.errors import ConfigError
from etl.index import Index, drop_observations
from etl.indexing import build_index
from etl.labels import label_codes
from etl.source.config import INDEX_COLUMNS
from etl.source.experiments import BuildConfig, parse_build_config
from etl.source.fingerprints import describe_changes, fingerprint_sources
from etl.source.preflight import open_plates
from etl.source.track_formats import MOST_VALUES, encode_label
from tests.plates import Rows, cells, make_fov, random_tracks, write_experiments, write_plate, write_tracks

FOVS = ("A/1/0", "A/1/1", "B/2/0", "C/3/0")
CONDITIONS = {"mock": ["A/1", "C/3"], "virus": ["B/2"]}
KEYS = ["experiment", "fov_name", "track_id", "t"]


def index_of(config: BuildConfig) -> Index:
    return build_index(config, open_plates(config))


def write_collection(root: Path) -> BuildConfig:
    """Two experiments that use all four sources of labels, differently."""
    entries: list[dict[str, Any]] = []
    for number, name in enumerate("ab"):
        rng = np.random.default_rng([5, number])
        write_plate(root / name / "plate", fovs=FOVS, shape=(8, 1, 1, 32, 32), dtype="uint8", channel_names=("Phase",))
        annotations: Rows = []
        for fov in FOVS:
            rows = random_tracks(rng, frames=8, height=32, width=32)
            for row in rows:
                row["cell_type"] = ["T", "B", ""][rng.integers(3)]
                if rng.random() < 0.5 or row["track_id"] == 0:
                    annotations.append(
                        {
                            "fov_name": fov,
                            "track_id": row["track_id"],
                            "t": row["t"],
                            "state": ["G1", "S", None][rng.integers(3)],
                            "rounds": int(rng.integers(3)),
                        }
                    )
            write_tracks(root / name / "tracks", fov, rows)
        annotations.append({"fov_name": "Z/9/0", "track_id": 0, "t": 0, "state": "G2", "rounds": 7})
        frame = pd.DataFrame(annotations)
        if number:  # labels of whole tracks
            frame = frame.drop(columns="t").drop_duplicates(["fov_name", "track_id"])
            frame.to_parquet(root / name / "annotations.parquet", index=False)
        else:
            frame.to_csv(root / name / "annotations.csv", index=False)
        entries.append(
            {
                "name": name,
                "data_path": f"{name}/plate",
                "tracks_path": f"{name}/tracks",
                "channel_names": ["Phase"],
                "source_channel": ["Phase"],
                "condition_wells": CONDITIONS,
                "interval_minutes": 30.0,
                "annotations": f"{name}/annotations.{'parquet' if number else 'csv'}",
            }
        )
    entries[0] |= {"labels": {"marker": "TOMM20"}, "label_columns": ["cell_type"], "organelle": "mitochondria"}
    entries[1] |= {"well_labels": {"marker": {"SEC61B": ["A/1"], "TOMM20": ["B/2"]}}, "moi": 5}
    options = {"yx_patch_size": [8, 8], "shard_by": ["marker", "condition"]}
    return parse_build_config(write_experiments(root / "experiments.yaml", entries, **options))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BuildConfig:
    return write_collection(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def index(config: BuildConfig) -> Index:
    return index_of(config)


def read_kept(root: Path, name: str) -> pd.DataFrame:
    """Read the tracks of an experiment, without the cells that lie outside the middle half of a patch in the image.

    Of 8 pixels these are 2 to 5, and the first pixel of a patch is one of 0 to 24.
    """
    tracks = pd.concat(
        pd.read_csv(root / name / "tracks" / fov / "tracks.csv", dtype=str, keep_default_na=False).assign(fov_name=fov)
        for fov in FOVS
    ).astype({"track_id": int, "t": int})
    place = tracks[["y", "x"]].astype(float)
    kept = tracks[((place >= 2) & (place < 24 + 5 + 1)).all(axis=1)]
    assert 0.6 < len(kept) / len(tracks) < 1
    return kept


def recompute(root: Path) -> pd.DataFrame:
    """Read the files of `write_collection` with pandas and merge them; null is ""."""
    frames = []
    for name in "ab":
        tracks = read_kept(root, name)
        if name == "a":
            annotations = pd.read_csv(root / "a/annotations.csv", dtype=str, keep_default_na=False)
            annotations = annotations.astype({"track_id": int, "t": int})
        else:
            annotations = pd.read_parquet(root / "b/annotations.parquet").fillna({"state": ""}).astype({"rounds": str})
        keys = ["fov_name", "track_id", "t"] if name == "a" else ["fov_name", "track_id"]
        rows = tracks.merge(annotations, how="left", on=keys).fillna({"state": "", "rounds": ""})
        rows["well"] = rows["fov_name"].str.rsplit("/", n=1).str[0]
        rows["condition"] = rows["well"].map({"A/1": "mock", "C/3": "mock", "B/2": "virus"})
        by_well = {"A/1": "SEC61B", "B/2": "TOMM20", "C/3": ""}
        rows["marker"] = "TOMM20" if name == "a" else rows["well"].map(by_well)
        rows["organelle"], rows["moi"] = ("mitochondria", "") if name == "a" else ("", "5")
        if name == "b":
            rows["cell_type"] = ""  # written in its track files, but not asked for
        frames.append(rows.assign(experiment=name))
    return pd.concat(frames).sort_values(KEYS).reset_index(drop=True)


def test_labels_equal_a_merge_in_pandas(config: BuildConfig, index: Index) -> None:
    expected = recompute(Path(config.where).parent)
    names = ["organelle", "marker", "cell_type", "state", "rounds", "moi"]
    assert [label.name for label in index.labels] == ["experiment", "condition", "well", *names]
    found = index.observations.select([*KEYS, "condition", "well", *names]).to_pandas()
    for name in (*KEYS, "condition", "well", *names):
        column = found[name] if name in ("track_id", "t") else found[name].astype(object).fillna("")
        assert column.tolist() == expected[name].tolist(), name
    # every value is there somewhere, and so is null
    assert set(expected["state"]) == {"G1", "S", ""}
    assert set(expected["rounds"]) == {"0", "1", "2", ""}


def test_codes_and_values_equal_a_merge_in_pandas(config: BuildConfig, index: Index) -> None:
    expected = recompute(Path(config.where).parent)
    for label in index.labels:
        values = sorted(set(expected[label.name]) - {""})
        assert label.values == tuple(values)
        codes = [values.index(value) if value else -1 for value in expected[label.name]]
        assert label_codes(index.observations, label).tolist() == codes


def test_partitions_equal_a_group_by_in_pandas(config: BuildConfig, index: Index) -> None:
    expected = recompute(Path(config.where).parent)
    # no marker comes first; both experiments meet in (TOMM20, virus)
    assert index.partitions == (
        {"marker": None, "condition": "mock"},
        {"marker": "SEC61B", "condition": "mock"},
        {"marker": "TOMM20", "condition": "mock"},
        {"marker": "TOMM20", "condition": "virus"},
    )
    number = expected.groupby(["marker", "condition"]).ngroup()
    assert index.observations["partition_index"].to_pylist() == number.tolist()
    shared = expected[number == 3]
    assert set(shared["experiment"]) == {"a", "b"}


def test_labels_are_dictionaries_and_a_value_stands_there_once(index: Index) -> None:
    for name in (*(label.name for label in index.labels), "lineage_id", "global_track_id", "fov_name"):
        column = index.observations[name].combine_chunks()
        assert column.type == pa.dictionary(pa.int32(), pa.string()), name
        values = column.dictionary.to_pylist()
        assert len(set(values)) == len(values)


def test_reserved_names_are_the_columns_of_the_index(index: Index) -> None:
    labels = {label.name for label in index.labels} - {"experiment", "condition", "well"}
    assert set(INDEX_COLUMNS) == set(index.observations.column_names) - labels


def test_annotations_of_no_cell_are_counted_and_said(config: BuildConfig, index: Index) -> None:
    """One is about a FOV that isn't there, the others are about cells that are left out at the border."""
    root, expected = Path(config.where).parent, []
    tables = {"a/annotations.csv": ["fov_name", "track_id", "t"], "b/annotations.parquet": ["fov_name", "track_id"]}
    for name, keys in tables.items():
        rows = pd.read_csv(root / name) if name.endswith(".csv") else pd.read_parquet(root / name).reset_index()
        about = rows.merge(read_kept(root, name[0])[keys].drop_duplicates(), how="left", on=keys, indicator=True)
        lost = np.flatnonzero(about["_merge"] == "left_only")
        assert lost[-1] == len(rows) - 1
        first = f"line {lost[0] + 2}" if name.endswith(".csv") else f"row {lost[0]}"
        expected.append(
            f"{root / name}: rows about no cell of {name[0]} that is built: {len(lost)} of {len(rows)}; the first is "
            f"{first}."
        )
    assert index.notes == tuple(expected)


def test_dropping_observations_drops_values_that_nothing_has(config: BuildConfig, index: Index) -> None:
    tau = {experiment.name: config.tau_frames(experiment) for experiment in config.experiments}
    keep = index.observations["experiment"].to_numpy() == "a"
    later = drop_observations(index, np.asarray(keep, dtype=bool), "zero_frame", tau)
    values = {label.name: label.values for label in later.labels}
    assert (values["experiment"], values["marker"], values["moi"]) == (("a",), ("TOMM20",), ())
    assert values["state"] == ("G1", "S")
    assert later.partitions == (
        {"marker": "TOMM20", "condition": "mock"},
        {"marker": "TOMM20", "condition": "virus"},
    )


def annotate(tmp_path: Path, text: str) -> dict[str, Any]:
    (tmp_path / "annotations.csv").write_text(text)
    return {"annotations": str(tmp_path / "annotations.csv")}


def labels_of(index: Index, name: str) -> list[str | None]:
    values: list[str | None] = index.observations[name].to_pylist()
    return values


def test_values_are_text_as_written_and_blank_or_nan_is_null(tmp_path: Path) -> None:
    header = "track_id t a b"
    rows = cells((0, 0, "007", " "), (0, 1, "True", "NaN"), (0, 2, "1.50", "NA"), (0, 3, "", "x"), header=header)
    index = index_of(make_fov(tmp_path, rows, experiment={"label_columns": ["a", "b"]}))
    assert labels_of(index, "a") == ["007", "True", "1.50", None]
    assert labels_of(index, "b") == [None, None, "NA", "x"]


def test_yaml_values_are_text_as_written(tmp_path: Path) -> None:
    text = """
    experiments:
      - name: a
        data_path: plate
        tracks_path: tracks
        channel_names: [Phase]
        source_channel: [Phase]
        condition_wells: {mock: [A/1]}
        organelle: no
        labels: {passage: 007, day: 2024-01-05, dose: 0.50, fixed: yes, nothing: , gone: .nan}
        well_labels: {mM: {0.50: [A/1], 1e3: [B/2]}}
        start_hpi: 1.50
    """
    (tmp_path / "experiments.yaml").write_text(text)
    (experiment,) = parse_build_config(tmp_path / "experiments.yaml").experiments
    assert experiment.labels == {
        **{"organelle": "no", "passage": "007", "day": "2024-01-05", "dose": "0.50", "fixed": "yes"},
        **{"nothing": None, "gone": None},
    }
    assert experiment.well_labels == {"mM": {"0.50": ("A/1",), "1e3": ("B/2",)}}
    assert experiment.start_hpi == 1.5


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.chunked_array([[1.0, 0.5, float("nan"), None]]), ["1", "0.5", None, None]),
        (pa.chunked_array([[True, None, False]]), ["true", None, "false"]),
        (pa.chunked_array([["x", "y"], ["", "x", " nan "]]), ["x", "y", None, "x", None]),
        (pa.chunked_array([pa.array(["x"]).dictionary_encode(), pa.array(["y", None]).dictionary_encode()]), None),
        (pa.chunked_array([pa.nulls(2)]), [None, None]),
        (pa.chunked_array([], pa.string()), []),
    ],
)
def test_columns_of_any_plain_type_become_labels(column: pa.ChunkedArray, expected: list[str | None] | None) -> None:
    encoded = encode_label(column, "here")
    assert encoded.type == pa.dictionary(pa.int32(), pa.string())
    assert encoded.to_pylist() == (["x", "y", None] if expected is None else expected)


def test_a_label_is_a_category_of_plain_values() -> None:
    with pytest.raises(ConfigError, match=r"here is of type list<.*>, but a label must be text, number, boolean or"):
        encode_label(pa.chunked_array([[[1]]]), "here")
    with pytest.raises(ConfigError, match=r"here has 100001 distinct values, but a label may have 100000"):
        encode_label(pa.chunked_array([np.arange(MOST_VALUES + 1)]), "here")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "fov_name,t,state\n",
            r"annotations\.csv: column 'track_id' is missing; there are \['fov_name', 't', 'state'\]",
        ),
        ("track_id,fov_name,state,state\n", r"annotations\.csv: column 'state' is there twice"),
        ("track_id,,fov_name\n", r"annotations\.csv: a column has no name; there are"),
        (
            "track_id,fov_name,state,\n1,A/1/0,x,\n2,A/1/0,x,y\n",
            r"annotations\.csv: the last column, which has no name, must be empty, .* line 3 \(y\)",
        ),
        ("track_id,fov_name,well\n", r"column 'well' must be none of the index's own columns \['observation', "),
        (
            "track_id,fov_name,cell_type\n",
            r"label 'cell_type' must be given once, but .*experiments\[0\] gives it too\. Remove one",
        ),
        (
            "track_id,fov_name,state\n1,A/1/0,x\n2,A/1/0,x\n1,A/1/0,y\n",
            r"annotations\.csv: \(fov_name, track_id\) must be in one row only, but is not in line 4",
        ),
        (
            "track_id,t,fov_name,state\n1,0,A/1/0,x\n1,1,A/1/0,x\n1,1,A/1/0,y\n",
            r"\(fov_name, track_id, t\) must be in one row only, but is not in line 4",
        ),
        ("track_id,fov_name,state\n1.5,A/1/0,x\n", r"annotations\.csv: track_id must be a whole number, but .* line 2"),
        (
            "track_id,fov_name,state\n1,,x\n",
            r"annotations\.csv: fov_name must be row/col/fov, but is not in line 2 \(empty",
        ),
        (
            "track_id,fov_name,state\n1,A/1/0,x",
            r"annotations\.csv: the last line \('1,A/1/0,x'\) must end with a newline",
        ),
    ],
)
def test_wrong_annotations_are_an_error_that_names_them(tmp_path: Path, text: str, match: str) -> None:
    rows = cells((1, 0, "x"), (1, 1, "y"), header="track_id t cell_type")
    config = make_fov(tmp_path, rows, experiment={"label_columns": ["cell_type"], **annotate(tmp_path, text)})
    with pytest.raises(ConfigError, match=match):
        index_of(config)


def test_an_annotation_table_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    config = make_fov(tmp_path, cells((1, 0, -1)), experiment={"annotations": str(tmp_path / "gone.csv")})
    with pytest.raises(
        ConfigError, match=r"experiments\[0\]\.annotations='.*gone\.csv' has no file\. Give a table \(\.csv, "
    ):
        index_of(config)
    (tmp_path / "notes.xlsx").touch()
    config = make_fov(tmp_path, cells((1, 0, -1)), experiment={"annotations": str(tmp_path / "notes.xlsx")})
    with pytest.raises(
        ConfigError,
        match=r"notes\.xlsx: the suffix '\.xlsx' must be one of \['\.csv', '\.tsv', '\.txt', '\.csv\.gz', ",
    ):
        index_of(config)


def test_several_annotations_of_no_cell_are_said_at_once(tmp_path: Path) -> None:
    text = "track_id,fov_name,t,state\n1,A/1/0,0,x\n1,A/1/0,5,x\n9,A/1/0,0,x\n"
    index = index_of(make_fov(tmp_path, cells((1, 0, -1)), experiment=annotate(tmp_path, text)))
    assert labels_of(index, "state") == ["x"]
    assert index.notes == (
        f"{tmp_path / 'annotations.csv'}: rows about no cell of a that is built: 2 of 3; the first is line 3.",
    )


def test_annotations_of_other_tracks_are_refused(tmp_path: Path) -> None:
    text = "track_id,fov_name,state\n7,A/1/0,x\n8,A/1/0,y\n"
    with pytest.raises(
        ConfigError, match=r"annotations\.csv: no row of 2 is about a cell of a that is built, so all its labels"
    ):
        index_of(make_fov(tmp_path, cells((1, 0, -1)), experiment=annotate(tmp_path, text)))


def test_a_changed_annotation_table_changes_the_fingerprint(tmp_path: Path) -> None:
    text = "track_id,fov_name,state\n1,A/1/0,x\n"
    config = make_fov(tmp_path, cells((1, 0, -1)), experiment=annotate(tmp_path, text))
    plates = open_plates(config)
    before = fingerprint_sources(config, plates)
    assert fingerprint_sources(config, plates) == before
    annotate(tmp_path, text.replace("x", "y"))
    after = fingerprint_sources(config, plates)
    assert describe_changes(before, after) == ["a: files of tracks changed: A/1/0"]
    (tmp_path / "annotations.csv").unlink()
    assert fingerprint_sources(config, plates, before) == before


def test_a_label_column_that_is_not_in_the_track_file_is_an_error(tmp_path: Path) -> None:
    config = make_fov(tmp_path, cells((1, 0, -1)), experiment={"label_columns": ["cell_type"]})
    with pytest.raises(
        ConfigError, match=r"column 'cell_type' is missing; there are .* experiments\[0\]\.label_columns asks for it"
    ):
        index_of(config)


def test_shard_by_is_constant_in_a_lineage(tmp_path: Path) -> None:
    header = "track_id t parent_track_id state"
    same = cells((1, 0, -1, "x"), (2, 1, 1, "x"), (3, 0, -1, "y"), header=header)
    options: dict[str, Any] = {"experiment": {"label_columns": ["state"]}, "shard_by": ["state"]}
    assert index_of(make_fov(tmp_path, same, **options)).partitions == ({"state": "x"}, {"state": "y"})
    change = cells((3, 0, -1, "y"), (1, 0, -1, "x"), (2, 1, 1, "y"), header=header)
    with pytest.raises(
        ConfigError,
        match=r"shards\.shard_by=\['state'\]: state must be the same in all of a lineage, but lineage a/A/1/0/1 has "
        r"'x' and 'y'\. Leave state out of shard_by",
    ):
        index_of(make_fov(tmp_path, change, **options))
    missing = cells((1, 0, -1, "x"), (2, 1, 1, ""), header=header)
    with pytest.raises(ConfigError, match=r"lineage a/A/1/0/1 has 'x' and no value\."):
        index_of(make_fov(tmp_path, missing, **options))


def test_shard_by_names_labels(tmp_path: Path) -> None:
    config = make_fov(
        tmp_path, cells((1, 0, -1)), shard_by=["condition", "markr"], experiment={"labels": {"marker": "x"}}
    )
    with pytest.raises(
        ConfigError,
        match=r"shards\.shard_by\[1\]='markr' must be one of the labels \['experiment', 'condition', 'well', "
        r"'marker'\]",
    ):
        index_of(config)


def test_observations_keep_the_order_of_files_with_different_dictionaries(tmp_path: Path) -> None:
    rows = cells((0, 0, "b"), (0, 1, "a"), header="track_id t kind")
    config = make_fov(tmp_path, rows, "tracks.parquet", experiment={"label_columns": ["kind"]})
    path = tmp_path / "tracks/A/1/0/tracks.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("kind"), "kind", table["kind"].dictionary_encode()), path)
    index = index_of(config)
    assert labels_of(index, "kind") == ["b", "a"]
    assert index.labels[-1] == LabelRecord(name="kind", values=("a", "b"))
