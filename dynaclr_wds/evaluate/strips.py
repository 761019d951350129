"""Neighbours of example cells as strips of pictures: what an embedding takes for alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, UInt8

from dynaclr_wds.evaluate.cells import Cells, Embedding, number
from dynaclr_wds.evaluate.pixels import Patches
from dynaclr_wds.evaluate.smoothness import standardise, unit_length
from dynaclr_wds.pages.pictures import to_grey

_TAG = 0x571


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A cell and its nearest neighbours."""

    places: Int64[np.ndarray, " k"]
    """Rows of the cells, the example first."""
    images: list[UInt8[np.ndarray, "y x"]]
    captions: list[str]


def choose_examples(cells: Cells, label: str | None, count: int, seed: int = 0) -> Int64[np.ndarray, " k"]:
    """Choose cells by chance, of as many experiments and values of a label as can be."""
    rng = np.random.default_rng([_TAG, seed])
    kind = cells.experiment + ("" if label is None else "\n" + cells.labels[label])
    known, code = number(kind)
    order = rng.permutation(len(cells))
    queues = [order[code[order] == n] for n in rng.permutation(len(known))]
    longest = max(len(queue) for queue in queues)
    dealt = [queue[n] for n in range(longest) for queue in queues if n < len(queue)]
    return np.array(dealt[:count], np.int64)


def find_neighbours(
    embedding: Embedding, cells: Cells, example: int, count: int, label: str | None = None
) -> Int64[np.ndarray, " k"]:
    """Find the nearest cells by cosine, one a lineage, none of the example's own lineage or field of view.

    Where no other field of view has a cell with the example's value of the label, cells of its own are taken as well:
    else all of its neighbours would have another value, whatever the embedding.
    """
    unit = unit_length(standardise(embedding.features))
    nearness = unit @ unit[example]
    allowed = cells.lineage != cells.lineage[example]
    elsewhere = allowed & (cells.fov != cells.fov[example])
    alike = elsewhere if label is None else elsewhere & (cells.labels[label] == cells.labels[label][example])
    allowed = elsewhere if alike.any() else allowed
    found: list[int] = []
    seen: set[str] = set()
    for place in np.argsort(-nearness, kind="stable").tolist():
        if allowed[place] and cells.lineage[place] not in seen:
            seen.add(cells.lineage[place])
            found.append(place)
        if len(found) == count:
            break
    return np.array(found, np.int64)


def make_strip(places: Int64[np.ndarray, " k"], cells: Cells, patches: Patches, label: str | None) -> Strip:
    """Read the cells of a strip; the channels of a cell stand one below the other, all with the same grey scale."""
    pixels = [patches.read(places[n : n + 1])[0] for n in range(len(places))]
    channels = min(len(one) for one in pixels)
    limits = [np.percentile(np.concatenate([one[c].ravel() for one in pixels]), (0.5, 99.5)) for c in range(channels)]
    images = [np.concatenate([to_grey(one[c], _bounds(limits[c])) for c in range(channels)]) for one in pixels]
    return Strip(places=places, images=images, captions=[_describe(cells, int(n), label) for n in places])


def _bounds(limits: Float[np.ndarray, " 2"]) -> tuple[float, float]:
    return float(limits[0]), float(limits[1])


def _describe(cells: Cells, place: int, label: str | None) -> str:
    hpi = cells.hpi[place]
    words = [cells.experiment[place], *([] if label is None else [cells.labels[label][place] or "no label"])]
    return ", ".join([*words, f"{hpi:.1f} h" if np.isfinite(hpi) else f"frame {cells.t[place]}"])
