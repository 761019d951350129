"""The laws of the order that is computed place by place: every pass reaches each anchor once, and spreads clips."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaclr_wds.plan.compose.hashed_order import find_places
from dynaclr_wds.plan.config import TEMPORAL, SamplingConfig
from dynaclr_wds.plan.rng import Tag, make_generator
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from tests.random_sets import Case, Shape
from tests.test_sampler import fingerprint


def passes(stratum: int, size: int, seed: int, count: int) -> np.ndarray:
    """The anchors of the first passes through a stratum, one pass a row."""
    draw = np.arange(count * size)
    full = np.full(len(draw), size)
    rng = make_generator(Tag.QUEUE, seed)
    return find_places(rng, np.full(len(draw), stratum), draw // size, draw % size, full).reshape(count, size)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 700), stratum=st.integers(0, 50_000), seed=st.integers(0, 99))
def test_every_pass_reaches_each_anchor_once_and_no_two_are_alike(size, stratum, seed):
    found = passes(stratum, size, seed, 3)
    assert (np.sort(found, axis=1) == np.arange(size)).all()
    if size > 12:
        assert len(np.unique(found, axis=0)) == 3
        assert (found != passes(stratum + 1, size, seed, 3)).any()


def test_places_are_the_same_in_whatever_order_they_are_asked_for():
    rng = np.random.default_rng(0)
    size = rng.integers(1, 60, 500)
    stratum, number, place = np.arange(500), rng.integers(0, 9, 500), rng.integers(0, size)
    together = find_places(make_generator(Tag.QUEUE, 5), stratum, number, place, size)
    for k in rng.integers(0, 500, 20):
        alone = (stratum[k : k + 1], number[k : k + 1], place[k : k + 1], size[k : k + 1])
        assert find_places(make_generator(Tag.QUEUE, 5), *alone) == together[k]


def test_a_stretch_of_a_queue_holds_few_anchors_of_each_clip():
    # 50 clips of 8 anchors: in a stretch of 50 draws no clip comes more than twice, since turns of 50 visit each once
    for stratum in range(20):
        clips = passes(stratum, 400, 1, 4).reshape(-1) // 8
        for begin in range(0, len(clips) - 50, 7):
            assert np.bincount(clips[begin : begin + 50]).max() <= 2


def test_first_and_later_anchors_of_a_stratum_come_equally_early():
    place = np.array([np.argsort(passes(stratum, 100, 0, 1)[0]) for stratum in range(2000)])
    # mean place 49.5; the standard error of a mean of 2,000 is 0.65
    assert np.abs(place.mean(0) - 49.5).max() < 4 * 0.65
    # neighbours of a queue are as far apart in the stratum as two anchors are by chance: 101 / 3, but not in one cell
    apart = np.abs(np.diff(np.argsort(place, axis=1), axis=1))
    assert 30 < apart.mean() < 40


def test_the_pinned_golden_order_of_many_strata():
    # Published runs depend on this order. If a change must alter it, say so in CHANGELOG.md.
    shape = Shape(
        experiments=3,
        lineages=100,
        genes=200,
        nulls=False,
        by_gene=False,
        clip_anchors=6,
        clips_per_block=4,
        tau_max=2,
        seed=0,
    )
    case = Case(
        shape=shape,
        group_by=("condition",),
        stratify_by=("gene",),
        positives=TEMPORAL,
        channels=None,
        plain=SamplingConfig(batch_size=16, leaky=0.1),
        weights=None,
        ratio=None,
    )
    assert len(case.index.strata) > 128
    assert fingerprint(FlexibleBatchSampler(case.index, case.config)) == "d43d03d1d89b64de"
