"""Verified bytes: every fault of a finished set is found and named, and `--repair` mends it to the same bytes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
import yaml

import etl.unit.build
from dynaclr_wds.contract import ARRAYS, PARTS_DIR, Manifest, array_path
from dynaclr_wds.errors import FormatError
from dynaclr_wds.manifest_checks import parse_manifest
from dynaclr_wds.shardset import ShardSet
from etl.build_shards import build_shards
from etl.pack.cells import TrackCells, count_cells, describe_cells
from etl.run.progress import Progress
from etl.source.experiments import parse_build_config
from etl.verify import main, verify
from tests.plates import make_collection, random_tracks, write_experiments, write_plate, write_tracks
from tests.set_files import digests, find_array, find_index

pytestmark = pytest.mark.usefixtures("without_fsync")

LABELS = ("label_experiment", "label_condition", "label_well")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verify")
    return make_collection(root, lineages=5, shard_bytes=60_000, block_bytes=9_000, clip_anchors=4)


@pytest.fixture(scope="module")
def whole(collection: Path) -> Path:
    build_shards(parse_build_config(collection, {}), collection.parent / "shards")
    return collection.parent / "shards"


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(whole, tmp_path / "shards")
    return tmp_path / "shards"


def read_manifest(shards: Path) -> Manifest:
    return parse_manifest((shards / "manifest.json").read_bytes())


def name_array(shards: Path, name: str) -> str:
    """Path of an array, as findings name it."""
    return read_manifest(shards).index_file(array_path(name))


def name_table(shards: Path, name: str) -> str:
    """Path of a table, as findings name it."""
    return read_manifest(shards).index_file(f"{name}.parquet")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def mend(collection: Path, shards: Path, whole: Path) -> None:
    build_shards(parse_build_config(collection, {}), shards, repair=True)
    assert digests(shards) == digests(whole)


def test_a_fresh_set_is_well(whole: Path, capsys: pytest.CaptureFixture[str]):
    manifest = read_manifest(whole)
    assert verify(whole) == []
    assert main([str(whole)]) == 0
    cells = sum(partition.observations for partition in manifest.partitions)
    said = f"manifest, index and {len(manifest.shards)} shards ({cells:,} cells) were read and are what was written."
    assert capsys.readouterr().out == f"{whole}: all is well: {said}\n"


def test_quick_says_that_the_pixels_were_not_looked_at(whole: Path, shards: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(whole), "--quick"]) == 0
    count, said = len(read_manifest(whole).shards), capsys.readouterr().out
    assert said == (
        f"{whole}: manifest and index are what was written, and {count} shards have the right sizes. The content of "
        f"the {count} shards was not read, so changed pixels are not found: leave out --quick for that.\n"
    )
    (shards / read_manifest(whole).shards[0].path).unlink()
    assert main([str(shards), "--quick"]) == 1
    finding, closing = capsys.readouterr().out.splitlines()
    path = read_manifest(whole).shards[0].path
    assert finding.startswith(f"{path}: is missing; it holds 12 cells: experiment0, FOV A/1/1, ")
    assert finding.endswith("; track_id 16, t 5 to 7; and 2 cells of 2 more tracks")
    assert closing.startswith(
        f"{shards}: 1 finding; up to 12 of 323 cells are damaged. The content of the {count} shards was not read,"
    )
    assert f"build EXPERIMENTS.yaml --out {shards} --repair`" in closing


def test_a_flipped_payload_byte_is_found_and_mended(collection: Path, whole: Path, shards: Path):
    manifest = read_manifest(shards)
    offset = int(np.load(find_array(shards, "patch_offset"))[0])
    flip(shards / manifest.shards[0].path, offset + 7)
    (finding,) = verify(shards)
    assert (finding.path, finding.block) == (manifest.shards[0].path, 0)
    assert verify(shards, quick=True) == []  # quick leaves the content out
    mend(collection, shards, whole)


def test_changed_pixels_name_the_patch_and_its_cell(shards: Path, capsys: pytest.CaptureFixture[str]):
    path, row, half = read_manifest(shards).shards[0].path, 5, 16 * 16 * 2  # bytes of a channel
    offset = int(np.load(find_array(shards, "patch_offset"))[row])
    flip(shards / path, offset + half)  # the first byte of the second channel
    table, arrays = (
        pq.read_table(find_index(shards) / "observations.parquet"),
        ShardSet.open(shards, verify=False).arrays,
    )
    (seen,) = table.take([int(arrays["patch_obs"][row])]).to_pylist()
    (finding,) = verify(shards)
    assert (finding.path, finding.block, finding.row) == (path, 0, row)
    named = [(c.experiment, c.fov_name, c.track_id, t) for c in finding.cells for t in c.t]
    assert named == [(seen["experiment"], seen["fov_name"], seen["track_id"], seen["t"])]
    damaged = (shards / path).read_bytes()[offset + half : offset + 2 * half]
    said = f"channel 1 has checksum {xxhash.xxh3_64_hexdigest(damaged)[8:]}, the index says "
    assert finding.what.startswith(f"the bytes are not those that were written ({said}")
    assert main([str(shards), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["cells"][0]["t"] == list(finding.cells[0].t)


def test_changed_bytes_that_are_no_pixels_name_the_cells_of_the_block(shards: Path):
    offset = int(np.load(find_array(shards, "patch_offset"))[0])
    flip(shards / read_manifest(shards).shards[0].path, offset + 2 * 2 * 16 * 16 + 3)  # zeros behind the first patch
    table, arrays = (
        pq.read_table(find_index(shards) / "observations.parquet"),
        ShardSet.open(shards, verify=False).arrays,
    )
    last = int(arrays["clip_first"][arrays["block_first"][1]])
    rows = table.take(sorted(set(arrays["patch_obs"][:last].tolist()))).to_pylist()
    (finding,) = verify(shards)
    named = [(c.experiment, c.fov_name, c.track_id, t) for c in finding.cells for t in c.t]
    assert named == [(row["experiment"], row["fov_name"], row["track_id"], row["t"]) for row in rows]
    assert str(finding) == (
        f"{read_manifest(shards).shards[0].path}: block 0: the bytes are not those that were written; any of its 7 "
        "cells may be damaged: experiment0, FOV A/1/1, track_id 4, t 0 to 1, 3 to 5; track_id 21, t 6; track_id 22, t 6"
    )


@pytest.mark.parametrize(
    ("t", "text"),
    [([3], "3"), ([0, 1, 4], "0 to 1, 4"), ([0, 2, 4, 6, 8], "0 to 8 with gaps")],
    ids=["one", "runs", "gaps"],
)
def test_frames_are_written_as_runs(t: list[int], text: str):
    cells = [TrackCells(experiment="e", fov_name="A/1/0", track_id=7, t=tuple(t))]
    assert describe_cells(cells) == f"e, FOV A/1/0, track_id 7, t {text}"
    assert count_cells([*cells, *cells]) == len(t)


def test_a_damaged_index_does_not_keep_the_shards_from_being_checked(shards: Path, capsys: pytest.CaptureFixture[str]):
    manifest = read_manifest(shards)
    flip(find_array(shards, "obs_y"), 200)
    assert main([str(shards)]) == 1
    captured, count = capsys.readouterr(), len(manifest.shards)
    assert (
        f"1 finding. The index is damaged, which says where blocks and cells lie; so {count} shards of {count} could "
        "be compared as whole files only." in captured.out
    )
    blocks = sum(shard.blocks for shard in manifest.shards)
    assert f"verify: {blocks}/{blocks} blocks" in captured.err
    flip(shards / manifest.shards[1].path, 5000)
    assert [finding.path for finding in verify(shards)] == [name_array(shards, "obs_y"), manifest.shards[1].path]


def test_a_damaged_manifest_says_that_nothing_else_was_checked(shards: Path, capsys: pytest.CaptureFixture[str]):
    flip(shards / "manifest.json", 40)
    assert main([str(shards)]) == 1
    said = f"{shards}: the manifest is damaged. Nothing else was checked, because it says what the other files must be."
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "what"),
    [
        (128 + 512, "no tar header where the index says"),
        (100, "the npy header is not what the experiment's dtype and shape ask for"),
    ],
)
def test_a_flipped_header_byte_names_the_member(collection: Path, whole: Path, shards: Path, before: int, what: str):
    manifest, first = read_manifest(shards), np.load(find_array(shards, "clip_first"))
    row = int(first[1]) - 1  # the last patch of the first clip
    flip(shards / manifest.shards[0].path, int(np.load(find_array(shards, "patch_offset"))[row]) - before)
    found = [finding for finding in verify(shards) if finding.row is not None]
    assert [(f.path, f.block, f.patch, f.row) for f in found] == [(manifest.shards[0].path, 0, row, row)]
    assert what in found[0].what
    assert found[0].clip is not None
    mend(collection, shards, whole)


def test_a_json_that_says_something_else_is_named(shards: Path):
    path = shards / read_manifest(shards).shards[0].path
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"is_sample":true', b'"is_sample":null', 1))
    (finding,) = [finding for finding in verify(shards) if finding.patch is not None]
    assert finding.clip is not None
    assert finding.what == "the JSON says is_sample=None, the index True"


@pytest.mark.parametrize("name", [*ARRAYS, *LABELS])
def test_an_altered_index_array_is_found_and_mended(collection: Path, whole: Path, shards: Path, name: str):
    path = find_array(shards, name)
    flip(path, path.stat().st_size - 1)
    found = verify(shards, quick=True)
    assert [finding.path for finding in found] == [name_array(shards, name)]
    if name in ("patch_offset", "stats_fov", "label_well"):  # one of each kind, for time
        mend(collection, shards, whole)


def test_an_array_that_was_altered_with_its_checksum_is_found(shards: Path):
    """Somebody who also mends the manifest is caught by the clips' own word."""
    manifest = read_manifest(shards)
    values = np.load(find_array(shards, "patch_has_candidate"))
    values[np.flatnonzero(values)[0]] = False
    np.save(find_array(shards, "patch_has_candidate"), values)
    sums = {name_array(shards, "patch_has_candidate"): _sum(find_array(shards, "patch_has_candidate"))}
    _write_manifest(shards, manifest, sums)
    found = verify(shards)
    tables = [f"{manifest.index}/{name}.parquet" for name in ("observations", "patches")]
    assert [f.path for f in found] == ["manifest.json", *tables, manifest.shards[0].path]
    assert "has_candidate" in found[3].what


