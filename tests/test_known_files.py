"""Index files that were found whole are not read through again while nobody touches them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dynaclr_wds import index_checks, known_files, shard_files, shardset
from dynaclr_wds.contract import OBSERVATIONS
from dynaclr_wds.errors import ChecksumError, FormatError
from dynaclr_wds.shardset import ShardSet
from tests.set_files import find_array, find_index
from tests.test_index_checks import load


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "set"))


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that are read through, and `arrays` whenever they are checked."""
    seen: list[str] = []
    check_content, check_arrays = shard_files.check_content, shardset.check_arrays
    monkeypatch.setattr(
        shard_files, "check_content", lambda path, xxh3: (seen.append(path.name), check_content(path, xxh3))
    )
    monkeypatch.setattr(shardset, "check_arrays", lambda *given: (seen.append("arrays"), check_arrays(*given)))
    return seen


def test_arrays_are_checked_once_until_a_file_is_touched(
    copy: Path, tmp_path: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_files, "_SETTLED_NS", 0)
    cache = tmp_path / "cache"
    ShardSet.open(copy, cache_dir=cache)
    assert "obs_t.npy" in looked_at
    assert looked_at[-1] == "arrays"
    looked_at.clear()
    ShardSet.open(copy, cache_dir=cache)
    ShardSet.open(copy, cache_dir=cache, verify=False)
    assert looked_at == []
    path = find_array(copy, "obs_t")
    path.write_bytes(path.read_bytes())  # the same bytes: only the times tell
    ShardSet.open(copy, cache_dir=cache)
    assert "obs_t.npy" in looked_at
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(ChecksumError, match=r"obs_t\.npy: was changed after it was written"):
            ShardSet.open(copy, cache_dir=cache)


def test_a_set_in_another_place_is_not_known(copy: Path, tmp_path: Path, looked_at: list[str], monkeypatch) -> None:
    monkeypatch.setattr(known_files, "_SETTLED_NS", 0)
    ShardSet.open(copy, cache_dir=tmp_path / "cache")
    moved = Path(shutil.copytree(copy, tmp_path / "moved"))
    looked_at.clear()
    ShardSet.open(moved, cache_dir=tmp_path / "cache")
    assert "obs_t.npy" in looked_at


def test_files_changed_a_moment_ago_and_unverified_ones_are_not_remembered(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_files, "_SETTLED_NS", 3600 * 10**9)
    ShardSet.open(copy, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(known_files, "_SETTLED_NS", 0)
    ShardSet.open(copy, cache_dir=tmp_path / "cache", verify=False)
    assert not (tmp_path / "cache/known").exists()


def test_a_folder_that_cannot_be_written_only_costs_time(copy: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(known_files, "_SETTLED_NS", 0)
    (tmp_path / "cache").write_text("a file, not a folder")
    assert len(ShardSet.open(copy, cache_dir=tmp_path / "cache").arrays["obs_t"])


def test_a_table_is_checked_when_it_is_first_read(copy: Path, tmp_path: Path) -> None:
    data = bytearray((find_index(copy) / OBSERVATIONS).read_bytes())
    data[len(data) // 2] ^= 1
    (find_index(copy) / OBSERVATIONS).write_bytes(data)
    opened = ShardSet.open(copy, cache_dir=tmp_path)
    with pytest.raises(ChecksumError, match=r"observations\.parquet: was changed after it was written"):
        _ = opened.lineage_ids


@pytest.mark.parametrize("name", ["patch_obs", "patch_clip", "patch_t", "patch_offset", "obs_patch", "clip_lineage"])
def test_an_altered_row_is_found_wherever_chunks_end(shards: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_checks, "_CHUNK", 7)
    manifest, arrays = load(shards)
    index_checks.check_arrays(manifest, arrays)
    for row in range(0, min(len(arrays[name]), 30)):
        changed = arrays[name].copy()
        changed[row] += np.int64(1)
        with pytest.raises(FormatError, match=r"index/\w+/arrays/\w+\.npy: "):
            index_checks.check_arrays(manifest, arrays | {name: changed})
