"""The benchmarks run: what they print is for people to judge, not for a test."""

import dataclasses
import gc

import pytest

from benchmarks import cutting, loader, plan
from dynaclr_wds.shardset import ShardSet
from etl.simulate.__main__ import simulate_collection
from etl.simulate.design import SimulationConfig


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
