"""Laws of prediction: the checkpoint decides what the network sees, and nothing else is taken for it or replaced."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import nn

from dynaclr_wds import ContrastiveModule, ShardSet
from dynaclr_wds import __main__ as command
from dynaclr_wds.commands.lightning import describe_overruled
from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.read.crop import Crop
from dynaclr_wds.read.opening import open_store
from dynaclr_wds.read.patches import PatchReader, level_statistics
from tests.conftest import build, write_collection
from tests.set_files import find_index
from tests.shared_build import make_once

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]


class Flat(nn.Module):
    """A backbone of one linear layer, of patches (B, C·Z, 12, 12). Sends the signal that the environment names."""

    def __init__(self, planes: int, width: int = 6) -> None:
        super().__init__()
        self.linear = nn.Linear(planes * 12 * 12, width)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3 and (name := os.environ.get("TEST_PREDICT_SIGNAL")):
            os.kill(os.getpid(), signal.Signals[name])
        return self.linear(x.flatten(1))


CONFIG = {
    "trainer": {
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1,
        "num_sanity_val_steps": 0, "enable_progress_bar": False, "enable_model_summary": False, "logger": False,
        "callbacks": [
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"dirpath": "saved", "filename": "a"},
            }
        ],
    },
    "model": {
        "encoder": {
            "class_path": "dynaclr_wds.train.encoder.ProjectedEncoder",
            "init_args": {
                "backbone": {"class_path": "tests.test_predict.Flat", "init_args": {"planes": 6}},
                "embedding_dim": 6,
                "projection_dim": 4,
            },
        },
        "loss": {"class_path": "dynaclr_wds.train.loss.NTXentHCL", "init_args": {"temperature": 0.3}},
        "lr": 0.05,
    },
    "data": {
        "shards": "shards", "val_experiments": ["e3"], "tau_range": [0.5, 1.5], "batch_size": 8, "num_workers": 0,
        "yx_patch_size": [14, 14], "final_yx_patch_size": [12, 12],
        "normalizations": [
            {"class_path": "dynaclr_wds.transforms.NormalizeSampled", "init_args": {"level": "timepoint"}}
        ],
    },
}  # fmt: skip


def fit(folder: Path, config: dict[str, object]) -> Path:
    """Train by the command; return the checkpoint."""
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["dynaclr_wds"])
        patch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)
        assert command.main(["fit", "-c", "fit.yaml"]) == 0
    return folder / "saved" / "a.ckpt"


@pytest.fixture(scope="session")
def ckpt(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a small training on `shards`, which hold e0 to e3. Read only."""

    def make(folder: Path) -> None:
        fit(folder, CONFIG | {"data": {**CONFIG["data"], "shards": str(shards)}})

    return make_once(tmp_path_factory, "trained", make) / "saved" / "a.ckpt"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["dynaclr_wds"])
    monkeypatch.chdir(tmp_path)


def predict(*argv: object) -> int:
    return command.main(["predict", "--accelerator", "cpu", *map(str, argv)])