def test_a_wrong_checksum_of_a_channel_is_found_in_the_array(shards: Path):
    """Also where its file has the checksum that the manifest says: as if the build had written it so."""
    path = name_array(shards, "patch_xxh3")
    values = np.load(shards / path)
    assert (values.dtype, values.shape) == (np.uint32, (len(np.load(find_array(shards, "patch_obs"))), 2))
    values[[4, 9], [1, 0]] ^= 1 << 31
    np.save(shards / path, values)
    _write_manifest(shards, read_manifest(shards), {path: _sum(shards / path)})
    assert verify(shards, quick=True) == []
    found = verify(shards)
    assert [(finding.path, finding.row, finding.cells) for finding in found] == [(path, 4, ()), (path, 9, ())]
    assert str(found[0]) == (
        f"{path}: row 4: channel 1 has checksum {values[4, 1] ^ 1 << 31:08x}, the index says {values[4, 1]:08x}"
    )


@pytest.mark.parametrize("name", ["obs_parent_id", "obs_z", "obs_z_start", "stats_timepoint", "obs_track"])
def test_an_array_that_no_other_array_knows_is_compared_with_the_table(shards: Path, name: str):
    path = name_array(shards, name)
    values = np.load(shards / path)
    values.reshape(-1)[-1] += 1 if name == "obs_track" else 3
    values.reshape(-1)[-1:] = 9 if name == "obs_z" else values.reshape(-1)[-1]
    np.save(shards / path, values)
    _write_manifest(shards, read_manifest(shards), {path: _sum(shards / path)})
    table = "stats" if name.startswith("stats") else "observations"
    assert name_table(shards, table) in [finding.path for finding in verify(shards, quick=True)]


