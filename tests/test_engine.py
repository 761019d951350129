"""Laws of the engine: what is logged, what each loss is given, what prediction writes."""

import logging
import pathlib
import re
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from dynaclr_wds.errors import StorageError
from dynaclr_wds.train.embeddings import EmbeddingWriter, make_rows
from dynaclr_wds.train.encoder import BACKBONES, MonaiEncoder, ProjectedEncoder
from dynaclr_wds.train.engine import ContrastiveModule, measure_similarity
from dynaclr_wds.train.optimizer import OptimizerSettings, make_optimizer, plan_lr_factor

B = 4


class Flat(nn.Module):
    """A backbone of one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * 8 * 8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


class LazyIndex:
    """Identities that are not a list, as the DataModule gives them."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self):
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> dict[str, object]:
        n = self.numbers[place]
        return {
            "experiment": "a", "condition": "mock", "well": "A/1", "fov_name": "A/1/0",
            "global_track_id": f"a/A/1/0/{n}", "track_id": n, "t": 3, "hpi": 1.5, "id": -1, "parent_track_id": -1,
            "parent_id": -1, "y": 1.0, "x": 2.0, "z": float("nan"),
        }  # fmt: skip


def make_batch(number: int, negative: bool = False) -> dict[str, object]:
    generator = torch.Generator().manual_seed(number)
    lineages = torch.rand(B, 2, 1, 8, 8, generator=generator)
    keys = ("anchor", "positive", "negative") if negative else ("anchor", "positive")
    batch: dict[str, object] = {
        key: lineages + 0.1 * torch.rand(B, 2, 1, 8, 8, generator=generator) for key in keys if key != "negative"
    }
    if negative:
        batch["negative"] = lineages.flip(0)
    batch["index"] = LazyIndex(list(range(number * B, number * B + B)))
    return batch


class Batches(LightningDataModule):
    def __init__(self, count: int = 3, negative: bool = False) -> None:
        super().__init__()
        self.batches = [make_batch(number, negative) for number in range(count)]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)

    val_dataloader = train_dataloader
    predict_dataloader = train_dataloader


def make_trainer(folder: pathlib.Path, **kwargs: object) -> Trainer:
    settings = {
        "accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
        "default_root_dir": folder, "log_every_n_steps": 1,
    }  # fmt: skip
    return Trainer(**settings | kwargs)


def make_module(**kwargs: object) -> ContrastiveModule:
    torch.manual_seed(0)
    return ContrastiveModule(ProjectedEncoder(Flat(), embedding_dim=6, projection_dim=4), **kwargs)


@pytest.fixture(autouse=True)
def _quiet():
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_training_lowers_the_loss_and_logs_metrics_and_pairs(tmp_path):
    module = make_module(lr=0.01)
    trainer = make_trainer(tmp_path, logger=TensorBoardLogger(tmp_path, name="", version=""), max_epochs=8)
    trainer.fit(module, Batches())
    events = EventAccumulator(str(tmp_path)).Reload()
    loss = [event.value for event in events.Scalars("loss/train")]
    assert len(loss) == 8
    assert loss[-1] < loss[0]
    assert {"loss/val", "loss/train_step", "similarity/positive/train", "similarity/negative/val"} <= set(
        events.Tags()["scalars"]
    )
    for stage in ("train", "val"):
        last = events.Images(f"pairs/{stage}")[-1]
        assert (last.width, last.height) == (2 * 338, 44 + B * 164)  # 2 channels × anchor and positive
        assert last.step == trainer.global_step == events.Scalars("loss/train_step")[-1].step + 1  # where curves end


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_triplet_loss_trains_on_the_explicit_negative(tmp_path):
    module = make_module(loss=nn.TripletMarginLoss(), lr=0.01)
    trainer = make_trainer(tmp_path)
    trainer.fit(module, Batches(negative=True))
    assert trainer.callback_metrics["loss/val"].isfinite()
    assert trainer.callback_metrics["similarity/negative/val"] < trainer.callback_metrics["similarity/positive/val"]


def test_triplet_loss_without_negatives_says_what_to_set():
    module = make_module(loss=nn.TripletMarginLoss())
    with pytest.raises(ValueError, match=r"TripletMarginLoss compares with a negative.*data.return_negative: true"):
        module.training_step(make_batch(0), 0)


def test_default_loss_takes_temperature_and_beta():
    module = make_module(temperature=0.2, hcl_beta=1.5)
    assert (module.loss.temperature, module.loss.beta) == (0.2, 1.5)


def test_encoder_that_gives_features_only_is_compared_by_them():
    module = ContrastiveModule(Flat())
    features, projections = module(make_batch(0)["anchor"])
    assert features is projections
    assert features.shape == (B, 6)


