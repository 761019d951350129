"""Laws of compressed shards: the batches are those of shards that are not, and damage is named, in bounded memory."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

import dynaclr_wds.read.opening
from dynaclr_wds.addresses import DecodedAddresses
from dynaclr_wds.codec import CodecError, compress, compress_patch, decompress, split_members
from dynaclr_wds.contract import Manifest, array_dtypes, most_stored
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.errors import ChecksumError, ConfigError, FormatError
from dynaclr_wds.index_checks import check_arrays
from dynaclr_wds.manifest_checks import parse_manifest
from dynaclr_wds.plain.pipeline import triplet_pipeline
from dynaclr_wds.read.crop import plan_crop
from dynaclr_wds.read.decoding import DecodingStore
from dynaclr_wds.read.mapped import MappedStore
from dynaclr_wds.read.patches import PatchReader
from dynaclr_wds.read.remote_decoding import RemoteDecodingStore
from dynaclr_wds.shardset import ShardSet
from etl.build_shards import build_shards
from etl.run.progress import Progress
from etl.run.verification import verify_set
from etl.source.experiments import parse_build_config
from tests.conftest import build
from tests.plates import write_experiments, write_plate, write_tracks
from tests.remote import EXACT, STREAMING, assert_same, make_data, quick, read_batches, upload
from tests.set_files import find_array

BAG: dict[str, Any] = {"channels_per_sample": 1}
CROPPED = {"yx_patch_size": (9, 8), "z_range": (1, 3)}
MODES = pytest.mark.parametrize(
    "mode", [EXACT, STREAMING, BAG, CROPPED], ids=["exact", "streaming", "bag of channels", "cropped"]
)
DAMAGED = r"clip \d+, patch \d{3}, byte \d+, channel 1, of the cell .* at t=\d+: is not what was written"


@pytest.fixture(scope="module")
def options() -> dict[str, object]:
    return {"clip_anchors": 4, "block_bytes": 1 << 16}


@pytest.fixture(scope="module")
def compressed(collection: Path, options: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`short_clips`, compressed. Read only."""
    return build(collection, tmp_path_factory.mktemp("compressed") / "shards", codec="gzip", **options)


@pytest.fixture
def damaged(compressed: Path, tmp_path: Path) -> tuple[Path, int]:
    """A copy with a flipped byte in the second channel of a patch of `e0`; its folder, and the patch's row."""
    root = tmp_path / "damaged"
    for path in compressed.rglob("*"):
        (root / path.relative_to(compressed)).parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            os.link(path, root / path.relative_to(compressed))
    shards = ShardSet.open(root)
    a, row = shards.arrays, 3
    path = root / shards.manifest.shards[0].path
    content = bytearray(path.read_bytes())
    content[int(a["patch_offset"][row] + a["patch_stored"][row].sum()) - 12] ^= 1
    path.unlink()
    path.write_bytes(bytes(content))
    return root, row


def test_a_patch_of_a_shard_that_is_smaller_than_another_patch_is_read_beside_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 1 << 16, (3, 2, 1, 64, 64))
    pixels = {"A/1/0": noise, "B/1/0": np.ones_like(noise)}
    pixels["B/1/0"][..., 0, 0] = 2  # not blank
    write_plate(tmp_path / "plate.zarr", fovs=list(pixels), pixels=pixels, shape=noise.shape, channel_names=["a", "b"])
    for fov in pixels:
        rows = [{"track_id": 1, "t": t, "y": 32, "x": 32, "parent_track_id": -1} for t in range(3)]
        write_tracks(tmp_path / "tracks", fov, rows)
    entry = {
        "name": "one", "data_path": "plate.zarr", "tracks_path": "tracks", "channel_names": ["a", "b"],
        "source_channel": ["a", "b"], "condition_wells": {"noise": ["A/1"], "plain": ["B/1"]}, "interval_minutes": 30.0,
    }  # fmt: skip
    path = write_experiments(tmp_path / "experiments.yaml", [entry], yx_patch_size=[64, 64], tau_range_hours=[0.5, 1.0])
    shards = ShardSet.open(build(path, tmp_path / "shards", codec="gzip"))
    assert shards.arrays["patch_stored"].sum(axis=1).max() > min(s.bytes for s in shards.manifest.shards)
    store = DecodingStore(MappedStore(shards.root, shards.manifest.shards), shards)
    rows = np.arange(6)
    found = np.empty((6, 2, 1, 64, 64), np.uint16)
    PatchReader(shards, plan_crop(shards, None, None), store).read(rows, found)
    fov, t = shards.arrays["obs_fov"][shards.arrays["patch_obs"]], shards.arrays["patch_t"]
    names = [record.fov_name for record in shards.manifest.fovs]
    np.testing.assert_array_equal(found, [pixels[names[f]][k] for f, k in zip(fov, t, strict=True)])