@pytest.mark.parametrize(
    ("table", "column", "what"),
    [
        ("observations", "lineage_id", "column 'lineage_id' does not name each lineage once"),
        ("observations", "hpi", "column 'hpi' is not what the index"),
        ("patches", "shard", "column 'shard' is not what the index"),
        ("stats", "p99", "column 'p99' is not what the index"),
        ("stats", "channel", "column 'channel' is not what the index"),
    ],
)
def test_a_column_that_was_altered_with_its_checksum_is_found(shards: Path, table: str, column: str, what: str):
    path = name_table(shards, table)
    old = pq.read_table(shards / path)
    place = old.column_names.index(column)
    pq.write_table(old.set_column(place, column, old[column].take(list(range(len(old)))[::-1])), shards / path)
    write_sizes(shards, path)
    (finding,) = verify(shards, quick=True)
    assert (finding.path, finding.what.startswith(what)) == (path, True)
    pq.write_table(old.remove_column(place), shards / path)
    write_sizes(shards, path)
    assert f"{path}: has no column '{column}'" in map(str, verify(shards, quick=True))


@pytest.mark.parametrize(
    "header", [b"(" * 20, b"{'descr': '<i4', 'fortran_order': False, 'shape': (99999999999999999999,), }"]
)
def test_a_header_that_numpy_stumbles_over_is_an_error_of_ours(shards: Path, header: bytes):
    path = name_array(shards, "obs_t")
    data = (shards / path).read_bytes()
    (shards / path).write_bytes(data[:10] + header.ljust(117) + b"\n" + data[128:])
    _write_manifest(shards, read_manifest(shards), {path: _sum(shards / path)})
    with pytest.raises(FormatError, match=r"obs_t.npy: can't be mapped"):
        ShardSet.open(shards)
    assert verify(shards, quick=True)[0].path == path


