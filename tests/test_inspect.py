"""Laws of `inspect`: counts are those of the tables, the same before and after a build; pairs are what is stored."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from dynaclr_wds.pages.shell import MOST_BYTES
from dynaclr_wds.shardset import ShardSet
from etl.build_shards import build_shards
from etl.indexing import store_index
from etl.inspect.__main__ import main
from etl.inspect.as_json import to_json
from etl.inspect.choices import choose_frames, choose_pairs
from etl.inspect.collection import split_runs
from etl.inspect.lineage_trees import plan_heights
from etl.inspect.looking import Inspection, Options, inspect, inspect_collection
from etl.inspect.page import write_inspection
from etl.inspect.plates import PlateCollection
from etl.inspect.shards import ShardCollection
from etl.inspect.tables import describe_cost
from etl.inspect.tally import Tally, Tallying, plan_hours
from etl.run.progress import Progress
from etl.source.experiments import parse_build_config
from etl.source.preflight import open_plates
from etl.source.scales import fill_in_from_plates
from tests.plates import make_collection, write_experiments, write_plate, write_tracks
from tests.set_files import find_array
from tests.test_pages import Tags


@pytest.fixture(scope="module")
def plates(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> PlateCollection:
    """`collection`, before it is built."""
    config = parse_build_config(collection)
    opened = open_plates(config)
    config = fill_in_from_plates(config, opened)
    return PlateCollection(config, opened, store_index(config, opened, tmp_path_factory.mktemp("index")), "plates")


@pytest.fixture(scope="module")
def before(plates: PlateCollection) -> Inspection:
    return inspect_collection(plates, 5, Progress())


@pytest.fixture(scope="module")
def after(shards: Path) -> Inspection:
    return inspect(shards)


def read_table(path: Path) -> pd.DataFrame:
    """Read a track table, with the root of every track's lineage, found one parent at a time."""
    table = pd.read_csv(path)
    parents = dict(zip(table.track_id, table.parent_track_id, strict=True))

    def climb(track: int) -> int:
        while parents[track] in parents:
            track = parents[track]
        return track

    return table.assign(root=[climb(track) for track in table.track_id])


def count_with_pandas(folder: Path, low: int, high: int) -> dict[str, Any]:
    """Count what one experiment of `collection` holds, from its track tables alone."""
    tables = {path.parent.relative_to(folder).as_posix(): read_table(path) for path in folder.rglob("*.csv")}
    total: Counter[str] = Counter()
    tau: Counter[int] = Counter()
    lengths: list[int] = []
    by_well: Counter[str] = Counter()
    for fov, table in tables.items():
        seen = set(zip(table.root, table.t, strict=True))
        later = {
            k: [(root, t + k) in seen for root, t in zip(table.root, table.t, strict=True)]
            for k in range(low, high + 1)
        }
        tau.update({k: sum(found) for k, found in later.items()})
        track = table.groupby("track_id")
        own = track.size()
        lengths += own.tolist()
        daughters = track.parent_track_id.first()
        daughters = daughters[daughters.isin(own.index)].value_counts()
        by_well[fov.rpartition("/")[0]] += len(table)
        total.update(
            cells=len(table),
            with_positive=int(pd.DataFrame(later).any(axis=1).sum()),
            tracks=len(own),
            lineages=table.root.nunique(),
            fovs=1,
            divisions=int((daughters > 1).sum()),
            tracks_with_gaps=int((track.t.max() - track.t.min() + 1 > own).sum()),
        )
    return {**total, "tau": dict(tau), "lengths": sorted(lengths), "by_well": by_well}