@MODES
@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "read"])
def test_batches_are_those_of_shards_without_a_codec(short_clips, compressed, monkeypatch, mode, mapped):
    if not mapped:
        monkeypatch.setattr(dynaclr_wds.read.opening, "load_copy", lambda: None)
    for more in ({}, {"verify_reads": True}):
        found, plain = make_data(compressed, **mode, **more), make_data(short_clips, **mode)
        assert_same(read_batches(found, 12), read_batches(plain, 12))


@MODES
@pytest.mark.slow
def test_batches_from_a_bucket_are_those_of_shards_without_a_codec(short_clips, compressed, bucket, tmp_path, mode):
    url = upload(bucket, compressed)
    data = make_data(url, storage_options=quick(bucket), cache_dir=str(tmp_path), num_workers=2, **mode)
    assert isinstance(data.train_dataset._reader._store, RemoteDecodingStore)
    assert_same(read_batches(data, 12), read_batches(make_data(short_clips, **mode), 12))
    assert data.train_dataset._reader._store._held.table.members == []


def test_what_is_kept_on_the_way_gives_the_same_batches_again(short_clips, compressed, bucket, tmp_path):
    url, options = upload(bucket, compressed), quick(bucket)
    for kept in ({"cache_pool_bytes": 1 << 28}, {"cache_dir_bytes": 1 << 28}, {"cache_dir_bytes": 1 << 28}):
        data = make_data(url, storage_options=options, cache_dir=str(tmp_path), **kept)
        for _ in range(2):
            found = list(data.val_dataloader())
            assert_same(found, list(make_data(short_clips).val_dataloader()))


def test_of_a_block_that_was_decoded_no_compressed_byte_is_held(compressed, bucket, tmp_path):
    shards = ShardSet.open(upload(bucket, compressed), storage_options=quick(bucket), cache_dir=tmp_path)
    store = dynaclr_wds.read.opening.open_store(shards)
    shard, begin, end = shards.addresses.block(1)
    store.fetch(shard, begin, end)
    assert store.checksum(shard, begin, end) == int(shards.arrays["block_xxh3"][1])
    (block,) = store._held.table.members
    assert len(block.bytes) == end - begin == int(shards.arrays["block_decoded"][1])
    assert len(block.source.bytes) == 0
    store.forget(shard, begin, end)
    assert len(block.bytes) == 0
    store.close()


