"""Laws of movies in segments: frames that are added leave earlier shards as they are, and nobody sees the borders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

import etl.unit.build
from dynaclr_wds.contract import ARRAYS, MANIFEST, OBSERVATIONS, Manifest
from dynaclr_wds.file_checks import read_manifest_file
from dynaclr_wds.plain.pipeline import triplet_pipeline
from dynaclr_wds.shardset import ShardSet
from etl.build_shards import build_part, build_shards
from etl.inspect.looking import inspect
from etl.layout.groups import plan_segment_groups
from etl.layout.segments import WHOLE, Segment, plan_segments
from etl.source.experiments import parse_build_config
from etl.verify import verify
from tests.growing_plates import FOVS, GrowingPlate
from tests.remote import STREAMING, assert_same, make_data, read_batches
from tests.set_files import digests, find_index, load_array
from tests.test_build import Killed, leaves_files_open, read_webdataset

pytestmark = pytest.mark.usefixtures("without_fsync")

SMALL = {"block_bytes": 6000, "clip_anchors": 2, "segment_frames": 4, "workers": 1}
TRAINING = {"split": "fovs", "val_experiments": None, "val_fovs": ["e0/A/1/1"], "tau_range": (0.5, 1.0)} | STREAMING


def build(path: Path, out: Path, **flags: Any) -> Manifest:
    return build_shards(parse_build_config(path, {}), out, **flags)


def build_whole(path: Path, out: Path) -> Path:
    """Build the same without segments."""
    document = yaml.safe_load(path.read_text())
    del document["shards"]["segment_frames"]
    whole = path.with_name("whole.yaml")
    whole.write_text(yaml.safe_dump(document))
    build(whole, out)
    return out


def watch_cuts(patch: pytest.MonkeyPatch, before: Callable[[int], None] = lambda _: None) -> list[tuple[str, range]]:
    """Note the FOV and the frames of each cut, whose number is given to a function before."""
    cut: list[tuple[str, range]] = []
    cut_fov = etl.unit.build.cut_fov

    def watched(job: Any, stored: Any) -> Any:
        before(len(cut))
        cut.append((job.fov.name, job.frames))
        return cut_fov(job, stored)

    patch.setattr(etl.unit.build, "cut_fov", watched)
    return cut


def in_order(cut: list[tuple[str, range]]) -> list[tuple[str, range]]:
    """Sort cuts by their frames, then by FOV: threads begin them in any order."""
    return sorted(cut, key=lambda one: (one[1].start, one[0]))


def list_shards(out: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return path → inode, time and bytes of all shards in a folder."""
    found = {str(path.relative_to(out)): path for path in out.rglob("*.tar")}
    return {name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for name, path in found.items()}


class Grown:
    """A set of a plate of 7 frames that was built again when there were 11; and one without segments."""

    def __init__(self, root: Path) -> None:
        self.plate, self.out = GrowingPlate(root, frames=7, most=11, **SMALL), root / "out"
        self.before = build(self.plate.write(), self.out)
        self.first_shards = list_shards(self.out)
        training = make_data(self.out, **TRAINING)
        self.expected = read_batches(training)
        reading = iter(training.train_dataloader())
        self.read = [next(reading)]
        self.plate.grow(11)
        with pytest.MonkeyPatch.context() as patch:
            self.cut = watch_cuts(patch)
            self.after = build(self.plate.yaml, self.out)
        self.read += [*reading, *training.val_dataloader()]
        self.whole = build_whole(self.plate.yaml, root / "whole")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    return Grown(tmp_path_factory.mktemp("grown"))


def test_shards_of_complete_segments_stay_and_only_the_others_are_built(grown: Grown):
    """Frames 0 to 3 were there with the two that they reach; 4 to 6 lacked such frames, so they are built again."""
    names = [{shard.path for shard in manifest.shards} for manifest in (grown.before, grown.after)]
    assert [len(names[0]), len(names[1]), len(names[0] & names[1])] == [4, 6, 2]  # of two conditions each
    after = list_shards(grown.out)
    assert {name: after[name] for name in grown.first_shards} == grown.first_shards
    assert in_order(grown.cut) == [(fov, frames) for frames in (range(4, 10), range(8, 11)) for fov in FOVS]
    assert verify(grown.out) == []


