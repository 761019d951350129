"""Verified bytes: every fault of a finished set is found and named, and `--repair` mends it to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash

from dynaclr_wds.contract import ARRAYS, Manifest, array_path, parse_manifest
from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config
from etl.verify import main, verify
from tests.plates import make_collection
from tests.test_build import digests

LABELS = ("label_experiment", "label_condition", "label_well")


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


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


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def mend(collection: Path, shards: Path, whole: Path) -> None:
    build_shards(parse_build_config(collection, {}), shards, repair=True)
    assert digests(shards) == digests(whole)


def test_a_fresh_set_is_well(whole: Path, capsys: pytest.CaptureFixture[str]):
    assert verify(whole) == []
    assert main([str(whole), "--quick"]) == 0
    assert "all is well" in capsys.readouterr().out


def test_a_flipped_payload_byte_is_found_and_mended(collection: Path, whole: Path, shards: Path):
    manifest = read_manifest(shards)
    offset = int(np.load(shards / array_path("patch_offset"))[0])
    flip(shards / manifest.shards[0].path, offset + 7)
    found = verify(shards)
    assert [(finding.path, finding.block) for finding in found] == [
        (manifest.shards[0].path, 0),
        (manifest.shards[0].path, None),
    ]
    assert "patch rows 0 to" in found[0].what
    assert verify(shards, quick=True) == []  # quick leaves the content out
    mend(collection, shards, whole)


@pytest.mark.parametrize(
    ("before", "what"),
    [
        (128 + 512, "no tar header where the index says"),
        (100, "the npy header is not that of the experiment's dtype and shape"),
    ],
)
def test_a_flipped_header_byte_names_the_member(collection: Path, whole: Path, shards: Path, before: int, what: str):
    manifest, first = read_manifest(shards), np.load(shards / array_path("clip_first"))
    row = int(first[1]) - 1  # the last patch of the first clip
    flip(shards / manifest.shards[0].path, int(np.load(shards / array_path("patch_offset"))[row]) - before)
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
    path = shards / array_path(name)
    flip(path, path.stat().st_size - 1)
    found = verify(shards, quick=True)
    assert [finding.path for finding in found] == [array_path(name)]
    if name in ("patch_offset", "stats_fov", "label_well"):  # one of each kind, for time
        mend(collection, shards, whole)


def test_an_array_that_was_altered_with_its_checksum_is_found(shards: Path):
    """Somebody who also mends the manifest is caught by the clips' own word."""
    manifest = read_manifest(shards)
    values = np.load(shards / array_path("patch_has_candidate"))
    values[np.flatnonzero(values)[0]] = False
    np.save(shards / array_path("patch_has_candidate"), values)
    sums = {array_path("patch_has_candidate"): _sum(shards / array_path("patch_has_candidate"))}
    _write_manifest(shards, manifest, sums)
    found = verify(shards)
    assert [f.path for f in found] == ["index/patches.parquet", manifest.shards[0].path]
    assert "has_candidate" in found[1].what


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
    (shards / "index/stats.parquet").unlink()
    assert main([str(shards), "--quick", "--json", "--quiet"]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(f["path"], f["what"].split(",")[0]) for f in found] == [
        (first, "is missing"),
        (second, f"has {(shards / second).stat().st_size:,} bytes".split(",")[0]),
        ("index/stats.parquet", "is missing"),
    ]
    mend(collection, shards, whole)


def test_no_set_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path)]) == 2
    assert "there is no manifest" in capsys.readouterr().err