def test_a_channel_is_one_gzip_member_at_its_offset(short_clips, compressed):
    plain, shards = ShardSet.open(short_clips), ShardSet.open(compressed)
    assert isinstance(shards.addresses, DecodedAddresses)
    assert sum(s.bytes for s in shards.manifest.shards) < sum(s.bytes for s in plain.manifest.shards)
    a = shards.arrays
    for row in range(0, len(a["patch_obs"]), 97):
        number = a["block_shard"][a["clip_block"][a["patch_clip"][row]]]
        record = shards.manifest.experiments[shards.clip_experiment[a["patch_clip"][row]]]
        stored = (compressed / shards.manifest.shards[number].path).read_bytes()
        whole = (short_clips / plain.manifest.shards[number].path).read_bytes()
        want = whole[int(plain.arrays["patch_offset"][row]) :][: record.patch_bytes]
        at, found = int(a["patch_offset"][row]), []
        for length in a["patch_stored"][row, : record.shape[0]].tolist():
            found.append(gzip.decompress(stored[at : at + length]))
            at += length
        assert b"".join(found) == want
        assert [len(part) for part in found] == [record.patch_bytes // record.shape[0]] * record.shape[0]


def test_whoever_plans_sees_the_blocks_of_shards_without_a_codec(short_clips, compressed):
    plain, shards = ShardSet.open(short_clips), ShardSet.open(compressed)
    assert shards.addresses.block_bytes.tolist() == plain.addresses.block_bytes.tolist()
    assert shards.manifest.config_hash != plain.manifest.config_hash


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves files open
def test_plain_webdataset_decodes_every_shard(short_clips, compressed):
    def decode(root: Path) -> list[dict[str, Any]]:
        urls = sorted(str(path) for path in root.rglob("*.tar"))
        return sorted(wds.WebDataset(urls, shardshuffle=False).decode(), key=lambda sample: sample["__key__"])

    for one, other in zip(decode(compressed), decode(short_clips), strict=True):
        names = [patch["file"] for patch in one["json"]["patches"]]
        assert [f"{patch['file']}.gz" for patch in other["json"]["patches"]] == names
        for name in names:
            assert np.array_equal(one[name], other[name.removesuffix(".gz")])


def test_the_plain_pipeline_draws_the_same_triplets(short_clips, compressed):
    found = []
    for root in (compressed, short_clips):
        urls = [str(root / shard.path) for shard in ShardSet.open(root).manifest.shards if shard.path.startswith("e0/")]
        found.append(list(triplet_pipeline(urls, batch_size=8, seed=3)))
    assert len(found[0]) == len(found[1]) > 0
    for one, other in zip(*found, strict=True):
        assert torch.equal(one["anchor"], other["anchor"])
        assert torch.equal(one["positive"], other["positive"])


@pytest.mark.parametrize("mode", [EXACT, {**STREAMING, "verify_reads": False}], ids=["exact", "streaming"])
def test_a_damaged_channel_is_named(damaged, mode):
    root, row = damaged
    shards = ShardSet.open(root)
    data = MultiExperimentDataModule(str(root), batch_size=4, tau_range=(0.5, 1.5), val_experiments=["e1"], **mode)
    data.setup("fit")
    with pytest.raises(ChecksumError, match=rf"{shards.manifest.shards[0].path}, {DAMAGED}: gzip says: .*ncorrect"):
        read_batches(data)
    data.setup("predict")
    offset = int(shards.arrays["patch_offset"][row])
    with pytest.raises(ChecksumError, match=f"byte {offset}, channel 1"):
        list(data.predict_dataloader())


def test_a_damaged_channel_in_a_bucket_is_asked_for_twice_and_named(damaged, bucket, tmp_path):
    root, _ = damaged
    data = make_data(upload(bucket, root), storage_options=quick(bucket), cache_dir=str(tmp_path))
    with pytest.raises(ChecksumError, match=rf"{DAMAGED}, though it was asked for twice: gzip says"):
        read_batches(data)


@pytest.mark.usefixtures("without_fsync")
def test_verify_names_a_damaged_channel_and_repair_makes_the_same_bytes(damaged, compressed, collection, options):
    root, row = damaged
    (found,) = verify_set(root, quick=False, workers=1, progress=Progress()).found
    assert found.row == row
    assert "channel 1 can't be decoded: gzip says" in found.what
    assert not verify_set(compressed, quick=False, workers=1, progress=Progress()).found
    config = parse_build_config(collection, {**options, "codec": "gzip"})
    build_shards(config, root, repair=True)
    for path in compressed.rglob("*.tar"):
        assert (root / path.relative_to(compressed)).read_bytes() == path.read_bytes()


def test_a_bomb_is_refused_in_bounded_memory():
    bomb = gzip.compress(bytes(64 << 20))
    assert len(bomb) < 70_000
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="it gives more than 4,096 bytes"):
            decompress(bomb, 4096)
        with pytest.raises(CodecError, match="a member does not give 4,096 bytes"):
            split_members(bomb, [4096])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data: data + b"more", "4 bytes follow its end"),
        (lambda data: data + gzip.compress(b""), "20 bytes follow its end"),
        (lambda data: data[:-1], "it ends after 1,000 of 1,000 bytes"),
        (lambda _: b"", "it ends after 0 of 1,000 bytes"),
        (lambda _: gzip.compress(bytes(999)), "it gives 999 bytes, not 1,000"),
        (lambda _: gzip.compress(bytes(1001)), "it gives more than 1,000 bytes"),
        (lambda data: data[:-8] + b"\0\0\0\0" + data[-4:], "gzip says: .*ncorrect"),
        (lambda data: b"\0" + data[1:], "gzip says"),
    ],
)
def test_anything_but_one_whole_member_is_refused(change, what):
    data = compress(bytes(range(250)) * 4)
    assert decompress(data, 1000) == bytes(range(250)) * 4
    with pytest.raises(CodecError, match=what):
        decompress(change(data), 1000)


