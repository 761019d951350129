"""The benchmarks run: what they print is for people to judge, not for a test."""

import csv
import dataclasses
import gc

import numpy as np
import pytest
import torch

from benchmarks import build, cutting, gpu, index, loader, plan, quality, quality_fucci, quality_sets, quality_training
from benchmarks.kornia_chain import KorniaChain
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.train import ContrastiveModule
from dynaclr_wds.train.encoder import ProjectedEncoder
from etl.simulate.__main__ import simulate_collection
from etl.simulate.design import SimulationConfig
from tests.conftest import write_collection


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


def make_small_network(channels):
    del channels
    backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.LazyLinear(8))
    return ContrastiveModule(ProjectedEncoder(backbone, embedding_dim=8, projection_dim=8), log_pairs=0)


@pytest.fixture
def small_task(shards, monkeypatch):
    monkeypatch.setattr(quality_training, "make_network", make_small_network)
    for name in list(quality_training.ARMS)[1:4]:  # two ways are enough here
        monkeypatch.delitem(quality_training.ARMS, name)
    return quality_sets.Task(
        name="small",
        shards=shards,
        label="experiment",
        held_out=("e3",),
        tau_hours=(0.5, 1.5),
        again_hours=1.0,
        late_hpi=4.0,
        read=16,
        side=16,
        batch_size=4,
        steps=1,
    )


def test_quality_judges_every_way_of_drawing_batches_and_goes_on_where_it_was(
    small_task, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(quality, "make_simulated", lambda _: [small_task])
    assert quality.main(["--out", str(tmp_path), "--seeds", "0"]) == 0
    out = capsys.readouterr().out
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[2:]] == [*quality.ARMS, quality.NAME, "chance"]
    assert rows[-1][1:5] == ["0.50", "0.50", "0.04", "0.50"]
    monkeypatch.setattr(quality, "embed", None)  # nothing is trained again
    assert quality.main(["--out", str(tmp_path), "--seeds", "0"]) == 0
    assert capsys.readouterr().out == out
    with pytest.raises(TypeError):
        quality.main(["--out", str(tmp_path), "--seeds", "0", "--steps", "2"])


def test_quality_shows_the_mean_over_seeds_of_values_and_intervals_and_their_spread():
    seeds = [{"linear": [0.5, 0.4, 0.6], "rank": 3.0}, {"linear": [0.7, 0.5, 0.8], "rank": 5.0}]
    table = quality.format_table({"a": [one | {"chance": {"linear": 0.5}} for one in seeds]})
    assert table.splitlines()[2:] == ["| a | 0.60 (0.45–0.70) ±0.14 | 4.0 ±1.4 |", "| chance | 0.50 | – |"]


def test_batches_without_rules_are_of_one_experiment_and_hold_an_anchor_once(small_task):
    data = quality_training.make_data(small_task, None, 0)
    data.setup("fit")
    index = data.train_sampler.index
    batches = list(quality_training.draw_uniformly(index, 4, 0))
    anchors = np.concatenate([index.find(batch.anchor) for batch in batches])
    assert len(set(anchors.tolist())) == len(anchors) > len(index.row) - 4 * 3
    for batch in batches:
        anchor = index.find(batch.anchor)
        assert len({index.strata[s].experiment for s in index.stratum(anchor)}) == 1
        assert (index.columns.patch_clip[batch.positive] == index.clip(anchor)).all()


def test_naive_shards_are_those_of_training(small_task):
    data = quality_training.make_data(small_task, None, 0)
    data.setup("fit")
    seen = {cell["experiment"] for batch in quality_training.feed_shards(data) for cell in batch["anchor_meta"]}
    assert seen == {"e0", "e1", "e2"}


def test_phases_are_terciles_of_the_channel_that_the_network_never_sees(tmp_path, monkeypatch):
    names = (quality_fucci.SEEN, quality_fucci.HIDDEN)
    yaml = write_collection(tmp_path / "plates", ("uint16",), names_of_channels=names)
    monkeypatch.setattr(quality_fucci, "EXPERIMENT", "e0")
    monkeypatch.setattr(quality_sets, "PATCH", 16)
    movie = quality_fucci.make_movie(tmp_path, yaml)
    assert [e.source_channel for e in ShardSet.open(movie.seen).manifest.experiments] == [("FUCCI cyan",)]
    for path in sorted((tmp_path / "fucci/tracks").rglob("*.csv")):
        rows = list(csv.DictReader(path.read_text().splitlines()))
        of = {row["track_id"]: row["side"] for row in rows}
        assert {row["side"] for row in rows} == {"a", "b"}
        assert all(of.get(row["parent_track_id"], row["side"]) == row["side"] for row in rows)
    assert quality_fucci.cut_phases(np.array([5.0, 1, 9, 2, 8, 4])).tolist() == [1, 0, 2, 0, 2, 1]