def write_sizes(shards: Path, path: str) -> None:
    """Write a manifest in which a file is as it is now."""
    record = json.loads((shards / "manifest.json").read_text())
    for file in record["files"]:
        if file["path"] == path:
            file |= {"bytes": (shards / path).stat().st_size, "xxh3": _sum(shards / path)}
    write_record(shards, record)


@pytest.mark.parametrize("name", ["observations", "with_candidate", "lineages", "clips", "patches", "shards", "bytes"])
def test_a_count_of_the_manifest_that_is_wrong_is_found(shards: Path, name: str):
    record = json.loads((shards / "manifest.json").read_text())
    changed = [0, 1] if name in ("observations", "patches") else [1]  # of these, the index must still have the sum
    for step, number in zip((1, -1), reversed(changed), strict=False):
        record["partitions"][number][name] += step
    write_record(shards, record)
    found = verify(shards, quick=True)
    assert [finding.path for finding in found] == ["manifest.json"] * len(changed)
    assert all(f"not {name}=" in finding.what for finding in found)


HOSTILE = {
    "frames of tau": (("experiments", 0, "tau_frames"), [2, 1], r"tau_frames=\(2, 1\) of 'experiment0' are not"),
    "no number": (("experiments", 0, "start_hpi"), float("nan"), r"is not JSON \(NaN is no number of JSON\)"),
    "a huge number": (("fovs", 1, "frames"), 10**30, r"fovs\[1\]: frames=10+ must be a number below 2\*\*63"),
    "a huge patch": (("experiments", 0, "shape"), [2, 1, 1 << 31, 1 << 31], r"a tar member holds less than 8 GiB"),
    "code as dtype": (("experiments", 0, "dtype"), "[", r"'experiment0' has patches of dtype '\[', shape"),
    "big-endian": (("experiments", 0, "dtype"), ">u2", r"'experiment0' has patches of dtype '>u2'"),
    "slices": (("config", "z_range"), 0.5, r"config.z_range=0.5 must be null or two integers"),
    "a long path": (("shards", 0, "path"), "x" * 300, r"the path 'x+.? leaves the folder or is no plain path"),
    "half a letter": (("shards", 0, "path"), "\ud800", r"it holds half of a character"),
    "no version": (("set_version",), 0, r"set_version=0 must be >= 1"),
    "an index elsewhere": (("index",), "../index", r"the path '\.\./index' leaves the folder"),
    "a value twice": (("labels", 1, "values", 0), "infected", r"values of 'condition' must differ, but 'infected' is"),
    "no such value": (("partitions", 0, "labels", "condition"), "x", r"the partition .*'condition': 'x'.* must give a"),
    "a label too few": (("partitions", 0, "labels"), {}, r"the partition \{\} must give a value that is there to each"),
    "an experiment twice": (("experiments", 0, "name"), "experiment1", r"experiments must differ, but 'experiment1'"),
    "an unlisted array": (("files", 3, "path"), "index/x", r"lists no index/\w+/arrays/\w+.npy"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_manifest_that_was_altered_with_its_checksum_is_refused(shards: Path, case: str):
    (*place, last), value, message = HOSTILE[case]
    record = parent = json.loads((shards / "manifest.json").read_text())
    for key in place:
        parent = parent[key]
    parent[last] = value
    write_record(shards, record)
    with pytest.raises(FormatError, match=message):
        ShardSet.open(shards)
    (finding,) = verify(shards)
    assert finding.path == "manifest.json"


def test_a_manifest_that_names_a_path_twice_is_refused(shards: Path):
    record = json.loads((shards / "manifest.json").read_text())
    record["shards"][0]["path"] = path = record["files"][0]["path"]
    write_record(shards, record)
    with pytest.raises(FormatError, match=rf"files must differ, but '{path}' is there twice"):
        ShardSet.open(shards)


def test_a_shape_that_is_not_that_of_the_shards_is_refused(shards: Path):
    """Patches would be read at their places, but with another size."""
    record = json.loads((shards / "manifest.json").read_text())
    record["experiments"][0]["shape"][2] //= 2
    write_record(shards, record)
    with pytest.raises(FormatError, match=r"patch_offset.npy: row 1 is \d+; it must lie behind the patch before it"):
        ShardSet.open(shards)


def write_record(shards: Path, record: dict[str, Any]) -> None:
    """Write a manifest of any content, with a checksum that fits."""
    checked = {key: value for key, value in record.items() if key != "xxh3"}
    content = json.dumps(checked, sort_keys=True, separators=(",", ":")).encode()
    (shards / "manifest.json").write_text(json.dumps(checked | {"xxh3": xxhash.xxh3_64_hexdigest(content)}))


def _sum(path: Path) -> str:
    return xxhash.xxh3_64_hexdigest(path.read_bytes())


def _write_manifest(shards: Path, manifest: Manifest, sums: dict[str, str]) -> None:
    files = tuple(replace(f, xxh3=sums.get(f.path, f.xxh3)) for f in manifest.files)
    (shards / "manifest.json").write_text(replace(manifest, files=files).to_json())


@pytest.mark.parametrize("content", ["altered", "garbage"])
def test_an_altered_manifest_is_found_and_mended(collection: Path, whole: Path, shards: Path, content: str):
    path = shards / "manifest.json"
    if content == "altered":
        path.write_text(path.read_text().replace('"frames": 8', '"frames": 9', 1))
    else:
        path.write_bytes(b"\xff\x00")
    (finding,) = verify(shards)
    assert finding.path == "manifest.json"
    mend(collection, shards, whole)


def test_swapped_shards_are_found_and_mended(collection: Path, whole: Path, shards: Path):
    paths = {
        s.bytes: [t.path for t in read_manifest(shards).shards if t.bytes == s.bytes]
        for s in read_manifest(shards).shards
    }
    first, second = next(same for same in paths.values() if len(same) > 1)[:2]
    a, b = (shards / first).read_bytes(), (shards / second).read_bytes()
    (shards / first).write_bytes(b)
    (shards / second).write_bytes(a)
    assert {finding.path for finding in verify(shards)} == {first, second}
    mend(collection, shards, whole)


def test_missing_and_short_files_are_found_and_mended(
    collection: Path, whole: Path, shards: Path, capsys: pytest.CaptureFixture[str]
):
    first, second = (shard.path for shard in read_manifest(shards).shards[:2])
    (shards / first).unlink()
    (shards / second).write_bytes((shards / second).read_bytes()[:-1])
    (find_index(shards) / "stats.parquet").unlink()
    assert main([str(shards), "--quick", "--json", "--quiet"]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(f["path"], f["what"].split(",")[0]) for f in found] == [
        (first, "is missing"),
        (second, f"has {(shards / second).stat().st_size:,} bytes".split(",")[0]),
        (name_table(shards, "stats"), "is missing"),
    ]
    mend(collection, shards, whole)


def test_no_set_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path)]) == 2
    assert "there is no manifest" in capsys.readouterr().err