def test_a_set_that_grew_is_what_a_fresh_build_makes(grown: Grown, tmp_path: Path):
    fresh = build(grown.plate.yaml, tmp_path / "fresh")
    assert (fresh.set_version, grown.after.set_version) == (1, 2)
    assert digests(grown.out) == digests(tmp_path / "fresh")


def test_cells_lineages_labels_and_statistics_are_those_of_a_build_without_segments(grown: Grown):
    """A lineage that goes on behind a border has one number."""
    names = [name for name in ARRAYS if name.startswith(("obs_", "stats_", "fov_")) and name != "obs_patch"]
    names += ["label_condition", "label_experiment", "label_well"]
    for name in names:
        np.testing.assert_array_equal(load_array(grown.out, name), load_array(grown.whole, name), err_msg=name)
    assert ShardSet.open(grown.out).lineage_ids == ShardSet.open(grown.whole).lineage_ids
    one, other = (read_manifest_file(out / MANIFEST) for out in (grown.out, grown.whole))
    assert (one.fovs, one.labels, one.facts, one.suspicious) == (
        other.fovs,
        other.labels,
        other.facts,
        other.suspicious,
    )
    for mine, theirs in zip(one.partitions, other.partitions, strict=True):
        for name in ("labels", "observations", "with_candidate", "lineages"):
            assert getattr(mine, name) == getattr(theirs, name), name


def test_statistics_are_those_of_all_frames(grown: Grown):
    statistics = load_array(grown.out, "stats_fov")
    for row, fov in enumerate(FOVS):
        for channel in range(2):
            pixels = grown.plate.pixels[fov][:, channel].astype(float)
            found = [pixels.mean(), pixels.std(), np.median(pixels), *np.quantile(pixels, [0.25, 0.75])]
            mean, std, median, iqr = statistics[row, channel, :4]
            np.testing.assert_allclose([mean, std, median, iqr], [*found[:3], found[4] - found[3]], rtol=1e-6)


def find_roots(rows: pd.DataFrame) -> dict[int, int]:
    """Return the first ancestor of each track."""
    parent = dict(zip(rows["track_id"], rows["parent_track_id"], strict=True))
    root = {}
    for track in parent:
        root[track] = track
        while parent.get(root[track], -1) in parent:
            root[track] = parent[root[track]]
    return root


def list_pairs(grown: Grown) -> pd.DataFrame:
    """Pair each cell with those of its lineage one or two frames later, by pandas, from what the tracks say."""
    tables = []
    for fov, rows in grown.plate.tracks.items():
        table = pd.DataFrame(rows).assign(fov=fov)
        table["root"] = table["track_id"].map(find_roots(table))
        table["candidate"] = list(zip(table["track_id"], table["t"], strict=True))
        tables.append(table)
    cells = pd.concat(tables)
    pairs = cells.merge(cells[["fov", "root", "candidate"]], on=["fov", "root"], suffixes=("", "_of_other"))
    later = pairs["candidate_of_other"].str[1] - pairs["t"]
    return pairs[later.between(1, 2)]


