"""Laws of the DataModule: what each split holds, what a Trainer sees, and that a restart goes on exactly."""

import inspect
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from kornia.augmentation import RandomHorizontalFlip
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from dynaclr_wds import FlexibleBatchSampler, MultiExperimentDataModule, ThreadDataLoader
from dynaclr_wds.read.dataset import keep_apart
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.train.embeddings import EmbeddingWriter
from dynaclr_wds.transforms import NormalizeSampled
from tests.conftest import build
from tests.set_files import find_array, find_index

REAL = Path(__file__).parents[2] / "shared" / "data" / "experiments.yaml"


def make(shards, **options) -> MultiExperimentDataModule:
    options = {"tau_range": (0.5, 1.5), "batch_size": 8, "val_experiments": ["e2", "e3"]} | options
    return MultiExperimentDataModule(shards=str(shards), **options)


def ready(shards, stage="fit", **options) -> MultiExperimentDataModule:
    data = make(shards, **options)
    data.setup(stage)
    return data


def in_stage(data: MultiExperimentDataModule, training: bool) -> MultiExperimentDataModule:
    data.trainer = SimpleNamespace(training=training, current_epoch=0)
    return data


def one_of_two(rank: int, *, use_distributed_sampler: bool) -> Trainer:
    """The trainer of one of two processes."""
    fake = Mock(spec=Trainer, global_rank=rank, world_size=2, current_epoch=0, _accelerator_connector=Mock())
    fake._accelerator_connector.use_distributed_sampler = use_distributed_sampler
    fake.strategy.broadcast = lambda value: value
    return fake


def observations(loader) -> list[list[int]]:
    return [batch["anchor_meta"].observations.tolist() for batch in loader]