@pytest.mark.parametrize("backbone", ["resnet10", "densenet121", "efficientnet-b0"])
def test_monai_encoder_in_2d_takes_planes_as_channels(backbone):
    with torch.device("meta"):  # shapes without the work
        features, projections = MonaiEncoder(backbone, 2, 2, 3, 16, 8)(torch.rand(2, 2, 3, 32, 32))
    assert (features.shape, projections.shape) == ((2, 16), (2, 8))


def test_monai_encoder_in_3d_takes_volumes_of_any_depth():
    for depth in (1, 5):
        with torch.device("meta"):
            features, _ = MonaiEncoder("resnet10", 3, 2, depth, 16, 8)(torch.rand(2, 2, depth, 32, 32))
        assert features.shape == (2, 16)


def test_volumes_lie_channels_last_and_give_the_same():
    torch.manual_seed(0)
    encoder = MonaiEncoder("resnet10", 3, 2, 4, 16, 8).eval()
    weights = [p for p in encoder.backbone.parameters() if p.ndim == 5]
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in weights)
    x = torch.rand(2, 2, 4, 32, 32)
    arranged = encoder(x)[0]
    encoder.backbone.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(encoder(x)[0], arranged)


def test_encoder_errors_name_the_setting():
    with pytest.raises(ValueError, match=r"backbone='vgg' is not one of resnet10, resnet18"):
        MonaiEncoder("vgg")
    with pytest.raises(
        ValueError, match=r"\(channels, planes\) = \(2, 3\), but in_channels, in_stack_depth = \(2, 1\)"
    ):
        MonaiEncoder("resnet10", 2, 2, 1)(torch.rand(2, 2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"shape \(2, 6\), but embedding_dim=7"):
        ProjectedEncoder(Flat(), embedding_dim=7)(torch.rand(2, 2, 1, 8, 8))
    assert "resnet50" in BACKBONES


def test_similarity_by_hand():
    anchor = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    positive = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    result = measure_similarity(anchor, positive)
    assert (result["positive"].item(), result["negative"].item()) == (0.5, 0.5)
    assert measure_similarity(anchor, positive, -anchor)["negative"].item() == -1.0
    assert set(measure_similarity(anchor[:1], positive[:1])) == {"positive"}


def test_lr_rises_straight_then_falls_by_half_a_cosine():
    factors = [plan_lr_factor(step, 2, 6.0) for step in range(7)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)
    assert [plan_lr_factor(step, 0, float("inf")) for step in (0, 9)] == [1.0, 1.0]


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_cosine_schedule_ends_at_0(tmp_path):
    module = make_module(schedule="cosine", warmup_steps=2)
    trainer = make_trainer(tmp_path)
    trainer.fit(module, Batches())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("total", "factors"), [(8.0, [0.5, 1.0]), (16.0, [0.25, 0.5, 0.75, 1.0])])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_below_1_is_a_share_of_all_steps(schedule, total, factors):
    settings = OptimizerSettings(lr=1.0, weight_decay=0.0, schedule=schedule, warmup_steps=0.25)
    (factor,) = make_optimizer(nn.Linear(1, 1), settings, total)["lr_scheduler"]["scheduler"].lr_lambdas
    assert [factor(step) for step in range(len(factors))] == factors
    assert factor(int(total)) == (1.0 if schedule == "constant" else 0.0)


@pytest.mark.parametrize("steps", [-1, 1.5])
def test_a_warm_up_that_is_no_number_of_steps_is_refused(steps):
    with pytest.raises(ValueError, match=r"warmup_steps=.* must be a number of steps, such as 500, or a share"):
        make_module(warmup_steps=steps)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_a_warm_up_longer_than_the_training_is_said(tmp_path, caplog):
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    with caplog.at_level(logging.INFO):
        make_trainer(tmp_path).fit(make_module(schedule="cosine", warmup_steps=500), Batches())
    assert "model.warmup_steps=500 is more than this training has, " in caplog.text


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_cosine_schedule_without_an_end_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, max_epochs=-1)
    with pytest.raises(ValueError, match=r"schedule='cosine' needs to know when training ends"):
        trainer.fit(make_module(schedule="cosine"), Batches())


