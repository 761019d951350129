"""Laws of `preview`: it shows the batches of the training, transformed as there, and counts what is in them."""

from __future__ import annotations

import base64
import dataclasses
import io
import logging
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from kornia.augmentation import RandomAffine
from lightning.pytorch import LightningModule, Trainer
from matplotlib.image import imread
from torch import nn

from dynaclr_wds import MultiExperimentDataModule
from dynaclr_wds import __main__ as command
from dynaclr_wds.commands.preview import split_options
from dynaclr_wds.commands.previewing import Asked, format_preview, preview, preview_data, write_report
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.preview.company import Company, choose_samples
from dynaclr_wds.preview.configured import make_data
from dynaclr_wds.preview.findings import list_findings
from dynaclr_wds.preview.look import Chosen, SeenBatch, attach_trainer, look_at, take_samples
from dynaclr_wds.preview.pixels import measure_brightness, measure_filled
from dynaclr_wds.transforms import BatchTransform, NormalizeSampled, RandomNoise
from tests.test_pages import Tags

CONFIGS = Path(__file__).parent.parent / "configs"
OPTIONS = {"tau_range": (0.5, 1.5), "batch_size": 8, "val_experiments": ["e2", "e3"], "final_yx_patch_size": (12, 12)}
NORMALIZE = "dynaclr_wds.transforms.NormalizeSampled"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dynaclr-wds"])
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def make(shards: Path, **options: object) -> MultiExperimentDataModule:
    normalizations = [NormalizeSampled(level="fov", subtrahend="mean", divisor="std")]
    return MultiExperimentDataModule(
        shards=str(shards), **{**OPTIONS, "normalizations": normalizations, "num_workers": 1, **options}
    )


def look(data: MultiExperimentDataModule, **chosen: int) -> list[SeenBatch]:
    attach_trainer(data, chosen.get("epoch", 0))
    data.setup("fit")
    return list(look_at(data, Chosen(**chosen)))


def name(batch: SeenBatch) -> list[tuple[str, str]]:
    return [(str(anchor["name"]), str(positive["name"])) for anchor, positive in batch.names]