def write_channels(tmp_path: Path) -> Path:
    """Build experiments of 1, 2 and 3 channels, three labels, partitions that hold several experiments."""
    entries = []
    for number, dtype in enumerate(("uint8", "float32", "uint16"), 1):
        name, channels = f"e{number}", ["a", "b", "c"][:number]
        shape = (6, number, 1, 48, 48)
        write_plate(
            tmp_path / name / "plate", fovs=["A/1/0", "B/2/0"], shape=shape, dtype=dtype, channel_names=channels
        )
        for fov in ("A/1/0", "B/2/0"):
            rows = random_tracks(np.random.default_rng([number, fov == "A/1/0"]), frames=6, height=48, width=48)
            write_tracks(tmp_path / name / "tracks", fov, rows)
        labels = {"marker": "TOMM20" if number < 3 else None, "microscope": f"scope {number}", "batch": "β"}
        entries.append(
            {
                "name": name, "data_path": f"{name}/plate", "tracks_path": f"{name}/tracks", "channel_names": channels,
                "source_channel": channels, "condition_wells": {"mock": ["A/1"], "infected": ["B/2"]}, "labels": labels,
                "interval_minutes": 30.0,
            }
        )  # fmt: skip
    options = {"yx_patch_size": [8, 8], "shard_by": ["marker", "condition"], "block_bytes": 4096}
    path = write_experiments(tmp_path / "experiments.yaml", entries, tau_range_hours=[0.5, 1.0], **options)
    build_shards(parse_build_config(path, {}), tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_channels(tmp_path_factory.mktemp("channels"))


def test_a_set_of_several_channel_counts_dtypes_and_labels_is_well(channels: Path):
    manifest = read_manifest(channels)
    assert [e.shape for e in manifest.experiments] == [(1, 1, 8, 8), (2, 1, 8, 8), (3, 1, 8, 8)]
    assert [e.dtype for e in manifest.experiments] == ["|u1", "<f4", "<u2"]
    assert sorted((str(p.labels["marker"]), p.labels["condition"]) for p in manifest.partitions) == [
        ("None", "infected"),
        ("None", "mock"),
        ("TOMM20", "infected"),
        ("TOMM20", "mock"),
    ]
    paths = {re.sub("[0-9a-f]{12}", "DIGEST", shard.path) for shard in manifest.shards}
    assert paths >= {"TOMM20/mock-DIGEST-000000.tar", "~/infected-DIGEST-000000.tar"}
    assert verify(channels) == []


def test_channels_of_experiments_that_store_fewer_have_checksums_too(channels: Path):
    """Each patch as `tarfile` and numpy read it; what an experiment doesn't store is 0."""
    found, expected = np.load(find_array(channels, "patch_xxh3")), []
    for shard in read_manifest(channels).shards:
        with tarfile.open(channels / shard.path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".npy"):
                    pixels = np.load(io.BytesIO(tar.extractfile(member).read()))  # type: ignore[union-attr]
                    sums = [xxhash.xxh3_64_intdigest(channel.tobytes()) % 2**32 for channel in pixels]
                    expected.append(sums + [0] * (3 - len(sums)))
    assert found.tolist() == expected
    assert {np.count_nonzero(row) for row in expected} == {1, 2, 3}


def test_checksums_of_channels_are_taken_anew_from_whole_shards(
    channels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shards = Path(shutil.copytree(channels, tmp_path / "shards"))
    monkeypatch.setattr(etl.unit.build, "cut_fov", refuse_to_cut)
    flip(find_array(shards, "patch_xxh3"), 200)
    said = repair(channels.parent / "experiments.yaml", shards)
    assert said[-1].startswith(f"mended. Built again: 0 of {len(read_manifest(channels).shards)} shards and 1 of ")
    assert digests(shards) == digests(channels)


@pytest.mark.slow
def test_checksums_of_kept_shards_fit_a_set_with_more_or_fewer_channels(channels: Path, tmp_path: Path):
    document = yaml.safe_load((channels.parent / "experiments.yaml").read_text())
    for entry in document["experiments"]:
        entry["data_path"], entry["tracks_path"] = (
            str(channels.parent / entry[key]) for key in ("data_path", "tracks_path")
        )
    for name, last in (("fewer", 2), ("more", 3)):
        config = document | {"experiments": document["experiments"][:last]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    for first, second, width in (("fewer", "more", 3), ("more", "fewer", 2)):
        fresh, updated = tmp_path / f"fresh-{second}", tmp_path / f"{second}-after-{first}"
        build_shards(parse_build_config(tmp_path / f"{second}.yaml", {}), fresh)
        build_shards(parse_build_config(tmp_path / f"{first}.yaml", {}), updated)
        build_shards(parse_build_config(tmp_path / f"{second}.yaml", {}), updated, prune=True)
        assert np.load(find_array(updated, "patch_xxh3")).shape[1] == width
        assert digests(updated) == digests(fresh)


class Told(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def repair(collection: Path, shards: Path) -> list[str]:
    """Repair a set; return what was said of it, its folder left out."""
    told = Told()
    build_shards(parse_build_config(collection, {}), shards, repair=True, progress=told)
    return [line.replace(f"{shards}: ", "") for line in told.lines if not line.startswith(("index:", "build:"))]


def test_a_repair_says_what_it_builds_again_and_why(collection: Path, whole: Path, shards: Path):
    first, second = (shard.path for shard in read_manifest(shards).shards[:2])
    (shards / first).unlink()
    flip(shards / second, 5000)
    sums = f"checksum {_sum(shards / second)}, the manifest says {_sum(whole / second)}"
    assert repair(collection, shards) == [
        "2 of 79 files are not what was written:",
        f"  {first}: is missing",
        f"  {second}: the bytes are not those that were written ({sums})",
        "Built again from the plates: 2 of 38 shards. The others stay; the index is written again.",
        "mended. Built again: 2 of 38 shards and 0 of 41 index files; the others are as they were.",
    ]
    assert digests(shards) == digests(whole)


def test_a_repair_of_a_whole_set_says_so(collection: Path, whole: Path):
    nothing, up_to_date, *_ = repair(collection, whole)
    assert nothing == "all 79 files are what was written; nothing to mend."
    assert up_to_date.startswith("up to date, nothing to do: ")


def refuse_to_cut(job: object, _: object) -> None:
    raise AssertionError(f"{job} is cut again")


@pytest.mark.parametrize(
    "names",
    [
        ["obs_y"],
        ["obs_fov", "obs_track_id", "obs_t"],
        ["stats_timepoint", "stats_dataset"],
        ["block_xxh3"],
        ["patch_xxh3"],
        [*ARRAYS],
    ],
    ids=lambda names: names[0] if len(names) < 9 else "all",
)
def test_a_damaged_index_is_written_again_without_the_plates(
    collection: Path, whole: Path, shards: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(etl.unit.build, "cut_fov", refuse_to_cut)
    for name in names:
        (find_array(shards, name)).unlink()
    said = repair(collection, shards)
    assert said[-2:] == [
        "All 38 shards are whole and stay; only the index is written again.",
        f"mended. Built again: 0 of 38 shards and {len(names)} of 41 index files; the others are as they were.",
    ]
    assert digests(shards) == digests(whole)


def test_a_repair_says_beforehand_why_groups_are_cut_again(collection: Path, whole: Path, shards: Path):
    part = next(file.path for file in read_manifest(shards).files if file.path.startswith(PARTS_DIR))
    flip(shards / part, 200)
    said = repair(collection, shards)
    assert said[2] == (
        f"{part} says what was cut, so 1 group of fields of view (of 2) must be cut again; shards that are whole and "
        "come out the same are kept."
    )
    assert said[-1] == "mended. Built again: 0 of 38 shards and 1 of 41 index files; the others are as they were."
    assert digests(shards) == digests(whole)


@pytest.mark.parametrize("place", ["pixels", "tar header", "npy header", "json", "end", "table", "array"])
def test_one_flipped_byte_is_one_finding(shards: Path, place: str, capsys: pytest.CaptureFixture[str]):
    shard = shards / read_manifest(shards).shards[0].path
    offset = int(np.load(find_array(shards, "patch_offset"))[0])
    data = shard.read_bytes()
    where = {
        "pixels": (shard, offset + 9),
        "tar header": (shard, offset - 600),
        "npy header": (shard, offset - 100),
        "json": (shard, data.index(b'"is_sample"') + 2),
        "end": (shard, len(data) - 100),
        "table": (find_index(shards) / "observations.parquet", 2000),
        "array": (find_array(shards, "obs_t"), 200),
    }
    flip(*where[place])
    (finding,) = verify(shards)
    assert finding.path == str(where[place][0].relative_to(shards))
    assert main([str(shards), "--quiet"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_hint_to_repair_names_the_yaml_and_the_set_as_the_user_would(
    collection: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["dynaclr-wds"])
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    out = Path(os.path.relpath(shards, home))
    (find_index(shards) / "stats.parquet").unlink()

    def advice() -> str:
        assert main([str(out)]) == 1
        return capsys.readouterr().out.splitlines()[-1].partition("or mend it: ")[2]

    repair = f"--out {out} --repair`"
    assert advice() == (
        f"`dynaclr-wds build EXPERIMENTS.yaml {repair}, with the YAML and the options that it was built with."
    )
    own = home / "my data/experiments.yaml"
    own.parent.mkdir()
    text = collection.read_text()
    own.write_text(text)
    assert advice() == f"`dynaclr-wds build 'my data/experiments.yaml' {repair}."
    document = yaml.safe_load(text)
    document["shards"]["seed"] = 7
    own.write_text(yaml.safe_dump(document))
    assert advice() == (
        f"`dynaclr-wds build 'my data/experiments.yaml' {repair}, with the options that it was built with."
    )
