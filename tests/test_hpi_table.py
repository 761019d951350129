"""Draws by time: what lies in a window is found as a slow look at every anchor finds it, and quotas stay exact."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from dynaclr_wds.plan.compose.hpi_table import WindowDraws, make_hpi_table
from dynaclr_wds.plan.config import TEMPORAL, SamplingConfig
from dynaclr_wds.plan.listing import plan_index
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from tests.random_sets import Case, Shape
from tests.synthetic import Synthetic, make_columns, make_index

GENES = 150


@pytest.fixture(scope="module")
def screen():
    """One experiment of 6,000 lineages in 150 genes, each with cells at all times: too many values for a table."""
    columns, codes = make_columns(Synthetic(experiments=1, conditions=("all",), lineages=(6000,), frames=48))
    gene = np.random.default_rng(9).integers(0, GENES, 6000)[columns.obs_track // 3]
    columns = dataclasses.replace(columns, labels={**columns.labels, "gene": gene.astype(np.int32)})
    names = tuple(f"g{k}" for k in range(GENES))
    codes = dataclasses.replace(codes, values={**codes.values, "gene": names})
    return plan_index(columns, codes, (0.5, 2.0), batch_group_by=(), stratify_by=("gene",))


@pytest.mark.parametrize("frames", [96, 4000], ids=["more anchors than frames", "fewer"])
def test_slices_of_a_window_are_what_every_anchor_says(frames):
    index = make_index(Synthetic(experiments=2, lineages=(9, 4), frames=frames))
    table = make_hpi_table(index, np.arange(len(index.row)), index.sizes, np.arange(4))
    hpi, stratum = index.hpi(table.anchor), index.stratum(table.anchor)
    assert sorted(table.anchor.tolist()) == list(range(len(index.row)))
    rows = np.array([3, 0, 2])
    for low, high in ((10.0, 14.0), (-5.0, 0.0), (12.1, 12.2), (1e6, 2e6), (-np.inf, np.inf)):
        for row, begin, end in zip(rows.tolist(), *table.slices(rows, low, high), strict=True):
            inside = (stratum == row) & (hpi >= low) & (hpi <= high)
            assert np.flatnonzero(inside).tolist() == list(range(begin, end))


@pytest.mark.parametrize("inside", [True, False])
def test_draws_are_of_their_group_and_side_in_proportion_to_what_is_there(inside):
    index = make_index(Synthetic(experiments=2, lineages=(40, 20), frames=96))
    table = make_hpi_table(index, np.arange(len(index.row)), index.sizes, np.arange(4))
    # strata 0 and 3 are group 1, of which stratum 3 is asked three times as often for its size; group 0 is stratum 2
    rows, group, weight = np.array([0, 2, 3]), np.array([1, 0, 1]), index.sizes[[0, 2, 3]] * np.array([1, 1, 3])
    more = WindowDraws(np.random.default_rng(0), table, rows, group, weight)
    anchor, of = more.draw(np.array([0, 1]), np.array([500, 8000]), 10.0, 14.0, inside=inside)
    stratum, hpi = index.stratum(anchor), index.hpi(anchor)
    assert Counter(of.tolist()) == {0: 500, 1: 8000}
    assert set(stratum[of == 0].tolist()) == {2}
    assert set(stratum[of == 1].tolist()) == {0, 3}
    assert (((hpi >= 10) & (hpi <= 14)) == inside).all()
    every = np.arange(len(index.row))
    there = ((index.hpi(every) >= 10) & (index.hpi(every) <= 14)) == inside
    offered = np.bincount(index.stratum(every)[there], minlength=4)
    expected = offered[0] / (offered[0] + 3 * offered[3])
    assert abs((stratum[of == 1] == 0).mean() - expected) < 0.025
    one = offered[2]  # uniform: no anchor of group 0 comes much too often
    assert np.unique(anchor[of == 0], return_counts=True)[1].max() < 500 / one + 6 * np.sqrt(500 / one) + 4


def test_a_group_that_has_nothing_at_that_time_gives_nothing():
    index = make_index(Synthetic(experiments=2, lineages=(9, 4)))
    table = make_hpi_table(index, np.arange(len(index.row)), index.sizes, np.arange(4))
    more = WindowDraws(np.random.default_rng(0), table, np.arange(4), np.arange(4), np.ones(4, int))
    anchor, of = more.draw(np.arange(4), np.full(4, 5), 1e6, 2e6, inside=True)
    assert (len(anchor), len(of)) == (0, 0)


def test_many_values_near_one_time_keep_quotas_windows_and_lineages(screen):
    config = SamplingConfig(batch_size=64, temporal_enrichment=True, temporal_window_hours=3.0)
    assert len(screen.strata) == GENES
    sampler = FlexibleBatchSampler(screen, config)
    near = np.zeros(GENES, int)
    for number in range(64):
        plan = sampler.plan(number)
        anchor = screen.find(plan.anchor)
        assert max(Counter(screen.stratum(anchor).tolist()).values()) == 1  # 64 / 150 of each value: at most one
        assert len(set(screen.lineage(anchor).tolist())) == 64
        inside = np.abs(screen.hpi(anchor) - plan.focal_hpi) <= 3.0 + 1e-6
        # 70 % of 64 is 44.8
        assert np.count_nonzero(inside) in (44, 45)
        np.add.at(near, screen.stratum(anchor)[inside], 1)
    # no values are always outside: each third has a third of 64 · 44.8 samples near
    assert (np.abs(near.reshape(3, -1).sum(1) - 956) < 150).all()


def test_streamed_draws_by_time_are_of_blocks_that_stay_for_the_round():
    shape = Shape(
        experiments=3,
        lineages=80,
        genes=300,
        nulls=False,
        by_gene=True,
        clip_anchors=4,
        clips_per_block=1,
        tau_max=2,
        seed=3,
    )
    case = Case(
        shape=shape,
        group_by=(),
        stratify_by=("gene",),
        positives=TEMPORAL,
        channels=None,
        plain=SamplingConfig(batch_size=16, temporal_enrichment=True, temporal_window_hours=2.0),
        weights=None,
        ratio=None,
        streams=1,
        window=0.9,
    )
    pool = case.whole._planners[0].epoch(0).pool
    strata = np.arange(len(pool.origin))
    assert len(strata) > 128
    table, rows = pool.by_hpi(0, strata)
    drawn = pool.draw(np.random.default_rng(0), 0, strata, 400 * (pool.reach(0, strata) > 0))
    assert set(drawn.tolist()) == set(table.anchor.tolist())  # what many draws find within reach
    assert (case.index.stratum(table.anchor) == pool.origin[np.repeat(rows, np.diff(table.first))]).all()
    for plan in itertools.islice(case.whole, 40):
        assert len(plan.anchor) == 16
