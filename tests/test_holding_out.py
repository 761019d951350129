"""Held-out fields of view and values: never trained on, validated on once each, in exact mode and in streaming."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.errors import CheckpointError, ConfigError
from dynaclr_wds.hashed_sides import hash_place
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.split import Side
from dynaclr_wds.train.checkpoint_content import describe_training
from dynaclr_wds.train.trained_cells import compare_splits
from tests.set_files import find_index

EXACT: dict[str, object] = {}
STREAMING = {"window_bytes": 1 << 24, "num_streams": 1, "relax_lineages": True}
BY_FOV = {"split": "fovs", "split_ratio": 0.7, "split_seed": 5}


def ready(shards, stage="fit", **options) -> MultiExperimentDataModule:
    options = {"tau_range": (0.5, 1.5), "batch_size": 8, "num_workers": 0, "condition_balanced": False} | options
    data = MultiExperimentDataModule(shards=str(shards), **options)
    data.setup(stage)
    return data


def trained_on(data) -> list[dict]:
    """Anchors and positives of an epoch."""
    rows = []
    for batch in data.train_dataloader():
        rows += [*batch["anchor_meta"], *batch["positive_meta"]]
    return rows


def validated_on(data) -> list[dict]:
    return [row for batch in data.val_dataloader() for row in batch["anchor_meta"]]


def table(shards) -> list[dict]:
    columns = ["experiment", "fov_name", "condition", "well", "track_id", "t", "lineage_id", "has_candidate"]
    return pq.read_table(find_index(shards) / "observations.parquet", columns=columns).to_pylist()


def name(row: dict) -> tuple:
    return row["experiment"], row["fov_name"], row["track_id"], row["t"]


@pytest.mark.parametrize("reading", [EXACT, STREAMING], ids=["exact", "streaming"])
@pytest.mark.parametrize(
    ("options", "held"),
    [
        (BY_FOV, lambda row: hash_place(f"{row['experiment']}/{row['fov_name']}", 5) >= 0.7),
        (
            {"split": "fovs", "val_fovs": ["B/2/0", "e1/A/1/1"]},
            lambda row: row["fov_name"] == "B/2/0" or (row["experiment"], row["fov_name"]) == ("e1", "A/1/1"),
        ),
        ({"split": "condition", "val_values": ["infected"]}, lambda row: row["condition"] == "infected"),
        ({"split": "experiments", "val_experiments": ["e2"]}, lambda row: row["experiment"] == "e2"),
    ],
    ids=["ratio", "FOVs", "values", "experiments"],
)
def test_training_and_validation_share_no_lineage_and_together_hold_every_anchor(shards, reading, options, held):
    data = ready(shards, **options, **reading)
    trained, validated = trained_on(data), validated_on(data)
    rows = [row for row in table(shards) if row["has_candidate"]]
    assert 0 < sum(map(held, rows)) < len(rows)
    assert sorted(map(name, validated)) == sorted(name(row) for row in rows if held(row))
    assert not any(map(held, trained))
    assert {row["lineage_id"] for row in trained}.isdisjoint(row["lineage_id"] for row in validated)
    assert len(data.train_sampler.index.row) + len(validated) == len(rows)


def test_another_sampling_seed_leaves_the_split_and_another_split_seed_moves_it(shards):
    sides = [
        sorted(map(name, validated_on(ready(shards, **{**BY_FOV, **changed}))))
        for changed in ({}, {"seed": 9}, {"split_seed": 6})
    ]
    assert sides[0] == sides[1] != sides[2]


def test_fovs_that_are_left_out_are_on_no_side(shards):
    places = {"exclude_fovs": {"e0": ["A/1/0"]}, "include_wells": {"e1": ["B/2"]}}
    data = ready(shards, split="fovs", val_fovs=["B/2/0"], **places)
    trained, validated = trained_on(data), validated_on(data)
    where = {(row["experiment"], row["fov_name"]) for row in trained}
    assert where == {("e0", "A/1/1"), *((e, f) for e in ("e2", "e3") for f in ("A/1/0", "A/1/1"))}
    assert {(row["experiment"], row["fov_name"]) for row in validated} == {(f"e{n}", "B/2/0") for n in range(4)}


def test_what_is_held_out_is_said(shards, caplog):
    with caplog.at_level("INFO"):
        ready(shards, split="fovs", val_fovs=["e0/B/2/0", "e1/B/2/0", "e2/B/2/0"])
    assert "holds out 3 of 12 fields of view (25%): e0/B/2/0, e1/B/2/0, e2/B/2/0." in caplog.text
    assert "Nothing is held out of e3." in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        data = ready(shards, split="fovs", split_ratio=1.0)
    assert "split_ratio is 1: nothing is held out, so there is no validation." in caplog.text
    assert data.val_dataloader() == []


def test_sides_that_are_empty_and_labels_that_are_not_there_are_errors(shards):
    with pytest.raises(ValueError, match=r"holds out no field of view of .* split_seed=\d+ holds out 1. Give it, or"):
        ready(shards, **BY_FOV | {"split_ratio": 0.99})
    with pytest.raises(ValueError, match=r"val_values=\['control', 'infected'\] holds out every cell .* Name fewer"):
        ready(shards, split="condition", val_values=["control", "infected"])
    with pytest.raises(ConfigError, match=r"split='donor' must be 'experiments', 'fovs' or one of the labels \['cond"):
        ready(shards, split="donor", val_values=["x"])
    with pytest.raises(ValueError, match=r"split_ratio is 1: nothing is held out to validate on.*--data.split fovs"):
        ready(shards, "validate", split="fovs", split_ratio=1.0)
    for stage in ("fit", "validate"):
        with pytest.raises(ValueError, match=r"split_ratio=0.001, .* holds out every experiment of .*; none is left"):
            ready(shards, stage, split_ratio=0.001)


def resumed(shards, state, **options) -> MultiExperimentDataModule:
    data = ready(shards, **options)
    data.load_state_dict(json.loads(json.dumps(state)))
    data.train_dataloader()
    return data


def test_a_checkpoint_of_another_split_is_refused_and_one_of_the_same_cells_is_not(shards):
    state = ready(shards, split="fovs", val_fovs=["e0/A/1/0"]).state_dict()
    resumed(shards, state, split="fovs", val_fovs=["e0/A/1/0"])
    # other words, same cells
    resumed(shards, state, exclude_fovs=["e0/A/1/0"])
    with pytest.raises(
        ConfigError,
        match=r"^The checkpoint was written with anchors of training, split='fovs', val_fovs=\['e0/A/1/0'\], but of "
        r"training, split='fovs', val_fovs="
        r"\['e0/A/1/1'\] now",
    ):
        resumed(shards, state, split="fovs", val_fovs=["e0/A/1/1"])


def test_another_split_with_as_many_anchors_is_refused_too(shard_set):
    """Counts per stratum can't tell two splits apart whose held-out lineages have as many anchors; the checksum can."""
    whole = shard_set.plan_index(["e0"], (0.5, 1.5))
    anchors = np.arange(len(whole.row))
    lineage, stratum = whole.lineage(anchors), whole.stratum(anchors)
    alike: dict[tuple[int, int], list[int]] = {}
    for number in np.unique(lineage).tolist():
        own = lineage == number
        alike.setdefault((int(own.sum()), int(stratum[own][0])), []).append(number)
    pair = next(numbers for numbers in alike.values() if len(numbers) > 1)[:2]
    every = np.arange(whole.columns.clip_lineage.max() + 1)
    fovs = np.ones(len(shard_set.manifest.fovs), bool)
    first, second = (
        FlexibleBatchSampler(shard_set.plan_index(["e0"], (0.5, 1.5), side=side), SamplingConfig(batch_size=8))
        for side in (Side(fovs=fovs, lineages=every != number, said=f"all but {number}") for number in pair)
    )
    assert first.identity["anchors"] == second.identity["anchors"]
    with pytest.raises(ConfigError, match=rf"anchors of all but {pair[0]}, but of all but {pair[1]} now"):
        second.load_state_dict(first.state_dict())


