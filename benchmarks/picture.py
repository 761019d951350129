"""A batch to a picture: anchors, their positives, and what the network sees of both.

A column is a cell. Phase is grey; the organelle channel lies over it in colour.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure

from dynaclr_wds import MultiExperimentDataModule
from dynaclr_wds.transforms.crop import apply_center_crop

_COLOUR = np.array([0.25, 1.0, 0.75])


def draw_batch(data: MultiExperimentDataModule, path: Path, columns: int = 8, seed: int = 0) -> Path:
    """Draw the first training batch before and after augmentation.

    Parameters
    ----------
    data
        After `setup("fit")`.
    path
        PNG to write.
    columns
        Cells to show.
    seed
        Of the augmentation.
    """
    batch = next(iter(data.train_dataloader()))
    order = _late_first(batch["anchor_meta"])[:columns]
    transform = data.transforms[batch["anchor"].shape[1]]
    torch.manual_seed(seed)
    plain = transform(dict(batch), training=False)
    seen = transform(dict(batch), training=True)
    size = data.final_yx_patch_size or seen["anchor"].shape[-2:]
    rows = {
        "anchor": plain["anchor"],
        "positive": plain["positive"],
        "anchor,\naugmented": seen["anchor"],
        "positive,\naugmented": seen["positive"],
    }
    figure = Figure(figsize=(1.55 * columns + 1.0, 7.4), facecolor="white")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    limits = [np.percentile(plain["anchor"][:, c].numpy(), (0.5, 99.7)) for c in range(plain["anchor"].shape[1])]
    for row, (name, patches) in enumerate(rows.items()):
        for column, place in enumerate(order):
            axes = grid[row, column]
            axes.imshow(_overlay(apply_center_crop(patches, (None, *size))[place], limits), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
        grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
    _label(grid, batch, order)
    figure.suptitle(f"A batch of {batch['anchor_meta'][0]['experiment']}: what is compared, and what the network sees")
    figure.tight_layout(h_pad=0.4, w_pad=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _late_first(meta: Any) -> list[int]:
    """Alternate between conditions, latest first: there the phenotype shows."""
    by_condition: dict[str, list[int]] = {}
    for place in sorted(range(len(meta)), key=lambda i: -meta[i]["hpi"]):
        by_condition.setdefault(meta[place]["condition"], []).append(place)
    shortest = min(len(places) for places in by_condition.values())
    return [places[i] for i in range(shortest) for _, places in sorted(by_condition.items())]


def _overlay(patch: Float[torch.Tensor, "c z y x"], limits: list[Any]) -> Float[np.ndarray, "y x 3"]:
    planes = patch[:, patch.shape[1] // 2].numpy()
    unit = [
        np.clip((plane - low) / max(high - low, 1e-6), 0, 1) for plane, (low, high) in zip(planes, limits, strict=True)
    ]
    image = np.repeat(0.75 * unit[0][..., None], 3, axis=-1)
    for extra in unit[1:]:
        image = 1 - (1 - image) * (1 - extra[..., None] * _COLOUR)  # screen: light adds up
    return image


def _label(grid: Any, batch: dict[str, Any], order: list[int]) -> None:
    for column, place in enumerate(order):
        anchor, positive = batch["anchor_meta"][place], batch["positive_meta"][place]
        grid[0, column].set_title(f"{anchor['condition']}\n{anchor['hpi']:.1f} HPI", fontsize=9)
        grid[1, column].set_title(f"τ = {positive['hpi'] - anchor['hpi']:+.1f} h", fontsize=9, pad=3)
