"""Shuffle quality: expectations are exact, the ideal draw scores 1, and clumps are seen."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

from dynaclr_wds.plan.audit import expected_pairs
from dynaclr_wds.plan.audit.expected_pairs import UniformDraw
from dynaclr_wds.plan.audit.quality import effective_size, measure_quality, sample_ideal
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from tests.synthetic import Synthetic, make_index

TINY = make_index(
    Synthetic(
        experiments=1, conditions=("a", "b"), lineages=(3, 2), mother=3, daughter=0, fovs=2, clips_per_block=2, seed=4
    )
)  # HPI of the 3 x 2 and 2 x 2 anchors: 40.5 41 43.5 44 33.5 34 | 28 28.5 21 21.5, each pair one lineage
COLLECTION = make_index(Synthetic(experiments=3, lineages=(400, 100), fovs=8))
FOCUS = {"temporal_enrichment": True, "leaky": 0.2}


def batch(index: PlanIndex, anchors, **fields) -> BatchPlan:
    anchors = np.asarray(anchors)
    return BatchPlan(number=0, anchor=index.row[anchors].astype(np.int64), positive=None, **fields)


def counts_of(index: PlanIndex, plan: BatchPlan, window: float) -> dict[tuple[int, bool], int]:
    """Samples by (stratum, inside the window), the slow way."""
    at = index.find(plan.anchor)
    inside = np.abs(index.hpi(at) - plan.focal_hpi) <= window
    keys, count = np.unique(np.stack([index.stratum(at), inside]), axis=1, return_counts=True)
    return {(int(s), bool(i)): int(n) for s, i, n in zip(*keys, count, strict=True)}


def colliding(keys: np.ndarray) -> int:
    return sum(a == b for a, b in itertools.combinations(keys.tolist(), 2))


# --- expectation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("focal", [np.nan, 36.0])
def test_expected_pairs_equal_the_mean_over_every_possible_batch(focal):
    config = SamplingConfig(batch_size=5, temporal_window_hours=7.75)
    uniform, anchors = UniformDraw(TINY), np.arange(len(TINY.row))
    inside = np.abs(TINY.hpi(anchors) - focal) <= 7.75 if np.isfinite(focal) else np.ones(len(anchors), bool)
    cell = 2 * TINY.stratum(anchors) + ~inside
    drawn = {0: 3, 1: 1, 2: 1, 3: 2} if np.isfinite(focal) else {0: 3, 2: 2}
    assert all((cell == c).sum() >= n for c, n in drawn.items())
    count = np.zeros((2, 2), np.int64)
    for c, n in drawn.items():
        count[c // 2, c % 2] = n
    found = uniform.expected(count, uniform.spans(focal, config))
    choices = [itertools.combinations(anchors[cell == c].tolist(), n) for c, n in drawn.items()]
    batches = np.array([sum(choice, ()) for choice in itertools.product(*choices)])
    for kind, keys in (("fov", TINY.fov), ("lineage", TINY.lineage), ("block", TINY.block)):
        mean = np.mean([colliding(keys(b)) for b in batches])
        assert found[["fov", "lineage", "block"].index(kind)] == pytest.approx(mean), kind


@pytest.mark.parametrize("focal", [np.nan, 3.5])
def test_expected_pairs_count_those_between_strata_that_share_fovs_lineages_and_blocks(focal):
    # one experiment and condition; the early and the late half of every track are two strata
    spec = Synthetic(experiments=1, conditions=("a",), lineages=(4,), mother=4, daughter=0, fovs=2, clips_per_block=1)
    index = make_index(dataclasses.replace(spec, stratify_by=("stage",), frames=30, seed=2))
    assert index.sizes.tolist() == [8, 4]
    config = SamplingConfig(batch_size=4, temporal_window_hours=2.0)
    uniform, anchors = UniformDraw(index), np.arange(12)
    inside = np.abs(index.hpi(anchors) - focal) <= 2.0 if np.isfinite(focal) else np.ones(12, bool)
    part = 2 * index.stratum(anchors) + ~inside
    drawn = {p: min(2, int((part == p).sum())) for p in np.unique(part).tolist()}
    assert len(drawn) == (4 if np.isfinite(focal) else 2), index.hpi(anchors)
    count = np.zeros((2, 2), np.int64)
    for p, n in drawn.items():
        count[p // 2, p % 2] = n
    found = uniform.expected(count, uniform.spans(focal, config))
    choices = [itertools.combinations(anchors[part == p].tolist(), n) for p, n in drawn.items()]
    batches = np.array([sum(choice, ()) for choice in itertools.product(*choices)])
    for kind, keys in enumerate((index.fov, index.lineage, index.block)):
        mean = np.mean([colliding(keys(b)) for b in batches])
        assert found[kind] == pytest.approx(mean)
        assert mean > 0


def test_pairs_between_very_many_strata_are_those_of_each_two(monkeypatch):
    shared = make_index(
        Synthetic(experiments=3, lineages=(40, 10), stratify_by=("condition", "stage"))
    )  # lineages meet
    config, uniform = SamplingConfig(batch_size=48, **FOCUS), UniformDraw(shared)
    assert len(shared.strata) == 12
    for plan in itertools.islice(FlexibleBatchSampler(shared, config), 6):
        at = shared.find(plan.anchor)
        place = 2 * shared.stratum(at) + ~uniform.inside(at, plan.focal_hpi, config)
        asked = np.bincount(place, minlength=24).reshape(12, 2), uniform.spans(plan.focal_hpi, config)
        one_by_one = uniform.expected(*asked)
        with monkeypatch.context() as patch:
            patch.setattr(expected_pairs, "_FEW", 0)
            assert uniform.expected(*asked) == pytest.approx(one_by_one)
        assert min(one_by_one) > 0


def test_a_bin_that_gives_more_than_it_has_is_expected_to_repeat():
    only = make_index(Synthetic(experiments=1, conditions=("a",), lineages=(2,), mother=3, daughter=0))
    # 2 lineages x 2 anchors, 6 drawn: 15 pairs, each of one lineage with probability 1/2
    uniform = UniformDraw(only)
    assert uniform.expected(np.array([[6, 0]]), np.array([[0, 4]]))[1] == 7.5


@pytest.mark.parametrize(
    "options", [{}, FOCUS, {"condition_balanced": False, "leaky": 0.2}, {"experiment_aware": False}]
)
def test_an_ideal_draw_scores_one(options):
    config = SamplingConfig(batch_size=64, **options)
    uniform = UniformDraw(COLLECTION)
    plans = list(itertools.islice(FlexibleBatchSampler(COLLECTION, config), 200))
    found = measure_quality(COLLECTION, config, sample_ideal(uniform, config, plans, 0)).collisions
    assert found["value"].ratio == pytest.approx(1.0, abs=0.01)
    assert found["fov"].ratio == pytest.approx(1.0, abs=0.03)
    assert found["block"].ratio == pytest.approx(1.0, abs=0.04)
    assert found["lineage"].ratio == pytest.approx(1.0, abs=0.15)
    assert found["fov"].effective > 60


def test_an_ideal_draw_has_the_composition_of_its_original_and_repeats_nothing():
    config = SamplingConfig(batch_size=64, **FOCUS)
    plans = list(itertools.islice(FlexibleBatchSampler(COLLECTION, config), 20))
    for plan, ideal in zip(plans, sample_ideal(UniformDraw(COLLECTION), config, plans, 0), strict=True):
        assert counts_of(COLLECTION, ideal, 2.0) == counts_of(COLLECTION, plan, 2.0)
        assert len(set(ideal.anchor.tolist())) == 64
        tau = COLLECTION.columns.patch_t[ideal.positive] - COLLECTION.columns.patch_t[ideal.anchor]
        assert tau.min() >= 1
        assert tau.max() <= 4


def test_an_ideal_draw_is_the_same_for_the_same_seed_only():
    def first(seed: int, epoch: int) -> list[int]:
        config = SamplingConfig(batch_size=16, seed=seed)
        plan = FlexibleBatchSampler(COLLECTION, SamplingConfig(batch_size=16)).plan(0)
        (ideal,) = sample_ideal(UniformDraw(COLLECTION), config, [plan], epoch)
        return ideal.anchor.tolist()

    assert first(0, 0) == first(0, 0)
    assert len({tuple(first(*key)) for key in ((0, 0), (0, 1), (1, 0))}) == 3


# --- what is seen ----------------------------------------------------------------------------------------------------


def test_exact_mode_is_mixed_as_well_as_chance_and_keeps_lineages_apart():
    found = measure_quality(
        COLLECTION, config := SamplingConfig(batch_size=64), FlexibleBatchSampler(COLLECTION, config)
    )
    assert found.collisions["fov"].ratio < 1.05
    assert found.collisions["lineage"].ratio == 0.0
    assert found.collisions["value"].ratio == 1.0
    assert found.collisions["fov"].effective == 64


def test_batches_of_one_fov_are_seen():
    one = make_index(Synthetic(experiments=1, conditions=("a",), lineages=(400,), fovs=8))
    anchors = np.arange(len(one.row))
    fov = one.fov(anchors)
    config = SamplingConfig(batch_size=50, condition_balanced=False)
    found = measure_quality(one, config, [batch(one, anchors[fov == f][:50], group="e0") for f in range(8)])
    # 8 FOVs of about a tenth each: every pair collides instead of one in eight
    assert found.collisions["fov"].ratio == pytest.approx(8, rel=0.1)
    assert found.collisions["fov"].effective == pytest.approx(1, abs=0.2)


def test_a_lost_condition_balance_is_seen():
    config = SamplingConfig(batch_size=4)
    mock = np.arange(4)
    (found,) = (measure_quality(COLLECTION, config, [batch(COLLECTION, mock, group="e0")]).collisions["value"],)
    # 4 of one condition: 6 pairs; 2 and 2 were asked for: 2 pairs
    assert (found.ratio, found.expected) == (3.0, 2.0)


def test_streaming_from_a_narrow_window_shares_blocks():
    config = SamplingConfig(batch_size=32)
    window = int(COLLECTION.columns.block_bytes.sum() * 0.4)
    sampler = FlexibleBatchSampler(COLLECTION, config, window_bytes=window, num_streams=1)
    found = measure_quality(COLLECTION, config, sampler).collisions
    assert found["block"].ratio > 1.5
    assert found["fov"].ratio < 1.3


def test_distances_are_counted_in_batches_between_two_uses_of_a_lineage():
    a, b = 0, int(np.flatnonzero(TINY.lineage(np.arange(6)) != TINY.lineage(np.array([0])))[0])
    config = SamplingConfig(batch_size=1)
    # a in batches 0, 2, 6 and b in 1, 5: distances 2, 4 and 4
    order = [a, b, a, *([6] * 2), b, a]
    plans = [batch(TINY, [k], group="e0") for k in order]
    found = measure_quality(TINY, config, plans)
    assert (found.repeat_median, found.repeat_tenth) == (3.0, 1.3)  # and 1 for anchor 6: quantiles of 1, 2, 4, 4
    alone = measure_quality(TINY, config, plans[:1])
    assert (alone.repeat_median, alone.repeat_tenth) == (None, None)


def test_effective_size_is_that_of_kish():
    size = np.array([10.0, 10.0, 10.0, 10.0])
    # of 45 pairs: all collide, none, as many as expected, and a fifth of those that could
    seen, expected = np.array([45.0, 0.0, 9.0, 17.0]), np.array([0.0, 0.0, 9.0, 10.0])
    # rho = (17/45 - 10/45) / (35/45) = 0.2: 10 / (1 + 9 * 0.2)
    assert effective_size(size, seen, expected).tolist() == pytest.approx([1.0, 10.0, 10.0, 10 / 2.8])


def test_nothing_to_collide_is_no_ratio_and_json():
    config = SamplingConfig(batch_size=1)
    quality = measure_quality(TINY, config, [batch(TINY, [0], group="e0")])
    assert quality.collisions["fov"].ratio is None
    assert json.loads(json.dumps(quality.to_dict(), allow_nan=False))["collisions"]["fov"]["worst"] is None


def test_worst_is_the_worst_batch_and_ratio_that_of_all():
    index = dataclasses.replace(TINY)
    config = SamplingConfig(batch_size=2, condition_balanced=False)
    lineage = index.lineage(np.arange(6))
    apart = [0, int(np.flatnonzero(lineage != lineage[0])[0])]
    plans = [batch(index, [0, 1], group="e0"), *[batch(index, apart, group="e0")] * 4]
    found = measure_quality(index, config, plans).collisions["lineage"]
    # 3 lineages x 2 anchors: a pair is of one lineage with probability 3 x 1 / 15 = 0.2
    assert found.expected == pytest.approx(0.2)
    assert found.worst == pytest.approx(5.0)
    assert found.ratio == pytest.approx(1.0)
