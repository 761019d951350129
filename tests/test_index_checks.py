"""Every array that is altered where it matters is found, and the error names the array and the row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dynaclr_wds.contract import ARRAYS, Manifest, array_dtypes
from dynaclr_wds.errors import FormatError
from dynaclr_wds.index_checks import check_arrays
from dynaclr_wds.manifest_checks import parse_manifest
from dynaclr_wds.offset_checks import PlainOffsets
from dynaclr_wds.row_checks import count_samples
from tests.set_files import find_array

FREE = {"obs_track_id", "obs_parent_track_id", "obs_id", "obs_parent_id", "obs_z", "obs_y", "obs_x", "block_xxh3"}
FREE |= {"patch_has_candidate", "patch_xxh3", "obs_z_start", "obs_z_focus"}
"""Arrays whose values agree with nothing else in the index; checksums guard them, and verify reads the clips."""


def load(shards: Path) -> tuple[Manifest, dict[str, np.ndarray]]:
    manifest = parse_manifest((shards / "manifest.json").read_bytes())
    return manifest, {name: np.load(find_array(shards, name)) for name in array_dtypes(manifest)}


def test_arrays_of_a_fresh_set_pass(shards: Path):
    check_arrays(*load(shards))


@pytest.mark.parametrize("name", [*ARRAYS, "label_experiment", "label_condition", "label_well"])
def test_a_wrong_dtype_or_length_is_named(shards: Path, name: str):
    manifest, arrays = load(shards)
    whole = arrays[name]
    arrays[name] = whole.astype("<f8")
    with pytest.raises(FormatError, match=rf"{name}\.npy: has dtype <f8"):
        check_arrays(manifest, arrays)
    arrays[name] = whole[:-1]
    with pytest.raises(FormatError, match=rf"{name}\.npy: has shape"):
        check_arrays(manifest, arrays)
    del arrays[name]
    with pytest.raises(FormatError, match=rf"{name}\.npy: is missing"):
        check_arrays(manifest, arrays)


@pytest.mark.parametrize("name", [name for name in ARRAYS if name not in FREE and not name.startswith("stats_")])
def test_an_altered_value_is_found(shards: Path, name: str):
    manifest, arrays = load(shards)
    row = len(arrays[name]) // 2
    for value in (np.iinfo(arrays[name].dtype).max if arrays[name].dtype.kind == "i" else 1, -7, 0):
        changed = arrays[name].copy()
        changed[row] = ~changed[row] if changed.dtype.kind == "b" else value
        if changed[row] != arrays[name][row]:
            with pytest.raises(FormatError, match=r"index/\w+/arrays/\w+\.npy: "):
                check_arrays(manifest, arrays | {name: changed})


def test_the_first_bad_row_is_named(shards: Path):
    manifest, arrays = load(shards)
    arrays["patch_obs"][[5, 9]] = 1 << 20
    with pytest.raises(FormatError, match=r"patch_obs\.npy: row 5 is 1048576; it must be an observation: 0 to"):
        check_arrays(manifest, arrays)
    manifest, arrays = load(shards)
    arrays["label_condition"][7] = 2
    with pytest.raises(
        FormatError, match=r"label_condition\.npy: row 7 is 2; it must be a code of 'condition': -1 to 1"
    ):
        check_arrays(manifest, arrays)


def test_two_clips_that_change_places_are_found(shards: Path):
    manifest, arrays = load(shards)
    arrays["clip_lineage"][[0, 1]] = arrays["clip_lineage"][[1, 0]]
    with pytest.raises(FormatError, match=r"clip_lineage\.npy: patch row 0 is \d+; it must be the lineage"):
        check_arrays(manifest, arrays)


@pytest.mark.parametrize("name", ["patch_obs", "patch_clip", "patch_t", "patch_offset", "clip_lineage", "obs_patch"])
@pytest.mark.parametrize("row", [0, 1, -1])
def test_the_compiled_pass_finds_what_numpy_finds(shards: Path, name: str, row: int):
    manifest, arrays = load(shards)
    strides = PlainOffsets(manifest, arrays).strides
    assert count_samples(arrays, *strides) == len(arrays["obs_patch"])
    for change in (1, -1, 1 << 30, -(1 << 30)):
        changed = arrays[name].copy()
        changed[row] += change
        assert count_samples(arrays | {name: changed}, *strides) is None


@pytest.mark.parametrize("name", ["patch_is_sample", "patch_has_candidate"])
def test_the_compiled_pass_finds_samples_that_are_none(shards: Path, name: str):
    manifest, arrays = load(shards)
    strides = PlainOffsets(manifest, arrays).strides
    changed = arrays[name].copy()
    changed[np.flatnonzero(~arrays["patch_is_sample"])[-1]] = True
    assert count_samples(arrays | {name: changed}, *strides) is None


def test_without_the_compiled_pass_the_same_is_found(shards: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dynaclr_wds.row_checks._load", lambda: None)
    manifest, arrays = load(shards)
    check_arrays(manifest, arrays)
    arrays["patch_offset"][3] += 512
    with pytest.raises(FormatError, match=r"patch_offset\.npy: row 3 is \d+; it must lie behind the patch before it"):
        check_arrays(manifest, arrays)