def test_checkpoints_say_which_fovs_were_held_out(shards):
    data = ready(shards, split="fovs", val_fovs=["e0/A/1/0", "B/2/0"])
    module = SimpleNamespace(trainer=SimpleNamespace(datamodule=data), started_from=None)
    said = describe_training(module)["shards"]["experiments"]
    assert {name: entry["held_out_fovs"] for name, entry in said.items()} == {
        "e0": ["A/1/0", "B/2/0"],
        "e1": ["B/2/0"],
        "e2": ["B/2/0"],
        "e3": ["B/2/0"],
    }
    assert {name: entry["trained_fovs"] for name, entry in said.items()} == {
        "e0": ["A/1/1"],
        "e1": ["A/1/0", "A/1/1"],
        "e2": ["A/1/0", "A/1/1"],
        "e3": ["A/1/0", "A/1/1"],
    }


def test_a_training_that_goes_on_with_other_validation_says_so(shards):
    """The same anchors for training, so the sampler has nothing to refuse, but more cells to validate on."""

    def attached(data) -> SimpleNamespace:
        trainer = SimpleNamespace(datamodule=data, ckpt_path="last.ckpt", state=SimpleNamespace(fn="fit"))
        return SimpleNamespace(trainer=trainer, started_from=None, validates_trained_cells=False)

    before = ready(shards, split="fovs", val_fovs=["e3/A/1/0"], exclude_fovs=["e2/A/1/0"])
    after = ready(shards, split="fovs", val_fovs=["e3/A/1/0", "e2/A/1/0"])
    assert after.train_sampler.identity == before.train_sampler.identity
    content = describe_training(attached(before))
    with pytest.warns(
        UserWarning,
        match=r"^last.ckpt held out e3 \(A/1/0\) in training, but now e2 \(A/1/0\), e3 \(A/1/0\) would be validated "
        r"on: .* give --data.val_fovs '\[e3/A/1/0\]' --data.exclude_fovs '\[e2/A/1/0\]'.$",
    ):
        compare_splits(attached(after), content, dict(before.hparams))
    compare_splits(attached(before), content, dict(before.hparams))  # says nothing
    for entry in content["shards"]["experiments"].values():
        del entry["trained_fovs"]
    with pytest.raises(
        CheckpointError, match=r"^last.ckpt: does not say the trained_fovs of its experiments, so it is"
    ):
        compare_splits(attached(before), content, dict(before.hparams))