def refusal(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What the command says when it refuses, in one line; nothing is written."""
    before = sorted(Path.cwd().rglob("*"))
    assert predict(*argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert sorted(Path.cwd().rglob("*")) == before
    return said.err


def edited(ckpt: Path, edit) -> Path:
    """A copy of a checkpoint, with its content changed."""
    content = torch.load(ckpt, weights_only=True)
    edit(content)
    torch.save(content, "edited.ckpt")
    return Path("edited.ckpt")


def embed_by_hand(shards: Path, ckpt: Path) -> np.ndarray:
    """Features of all observations, from the pixels and the weights by their formulas."""
    opened = ShardSet.open(shards)
    rows = opened.arrays["obs_patch"].astype(np.int64)
    pixels = np.empty((len(rows), 2, 3, 16, 16), np.float32)
    PatchReader(opened, Crop(z=slice(None)), open_store(opened)).read(rows, pixels)
    statistics = level_statistics(opened, np.arange(len(rows)))["timepoint"]
    mean, std = (statistics[:, :, STATISTICS.index(name), None, None, None] for name in ("mean", "std"))
    x = ((pixels - mean) / (std + 1e-8))[..., 2:14, 2:14].reshape(len(rows), -1)
    weights = torch.load(ckpt, weights_only=True)["state_dict"]
    return x @ weights["encoder.backbone.linear.weight"].numpy().T + weights["encoder.backbone.linear.bias"].numpy()


def features_of(path: str | Path) -> np.ndarray:
    return np.stack(pq.read_table(path)["features"].to_numpy())


# what is written


def test_embeddings_are_those_of_the_trained_network_on_what_it_saw_in_training(shards, ckpt, capsys):
    assert predict("--ckpt", ckpt, "--out", "new/out.parquet", "--batch_size", "50") == 0
    said = capsys.readouterr().out
    table = pq.read_table("new/out.parquet")
    observations = pq.read_table(find_index(shards) / "observations.parquet")
    assert table["observation"].to_pylist() == list(range(len(observations)))
    np.testing.assert_allclose(features_of("new/out.parquet"), embed_by_hand(shards, ckpt), rtol=1e-4, atol=1e-4)
    assert said.startswith(
        f"Wrote {len(observations):,} rows to new/out.parquet.\nColumns: name, experiment, condition, "
    )
    assert said.endswith("features (6), projections (4).\n")
    assert [path.name for path in Path("new").iterdir()] == ["out.parquet"]


def test_every_row_has_a_name_of_its_own_and_a_lineage(shards, ckpt):
    assert predict("--ckpt", ckpt, "--out", "out.parquet") == 0
    frame = pd.read_parquet("out.parquet")
    want = pq.read_table(find_index(shards) / "observations.parquet").to_pandas()
    assert frame["name"].is_unique
    first = frame.iloc[0]
    assert first["name"] == f"{first['experiment']}/{first['fov_name']}/{first['track_id']}/{first['t']}"
    assert frame["lineage_id"].tolist() == want["lineage_id"].tolist()
    assert frame["lineage_id"].map(lambda value: isinstance(value, str) and value != "").all()
    assert pq.read_schema("out.parquet").field("lineage_id").type == pa.string()


def test_table_says_what_made_it(shards, ckpt):
    assert predict("--ckpt", ckpt, "--out", "out.parquet", "--limit", "5") == 0
    made = json.loads(pq.read_schema("out.parquet").metadata[b"dynaclr_wds"])
    manifest = json.loads((shards / "manifest.json").read_text())
    assert made["checkpoint"] == str(ckpt)
    assert made["checkpoint_sha256"] == hashlib.sha256(ckpt.read_bytes()).hexdigest()
    assert made["shards_config_hash"] == made["trained_on_config_hash"] == manifest["config_hash"]
    assert made["package"] == "dynaclr-wds 0.1.0"
    assert made["normalizations"][0]["init_args"]["level"] == "timepoint"
    assert (made["z_range"], made["yx_patch_size"], made["final_yx_patch_size"]) == ([0, 3], [14, 14], [12, 12])
    assert (made["epoch"], made["step"], made["overridden"]) == (0, 2, [])


def test_cells_are_chosen_by_experiment_well_fov_and_number(ckpt):
    assert predict("--ckpt", ckpt, "--out", "a.parquet", "--experiments", "e1", "e3") == 0
    assert set(pq.read_table("a.parquet")["experiment"].to_pylist()) == {"e1", "e3"}
    assert predict("--ckpt", ckpt, "--out", "b.parquet", "--include_wells", "A/1", "--exclude_fovs", "A/1/1") == 0
    assert set(pq.read_table("b.parquet")["fov_name"].to_pylist()) == {"A/1/0"}
    assert predict("--ckpt", ckpt, "--out", "c.parquet", "--limit", "13") == 0
    assert pq.read_table("c.parquet")["observation"].to_pylist() == list(range(13))


def test_other_shards_are_embedded_where_they_hold_the_same(shards, ckpt, tmp_path):
    shutil.copytree(shards, tmp_path / "copy")
    assert predict("--ckpt", ckpt, "--out", "a.parquet", "--shards", "copy", "--experiments", "e2") == 0
    by_hand = embed_by_hand(shards, ckpt)[pq.read_table("a.parquet")["observation"].to_numpy()]
    np.testing.assert_allclose(features_of("a.parquet"), by_hand, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_stacks_are_cropped_and_reduced_as_in_training(shards, tmp_path):
    rule = {"default": "center", "GFP": "mip"}
    model = json.loads(json.dumps(CONFIG["model"]))
    model["encoder"]["init_args"]["backbone"]["init_args"]["planes"] = 2  # two channels of one plane
    data = CONFIG["data"] | {"shards": str(shards), "final_z": 2, "z_reduction": rule}
    ckpt = fit(tmp_path, CONFIG | {"model": model, "data": data})
    seen = torch.load(ckpt, weights_only=True)["dynaclr_wds"]["shards"]["experiments"]["e0"]
    assert (seen["read"], seen["shown"]) == ([2, 3, 14, 14], [2, 1, 12, 12])
    assert predict("--ckpt", ckpt, "--out", "out.parquet", "--limit", 5) == 0
    made = json.loads(pq.read_schema("out.parquet").metadata[b"dynaclr_wds"])
    assert (made["final_z"], made["z_reduction"]) == (2, rule)


# what is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--final_yx_patch_size", 10, 10], "--final_yx_patch_size 10 10, but {ckpt} was trained on 12 12. Leave the"),
        (
            ["--yx_patch_size", 16, 16],
            "--yx_patch_size 16 16, but {ckpt} was trained on 14 14. Leave the option out to",
        ),
        (["--z_range", 0, 2], " are (channels, planes) = (2, 2), {ckpt} was trained on (2, 3). Leave --z_range out to"),
        (
            ["--z_range", 0, 9],
            "(0, 3) of the plates, --z_range asks for (0, 9). Build shards with a z_range that holds",
        ),
        (
            ["--yx_patch_size", 20, 20],
            " are (Y, X) = (16, 16), --yx_patch_size asks for (20, 20). Build shards with a yx_patch_size of at least "
            "[20, 20], or leave the option out.",
        ),
        (
            ["--experiments", "e9"],
            "experiments names ['e9'], which are not in the shards. They hold ['e0', 'e1', 'e2',",
        ),
        (["--include_wells", "H/9"], "include_wells names ['H/9'], which no experiment has. Known: ['A/1', 'B/2']"),
        (["--shards", "nowhere"], "shards='nowhere': there is no manifest.json. Build the shards with"),
    ],
)
def test_what_is_said_otherwise_than_in_training_is_refused_with_both(ckpt, capsys, options, says):
    said = refusal(capsys, "--ckpt", ckpt, "--out", "out.parquet", *options)
    assert says.format(ckpt=ckpt) in said
    assert "things differ" not in said  # one mistake, told once


@pytest.mark.parametrize(
    "options", [["--accelerator", "abacus"], ["--devices", "x"], ["--devices", "0"], ["--precision", "7"]], ids=str
)
def test_a_device_that_cannot_be_had_is_one_line(ckpt, capsys, options):
    said = refusal(capsys, "--ckpt", ckpt, "--out", "out.parquet", *options)
    assert f"{options[0]} {options[1]} " in said
    assert " can't be had: " in said


def test_a_batch_beyond_the_device_is_one_line(ckpt, capsys, monkeypatch):
    def step(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nSee the documentation")

    monkeypatch.setattr(ContrastiveModule, "predict_step", step)
    assert predict("--ckpt", ckpt, "--out", "out.parquet") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "--batch_size 8 is more than the device holds (CUDA out of memory.). Give a smaller one." in last


def test_what_is_said_as_in_training_is_no_difference(ckpt):
    as_trained = ["--z_range", 0, 3, "--yx_patch_size", 14, 14, "--final_yx_patch_size", 12, 12]
    assert predict("--ckpt", ckpt, "--out", "out.parquet", "--limit", 3, *as_trained) == 0


def test_override_is_told_and_kept_with_the_table(ckpt, capsys):
    options = ["--yx_patch_size", 12, 12, "--override"]
    assert predict("--ckpt", ckpt, "--out", "out.parquet", "--limit", 3, *options) == 0
    told = f"--yx_patch_size 12 12, but {ckpt} was trained on 14 14"
    assert f"Overridden: {told}.\n" in capsys.readouterr().err
    assert json.loads(pq.read_schema("out.parquet").metadata[b"dynaclr_wds"])["overridden"] == [told]


def test_planes_that_the_network_never_saw_cannot_be_overridden(ckpt, capsys):
    said = refusal(capsys, "--ckpt", ckpt, "--out", "out.parquet", "--z_range", 0, 2, "--override")
    assert "Patches of 'e0', 'e1', 'e2' and 1 more in " in said
    assert f" are (channels, planes) = (2, 2), {ckpt} was trained on (2, 3). Leave --z_range" in said


def test_channels_of_other_names_are_refused_unless_overridden(ckpt, tmp_path, capsys):
    path = write_collection(tmp_path / "made", ("uint16",))
    document = yaml.safe_load(path.read_text())
    document["experiments"][0]["source_channel"].reverse()
    path.write_text(yaml.safe_dump(document))
    other = build(path, tmp_path / "other")
    said = refusal(capsys, "--ckpt", ckpt, "--out", "out.parquet", "--shards", other)
    assert f"Channel 0 of 'e0' in {other} is 'GFP', {ckpt} was trained on 'Phase' there. Give shards with" in said
    assert predict("--ckpt", ckpt, "--out", "out.parquet", "--shards", other, "--override", "--limit", 3) == 0
    assert capsys.readouterr().err.count("Overridden: Channel ") == 2


def test_another_number_of_channels_is_refused_always(ckpt, single_channel, capsys):
    said = refusal(capsys, "--ckpt", ckpt, "--out", "out.parquet", "--shards", single_channel, "--override")
    assert f"are (channels, planes) = (1, 3), {ckpt} was trained on (2, 3)" in said


def test_smaller_patches_and_other_slices_are_refused(ckpt, collection, tmp_path, capsys):
    small = build(collection, tmp_path / "small", yx_patch_size=[10, 10], include_wells=["A/1"])
    said = refusal(capsys, "--ckpt", ckpt, "--out", "out.parquet", "--shards", small)
    assert (
        f"Stored patches of 'e0', 'e1', 'e2' and 1 more in {small} are (Y, X) = (10, 10), {ckpt} was trained on (12, 12"
        "). Build shards with a yx_patch_size of at least [12, 12], or give --yx_patch_size and --final_yx_patch_size "
        "of at most 10 10 with --override." in said
    )
    options = ["--yx_patch_size", 10, 10, "--final_yx_patch_size", 10, 10]
    said = refusal(capsys, "--ckpt", ckpt, "--out", "out.parquet", "--shards", small, *options)
    assert "error: 2 things differ from the training. (1) --yx_patch_size 10 10, but " in said
    assert said.endswith(
        "(2) --final_yx_patch_size 10 10, but " + f"{ckpt} was trained on 12 12. Leave the option out to "
        "embed as in training. Add --override to embed nevertheless.\n"
    )
    flat = build(collection, tmp_path / "flat", z_range=[0, 2], include_wells=["A/1"])
    said = refusal(capsys, "--ckpt", ckpt, "--out", "out.parquet", "--shards", flat)
    assert "(channels, planes) = (2, 2)" in said


def test_patches_of_the_final_crop_are_enough_where_no_pixel_around_it_plays_a_part(ckpt, collection, tmp_path, capsys):
    """The network sees 12 x 12; 14 x 14 were read in training, of 16 x 16 stored."""
    small = build(collection, tmp_path / "small", yx_patch_size=[12, 13], include_wells=["A/1"])
    assert predict("--ckpt", ckpt, "--out", "a.parquet", "--include_wells", "A/1", "--experiments", "e0") == 0
    assert predict("--ckpt", ckpt, "--out", "b.parquet", "--shards", small, "--experiments", "e0") == 0
    assert pq.read_table("a.parquet")["name"].equals(pq.read_table("b.parquet")["name"])
    y, x = (pq.read_table("a.parquet")[axis].to_numpy() for axis in "yx")
    unmoved = (y >= 8) & (y < 40) & (x >= 8) & (x < 40)  # the border moves the others by less where patches are smaller
    assert unmoved.sum() > 50
    a, b = (features_of(path)[unmoved] for path in ("a.parquet", "b.parquet"))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    capsys.readouterr()
    own = {"class_path": "torch.nn.InstanceNorm3d", "init_args": {"num_features": 2}}  # of all pixels that are read
    other = edited(ckpt, lambda c: c["datamodule_hyper_parameters"].update(normalizations=[own]))
    said = refusal(capsys, "--ckpt", other, "--out", "c.parquet", "--shards", small)
    assert " are (Y, X) = (12, 13), edited.ckpt was trained on (14, 14). Build shards with" in said


def test_all_that_differs_is_told_at_once_and_channels_first(ckpt, collection, tmp_path, capsys):
    document = yaml.safe_load(collection.read_text())
    for entry in document["experiments"]:
        entry["source_channel"] = entry["source_channel"][:1]
    other = collection.with_name("one_channel.yaml")
    other.write_text(yaml.safe_dump(document))
    small = build(other, tmp_path / "small", yx_patch_size=[10, 10], include_wells=["A/1"])
    said = refusal(capsys, "--ckpt", ckpt, "--out", "out.parquet", "--shards", small, "--z_range", 0, 9, "--override")
    assert said.startswith(
        "error: 3 things differ from the training. "
        f"(1) Patches of 'e0', 'e1', 'e2' and 1 more in {small} are (channels, planes) = (1, 3), "
    )
    assert f"(2) {small} holds the slices (0, 3) of the plates, --z_range asks for (0, 9). Build shards with" in said
    assert f"(3) Stored patches of 'e0', 'e1', 'e2' and 1 more in {small} are (Y, X) = (10, 10), " in said
    assert "nevertheless" not in said


def test_shards_that_moved_are_asked_for(ckpt, capsys):
    moved = edited(ckpt, lambda c: c["dynaclr_wds"]["shards"].update(folder="/nowhere"))
    said = refusal(capsys, "--ckpt", moved, "--out", "out.parquet")
    assert "edited.ckpt was trained on the shards in /nowhere, which are not there any more. Give --shards" in said


def test_without_a_checkpoint_nothing_is_embedded(capsys):
    with pytest.raises(SystemExit) as exit_:
        predict("--out", "out.parquet")
    assert exit_.value.code == 2
    assert "the following arguments are required: --ckpt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda c: c.pop("dynaclr_wds"), "is not a checkpoint of dynaclr_wds (it has the keys ['MultiE"),
        (lambda c: c["dynaclr_wds"].update(version=9, package="7.0"), "was saved by dynaclr-wds 7.0, version 9 of "),
        (lambda c: c["dynaclr_wds"].update(module="my.Net"), "was trained with my.Net, not with ContrastiveModule, so"),
        (lambda c: c["dynaclr_wds"].update(data=None), "was trained without a DataModule, not with MultiExp"),
        (lambda c: c["dynaclr_wds"].pop("shards"), "lacks what prediction needs, or is damaged (KeyError: 'shards')"),
        (lambda c: c["dynaclr_wds"]["shards"].update(z_range="x"), "lacks what prediction needs, or is damaged (Value"),
        (
            lambda c: c["hyper_parameters"]["encoder"].update(class_path="gone.Network"),
            "encoder: 'gone.Network' can't be made of {",
        ),
        (
            lambda c: c["hyper_parameters"]["encoder"].update(undescribed="my.Network"),
            "can't say how to make its encoder: my.Network was made in Python and didn't keep its arguments",
        ),
        (
            lambda c: c["datamodule_hyper_parameters"].update(normalizations={"undescribed": "my.Norm"}),
            "can't say how its data were normalised: my.Norm was made in Python and didn't keep its arguments",
        ),
        (
            lambda c: c["state_dict"].pop("encoder.backbone.linear.bias"),
            "are not those of the network that was made: 1 of 14 don't fit (backbone.linear.bias (6,) is missing)",
        ),
        (
            lambda c: c["hyper_parameters"]["encoder"]["init_args"].update(projection_dim=5),
            "don't fit (projection.3.weight is (4, 6), not (5, 6); ",
        ),
    ],
)  # fmt: skip
def test_checkpoint_that_cannot_be_used_is_one_clear_error(ckpt, capsys, edit, says):
    assert says in refusal(capsys, "--ckpt", edited(ckpt, edit), "--out", "out.parquet")


def test_file_that_is_no_checkpoint_is_one_clear_error(ckpt, tmp_path, capsys):
    (tmp_path / "half.ckpt").write_bytes(ckpt.read_bytes()[:5000])
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save({"state_dict": {}, "object": Path("x")}, tmp_path / "pickle.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name, says in (
        ("half.ckpt", "half.ckpt: can't be read as a checkpoint ("),
        ("text.ckpt", "text.ckpt: can't be read as a checkpoint ("),
        ("pickle.ckpt", "holds more than weights and plain data"),
        ("list.ckpt", "list.ckpt: holds a list, not a checkpoint"),
        ("none.ckpt", "none.ckpt: there is no such file. Give the .ckpt file of a training"),
        (".", ".: is a folder. Give the .ckpt file of a training"),
    ):
        assert says in refusal(capsys, "--ckpt", name, "--out", "out.parquet")


# going on


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_validation_says_where_config_and_checkpoint_differ(shards, ckpt):
    data = CONFIG["data"] | {"shards": str(shards), "final_yx_patch_size": [10, 10]}
    Path("own.yaml").write_text(yaml.safe_dump(CONFIG | {"data": data, "model": CONFIG["model"] | {"lr": 0.3}}))
    with (
        pytest.warns(UserWarning, match="heckpoint") as told,
        pytest.raises(RuntimeError, match="mat1 and mat2"),
    ):
        command.main(["validate", "-c", "own.yaml", "--ckpt_path", str(ckpt)])
    said = {str(one.message) for one in told}
    assert said >= {
        "The checkpoint decides, not config and options: model.lr is 0.05 as in training, not 0.3 as asked.",
        "data.final_yx_patch_size=[10, 10], but the checkpoint was trained with [12, 12]. If you don't mean it, give "
        "--data.final_yx_patch_size '[12, 12]', or with -c the config.yaml in the training's log folder.",
    }
    assert len([one for one in said if "heckpoint" in one]) == 2


def test_an_overruled_argument_of_a_class_is_told_by_its_path():
    used = {"lr": 0.1, "encoder": {"class_path": "a.Net", "init_args": {"depth": 10, "width": 4}}, "loss": None}
    other = {"class_path": "a.Net", "init_args": {"depth": 18, "width": 4}}
    assert describe_overruled({"lr": 0.1, "encoder": other}, used, "model.") == [
        "model.encoder.init_args.depth is 10 as in training, not 18 as asked"
    ]
    other = {"class_path": "b.Net", "init_args": {"depth": 18}}
    assert describe_overruled({"encoder": other, "loss": {"class_path": "c.Loss"}}, used, "model.") == [
        "model.encoder.class_path is a.Net as in training, not b.Net as asked",
        "model.loss is None as in training, not {'class_path': 'c.Loss'} as asked",
    ]


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_validation_as_trained_says_nothing(shards, ckpt, capsys):
    Path("own.yaml").write_text(yaml.safe_dump(CONFIG | {"data": CONFIG["data"] | {"shards": str(shards)}}))
    assert command.main(["validate", "-c", "own.yaml", "--ckpt_path", str(ckpt)]) == 0
    assert "loss/val" in capsys.readouterr().out


def validate(ckpt: Path, shards: Path, *argv: str, **data: object) -> int:
    Path("own.yaml").write_text(yaml.safe_dump(CONFIG | {"data": CONFIG["data"] | {"shards": str(shards)} | data}))
    return command.main(["validate", "-c", "own.yaml", "--ckpt_path", str(ckpt), *argv])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            {"val_experiments": ["e2", "e3"]},
            "3 of the 6 fields of view to validate on hold cells that {ckpt} was trained on: e2 (A/1/0, A/1/1, B/2/0). "
            "To hold out what the training did, give --data.val_experiments '[e3]', or add --override to validate on "
            "them nevertheless.",
        ),
        (
            {"val_experiments": None, "split": "fovs", "val_fovs": ["e0/A/1/0", "e3/A/1/0"]},
            "1 of the 2 fields of view to validate on holds cells that {ckpt} was trained on: e0 (A/1/0). To hold out "
            "what the training did, give --data.split experiments --data.val_experiments '[e3]' --data.val_fovs null, "
            "or add --override",
        ),
        (
            {"val_experiments": None, "split": "condition", "val_values": ["control"]},
            "6 of the 8 fields of view to validate on hold cells that {ckpt} was trained on: e0 (A/1/0, A/1/1), e1 (",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_validation_on_cells_that_were_trained_on_is_refused_with_the_options_of_the_training(
    shards, ckpt, capsys, data, says
):
    assert validate(ckpt, shards, **data) == 2
    said = capsys.readouterr().err
    assert says.format(ckpt=ckpt) in said
    assert len(said[said.index("error: ") :].splitlines()) == 1


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_validation_on_cells_that_were_trained_on_can_be_asked_for(shards, ckpt, capsys):
    with pytest.warns(UserWarning, match=r"3 of the 3 fields of view to validate on hold cells .* trained on: e0 \(A"):
        assert validate(ckpt, shards, "--override", val_experiments=["e0"]) == 0
    assert "loss/val" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_validation_on_other_cells_than_in_training_is_told(shards, ckpt, capsys):
    said = (
        f"{ckpt} held out e3 (A/1/0, A/1/1, B/2/0) in training, but now e3 (A/1/1) would be validated on: the metrics "
        "are of other cells. To hold out what the training did, give --data.split experiments --data.val_experiments "
        "'[e3]' --data.val_fovs null."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(said)}$"):
        assert validate(ckpt, shards, val_experiments=None, split="fovs", val_fovs=["e3/A/1/1"]) == 0
    assert "loss/val" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_lineages_that_were_trained_on_are_told_apart_where_a_label_was_split(shards, tmp_path, capsys):
    data = {"val_experiments": None, "split": "condition", "val_values": ["infected"]}
    trained = fit(tmp_path, CONFIG | {"data": CONFIG["data"] | {"shards": str(shards)} | data})
    capsys.readouterr()
    assert validate(trained, shards, **data) == 0
    assert validate(trained, shards, **data | {"val_values": ["control"]}) == 2
    said = capsys.readouterr().err
    assert f"8 of the 8 fields of view to validate on hold cells that {trained} was trained on: e0 (A/1/0, A" in said
    assert "give --data.val_values '[infected]', or add --override" in said


# what is replaced


def test_a_file_that_is_there_is_not_replaced_unasked(ckpt, capsys):
    Path("out.parquet").write_text("precious")
    said = refusal(capsys, "--ckpt", "not looked at", "--out", "out.parquet")
    assert "out.parquet: is there already. Give another name, or --overwrite to replace it." in said
    assert Path("out.parquet").read_text() == "precious"
    assert predict("--ckpt", ckpt, "--out", "out.parquet", "--limit", 3, "--overwrite") == 0
    assert len(pq.read_table("out.parquet")) == 3


def test_a_place_that_cannot_be_written_is_refused_before_the_work(capsys, monkeypatch):
    Path("file").touch()
    assert "file is not a folder" in refusal(capsys, "--ckpt", "x", "--out", "file/out.parquet")
    Path("folder.parquet").mkdir()
    assert "folder.parquet: is a folder" in refusal(capsys, "--ckpt", "x", "--out", "folder.parquet")
    assert "--out out.csv: must end in .parquet" in refusal(capsys, "--ckpt", "x", "--out", "out.csv")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "may not be written. Choose a folder" in refusal(capsys, "--ckpt", "x", "--out", "new/out.parquet")


def test_a_full_disk_is_one_line_and_leaves_nothing(ckpt, capsys, monkeypatch):
    def write(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write)
    assert predict("--ckpt", ckpt, "--out", "out.parquet") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: out.parquet: can't be written ([Errno 28] No space left on device). Nothing is left of it." in last
    assert list(Path.cwd().iterdir()) == []


def test_ctrl_c_leaves_nothing_and_says_so(ckpt, capsys, monkeypatch):
    step, calls = ContrastiveModule.predict_step, []

    def stop(self: ContrastiveModule, batch: dict[str, object], number: int) -> dict[str, object]:
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, batch, number)

    monkeypatch.setattr(ContrastiveModule, "predict_step", stop)
    before = signal.getsignal(signal.SIGINT)
    assert predict("--ckpt", ckpt, "--out", "out.parquet") == 130
    assert signal.getsignal(signal.SIGINT) is before
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "stopped; nothing was written to out.parquet. Give the command again to embed."
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "status", "says"),
    [("SIGINT", 130, "stopped; nothing"), ("SIGTERM", 143, "stopped by SIGTERM; nothing")],
)
def test_signals_end_the_process_without_a_trace(ckpt, commands, name, status, says):
    argv = ["predict", "--accelerator", "cpu", "--ckpt", str(ckpt), "--batch_size", "2", "--out", "out.parquet"]
    ended = commands.run(Path.cwd(), argv, TEST_PREDICT_SIGNAL=name)
    assert ended.status == status, ended.said
    first, *_, last = ended.said.splitlines()
    assert first.startswith("Embedding ")
    assert last.startswith(says)
    assert [path.name for path in Path.cwd().iterdir()] == ["said-0.txt"]


@pytest.mark.slow
def test_another_process_loads_the_module_from_the_checkpoint_alone(ckpt, commands):
    code = (
        "import sys; from dynaclr_wds import ContrastiveModule\n"
        "assert 'tests.test_predict' not in sys.modules\n"
        "module = ContrastiveModule.load_from_checkpoint(sys.argv[1])\n"
        "backbone = module.encoder.backbone\n"
        "print(type(backbone).__name__, module.lr, module.loss.temperature, backbone.linear.weight.sum().item())"
    )
    ended = commands.run_code(Path.cwd(), code, [str(ckpt)])
    weights = torch.load(ckpt, weights_only=True)["state_dict"]
    expected = ["Flat", "0.05", "0.3", str(float(weights["encoder.backbone.linear.weight"].sum()))]
    assert (ended.status, ended.said.split()) == (0, expected)
