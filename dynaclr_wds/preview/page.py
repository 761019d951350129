"""Looked-at batches to an HTML page: pairs as they are read and as the network sees them, and who shares a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.ticker import MaxNLocator, NullLocator

from dynaclr_wds.pages.markup import Html, Level, block, bullets, details, grid, heading, join, note, paragraph
from dynaclr_wds.pages.pictures import PALETTE, new_figure, show_figure, show_strip, to_grey
from dynaclr_wds.pages.shell import Page, Section
from dynaclr_wds.pages.tables import table
from dynaclr_wds.preview.look import Sample, SeenBatch
from dynaclr_wds.preview.tables import (
    Rows,
    describe_batch,
    describe_lineages,
    describe_tau,
    list_asked,
    list_brightness,
    list_parts,
    list_samples,
)
from dynaclr_wds.train.pair_image import describe_pair

_MOST_PIXELS = 2_200_000
"""Of all patches of a page: they are noise to PNG, so each takes a byte and a third."""
_CLIP = (0.5, 99.5)
_BINS = 60
_WORDS = ("anchor", "positive", "anchor as seen", "positive as seen")

_READING = (
    "Anchor and positive: normalised and cropped, as validation and prediction see them. As seen: augmented as in "
    "training. Augmentations are drawn anew here, so a training draws others of the same kind.",
    "The four pictures of a sample share one grey scale per channel, which leaves out the darkest and brightest half "
    "percent of anchor and positive: what is brighter or darker as seen is so for the network, too.",
    "The network is to find the positive of an anchor among all positives of the batch; the others are negatives. A "
    "negative of the same lineage is one that it can't be right about.",
    "HPI: hours post infection. τ: hours from anchor to positive. FOV: field of view.",
    "docs/SAMPLING.md defines every number of how batches are composed and mixed.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochTable:
    """A table on the whole epoch."""

    title: str
    rows: Rows
    remarks: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a page is made of."""

    shards: str
    batches: Sequence[SeenBatch]
    batches_of_epoch: int
    epoch: int
    """From 0."""
    value_label: str
    labels: Sequence[str]
    """Labels to name beside the experiment."""
    window_hours: float | None
    """Half-width of the window that most samples lie in; None without one."""
    findings: Sequence[tuple[Level, str]]
    epoch_tables: Sequence[EpochTable] = ()
    epoch_said: Sequence[str] = field(default_factory=tuple)
    made_by: str = ""


def make_page(shown: Shown) -> Page:
    """Put batches on a page."""
    factor = _shrink(shown.batches)
    sections = [Section(title="In short", content=[note(words, level) for level, words in shown.findings])]
    for batch in shown.batches:
        title = f"Batch {batch.company.number + 1:,}"
        sections.append(Section(title=title, content=_show_batch(batch, shown, factor)))
    sections.append(Section(title="Pixels as the network sees them", content=_show_brightness(shown.batches)))
    whole = [paragraph(words) for words in shown.epoch_said]
    for one in shown.epoch_tables:
        whole += [heading(one.title), table(*one.rows), join([paragraph(said, small=True) for said in one.remarks])]
    sections.append(Section(title="The whole epoch", content=whole))
    sections.append(Section(title="How to read this", content=[bullets(_READING)]))
    size = len(shown.batches[0].company)
    return Page(
        title="Batches, before training",
        lead=(
            f"{len(shown.batches)} of {shown.batches_of_epoch:,} batches of {size} samples from {shown.shards}, epoch "
            f"{shown.epoch + 1}: what the network would be shown, and who shares a batch."
        ),
        sections=sections,
        made_by=shown.made_by,
    )


def _show_batch(batch: SeenBatch, shown: Shown, factor: int) -> list[Html]:
    company = batch.company
    who = [table(*list_parts(company, shown.value_label))]
    if company.asked:
        who.append(table(*list_asked(company)))
    if tau := describe_tau(company):
        who.append(paragraph(tau))
    content = [
        paragraph(describe_batch(company, shown.batches_of_epoch, shown.window_hours)),
        note(describe_lineages(company), "bad" if company.meet.any() else "good"),
        grid([block(who), _draw_times(batch, shown.window_hours)], 430),
        heading(f"{len(batch.samples)} of its samples"),
    ]
    planes = batch.samples[0].seen.shape[2] if batch.samples else 1
    said = f"Channels from top to bottom: {', '.join(batch.channels)}." if len(batch.channels) > 1 else ""
    said += f" Of a stack of {planes} slices the middle one is shown." if planes > 1 else ""
    said += " A channel that is one grey was dropped, as channel_dropout_prob asks." if batch.dropout else ""
    said += f" Pictures are made smaller by {factor}." if factor > 1 else ""
    content += [paragraph(said.strip(), small=True)] if said else []
    content.append(grid([_show_sample(sample, shown.labels, factor) for sample in batch.samples], 430))
    rows = list_samples(batch, shown.labels)
    content.append(details(f"All {len(company):,} samples", table(*rows, "* shares its lineage with another sample.")))
    return content