def test_callbacks_find_the_names_they_look_for(shards):
    """The reference's callbacks read `meta[key]`, and `meta["labels"][key]` for whole numbers."""
    names = {"perturbation": "condition", "hours_post_perturbation": "hpi", "experiment": "experiment"}
    data = ready(shards, val_experiments=["e3"], meta_names=names)
    values = {record.name: record.values for record in data.shard_set.manifest.labels}
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        for row in (*batch["anchor_meta"], *batch["positive_meta"]):
            assert row["perturbation"] == row["condition"] in ("control", "infected")
            assert row["hours_post_perturbation"] == row["hpi"] == int(row["experiment"][1]) + row["t"] / 2
            assert row["labels"]["perturbation"] == row["labels"]["condition"]
            assert values["condition"][row["labels"]["perturbation"]] == row["condition"]
            assert "hours_post_perturbation" not in row["labels"]


def test_tables_of_embeddings_keep_our_names(shards):
    data = ready(shards, "predict", meta_names={"perturbation": "condition"})
    row = next(iter(data.predict_dataloader()))["index"][0]
    assert "perturbation" not in row
    assert "labels" not in row


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            {"marker": "marker"},
            r"meta_names: marker='marker' must be a label .* hold \['experiment', 'condition', 'well'",
        ),
        ({"perturbation": "treatment"}, r"meta_names: perturbation='treatment' must be a label .* 'hpi'"),
        ({"well": "condition"}, r"meta_names: 'well' is a key of the rows already"),
        ({"labels": "condition"}, r"meta_names: 'labels' is a key of the rows already"),
    ],
)
def test_names_that_stand_for_nothing_or_are_taken_are_refused(shards, names, said):
    with pytest.raises(ConfigError, match=said):
        ready(shards, val_experiments=["e3"], meta_names=names)
