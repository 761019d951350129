"""Every recipe of configs/recipes trains: built for as it says, loaded by the real command, in small sizes."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from dynaclr_wds import __main__ as command
from dynaclr_wds.train import ContrastiveModule, TimmEncoder
from tests import stand_ins
from tests.conftest import build
from tests.plates import write_experiments, write_plate, write_tracks
from tests.shared_build import make_once

pytestmark = [
    pytest.mark.usefixtures("without_fsync"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty:UserWarning"),
]

RECIPES = Path(__file__).parent.parent / "configs/recipes"
LAYERS = {
    "DynaCLR-2D-MIP-BagOfChannels-single-marker": "DynaCLR-2D-MIP-BagOfChannels",
    "DynaCLR-2D-MIP-BagOfChannels-classical": "DynaCLR-2D-MIP-BagOfChannels",
    "DynaCLR-3D-BagOfChannels-v2-single-marker": "DynaCLR-3D-BagOfChannels-v2",
}
"""Recipes that go on top of another."""

BATCH = 8
MARKERS = {
    "mantis": {"Phase3D": "Phase3D", "raw GFP": "SEC61B", "raw mCherry": "TOMM20"},
    "dragonfly": {"Phase3D": "Phase3D", "raw Cy5": "TOMM20"},
}
"""Experiment → channel → what it shows."""
PIXELS = {"mantis": [0.174, 0.1494, 0.1494], "dragonfly": [0.25, 0.125, 0.125]}
WELLS = ("A/1", "A/2", "B/1", "B/2")
FOVS = tuple(f"{well}/{fov}" for well in WELLS for fov in (0, 1))


def write_movies(root: Path, frames: int) -> Path:
    """Two experiments of 8 FOVs, 25 slices, with other channels and pixels; each cell stays where it is."""
    entries = []
    for number, (name, markers) in enumerate(MARKERS.items()):
        rng = np.random.default_rng(number)
        shape = (frames, len(markers), 25, 100, 100)
        pixels = {fov: rng.integers(1, 999, shape, "u2") for fov in FOVS}
        write_plate(
            root / name / "plate.zarr",
            fovs=FOVS,
            channel_names=tuple(markers),
            pixels=pixels,
            normalization=None,
            chunks=(1, 1, *shape[2:]),
        )
        for fov in FOVS:
            rows = [
                {"track_id": n, "t": t, "y": 50.0 + n % 3, "x": 50.0 - n % 2, "gene_name": f"gene{n % 2}"}
                for n in range(6)
                for t in range(frames)
            ]
            write_tracks(root / name / "tracks", fov, rows)
        entries.append(
            {
                "name": name,
                "data_path": f"{name}/plate.zarr",
                "tracks_path": f"{name}/tracks",
                "channel_names": list(markers),
                "source_channel": list(markers),
                "channel_markers": markers,
                "condition_wells": {"uninfected": list(WELLS[:2]), "ZIKV": list(WELLS[2:])},
                "interval_minutes": 30.0 if frames > 1 else 0,
                "pixel_size_um": PIXELS[name],
                "organelle": ("ER", "mitochondria")[number],
                "label_columns": ["gene_name"],
            }
        )
    return write_experiments(root / "experiments.yaml", entries)


def shrink_yx(size: int) -> int:
    return size // 4


def shrink_z(size: int | None) -> int | None:
    return size // 2 if size is not None and size > 1 else size


def build_options(text: str) -> dict[str, Any]:
    """What the comment of a recipe says under `shards:`."""
    lines = [line.removeprefix("#") for line in text.splitlines() if line.startswith("#")]
    start = next(n for n, line in enumerate(lines) if line.strip() == "shards:")
    stop = next(n for n, line in enumerate(lines[start:], start) if not line)
    options: dict[str, Any] = yaml.safe_load("\n".join(lines[start:stop]))["shards"]
    return options


def small_build(options: Mapping[str, Any]) -> dict[str, Any]:
    small = dict(options)
    small["yx_patch_size"] = [shrink_yx(size) for size in options["yx_patch_size"]]
    small["z_focus"] = options["z_focus"] | {"window": shrink_z(options["z_focus"]["window"])}
    return small


def small_config(recipe: Mapping[str, Any], shards: Path, folder: Path) -> dict[str, Any]:
    """What goes on top of a recipe: sizes, and where things are."""
    data, model = recipe["data"], recipe["model"]
    own: dict[str, Any] = {"shards": str(shards), "batch_size": BATCH, "num_workers": 0}
    own["final_yx_patch_size"] = [shrink_yx(size) for size in data["final_yx_patch_size"]]
    if "final_z" in data:
        own["final_z"] = shrink_z(data["final_z"])
    if "experiment_weights" in data:
        there = {marker for markers in MARKERS.values() for marker in markers.values()}
        own["experiment_weights"] = {k: v for k, v in data["experiment_weights"].items() if k in there}
    own["augmentations"] = [small_crop(module) for module in data["augmentations"]]
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1}
    trainer |= {"num_sanity_val_steps": 0, "fast_dev_run": False, "logger": False, "enable_progress_bar": False}
    trainer["default_root_dir"] = str(folder)
    return {"trainer": trainer, "model": small_model(model, folder), "data": own}


def small_crop(module: Mapping[str, Any]) -> dict[str, Any]:
    if not module["class_path"].endswith("Crop"):
        return dict(module)
    z, y, x = module["init_args"]["size"]
    return {"class_path": module["class_path"], "init_args": {"size": [shrink_z(z), shrink_yx(y), shrink_yx(x)]}}


def small_model(model: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    encoder = model["encoder"]
    kind, given = encoder["class_path"].rpartition(".")[2], dict(encoder["init_args"])
    small: dict[str, Any] = {"log_pairs": 0}
    if kind == "TimmEncoder":
        given["backbone"] = "test_convnext"
        given["in_stack_depth"] = shrink_z(given.get("in_stack_depth", 1))
        if "init_from" in model:
            triples = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            theirs = {f"model.{name}": value for name, value in TimmEncoder(**triples).state_dict().items()}
            theirs["auxiliary_heads.gene.weight"] = torch.zeros(1)
            torch.save({"state_dict": theirs}, folder / "theirs.ckpt")
            small["init_from"] = model["init_from"] | {"path": str(folder / "theirs.ckpt")}
    else:
        name = given["backbone"]["class_path"].rpartition(".")[2]
        if name == "TransformersBackbone":
            network = stand_ins.AutoConfig.for_model(model_type="dinov2", hidden_size=12)
            stand_ins.Dinov2(network).save_pretrained(folder / "dino")
            given["backbone"] = given["backbone"] | {"init_args": {"model": str(folder / "dino")}}
        else:
            given["backbone"] = {"class_path": "tests.test_recipes.Pooled"}
            small["init_from"] = None
        given["projection"]["init_args"] |= {"in_dims": 12, "hidden_dims": 12}
        given["prepare"]["init_args"] = {"size": 32}
    return small | {"encoder": {"class_path": encoder["class_path"], "init_args": given}}


class Pooled(nn.Sequential):
    """One channel to 12 features; in place of a ViT."""

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 12))


@pytest.fixture(scope="module")
def seen() -> Iterator[list[dict[str, Any]]]:
    """The batches that trainings see."""
    batches: list[dict[str, Any]] = []
    step = ContrastiveModule.training_step

    def look(self: ContrastiveModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        loss = step(self, batch, batch_idx)
        metas = {key: list(batch[key]) for key in ("anchor_meta", "positive_meta")}
        batches.append(
            metas | {"shape": tuple(batch["anchor"].shape), "same": bool((batch["anchor"] == batch["positive"]).all())}
        )
        assert torch.isfinite(loss)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContrastiveModule, "training_step", look)
        yield batches


def load(name: str) -> dict[str, Any]:
    """A recipe, with that below it."""
    recipe: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    if name in LAYERS:
        below = load(LAYERS[name])
        recipe = below | {key: {**below.get(key, {}), **value} for key, value in recipe.items()}
    return recipe


@pytest.fixture
def train(seen, tmp_path, tmp_path_factory, monkeypatch):
    """Builds for a recipe, trains two steps with it, and returns the batches."""

    def run(name: str) -> list[dict[str, Any]]:
        options = small_build(build_options((RECIPES / f"{LAYERS.get(name, name)}.yaml").read_text()))
        frames = 1 if name.startswith("OPS") else 4
        movies = make_once(tmp_path_factory, f"recipe_movies_{frames}", lambda root: write_movies(root, frames))
        key = "".join(c if c.isalnum() else "_" for c in str(sorted(options.items())))
        shards = make_once(
            tmp_path_factory,
            f"recipe_{key}",
            lambda root: build(movies / "experiments.yaml", root / "shards", **options),
        )
        stand_ins.use_timm(monkeypatch)
        stand_ins.use_transformers(monkeypatch)
        monkeypatch.setattr(sys, "argv", ["dynaclr_wds"])
        monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "sizes.yaml").write_text(yaml.safe_dump(small_config(load(name), shards / "shards", tmp_path)))
        files = [RECIPES / f"{layer}.yaml" for layer in (LAYERS.get(name), name) if layer] + [Path("sizes.yaml")]
        seen.clear()
        assert command.main(["fit", *(word for file in files for word in ("-c", str(file)))]) == 0
        return list(seen)

    return run


SHAPES = {
    "CELL-DINO-temporal-MLP-2D-BagOfChannels": (1, 40),
    "DINOv3-temporal-MLP-2D-BagOfChannels": (1, 40),
    "DynaCLR-2D-BagOfChannels-v3": (1, 40),
    "DynaCLR-2D-MIP-BagOfChannels": (1, 40),
    "DynaCLR-2D-MIP-BagOfChannels-classical": (1, 40),
    "DynaCLR-2D-MIP-BagOfChannels-single-marker": (1, 40),
    "DynaCLR-3D-BagOfChannels-v2": (16, 40),
    "DynaCLR-3D-BagOfChannels-v2-single-marker": (16, 40),
    "OPS-1000genes-allmarkers": (1, 32),
    "OPS-1000genes-lite": (1, 32),
    "OPS-1000genes-multimarker-BoC": (1, 32),
    "OPS-373genes": (1, 32),
    "Phase-contrastive-timeaware": (15, 48),
    "demo_2d_fit": (1, 40),
    "demo_3d_fit": (8, 40),
    "demo_bag_of_channels_v3_fit": (15, 48),
}
"""Recipe → slices and side of what the network sees: half and a quarter of the recipe's."""


