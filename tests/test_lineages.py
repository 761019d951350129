"""The laws of dealing: as few draws share their lineage as can be, then their track, then their observation."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pytest

from dynaclr_wds.plan.compose.lineages import deal, separate
from tests.test_plan_laws import fewest_shared


def deal_alone(sizes, lineage, track=None, anchor=None, seed=0) -> np.ndarray:
    """Deal the draws of one stratum."""
    lineage = np.array(lineage)
    track, anchor = (lineage if of is None else np.array(of) for of in (track, anchor))
    batch = deal(np.random.default_rng(seed), np.array(sizes)[:, None], lineage, track, anchor)
    assert np.bincount(batch, minlength=len(sizes)).tolist() == list(sizes)
    return batch


def count_shared(batch: np.ndarray, value) -> int:
    return len(batch) - len(set(zip(batch.tolist(), np.array(value).tolist(), strict=True)))


def partitions(total: int, most: int | None = None) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as a sum, largest parts first."""
    if not total:
        yield ()
    for part in range(min(total, most or total), 0, -1):
        for rest in partitions(total - part, part):
            yield (part, *rest)


@functools.cache
def try_all(sizes: tuple[int, ...], lineages: tuple[int, ...]) -> int:
    """Find the fewest draws that share their lineage by trying every way to deal."""
    if not lineages:
        return 0
    found = []
    for given in np.ndindex(*(1 + min(size, lineages[0]) for size in sizes)):
        if sum(given) == lineages[0]:
            left = tuple(sorted(size - n for size, n in zip(sizes, given, strict=True)))
            found.append(sum(max(n - 1, 0) for n in given) + try_all(left, lineages[1:]))
    return min(found)


PAIRS = [(sizes, lineages) for n in range(1, 9) for sizes in partitions(n) for lineages in partitions(n)]


def test_no_way_to_deal_small_rounds_makes_fewer_share_a_lineage():
    assert len(PAIRS) == 918  # 1² + 2² + 3² + 5² + 7² + 11² + 15² + 22²
    for seed, (sizes, lineages) in enumerate(PAIRS):
        rng = np.random.default_rng(seed)
        sizes = rng.permutation(sizes).tolist()
        lineage = rng.permutation(np.repeat(np.arange(len(lineages)), lineages))
        fewest = fewest_shared(np.array(sizes), np.array(lineages))
        if len(lineage) < 7:
            assert fewest == try_all(tuple(sorted(sizes)), lineages)
        assert count_shared(deal_alone(sizes, lineage, seed=seed), lineage) == fewest, (sizes, lineages)


@pytest.mark.parametrize(
    ("sizes", "lineages", "shared"),
    [
        ((3, 1, 1, 1), (2, 2, 2), 0),  # the batch of three has one of each
        ((5, 1, 1, 1), (2, 2, 2, 1, 1), 0),
        ((5, 1, 1, 1), (2, 2, 2, 2), 1),
        ((4, 4), (3, 2, 2, 1), 1),  # a lineage of three, two batches: the others need not meet
        ((2, 2, 2), (6,), 3),
        ((4, 2), (4, 2), 2),
    ],
)
def test_uneven_batches_share_what_they_must(sizes, lineages, shared):
    lineage = np.repeat(np.arange(len(lineages)), lineages)
    assert {count_shared(deal_alone(sizes, lineage, seed=seed), lineage) for seed in range(20)} == {shared}


@pytest.mark.parametrize("uneven", [0, 1, 6])
def test_random_rounds_relax_in_order_and_no_more_than_they_must(uneven):
    for seed in range(60):
        rng = np.random.default_rng([seed, uneven])
        quota = rng.integers(4, 5 + uneven, (rng.integers(2, 9), 2))
        stratum = np.repeat([0, 1], quota.sum(0))
        lineage = 20 * stratum + (8 * rng.random(len(stratum)) ** 2).astype(int)
        track = 3 * lineage + rng.integers(0, 3, len(lineage))
        anchor = 4 * track + rng.integers(0, 4, len(lineage))
        batch = deal(rng, quota, lineage, track, anchor)
        for coarse, fine in ((stratum, lineage), (lineage, track), (track, anchor)):
            for value in np.unique(coarse):
                own, of = batch[coarse == value], fine[coarse == value]
                sizes, counts = np.bincount(own), np.unique(of, return_counts=True)[1]
                assert count_shared(own, of) == fewest_shared(sizes, counts)


def test_what_is_left_of_a_lineage_is_spread_so_that_tracks_part():
    # lineage 0 has eight draws of two tracks for five batches, the largest of which takes no more of it than others
    lineage, track = [0] * 8 + [1] * 3 + [2] * 2, [0] * 4 + [1] * 4 + [2] * 3 + [3] * 2
    for seed in range(20):
        batch = deal_alone((2, 3, 2, 4, 2), lineage, track, np.arange(13), seed)
        assert (count_shared(batch, lineage), count_shared(batch, track)) == (3, 0)


def test_draws_change_places_where_the_other_one_leaves_its_lineage_behind():
    # batch 1 has two of lineage 9; one for a 7 of batch 0, where a 9 is already, and one sharing is left of two
    batch, lineage = np.array([0, 0, 0, 1, 1, 1]), np.array([7, 7, 9, 9, 9, 5])
    stratum = np.array([0, 1, 1, 0, 1, 2])  # only the first and the fourth may change places
    assert count_shared(batch, lineage) == 2
    assert separate(np.random.default_rng(0), batch, stratum, lineage).tolist()[0] == 1
    assert count_shared(separate(np.random.default_rng(0), batch, stratum, lineage), lineage) == 1
