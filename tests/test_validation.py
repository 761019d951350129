"""Validation reads a fixed table: every anchor once, each batch a fair one, the first batches a fair sample of all."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.validation import plan_lasting_quotas, plan_validation
from tests.synthetic import Synthetic, make_index
from tests.test_sampler import fingerprint

COLLECTION = make_index(Synthetic(experiments=3, lineages=(60, 20)), e1=(120, 20))
SIZE = 32
CONFIG = SamplingConfig(batch_size=SIZE, seed=5)
# anchors: 18 a lineage, so e0 and e2 have 1080 mock and 360 infected each, e1 2160 and 360


def batches(index, table) -> list[tuple[np.ndarray, list[tuple[str, str]]]]:
    """Lineages and (experiment, condition) of every run of SIZE samples."""
    names = [(s.experiment, s.value_name) for s in index.strata]
    anchors = index.find(table.anchor)
    runs = [anchors[a : a + SIZE] for a in range(0, len(anchors), SIZE)]
    return [(index.lineage(run), [names[s] for s in index.stratum(run)]) for run in runs]


def test_every_anchor_comes_once_with_a_positive():
    table = plan_validation(COLLECTION, CONFIG)
    assert sorted(table.anchor.tolist()) == sorted(COLLECTION.row.tolist())
    columns = COLLECTION.columns
    assert (columns.patch_clip[table.positive] == columns.patch_clip[table.anchor]).all()
    tau = columns.patch_t[table.positive] - columns.patch_t[table.anchor]
    assert set(tau.tolist()) == {1, 2, 3, 4}


def test_full_batches_are_of_one_experiment_and_balanced_while_it_lasts():
    found = batches(COLLECTION, plan_validation(COLLECTION, CONFIG))
    full = [where for _, where in found[:168]]  # 45 + 78 + 45 full batches
    assert all(len({e for e, _ in where}) == 1 for where in full)
    for name, last in (("e0", 22), ("e1", 22), ("e2", 22)):  # 360 infected fill 22 half batches
        own = [Counter(c for _, c in where) for where in full if where[0][0] == name]
        assert own[:last] == [{"mock": 16, "infected": 16}] * last
        assert own[last] == {"mock": 24, "infected": 8}
        assert all(count == {"mock": 32} for count in own[last + 1 :])


def test_what_is_left_of_each_group_comes_last():
    index = make_index(Synthetic(experiments=3, lineages=(7, 3)))  # 126 and 54 anchors: 5 batches and 20 of each
    found = batches(index, plan_validation(index, CONFIG))
    assert all(len({e for e, _ in where}) == 1 for _, where in found[:15])
    assert Counter(e for _, where in found[15:] for e, _ in where) == {"e0": 20, "e1": 20, "e2": 20}


def test_the_first_batches_are_a_fair_sample_of_the_groups():
    found = batches(COLLECTION, plan_validation(COLLECTION, CONFIG))
    groups = [where[0][0] for _, where in found[:168]]
    for n in range(1, 168):
        count = Counter(groups[:n])
        for name, batches_of in (("e0", 45), ("e1", 78), ("e2", 45)):
            assert abs(count[name] - n * batches_of / 168) <= 1


def test_lineages_are_distinct_as_far_as_possible():
    found = batches(COLLECTION, plan_validation(COLLECTION, CONFIG))
    even = {"mock": 16, "infected": 16}
    balanced = [lineage for lineage, where in found[:168] if Counter(c for _, c in where) == even]
    assert len(balanced) == 66
    assert sum(len(lineage) - len(set(lineage.tolist())) for lineage in balanced) == 0
    stored = [COLLECTION.lineage(np.arange(a, a + SIZE)) for a in range(0, 5000, SIZE)]
    ours = sum(SIZE - len(set(lineage.tolist())) for lineage, _ in found[:156])
    assert ours < 0.2 * sum(SIZE - len(set(lineage.tolist())) for lineage in stored)


def test_the_table_depends_on_index_and_config_alone():
    one, again = plan_validation(COLLECTION, CONFIG), plan_validation(COLLECTION, CONFIG)
    assert (one.anchor == again.anchor).all()
    assert (one.positive == again.positive).all()
    other = plan_validation(COLLECTION, SamplingConfig(batch_size=SIZE, seed=6))
    assert (one.anchor != other.anchor).any()


def test_the_pinned_golden_order():
    # Published validation losses depend on this order. If a change must alter it, say so in CHANGELOG.md.
    assert fingerprint([plan_validation(COLLECTION, CONFIG)]) == "2704ab2dfac5896d"


def test_negatives_are_other_lineages_of_the_group():
    table = plan_validation(COLLECTION, SamplingConfig(batch_size=SIZE, return_negative=True))
    anchor, negative = COLLECTION.find(table.anchor), COLLECTION.find(table.negative)
    assert (COLLECTION.lineage(anchor) != COLLECTION.lineage(negative)).all()
    experiment = np.array([s.experiment for s in COLLECTION.strata])
    assert (experiment[COLLECTION.stratum(anchor)] == experiment[COLLECTION.stratum(negative)]).all()


def test_values_with_share_0_and_unknown_names_are_listed_all_the_same():
    config = SamplingConfig(
        batch_size=SIZE, condition_ratio={"infected": 1.0, "zika": 1.0}, experiment_weights={"elsewhere": 1.0}
    )
    found = batches(COLLECTION, plan_validation(COLLECTION, config))
    assert sum(len(where) for _, where in found) == len(COLLECTION.row)
    assert [Counter(c for _, c in where) for _, where in found[:3]] == [{"infected": 32}] * 3


@pytest.mark.parametrize("options", [{"experiment_aware": False}, {"condition_balanced": False}])
def test_every_anchor_comes_once_whatever_is_asked(options):
    table = plan_validation(COLLECTION, SamplingConfig(batch_size=SIZE, **options))
    assert sorted(table.anchor.tolist()) == sorted(COLLECTION.row.tolist())


def test_an_index_without_anchors_makes_an_empty_table():
    assert len(plan_validation(make_index(Synthetic(lineages=(0, 0))), CONFIG)) == 0


@settings(max_examples=50, deadline=None)
@given(
    left=st.lists(st.integers(0, 90), min_size=1, max_size=4),
    share=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    size=st.integers(1, 20),
)
def test_lasting_quotas_fill_every_batch_and_never_take_what_is_not_there(left, share, size):
    found = plan_lasting_quotas(np.array(left), np.array(share[: len(left)], float), size)
    assert len(found) == sum(left) // size
    assert (found.sum(1) == size).all()
    assert (found >= 0).all()
    assert (found.sum(0) <= np.array(left)).all()
