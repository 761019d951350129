"""Collection files of the reference implementation are read as an experiments.yaml, key by key, or refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dynaclr_wds.errors import BuildError, ConfigError
from etl.build_shards import main
from etl.source.collection import is_collection
from etl.source.experiments import parse_build_config
from etl.verify import main as verify
from tests.plates import write_plate, write_tracks
from tests.set_files import digests
from tests.test_border import stored
from tests.test_build import build, one_cell

pytestmark = pytest.mark.usefixtures("without_fsync")

FOVS = ("B/1/0", "B/2/0", "B/2/1", "C/1/0")
CHANNELS = ("Phase3D", "raw GFP EX488 EM525-45", "raw mCherry EX561 EM600-37")

ENTRY: dict[str, Any] = {
    "name": "2025_01_A549",
    "data_path": "${datasets_root}/2025_01_A549/2025_01_A549.zarr",
    "tracks_path": "${datasets_root}/2025_01_A549/tracking.zarr",
    "channels": [
        {"name": "raw GFP EX488 EM525-45", "marker": "TOMM20", "wells": []},
        {"name": "Phase3D", "marker": "Phase3D"},
    ],
    "channel_names": [],
    "perturbation_wells": {"uninfected": ["B/1"], "ZIKV": ["B/2", "C/1"]},
    "interval_minutes": 30.0,
    "start_hpi": 3.5,
    "marker": "TOMM20",
    "organelle": "mitochondria",
    "microscope": "mantis",
    "pixel_size_xy_um": 0.1494,
    "pixel_size_z_um": 0.174,
    "date": "",
    "moi": 5.0,
    "exclude_fovs": ["B/2/1"],
}


def write(root: Path, *entries: dict[str, Any], **top: Any) -> Path:
    """Write a collection as `viscy_data.collection.save_collection` does, all keys of the schema included."""
    document = {
        "name": "bag", "description": "two plates", "datasets_root": str(root / "datasets"),
        "provenance": {"airtable_base_id": None, "airtable_query": None, "record_ids": [], "created_at": None,
                       "created_by": "someone"},
        "experiments": list(entries), "fov_records": [{"dataset": "2025_01_A549", "well_id": "B/1"}],
    } | top  # fmt: skip
    path = root / "collection.yml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def write_data(root: Path) -> dict[str, np.ndarray]:
    """Write a plate of three channels, and tracks inside a `tracking.zarr`, as that program's tracking leaves them."""
    folder = root / "datasets/2025_01_A549"
    written = write_plate(
        folder / "2025_01_A549.zarr", fovs=FOVS, shape=(3, 3, 1, 32, 32), dtype="uint16", channel_names=CHANNELS
    )
    write_plate(folder / "tracking.zarr", fovs=FOVS, shape=(3, 1, 1, 32, 32), dtype="uint16", channel_names=("labels",))
    for fov in FOVS:
        write_tracks(folder / "tracking.zarr", fov, [one_cell(t, 14, 17) for t in range(3)], "tracks_x.csv")
    return written


OPTIONS: dict[str, Any] = {"yx_patch_size": [8, 8], "tau_range_hours": [0.5, 1.0]}


def test_every_key_has_its_place(tmp_path: Path) -> None:
    config = parse_build_config(write(tmp_path, ENTRY, shards=OPTIONS))
    (experiment,) = config.experiments
    assert config.yx_patch_size == (8, 8)
    assert experiment.name == "2025_01_A549"
    assert experiment.data_path == str(tmp_path / "datasets/2025_01_A549/2025_01_A549.zarr")
    assert experiment.tracks_path == str(tmp_path / "datasets/2025_01_A549/tracking.zarr")
    assert experiment.source_channel == ("raw GFP EX488 EM525-45", "Phase3D")
    assert experiment.channel_names == ()  # the plate says them
    assert experiment.channel_markers == {"raw GFP EX488 EM525-45": "TOMM20", "Phase3D": "Phase3D"}
    assert experiment.condition_wells == {"uninfected": ("B/1",), "ZIKV": ("B/2", "C/1")}
    assert (experiment.interval_minutes, experiment.start_hpi) == (30.0, 3.5)
    assert experiment.labels == {"organelle": "mitochondria", "moi": "5", "microscope": "mantis"}
    assert experiment.pixel_size_um == (0.174, 0.1494, 0.1494)
    assert experiment.exclude_fovs == ("B/2/1",)