def test_anchors_and_positives_are_those_that_pandas_finds_also_over_borders(grown: Grown):
    """Positives on an anchor's own track are all in its clip."""
    pairs = list_pairs(grown)
    observations = pq.read_table(find_index(grown.out) / OBSERVATIONS).to_pandas()
    cells = list(zip(observations["fov_name"], observations["track_id"], observations["t"], strict=True))
    found = {cell for cell, has in zip(cells, observations["has_candidate"], strict=True) if has}
    assert found == set(zip(pairs["fov"], pairs["track_id"], pairs["t"], strict=True))
    names = ("patch_obs", "patch_clip", "patch_t", "patch_is_sample", "patch_has_candidate", "clip_first")
    obs, clip, t, is_sample, has_candidate, first = (load_array(grown.out, name).tolist() for name in names)
    held = {}
    for row in (row for row, sample in enumerate(is_sample) if sample):
        of_clip = range(first[clip[row]], first[clip[row] + 1])
        held[cells[obs[row]]] = {cells[obs[n]][1:] for n in of_clip if 1 <= t[n] - t[row] <= 2}
        assert has_candidate[row] == bool(held[cells[obs[row]]])
    own = pairs[pairs["candidate_of_other"].str[0] == pairs["track_id"]]
    over_border = 0
    for pair in own.itertuples():
        assert pair.candidate_of_other in held[pair.fov, pair.track_id, pair.t]
        over_border += pair.t // 4 != pair.candidate_of_other[1] // 4
    assert over_border > 20
    assert {cell for cell, others in held.items() if others} == found


@leaves_files_open
def test_patches_are_the_pixels_of_the_plate_and_clips_hold_no_statistics_that_frames_change(grown: Grown):
    samples = read_webdataset([str(grown.out / shard.path) for shard in grown.after.shards])
    assert sum(patch["is_sample"] for sample in samples for patch in sample["json"]["patches"]) == len(
        load_array(grown.out, "obs_t")
    )
    for sample in samples:
        text = sample["json"]
        assert sorted(text["statistics"]) == ["names", "timepoint"]
        assert sorted(map(int, text["statistics"]["timepoint"])) == sorted({patch["t"] for patch in text["patches"]})
        for patch in text["patches"]:
            y, x = patch["y_clamp"] - 8, patch["x_clamp"] - 8
            pixels = grown.plate.pixels[text["fov_name"]][patch["t"], :, :, y : y + 16, x : x + 16]
            np.testing.assert_array_equal(sample[patch["file"]], pixels)


def test_inspect_says_beforehand_what_shards_of_segments_take(grown: Grown):
    found = inspect(grown.plate.yaml)
    assert found.sizes.bytes == [pytest.approx(sum(shard.bytes for shard in grown.after.shards), rel=0.01)]


@leaves_files_open
def test_without_an_index_there_are_statistics_of_frames(grown: Grown):
    urls = [str(grown.out / shard.path) for shard in grown.after.shards]
    (batch, *_) = triplet_pipeline(urls, batch_size=8)
    assert list(batch["anchor_norm_meta"]) == ["timepoint"]
    for row, meta in enumerate(batch["positive_meta"]):
        pixels = grown.plate.pixels[meta["fov_name"]][meta["t"]].mean(axis=(1, 2, 3))
        np.testing.assert_allclose(batch["positive_norm_meta"]["timepoint"][row, :, 0].numpy(), pixels, rtol=1e-6)


def test_a_training_goes_on_with_the_version_that_it_opened(grown: Grown):
    assert_same(grown.read, grown.expected)
    assert_same(read_batches(make_data(grown.out, shards_version=1, **TRAINING)), grown.expected)
    newest = make_data(grown.out, **TRAINING)
    assert newest.shard_set is not None
    assert newest.shard_set.manifest.set_version == 2
    assert max(batch["anchor_meta"][0]["t"] for batch in read_batches(newest)) > 6


