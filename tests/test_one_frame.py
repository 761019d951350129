"""Plates of one frame have no time: they are built and trained with other positives, and what needs time is refused."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch import nn

from dynaclr_wds import triplet_pipeline
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.errors import ConfigError, FormatError
from dynaclr_wds.manifest_checks import parse_manifest
from dynaclr_wds.tau import tau_range_frames
from dynaclr_wds.train import ContrastiveModule
from etl.configure.choices import choose_values
from etl.configure.experiments import write_experiments as init_experiments
from etl.configure.facts import find_facts
from etl.configure.templates import find_templates
from etl.run.progress import summarize_facts
from etl.source.experiments import parse_build_config
from etl.source.preflight import open_plates
from etl.source.scales import describe_intervals, fill_in_from_plates
from etl.verify import main as verify
from tests.plates import write_experiments, write_plate, write_tracks
from tests.set_files import find_index
from tests.shared_build import make_once
from tests.test_build import build, leaves_files_open

pytestmark = [
    pytest.mark.usefixtures("without_fsync"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]

FOVS = ("A/1/0", "B/1/0")
MINUTES = {"t": "minute"}


def write_fixed(root: Path, *intervals: float | None, frames: int = 1, **options: Any) -> Path:
    """Write a plate for each interval (None leaves it out): two wells, twelve cells of two genes in each."""
    entries = []
    for number, interval in enumerate(intervals):
        name = f"fixed{number}"
        write_plate(
            root / name / "plate.zarr", fovs=FOVS, shape=(frames, 1, 1, 64, 64), dtype="uint8",
            channel_names=["Phase"], seed=number,
            scales={fov: {"scale": [20.0, 1, 1, 1, 1], "units": MINUTES} for fov in FOVS},
        )  # fmt: skip
        for fov in FOVS:
            rows = [
                {"track_id": n, "t": t, "y": 8.0 + 4 * n, "x": 50.0 - 3 * n, "gene": f"g{n % 2}"}
                for n in range(12)
                for t in range(frames)
            ]
            write_tracks(root / name / "tracks", fov, rows)
        entry: dict[str, Any] = {
            "name": name, "data_path": f"{name}/plate.zarr", "tracks_path": f"{name}/tracks",
            "channel_names": ["Phase"], "source_channel": ["Phase"], "start_hpi": 24.0, "label_columns": ["gene"],
            "condition_wells": {"mock": ["A/1"], "virus": ["B/1"]}, "interval_minutes": interval,
        }  # fmt: skip
        entries.append({key: value for key, value in entry.items() if value is not None})
    options = {"yx_patch_size": [8, 8], "tau_range_hours": [0.5, 2.0]} | options
    return write_experiments(root / "experiments.yaml", entries, **options)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plates of one frame, built: of one the interval is 0, of the other it is left out."""
    return make_once(tmp_path_factory, "one_frame", lambda root: build(write_fixed(root, 0, None), root / "shards"))


def test_zero_and_left_out_are_the_same_for_one_frame_and_need_no_option(fixed: Path) -> None:
    manifest = parse_manifest((fixed / "shards/manifest.json").read_text())
    assert [(e.interval_minutes, e.tau_frames) for e in manifest.experiments] == [(0.0, (0, 0))] * 2
    assert [e["interval_minutes"] for e in manifest.config["experiments"]] == [0.0, None]
    assert manifest.config["on_no_anchor"] == "error"
    # neither that none has a later frame, nor that the time axis says 20 minutes
    assert manifest.suspicious == ()
    table = pq.read_table(find_index(fixed / "shards") / "observations.parquet", columns=["hpi"])
    assert table["hpi"].to_pylist() == [24.0] * 48
    assert summarize_facts(manifest)[0].startswith("fixed0: one frame, pixel size unknown; 24 tracks")
    assert verify([str(fixed / "shards")]) == 0


def test_an_interval_that_was_left_out_is_said(fixed: Path) -> None:
    config = parse_build_config(fixed / "experiments.yaml")
    assert describe_intervals(fill_in_from_plates(config, open_plates(config))) == [
        "fixed1: interval_minutes is not given; the plate has one frame, so there is no time, and 0 is used."
    ]


def test_zero_for_a_movie_is_refused(tmp_path: Path) -> None:
    path = write_fixed(tmp_path, 0, frames=3)
    match = r"experiments\[0\]\.interval_minutes=0 is for plates of one frame, but .*/A/1/0 has 3\. Give the minutes"
    with pytest.raises(ConfigError, match=match):
        build(path, tmp_path / "out")