def test_a_collection_is_built_from_plate_and_tracks_inside_a_zarr(tmp_path: Path) -> None:
    pixels = write_data(tmp_path)
    path = write(tmp_path, ENTRY)
    flags = ["--yx_patch_size", "8", "8", "--tau_range_hours", "0.5", "1.0", "--quiet"]
    out = tmp_path / "out"
    assert main([str(path), "--out", str(out), *flags]) == 0
    assert verify([str(out)]) == 0
    manifest = build(path, out, **OPTIONS)
    (record,) = manifest.experiments
    assert record.channel_names == CHANNELS
    assert record.markers == ("TOMM20", "Phase3D")
    assert [fov.fov_name for fov in manifest.fovs] == ["B/1/0", "B/2/0", "C/1/0"]
    one = tmp_path / "one"
    patch = stored(one, build(path, one, **OPTIONS, include_wells=["B/1"]))[1, 0]
    np.testing.assert_array_equal(patch, pixels["B/1/0"][0, [1, 0], :, 10:18, 13:21])


def test_a_collection_of_fixed_cells_has_no_interval(tmp_path: Path) -> None:
    """As their OPS collections have it: one frame, `interval_minutes: 0`."""
    folder = tmp_path / "datasets/2025_01_A549"
    shape = (1, 3, 1, 32, 32)
    write_plate(folder / "2025_01_A549.zarr", fovs=FOVS, shape=shape, dtype="uint16", channel_names=CHANNELS)
    for fov in FOVS:
        write_tracks(folder / "tracking.zarr", fov, [one_cell(0, 14, 17)], "tracks_x.csv")
    manifest = build(write(tmp_path, ENTRY | {"interval_minutes": 0.0}), tmp_path / "out", **OPTIONS)
    assert [(e.interval_minutes, e.tau_frames) for e in manifest.experiments] == [(0.0, (0, 0))]
    assert manifest.suspicious == ()


def test_moving_the_datasets_changes_nothing(tmp_path: Path) -> None:
    write_data(tmp_path)
    out = tmp_path / "out"
    build(write(tmp_path, ENTRY), out, **OPTIONS)
    before = digests(out)
    shutil.move(tmp_path / "datasets", tmp_path / "elsewhere")
    build(write(tmp_path, ENTRY, datasets_root=f"{tmp_path}/elsewhere/"), out, **OPTIONS)
    assert digests(out) == before
    with pytest.raises(BuildError, match="other start_hpi"):
        build(write(tmp_path, ENTRY | {"start_hpi": 4.0}, datasets_root=f"{tmp_path}/elsewhere"), out, **OPTIONS)


def test_channels_of_some_wells_split_an_experiment(tmp_path: Path) -> None:
    gfp, mcherry = CHANNELS[1:]
    channels = [
        {"name": "Phase3D", "marker": "Phase3D"},
        {"name": gfp, "marker": "TOMM20", "wells": ["B/1", "B/2"]},
        {"name": gfp, "marker": "SEC61B", "wells": ["C/1"]},
        {"name": mcherry, "marker": "pAL10", "wells": ["D/9"]},
    ]
    config = parse_build_config(write(tmp_path, ENTRY | {"channels": channels}))
    assert [(e.name, e.source_channel, dict(e.condition_wells), e.exclude_fovs) for e in config.experiments] == [
        (
            "2025_01_A549_Phase3D_TOMM20", ("Phase3D", gfp), {"uninfected": ("B/1",), "ZIKV": ("B/2",)}, ("B/2/1",),
        ),
        ("2025_01_A549_Phase3D_SEC61B", ("Phase3D", gfp), {"ZIKV": ("C/1",)}, ()),
    ]  # fmt: skip
    only = [{"name": gfp, "marker": "TOMM20", "wells": ["B/1"]}]
    (alone,) = parse_build_config(write(tmp_path, ENTRY | {"channels": only})).experiments
    assert (alone.name, dict(alone.condition_wells)) == ("2025_01_A549", {"uninfected": ("B/1",)})