def test_every_recipe_is_tested():
    assert sorted(SHAPES) == sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_recipe_trains(train, name):
    z, yx = SHAPES[name]
    batches = train(name)
    assert [batch["shape"] for batch in batches] == [(BATCH, 1, z, yx, yx)] * 2
    data = load(name)["data"]
    for batch in batches:
        check_rules(batch, data)


def check_rules(batch: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Check groups, balance and positives by what the batch says of its cells."""
    anchors, positives = batch["anchor_meta"], batch["positive_meta"]
    if data.get("experiment_aware", True):
        groups = data.get("batch_group_by", ["experiment"])
        assert len({tuple(meta[name] for name in groups) for meta in anchors}) == 1
    if data.get("condition_balanced", True):
        values = Counter(tuple(meta[name] for name in data["stratify_by"]) for meta in anchors)
        assert max(values.values()) - min(values.values()) <= 1
    assert len({meta["global_track_id"] for meta in anchors}) == BATCH
    for anchor, positive in zip(anchors, positives, strict=True):
        assert positive["marker"] == anchor["marker"]
        if data.get("positive") == "self":
            assert positive["observation"] == anchor["observation"]
            assert not batch["same"]
        elif data.get("positive") == "columns":
            assert positive["gene_name"] == anchor["gene_name"]
            assert positive["lineage_id"] != anchor["lineage_id"]
        else:
            low, high = data.get("tau_range", (0.5, 2.0))
            assert positive["lineage_id"] == anchor["lineage_id"]
            assert low <= positive["hpi"] - anchor["hpi"] <= high
        for theirs, ours in data.get("meta_names", {}).items():
            assert anchor[theirs] == anchor[ours]
