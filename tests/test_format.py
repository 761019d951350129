"""docs/FORMAT.md is true, and enough: what it says is read back with the standard library."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xxhash

from dynaclr_wds import contract
from dynaclr_wds.contract import ARRAYS, CODEC_ARRAYS, Manifest
from dynaclr_wds.manifest_checks import parse_manifest
from dynaclr_wds.suspicions import SuspicionRecord
from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config
from tests.plates import make_collection
from tests.set_files import find_array, find_index

FORMAT = (Path(__file__).parent.parent / "docs/FORMAT.md").read_text()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("format")
    path = make_collection(
        root / "collection", lineages=5, shard_bytes=60_000, block_bytes=9_000, clip_anchors=4, seed=3
    )
    build_shards(parse_build_config(path, {}), root / "shards")
    return root / "shards"


@pytest.fixture(scope="module")
def manifest(shards: Path) -> Manifest:
    return parse_manifest((shards / "manifest.json").read_text())


@pytest.fixture(scope="module")
def arrays(shards: Path) -> dict[str, np.ndarray]:
    return {name: np.load(find_array(shards, name), mmap_mode="r") for name in ARRAYS}


@pytest.fixture(scope="module")
def example(shards: Path) -> dict[str, Any]:
    """Run the Python of FORMAT.md on the shards."""
    (code,) = re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code.replace('Path("shards")', f"Path({str(shards)!r})"), "FORMAT.md", "exec"), names)
    return names


def test_every_array_is_documented_and_has_its_dtype(arrays: dict[str, np.ndarray]):
    table = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", FORMAT, re.MULTILINE))
    assert {name: code.replace("\\", "") for name, code in table.items()} == ARRAYS | CODEC_ARRAYS
    assert {name: array.dtype.str for name, array in arrays.items()} == ARRAYS


def test_every_column_and_key_is_documented(shards: Path, manifest: Manifest):
    for name in ("observations", "patches", "stats"):
        (row,) = re.findall(rf"^\| `{name}\.parquet` \|(.*)\|$", FORMAT, re.MULTILINE)
        others = {label.name for label in manifest.labels} - set(contract.OWN_LABELS)
        columns = [c for c in pq.read_schema(find_index(shards) / f"{name}.parquet").names if c not in others]
        assert re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row)) == columns
    raw = json.loads((shards / "manifest.json").read_text())
    section = FORMAT[FORMAT.index("## manifest.json") : FORMAT.index("## Shards")]
    keys = [*raw, *raw["experiments"][0], *raw["fovs"][0], *raw["partitions"][0], *raw["shards"][0], *raw["files"][0]]
    keys += [*raw["sources"][0], *raw["labels"][0], *raw["facts"][0]]
    keys += [field.name for field in dataclasses.fields(SuspicionRecord)]
    assert [key for key in keys if f"`{key}`" not in section] == []
    with tarfile.open(shards / manifest.shards[0].path) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith(".json"))
        record = json.loads(tar.extractfile(member).read())  # type: ignore[union-attr]
    section = FORMAT[FORMAT.index("The JSON of a clip") : FORMAT.index("## Arrays")]
    keys = [*record, *record["patches"][0], *record["statistics"]]
    assert [key for key in keys if f"`{key}`" not in section] == []


def test_every_file_has_its_size_and_checksum(shards: Path, manifest: Manifest):
    listed = {r.path: (r.bytes, r.xxh3) for r in manifest.shards} | {r.path: (r.bytes, r.xxh3) for r in manifest.files}
    there = {str(path.relative_to(shards)) for path in shards.rglob("*") if path.is_file()}
    assert there == {*listed, "manifest.json"}
    for path, (size, digest) in listed.items():
        data = (shards / path).read_bytes()
        assert (len(data), xxhash.xxh3_64_hexdigest(data)) == (size, digest)


def test_the_manifest_round_trips(shards: Path, manifest: Manifest):
    assert manifest.to_json() == (shards / "manifest.json").read_text()


def test_the_documented_reader_finds_the_candidates_of_the_json(
    shards: Path, manifest: Manifest, arrays: dict[str, np.ndarray], example: dict[str, Any]
):
    row, links = 0, {}
    for shard in manifest.shards:
        with tarfile.open(shards / shard.path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".json"):
                    record = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                    for number, patch in enumerate(record["patches"]):
                        if patch["is_sample"]:
                            links[row + number] = [row + other for other in patch["candidates"]]
                    row += len(record["patches"])
    assert example["positives"] == links
    assert sorted(links) == np.flatnonzero(arrays["patch_is_sample"]).tolist()
    assert [bool(links[row]) for row in sorted(links)] == arrays["patch_has_candidate"][sorted(links)].tolist()


def test_candidates_are_of_the_samples_lineage_within_tau(arrays: dict[str, np.ndarray], example: dict[str, Any]):
    obs = arrays["patch_obs"]
    for sample, rows in example["positives"].items():
        for row in rows:
            assert arrays["obs_lineage"][obs[row]] == arrays["obs_lineage"][obs[sample]]
            assert 1 <= arrays["obs_t"][obs[row]] - arrays["obs_t"][obs[sample]] <= 2


def test_the_documented_reader_finds_the_bytes(shards: Path, manifest: Manifest, example: dict[str, Any]):
    row = 0
    for shard in manifest.shards:
        with tarfile.open(shards / shard.path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".npy"):
                    raw = tar.extractfile(member).read()  # type: ignore[union-attr]
                    stored = np.load(io.BytesIO(raw))
                    path, offset = example["shard_and_offset"](row)
                    assert path == shards / shard.path
                    with path.open("rb") as file:
                        file.seek(offset)
                        assert file.read(stored.nbytes) == stored.tobytes()
                    assert stored.shape == manifest.experiments[0].shape
                    row += 1
    assert row == len(example["column"]["patch_offset"])


def test_every_channel_of_a_patch_has_its_checksum(shards: Path, manifest: Manifest, arrays: dict[str, np.ndarray]):
    """pandas and numpy find the channels; nothing of ours is asked where they are."""
    found = []
    for (path, offset), patch in pd.read_parquet(find_index(shards) / contract.PATCHES).groupby(
        ["shard", "offset"], observed=True
    ):
        raw = (shards / path).read_bytes()[offset : offset + int(patch["bytes"].iloc[0])]
        pixels = np.frombuffer(raw, manifest.experiments[0].dtype).reshape(manifest.experiments[0].shape)
        sums = [xxhash.xxh3_64_hexdigest(channel.tobytes())[8:] for channel in pixels]
        found.append((int(patch.index[0]), sums))
    assert [row for row, _ in sorted(found)] == list(range(len(arrays["patch_xxh3"])))
    assert [[f"{value:08x}" for value in row] for row in arrays["patch_xxh3"].tolist()] == [s for _, s in sorted(found)]


def test_blocks_are_whole_clips_and_valid_tar(shards: Path, manifest: Manifest, arrays: dict[str, np.ndarray]):
    first = arrays["block_first"]
    assert len(arrays["block_shard"]) == sum(shard.blocks for shard in manifest.shards) > len(manifest.shards)
    for block, shard in enumerate(arrays["block_shard"].tolist()):
        begin, end = int(arrays["block_begin"][block]), int(arrays["block_end"][block])
        data = (shards / manifest.shards[shard].path).read_bytes()
        assert xxhash.xxh3_64_intdigest(data[begin:end]) == int(arrays["block_xxh3"][block])
        with tarfile.open(fileobj=io.BytesIO(data[begin:end])) as tar:  # without the zeros of the end
            names = [member.name for member in tar.getmembers()]
        keys = [key for key, _ in itertools.groupby(name.split(".")[0] for name in names)]
        assert len(keys) == first[block + 1] - first[block]
        assert keys == sorted(set(keys))
        same = block and arrays["block_shard"][block - 1] == shard
        assert begin == (arrays["block_end"][block - 1] if same else 0)
    rows = arrays["patch_clip"]
    assert arrays["clip_block"][rows].tolist() == sorted(arrays["clip_block"][rows].tolist())


def test_columns_agree_with_each_other(shards: Path, manifest: Manifest, arrays: dict[str, np.ndarray]):
    observations = pq.read_table(find_index(shards) / contract.OBSERVATIONS).to_pylist()
    patches = pq.read_table(find_index(shards) / contract.PATCHES).to_pylist()
    for row, seen in enumerate(observations):
        fov = manifest.fovs[arrays["obs_fov"][row]]
        assert (seen["observation"], seen["experiment"], seen["fov_name"]) == (row, fov.experiment, fov.fov_name)
        for label in manifest.labels:
            code = np.load(find_array(shards, contract.label_array(label.name)), mmap_mode="r")[row]
            assert seen[label.name] == (label.values[code] if code >= 0 else None)
        assert seen["global_track_id"] == f"{fov.experiment}/{fov.fov_name}/{arrays['obs_track_id'][row]}"
        assert patches[arrays["obs_patch"][row]]["observation"] == row
        assert (seen["t"], seen["track_index"]) == (arrays["obs_t"][row], arrays["obs_track"][row])
    order = [(p["shard"], p["block"], p["offset"]) for p in patches]
    shards_in_order = [shard.path for shard in manifest.shards]
    assert order == sorted(order, key=lambda p: (shards_in_order.index(p[0]), p[1], p[2]))
    assert sorted(p["observation"] for p in patches if p["is_sample"]) == list(range(len(observations)))
    with_candidate = [p["observation"] for p in patches if p["has_candidate"]]
    assert sorted(with_candidate) == [o["observation"] for o in observations if o["has_candidate"]]
    assert (
        arrays["patch_clip"].tolist()
        == np.repeat(np.arange(len(arrays["clip_lineage"])), np.diff(arrays["clip_first"])).tolist()
    )
    assert np.array_equal(arrays["obs_lineage"][arrays["patch_obs"]], arrays["clip_lineage"][arrays["patch_clip"]])


def test_members_have_no_owner_and_no_time(shards: Path, manifest: Manifest):
    with tarfile.open(shards / manifest.shards[0].path) as tar:
        marks = {(m.uid, m.gid, m.uname, m.gname, m.mode, m.mtime, m.type) for m in tar.getmembers()}
    assert marks == {(0, 0, "", "", 0o444, 0, tarfile.REGTYPE)}


def test_the_manifests_checksum_is_as_documented(shards: Path):
    raw = json.loads((shards / "manifest.json").read_text())
    expected = raw.pop("xxh3")
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert xxhash.xxh3_64_hexdigest(text.encode()) == expected


def test_names_are_safe_as_paths():
    digest = "0123456789abcdef" * 2
    long = f"{'a' * 83}-{xxhash.xxh3_64_hexdigest(b'a' * 300)}"
    assert contract.shard_path(("a" * 300, None), digest, 0) == f"{long}/~-0123456789ab-000000.tar"
    assert contract.shard_path(("Exp 1/β", "A.b~c"), digest, 7) == "Exp%201%2F%CE%B2/A%2Eb%7Ec-0123456789ab-000007.tar"
    assert contract.group_of("Exp%201%2F%CE%B2/A%2Eb%7Ec-0123456789ab-000007.tar") == "0123456789ab"
