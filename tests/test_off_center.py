"""Cells that a build moved away from the middle of their patch, and that a final crop leaves out, are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from lightning.pytorch import Trainer
from torch import nn

from dynaclr_wds import MultiExperimentDataModule
from dynaclr_wds.errors import FormatError
from dynaclr_wds.plan.audit.verdict import Note, judge_crop
from dynaclr_wds.read.crop import Crop
from dynaclr_wds.read.off_center import count_outside
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.train.engine import ContrastiveModule
from dynaclr_wds.train.plan_verdict import PlanVerdict
from tests.set_files import find_index
from tests.test_build import build, one_cell, one_plate

pytestmark = pytest.mark.usefixtures("without_fsync")

# image 32 x 32, patch 8 x 8: centres lie between 4 and 28. So many pixels is each cell off along y and x.
PLACES = {
    1: (16.0, 16.0),  # 0, 0
    2: (2.9, 16.0),  # −2, 0
    3: (16.0, 30.1),  # 0, 2
    4: (0.0, 31.9),  # −4, 3
    5: (29.0, 16.0),  # 1, 0
    6: (4.0, 28.0),  # 0, 0
}


def shards(root: Path, **options: object) -> ShardSet:
    """A set of all cells, wherever they are in their patch, unless `options` say otherwise."""
    options = options or {"max_border_shift_px": 9999}
    pixels = np.random.default_rng(4).integers(1, 999, (3, 2, 1, 32, 32)).astype("u2")
    rows = [one_cell(t, *place, track) for track, place in PLACES.items() for t in range(3)]
    build(one_plate(root, pixels, rows), root / "out", **options)
    return ShardSet.open(root / "out")


def outside(of: ShardSet, yx: tuple[int, int] | None, **index: object) -> tuple[int, int]:
    """Cells outside, and all: frames 0 and 1 of each track have a positive in the half hour after."""
    return count_outside(of, of.plan_index(["one"], (0.5, 0.5), **index), Crop(z=slice(None), yx=yx))[:2]


@pytest.mark.parametrize(
    ("yx", "cells"),
    [
        (None, []),
        ((8, 8), []),
        ((6, 6), [4]),  # −3 … 2
        ((5, 5), [4]),  # −2 … 2
        ((4, 4), [3, 4]),  # −2 … 1
        ((2, 2), [2, 3, 4, 5]),  # −1 … 0
        ((8, 2), [3, 4]),
        ((2, 8), [2, 4, 5]),
    ],
)
def test_cells_outside_the_crop_are_counted(tmp_path: Path, yx: tuple[int, int] | None, cells: list[int]) -> None:
    of = shards(tmp_path)
    assert outside(of, yx) == (2 * len(cells), 12)
    assert outside(of, yx, channels_per_sample=1) == (2 * len(cells), 12)  # a cell counts once, whatever its channels


@pytest.mark.parametrize("axes", ["both", "y", "x"])
def test_the_crop_that_is_offered_is_the_smallest_even_one_that_holds_every_cell(tmp_path: Path, axes: str) -> None:
    """Cell 4 is 4 pixels before the middle along y, and 3 behind it along x: 8 pixels of both, which is all."""
    of = shards(tmp_path)
    index = of.plan_index(["one"], (0.5, 0.5))
    assert count_outside(of, index, Crop(z=slice(None), yx=(4, 4))).least == (8, 8)
    held = {"both": (8, 8), "y": (8, 6), "x": (6, 8)}[axes]
    assert (outside(of, held)[0] == 0) is (axes == "both")


def test_with_the_default_limit_no_crop_above_half_the_patch_is_offered(tmp_path: Path) -> None:
    of = shards(tmp_path, border="shift")
    found = count_outside(of, of.plan_index(["one"], (0.5, 0.5)), Crop(z=slice(None), yx=(2, 2)))
    assert found == (4, 8, (4, 2))


def test_with_the_default_limit_cells_lie_inside_every_crop_of_at_least_half_the_patch(tmp_path: Path) -> None:
    """Cells may be −2 to 1 pixels off: 3 and 4 are left out."""
    of = shards(tmp_path, border="shift")
    assert [outside(of, (k, k)) for k in (8, 7, 6, 5, 4)] == [(0, 8)] * 5
    assert outside(of, (2, 2)) == (4, 8)  # cells 2 and 5


@pytest.mark.parametrize("border", ["pad", "drop"])
def test_cells_that_were_not_moved_are_inside(tmp_path: Path, border: str) -> None:
    of = shards(tmp_path, border=border)
    assert outside(of, (2, 2)) == (0, 12 if border == "pad" else 4)


def test_rescaled_patches_count_in_stored_pixels(tmp_path: Path) -> None:
    """Stored pixels of 0.5 µm, twice those of the plate: centres lie between 8 and 25, cell 3 is 5 / 2 pixels off."""
    pixels = np.random.default_rng(4).integers(1, 999, (3, 1, 1, 32, 32)).astype("u2")
    rows = [one_cell(t, 16.0, x, track) for track, x in ((1, 16.0), (2, 28.0), (3, 30.0)) for t in range(3)]
    path = one_plate(tmp_path, pixels, rows)
    document = yaml.safe_load(path.read_text())
    document["experiments"][0]["pixel_size_um"] = [0.25, 0.25]
    path.write_text(yaml.safe_dump(document))
    build(path, tmp_path / "out", reference_pixel_size_um=[0.5, 0.5], max_border_shift_px=9999)
    of = ShardSet.open(tmp_path / "out")
    assert of.manifest.experiments[0].scale == (1.0, 2.0, 2.0)
    assert [outside(of, (k, k)) for k in (8, 6, 5, 4, 2)] == [(0, 6), (2, 6), (2, 6), (4, 6), (4, 6)]


def test_an_index_table_of_another_set_is_refused(tmp_path: Path) -> None:
    of = shards(tmp_path)
    path = find_index(of.root) / "observations.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(FormatError, match=r"observations.parquet: was changed after it was written, or is damaged"):
        outside(of, (4, 4))


def test_the_sentence_has_number_cause_and_cure() -> None:
    assert judge_crop(0, 12, (4, 4), (4, 4)) == ()
    (note,) = judge_crop(1, 1000, (4, 6), (8, 4))
    assert note == Note(
        level="fair",
        about="crop",
        text="1 of 1,000 cells (0.10%) lies outside the 4 x 6 pixels that the network sees, because the build moved "
        "patches near the border into the image. Give final_yx_patch_size: [8, 6], the smallest that holds all of them "
        "(yx_patch_size must not be smaller), or build with --border pad, which keeps each cell in the middle.",
    )
    assert [judge_crop(n, 1000, (4, 4), (8, 8))[0].level for n in (20, 21)] == ["fair", "bad"]


@pytest.mark.parametrize(
    ("final", "said"), [((4, 4), "4 of 12 cells (33.3%) lie outside the 4 x 4 pixels"), (None, "")]
)
def test_a_training_says_so_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], final: tuple[int, int] | None, said: str
) -> None:
    data = MultiExperimentDataModule(
        shards=str(shards(tmp_path).root), batch_size=2, tau_range=(0.5, 0.5), num_workers=0, final_yx_patch_size=final
    )
    trainer = Trainer(
        accelerator="cpu", max_steps=1, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        use_distributed_sampler=False, callbacks=[PlanVerdict()],
    )  # fmt: skip
    side = 8 if final is None else 4
    trainer.fit(ContrastiveModule(nn.Sequential(nn.Flatten(), nn.Linear(2 * side**2, 4)), log_pairs=0), data)
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith("plan of an epoch: ")
    assert ("outside" in told) is bool(said)
    assert said in told