def test_defaults_are_those_of_the_schema_and_names_show_themselves(tmp_path: Path) -> None:
    least = {key: ENTRY[key] for key in ("name", "data_path", "tracks_path", "perturbation_wells")}
    path = write(tmp_path, least | {"channel_names": ["Phase3D"]})
    (experiment,) = parse_build_config(path).experiments
    assert experiment.source_channel == ("Phase3D",)
    assert experiment.channel_markers == {"Phase3D": "Phase3D"}
    assert (experiment.start_hpi, experiment.pixel_size_um, experiment.interval_minutes) == (0, None, None)
    assert experiment.labels == {}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"condition": "x"}, r"experiments\[0\]: unknown key 'condition'. Remove it. Allowed are channel_names"),
        ({"data_path": None}, r"experiments\[0\]\.data_path is missing\. Every experiment of a collection needs name"),
        ({"perturbation_wells": {}}, r"perturbation_wells=\{\} must be a mapping of perturbation to wells"),
        ({"perturbation_wells": {"a": ["B1"]}}, r"perturbation_wells\.a\[0\]='B1' must be of the form A/1"),
        ({"perturbation_wells": {"a": ["B/1"], "b": ["B/1"]}}, r"'B/1' must be in one perturbation only"),
        ({"interval_minutes": -1}, r"interval_minutes=-1 must be > 0, or 0 for a plate of one frame"),
        ({"channels": []}, r"channels=\[\] must be a list of at least one channel"),
        ({"channels": [{"name": "GFP"}]}, r"channels\[0\]\.marker=\{'name': 'GFP'\}: Field required"),
        (
            {"channels": [{"name": "GFP", "marker": "a"}, {"name": "GFP", "marker": "b", "wells": ["B/2"]}]},
            r"channels='GFP' must be listed once for well B/2",
        ),
        (
            {"channels": [{"name": "GFP", "marker": "a", "wells": ["H/1"]}]},
            r"channels=\['H/1'\] must be valid in a well",
        ),
        ({"pixel_size_xy_um": None}, r"pixel_size_z_um=0\.174 must be given together with pixel_size_xy_um"),
        ({"pixel_size_xy_um": -1.0}, r"pixel_size_xy_um=-1\.0 must be a number > 0"),
        ({"exclude_fovs": ["B/2"]}, r"exclude_fovs\[0\]='B/2' must be of the form A/1/0"),
    ],
)
def test_what_cannot_be_translated_is_named(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_build_config(write(tmp_path, ENTRY | change))


def test_errors_of_the_whole_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"top level: unknown key 'owner'. Remove it. Allowed are datasets_root"):
        parse_build_config(write(tmp_path, ENTRY, owner="me"))
    with pytest.raises(ConfigError, match=r"datasets_root=7 must be a path"):
        parse_build_config(write(tmp_path, ENTRY, datasets_root=7))
    with pytest.raises(ConfigError, match=r"experiments\[1\]\.name='2025_01_A549' must be unique"):
        parse_build_config(write(tmp_path, ENTRY, ENTRY))
    with pytest.raises(ConfigError, match=r"\$\{datasets_root\} is not set"):
        parse_build_config(write(tmp_path, ENTRY, datasets_root=None))


def test_a_channel_that_the_plate_lacks_is_an_error_with_those_that_it_has(tmp_path: Path) -> None:
    write_data(tmp_path)
    path = write(tmp_path, ENTRY | {"channels": [{"name": "DIC", "marker": "DIC"}]})
    with pytest.raises(ConfigError, match=r"source_channel='DIC' must be one of the channels of .*'Phase3D', 'raw GFP"):
        build(path, tmp_path / "out", **OPTIONS)


def test_our_own_files_are_no_collections() -> None:
    assert is_collection({"experiments": [{"perturbation_wells": {}}]})
    assert not is_collection({"experiments": [{"condition_wells": {}, "perturbation_wells": {}}]})
    assert not is_collection({"experiments": [{"name": "a"}]})
    assert not is_collection({"experiments": None})
    assert not is_collection([1])


def test_channel_names_may_be_left_to_the_plate(tmp_path: Path) -> None:
    """The same shards but for what the config says, and a plate that names none is an error."""
    write_data(tmp_path)
    entry = {
        "name": "a", "data_path": "datasets/2025_01_A549/2025_01_A549.zarr",
        "tracks_path": "datasets/2025_01_A549/tracking.zarr", "source_channel": [CHANNELS[2]],
        "condition_wells": {"all": ["B/1"]}, "interval_minutes": 30.0,
    }  # fmt: skip
    manifests = []
    for name, more in (("said", {"channel_names": list(CHANNELS)}), ("unsaid", {})):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"experiments": [entry | more], "shards": OPTIONS}))
        manifests.append(build(path, tmp_path / name))
        assert build(path, tmp_path / name) == manifests[-1]  # up to date
    assert manifests[0].shards == manifests[1].shards
    assert manifests[0].experiments == manifests[1].experiments
    write_plate(tmp_path / "nameless.zarr", fovs=["B/1/0"], shape=(3, 1, 1, 32, 32), channel_names=None)
    path.write_text(yaml.safe_dump({"experiments": [entry | {"data_path": "nameless.zarr"}], "shards": OPTIONS}))
    with pytest.raises(ConfigError, match=r"channel_names is missing, and .*nameless\.zarr does not name its channels"):
        build(path, tmp_path / "nameless")