def test_counts_are_those_of_the_track_tables(collection: Path, before: Inspection) -> None:
    found = to_json(before)
    for number in (0, 3):
        said = found["experiments"][number]
        counted = count_with_pandas(collection.parent / f"e{number}" / "tracks", 1, 3)
        for name in ("cells", "with_positive", "tracks", "lineages", "fovs", "divisions", "tracks_with_gaps"):
            assert said[name] == counted[name], name
        assert {row["frames"]: row["cells"] for row in said["tau"]} == counted["tau"]
        assert [row["hours"] for row in said["tau"]] == [0.5, 1.0, 1.5]
        lengths = counted["lengths"]
        assert said["cells_per_track"]["min"] == lengths[0]
        assert said["cells_per_track"]["max"] == lengths[-1]
        assert said["cells_per_track"]["median"] == lengths[(len(lengths) + 1) // 2 - 1]
        assert said["cells_per_track"]["mean"] == pytest.approx(np.mean(lengths), abs=1e-3)
        strata = {row["labels"]["condition"]: row["cells"] for row in found["strata"]
                  if row["labels"]["experiment"] == f"e{number}"}  # fmt: skip
        assert strata == {"control": counted["by_well"]["A/1"], "infected": counted["by_well"]["B/2"]}


def test_hours_are_counted_by_condition(collection: Path, before: Inspection) -> None:
    found = to_json(before)
    edges, first = found["hpi"]["edges"], found["hpi"]["cells"][0]
    assert found["strata"][0]["labels"] == {"experiment": "e0", "condition": "control"}
    tables = [pd.read_csv(path) for path in (collection.parent / "e0/tracks/A/1").rglob("*.csv")]
    hours = pd.concat(tables).t * 0.5
    assert first == np.histogram(hours, bins=[*edges[:-1], edges[-1] + 1e-9])[0].tolist()
    assert sum(map(sum, found["hpi"]["cells"])) == found["cells"]


def test_a_set_counts_what_its_plates_did(before: Inspection, after: Inspection) -> None:
    one, other = to_json(before), to_json(after)
    for name in ("cells", "fovs", "strata", "labels", "hpi", "tau_range_hours"):
        assert other[name] == one[name], name
    own = ("bytes", "pixels", "dropped")
    for mine, theirs in zip(one["experiments"], other["experiments"], strict=True):
        assert {k: v for k, v in theirs.items() if k not in own} == {k: v for k, v in mine.items() if k not in own}
    assert [(tree.fov, tree.cells, tree.track_id.tolist(), tree.parent.tolist()) for tree in after.tally.trees[0]] == [
        (tree.fov, tree.cells, tree.track_id.tolist(), tree.parent.tolist()) for tree in before.tally.trees[0]
    ]
    np.testing.assert_array_equal(before.tally.places, after.tally.places)
    assert before.tally.places.sum() == one["cells"]


@pytest.mark.parametrize("kind", ["plates", "shards"])
def test_counts_do_not_depend_on_how_cells_are_split(kind: str, before: Inspection, after: Inspection) -> None:
    found = before if kind == "plates" else after
    tallying = Tallying(found.collection)
    for fov in range(len(found.collection.fovs)):
        tallying.add(found.collection.take(fov))
    assert describe(tallying.finish()) == describe(found.tally)
    assert list(split_runs(np.array([0, 0, 0, 1]), np.array([0, 5, 6, 12, 13]), most=6)) == [(0, 2), (2, 3), (3, 4)]


def describe(tally: Tally) -> list[object]:
    trees = [[(tree.rank, tree.begin.tolist()) for tree in own] for own in tally.trees]
    counts = [tally.experiments, tally.strata, tally.labels, tally.hours, tally.stratum_fovs]
    return [*counts, tally.hpi.tolist(), tally.places.tolist(), trees]


def test_patches_before_a_build_are_those_that_it_stores(plates: PlateCollection, shards: Path) -> None:
    stored = ShardCollection(ShardSet.open(shards), "shards")
    for fov in (0, 5):  # experiments with the channels in either order, uint16 and float32
        rows = np.array([7, 0, 7, len(plates.take(fov)) - 1])
        assert plates.take(fov).t.tolist() == stored.take(fov).t.tolist()
        cut = plates.read_patches(fov, rows)
        assert cut.shape == (4, 2, 16, 16)
        np.testing.assert_array_equal(cut, stored.read_patches(fov, rows))


def test_patches_are_those_that_are_stored_also_where_they_are_resampled_and_the_focus_is_measured(
    tmp_path: Path,
    without_fsync: None,  # noqa: ARG001
) -> None:
    fovs = ("A/1/0", "B/2/0")
    path = make_collection(tmp_path, experiments=1, fovs=fovs, shape=(6, 2, 5, 64, 64), codec="gzip")
    document = yaml.safe_load(path.read_text())
    document["experiments"][0]["pixel_size_um"] = [1.0, 0.4, 0.4]
    path.write_text(yaml.safe_dump(document))
    options = {"reference_pixel_size_um": [0.3, 0.3], "z_focus": {"window": 3}}
    one = inspect(path, Options(overrides=options))
    build_shards(parse_build_config(path, options), tmp_path / "shards")
    other = inspect(tmp_path / "shards")
    assert to_json(one)["strata"] == to_json(other)["strata"]
    stored = other.collection
    for pair in one.pairs:
        assert pair.place.positive is not None
        rows = np.array([pair.place.anchor, pair.place.positive])
        np.testing.assert_array_equal(np.stack(pair.pixels), stored.read_patches(pair.place.fov, rows))
    assert len(one.pairs) > 2


def test_every_stratum_has_pairs_of_one_lineage_within_tau(before: Inspection, after: Inspection) -> None:
    for found in (before, after):
        assert {pair.place.stratum for pair in found.pairs} == set(range(len(found.collection.strata)))
        for pair in found.pairs:
            run = found.collection.take(pair.place.fov)
            assert pair.place.positive is not None
            assert run.lineage[pair.place.anchor] == run.lineage[pair.place.positive]
            assert 1 <= pair.t[1] - pair.t[0] <= 3
            assert run.stratum[pair.place.anchor] == pair.place.stratum
            assert pair.tracks[0] == run.track_id[run.track[pair.place.anchor]]


def test_pairs_of_a_field_of_view_share_two_frames(plates: PlateCollection) -> None:
    pairs = choose_pairs(plates.take(0), 0, (1, 3), 4)
    run = plates.take(0)
    assert len(pairs) > 1
    assert len({int(run.t[pair.anchor]) for pair in pairs}) == 1
    assert len({int(run.t[pair.positive or 0]) for pair in pairs}) == 1
    assert len({int(run.lineage[pair.anchor]) for pair in pairs}) == len(pairs)


def test_so_many_frames_are_read_as_was_asked(plates: PlateCollection, before: Inspection) -> None:
    pixels = to_json(before)["experiments"][0]["pixels"]
    assert (pixels["is_sample"], pixels["frames"], pixels["frames_looked_at"]) == (True, 30, 5)
    fovs = dict(enumerate(plates.fovs[:3]))
    chosen = choose_frames(fovs, {(0, 4)}, 7)
    assert len(chosen) == len(set(chosen)) == 7
    assert (0, 4) in chosen
    assert {fov for fov, _ in chosen} == {0, 1, 2}
    assert len(choose_frames(fovs, set(), 1000)) == 30  # all that there are
    none = to_json(inspect_collection(plates, 0, Progress()))
    assert none["experiments"][0]["pixels"]["frames_looked_at"] == 0
    assert none["seconds"] is None


KEYS = {
    "": ["version", "what", "kind", "cells", "fovs", "bytes", "bytes_are_estimated", "bytes_between", "index_bytes",
         "seconds", "workers", "tau_range_hours", "experiments", "strata", "labels", "skipped", "hpi", "warnings"],
    "experiments": ["name", "channels", "patch", "dtype", "interval_minutes", "start_hpi", "tau_frames", "cells",
                    "with_positive", "tracks", "lineages", "fovs", "divisions", "tracks_with_gaps", "cells_per_track",
                    "tau", "dropped", "bytes", "pixels"],
    "pixels": ["is_sample", "frames", "frames_looked_at", "read_mb_per_second", "channels"],
    "channels": ["name", "frames_blank", "frames_constant", "frames_not_finite", "pixels_not_finite", "places", "p1",
                 "median", "p99", "mean", "std"],
    "strata": ["name", "labels", "cells", "with_positive", "tracks", "lineages", "fovs"],
}  # fmt: skip


def test_json_has_the_same_keys_before_and_after_a_build(before: Inspection, after: Inspection) -> None:
    for found in (before, after):
        said = json.loads(json.dumps(to_json(found), allow_nan=False))
        assert said["version"] == 2
        first = said["experiments"][0]
        parts = {"": said, "experiments": first, "pixels": first["pixels"], "channels": first["pixels"]["channels"][0],
                 "strata": said["strata"][0]}  # fmt: skip
        assert {name: list(part) for name, part in parts.items()} == KEYS
        assert set(said["labels"]) == {"experiment", "condition", "well"}


def test_a_set_says_its_bytes_and_statistics(shards: Path, after: Inspection) -> None:
    said = to_json(after)
    tars = sum(path.stat().st_size for path in shards.rglob("*.tar"))
    index = sum(path.stat().st_size for path in (shards / "index").rglob("*.*"))
    assert (said["bytes"], said["index_bytes"], said["bytes_between"]) == (tars + index, index, None)
    assert not said["bytes_are_estimated"]
    assert said["experiments"][1]["bytes"] == sum(path.stat().st_size for path in (shards / "e1").rglob("*.tar"))
    stored = ShardSet.open(shards).arrays["stats_dataset"][1, 0]
    channel = said["experiments"][1]["pixels"]["channels"][0]
    assert channel["mean"] == pytest.approx(float(stored[0]), rel=1e-5)
    assert (channel["frames_blank"], channel["frames_constant"]) == (0, 0)


def test_a_build_writes_what_was_estimated(
    before: Inspection, after: Inspection, plates: PlateCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    guessed, written = to_json(before), to_json(after)
    assert guessed["bytes_are_estimated"]
    assert guessed["index_bytes"] == pytest.approx(written["index_bytes"], rel=0.05)
    for mine, theirs in zip(guessed["experiments"], written["experiments"], strict=True):
        assert mine["bytes"] == pytest.approx(theirs["bytes"], rel=0.01)
    monkeypatch.setattr("etl.inspect.build_size._MOST_CELLS", 1)  # of each experiment one group stands for all
    some = plates.find_sizes([()] * 4)
    assert some.total == pytest.approx(written["bytes"], rel=0.05)


def test_what_gzip_makes_of_patches_is_estimated_from_some_of_them(tmp_path: Path, without_fsync: None) -> None:  # noqa: ARG001
    path = make_collection(tmp_path, experiments=1, fovs=("A/1/0",), codec="gzip")
    build_shards(parse_build_config(path), tmp_path / "shards")
    written = sum(file.stat().st_size for file in (tmp_path / "shards").rglob("*.tar"))
    found = inspect(path)
    assert found.sizes.bytes[0] == pytest.approx(written, rel=0.05)
    low, high = to_json(found)["bytes_between"]
    assert 0.9 * found.sizes.total < low <= found.sizes.total <= high
    said = "patches of the frames that were read were compressed with gzip, and frames differ."
    assert said in describe_cost(found)
    assert "That is before gzip: no frame was read" in describe_cost(inspect(path, Options(frames=0)))


@pytest.mark.slow
def test_a_page_shows_every_stratum_and_asks_for_nothing(before: Inspection, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert write_inspection(path, before, "made by a test") == path.stat().st_size < MOST_BYTES
    assert "made by a test" in path.read_text()
    tags = Tags(path.read_text()).found
    pictures = [str(a["alt"]) for tag, a in tags if tag == "img"]
    for experiment in ("e0", "e1", "e2", "e3"):
        for condition in ("control", "infected"):
            assert f"{experiment}, {condition}, pair 1" in pictures
        assert f"{experiment}, GFP: histogram of intensities" in pictures
        assert f"{experiment}: where its cells lie in the field of view" in pictures
        assert f"{experiment}: histogram of track lengths" in pictures
    assert any(alt.endswith("tree of its tracks") for alt in pictures)
    assert "Cells of each stratum at each hour post infection" in pictures
    assert "Share of cells whose lineage is seen τ later, by experiment" in pictures
    assert {"script", "iframe", "object"}.isdisjoint({tag for tag, _ in tags})
    links = [str(a[key]) for _, a in tags for key in ("src", "href") if key in a]
    assert all(link.startswith(("data:", "#")) for link in links)


FRAMES = 12


def write_wrong(root: Path) -> Path:
    """Write an experiment in which much is wrong: GFP is constant, frame 3 of DAPI blank, Phase has NaN, a track jumps,
    one is at the border, the plate says 5 minutes a frame; and one whose tracks are of every second frame and divide
    every two minutes.
    """
    rng = np.random.default_rng(5)
    pixels = rng.uniform(50, 100, (FRAMES, 3, 1, 64, 64)).astype(np.float32)
    pixels[:, 1], pixels[3, 2], pixels[5, 0, 0, :2, :2] = 37, 0, np.nan
    rows = [
        {"track_id": k, "t": t, "y": 20.0 + (t > 6 and k == 2) * 30 + 0.1 * t, "x": 10.0 + k, "parent_track_id": -1}
        for k in range(6)
        for t in range(FRAMES)
    ]
    rows += [{"track_id": 9, "t": t, "y": 1.0, "x": 60.0, "parent_track_id": -1} for t in range(FRAMES)]
    write_tracks(root / "a/tracks", "A/1/0", rows)
    scale = {"scale": (300, 1, 1, 0.5, 0.5), "units": {"t": "second", "y": "micrometer", "x": "micrometer"}}
    names = ("Phase", "GFP", "DAPI")
    common = {"version": "0.5", "fovs": ("A/1/0",), "chunks": (1, 1, 1, 64, 64)}
    write_plate(root / "a/plate.zarr", channel_names=names, dtype="float32", pixels={"A/1/0": pixels},
                scales={"A/1/0": scale}, **common)  # fmt: skip
    family = [(0, -1, 0), *((k, 0, 4) for k in (1, 2)), *((k, 1 + (k > 4), 8) for k in (3, 4, 5, 6))]
    family += [(k + 10 * n, p + 10 * n if p >= 0 else -1, t) for n in (1, 2) for k, p, t in family]
    rows = [
        {"track_id": k, "t": t, "y": 32.0, "x": 32.0, "parent_track_id": p} for k, p, begin in family
        for t in range(begin, begin + 4, 2)
    ]  # fmt: skip
    write_tracks(root / "b/tracks", "A/1/0", rows)
    write_plate(root / "b/plate.zarr", channel_names=("Phase",), shape=(FRAMES, 1, 1, 64, 64), **common)
    entries = [
        {"name": name, "data_path": f"{name}/plate.zarr", "tracks_path": f"{name}/tracks", "channel_names": list(own),
         "source_channel": list(own), "condition_wells": {condition: ["A/1"]}, "interval_minutes": minutes}
        for name, own, condition, minutes in (("a", names, "mock", 30.0), ("b", ("Phase",), "drug", 0.5))
    ]  # fmt: skip
    options = {"yx_patch_size": [16, 16], "tau_range_hours": [0.03, 0.5], "on_nan": "drop"}
    return write_experiments(root / "experiments.yaml", entries, **options)


def test_what_is_wrong_is_said_in_words(tmp_path: Path, without_fsync: None) -> None:  # noqa: ARG001
    path = write_wrong(tmp_path)
    found = inspect(path, Options(frames=FRAMES))
    texts = {(one.experiment, one.code): (one.level, one.text) for one in found.findings}
    assert set(texts) >= {
        ("a", "channel_constant"), ("a", "frames_blank"), ("a", "pixels_not_finite"), ("a", "interval_differs"),
        ("a", "tracks_jump"), ("b", "frames_skipped"), ("b", "cycle_unlikely"),
        (None, "many_at_border"), (None, "condition_in_one_fov"),
    }  # fmt: skip
    level, text = texts["a", "channel_constant"]
    assert level == "wrong"
    assert text.startswith("a: channel 'GFP' is constant in all of 12 frames looked at (A/1/0 t=0, A/1/0 t=1, ")
    assert "channel 'DAPI' is blank in 1 of 12 frames looked at (A/1/0 t=3)" in texts["a", "frames_blank"][1]
    said = "channel 'Phase' has pixels that are NaN or infinite in 1 of 12 frames looked at (A/1/0 t=5), 4 in all"
    assert said in texts["a", "pixels_not_finite"][1]
    assert "the time axis of the plate says 5 minutes" in texts["a", "interval_differs"][1]
    assert (
        "100.0% of the steps of its tracks skip frames; the usual step is 2 frames" in texts["b", "frames_skipped"][1]
    )
    assert "its cells would divide every 0.025 h (median of 6 cycles)" in texts["b", "cycle_unlikely"][1]
    said = "many cells would be left out, because they are near the border of the image: 14.3% of a. With a smaller"
    assert texts[None, "many_at_border"][1].startswith(said)
    assert texts[None, "condition_in_one_fov"][1].startswith("one field of view only has the condition mock, drug: ")
    assert found.findings[0].code == "channel_constant"  # the worst first
    assert main([str(path), "--frames", "2", "--quiet"]) == 0

    build_shards(parse_build_config(path), tmp_path / "shards")
    stored = inspect(tmp_path / "shards")
    codes = {(one.experiment, one.code) for one in stored.findings}
    assert codes >= set(texts) - {("a", "pixels_not_finite")}  # a set says that as what was left out
    assert "in all of 12 frames (A/1/0 t=0" in next(f.text for f in stored.findings if f.code == "channel_constant")
    assert to_json(stored)["experiments"][0]["dropped"] == {"blank_channel": 6, "near_border": 12}


def test_sound_data_raise_no_warning(before: Inspection, after: Inspection) -> None:
    expected = {"pixel_sizes_vary", "patches_alike", "missing_parents"}
    for found in (before, after):
        assert {one.code for one in found.findings} <= expected


def test_trees_have_forks_between_their_daughters() -> None:
    # 0 divides into 1 and 2; 2 into 3 and 4; 5 is alone, and its root isn't there
    parent, begin = np.array([-1, 0, 0, 2, 2, -1]), np.array([0.0, 1, 1, 2, 2, 3])
    assert plan_heights(parent, begin).tolist() == [0.75, 0.0, 1.5, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("first", "last", "minutes", "edges"),
    [
        (0.0, 4.5, [30.0], [0.0, 0.5, 1.0]),
        (3.0, 15.0, [40.0, 30.0], [2.0, 4.0, 6.0]),  # a bin of an hour would hold one or two frames of 40 minutes
        (0.0, 0.0, [], [0.0, 0.25]),
    ],
)
def test_bins_of_hours_hold_as_many_frames_as_each_other(first, last, minutes, edges) -> None:
    found = plan_hours(first, last, minutes)
    assert list(found[: len(edges)]) == edges
    assert found[-2] <= last < found[-1]


def test_one_frame_and_cells_without_a_positive_are_shown_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"track_id": k, "t": 0, "y": 20.0, "x": 20.0 + k} for k in range(5)]
    write_tracks(tmp_path / "tracks", "A/1/0", rows)
    write_plate(tmp_path / "plate.zarr", fovs=("A/1/0",), shape=(1, 1, 1, 64, 64), channel_names=("Phase",))
    entry = {"name": "a", "data_path": "plate.zarr", "tracks_path": "tracks", "channel_names": ["Phase"],
             "source_channel": ["Phase"], "condition_wells": {"mock": ["A/1"]}, "interval_minutes": 0}  # fmt: skip
    path = write_experiments(tmp_path / "experiments.yaml", [entry], yx_patch_size=[16, 16])
    found = inspect(path)
    assert [len(pair.pixels) for pair in found.pairs] == [1] * 5
    assert to_json(found)["experiments"][0]["tau"] == []
    assert main([str(path), "--html", str(tmp_path / "page.html")]) == 0
    assert f"Wrote {tmp_path}/page.html (" in capsys.readouterr().err
    page = (tmp_path / "page.html").read_text()
    assert "None of its cells has a positive" in page
    assert "no time" in page


def test_mistakes_are_answered_in_a_sentence(
    tmp_path: Path, shards: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    (tmp_path / "begun/.build-1").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    damaged = Path(shutil.copytree(shards, tmp_path / "damaged", symlinks=True))
    array = find_array(damaged, "obs_t")
    array.write_bytes(array.read_bytes()[:-8])
    give = "Give an experiments.yaml, or a folder that a build made."
    assert refused(tmp_path / "gone") == f"error: {tmp_path}/gone: no such file or folder. {give}\n"
    assert (
        refused(tmp_path / "empty") == f"error: {tmp_path}/empty: is an empty folder, without manifest.json. {give}\n"
    )
    assert "a build began there and has not ended" in refused(tmp_path / "begun")
    assert "is a file, and neither a YAML nor a folder with manifest.json" in refused(tmp_path / "file")
    assert "It holds ['experiments.yaml'" in refused(collection.parent)
    assert "obs_t.npy" in refused(damaged)
    assert "the options ['seed'] say how a build cuts, and these shards are cut" in refused(shards, "--seed", 3)
    assert "experiments.yaml: no such file" in refused(tmp_path / "experiments.yaml")
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert "page.html" in refused(shards, "--html", page)
    assert page.read_text() == "mine"


def test_the_command_prints_tables_or_json(shards: Path, collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(shards)]) == 0
    printed = capsys.readouterr()
    for words in (
        "Strata: what shards are partitioned by",
        "All 120 frames, by the statistics",
        "Time: τ of 0.5 to 1.5 h",
    ):
        assert words in printed.out
    options = ["--json", "--quiet", "--frames", "2", "--yx_patch_size", "8", "8"]
    assert main([str(collection), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["experiments"][0]["patch"] == [2, 3, 8, 8]
    assert said["what"] == str(collection)
    assert yaml.safe_load(collection.read_text())["shards"]["yx_patch_size"] == [16, 16]