def test_a_set_of_one_frame_with_an_interval_still_says_why_it_has_no_anchor(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no cell has a positive.*its movies have 1 frame\)"):
        build(write_fixed(tmp_path, 30.0), tmp_path / "out")


def test_there_is_no_tau_without_time() -> None:
    assert tau_range_frames((0.5, 2.0), 0.0) == (0, 0)
    assert tau_range_frames((0.5, 2.0), 30.0) == (1, 4)


def make_data(fixed: Path, **options: Any) -> MultiExperimentDataModule:
    options = {"split": "fovs", "val_fovs": ["fixed1/B/1/0"], "channel_dropout_channels": ()} | options
    return MultiExperimentDataModule(str(fixed / "shards"), batch_size=8, num_workers=0, seed=3, **options)


class Watched(ContrastiveModule):
    """Keeps the metas of what it is trained with."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), log_pairs=0)
        self.seen: list[dict[str, Any]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append({key: list(batch[key]) for key in ("anchor_meta", "positive_meta")})
        return super().training_step(batch, batch_idx)


RULES: dict[str, dict[str, Any]] = {
    "self": {"positive": "self"},
    "columns": {"positive": "columns", "positive_match_columns": ["gene"]},
    "streaming": {"positive": "self", "window_bytes": 1 << 20, "num_streams": 1},
}


@pytest.mark.parametrize("rule", RULES)
def test_a_plate_of_one_frame_trains(fixed: Path, tmp_path: Path, rule: str) -> None:
    model = Watched()
    trainer = Trainer(
        accelerator="cpu", max_steps=2, limit_val_batches=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, make_data(fixed, **RULES[rule]))
    assert len(model.seen) == 2
    for batch in model.seen:
        assert len({meta["experiment"] for meta in batch["anchor_meta"]}) == 1
        assert len({meta["lineage_id"] for meta in batch["anchor_meta"]}) == 8
        for anchor, positive in zip(batch["anchor_meta"], batch["positive_meta"], strict=True):
            assert anchor["hpi"] == positive["hpi"] == 24.0
            assert (anchor["observation"] == positive["observation"]) == (rule != "columns")
            assert anchor["gene"] == positive["gene"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {},
            r"tau_range: experiment 'fixed0' has one frame and no time \(interval_minutes is 0\), so none of its cells "
            r"has a temporal positive\. Set positive: self or positive: columns, or leave its wells out\.",
        ),
        (
            {"positive": "self", "temporal_enrichment": True},
            r"temporal_enrichment=True draws cells near one time, but experiment 'fixed0' has one frame and no time "
            r"\(interval_minutes is 0\)\. Set temporal_enrichment: false, or leave its wells out\.",
        ),
    ],
)
def test_what_needs_time_is_refused_in_one_sentence(fixed: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{match}$"):
        make_data(fixed, **options).setup("fit")


@leaves_files_open
def test_the_plain_pipeline_refuses_clips_without_time(fixed: Path) -> None:
    (url, *_) = sorted(str(path) for path in (fixed / "shards").rglob("*.tar"))
    for hours in (None, (0.5, 2.0)):
        with pytest.raises(ConfigError, match=r"experiment 'fixed0' \(.*\) has one frame and no time"):
            next(iter(triplet_pipeline([url], batch_size=2, tau_range_hours=hours)))
    gc.collect()


def test_a_manifest_without_interval_but_with_frames_is_refused(fixed: Path) -> None:
    manifest = parse_manifest((fixed / "shards/manifest.json").read_text())
    fovs = tuple(replace(fov, frames=2) for fov in manifest.fovs)
    with pytest.raises(FormatError, match=r"interval_minutes=0 of 'fixed0', but 'A/1/0' has 2 frames"):
        parse_manifest(replace(manifest, fovs=fovs).to_json())


def test_init_leads_to_a_recipe_and_writes_zero_for_a_plate_of_one_frame(tmp_path: Path) -> None:
    path = write_fixed(tmp_path, 0)
    facts = find_facts(parse_build_config(path))
    with pytest.raises(ConfigError, match=r"of fixed0 there is one frame\. Write a recipe with --recipe OPS-1000genes"):
        choose_values(facts, "shards", (0.5, 2.0), 10**11, {})
    template = (find_templates() / "experiments.yaml").read_text()
    text = init_experiments(template, [(tmp_path / "fixed0/plate.zarr", tmp_path / "fixed0/tracks")], tmp_path)
    assert yaml.safe_load(text)["experiments"][0]["interval_minutes"] == 0
    assert "interval_minutes: 0 # one frame, so there is no time" in text
