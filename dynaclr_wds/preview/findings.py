"""Looked-at batches to sentences: what is wrong with the pixels that the network would see, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dynaclr_wds.pages.markup import Level
from dynaclr_wds.preview.look import SeenBatch
from dynaclr_wds.words import count_of, percent

Finding = tuple[Level, str]
"""How good it is, and a sentence."""

_FAR = 5.0
"""Normalised pixels have a median that is nearer to 0."""
_NARROW, _WIDE = 0.05, 25.0
"""From 1 % to 99 %, normalised pixels span more than the first and less than the second."""
_FILLED = 0.02
"""Share of pixels that the augmentations fill, such as corners of turned patches, which is told."""


def list_findings(batches: Sequence[SeenBatch]) -> list[Finding]:
    """Say what is wrong with the pixels; one sentence that all is well where nothing is."""
    found: list[Finding] = []
    for channels in dict.fromkeys(one.channels for one in batches):
        alike = [one for one in batches if one.channels == channels]
        for judge in (_judge_finite, _judge_constant, _judge_scale):
            found += [finding for finding in judge(alike) if finding not in found]
    found += _judge_filled(batches)
    if any(level != "good" for level, _ in found):
        return found
    return [*found, ("good", "All pixels are finite and of a scale that suits networks, and no channel is empty.")]


def _judge_finite(batches: Sequence[SeenBatch]) -> Iterator[Finding]:
    before = np.sum([one.plain.not_finite for one in batches], axis=0).tolist()
    after = np.sum([one.seen.not_finite for one in batches], axis=0).tolist()
    patches = sum(one.seen.patches for one in batches)
    for name, first, last in zip(batches[0].channels, before, after, strict=True):
        of = f"{max(first, last):,} of {count_of(patches, 'patch', 'patches')} have pixels that are NaN or infinite"
        if first:
            cure = "Look at the normalisation: what it divides by may be 0 (docs/TRANSFORMS.md)."
            yield "bad", f"{name}: {of}. {cure}"
        elif last:
            yield "bad", f"{name}: {of}, which the augmentations make. Leave them out one by one to find which."


def _judge_constant(batches: Sequence[SeenBatch]) -> Iterator[Finding]:
    channels, dropout = batches[0].channels, batches[0].dropout
    before = np.sum([one.plain.constant for one in batches], axis=0).tolist()
    after = np.sum([one.seen.constant for one in batches], axis=0).tolist()
    patches = sum(one.seen.patches for one in batches)
    for c, name in enumerate(channels):
        if before[c]:
            yield (
                "bad",
                f"{name}: {before[c]:,} of {count_of(patches, 'patch', 'patches')} hold one value only. Look at this "
                "channel of the plates; a build with --on_blank drop leaves out cells whose chunks are missing.",
            )
        elif after[c] and c in dropout:
            share = f"{after[c]:,} of {count_of(patches, 'patch', 'patches')}"
            yield "good", f"{name}: dropped in {share}, as channel_dropout_prob={dropout[c]:g} asks."
        elif after[c]:
            share = f"{after[c]:,} of {count_of(patches, 'patch', 'patches')}"
            yield "bad", f"{name}: the augmentations leave one value only in {share}. Make them weaker."


def _judge_scale(batches: Sequence[SeenBatch]) -> Iterator[Finding]:
    quantiles = np.mean([one.plain.quantiles for one in batches], axis=0)
    for name, (_, low, middle, high, _) in zip(batches[0].channels, quantiles.tolist(), strict=True):
        if not np.isfinite([low, middle, high]).all() or high == low:
            continue  # said by the others
        if abs(middle) > _FAR or not _NARROW < high - low < _WIDE:
            yield (
                "fair",
                f"{name}: before the augmentations, pixels lie from {low:.3g} to {high:.3g} (1 % to 99 %), half of "
                f"them below {middle:.3g}. Networks learn best from values around 0 that spread by about 1. Give "
                "data.normalizations, such as dynaclr_wds.transforms.NormalizeSampled.",
            )


def _judge_filled(batches: Sequence[SeenBatch]) -> Iterator[Finding]:
    if (filled := float(np.mean([one.filled for one in batches]))) > _FILLED:
        yield (
            "fair",
            f"{percent(filled)} of the pixels that the network sees lie outside what was read: patches "
            "that are turned or shrunk bring in empty corners. Give a smaller final_yx_patch_size, or read more around "
            "each cell (yx_patch_size).",
        )