def test_a_build_that_is_killed_while_a_set_grows_ends_with_the_same_bytes_and_so_do_parts(tmp_path: Path):
    plate = GrowingPlate(tmp_path, frames=7, most=11, **SMALL)
    build(plate.write(), tmp_path / "out")
    plate.grow(11)

    def kill(number: int) -> None:
        if number == 4:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        watch_cuts(patch, kill)
        with pytest.raises(Killed):
            build(plate.yaml, tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        cut = watch_cuts(patch)
        build(plate.yaml, tmp_path / "out")
    assert in_order(cut) == [(fov, range(8, 11)) for fov in FOVS]
    config = parse_build_config(plate.yaml, {})
    for part in ("2/2", "1/2", "2/2"):
        build_part(config, tmp_path / "parts", part)
    build(plate.yaml, tmp_path / "parts", finish=True)
    assert digests(tmp_path / "out") == digests(tmp_path / "parts")


def test_chunks_that_come_into_an_array_of_final_length_are_frames_that_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plate = GrowingPlate(tmp_path, frames=11, most=11, **SMALL)
    plate.write()
    chunks = {path: path.read_bytes() for path in plate.root.rglob("c/*/*/0/0/0") if int(path.parts[-5]) > 6}
    assert len(chunks) == len(FOVS) * 4 * 2
    for path in chunks:
        path.unlink()
    plate.frames = 7
    plate.write_tracks_so_far()
    build(plate.yaml, tmp_path / "out")
    before = list_shards(tmp_path / "out")
    for path, data in chunks.items():
        path.write_bytes(data)
    plate.frames = 11
    plate.write_tracks_so_far()
    cut = watch_cuts(monkeypatch)
    build(plate.yaml, tmp_path / "out")
    assert in_order(cut) == [(fov, frames) for frames in (range(4, 10), range(8, 11)) for fov in FOVS]
    after = list_shards(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert verify(tmp_path / "out") == []


class TestOddPlates:
    """Movies of different lengths, cells in some segments only, blank frames, and compressed patches."""

    @pytest.fixture(params=["drop", "keep"])
    def plate(self, request: pytest.FixtureRequest, tmp_path: Path) -> GrowingPlate:
        options = {**SMALL, "on_blank": request.param, "codec": "gzip", "group_bytes": 40_000}
        plate = GrowingPlate(tmp_path, frames=11, most=11, version="0.4", **options)
        plate.pixels["A/1/0"][5, 1] = 0  # is read by two segments
        plate.pixels["A/1/1"] = plate.pixels["A/1/1"][:6]
        plate.tracks["A/1/1"] = [row for row in plate.tracks["A/1/1"] if row["t"] < 6]
        plate.tracks["B/2/0"] = [row for row in plate.tracks["B/2/0"] if row["t"] > 8]
        plate.write()
        return plate

    def test_they_are_what_they_are_without_segments(self, plate: GrowingPlate, tmp_path: Path):
        manifest = build(plate.yaml, tmp_path / "out")
        whole = read_manifest_file(build_whole(plate.yaml, tmp_path / "whole") / MANIFEST)
        assert verify(tmp_path / "out") == []
        assert sum(file.path.startswith("index/parts") for file in manifest.files) == 4  # the last segment has two
        reasons = [dict(m.dropped["e0"], candidates_dropped=0) for m in (manifest, whole)]
        assert reasons[0] == reasons[1]
        for name in (name for name in ARRAYS if name.startswith(("obs_", "stats_")) and name != "obs_patch"):
            one, other = (load_array(tmp_path / out, name) for out in ("out", "whole"))
            np.testing.assert_array_equal(one, other, err_msg=name)


def change_attributes(plate: GrowingPlate, mean: float, timepoints: dict[int, float]) -> None:
    """Write statistics of channel Phase of A/1/0 as VisCy does."""
    path = plate.root / "plate.zarr/A/1/0/zarr.json"
    document = json.loads(path.read_text())
    frames = {str(t): {"mean": value} for t, value in timepoints.items()}
    table = {"fov_statistics": {"mean": mean}, "timepoint_statistics": frames}
    document["attributes"]["normalization"] = {"Phase": table}
    path.write_text(json.dumps(document))


def test_statistics_that_a_plate_carries_rebuild_the_segments_whose_frames_they_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plate = GrowingPlate(tmp_path, frames=7, most=11, **SMALL)
    path, out = plate.write(), tmp_path / "out"
    change_attributes(plate, 3.0, {0: 5.0, 4: 6.0})
    build(path, out)
    cut = watch_cuts(monkeypatch)
    change_attributes(plate, 4.0, {0: 5.0, 4: 6.0, 6: 7.0})
    build(path, out)
    assert in_order(cut) == [(fov, range(4, 7)) for fov in FOVS]  # frame 6
    assert load_array(out, "stats_fov")[0, 0, 0] == 4.0
    assert load_array(out, "stats_timepoint")[[0, 4, 6], 0, 0].tolist() == [5.0, 6.0, 7.0]
    cut.clear()
    change_attributes(plate, 4.0, {0: 5.0, 4: 6.5, 6: 7.0})
    build(path, out)
    assert in_order(cut) == [(fov, frames) for frames in (range(6), range(4, 7)) for fov in FOVS]  # both read frame 4
    assert verify(out) == []


def test_segments_and_groups_do_not_depend_on_frames_that_come_later():
    assert plan_segments(9, None, 2) == [WHOLE]
    assert plan_segments(9, 4, 2) == [Segment(0, 0, 4, 2), Segment(1, 4, 8, 2), Segment(2, 8, 12, 2)]
    assert [segment.read(9) for segment in plan_segments(9, 4, 2)] == [range(6), range(4, 9), range(8, 9)]
    assert Segment(1, 4, 8, 2).read(3) == Segment(1, 4, 8, 2).own(3) == range(3, 3)
    names, sizes = ["A/1/0", "A/1/1", "A/1/2"], np.array([[4, 9], [5, 8], [6, 1]])
    found = list(plan_segment_groups(names, sizes[:, :1], 10))
    assert [run for run, _, _ in found] == [range(2), range(2, 3)]
    assert list(plan_segment_groups(names, sizes, 10)) == [
        (range(2), 0, range(2)),
        (range(2), 1, range(1)),
        (range(2), 1, range(1, 2)),
        (range(2, 3), 0, range(2, 3)),
        (range(2, 3), 1, range(2, 3)),
    ]


def test_a_field_of_view_that_goes_bad_in_a_late_segment_is_left_out_of_all_until_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """B/2/0 shares a group with A/1/1 in the first segment only."""
    plate = GrowingPlate(tmp_path, frames=7, most=11, on_bad_fov="skip", group_bytes=38_400, **SMALL)
    out, parts = tmp_path / "out", tmp_path / "parts"
    build(plate.write(), out)
    before = list_shards(out)
    plate.grow(11)
    (chunk,) = (tmp_path / "plate.zarr/B/2/0/0").rglob("c/9/0/0/0/0")
    pixels = chunk.read_bytes()
    chunk.write_bytes(b"x")
    cut, late = watch_cuts(monkeypatch), [(fov, t) for t in (range(4, 10), range(8, 11)) for fov in FOVS]
    manifest = build(plate.yaml, out)
    assert in_order(cut) == [("A/1/1", range(6)), *late]
    (record,) = manifest.skipped
    assert (record.fov_name, "frame 9 can't be read" in record.reason) == ("B/2/0", True)
    after = list_shards(out)
    assert {name: after[name] for name in before} == before
    assert len({shard.path for shard in manifest.shards} & before.keys()) == 1  # of A/1/0
    cut.clear()
    assert build(plate.yaml, out) == manifest
    assert cut == []
    build_part(parse_build_config(plate.yaml, {}), parts, "1/1")
    cut.clear()
    build(plate.yaml, parts, finish=True)
    assert cut == [("A/1/1", range(6))]
    assert digests(out) == digests(parts)
    build_shards(parse_build_config(plate.yaml, {"exclude_fovs": ["B/2/0"]}), tmp_path / "without")
    found, without = digests(out), digests(tmp_path / "without")
    assert found.pop(MANIFEST) != without.pop(MANIFEST)
    assert found == without
    chunk.write_bytes(pixels)
    cut.clear()
    assert build(plate.yaml, out).skipped == ()
    assert in_order(cut) == [("A/1/1", range(6)), *(("B/2/0", t) for t in (range(6), range(4, 10), range(8, 11)))]
