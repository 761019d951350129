"""Plates: what is read equals what an independent library wrote, and nothing is read too early."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr

from dynaclr_wds.errors import PlateError
from etl.source.plate_boxes import read_box
from etl.source.plates import open_plate
from tests.plates import write_plate

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("version", "shards"), [("0.4", None), ("0.5", None), ("0.5", (2, 2, 1, 32, 32))], ids=["v2", "v3", "v3-sharded"]
)
def test_pixels_equal_what_tensorstore_wrote(
    tmp_path: Path, version: str, shards: tuple[int, ...] | None, dtype: str
) -> None:
    path = tmp_path / "plate.zarr"
    fovs = ("A/1/0", "A/1/1", "B/12/7")
    written = write_plate(
        path, version=version, fovs=fovs, shape=(3, 2, 2, 20, 30), dtype=dtype, chunks=(1, 1, 1, 16, 16), shards=shards
    )
    plate = open_plate(path)
    assert tuple(plate.fovs) == fovs
    assert plate.wells == ("A/1", "B/12")
    for name, fov in plate.fovs.items():
        assert fov.shape == (3, 2, 2, 20, 30)
        assert fov.channel_names == ("Phase", "GFP")
        assert fov.array.dtype == dtype
        np.testing.assert_array_equal(fov.array[...], written[name])


def test_opening_a_plate_opens_no_fov(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plate(tmp_path, fovs=[f"A/{c}/{n}" for c in (1, 2) for n in range(3)], shape=(1, 1, 1, 4, 4))
    opened: list[str] = []
    real = zarr.open_group

    def spy(*args: object, **kwargs: object) -> object:
        opened.append(str(kwargs.get("path", "")))
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(zarr, "open_group", spy)
    monkeypatch.setattr(zarr, "open_array", lambda *_, **__: pytest.fail("opened an array"))
    plate = open_plate(tmp_path, ["A/2"])
    assert tuple(plate.fovs) == ("A/2/0", "A/2/1", "A/2/2")
    assert plate.wells == ("A/1", "A/2")
    assert opened == ["", "A/2"]


def test_fov_reads_the_same_after_a_trip_to_a_worker(tmp_path: Path) -> None:
    written = write_plate(tmp_path)
    fov = open_plate(tmp_path).fovs["A/1/0"]
    unopened = pickle.dumps(fov)
    assert fov.shape == (6, 2, 1, 64, 64)
    for copy in (pickle.loads(unopened), pickle.loads(pickle.dumps(fov))):
        np.testing.assert_array_equal(copy.array[2, 1], written["A/1/0"][2, 1])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_normalization_of_fov_adds_to_that_of_plate(tmp_path: Path, version: str) -> None:
    plate_wide = {"Phase": {"dataset_statistics": {"mean": 1.0}}}
    own = {"Phase": {"fov_statistics": {"mean": 2.0}, "timepoint_statistics": {"0": {"mean": 3.0}}}}
    write_plate(tmp_path, version=version, fovs=("A/1/0", "A/1/1"), normalization={"": plate_wide, "A/1/0": own})
    fovs = open_plate(tmp_path).fovs
    assert fovs["A/1/0"].normalization == {
        "Phase": {
            "dataset_statistics": {"mean": 1.0},
            "fov_statistics": {"mean": 2.0},
            "timepoint_statistics": {"0": {"mean": 3.0}},
        }
    }
    assert fovs["A/1/1"].normalization == plate_wide


def test_plate_without_normalization_or_channel_names(tmp_path: Path) -> None:
    write_plate(tmp_path, channel_names=None)
    fov = open_plate(tmp_path).fovs["A/1/0"]
    assert fov.normalization is None
    assert fov.channel_names == ()


def test_damaged_normalization_is_an_error(tmp_path: Path) -> None:
    write_plate(tmp_path, normalization={"A/1/0": {"Phase": [1, 2]}})
    with pytest.raises(PlateError, match=r"A/1/0: `normalization`=.* must be \{channel"):
        _ = open_plate(tmp_path).fovs["A/1/0"].normalization


def test_missing_plate_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere"):
        open_plate(tmp_path / "nowhere.zarr")


def test_an_image_is_no_plate(tmp_path: Path) -> None:
    write_plate(tmp_path)
    with pytest.raises(PlateError, match=r"A/1/0: has no OME-Zarr `plate` metadata\. Give the folder of an HCS plate"):
        open_plate(tmp_path / "A/1/0")


def test_well_path_outside_rows_is_an_error(tmp_path: Path) -> None:
    write_plate(tmp_path)
    text = (tmp_path / "zarr.json").read_text()
    (tmp_path / "zarr.json").write_text(text.replace('"path": "A/1"', '"path": "Q/1"'))
    with pytest.raises(PlateError, match=r"`plate` is not OME-Zarr 0\.5 .*row 'Q' in well path 'Q/1'"):
        open_plate(tmp_path)


def test_listed_well_without_group_is_an_error(tmp_path: Path) -> None:
    write_plate(tmp_path, fovs=("A/1/0", "A/2/0"))
    (tmp_path / "A/2/zarr.json").unlink()
    with pytest.raises(PlateError, match=r"lists A/2, but has no such group"):
        open_plate(tmp_path)


def test_array_without_time_has_one_frame(tmp_path: Path) -> None:
    (written,) = write_plate(tmp_path, shape=(2, 1, 8, 8)).values()
    fov = open_plate(tmp_path).fovs["A/1/0"]
    assert fov.shape == (1, 2, 1, 8, 8)
    np.testing.assert_array_equal(read_box(fov.array, ()), written[None])


@pytest.mark.parametrize("scaled", [True, False])
def test_identity_as_iohub_writes_it_is_a_scale_of_1(tmp_path: Path, scaled: bool) -> None:
    write_plate(tmp_path, version="0.4", fovs=["A/1/0"], shape=(2, 1, 1, 4, 4))
    image = json.loads((Path(__file__).parent / "data" / "iohub_image.json").read_text())
    assert image["coordinateTransformations"] == [{"type": "identity"}]
    if not scaled:
        image["datasets"][0]["coordinateTransformations"] = [{"type": "identity"}]
    (tmp_path / "A" / "1" / "0" / ".zattrs").write_text(json.dumps({"multiscales": [image]}))
    scale = open_plate(tmp_path).fovs["A/1/0"].scale
    assert scale.interval_minutes == (30.0 if scaled else None)
    assert scale.pixel_size_um == ((2.0, 0.325, 0.325) if scaled else (None, None, None))


def test_error_names_the_first_wrong_places_of_metadata_once(tmp_path: Path) -> None:
    write_plate(tmp_path, version="0.4", fovs=["A/1/0"], shape=(2, 1, 1, 4, 4))
    image = json.loads((Path(__file__).parent / "data" / "iohub_image.json").read_text())
    image["datasets"][0]["coordinateTransformations"] = [{"type": "affine"}]
    (tmp_path / "A" / "1" / "0" / ".zattrs").write_text(json.dumps({"multiscales": [image]}))
    with pytest.raises(PlateError) as error:
        _ = open_plate(tmp_path).fovs["A/1/0"].shape
    assert str(error.value) == (
        f"{tmp_path}/A/1/0: `multiscales` is not OME-Zarr 0.4 (datasets[0].coordinateTransformations.transforms[0]"
        ".type='affine': Input should be 'identity', 'scale' or 'translation'). Correct the plate."
    )


def test_array_that_belies_its_axes_is_an_error(tmp_path: Path) -> None:
    write_plate(tmp_path, shape=(2, 1, 8, 8))
    document = json.loads((tmp_path / "A/1/0/zarr.json").read_text())
    multiscale = document["attributes"]["ome"]["multiscales"][0]
    multiscale["axes"].insert(0, {"name": "t", "type": "time"})
    multiscale["datasets"][0]["coordinateTransformations"][0]["scale"] = [1.0] * 5
    (tmp_path / "A/1/0/zarr.json").write_text(json.dumps(document))
    with pytest.raises(PlateError, match=r"shape \(2, 1, 8, 8\), dtype uint16 must be a 5-D"):
        _ = open_plate(tmp_path).fovs["A/1/0"].array


def test_chunks_of_no_size_are_an_error(tmp_path: Path) -> None:
    write_plate(tmp_path, version="0.4")
    metadata = tmp_path / "A/1/0/0/.zarray"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"chunks": [0, 1, 1, 64, 64]}))
    with pytest.raises(PlateError, match=r"A/1/0/0: chunks \(0, 1, 1, 64, 64\) must be above 0"):
        _ = open_plate(tmp_path).fovs["A/1/0"].array


@pytest.mark.skipif(not DATA.exists(), reason="the real plates are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "fov", "shape", "dtype", "channels"),
    [
        ("ecoli_colony", "A/1/0", (53, 1, 1, 1305, 1009), "uint8", ("Phase",)),
        ("hacat_fucci", "B/2/1", (121, 2, 1, 256, 256), "uint16", ("FUCCI magenta", "FUCCI cyan")),
        ("mda231_qpi", "B/3/3", (96, 1, 1, 615, 615), "uint8", ("Phase",)),
    ],
)
def test_real_plates_open(name: str, fov: str, shape: tuple[int, ...], dtype: str, channels: tuple[str, ...]) -> None:
    plate = open_plate(DATA / name / "plate.zarr")
    assert tuple(plate.fovs) == (fov,)
    assert plate.fovs[fov].shape == shape
    assert plate.fovs[fov].array.dtype == dtype
    assert plate.fovs[fov].channel_names == channels
    assert plate.fovs[fov].normalization is None
    assert plate.fovs[fov].array[0, 0, 0].any()
