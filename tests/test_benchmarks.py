"""The benchmarks run: what they print is for people to judge, not for a test."""

import dataclasses
import gc

import pytest
import torch

from benchmarks import build, cutting, gpu, index, loader, plan
from benchmarks.kornia_chain import KorniaChain
from dynaclr_wds.shardset import ShardSet
from etl.simulate.__main__ import simulate_collection
from etl.simulate.design import SimulationConfig


def test_index_measures_seconds_and_memory_of_every_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(index, "TRACKS", 100)
    rows = index.simulate(tmp_path / "tables", 26)  # two experiments
    found = index.measure_step("index", tmp_path, 1 << 30)
    for step in ("note", "join", "open"):
        found |= index.measure_step(step, tmp_path, 1 << 30)
    assert 26 * 100 * 18 < rows == found["observations"] < 26 * 100 * 22
    assert found["patches"] >= rows
    assert found["bytes"] < 25
    assert all(seconds > 0 and peak > 0 for seconds, peak in (found["index"], found["join"], found["plan_index"]))
    index.print_step(found)
    assert f"observations: {rows:,}" in capsys.readouterr().out


def test_plan_prints_every_setting(capsys):
    assert (
        plan.main(["--millions", "0.01", "--batches", "3", "--repeats", "1", "--batch_size", "16", "--window", "1"])
        == 0
    )
    out = capsys.readouterr().out
    assert "10,080 anchors" in out
    assert all(name in out for name in plan.SETTINGS)
    assert "8 processes: restored in" in out


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the collector
def test_loader_measures_samples_in_the_same_way(shards, monkeypatch, capsys):
    monkeypatch.setattr(loader, "MEMCPY_BYTES", 1 << 20)
    setting = loader.Setting(shards=ShardSet.open(shards), batch_size=8, threads=2)
    assert setting.sample_bytes == 2 * 2 * 3 * 16 * 16 * 4  # uint16 and float32 in one set: float32
    measures = {
        "memcpy": loader.measure_memcpy(setting),
        "dynaclr_wds": loader.measure_loader(setting, leaky=0.1),
        "WebDataset": loader.measure_webdataset(setting, 0),
    }
    rates = {name: [measure(0.02)] for name, measure in measures.items()}
    gc.collect()
    assert all(rate > 0 for (rate,) in rates.values())
    loader.report(setting, rates)
    assert "of WebDataset" in capsys.readouterr().out


def test_simulated_shards_have_the_size_asked_for(tmp_path, monkeypatch):
    def simulate_less(root, config):
        return simulate_collection(root, dataclasses.replace(config, frames=5, size=96, cells=4))

    monkeypatch.setattr(loader, "simulate_collection", simulate_less)
    shards = ShardSet.open(loader.make_shards(tmp_path, size=32, dtype="source", gib=0.001))
    assert {(e.shape, e.dtype) for e in shards.manifest.experiments} == {((2, 1, 32, 32), "<u2")}


@pytest.mark.slow
def test_gpu_benchmark_runs_on_a_cpu_and_names_every_part(shards, capsys):
    small = ["--device", "cpu", "--batch_size", "4", "--steps", "1", "--threads", "1", "--final", "16"]
    assert gpu.main([*small, "--shards", str(shards)]) == 0
    out = capsys.readouterr().out
    parts = ("copy", "normalise", "augment", "crop, drop", "encoder, loss, optimizer", gpu.KORNIA, "whole step")
    assert all(f"\n{part} " in out for part in parts)
    assert "Kornia, channel by channel, takes " in out
    assert "The device computes " in out


def test_busy_time_counts_overlapping_work_once():
    assert gpu.share_busy([(0.0, 2.0), (1.0, 3.0), (1.5, 1.6), (6.0, 10.0)]) == 0.7  # 3 + 4 of 10


@pytest.mark.parametrize("planes", [1, 3])
def test_kornia_chain_moves_channels_alike(planes):
    torch.manual_seed(0)
    x = torch.rand(3, 1, planes, 16, 16).expand(3, 2, planes, 16, 16)
    chain = KorniaChain(planes)
    chain.intensity = torch.nn.ModuleList()
    moved = chain(x)
    assert moved.shape == x.shape
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert not torch.equal(moved, x)


@pytest.mark.slow
def test_every_way_of_cutting_is_measured(monkeypatch, capsys):
    ways = {name: cutting.WAYS[name] for name in list(cutting.WAYS)[1:4]}
    monkeypatch.setattr(cutting, "WAYS", ways)

    def simulate_less(folder, _options):
        config = SimulationConfig(experiments=1, wells=2, fovs=1, frames=3, size=160, z=16, cells=3)
        simulate_collection(folder, config)
        return folder / "experiments.yaml"

    monkeypatch.setattr(cutting, "simulate", simulate_less)
    cutting.main(["--rounds", "1"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[2:]] == list(ways)
    assert all(float(row[1]) > 0 for row in rows[2:])


def test_a_build_is_measured_beside_reading_and_writing(monkeypatch, capsys):
    monkeypatch.setattr(build, "SIZE", 64)
    monkeypatch.setattr(build, "LAYOUTS", {"chunks": {"chunks": (1, 1, 1, 64, 64)}})
    monkeypatch.setattr(build, "KINDS", {"small": build.Kind(dtype="uint16", patch=16, cells=3)})
    monkeypatch.setattr(build, "list_readers", lambda: {"zarr": build._read_zarr})
    build.main(["--megabytes", "1", "--rounds", "1", "--kinds", "small", "--layouts", "chunks"])
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[0] == "| small, chunks"
    assert float(row[6]) > 0
    assert row[7].endswith(" %")
