"""Laws of the simulator: reproducible, valid to others, and a phenotype that intensities don't give away."""

import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import yaml
import zarr
from ome_zarr_models.v05.hcs import HCS

from etl.simulate.__main__ import SimulationConfig, main, simulate_collection
from etl.simulate.colony import inside, organelle_positions, sample_cells, sample_daughters, sample_frames
from etl.simulate.design import plan_experiment
from etl.simulate.render import render_frame, sample_scenery
from etl.source.experiments import parse_build_config
from etl.source.preflight import check_plates, open_plates

ROOT = Path(__file__).parent.parent
TINY = {"experiments": 2, "fovs": 2, "frames": 6, "size": 64, "cells": 4, "cell_radius": 8.0}


def config(**changes: object) -> SimulationConfig:
    return SimulationConfig(**{**TINY, **changes})  # type: ignore[arg-type]


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def read_tracks(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_collection(tmp_path_factory.mktemp("tiny"), config())


@pytest.fixture(scope="module")
def long_tables(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, str]]]:
    long = config(experiments=1, fovs=1, frames=60, size=80, cells=8)
    root = simulate_collection(tmp_path_factory.mktemp("long"), long).parent
    return [read_tracks(path) for path in sorted(root.rglob("tracks.csv"))]


def test_same_seed_gives_same_bytes_whatever_the_workers(tiny: Path, tmp_path: Path) -> None:
    again = simulate_collection(tmp_path, config(workers=2)).parent
    assert digests(again) == digests(tiny.parent)


def test_other_seed_gives_other_pixels_and_tracks(tiny: Path, tmp_path: Path) -> None:
    other = digests(simulate_collection(tmp_path, config(seed=1)).parent)
    same = digests(tiny.parent)
    for name in ("sim_00/tracks/A/1/0/tracks.csv", "sim_00/plate.zarr/A/1/0/0/c/0/0/0/0/0"):
        assert other[name] != same[name]


def test_more_fovs_and_experiments_leave_a_fov_as_it_was(tiny: Path, tmp_path: Path) -> None:
    larger = digests(simulate_collection(tmp_path, config(experiments=3)).parent)
    small = digests(tiny.parent)
    assert {name: larger[name] for name in small if name.startswith("sim_")} == {
        name: digest for name, digest in small.items() if name.startswith("sim_")
    }


def test_collection_passes_the_checks_of_the_build(tiny: Path) -> None:
    build = parse_build_config(tiny)
    check_plates(build, open_plates(build))
    assert [e.name for e in build.experiments] == ["sim_00", "sim_01"]
    assert build.experiments[0].source_channel == ("Phase3D", "raw GFP EX488 EM525-45")
    assert build.experiments[1].source_channel == ("Phase", "raw mCherry EX561 EM600-37")
    assert build.experiments[1].channel_names == ("raw mCherry EX561 EM600-37", "Phase")
    assert [e.interval_minutes for e in build.experiments] == [30.0, 20.0]


def test_plate_is_valid_to_ome_zarr_models(tiny: Path) -> None:
    plate = HCS.from_zarr(zarr.open_group(tiny.parent / "sim_01" / "plate.zarr", mode="r"))
    assert [well.path for well in plate.ome_attributes.plate.wells] == ["A/1", "A/2"]


@pytest.mark.parametrize("sharded", [False, True])
def test_plate_is_readable_by_tensorstore(tmp_path: Path, sharded: bool) -> None:
    root = simulate_collection(tmp_path, config(experiments=1, fovs=1, frames=9, z=3, sharded=sharded)).parent
    path = root / "sim_00" / "plate.zarr" / "A" / "1" / "0" / "0"
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    pixels = tensorstore.open(spec, read=True).result().read().result()
    assert pixels.shape == (9, 2, 3, 64, 64)
    assert pixels.dtype == np.uint16
    assert (pixels.reshape(9, -1).max(axis=1) > 0).all()
    np.testing.assert_array_equal(pixels, zarr.open_array(path, mode="r")[:])
    assert ("sharding_indexed" in (path / "zarr.json").read_text()) == sharded


def test_planes_of_a_stack_differ(tmp_path: Path) -> None:
    root = simulate_collection(tmp_path, config(experiments=1, fovs=1, frames=1, z=3)).parent
    organelle = zarr.open_array(root / "sim_00/plate.zarr/A/2/0/0", mode="r")[0, 1]
    assert "z" in read_tracks(root / "sim_00/tracks/A/2/0/tracks.csv")[0]
    assert np.abs(np.diff(np.asarray(organelle, np.float32), axis=0)).mean() > 1


def test_wells_follow_the_condition_ratio() -> None:
    wells = plan_experiment(config(wells=5, condition_ratio=(4, 1)), 0).condition_wells
    assert {condition: len(names) for condition, names in wells.items()} == {"uninfected": 4, "infected": 1}
    wells = plan_experiment(config(wells=2, condition_ratio=(9, 1)), 0).condition_wells
    assert {condition: len(names) for condition, names in wells.items()} == {"uninfected": 1, "infected": 1}
    wells = plan_experiment(config(wells=30), 0).condition_wells
    assert len(set(wells["uninfected"]) | set(wells["infected"])) == 30
    assert "C/6" in wells["uninfected"] + wells["infected"]