class Recorder(LightningModule):
    """Keeps what the network is given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.given: list[tuple[list[str], np.ndarray]] = []

    def training_step(self, batch, _):
        both = torch.stack([batch["anchor"], batch["positive"]], 1)
        self.given.append(([one["name"] for one in batch["anchor_meta"]], both.numpy().copy()))
        return self.scale * both.mean()

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_what_is_shown_is_what_a_training_step_gets(shards: Path) -> None:
    """In the second epoch, from its second batch on; without augmentations there is nothing to draw anew."""
    model, data = Recorder(), make(shards, channel_dropout_prob=0.0)
    trainer = Trainer(
        max_epochs=2,
        limit_train_batches=3,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, data)
    shown = look(make(shards, channel_dropout_prob=0.0), epoch=1, first=1, batches=2, samples=8)
    assert len(model.given) == 6
    for batch, (names, pixels) in zip(shown, model.given[4:], strict=True):
        assert [anchor["name"] for anchor, _ in batch.names] == names
        np.testing.assert_array_equal(np.stack([one.seen for one in batch.samples]), pixels)
        np.testing.assert_array_equal(np.stack([one.plain for one in batch.samples]), pixels)


def test_augmented_views_are_drawn_by_the_seed_and_leave_the_plain_ones_as_they_are(shards: Path) -> None:
    plain = look(make(shards, channel_dropout_prob=0.0), batches=1)[0]
    noise = {"augmentations": [RandomNoise(std=(0.5, 0.5), p=1.0)], "channel_dropout_prob": 0.0}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (look(make(shards, **noise), batches=1)[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for known, one, other in zip(plain.samples, first.samples, again.samples, strict=True):
        np.testing.assert_array_equal(one.plain, known.plain)
        np.testing.assert_array_equal(one.seen, other.seen)
        assert 0.4 < float((one.seen - one.plain).std()) < 0.6
        assert not np.array_equal(one.seen[0] - one.plain[0], one.seen[1] - one.plain[1])


def test_dropped_channels_are_seen_as_such_and_counted(shards: Path) -> None:
    (batch,) = look(make(shards, channel_dropout_prob=1.0), batches=1)
    assert batch.channels in (("Phase", "GFP"), ("GFP", "Phase"))
    assert (batch.plain.constant.tolist(), batch.seen.constant.tolist()) == ([0, 0], [0, 16])
    assert ("good", f"{batch.channels[1]}: dropped in 16 of 16 patches, as channel_dropout_prob=1 asks.") in (
        list_findings([batch])
    )


@pytest.mark.parametrize(
    "options", [{}, {"window_bytes": "4M", "num_streams": 1, "relax_lineages": True}], ids=["exact", "streaming"]
)
def test_a_batch_is_the_same_wherever_the_look_begins(shards: Path, options: dict[str, object]) -> None:
    all_of_them = look(make(shards, **options), batches=3, samples=2)
    (third,) = look(make(shards, **options), first=2, batches=1, samples=2)
    assert third.company.number == all_of_them[2].company.number == 2
    assert name(third) == name(all_of_them[2])
    np.testing.assert_array_equal(third.samples[1].seen, all_of_them[2].samples[1].seen)


def test_large_batches_are_augmented_in_part(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = look(make(shards), batches=1, samples=3)[0]
    monkeypatch.setattr("dynaclr_wds.preview.look._MOST_BYTES", 4 * 4 * 2 * 3 * 16 * 16)  # four anchors of 16 x 16
    (part,) = look(make(shards), batches=1, samples=3)
    assert (whole.augmented, part.augmented) == (8, 4)
    assert (whole.seen.patches, part.seen.patches) == (16, 8)
    assert name(part) == name(whole)
    for one, other in zip(part.samples, whole.samples, strict=True):
        np.testing.assert_array_equal(one.plain, other.plain)


def test_who_shares_a_batch_is_counted_from_the_cells(shards: Path) -> None:
    found = preview_data(
        make(shards, batch_size=12, leaky=0.25, condition_ratio={"control": 2.0, "infected": 1.0}), Chosen()
    )
    for batch in found.batches:
        company, anchors = batch.company, [anchor for anchor, _ in batch.names]
        counted = Counter(f"{one['experiment']}/{one['condition']}" for one in anchors)
        assert {part.name: part.samples for part in company.parts} == counted
        assert sum(one["experiment"] == company.group for one in anchors) == 9
        for place, part in enumerate(company.parts):
            own = [one for one in anchors if f"{one['experiment']}/{one['condition']}" == part.name]
            hours = sorted(one["hpi"] for one in own)
            assert part.lineages == len({one["lineage"] for one in own})
            assert part.fovs == len({one["fov_name"] for one in own})
            assert (part.hpi[0], part.hpi[2]) == pytest.approx((hours[0], hours[-1]))
            assert (company.part_of == place).sum() == len(own)
        lineages = Counter(one["lineage"] for one in anchors)
        assert company.meet.tolist() == [lineages[one["lineage"]] > 1 for one in anchors]
        taus = Counter(round(positive["hpi"] - anchor["hpi"], 6) for anchor, positive in batch.names)
        assert company.tau_hours == pytest.approx(dict(taus))
        asked = {one.name.partition(" in ")[0]: (one.asked, one.mean) for one in company.asked}
        assert asked["leak"] == (0.25, 0.25)
        assert asked["condition control"][0] == pytest.approx(2 / 3)


def test_samples_of_every_part_are_shown() -> None:
    assert choose_samples(np.array([0, 0, 0, 0, 1, 0, 2]), 4).tolist() == [0, 1, 4, 6]
    assert choose_samples(np.array([1, 1]), 4).tolist() == [0, 1]


def test_samples_are_taken_with_all_that_belongs_to_them(shards: Path) -> None:
    data = make(shards, channels_per_sample=1, z_reduction={"default": "center"})
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    some = take_samples(batch, np.array([1, 5]))
    assert some.keys() == batch.keys()
    assert [one["name"] for one in some["anchor_meta"]] == [batch["anchor_meta"][n]["name"] for n in (1, 5)]
    for part in ("anchor", "positive"):
        torch.testing.assert_close(some[part], batch[part][[1, 5]])
        for level, values in batch[f"{part}_norm_meta"].items():
            torch.testing.assert_close(some[f"{part}_norm_meta"][level], values[[1, 5]])
        torch.testing.assert_close(some[f"{part}_channel_meta"]["mip"], batch[f"{part}_channel_meta"]["mip"][[1, 5]])


def test_brightness_is_that_of_the_pixels() -> None:
    x = torch.zeros(4, 2, 1, 2, 3)
    x[:2, 0] = torch.arange(6.0).reshape(1, 2, 3)
    x[2, 0] = torch.tensor([[1.0, 2, 3], [4, 5, float("nan")]])
    x[:, 1] = 7
    found = measure_brightness(x[:1], x[1:])
    assert (found.patches, found.constant.tolist(), found.not_finite.tolist()) == (4, [1, 4], [1, 0])
    assert found.mean.tolist() == pytest.approx([45 / 23, 7])
    assert found.quantiles[1].tolist() == [7] * 5


def batch_of(before: torch.Tensor, after: torch.Tensor) -> SeenBatch:
    company = Company(
        number=0,
        group="",
        focal_hpi=float("nan"),
        parts=(),
        hpi=np.zeros(0),
        part_of=np.zeros(0, np.int64),
        asked=(),
        meet=np.zeros(0, bool),
        lineages=0,
        tau_hours={},
    )
    plain, seen = measure_brightness(before), measure_brightness(after)
    shown = {"samples": (), "names": (), "plain": plain, "seen": seen, "filled": 0.0, "augmented": len(before)}
    return SeenBatch(company=company, channels=("c0",), dropout={}, **shown)


def test_what_is_wrong_with_pixels_is_said_with_its_cure() -> None:
    good = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 1, 1, 8, 8)).astype(np.float32))
    said = {
        "all is well": (good, good),
        "NaN before": (torch.full_like(good, float("nan")), good),
        "NaN after": (good, torch.where(good > 2, torch.inf, good)),
        "empty": (good * 0 + 3, good),
        "flattened": (good, good * 0),
        "raw": (good * 100 + 2000, good * 100 + 2000),
    }
    found = {name: list_findings([batch_of(*parts)]) for name, parts in said.items()}
    levels = {name: [level for level, _ in sentences] for name, sentences in found.items()}
    assert levels == {
        "all is well": ["good"],
        "NaN before": ["bad"],
        "NaN after": ["bad"],
        "empty": ["bad"],
        "flattened": ["bad"],
        "raw": ["fair"],
    }
    first = {name: sentences[0][1] for name, sentences in found.items()}
    assert first["NaN before"].startswith("c0: 4 of 4 patches have pixels that are NaN or infinite. Look at the normal")
    assert "which the augmentations make" in first["NaN after"]
    assert first["empty"].startswith("c0: 4 of 4 patches hold one value only. Look at this channel of the plates")
    assert first["flattened"] == "c0: the augmentations leave one value only in 4 of 4 patches. Make them weaker."
    assert "Give data.normalizations" in first["raw"]
    ((level, corners),) = list_findings([dataclasses.replace(batch_of(good, good), filled=0.25)])
    assert level == "fair"
    turned = [dataclasses.replace(batch_of(good, good), channels=(name,), filled=0.25) for name in ("Phase", "GFP")]
    assert len(list_findings(turned)) == 1  # of all batches together, whatever their channels
    assert corners.startswith("25.0% of the pixels that the network sees lie outside what was read: patches that are")


def test_empty_corners_are_measured_whatever_noise_lies_over_them() -> None:
    patches, crop = torch.zeros(3, 2, 1, 64, 64, dtype=torch.uint16), (None, 44, 44)
    turn = RandomAffine(degrees=(45.0, 45.0), p=1.0)
    for size, share in (((None, None, None), 0.172), (crop, 0.0)):
        made = BatchTransform(augmentations=[turn, RandomNoise(std=(1.0, 1.0), p=1.0)], final_size=size)
        assert measure_filled(made, patches) == pytest.approx(share, abs=0.02)  # the octagon that both squares hold
    assert measure_filled(BatchTransform(augmentations=[RandomNoise(std=(9.0, 9.0), p=1.0)]), patches) == 0


@pytest.mark.parametrize("name", ["fit.yaml", "fit_3d.yaml", "fit_triplet.yaml", "demo.yaml"])
def test_the_datamodule_is_that_of_the_config(name: str) -> None:
    asked = yaml.safe_load((CONFIGS / name).read_text())["data"]
    data = make_data(CONFIGS / name, None, ["--data.batch_size", "7", "--data.tau_range=[0.25,3]"])
    assert (data.batch_size, tuple(data.tau_range), data.shards) == (7, (0.25, 3.0), asked["shards"])
    plain = {key: value for key, value in asked.items() if isinstance(value, str | bool | int | float)}
    assert {key: getattr(data, key) for key in plain if key != "batch_size"} == {
        key: value for key, value in plain.items() if key != "batch_size"
    }
    for key in ("normalizations", "augmentations"):
        assert [type(one).__name__ for one in getattr(data, key)] == [
            one["class_path"].rpartition(".")[2] for one in asked[key]
        ]


def test_a_seed_orders_batches_anew(shards: Path, tmp_path: Path) -> None:
    config = tmp_path / "fit.yaml"
    config.write_text(yaml.safe_dump({"data": {"shards": str(shards), "batch_size": 8, "tau_range": [0.5, 1.5]}}))
    first, same, other = (name(preview(Asked(config=config, batches=1, seed=seed)).batches[0]) for seed in (None, 0, 1))
    assert first == same != other


def test_options_of_the_data_are_told_from_our_own() -> None:
    given = ["s", "--data.batch_size", "8", "--html", "x", "--data.leaky=0.5", "--data.seed", "-1", "--epoch", "2"]
    ours, options = split_options(given)
    assert ours == ["s", "--html", "x", "--epoch", "2"]
    assert options == ["--data.batch_size", "8", "--data.leaky=0.5", "--data.seed", "-1"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    try:
        status = command.main(["preview", *argv])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    return (status, *capsys.readouterr())


@pytest.fixture
def config(shards: Path, tmp_path: Path) -> Path:
    data = {**OPTIONS, "shards": str(shards), "normalizations": [{"class_path": NORMALIZE}]}
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump({"data": {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}}))
    return path


def test_the_command_shows_batches_the_epoch_and_a_page(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "preview.html"
    options = ["--batches", "2", "--from", "2", "--epoch", "2", "--samples", "3", "--html", str(page)]
    status, out, err = run(capsys, "-c", str(config), *options)
    assert status == 0, err
    assert f"Wrote {page} ({page.stat().st_size:,} bytes): open it in a browser." in err
    lines = out.splitlines()
    assert [line[:7] for line in lines if line.startswith("Batch ")] == ["Batch 2", "Batch 3"]
    assert "experiment and condition" in out
    assert "How well batches are mixed" in out
    assert "Shares of a batch, as asked and as planned" in out
    assert "Anchors of each experiment and condition" in out
    assert any(line.startswith("good: All pixels are finite") for line in lines)
    tags = Tags(page.read_text()).found
    pictures = [attributes["alt"] for tag, attributes in tags if tag == "img"]
    assert len([alt for alt in pictures if alt.endswith(": anchor as seen")]) == 2 * 3
    assert len(pictures) == 2 * (3 * 4 + 1) + 2 * len({tuple(sorted(("Phase", "GFP")))}) * (1 if _one_order(out) else 2)
    assert f"--html {page}" in page.read_text().rpartition("<footer>")[2]
    assert run(capsys, "-c", str(config), *options)[2].startswith(f"error: {page}: is there already. Give another name")


def test_stacks_are_shown_by_their_middle_slice_and_it_is_said(shards: Path, tmp_path: Path) -> None:
    options = ["--data.batch_size=8", "--data.tau_range=[0.5,1.5]", "--data.channel_dropout_prob=1"]
    data = make_data(CONFIGS / "fit_3d.yaml", str(shards), options)
    found = preview_data(data, Chosen(batches=3, samples=1))
    write_report(found, tmp_path / "page.html", "a test")
    page = (tmp_path / "page.html").read_text()
    assert page.count("Of a stack of 3 slices the middle one is shown. A channel that is one grey was dropped") == 3
    assert sum("lie outside what was read" in words for _, words in found.findings) == 1  # of all batches together
    pictures = [a["src"] or "" for tag, a in Tags(page).found if tag == "img" and (a["alt"] or "").endswith(": anchor")]
    for source, batch in zip(pictures, found.batches, strict=True):
        shown = imread(io.BytesIO(base64.b64decode(source.partition(",")[2])), format="png")[..., 0]
        stack = batch.samples[0].plain[0]  # channels lie one below the other
        alike = [np.corrcoef(shown[:16].ravel(), stack[0, z].ravel())[0, 1] for z in range(3)]
        assert int(np.argmax(alike)) == 1
        assert alike[1] > 0.99


def _one_order(out: str) -> bool:
    """Whether both batches are of experiments with the same order of channels."""
    rows = [
        line.split() for line in out.splitlines() if line.strip().startswith(("2 Phase", "2 GFP", "3 Phase", "3 GFP"))
    ]
    return rows[0][1] == rows[2][1]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "error: no config, and no shards. Name the folder that `dynaclr-wds build` wrote: preview SHARDS."),
        (
            ("-c", "none.yaml"),
            "error: there is no config none.yaml. `dynaclr-wds init experiments.yaml` writes configs/",
        ),
        (("-c", "CONFIG", "--from", "9000"), "error: Batches 9000 to 9002 are asked for, but an epoch has "),
        (
            ("-c", "CONFIG", "--data.batchsize", "4"),
            "error: there is no option --data.batchsize. Did you mean --data.b",
        ),
        (("-c", "CONFIG", "--data.batch_size", "x"), "error: data.batch_size=x must be a whole number. Correct it."),
        (("-c", "CONFIG", "--batchs", "4"), "error: there is no option --batchs. Did you mean --batches?"),
        (("-c", "CONFIG", "--samples", "0"), "error: argument --samples: 0 must be >= 1."),
        (("-c", "CONFIG", "--data.window_bytes", "1K"), "error: --data.window_bytes 1K (1.0 KiB) is too small."),
        (("-c", "KEY"), "error: KEY: there is no key data.batchsize. Did you mean data.batch_size?"),
        (("-c", "EMPTY"), "error: EMPTY: has no `data:` section. Give the config of a training."),
        (("absent", "-c", "CONFIG"), "error: shards='absent': there is no manifest.json. Build the shards with"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_answered(
    argv: tuple[str, ...],
    says: str,
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(config.parent)
    Path("KEY").write_text("data: {shards: x, batchsize: 3}")
    Path("EMPTY").write_text("model: {}")
    status, out, err = run(capsys, *(word.replace("CONFIG", "fit.yaml") for word in argv))
    assert (status, out) == (2, "")
    assert err.startswith(says)


def test_a_look_needs_a_sampler(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no sampler yet\. Call attach_trainer and setup\('fit'\)"):
        next(look_at(make(shards), Chosen()))


def test_a_large_epoch_is_measured_by_some_of_its_batches(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynaclr_wds.commands.previewing.count_judged", lambda _: 4)
    found = preview_data(make(shards, batch_size=2), Chosen(batches=1, samples=1))
    assert found.modes[0].report.batches < found.sampler.global_batches
    assert f"Measured by {found.modes[0].report.batches} of the {found.sampler.global_batches} batches, " in (
        format_preview(found)
    )
    assert "Anchors of each experiment" not in format_preview(found)
    monkeypatch.setattr("dynaclr_wds.commands.previewing._MOST_MEASURED", 10)
    assert preview_data(make(shards), Chosen(batches=1, samples=1)).modes == ()
    assert dataclasses.replace(found, modes=()).window_hours is None
