"""The laws of the plan on random label tables: many groups and values, sizes with long tails, nulls, changing labels.

A case is a table and the way of reading it. What else a batch may be asked for is one entry of `SETTINGS` each.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.listing import plan_index
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from tests.synthetic import Synthetic, make_columns
from tests.test_sampler import fingerprint

SETTINGS = {"plain": {}, "leak": {"leaky": 0.25}, "focus": {"temporal_enrichment": True, "temporal_window_hours": 4.0}}
EVERY = pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS.keys())
LAWS = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclasses.dataclass(frozen=True)
class Case:
    """A random label table; `changing` labels differ along a track."""

    groups: int
    values: int
    changing: bool
    nulls: bool
    seed: int
    by_group: bool = True

    @property
    def index(self) -> PlanIndex:
        spec = Synthetic(experiments=1, conditions=("c",), lineages=(max(90, 2 * self.groups * self.values),), seed=3)
        columns, codes = make_columns(spec)
        rng = np.random.default_rng(self.seed)
        owner = np.arange(len(columns.obs_track)) // (7 if self.changing else 20)  # a lineage has 20 observations
        labels = dict(columns.labels)
        for name, count in (("group", self.groups), ("value", self.values)):
            tail = 1 / np.arange(1, count + 1)
            labels[name] = (rng.choice(count, owner.max() + 1, p=tail / tail.sum())[owner] - self.nulls).astype(
                np.int32
            )
        names = {"group": [f"g{k}" for k in range(self.groups)], "value": [f"v{k}" for k in range(self.values)]}
        return plan_index(
            dataclasses.replace(columns, labels=labels),
            dataclasses.replace(codes, values={**codes.values, **names}),
            (0.5, 2.0),
            batch_group_by=("group",) if self.by_group else (),
            stratify_by=("value",),
        )


CASES = st.builds(
    Case,
    groups=st.integers(1, 3),
    values=st.sampled_from([1, 2, 3, 40, 300]),
    changing=st.booleans(),
    nulls=st.booleans(),
    seed=st.integers(0, 999),
    by_group=st.booleans(),
)


def count_values(index: PlanIndex, rows: np.ndarray) -> Counter[int]:
    return Counter(index.columns.labels["value"][index.columns.patch_obs[rows]].tolist())


def group_names(index: PlanIndex, rows: np.ndarray) -> list[str]:
    codes = index.columns.labels["group"][index.columns.patch_obs[rows]].tolist()
    return ["~" if code < 0 else f"g{code}" for code in codes]


@EVERY
@LAWS
@given(case=CASES, size=st.integers(4, 40))
def test_groups_are_pure_leaks_and_value_quotas_exact_and_batches_full(options, case, size):
    index = case.index
    s = FlexibleBatchSampler(index, SamplingConfig(batch_size=size, **options))
    values: dict[str, set[int]] = {}
    for name, code in zip(*(_labels(index)), strict=True):
        values.setdefault(name if case.by_group else "", set()).add(code)
    total: dict[str, Counter[int]] = {}
    batches: Counter[str] = Counter()
    for plan in s:
        assert len(plan) == size
        own = size if not case.by_group else group_names(index, plan.anchor).count(plan.group)
        if len(values) > 1:
            assert abs(size - own - options.get("leaky", 0) * size) < 1
        else:
            assert own == size
        if "leaky" in options:
            continue
        found = count_values(index, plan.anchor)
        quota = size / len(values[plan.group])
        assert set(found) <= values[plan.group]
        assert all(abs(found[v] - quota) < 1 + 1e-9 for v in values[plan.group])
        total.setdefault(plan.group, Counter()).update(found)
        batches[plan.group] += 1
    for group, found in total.items():
        quota = size / len(values[group]) * batches[group]
        assert all(abs(found[v] - quota) < 1 + 1e-6 for v in values[group])


def _labels(index: PlanIndex) -> tuple[list[str], list[int]]:
    return group_names(index, index.row), index.columns.labels["value"][index.columns.patch_obs[index.row]].tolist()


@LAWS
@given(case=CASES, size=st.integers(4, 40))
def test_coverage_with_and_without_balance(case, size):
    index = case.index
    drawn = Counter()
    for plan in FlexibleBatchSampler(index, SamplingConfig(batch_size=size, condition_balanced=False)):
        drawn.update(plan.anchor.tolist())
    large = [
        n for n in Counter(index.group_of[index.stratum(np.arange(len(index.row)))].tolist()).values() if n >= size
    ]
    if len(large) == len(index.group_names):  # a smaller group fills its only batch with repeats
        assert max(drawn.values()) == 1
        assert len(index.row) - len(drawn) < len(large) * size
    balanced = FlexibleBatchSampler(index, SamplingConfig(batch_size=size))
    draws = np.bincount(index.find(np.concatenate([p.anchor for p in balanced])), minlength=len(index.row))
    for a, b in zip(index.first[:-1], index.first[1:], strict=True):
        assert np.ptp(draws[a:b]) <= 1


@EVERY
@LAWS
@given(case=CASES, world=st.integers(2, 3))
def test_ranks_are_equal_and_resume_is_exact(options, case, world):
    index, config = case.index, SamplingConfig(batch_size=16, **options)
    whole = [fingerprint([p]) for p in islice(FlexibleBatchSampler(index, config), 4 * world)]
    ranks = [FlexibleBatchSampler(index, config, rank=r, world_size=world) for r in range(world)]
    assert len({len(r) for r in ranks}) == 1
    ranks[0].deliver(min(2, len(ranks[0])))
    resumed = FlexibleBatchSampler(index, config)
    resumed.load_state_dict(ranks[0].state_dict())
    rest = [fingerprint([p]) for p in islice(resumed, 4)]
    assert rest == whole[resumed.start : resumed.start + len(rest)]


def test_the_state_is_small_however_many_strata_there_are():
    index = Case(groups=3, values=300, changing=True, nulls=False, seed=0).index
    assert len(index.strata) > 300
    assert len(str(FlexibleBatchSampler(index, SamplingConfig(batch_size=16)).state_dict())) < 1200