def test_tracks_are_consistent(long_tables: list[list[dict[str, str]]]) -> None:
    for table in long_tables:
        keys = [(int(row["track_id"]), int(row["t"])) for row in table]
        assert len(set(keys)) == len(keys)
        assert keys == sorted(keys)
        assert len({row["id"] for row in table}) == len(table)
        assert all(0 <= float(row[axis]) <= 79 for row in table for axis in "yx")
        spans: dict[int, tuple[int, int]] = {}
        for track, t in keys:
            spans[track] = (spans.get(track, (t, t))[0], t)
        for row in table:
            if row["parent_track_id"] != "-1":
                assert spans[int(row["parent_track_id"])][1] < spans[int(row["track_id"])][0]


def test_tracks_divide_break_off_and_arrive(long_tables: list[list[dict[str, str]]]) -> None:
    rows = [row for table in long_tables for row in table]
    assert any(row["parent_track_id"] != "-1" for row in rows)
    gaps = starts = ends = 0
    for table in long_tables:
        frames: dict[str, list[int]] = {}
        for row in table:
            frames.setdefault(row["track_id"], []).append(int(row["t"]))
        gaps += sum(f[-1] - f[0] + 1 > len(f) for f in frames.values())
        starts += sum(f[0] > 0 for f in frames.values())
        ends += sum(f[-1] < 59 for f in frames.values())
    assert gaps > 0
    assert starts > 0
    assert ends > 0


def test_missing_parent_is_blank_in_every_other_experiment(tiny: Path) -> None:
    first = read_tracks(tiny.parent / "sim_00/tracks/A/1/0/tracks.csv")
    second = read_tracks(tiny.parent / "sim_01/tracks/A/1/0/tracks.csv")
    assert first[0]["parent_track_id"] == "-1"
    assert second[0]["parent_track_id"] == ""


def test_daughters_keep_the_style_and_lie_side_by_side() -> None:
    rng = np.random.default_rng(3)
    mothers = sample_cells(rng, 50, config(), infected=True)
    mothers["cell"] = np.arange(50)
    daughters = sample_daughters(rng, mothers)
    assert daughters["parent"].tolist() == [number for number in range(50) for _ in range(2)]
    np.testing.assert_array_equal(daughters["onset"], np.repeat(mothers["onset"], 2))
    np.testing.assert_allclose(daughters["size"], np.repeat(mothers["size"], 2), rtol=0.15)
    distance = np.hypot(np.diff(daughters["y"].reshape(50, 2)), np.diff(daughters["x"].reshape(50, 2)))
    assert distance.min() > 8


def test_response_grows_with_hpi_in_infected_cells_only() -> None:
    simulated, rng = config(frames=40, cells=30, size=160), np.random.default_rng(0)
    design = plan_experiment(simulated, 0)
    severity = {
        infected: [cells["severity"].mean() for cells in sample_frames(rng, simulated, design, infected)]
        for infected in (False, True)
    }
    assert max(severity[False]) == 0
    assert severity[True][0] < 0.1
    assert severity[True][-1] > 0.7


def test_response_gathers_organelles_but_keeps_the_light() -> None:
    simulated = config(cells=1, size=96, cell_radius=14.0)
    design = plan_experiment(simulated, 0)
    light, spread = [], []
    for severity in (0.0, 0.9):
        rng = np.random.default_rng(5)
        cells = sample_cells(rng, 40, simulated, infected=True)
        cells["severity"], cells["y"], cells["x"] = severity, 48.0, 48.0
        pixels = render_frame(rng, cells, sample_scenery(rng, simulated, design), simulated, design)
        light.append(float(pixels[1].astype(np.float64).sum()) - design.channels[1].background * 96 * 96)
        spread.append(float(np.linalg.norm(organelle_positions(cells), axis=2).std(axis=1).mean()))
    assert light[1] == pytest.approx(light[0], rel=0.1)
    assert spread[1] < 0.9 * spread[0]


@pytest.mark.slow
def test_conditions_do_not_differ_in_number_and_place() -> None:
    simulated = config(frames=20, cells=30, size=200, cell_radius=8.0)
    design = plan_experiment(simulated, 0)
    numbers, centres = {}, {}
    for infected in (False, True):
        frames = [
            cells[inside(cells, 200)]
            for seed in range(12)
            for cells in sample_frames(np.random.default_rng(seed), simulated, design, infected)
        ]
        numbers[infected] = np.mean([len(cells) for cells in frames])
        centres[infected] = np.mean([np.concatenate([c["y"], c["x"]]).mean() for c in frames])
    assert numbers[True] == pytest.approx(numbers[False], rel=0.12)
    assert centres[True] == pytest.approx(centres[False], abs=8)


def test_experiments_differ_in_intensity() -> None:
    designs = [plan_experiment(config(), index) for index in range(8)]
    gains = [c.gain for d in designs for c in d.channels if c.kind == "organelle"]
    backgrounds = [c.background for d in designs for c in d.channels if c.kind == "phase"]
    assert max(gains) > 3 * min(gains)
    assert max(backgrounds) > 1.5 * min(backgrounds)
    assert len({d.channel_names for d in designs}) == 4


