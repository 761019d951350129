"""Images that are in no plate, with axes of any order and number: they are cut as a plate's, and read as seldom."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from hypothesis import given
from hypothesis import strategies as st

from dynaclr_wds.errors import ConfigError, PlateError
from etl.build_shards import build_shards
from etl.indexing import build_index
from etl.source.config import BuildConfig
from etl.source.experiments import parse_build_config
from etl.source.fingerprints import fingerprint_sources
from etl.source.image_axes import AXES, AxesView
from etl.source.images import list_images, open_images
from etl.source.plate_boxes import read_box
from etl.source.plates import open_plate
from etl.source.preflight import open_plates
from etl.source.scales import fill_in_from_plates
from tests.plates import KEEP_ALL, cells, write_array, write_group, write_plate, write_tracks

WRITTEN = Path(__file__).parent / "data/images/written.tar.xz"

SIZES = {"t": 4, "c": 2, "z": 3, "y": 20, "x": 28}
CHUNKS = {"t": 2, "c": 1, "z": 2, "y": 8, "x": 16}
SHARDS = {"t": 2, "c": 2, "z": 4, "y": 16, "x": 32}
KINDS = {"t": "time", "c": "channel"}


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    return (np.arange(np.prod(shape)) % 251 + 1).astype(np.uint8).reshape(shape)


def write_image(
    path: Path, axes: str, *, version: str = "0.5", shards: bool = False, levels: int = 1, names: Any = None
) -> np.ndarray:
    """Write an image by tensorstore; return its pixels as T, C, Z, Y, X. Level n holds every 2ⁿth pixel."""
    pixels = numbered(tuple(SIZES[axis] for axis in axes))
    scale = {"t": 30.0, "c": 1.0, "z": 2.0, "y": 0.5, "x": 0.25}
    units = {"t": "minute", "c": None} | dict.fromkeys("zyx", "micrometer")
    datasets = []
    for level in range(levels):
        step = {axis: 2**level if axis in "yx" else 1 for axis in axes}
        small = pixels[tuple(slice(None, None, step[axis]) for axis in axes)]
        chunks, whole = (tuple(sizes[axis] for axis in axes) for sizes in (CHUNKS, SHARDS))
        write_array(path / str(level), version, small, chunks, whole if shards else None)
        factors = [scale[axis] * step[axis] for axis in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": factors}]})
    multiscale: dict[str, Any] = {
        "axes": [
            {"name": axis, "type": KINDS.get(axis, "space")} | ({"unit": units[axis]} if units[axis] else {})
            for axis in axes
        ],
        "datasets": datasets,
    }
    if names is not None:
        multiscale["axes"] = [entry | {"name": name} for entry, name in zip(multiscale["axes"], names, strict=True)]
    write_group(path, version, {"multiscales": [multiscale]}, None)
    return arrange(pixels, axes)


def arrange(pixels: np.ndarray, axes: str) -> np.ndarray:
    """Give pixels the axes T, C, Z, Y, X, by einsum and reshape."""
    there = [axis for axis in AXES if axis in axes]
    return np.einsum(f"{axes}->{''.join(there)}", pixels).reshape([SIZES[a] if a in axes else 1 for a in AXES])


ORDERS = ("yx", "xy", "cyx", "yxc", "tyx", "zcyx", "tczyx", "xyzct", "ctzyx", "tzcyx")


@pytest.mark.parametrize(("version", "shards"), [("0.4", False), ("0.5", False), ("0.5", True)])
@pytest.mark.parametrize("axes", ORDERS)
def test_any_order_of_axes_is_read_as_tczyx(tmp_path: Path, axes: str, version: str, shards: bool) -> None:
    pixels = write_image(tmp_path / "i.zarr", axes, version=version, shards=shards)
    (fov,) = open_images(tmp_path / "i.zarr", {"A/1": ["."]}).fovs.values()
    assert (fov.name, fov.well, fov.where) == ("A/1/0", "A/1", str(tmp_path / "i.zarr"))
    assert fov.shape == pixels.shape
    assert fov.array.chunks == tuple(CHUNKS[axis] if axis in axes else 1 for axis in AXES)
    assert (fov.array.shards is not None) == shards
    assert isinstance(fov.array, AxesView) == (axes != AXES)
    np.testing.assert_array_equal(read_box(fov.array, ()), pixels)
    t, c = slice(0, min(3, pixels.shape[0])), slice(pixels.shape[1] - 1, pixels.shape[1])
    np.testing.assert_array_equal(read_box(fov.array, (t, c)), pixels[t, c])
    assert fov.scale.pixel_size_um == (2.0 if "z" in axes else None, 0.5, 0.25)
    assert fov.scale.interval_minutes == (30.0 if "t" in axes else None)


@given(st.permutations(AXES), st.integers(2, 5), st.data())
def test_a_box_of_the_view_is_that_of_the_array(order: list[str], count: int, data: st.DataObject) -> None:
    axes = "".join(axis for axis in order if axis in "yx" or axis in order[:count])
    pixels = numbered(tuple(SIZES[axis] for axis in axes))
    view = AxesView(source=zarr.array(pixels, chunks=tuple(CHUNKS[axis] for axis in axes)), axes=axes)
    ends = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in view.shape]
    box = tuple(slice(a, b) for a, b in ends)[: data.draw(st.integers(0, 5))]
    np.testing.assert_array_equal(read_box(view, box), arrange(pixels, axes)[box])


def test_axes_go_by_type_where_names_are_longer(tmp_path: Path) -> None:
    pixels = write_image(tmp_path / "i.zarr", "ctyx", names=["channel", "time", "Y", "X"])
    (fov,) = open_images(tmp_path / "i.zarr", {"A/1": ["."]}).fovs.values()
    np.testing.assert_array_equal(read_box(fov.array, ()), pixels)


@pytest.mark.parametrize("names", [["a", "y", "x"], ["y", "y", "x"], ["c", "z", "x"], [None, "y", "x"]])
def test_axes_that_say_nothing_are_refused(tmp_path: Path, names: list[str | None]) -> None:
    write_image(tmp_path / "i.zarr", "zyx", names=names)
    (fov,) = open_images(tmp_path / "i.zarr", {"A/1": ["."]}).fovs.values()
    with pytest.raises(
        PlateError, match=r"i\.zarr: axes \[.*\] must be some of t, c, z, y, x, each once, with y and x "
    ):
        _ = fov.array


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("ome-zarr-py-tyx-0.4", "tyx"),
        ("ome-zarr-py-cyx-0.5", "cyx"),
        ("ome-zarr-py-tczyx-0.5", "tczyx"),
        ("bioio-tcyx-0.5", "tcyx"),
    ],
)
def test_images_of_other_libraries_are_read(tmp_path: Path, name: str, axes: str) -> None:
    shutil.unpack_archive(WRITTEN, tmp_path, filter="data")
    sizes = {"t": 4 if axes == "tyx" else 3, "c": 2, "z": 2, "y": 32, "x": 24}
    shape = tuple(sizes[axis] for axis in axes)
    plate = open_images(tmp_path, {"B/3": [f"{name}.zarr"]})
    (fov,) = plate.fovs.values()
    assert fov.name == f"B/3/{name}"
    np.testing.assert_array_equal(read_box(fov.array, ()).ravel(), numbered(shape).ravel())
    first, second = ("0", "1") if "bioio" in name else ("s0", "s1")
    for level, side in ((first, 32), (second, 16)):
        (fov,) = open_images(tmp_path, {"B/3": [f"{name}.zarr"]}, level=level).fovs.values()
        assert fov.shape[3] == side
    if "bioio" in name:
        assert (fov.scale.interval_minutes, fov.scale.pixel_size_um) == (30.0, (None, 1.0, 0.5))
        assert fov.channel_names == ("Phase", "GFP")


def test_a_level_is_taken_by_its_name(tmp_path: Path) -> None:
    pixels = write_image(tmp_path / "i.zarr", "tyx", levels=2)
    (fov,) = open_images(tmp_path / "i.zarr", {"A/1": ["."]}, level="1").fovs.values()
    np.testing.assert_array_equal(read_box(fov.array, ()), pixels[..., ::2, ::2])
    assert fov.scale.pixel_size_um == (None, 1.0, 0.5)
    (fov,) = open_images(tmp_path / "i.zarr", {"A/1": ["."]}, level="2").fovs.values()
    with pytest.raises(PlateError, match=r"i\.zarr: level '2' must be one of \['0', '1'\]\. Correct `level`, or leave"):
        _ = fov.array
    write_plate(tmp_path / "plate")
    (fov,) = open_plate(tmp_path / "plate", level="1").fovs.values()
    with pytest.raises(PlateError, match=r"plate/A/1/0: level '1' must be one of \['0'\]"):
        _ = fov.array


def write_series(path: Path, version: str, *, described: bool) -> None:
    """Write two images as bioformats2raw lays them out."""
    for name in ("0", "1"):
        write_image(path / name, "tczyx", version=version)
    write_group(path, version, {"bioformats2raw.layout": 3}, None)
    if described:
        write_group(path / "OME", version, {"series": ["0", "1"]}, None)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("described", [True, False])
def test_images_of_bioformats2raw_are_listed_and_read(tmp_path: Path, version: str, described: bool) -> None:
    write_series(tmp_path / "all.zarr", version, described=described)
    assert list_images(tmp_path / "all.zarr") == ["0", "1"]
    assert list_images(tmp_path) == ["all.zarr/0", "all.zarr/1"]
    plate = open_images(tmp_path / "all.zarr", {"A/1": ["1"], "A/2": ["0"]})
    assert (plate.wells, list(plate.fovs)) == (("A/1", "A/2"), ["A/1/1", "A/2/0"])
    assert plate.fovs["A/1/1"].where == str(tmp_path / "all.zarr/1")
    np.testing.assert_array_equal(read_box(plate.fovs["A/1/1"].array, ()), numbered(tuple(SIZES.values())))


def make_images(root: Path, axes: str = "yxct", **experiment: Any) -> Path:
    """Write a collection of two images and the tracks of two cells in each."""
    for name in ("first", "second image"):
        write_image(root / f"images/{name}.ome.zarr", axes)
    for fov in ("A/1/first", "A/2/second_image"):
        rows = [{"track_id": k, "t": t, "y": 8.0 + 3 * k, "x": 9.0 + t} for k in (0, 1) for t in range(4)]
        write_tracks(root / "tracks", fov, rows)
    entry = {
        "name": "a",
        "data_path": "images",
        "tracks_path": "tracks",
        "wells": {"A/1": ["first.ome.zarr"], "A/2": ["second image.ome.zarr"]},
        "condition_wells": {"mock": ["A/1"], "infected": ["A/2"]},
        "channel_names": ["Phase", "GFP"],
        "source_channel": ["GFP", "Phase"],
    }
    options = {"yx_patch_size": [8, 8], "tau_range_hours": [0.5, 1.0], **KEEP_ALL}
    path = root / "experiments.yaml"
    path.write_text(yaml.safe_dump({"experiments": [entry | experiment], "shards": options}, sort_keys=False))
    return path


def patches_of(out: Path) -> dict[tuple[str, int, int], np.ndarray]:
    """(fov_name, track_id, t) → patch, from the tars alone."""
    found: dict[tuple[str, int, int], np.ndarray] = {}
    for path in sorted(out.rglob("*.tar")):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            for name in (name for name in names if name.endswith(".json")):
                said = json.load(tar.extractfile(name))  # type: ignore[arg-type]
                for number, patch in enumerate(said["patches"]):
                    file = tar.extractfile(f"{name.removesuffix('.json')}.{number:03d}.npy")
                    assert file is not None
                    found[said["fov_name"], patch["track_id"], patch["t"]] = np.load(io.BytesIO(file.read()))
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("without_fsync")
def test_images_are_built_as_a_plate_and_each_chunk_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_images(tmp_path)
    read: Counter[str] = Counter()
    get = zarr.storage.LocalStore.get

    async def counting(self: Any, key: str, *more: Any, **named: Any) -> Any:
        if "/c/" in key:
            read[f"{self.root}/{key}"] += 1
        return await get(self, key, *more, **named)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counting)
    build_shards(parse_build_config(path), tmp_path / "out")
    assert set(read.values()) == {1}
    assert len(read) == 2 * (2 * 2 * 3 * 2)  # images; chunks along T, C, Y, X
    pixels = arrange(numbered(tuple(SIZES[axis] for axis in "yxct")), "yxct")
    found = patches_of(tmp_path / "out")
    assert set(found) == {(f, k, t) for f in ("A/1/first", "A/2/second_image") for k in (0, 1) for t in range(4)}
    for (_, track, t), patch in found.items():
        y, x = 8 + 3 * track, 9 + t
        np.testing.assert_array_equal(patch, pixels[t, ::-1, :, y - 4 : y + 4, x - 4 : x + 4])


def index_of(path: Path) -> Any:
    config = parse_build_config(path)
    plates = open_plates(config)
    return build_index(fill_in_from_plates(config, plates), plates)


def test_an_image_that_changed_is_noticed(tmp_path: Path) -> None:
    config: BuildConfig = parse_build_config(make_images(tmp_path))
    before = fingerprint_sources(config, open_plates(config))
    chunk = next(path for path in (tmp_path / "images/first.ome.zarr/0/c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes() + b"x")
    after = fingerprint_sources(config, open_plates(config))
    assert [key for key in before if before[key].pixels != after[key].pixels] == [("a", "A/1/first")]
    assert [key for key in before if before[key].metadata != after[key].metadata] == []


def test_mistakes_about_images_are_said(tmp_path: Path) -> None:
    for change, match in (
        ({"wells": None}, r"images' is no plate, but holds images \[.first\.ome\.zarr., .second image"),
        ({"wells": None}, r"Say which is of which well, such as `wells: \{A/1: \[first\.ome\.zarr\]\}`"),
        ({"wells": {"A/1": ["first.ome.zarr"]}}, r"condition_wells\.infected='A/2' is not a well of .*images, which"),
        ({"wells": {"A/1": ["x.zarr"], "A/2": ["y.zarr"]}}, r"images/x\.zarr: no such image\. Correct `wells`"),
        ({"wells": {"A/1": ["../x"]}}, r"experiments\[0\]\.wells\.A/1\[0\]='\.\./x' must be a path below data_path"),
        ({"wells": {"A/1": ["x", "y"], "A/2": ["./x"]}}, r"wells\.A/2\[0\]='\./x' must be of one well only, but 'A/1'"),
        ({"wells": {"A": ["x"]}}, r"experiments\[0\]\.wells key='A' must be of the form A/1"),
        ({"wells": ["x"]}, r"wells=\['x'\] must be a mapping of well to images\. Write \{A/1: \[movie_1\.zarr\]\}"),
        ({"wells": {"A/1": ["x/y.zarr", "x_y"]}}, r"wells\.A/1: image 'x_y' would be FOV 'A/1/x_y', which another"),
        ({"level": "7"}, r"first\.ome\.zarr: level '7' must be one of \['0'\]"),
    ):  # fmt: skip
        with pytest.raises((ConfigError, PlateError), match=match):
            index_of(make_images(tmp_path, **change))


def test_numbers_in_wells_are_names_of_images(tmp_path: Path) -> None:
    """YAML reads `[0]` as a number."""
    write_series(tmp_path / "all.zarr", "0.4", described=True)
    for fov in ("A/1/0", "A/2/1"):
        write_tracks(tmp_path / "tracks", fov, cells((1, 0, -1), (1, 1, -1)))
    (tmp_path / "experiments.yaml").write_text(
        "experiments:\n- name: a\n  data_path: all.zarr\n  tracks_path: tracks\n  wells: {A/1: [0], A/2: [1]}\n"
        "  level: 0\n  channel_names: [P, G]\n  source_channel: [P]\n  condition_wells: {m: [A/1, A/2]}\n"
        "shards: {yx_patch_size: [8, 8], tau_range_hours: [0.5, 1.0]}\n"
    )
    index = index_of(tmp_path / "experiments.yaml")
    assert [fov.fov_name for fov in index.fovs] == ["A/1/0", "A/2/1"]
    assert index.observations["hpi"].to_pylist() == [0.0, 0.5] * 2