# prediction


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_prediction_writes_one_row_per_observation_in_order(tmp_path):
    path = tmp_path / "new" / "embeddings.parquet"
    module = make_module().eval()
    trainer = make_trainer(tmp_path, callbacks=[EmbeddingWriter(str(path), row_group_rows=8)])
    trainer.predict(module, Batches(), return_predictions=False)
    table = pq.read_table(path)
    assert table.column_names == [
        "experiment", "condition", "well", "fov_name", "global_track_id", "track_id", "t", "hpi", "id",
        "parent_track_id", "parent_id", "y", "x", "z", "features", "projections",
    ]  # fmt: skip
    assert table["track_id"].to_pylist() == list(range(12))
    assert [pq.ParquetFile(path).metadata.row_group(group).num_rows for group in range(2)] == [8, 4]
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[6]"
    features, projections = module(make_batch(1)["anchor"])
    torch.testing.assert_close(torch.tensor(table["features"].to_pylist()[4:8]), features)
    torch.testing.assert_close(torch.tensor(table["projections"].to_pylist()[4:8]), projections)
    assert [file.name for file in path.parent.iterdir()] == ["embeddings.parquet"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_prediction_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "new" / "embeddings.parquet"
    data = Batches()
    data.batches[2]["index"] = LazyIndex([1])
    trainer = make_trainer(tmp_path, callbacks=[EmbeddingWriter(str(path), row_group_rows=1)])
    with pytest.raises(ValueError, match="1 identities for 4 embeddings"):
        trainer.predict(make_module(), data, return_predictions=False)
    assert list(path.parent.iterdir()) == []


def test_each_rank_writes_its_own_part(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(Trainer, "world_size", 2)
    monkeypatch.setattr(Trainer, "global_rank", 1)
    writer = EmbeddingWriter(str(tmp_path / "embeddings.parquet"))
    module, batch = make_module().eval(), make_batch(0)
    writer.on_predict_start(trainer, module)
    writer.on_predict_batch_end(trainer, module, module.predict_step(batch, 0), batch, 0)
    assert not (tmp_path / "embeddings-rank1.parquet").exists()
    writer.on_predict_end(trainer, module)
    assert [file.name for file in tmp_path.iterdir()] == ["embeddings-rank1.parquet"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_a_table_that_is_there_is_replaced_only_where_that_is_said(tmp_path):
    path, module = tmp_path / "embeddings.parquet", make_module()
    path.write_text("precious")
    trainer = make_trainer(tmp_path, callbacks=[EmbeddingWriter(str(path))])
    with pytest.raises(
        StorageError, match=r"embeddings\.parquet: is there already\. Give another name, or overwrite=True to"
    ):
        trainer.predict(module, Batches(), return_predictions=False)
    assert path.read_text() == "precious"
    writer = EmbeddingWriter(str(path), overwrite=True, metadata='{"made": "here"}')
    make_trainer(tmp_path, callbacks=[writer]).predict(module, Batches(), return_predictions=False)
    assert (writer.rows, writer.schema.names[-1]) == (12, "projections")
    assert pq.read_schema(path).metadata[b"dynaclr_wds"] == b'{"made": "here"}'


@pytest.mark.parametrize(
    ("there", "overwrite"),
    [("embeddings-rank1.parquet", False), ("embeddings-rank2.parquet", True), ("embeddings.parquet", True)],
)
def test_parts_of_another_run_are_not_mixed_with_those_of_this(tmp_path, monkeypatch, there, overwrite):
    (tmp_path / there).touch()
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(Trainer, "world_size", 2)
    writer = EmbeddingWriter(str(tmp_path / "embeddings.parquet"), overwrite=overwrite)
    with pytest.raises(StorageError, match=rf"{there}: there already, and would be read together with the 2 parts"):
        writer.on_predict_start(trainer, make_module())


def test_half_precision_embeddings_are_written_as_float32():
    rows = make_rows(LazyIndex([0, 1]), torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(2, 2, dtype=torch.float16))
    assert rows["features"].to_pylist() == [[1.0, 1.0, 1.0]] * 2
    assert str(rows.schema.field("projections").type) == "fixed_size_list<item: float>[2]"


def test_matrices_are_read_as_the_docs_say(tmp_path, monkeypatch):
    page = (pathlib.Path(__file__).parents[1] / "docs/CHECKPOINTS.md").read_text()
    blocks = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if '"features"' in block]
    assert len(blocks) == 2
    rows = make_rows(LazyIndex([0, 1, 2]), torch.arange(6.0).reshape(3, 2), torch.ones(3, 4))
    pq.write_table(rows, tmp_path / "embeddings.parquet")
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    for block in blocks:
        exec(block, made)
    expected = np.array([[0, 1], [2, 3], [4, 5]], np.float32)
    for matrix in (made["features"], np.concatenate(made["parts"])):
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix, expected)
    (chunk,), (part,) = made["column"].chunks, made["parts"]
    assert part.ctypes.data == chunk.buffers()[-1].address  # the same memory


def test_writer_refuses_empty_row_groups():
    with pytest.raises(ValueError, match=r"row_group_rows=0 must be >= 1"):
        EmbeddingWriter("x.parquet", row_group_rows=0)