def test_second_run_finds_its_work_done(tiny: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.parent.rglob("*")}
    assert simulate_collection(tiny.parent, config()) == tiny
    assert {path: path.stat().st_mtime_ns for path in tiny.parent.rglob("*")} == before


def test_other_options_never_overwrite(tiny: Path) -> None:
    with pytest.raises(
        FileExistsError, match=r"is there already, but was made with seed=0 \(asked for 7\)\. Give another"
    ):
        simulate_collection(tiny.parent, config(seed=7))


def test_unfinished_run_is_done_again(tiny: Path, tmp_path: Path) -> None:
    stale = tmp_path / "sim_00" / "plate.zarr" / "A" / "1" / "9"
    stale.mkdir(parents=True)
    simulate_collection(tmp_path, config())
    assert digests(tmp_path) == digests(tiny.parent)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")], ids=["stopped", "failed"])
def test_a_run_that_does_not_end_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: object
) -> None:
    """Stopped while the tracks of the second FOV are written: pixels of the first are there."""
    written: list[Path] = []

    def write(path: Path, *_: object, **__: object) -> None:
        if written:
            assert (tmp_path / "new/sim_00/plate.zarr/A/1/0/0/c").is_dir()
            raise error  # type: ignore[misc]
        written.append(path)

    monkeypatch.setattr("etl.simulate.__main__.write_tracks", write)
    options = ["--experiments", "1", "--fovs", "2", "--frames", "2", "--size", "48", "--cells", "2"]
    (tmp_path / "new").mkdir()
    (tmp_path / "new/mine.txt").write_text("mine")
    status = main([str(tmp_path / "new"), *options])
    if error is KeyboardInterrupt:
        assert status == 130
        assert "stopped, and nothing is left behind. Give the same command to begin anew.\n" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine.txt"]
    written.clear()
    monkeypatch.setattr("etl.simulate.__main__.write_image", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main([str(tmp_path / "other"), *options]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_and_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal; a real process group stands for it."""
    command = [sys.executable, "-m", "dynaclr_wds", "simulate", "out", "--workers", "2", "--fovs", "8", "--size", "64"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True, env=env)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("out/sim_00/tracks/*/*/*/tracks.csv")) and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.endswith("stopped, and nothing is left behind. Give the same command to begin anew.\n")
    assert list(tmp_path.iterdir()) == []


def test_the_yaml_says_in_plain_words_what_it_is(tiny: Path) -> None:
    first, second = tiny.read_text().splitlines()[:2]
    assert first == (
        "# Simulated cells to try things with: plates and tracks lie beside this file, which says what is on them."
    )
    assert second.startswith('# Made with the options {"experiments": 2, "wells": 2, "fovs": 2, ')
    assert "max_border_shift_px" not in tiny.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "frames=0 must be >= 1"),
        ({"wells": 1}, "wells=1 must be >= 2"),
        ({"condition_ratio": (1, 0)}, r"condition_ratio=\(1, 0\) must be two whole numbers >= 1"),
        ({"size": 40, "cell_radius": 12.0}, r"size=40 must be >= 4 \* cell_radius = 48 pixels"),
    ],
)
def test_impossible_options_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**change)


def test_command_says_what_it_made_or_found_and_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["dynaclr-wds"])
    options = ["--experiments", "1", "--fovs", "1", "--frames", "2", "--size", "48", "--cells", "2", "--wells", "4"]
    made = "1 experiment of 4 fields of view. Next:\n  dynaclr-wds init "
    path = tmp_path / "experiments.yaml"
    assert main([str(tmp_path), *options, "--condition_ratio", "3", "1"]) == 0
    assert capsys.readouterr().out == f"{path}: written: {made}{path}\n"
    before = digests(tmp_path)
    assert main([str(tmp_path), *options, "--condition_ratio", "3", "1"]) == 0
    assert capsys.readouterr().out == f"{path}: already there with these options, unchanged: {made}{path}\n"
    assert main([str(tmp_path), *options, "--cells", "3"]) == 2
    differs = "cells=2 (asked for 3), condition_ratio=[3, 1] (asked for [1, 1])"
    said = (
        f"error: {path}: is there already, but was made with {differs}. Give another directory, or delete this one.\n"
    )
    assert capsys.readouterr().err == said
    assert digests(tmp_path) == before
    document = yaml.safe_load((tmp_path / "experiments.yaml").read_text())
    assert document["shards"]["yx_patch_size"] == [48, 48]


def test_command_names_a_bad_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--frames", "0"]) == 2
    assert "frames=0 must be >= 1" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["3"], ["3", "x"], ["[3,1]"]])
def test_command_says_the_form_of_the_ratio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    assert main([str(tmp_path), "--condition_ratio", *given]) == 2
    assert capsys.readouterr().err == (
        "error: --condition_ratio must be two whole numbers: the wells of uninfected to infected cells. "
        "Write `--condition_ratio 3 1`.\n"
    )
