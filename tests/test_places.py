"""The compiled passes over anchors and those of numpy make the same plan, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dynaclr_wds.plan import places, strata
from dynaclr_wds.plan.compiled import load_anchors
from dynaclr_wds.plan.places import order_pass
from dynaclr_wds.plan.streaming import stays
from dynaclr_wds.plan.streaming.partition import Part, make_part
from dynaclr_wds.plan.streaming.stays import find_spans, order_stays
from tests.synthetic import Synthetic, make_index

PASS = [7, 3, 4, 0, 5, 1, 6, 2]
PASS_SUM = 20_972_693_415_156
STAYS_SUM = 10_285_537_020
"""Made by the version that had numpy only."""

INDEX = make_index(Synthetic())
SIZES = [0, 1, 2, 3, 700, 1]
"""Anchors of clips, the largest one far longer than tracks are."""


def make_rows(seed: int, clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Make patch rows of anchors, every third left out, and the clip of each patch row."""
    rng = np.random.default_rng(seed)
    patch_clip = np.repeat(np.arange(clips), rng.choice(SIZES, clips)).astype(np.int32)
    return np.flatnonzero(np.arange(len(patch_clip)) % 3).astype(np.int32), patch_clip


def order_visits(rng, anchors, row, patch_clip, first, span):
    """Order visits to blocks of which the anchors are listed."""
    nothing = {f"patch_{name}": np.zeros(len(patch_clip), np.int32) for name in ("obs", "t")}
    nothing |= {f"patch_{name}": np.zeros(len(patch_clip), bool) for name in ("is_sample", "has_candidate")}
    index = replace(INDEX, row=row, columns=replace(INDEX.columns, patch_clip=patch_clip, **nothing))
    visits = Part(np.arange(len(first) - 1), first[:-1], first, anchors)
    return order_stays(rng, index, visits, span)


@pytest.fixture(params=["compiled", "numpy"])
def way(request, monkeypatch):
    """Both ways; a compiler is at hand where the tests run."""
    assert load_anchors() is not None, "python setup.py build_ext --inplace makes it"
    if request.param == "numpy":
        for module in (places, stays, strata):
            monkeypatch.setattr(module, "load_anchors", lambda: None)


@pytest.mark.usefixtures("way")
def test_pass_through_a_stratum_is_the_same_with_and_without_the_compiled_pass():
    row = np.array([0, 1, 2, 3, 4, 7, 8, 9], np.int32)
    patch_clip = np.array([3, 3, 3, 3, 5, 5, 5, 9, 9, 9], np.int32)
    out = np.empty(8, np.int32)
    order_pass(np.random.default_rng(7), row, patch_clip, 2, 5, out)
    assert out.tolist() == PASS
    large = make_rows(1, 500)
    out = np.empty(len(large[0]), np.int32)
    order_pass(np.random.default_rng(8), *large, 0, 0, out)
    assert sorted(out.tolist()) == list(range(len(out)))
    assert (out.astype(np.int64) * np.arange(len(out))).sum() == PASS_SUM


@pytest.mark.usefixtures("way")
def test_order_of_visits_is_the_same_with_and_without_the_compiled_pass():
    row, patch_clip = make_rows(2, 40)
    first = np.array([0, 5, 5, 900, len(row)])  # a visit without anchors, too
    anchors = np.concatenate([np.arange(2000, 2005), np.arange(900 - 5), np.arange(900, len(row))]).astype(np.int32)
    span = np.array([[0.0, 0.1, 0.1, 0.4], [0.5, 0.1, 0.6, 0.6]])
    found, visit = order_visits(np.random.default_rng(3), anchors, row, patch_clip, first, span)
    assert sorted(found.tolist()) == sorted(anchors.tolist())
    assert np.bincount(visit).tolist() == [5, 0, 895, len(row) - 900]
    assert (found.astype(np.int64) * np.arange(len(found))).sum() == STAYS_SUM
    lowest, highest = find_spans(visit, 4)
    assert [np.flatnonzero(visit == v)[[0, -1]].tolist() for v in (0, 2, 3)] == [
        [int(lowest[v]), int(highest[v])] for v in (0, 2, 3)
    ]
    assert (lowest[1], highest[1]) == (len(visit), -1)


@pytest.mark.usefixtures("way")
def test_equal_places_keep_their_order_and_none_is_beyond_the_last():
    """Clips of one anchor at the very beginning and the very end of all visits."""
    count = 1 << 12
    row, first = np.arange(count, dtype=np.int32), np.arange(0, count + 1, count // 2)
    span = np.array([[0.0, 1.0], [0.0, 0.0]])
    found, visit = order_visits(np.random.default_rng(0), row, row, row, first, span)
    assert found.tolist() == list(range(count))
    assert visit.tolist() == [0] * (count // 2) + [1] * (count // 2)


@pytest.mark.usefixtures("way")
def test_rows_of_the_index_are_the_samples_with_a_candidate():
    index = make_index(Synthetic())
    columns = index.columns
    drawn = np.flatnonzero(columns.patch_is_sample & columns.patch_has_candidate)
    assert sorted(index.row.tolist()) == drawn.tolist()
    for stratum in range(4):
        assert (np.diff(index.row[index.first[stratum] : index.first[stratum + 1]]) > 0).all()
    samples = np.add(index.without_positive, index.sizes)
    assert samples.sum() == np.count_nonzero(columns.patch_is_sample)


@pytest.mark.usefixtures("way")
def test_visits_to_ranges_of_anchors_are_ordered_as_if_these_were_listed():
    part = make_part(INDEX, 1)
    visits = part.take(np.array([2, 0, 1])).cut(3, 170)
    listed = Part(visits.blocks, visits.first[:-1], visits.first, visits.anchors.astype(np.int32))
    span = np.array([[0.0, 0.2, 0.4], [0.6, 0.6, 0.6]])[:, : len(visits.blocks)]
    one, other = (order_stays(np.random.default_rng(1), INDEX, of, span) for of in (visits, listed))
    assert sorted(one[0].tolist()) == sorted(part.take(np.array([2, 0, 1])).anchors[3:170].tolist())
    assert one[0].tolist() == other[0].tolist()
    assert one[1].tolist() == other[1].tolist()
