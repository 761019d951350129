"""Chunks that are decoded to their place hold what zarr reads; whatever is damaged is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, ZstdCodec
from zarr.storage import MemoryStore

from etl.source.stored_chunks import find_layout, read_chunks

SHAPE = (5, 2, 3, 20, 31)
BOXES = [
    tuple(slice(0, size) for size in SHAPE),
    (slice(1, 4), slice(1, 2), slice(1, 2), slice(0, 20), slice(0, 31)),
    (slice(3, 5), slice(0, 2), slice(0, 3), slice(5, 18), slice(8, 30)),
]
BLOSC = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
LAYOUTS: dict[str, dict[str, Any]] = {
    "whole planes": {"chunks": (1, 1, 1, 20, 31), "compressors": BLOSC},
    "raw": {"chunks": (1, 1, 1, 20, 31), "compressors": None},
    "tiles": {"chunks": (2, 1, 2, 16, 16), "compressors": BLOSC},
    "raw tiles": {"chunks": (1, 1, 1, 7, 9), "compressors": None},
    "shards": {"chunks": (1, 1, 1, 20, 31), "shards": (2, 2, 3, 20, 31), "compressors": BLOSC},
    "shards of tiles": {"chunks": (1, 1, 1, 7, 9), "shards": {"shape": (2, 2, 1, 14, 18), "index_location": "start"}},
    "v2": {"chunks": (1, 1, 2, 16, 31), "compressors": numcodecs.Blosc(cname="lz4"), "zarr_format": 2},
    "v2 raw": {"chunks": (1, 1, 1, 20, 31), "compressors": None, "zarr_format": 2},
}


def write(path: Any, dtype: str = "<f4", **options: Any) -> tuple[zarr.Array[Any], np.ndarray[Any, Any]]:
    """Write an array of which some chunks are missing, which hold its fill value; open it again."""
    options = {"compressors": BLOSC, **options}
    array = zarr.create_array(path, shape=SHAPE, dtype=dtype, fill_value=7, **options)
    pixels = np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)
    pixels[2:4] = 7
    array[:] = pixels
    return zarr.open_array(path, mode="r"), pixels


@pytest.mark.parametrize("dtype", ["u1", "<f4"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_boxes_hold_what_was_written(tmp_path: Path, layout: str, dtype: str):
    array, pixels = write(tmp_path / "array", dtype, **LAYOUTS[layout])
    found = find_layout(array)
    assert found is not None
    for box in BOXES:
        np.testing.assert_array_equal(read_chunks(found, box), pixels[box])


def test_other_arrays_are_left_to_zarr(tmp_path: Path):
    planes = (1, 1, 1, 20, 31)
    for name, options in {
        "another codec": {"compressors": ZstdCodec()},
        "two codecs": {"compressors": [BLOSC, ZstdCodec()]},
        "byte order": {"serializer": BytesCodec(endian="big")},
        "v2, byte order": {"zarr_format": 2, "dtype": ">f4", "compressors": None},
        "v2, columns first": {"zarr_format": 2, "order": "F", "compressors": None},
        "v2, filter": {"zarr_format": 2, "filters": [numcodecs.Delta("<f4")], "compressors": None},
    }.items():
        assert find_layout(write(tmp_path / name, chunks=planes, **options)[0]) is None, name
    assert find_layout(write(MemoryStore(), chunks=planes)[0]) is None


def damage(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at, 2 if at < 0 else 0)
        file.write(data)


def test_damage_is_said_with_the_file(tmp_path: Path):
    box = BOXES[0]
    for name, spoil, message in (
        ("cut", lambda path: path.write_bytes(path.read_bytes()[:-100]), "the index of the shard is damaged"),
        ("short", lambda path: path.write_bytes(b"x" * 8), "is too short"),
        ("index", lambda path: damage(path, -30, b"?"), "the index of the shard is damaged"),
        ("chunk", lambda path: damage(path, 4, b"\xff\xff"), "a chunk is damaged"),
    ):
        array, _ = write(tmp_path / name, chunks=(1, 1, 1, 20, 31), shards=(5, 2, 3, 20, 31))
        layout = find_layout(array)
        assert layout is not None
        spoil(tmp_path / name / "c/0/0/0/0/0")
        with pytest.raises(ValueError, match=rf"{name}/c/0/0/0/0/0: {message}"):
            read_chunks(layout, box)
    array, _ = write(tmp_path / "raw", chunks=(1, 1, 1, 20, 31), compressors=None)
    layout = find_layout(array)
    assert layout is not None
    (tmp_path / "raw/c/1/0/0/0/0").write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"raw/c/1/0/0/0/0: a chunk has 4 bytes, and should have 2,480"):
        read_chunks(layout, box)