def _show_sample(sample: Sample, labels: Sequence[str], factor: int) -> Html:
    said = describe_pair(sample.anchor, sample.positive, labels).replace("\n", ", ")
    patches = [*sample.plain, *sample.seen]
    middle = [patch[:, patch.shape[1] // 2] for patch in patches]
    limits = [np.percentile(_finite(np.stack([one[c] for one in middle[:2]])), _CLIP) for c in range(len(middle[0]))]
    images = [
        np.concatenate([_to_picture(one[c], limits[c], factor) for c in range(len(one))], axis=0) for one in middle
    ]
    return block([paragraph(said, small=True), show_strip(images, _WORDS, said)])


def _finite(pixels: Float[np.ndarray, "n y x"]) -> Float[np.ndarray, " p"]:
    found = pixels[np.isfinite(pixels)]
    return found if found.size else np.zeros(1, pixels.dtype)


def _to_picture(
    plane: Float[np.ndarray, "y x"], limits: Float[np.ndarray, " 2"], factor: int
) -> UInt8[np.ndarray, "y2 x2"]:
    height, width = (side // factor * factor for side in plane.shape)
    blocks = plane[:height, :width].reshape(height // factor, factor, width // factor, factor)
    return to_grey(blocks.mean(axis=(1, 3)), (float(limits[0]), float(limits[1])))


def _shrink(batches: Sequence[SeenBatch]) -> int:
    """Find the factor by which pictures become smaller, so that all of them fit a page."""
    pixels = sum(
        len(patches) * patches.shape[1] * patches.shape[-2] * patches.shape[-1]
        for batch in batches
        for sample in batch.samples
        for patches in (sample.plain, sample.seen)
    )
    return max(math.ceil(math.sqrt(pixels / _MOST_PIXELS)), 1)


def _draw_times(batch: SeenBatch, window_hours: float | None) -> Html:
    """Draw how many samples of each part are of which time."""
    company = batch.company
    figure = new_figure(5.2, 2.9)
    axes = figure.subplots()
    names = [part.name for part in company.parts]
    columns = [company.hpi[company.part_of == place] for place in range(len(names))]
    shown, colours = columns[: len(PALETTE)], PALETTE[: len(columns)]
    axes.hist(shown, bins=24, stacked=True, color=colours, label=[_shorten(name) for name in names[: len(PALETTE)]])
    if window_hours is not None and math.isfinite(company.focal_hpi):
        low, high = company.focal_hpi - window_hours, company.focal_hpi + window_hours
        axes.axvspan(low, high, color="#000000", alpha=0.08, linewidth=0, zorder=0, label="most samples lie here")
    axes.set_xlabel("hours post infection")
    axes.set_ylabel("samples")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return show_figure(figure, f"Batch {company.number + 1}: samples by hours post infection", kind="svg")


def _show_brightness(batches: Sequence[SeenBatch]) -> list[Html]:
    panels = []
    for channels in dict.fromkeys(one.channels for one in batches):
        alike = [one for one in batches if one.channels == channels]
        panels += [_draw_brightness(alike, c, name) for c, name in enumerate(channels)]
    said = (
        "How often which value occurs among the pixels of the batches above, before the augmentations and after. The "
        "height is logarithmic."
    )
    rows = list_brightness(batches)
    return [paragraph(said), grid(panels, 360), details("In numbers", table(*rows, _describe_measured(batches)))]


def _describe_measured(batches: Sequence[SeenBatch]) -> str:
    some = [one for one in batches if one.augmented < len(one.company)]
    cut = f" Of large batches, {some[0].augmented:,} samples were augmented." if some else ""
    return f"Empty: patches that hold one value only, as dropped channels do.{cut}"


def _draw_brightness(batches: Sequence[SeenBatch], channel: int, name: str) -> Html:
    figure = new_figure(4.4, 2.6)
    axes = figure.subplots()
    before, after = (
        np.concatenate([part.sample[channel] for part in parts])
        for parts in ([one.plain for one in batches], [one.seen for one in batches])
    )
    both = np.concatenate([before, after])
    if len(both):
        low, high = np.percentile(both, (0.05, 99.95)).tolist()
        edges = np.linspace(low, high if high > low else low + 1, _BINS).tolist()
        for values, colour, word in ((before, PALETTE[6], "before"), (after, PALETTE[0], "as seen")):
            weights = np.full(len(values), 1 / max(len(values), 1))
            axes.hist(values, edges, weights=weights, histtype="step", color=colour, linewidth=1.4, label=word)
        axes.set_yscale("log")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    axes.set_title(name, parse_math=False)
    axes.set_xlabel("value")
    axes.yaxis.set_major_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right", "left"]].set_visible(False)
    return show_figure(figure, f"{name}: values of pixels before and after augmentation", kind="svg")


def _shorten(name: str) -> str:
    return (name if len(name) <= 30 else f"{name[:29]}…").replace("$", r"\$")