class Recorder(LightningModule):
    """Notes which anchors each step gets; learns nothing worth knowing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.trained: list[list[int]] = []
        self.validated: list[int] = []
        self.shapes: set[tuple[int, ...]] = set()

    def training_step(self, batch, _batch_idx):
        assert batch["anchor"].dtype == batch["positive"].dtype == torch.float32
        self.trained.append(batch["anchor_meta"].observations.tolist())
        self.shapes.add(tuple(batch["anchor"].shape[1:]))
        return self.scale * (batch["anchor"].mean() - batch["positive"].mean())

    def validation_step(self, batch, _batch_idx):
        self.validated += batch["anchor_meta"].observations.tolist()

    def predict_step(self, batch, _batch_idx):
        return batch["anchor"].shape[0], list(batch["index"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def trainer(tmp_path, **options) -> Trainer:
    options = {"max_epochs": 1, "num_sanity_val_steps": 0, "enable_checkpointing": False} | options
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        **options,
    )


# Lightning asks for worker processes, which threads stand in for, and warns of GPUs that are there but not used
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers which may be a bottleneck"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]


def test_init_exposes_all_hyperparameters():
    wanted = {
        "shards": "somewhere",
        "experiments_yaml": "experiments.yaml",
        "z_range": (0, 1),
        "yx_patch_size": (96, 96),
        "final_yx_patch_size": (64, 64),
        "final_z": 1,
        "z_reduction": {"default": "mip"},
        "val_experiments": [],
        "split": "fovs",
        "split_ratio": 0.75,
        "split_seed": 3,
        "val_fovs": [],
        "val_values": [],
        "tau_range": (0.5, 1.0),
        "tau_decay_rate": 1.0,
        "batch_size": 4,
        "num_workers": 3,
        "experiment_aware": False,
        "condition_balanced": False,
        "leaky": 0.25,
        "temporal_enrichment": True,
        "temporal_window_hours": 3.0,
        "temporal_global_fraction": 0.5,
        "experiment_weights": {"a": 1.0},
        "condition_ratio": {"control": 1.0},
        "return_negative": True,
        "channel_dropout_channels": [0],
        "channel_dropout_prob": 0.75,
        "normalizations": [NormalizeSampled()],
        "augmentations": [RandomHorizontalFlip()],
        "hcl_beta": 1.5,
        "cache_pool_bytes": 10,
        "seed": 7,
        "include_wells": ["A/1"],
        "exclude_fovs": ["A/1/0"],
        "predict_tracks": ["a/A/1/0/3"],
        "window_bytes": None,
        "num_streams": 4,
        "relax_lineages": True,
        "verify_reads": False,
        "batch_group_by": ["condition"],
        "stratify_by": ["well", "experiment"],
        "channels_per_sample": 1,
        "positive": "columns",
        "positive_match_columns": ["condition"],
        "positive_channel": "any",
        "tau_direction": "both",
        "positive_relatives": "lineage",
        "meta_names": {"perturbation": "condition"},
        "group_weights": {0: {"a": 1.0}},
        "stratify_ratio": {"control": 1.0},
        "predict_experiments": ["a"],
        "predict_limit": 3,
        "storage_options": {"region": "here"},
        "cache_dir": "cache",
        "cache_dir_bytes": 1 << 20,
        "on_shard_error": "substitute",
        "max_bad_fraction": 0.5,
        "shards_version": 3,
    }
    assert set(inspect.signature(MultiExperimentDataModule).parameters) == set(wanted)
    data = MultiExperimentDataModule(**wanted)
    assert data.storage_options.region == "here"
    wanted["storage_options"] = data.storage_options
    assert {name: getattr(data, name) for name in wanted} == wanted


def test_weights_may_change_with_the_epoch_and_labels_may_be_none(shards):
    entries = {0: {"e0": 1.0}, 20: {"e0": 1.0, "e1": 3.0}}
    sampler = ready(shards, group_weights=entries, val_experiments=["e3"]).train_sampler
    assert sampler.config.of_epoch(19).weights == {"e0": 1.0}
    assert sampler.config.of_epoch(20).weights == {"e0": 1.0, "e1": 3.0}
    with pytest.raises(ValueError, match=r"group_weights names \['e9'\]"):
        ready(shards, group_weights={0: {"e0": 1.0}, 5: {"e9": 1.0}})
    plain = ready(shards, batch_group_by=None, stratify_by=None).train_sampler
    assert {plan.group for plan in plain} == {""}


def test_defaults_are_those_of_the_reference():
    data = MultiExperimentDataModule(shards="somewhere")
    assert (data.tau_range, data.tau_decay_rate, data.batch_size) == ((0.5, 2.0), 2.0, 128)
    assert (data.experiment_aware, data.condition_balanced, data.leaky) == (True, True, 0.0)
    assert (data.temporal_enrichment, data.temporal_window_hours, data.temporal_global_fraction) == (False, 2.0, 0.3)
    assert (data.channel_dropout_channels, data.channel_dropout_prob, data.hcl_beta) == ([1], 0.5, 0.5)
    assert (data.return_negative, data.cache_pool_bytes, data.seed, data.window_bytes) == (False, 0, 0, None)


def test_train_val_split_by_experiment(shards):
    data = ready(shards, val_experiments=["e1", "e3"])
    fovs = {"train": set(), "val": set()}
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        for batch in loader:
            for key in ("anchor_meta", "positive_meta"):
                fovs[split] |= {(meta["experiment"], meta["fov_name"]) for meta in batch[key]}
    names = ("A/1/0", "A/1/1", "B/2/0")
    assert fovs["train"] == {(e, f) for e in ("e0", "e2") for f in names}
    assert fovs["val"] == {(e, f) for e in ("e1", "e3") for f in names}


def test_train_dataloader_uses_flexible_batch_sampler(shards):
    data = ready(shards, leaky=0.25)
    loader = data.train_dataloader()
    assert isinstance(loader, ThreadDataLoader)
    assert isinstance(loader.batch_sampler, FlexibleBatchSampler)
    assert loader.batch_sampler.config.batch_size == 8
    assert loader.batch_sampler.config.leaky == 0.25
    batches = list(loader)
    assert len(batches) == len(loader) > 4
    for batch in batches:
        assert batch["anchor"].shape == batch["positive"].shape == (8, 2, 3, 16, 16)
        assert batch["anchor_norm_meta"]["fov"].shape == (8, 2, 8)
        for anchor, positive in zip(batch["anchor_meta"], batch["positive_meta"], strict=True):
            assert anchor["lineage"] == positive["lineage"]
            assert 1 <= positive["t"] - anchor["t"] <= 3


def test_val_dataloader_no_batch_sampler(shards):
    loader = ready(shards).val_dataloader()
    assert not isinstance(loader.batch_sampler, FlexibleBatchSampler)
    first = list(loader)
    assert observations(loader) == observations(first)
    assert [b["positive_meta"].observations.tolist() for b in loader] == [
        b["positive_meta"].observations.tolist() for b in first
    ]


def test_validation_reads_every_anchor_once(shards):
    data = ready(shards)
    seen = [o for batch in observations(data.val_dataloader()) for o in batch]
    arrays = data.shard_set.arrays
    anchors = arrays["patch_obs"][arrays["patch_has_candidate"]]
    held_out = {i for i, f in enumerate(data.shard_set.manifest.fovs) if f.experiment in ("e2", "e3")}
    expected = [o for o in anchors.tolist() if arrays["obs_fov"][o] in held_out]
    assert sorted(seen) == sorted(expected)
    assert len(set(seen)) == len(seen) > 100


def test_on_after_batch_transfer_applies_channel_dropout_and_transforms(shards):
    options = {
        "normalizations": [NormalizeSampled(level="fov")],
        "augmentations": [RandomHorizontalFlip(p=1.0)],
        "final_yx_patch_size": (8, 8),
        "channel_dropout_prob": 1.0,
    }
    data = in_stage(ready(shards, **options), training=True)
    batch = next(iter(data.train_dataloader()))
    out = data.on_after_batch_transfer(batch, 0)
    assert set(out) == {"anchor", "positive", "anchor_meta", "positive_meta"}
    for key in ("anchor", "positive"):
        raw, statistics = batch[key].double(), batch[f"{key}_norm_meta"]["fov"].double()
        mean, std = statistics[:, :, 0, None, None, None], statistics[:, :, 1, None, None, None]
        expected = ((raw - mean) / std).flip(-1)[..., 4:12, 4:12]
        torch.testing.assert_close(out[key][:, 0].double(), expected[:, 0], rtol=1e-4, atol=1e-4)
        assert out[key].dtype == torch.float32
        assert not out[key][:, 1].any()


def test_a_bare_tensor_passes_through(shards):
    data = in_stage(ready(shards), training=True)
    x = torch.rand(2, 2, 3, 16, 16)
    assert data.on_after_batch_transfer(x, 0) is x


def test_channel_dropout_integration(shards):
    data = ready(shards, channel_dropout_channels=[1], channel_dropout_prob=1.0)
    batch = next(iter(data.train_dataloader()))
    assert batch["anchor"][:, 1].any()
    trained = in_stage(data, training=True).on_after_batch_transfer(batch, 0)
    evaluated = in_stage(data, training=False).on_after_batch_transfer(batch, 0)
    for key in ("anchor", "positive"):
        assert not trained[key][:, 1].any()
        assert torch.equal(trained[key][:, 0], batch[key][:, 0].float())
        assert torch.equal(evaluated[key], batch[key].float())


def test_negatives_come_when_asked_for_and_keep_their_channels(shards):
    data = in_stage(ready(shards, return_negative=True, channel_dropout_prob=1.0), training=True)
    for batch in data.train_dataloader():
        for anchor, negative in zip(batch["anchor_meta"], batch["negative_meta"], strict=True):
            assert anchor["experiment"] == negative["experiment"]
            assert anchor["lineage"] != negative["lineage"]
    assert data.on_after_batch_transfer(batch, 0)["negative"][:, 1].any()


def test_default_channel_dropout_does_nothing_to_a_single_channel(single_channel):
    data = in_stage(ready(single_channel, val_experiments=["e1"], channel_dropout_prob=1.0), training=True)
    batch = next(iter(data.train_dataloader()))
    assert batch["anchor"].shape == (8, 1, 3, 16, 16)
    assert batch["anchor"].dtype == torch.uint16
    out = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(out["anchor"], batch["anchor"].float())


def test_narrower_patches_are_the_middle_of_the_stored_ones(shards):
    whole, narrow = ready(shards), ready(shards, z_range=(1, 3), yx_patch_size=(10, 7))
    for a, b in zip(whole.val_dataloader(), narrow.val_dataloader(), strict=True):
        assert torch.equal(b["anchor"], a["anchor"][:, :, 1:3, 3:13, 5:12])
        assert torch.equal(b["positive"], a["positive"][:, :, 1:3, 3:13, 5:12])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_experiments": ["e2", "e9"]}, r"val_experiments names \['e9'\].*They hold \['e0', 'e1', 'e2', 'e3'\]"),
        ({"val_experiments": ["e0", "e1", "e2", "e3"]}, "holds out every experiment .* none is left to train on"),
        ({"z_range": (1, 4)}, r"z_range=\(1, 4\) is not within the stored slices \(0, 3\)"),
        ({"yx_patch_size": (17, 16)}, r"yx_patch_size=\(17, 16\) is larger than the stored patches \(16, 16\)"),
        ({"yx_patch_size": (12, 12), "final_yx_patch_size": (13, 12)}, r"final_yx_patch_size=\(13, 12\) is larger"),
        ({"tau_range": (0.5, 2.0)}, r"tau_range: 1…4 frames .* its shards hold positives at 1…3 frames"),
        ({"include_wells": ["C/1"]}, r"include_wells names \['C/1'\], which no experiment has. Known: \['A/1', 'B"),
        ({"exclude_fovs": ["A/1/7"]}, r"exclude_fovs names \['A/1/7'\], which no experiment has"),
        ({"experiment_weights": {"e5": 1.0}}, r"experiment_weights names \['e5'\].*'e0', 'e1'"),
        ({"batch_size": 0}, "batch_size=0 must be >= 1"),
    ],
)  # fmt: skip
def test_setup_refuses(shards, options, message):
    with pytest.raises(ValueError, match=message):
        ready(shards, **options)


def shapes_of(loader, key="anchor_meta") -> list[tuple[set[str], tuple[int, ...]]]:
    return [({meta["experiment"] for meta in batch[key]}, tuple(batch["anchor"].shape)) for batch in loader]


CHANNELS = {"e0": 2, "e1": 1, "e2": 3}


@pytest.mark.parametrize("streaming", [{}, {"window_bytes": 1 << 27, "num_streams": 1}], ids=["exact", "streaming"])
def test_experiments_of_other_shapes_train_in_batches_of_their_own(mixed_channels, streaming):
    data = ready(mixed_channels, val_experiments=["e1"], **streaming)
    found = shapes_of(data.train_dataloader())
    assert {tuple(names) for names, _ in found} == {("e0",), ("e2",)}
    assert all(shape == (8, CHANNELS[next(iter(names))], 3, 16, 16) for names, shape in found)
    for batch in data.train_dataloader():
        assert batch["anchor_norm_meta"]["fov"].shape[1] == batch["anchor"].shape[1]


@pytest.mark.parametrize("ranks", [1, 2])
def test_sequential_batches_break_where_the_shape_changes_and_lose_nothing(mixed_channels, ranks):
    data = make(mixed_channels, val_experiments=["e0", "e1"], batch_size=50)
    data.setup()
    for dataset, key in ((data.val_dataset, "anchor_meta"), (data.predict_dataset, "index")):
        parts = [dataset.share(rank, ranks, 50) for rank in range(ranks)]
        loaders = [ThreadDataLoader(part, batch_size=50) for part in parts]
        batches = [batch for loader in loaders for batch in loader]
        for names, shape in shapes_of(batches, key):
            assert {CHANNELS[name] for name in names} == {shape[1]}
        seen = [o for batch in batches for o in batch[key].observations.tolist()]
        assert sorted(seen) == sorted(data.shard_set.arrays["patch_obs"][dataset.table.anchor].tolist())
        assert len(batches) == sum(len(loader) for loader in loaders)
        assert abs(len(loaders[0]) - len(loaders[-1])) <= 1


@pytest.mark.parametrize(
    ("kinds", "batches"),
    [
        ("aaaaa", ["aa", "aa", "a"]),
        ("abaab", ["a", "b", "aa", "b"]),
        ("bbba", ["bb", "b", "a"]),
        ("", []),
    ],
)
def test_a_run_of_a_batch_is_split_by_kind(kinds, batches):
    places = keep_apart(np.array([ord(kind) for kind in kinds], np.int64), 2)
    runs = [places[at : at + 2] for at in range(0, len(places), 2)]
    assert ["".join(kinds[place] for place in run if place >= 0) for run in runs] == batches
    assert sorted(places[places >= 0].tolist()) == list(range(len(kinds)))


@pytest.mark.parametrize("options", [{"leaky": 0.25}, {"experiment_aware": False}])
def test_batches_that_would_mix_shapes_are_refused(mixed_channels, options):
    message = r"mix patches of different shapes .*\(2, 3, 16, 16\): \['e0'\], \(1, 3, 16, 16\): \['e1'\].*leaky=0"
    with pytest.raises(ValueError, match=message):
        ready(mixed_channels, val_experiments=["e2"], **options)
    ready(mixed_channels, val_experiments=["e1", "e2"], **options)


def test_batches_of_a_group_that_would_mix_shapes_are_refused(mixed_channels):
    with pytest.raises(ValueError, match=r"mix patches of different shapes .*batch_group_by=\['experiment'\]"):
        ready(mixed_channels, val_experiments=["e2"], batch_group_by=["condition"])


@pytest.mark.parametrize("window_bytes", [None, 1 << 27])
def test_groups_and_strata_are_of_any_labels(shards, window_bytes):
    options = {"batch_group_by": ["condition"], "stratify_by": ["experiment"], "val_experiments": ["e2", "e3"]}
    data = ready(shards, **options, window_bytes=window_bytes, num_streams=None if window_bytes is None else 1)
    seen = set()
    for loader in (data.train_dataloader(), [next(iter(data.val_dataloader()))]):
        for batch in loader:
            labels = Counter((m["condition"], m["experiment"]) for m in batch["anchor_meta"])
            assert len({condition for condition, _ in labels}) == 1
            assert list(labels.values()) == [4, 4]  # half of the batch from each experiment
            seen |= set(labels)
    assert seen >= {(c, e) for c in ("control", "infected") for e in ("e0", "e1")}


def test_a_label_that_is_not_there_is_named(shards):
    with pytest.raises(
        ValueError, match=r"names \['stain'\], .*Their labels are \['condition', 'experiment', 'well'\]"
    ):
        ready(shards, stratify_by=["stain"])


def test_experiments_of_other_shapes_are_transformed(mixed_channels):
    data = in_stage(ready(mixed_channels, val_experiments=["e2"], channel_dropout_prob=1.0), training=True)
    for batch in data.train_dataloader():
        out = data.on_after_batch_transfer(batch, 0)
        assert not out["anchor"][:, 1:].any()
        assert out["anchor"][:, 0].any()


def test_the_module_and_its_loaders_say_what_they_are_in_a_line(shards):
    data = make(shards, window_bytes=1 << 27, num_streams=1)
    assert repr(data) == (
        f"MultiExperimentDataModule({str(shards)!r}, streaming in 134,217,728 bytes, batches of 8, "
        "2 experiments for validation)"
    )
    data.setup("fit")
    assert repr(data) == (
        f"MultiExperimentDataModule({data.shard_set!r}, 414 anchors for training, streaming in 134,217,728 bytes, "
        "batches of 8, 420 anchors of 2 experiments for validation)"
    )
    train, validation = repr(data.train_dataloader()), repr(data.val_dataloader())
    assert train.startswith("ThreadDataLoader(MultiExperimentTripletDataset(streaming, verify_reads=True, ShardSet(")
    assert train.endswith(f"{len(data.train_dataloader())} batches, planned, 2 threads)")
    assert validation.endswith(f"{len(data.val_dataloader())} batches, sequential, 2 threads)")
    assert "\n" not in train + validation + repr(data)


@pytest.mark.parametrize(("given", "window"), [("150%", 1.5), ("200%", 2.0), (1 << 27, None), ("128MiB", None)])
def test_a_window_may_be_a_share_of_the_bytes_that_training_draws_from(shards, given, window):
    data = ready(shards, window_bytes=given, num_streams=1)
    used = data.train_sampler.index.stored_bytes
    assert data.train_sampler.window_bytes == (1 << 27 if window is None else int(window * used))
    assert data.train_dataset.streaming
    assert f"streaming in {data.train_sampler.window_bytes:,} bytes" in repr(data)


def test_a_share_and_its_bytes_are_one_window_for_a_checkpoint(shards):
    share = ready(shards, window_bytes="150%", num_streams=1)
    share.train_sampler.deliver(3)
    number = share.train_sampler.window_bytes
    again = make(shards, window_bytes=number, num_streams=1)
    again.setup("fit")
    again.load_state_dict(share.state_dict())
    again.train_dataloader()
    rest = [plan.anchor.tolist() for plan in again.train_sampler]
    assert rest == [share.train_sampler.plan(n).anchor.tolist() for n in range(3, share.train_sampler.global_batches)]
    other = make(shards, window_bytes="160%", num_streams=1)
    other.setup("fit")
    other.load_state_dict(share.state_dict())
    with pytest.raises(ValueError, match=f"The checkpoint was written with window_bytes={number}, but window_bytes="):
        other.train_dataloader()


def test_a_window_that_is_no_size_is_refused_when_the_shards_are_opened(shards):
    with pytest.raises(ValueError, match=r"window_bytes='lots' is no size\. Give bytes \(4000000, 512M, 1\.5GiB\)"):
        make(shards, window_bytes="lots").setup("fit")


def test_channel_dropout_is_announced_once_when_training_starts(shards, single_channel, caplog):
    with caplog.at_level("INFO"):
        ready(shards)
    said = [r.message for r in caplog.records if "Channel dropout is on" in r.message]
    assert said == [
        "Channel dropout is on: in training, channels [1] of anchor and positive become 0 with probability 0.5 each, "
        "so that the network learns from the other channels, too. In VisCy it is off; data.channel_dropout_prob: 0.0 "
        "does the same."
    ]
    caplog.clear()
    with caplog.at_level("INFO"):
        ready(shards, channel_dropout_prob=0.0)
        ready(shards, "validate")
        ready(single_channel, val_experiments=["e1"])
    assert not [r for r in caplog.records if "Channel dropout is on" in r.message]


def test_a_divisor_of_zero_is_announced_when_training_starts(shards, tmp_path):
    copied = shutil.copytree(shards, tmp_path / "shards")
    path = find_array(copied, "stats_fov")
    statistics = np.load(path)
    statistics[0, 1, 3] = 0.0  # IQR of channel GFP in the first FOV
    np.save(path, statistics)
    options = {"normalizations": [NormalizeSampled(level="fov", divisor="iqr")], "verify_reads": False}
    with pytest.warns(UserWarning, match="channel 'GFP' of experiment 'e0'"):
        ready(copied, **options)


def test_loaders_before_setup_say_so(shards):
    with pytest.raises(RuntimeError, match=r"Call setup\('fit'\) before train_dataloader"):
        make(shards).train_dataloader()
    with pytest.raises(RuntimeError, match=r"Call setup\('predict'\) before predict_dataloader"):
        make(shards).predict_dataloader()


def test_no_validation_experiment_is_said(shards, caplog):
    data = make(shards, val_experiments=None)
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert "val_experiments is empty: nothing is held out" in caplog.text
    assert data.val_dataloader() == []
    assert {s.experiment for s in data.train_sampler.index.strata} == {"e0", "e1", "e2", "e3"}


def test_validation_with_nothing_held_out_is_an_error(shards):
    with pytest.raises(
        ValueError, match=r"val_experiments is empty: .* which holds \['e0', 'e1', 'e2', 'e3'\]: --data"
    ):
        ready(shards, "validate", val_experiments=None)


def test_held_out_experiments_without_an_anchor_are_an_error(shards):
    wells = {"include_wells": ["A/1"], "exclude_fovs": ["A/1/0", "A/1/1"]}
    with pytest.raises(
        ValueError, match=r"val_experiments=\['e2', 'e3'\] holds out no experiment .*: nothing to validate"
    ):
        ready(shards, "validate", **wells)


def test_prediction_of_chosen_experiments_and_of_nothing(shards):
    data = ready(shards, "predict", predict_experiments=["e2"], predict_limit=7)
    rows = [row for batch in data.predict_dataloader() for row in batch["index"]]
    assert [row["experiment"] for row in rows] == ["e2"] * 7
    with pytest.raises(ValueError, match=r"predict_experiments names \['e9'\]"):
        ready(shards, "predict", predict_experiments=["e9"])
    nothing = {"include_wells": ["A/1"], "exclude_fovs": ["A/1/0", "A/1/1"]}
    with pytest.raises(ValueError, match=r"Nothing to predict: no cell of .* is in predict_experiments=\['e2'\]"):
        ready(shards, "predict", predict_experiments=["e2"], **nothing)


def test_wells_and_fovs_are_filtered_in_every_split(shards):
    data = ready(shards, None, include_wells=["A/1"], exclude_fovs=["A/1/1"])
    for loader, key in (
        (data.train_dataloader(), "anchor_meta"),
        (data.val_dataloader(), "anchor_meta"),
        (data.predict_dataloader(), "index"),
    ):
        assert {meta["fov_name"] for batch in loader for meta in batch[key]} == {"A/1/0"}


def test_shards_are_read_into_the_page_cache_up_to_the_budget(shards):
    data = ready(shards)
    index, total = data.train_sampler.index, sum(s.bytes for s in data.shard_set.manifest.shards)
    block = data.shard_set.arrays["block_end"] - data.shard_set.arrays["block_begin"]
    assert data.train_dataset.warm(index, int(block[:2].sum()) + 10) == block[:2].sum()
    assert 0 < data.train_dataset.warm(index, total) < total  # the blocks of held-out experiments are left alone
    ready(shards, cache_pool_bytes=1 << 20)


def test_prediction_reads_every_observation_once(shards):
    data = ready(shards, "predict", batch_size=50)
    expected = ShardSet.open(shards).arrays
    rows = [row for batch in data.predict_dataloader() for row in batch["index"]]
    assert [row["observation"] for row in rows] == list(range(len(expected["obs_t"])))
    assert [row["t"] for row in rows] == expected["obs_t"].tolist()
    assert set(rows[0]) >= {"experiment", "condition", "well", "fov_name", "track_id", "t", "id", "hpi", "y", "x"}
    assert all(set(batch) == {"anchor", "anchor_norm_meta", "index"} for batch in data.predict_dataloader())


@pytest.mark.parametrize("num_workers", [2])
def test_predict_with_a_trainer_reads_every_observation_once(shards, tmp_path, num_workers):
    data = make(shards, batch_size=50, num_workers=num_workers)
    batches = trainer(tmp_path).predict(Recorder(), datamodule=data)
    rows = [row["observation"] for _, index in batches for row in index]
    assert rows == list(range(len(data.shard_set.arrays["obs_t"])))
    assert {size for size, _ in batches[:-1]} == {50}


def test_embeddings_say_the_lineage_and_every_label(shards, tmp_path):
    class Mean(LightningModule):
        def predict_step(self, batch, _batch_idx):
            mean = batch["anchor"].mean((2, 3, 4))
            return {"index": batch["index"], "features": mean, "projections": mean}

    path = tmp_path / "embeddings.parquet"
    data = make(shards, batch_size=200, num_workers=0)
    trainer(tmp_path, callbacks=[EmbeddingWriter(str(path))]).predict(Mean(), datamodule=data, return_predictions=False)
    found = pq.read_table(path)
    want = pq.read_table(find_index(shards) / "observations.parquet")
    labels = [label.name for label in data.shard_set.manifest.labels]
    assert {"lineage_id", "experiment", "condition", "well", *labels} <= set(found.column_names)
    for name in ("lineage_id", "global_track_id", *labels):
        assert found[name].to_pylist() == want[name].to_pylist(), name
    assert found.schema.field("lineage_id").type == pa.string()


def test_validate_with_a_trainer_sees_every_anchor_once(shards, tmp_path):
    data, model = make(shards), Recorder()
    trainer(tmp_path).validate(model, datamodule=data, verbose=False)
    assert model.validated == data.val_dataset.shards.arrays["patch_obs"][data.val_dataset.table.anchor].tolist()
    assert max(Counter(model.validated).values()) == 1


def test_every_epoch_has_its_own_order(shards, tmp_path):
    data, model = make(shards), Recorder()
    trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(model, datamodule=data)
    per_epoch = len(data.train_sampler)
    assert len(model.trained) == 2 * per_epoch
    assert model.trained[:per_epoch] != model.trained[per_epoch:]
    sampler = FlexibleBatchSampler(data.train_sampler.index, data.sampling)
    obs = data.shard_set.arrays["patch_obs"]
    for epoch in range(2):
        sampler.set_epoch(epoch)
        planned = [obs[plan.anchor].tolist() for plan in sampler]
        assert model.trained[epoch * per_epoch : (epoch + 1) * per_epoch] == planned


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # it holds what is gone on from
@pytest.mark.parametrize(("step", "num_workers"), [(3, 2), (-1, 0)])
def test_a_checkpoint_in_mid_epoch_goes_on_with_exactly_what_remains(shards, tmp_path, step, num_workers):
    data, whole = make(shards, num_workers=num_workers, batch_size=40), Recorder()

    def saving() -> Trainer:
        each = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        return trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[each])

    saving().fit(whole, datamodule=data)
    per_epoch = len(data.train_sampler)
    step %= per_epoch  # -1: one batch is left
    rest, again = Recorder(), make(shards, num_workers=num_workers, batch_size=40)
    saving().fit(rest, datamodule=again, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert rest.trained == whole.trained[step:]
    assert sorted(rest.validated) == sorted(whole.validated)


def test_a_checkpoint_of_another_seed_is_refused(shards):
    data = ready(shards, seed=1)
    data.load_state_dict(ready(shards, seed=0).state_dict())
    with pytest.raises(ValueError, match="written with seed=0, but seed=1"):
        data.train_dataloader()


def test_a_second_sampler_of_lightning_is_refused(shards):
    data = make(shards)
    data.trainer = one_of_two(0, use_distributed_sampler=True)
    with pytest.raises(ValueError, match=r"world size of 2. Pass Trainer\(use_distributed_sampler=False\)"):
        data.setup("fit")


def test_ranks_share_training_and_validation(shards):
    parts = []
    for rank in range(2):
        data = make(shards)
        data.trainer = one_of_two(rank, use_distributed_sampler=False)
        data.setup("fit")
        parts.append((observations(data.train_dataloader()), observations(data.val_dataloader())))
    whole = ready(shards)
    trained = observations(whole.train_dataloader())
    assert len(parts[0][0]) == len(parts[1][0]) == len(trained) // 2
    assert [b for pair in zip(parts[0][0], parts[1][0], strict=True) for b in pair] == trained[: len(trained) // 2 * 2]
    flat = [sorted(o for batch in part[1] for o in batch) for part in parts]
    assert sorted(flat[0] + flat[1]) == sorted(o for batch in observations(whole.val_dataloader()) for o in batch)


@pytest.mark.slow
def test_prepare_data_builds_when_absent_and_does_nothing_when_up_to_date(collection, tmp_path, capfd):
    document = yaml.safe_load(collection.read_text())
    document["experiments"] = document["experiments"][:1]
    document["shards"] = {"yx_patch_size": [16, 16]}
    for entry in document["experiments"]:
        entry["data_path"] = str(collection.parent / entry["data_path"])
        entry["tracks_path"] = str(collection.parent / entry["tracks_path"])
    path, out = tmp_path / "experiments.yaml", tmp_path / "shards"
    path.write_text(yaml.safe_dump(document))
    make(out, experiments_yaml=str(path), z_range=(0, 2)).prepare_data()
    built = ShardSet.open(out)
    assert (built.manifest.tau_range_hours, built.z_range) == ((0.5, 1.5), (0, 2))
    stamp = (out / "manifest.json").stat().st_mtime_ns
    capfd.readouterr()
    for narrower in ({"z_range": (1, 2), "tau_range": (0.5, 1.0)}, {}):
        make(out, experiments_yaml=str(path), **narrower).prepare_data()
        assert "up to date, nothing to do" in "".join(capfd.readouterr())
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.warns(UserWarning, match="held another config than .*, and were built again"):
        make(out, experiments_yaml=str(path), z_range=(0, 3)).prepare_data()
    assert ShardSet.open(out).z_range == (0, 3)


def test_prepare_data_without_a_yaml_builds_nothing(tmp_path):
    make(tmp_path / "none").prepare_data()
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError, match=r"there is no manifest.json. Build the shards with `dynaclr-wds build"):
        ready(tmp_path / "none")


def test_prepare_data_says_what_it_cannot_build_from(tmp_path, capfd):
    with pytest.raises(FileNotFoundError, match=r"experiments_yaml='nowhere.yaml': there is no such file"):
        make(tmp_path / "out", experiments_yaml="nowhere.yaml").prepare_data()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("experiments: []")
    with pytest.raises(RuntimeError, match=r"ended with status 2; what it printed says why"):
        make(tmp_path / "out", experiments_yaml=str(wrong)).prepare_data()
    assert "experiments" in capfd.readouterr().err


def test_prepare_data_does_not_replace_a_set_of_other_experiments(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is to be run"))
    other = tmp_path / "other.yaml"
    other.write_text("experiments: [{name: z}]")
    with pytest.raises(ValueError, match=r"hold the experiments \['e0', .*lists \['z'\]: none in common"):
        make(shards, experiments_yaml=str(other)).prepare_data()


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the real collection is not beside this checkout")
def test_real_plates_train_for_two_epochs(tmp_path):
    build(REAL, tmp_path / "shards", yx_patch_size=[96, 96], z_range=[0, 1])
    manifest = ShardSet.open(tmp_path / "shards").manifest
    assert {e.name for e in manifest.experiments} == {"ecoli_colony", "hacat_fucci", "mda231_qpi"}
    data = MultiExperimentDataModule(
        shards=str(tmp_path / "shards"),
        val_experiments=["mda231_qpi"],
        batch_size=32,
        normalizations=[NormalizeSampled(level="timepoint", subtrahend="median", divisor="iqr")],
        augmentations=[RandomHorizontalFlip()],
        final_yx_patch_size=(64, 64),
    )
    model = Recorder()
    trainer(tmp_path, max_epochs=2).fit(model, datamodule=data)
    anchors = {p.labels["experiment"]: p.with_candidate for p in manifest.partitions}
    assert len(model.trained) == 2 * sum(max(anchors[e] // 32, 1) for e in ("ecoli_colony", "hacat_fucci"))
    assert Counter(model.validated) == dict.fromkeys(model.validated, 2)
    assert len(set(model.validated)) == anchors["mda231_qpi"] > 100
    assert model.shapes == {(1, 1, 64, 64)}
    assert np.isfinite(model.scale.item())