@given(st.binary(max_size=3000), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_gzip_reads_what_is_written_and_it_is_the_same_each_time(data: bytes, channels: int):
    data = data[: len(data) // channels * channels]
    parts = compress_patch(b"header", data, channels)
    assert gzip.decompress(b"".join(parts)) == b"header" + data
    assert parts == compress_patch(b"header", data, channels)
    assert [part[4:8] for part in parts] == [bytes(4)] * (channels + 1)  # no time
    assert all(len(part) <= most_stored(len(data) // channels) for part in parts[1:])
    found = split_members(b"".join(parts), [6, *[len(data) // channels] * channels])
    assert [length for length, _ in found] == [len(part) for part in parts]


def test_noise_takes_no_more_than_the_format_allows():
    for size in (1, 100, 4096, 1 << 20):
        noise = np.random.default_rng(size).bytes(size)
        assert len(compress(noise)) <= most_stored(size)


@pytest.mark.parametrize(
    ("name", "row", "value", "what"),
    [
        ("patch_stored", (5, 0), 0, r"patch_stored\.npy: row 5 is .* it must be what gzip makes of a channel"),
        ("patch_stored", (5, 0), 1 << 31, r"patch_stored\.npy: row 5 is"),
        ("patch_stored", (5, 1), 1600, r"patch_offset\.npy: row 6 is \d+; it must lie behind the patch before it"),
        ("patch_offset", 5, 7, r"patch_offset\.npy: row 5 is 7; it must lie behind"),
        ("patch_offset", 5, 1 << 60, r"patch_offset\.npy: row 5 is 1152921504606846976; it must be a byte of a block"),
        ("block_decoded", 1, 1 << 50, r"block_decoded\.npy: row 1 is 1125899906842624; it must be the bytes of the"),
        ("block_decoded", 1, 512, r"block_decoded\.npy: row 1 is 512"),
        ("block_decoded", 1, -512, r"block_decoded\.npy: row 1 is -512"),
    ],
)
def test_a_forged_length_is_found_when_the_set_is_opened(compressed, name, row, value, what):
    manifest = parse_manifest((compressed / "manifest.json").read_bytes())
    arrays = {array: np.load(find_array(compressed, array)) for array in array_dtypes(manifest)}
    check_arrays(manifest, arrays)
    arrays[name][row] = value
    with pytest.raises(FormatError, match=what):
        check_arrays(manifest, arrays)


def test_an_unknown_codec_is_refused(compressed, collection):
    manifest = parse_manifest((compressed / "manifest.json").read_bytes())
    forged = Manifest(**{name: getattr(manifest, name) for name in Manifest.__slots__} | {"codec": "lz4"})
    with pytest.raises(
        FormatError, match=r"codec='lz4', but this release reads none and gzip\. Build the shards again"
    ):
        parse_manifest(forged.to_json())
    with pytest.raises(ConfigError, match=r"codec='lz4' must be one of \['none', 'gzip'\]|codec"):
        parse_build_config(collection, {"codec": "lz4"})
