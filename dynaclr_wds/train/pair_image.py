"""Draws pairs of patches as one picture for people: a labelled row per sample, anchor and positive of each channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import BboxImage
from matplotlib.transforms import Bbox
from torch import Tensor

_PANEL = (160, 256)  # least and most pixels of a patch's longer side in the picture
_LABEL, _HEAD, _GAP, _BETWEEN = 170, 44, 4, 14  # pixels
_DPI, _FONT = 100, 9
_CLIP = (0.5, 99.5)  # percentiles that are black and white


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Samples to draw."""

    anchor: Float[Tensor, "b c z y x"]
    positive: Float[Tensor, "b c z y x"]
    labels: Sequence[str] = ()
    """What stands beside each row; none when empty."""
    channels: Sequence[str] = field(default_factory=tuple)
    """Name of each channel; its number where there are none."""


def take_pairs(batch: Mapping[str, Any], count: int, data: Any = None) -> Pairs:
    """Keep the first samples of a batch, with who they are.

    Parameters
    ----------
    batch
        As the DataModule gives it; without `anchor_meta` there are no labels.
    count
        Number of samples.
    data
        The DataModule, which knows the names of channels and which labels matter; or anything else.
    """
    anchor, positive = (batch[key][:count].detach().clone() for key in ("anchor", "positive"))
    if "anchor_meta" not in batch or "positive_meta" not in batch:
        return Pairs(anchor=anchor, positive=positive)
    found = [[glance(batch[f"{key}_meta"], n) for n in range(len(anchor))] for key in ("anchor", "positive")]
    labels = getattr(data, "stratify_by", ["condition"])
    named = getattr(data, "channel_names", None)
    experiments = dict.fromkeys(str(one.get("experiment")) for one in found[0])
    names = [named(experiment) for experiment in experiments] if named is not None else []
    return Pairs(
        anchor=anchor,
        positive=positive,
        labels=[describe_pair(one, other, labels) for one, other in zip(*found, strict=True)],
        channels=["/".join(dict.fromkeys(of)) for of in zip(*names, strict=False)],
    )


def glance(meta: Any, place: int) -> Mapping[str, Any]:
    """Look at an identity, without reading the names of lineages if that can be."""
    found: Mapping[str, Any] = meta.glance(place) if hasattr(meta, "glance") else meta[place]
    return found


def draw_pairs(pairs: Pairs) -> UInt8[np.ndarray, "height width 3"]:
    """Draw anchors and positives, labelled.

    A row shows the middle planes of one sample: anchor and positive of the first channel, then of the second, and so
    on. Anchor and positive of a channel share one grey scale, which leaves out the darkest and brightest half percent
    of their pixels. A patch whose pixels are all alike says so; a dropped channel is such.

    Returns
    -------
    RGB, 0 to 255.
    """
    middle = pairs.anchor.shape[2] // 2
    both = [x[:, :, middle].detach().float().cpu().numpy() for x in (pairs.anchor, pairs.positive)]
    rows, channels, high, wide = both[0].shape
    longer = max(high, wide)
    scale = max(round(_PANEL[0] / longer), 1) if longer <= _PANEL[1] else _PANEL[1] / longer
    high, wide = round(high * scale), round(wide * scale)
    left, each = _LABEL if pairs.labels else 0, 2 * wide + _GAP + _BETWEEN
    sheet = _Sheet(left + channels * each, _HEAD + rows * (high + _GAP))
    tops = [_HEAD + r * (high + _GAP) for r in range(rows)]
    for c in range(channels):
        x = left + c * each
        name = pairs.channels[c] if c < len(pairs.channels) else f"channel {c}"
        sheet.write(x + wide + _GAP / 2, 12, name, fontweight="bold")
        for word, patches, at in zip(("anchor", "positive"), both, (x, x + wide + _GAP), strict=True):
            sheet.write(at + wide / 2, 32, word)
            for r, y in enumerate(tops):
                limits = np.percentile([one[r, c] for one in both], _CLIP)
                sheet.place((at, y, wide, high), patches[r, c], limits)
    for label, y in zip(pairs.labels, tops, strict=False):
        sheet.write(8, y + high / 2, label, ha="left")
    return sheet.draw()


class _Sheet:
    """A white sheet; places are pixels from its top left."""

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self._figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)

    def write(self, x: float | int, y: float | int, text: str, **style: Any) -> None:
        """Write around a place, or from it on where `ha="left"`."""
        width, height = self._size
        style = {"ha": "center", "va": "center", "fontsize": _FONT, **style}
        self._figure.text(x / width, 1 - y / height, text, parse_math=False, **style)  # `$` is no formula here

    def place(
        self, box: tuple[int, int, int, int], patch: Float[np.ndarray, "y x"], limits: Float[np.ndarray, " 2"]
    ) -> None:
        """Put a patch into a box (x, y, width, height), black and white at the limits."""
        x, y, wide, high = box
        black, white = limits.tolist()
        image = BboxImage(
            Bbox.from_bounds(x, self._size[1] - y - high, wide, high),
            cmap="gray",
            norm=Normalize(black, max(white, black + 1e-8)),
        )
        image.set_data(patch)
        self._figure.add_artist(image)  # axes would take ten times as long, and a step of the training waits
        if patch.min() == patch.max():
            self.write(x + wide / 2, y + high / 2, f"all {patch.flat[0]:.3g}", color="tab:orange")

    def draw(self) -> UInt8[np.ndarray, "height width 3"]:
        """Return the pixels."""
        self._canvas.draw()  # type: ignore[no-untyped-call]
        return np.asarray(self._canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]


def describe_pair(anchor: Mapping[str, Any], positive: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Say who a pair is, in a few short lines: experiment, labels, FOV, track and frame, and τ or the other cell.

    Parameters
    ----------
    anchor, positive
        Identities, as batches hold them.
    labels
        Those to name, beside the experiment.
    """
    lines = [str(anchor[name]) for name in dict.fromkeys(("experiment", *labels, "channel")) if name in anchor]
    track, other = anchor.get("track_id"), positive.get("track_id")
    if anchor.get("lineage") != positive.get("lineage"):
        lines += [f"{one['fov_name']}, track {one['track_id']}, {one['t']}" for one in (anchor, positive)]
        return _shorten(lines)
    if "fov_name" in anchor:
        lines.append(f"{anchor['fov_name']}, track {track}" + (f" → {other}" if other != track else ""))
    if "hpi" in anchor and "hpi" in positive:
        lines.append(f"frame {anchor.get('t', '?')}, {anchor['hpi']:.3g} h")
        lines.append(f"τ = {positive['hpi'] - anchor['hpi']:+.3g} h")
    return _shorten(lines)


def _shorten(lines: Sequence[str]) -> str:
    return "\n".join(line if len(line) <= 26 else f"{line[:25]}…" for line in lines)
