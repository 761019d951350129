"""Draws what a page of an inspection shows: intensities, lineages, hours, places, τ, and sheets of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, NullLocator

from dynaclr_wds.pages.markup import Html
from dynaclr_wds.pages.pictures import PALETTE, new_figure, show_figure, show_image, to_grey
from etl.inspect.lineage_trees import Tree, list_generations, plan_heights
from etl.inspect.pixels import ChannelFacts
from etl.inspect.tally import ExperimentCount

_GAP = 3
"""White pixels between the patches of a sheet."""
_LEAST = 0.7
"""Where the logarithmic axis of a histogram begins: below one pixel."""
_LINES = 150
"""Tracks of a tree from which on lines are thin."""


def draw_histogram(channel: ChannelFacts, title: str) -> Html:
    """Draw how bright the pixels of a channel are."""
    figure = new_figure(4.2, 2.8)
    axes = figure.subplots()
    edges = np.array(channel.edges)
    axes.stairs(np.maximum(channel.counts, _LEAST), edges, baseline=_LEAST, fill=True, color=PALETTE[0], alpha=0.75)
    for name, colour in (("p1", PALETTE[6]), ("median", PALETTE[7]), ("p99", PALETTE[1])):
        if (value := channel.statistics[name]) is not None:
            axes.axvline(float(np.clip(value, edges[0], edges[-1])), color=colour, linewidth=1.3, label=name)
    axes.set_yscale("log")
    axes.set_ylim(_LEAST, 3 * max(channel.counts))
    _write_decades(axes.yaxis)
    axes.set_title(title)
    axes.set_xlabel("intensity")
    axes.set_ylabel("pixels")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return show_figure(figure, f"{title}: histogram of intensities", kind="svg")


def draw_tree(tree: Tree, title: str, unit: str) -> Html:
    """Draw a lineage: time across, a line per track, a fork where it divides."""
    height = plan_heights(tree.parent, tree.begin)
    rows = float(height.max()) + 1
    figure = new_figure(5.2, float(np.clip(0.9 + 0.14 * rows, 1.7, 4.4)))
    axes = figure.subplots()
    generation = list_generations(tree.parent)
    colours = [PALETTE[n % (len(PALETTE) - 1)] for n in generation.tolist()]
    own = [((b, h), (e, h)) for b, e, h in zip(tree.begin.tolist(), tree.end.tolist(), height.tolist(), strict=True)]
    forks, fork_colours = [], []
    for child, parent in enumerate(tree.parent.tolist()):
        if parent >= 0:
            start = (float(tree.end[parent]), float(height[parent]))
            forks.append((start, (float(tree.begin[child]), float(height[child]))))
            fork_colours.append(colours[child])
    width = 0.7 if len(own) > _LINES else 1.6
    axes.add_collection(LineCollection(forks, colors=fork_colours, linewidths=width * 0.6, alpha=0.8))
    axes.add_collection(LineCollection(own, colors=colours, linewidths=width, capstyle="round"))
    alone = tree.begin == tree.end  # tracks of one cell have no length
    if alone.any():
        axes.scatter(tree.begin[alone], height[alone], s=3, c=np.array(colours)[alone])
    axes.set_ylim(rows - 0.3, -0.7)
    span = max(float(tree.end.max() - tree.begin.min()), 1e-3)
    axes.set_xlim(float(tree.begin.min()) - 0.03 * span, float(tree.end.max()) + 0.03 * span)
    axes.set_yticks([])
    axes.set_xlabel(unit)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return show_figure(figure, f"{title}: tree of its tracks", kind="png" if len(own) > _LINES else "svg")


def draw_heat_map(counts: Int64[np.ndarray, "rows bins"], names: Sequence[str], hours: Sequence[float]) -> Html:
    """Draw how many cells each condition has at each hour; the names stand within, so that a phone shows them."""
    figure = new_figure(5.4, float(np.clip(1.4 + 0.42 * len(names), 2.1, 14)))
    axes = figure.subplots()
    shown = np.ma.masked_equal(counts, 0)
    most = max(int(counts.max(initial=1)), 2)
    drawn = axes.pcolormesh(np.array(hours), np.arange(len(names) + 1), shown, cmap="viridis", norm=LogNorm(1, most))
    back = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
    for row, name in enumerate(names):
        axes.text(hours[0], row + 0.5, f" {_shorten(name)}", va="center", fontsize=8.5, bbox=back)
        axes.axhline(row, color="white", linewidth=2)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_facecolor("#e8ebee")
    axes.set_xlabel("hours post infection (HPI)")
    bar = figure.colorbar(drawn, ax=axes, label="cells", location="bottom", shrink=0.7, aspect=30)
    _write_decades(bar.ax.xaxis)
    return show_figure(figure, "Cells of each stratum at each hour post infection")


def draw_places(counts: Int64[np.ndarray, "y x"], title: str, aspect: float) -> Html:
    """Draw where cells lie in the field of view.

    Parameters
    ----------
    aspect
        Height of a field of view, as a multiple of its width.
    """
    figure = new_figure(3.4, 3.2)
    axes = figure.subplots()
    shown = np.ma.masked_equal(counts, 0)
    drawn = axes.imshow(shown, cmap="BuPu", extent=(0, 1, aspect, 0), vmin=0, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10)
    figure.colorbar(drawn, ax=axes, label="cells", shrink=0.8)
    return show_figure(figure, f"{title}: where its cells lie in the field of view")


def draw_lengths(count: ExperimentCount, title: str) -> Html:
    """Draw how many cells tracks have."""
    figure = new_figure(4.2, 2.5)
    axes = figure.subplots()
    most = max(count.lengths, default=1)
    edges = np.unique(np.linspace(1, most + 1, min(most, 30) + 1).round())
    axes.hist(list(count.lengths), bins=edges.tolist(), weights=list(count.lengths.values()), color=PALETTE[2])
    axes.set_xlabel("cells of a track")
    axes.set_ylabel("tracks")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return show_figure(figure, f"{title}: histogram of track lengths", kind="svg")


def draw_taus(counts: Sequence[ExperimentCount], names: Sequence[str], hours: Sequence[float]) -> Html:
    """Draw the share of cells whose lineage is seen τ later.

    Parameters
    ----------
    hours
        Of a frame of each experiment; 0 where there is no time.
    """
    figure = new_figure(4.8, 3.2)
    axes = figure.subplots()
    shown = [(c, n, h) for c, n, h in zip(counts, names, hours, strict=True) if h and c.tau and c.cells]
    for place, (count, name, hour) in enumerate(shown):
        colour = PALETTE[place % len(PALETTE)] if place < len(PALETTE) else "#c0c6cc"
        label = _shorten(name) if place < len(PALETTE) else None
        shares = [100 * seen / count.cells for seen in count.tau.values()]
        axes.plot([tau * hour for tau in count.tau], shares, "o-", markersize=3.5, color=colour, label=label)
    axes.set_ylim(0, 103)
    axes.set_xlabel("τ in hours")
    axes.set_ylabel("cells, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return show_figure(figure, "Share of cells whose lineage is seen τ later, by experiment", kind="svg")


def draw_pair(
    pixels: Sequence[Float32[np.ndarray, "c y x"]],
    limits: Sequence[tuple[float, float]],
    side: int,
    alt: str,
    caption: str,
) -> Html:
    """Show an anchor and its positive side by side, their channels one below the other.

    Parameters
    ----------
    limits
        Values of black and white of each channel.
    side
        Most pixels of the longer side of a patch in the picture.
    """
    columns = [_stack([_reduce(to_grey(one, bounds), side) for one, bounds in zip(patch, limits, strict=True)], 0)
               for patch in pixels]  # fmt: skip
    return show_image(_stack(columns, 1), alt, caption)


def _write_decades(axis: Axis) -> None:
    """Label decades as numbers: powers would be typeset, which takes longer than all the rest."""
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value < 1e4 else f"{value / 1e3:,.0f}k"))


def _reduce(image: UInt8[np.ndarray, "y x"], side: int) -> UInt8[np.ndarray, "v u"]:
    """Average neighbouring pixels, so that no side is longer than asked."""
    by = -(-max(image.shape) // side)
    if by <= 1:
        return image
    high, wide = (max(length // by, 1) * by for length in image.shape)
    whole = np.pad(image, [(0, max(high - image.shape[0], 0)), (0, max(wide - image.shape[1], 0))], mode="edge")
    blocks = whole[:high, :wide].reshape(high // by, by, wide // by, by)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def _stack(images: Sequence[UInt8[np.ndarray, "_ _"]], axis: int) -> UInt8[np.ndarray, "v u"]:
    """Put images one below or beside the other, with a gap."""
    parts: list[UInt8[np.ndarray, "_ _"]] = []
    for image in images:
        gap = (_GAP, image.shape[1]) if axis == 0 else (image.shape[0], _GAP)
        parts += [image] if not parts else [np.full(gap, 255, np.uint8), image]
    return np.concatenate(parts, axis=axis)


def _shorten(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:29]}…"
