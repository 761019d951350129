"""Weights that change with the epoch, and their two names: checked at setup, exact in every epoch, resumed exactly."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from tests.synthetic import Synthetic, make_index
from tests.test_sampler import fingerprint

INDEX = make_index(Synthetic(experiments=3, lineages=(60, 60), mother=12, daughter=12, frames=24, clips_per_block=8))
WEIGHTS = {0: {"e0": 1.0, "e1": 1.0}, 2: {"e0": 1.0, "e1": 1.0, "e2": 2.0}}
MODES = pytest.mark.parametrize("window", [None, 0.9], ids=["exact", "streaming"])


def sampler(window: float | None = None, epoch: int = 0, **config) -> FlexibleBatchSampler:
    reading = {} if window is None else {"window_bytes": int(window * INDEX.stored_bytes), "num_streams": 2}
    s = FlexibleBatchSampler(INDEX, SamplingConfig(**{"batch_size": 16, **config}), **reading)
    s.set_epoch(epoch)
    return s


@MODES
def test_the_entry_with_the_largest_epoch_that_has_come_holds(window):
    found, length = {}, set()
    for epoch in (0, 1, 2, 5):
        s = sampler(window, epoch, group_weights=WEIGHTS, leaky=0.25)
        found[epoch] = Counter(p.group for p in s)
        length.add(len(s))
        shares = {g.group: g.asked for g in s.report().groups}
        assert shares == ({"e0": 0.5, "e1": 0.5, "e2": 0.0} if epoch < 2 else {"e0": 0.25, "e1": 0.25, "e2": 0.5})
    (batches,) = length  # every epoch is equally long
    for epoch in (0, 1):
        assert set(found[epoch]) == {"e0", "e1"}
        assert abs(found[epoch]["e0"] - batches / 2) <= 2  # one per stream
    for epoch in (2, 5):
        assert abs(found[epoch]["e2"] - batches / 2) <= 2
        assert abs(found[epoch]["e0"] - batches / 4) <= 2


@MODES
def test_a_group_is_never_drawn_from_before_its_epoch(window):
    names = [s.experiment for s in INDEX.strata]
    s = sampler(window, 1, group_weights=WEIGHTS, leaky=0.25, return_negative=True)
    for plan in s:
        for rows in (plan.anchor, plan.negative):
            assert {names[k] for k in INDEX.stratum(INDEX.find(rows))} <= {"e0", "e1"}


@MODES
def test_resume_in_an_epoch_of_other_weights_equals_uninterrupted(window):
    whole = [fingerprint([p]) for p in sampler(window, 2, group_weights=WEIGHTS)]
    stopped = sampler(window, 2, group_weights=WEIGHTS)
    stopped.deliver(7)
    resumed = sampler(window, experiment_weights=WEIGHTS)  # the other name of the same thing
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert [fingerprint([p]) for p in resumed] == whole[7:]


def test_both_names_mean_the_same():
    one = sampler(group_weights={"e0": 2.0, "e1": 1.0}, stratify_ratio={"mock": 3.0, "infected": 1.0})
    other = sampler(experiment_weights={"e0": 2.0, "e1": 1.0}, condition_ratio={"mock": 3.0, "infected": 1.0})
    assert fingerprint(one) == fingerprint(other)
    assert one.report() == other.report()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"group_weights": {"e0": 1.0}, "experiment_weights": {"e0": 1.0}},
            "group_weights and experiment_weights are two",
        ),
        (
            {"stratify_ratio": {"mock": 1.0}, "condition_ratio": {"mock": 1.0}},
            "stratify_ratio and condition_ratio are tw",
        ),
        ({"group_weights": {1: {"e0": 1.0}}}, r"epochs, from 0 on.*Write group_weights: \{a: 2, b: 1\}, or"),
        ({"group_weights": {0: {"e0": 1.0}, "e1": 1.0}}, "must map group names to weights, or epochs"),
        ({"group_weights": {0: {"e0": 1.0}, 9: {"e7": 1.0}}}, r"group_weights names \['e7'\].*'e0', 'e1', 'e2'"),
        ({"experiment_weights": {0: {"e0": 1.0}, 9: {"e0": 0.0}}}, r"experiment_weights\[9\]=.* at least one > 0"),
        ({"stratify_ratio": {"zika": 1.0}}, r"stratify_ratio names \['zika'\]"),
    ],
)
def test_what_is_wrong_is_named_at_setup_whichever_epoch_it_is_for(config, message):
    with pytest.raises(ValueError, match=message):
        sampler(**config)


def test_no_labels_mean_batches_from_everything_with_nothing_balanced():
    spec = Synthetic(experiments=2, lineages=(30, 10), batch_group_by=(), stratify_by=())
    index = make_index(spec)
    s = FlexibleBatchSampler(index, SamplingConfig(batch_size=16))
    plans = list(s)
    drawn = Counter(int(row) for p in plans for row in p.anchor)
    assert max(drawn.values()) == 1
    assert len(plans) == len(index.row) // 16 == 90
    assert {p.group for p in plans} == {""}
    assert s.report().composition == ()
    with pytest.raises(ValueError, match=r"group_weights=.*, but batch_group_by names no label"):
        FlexibleBatchSampler(index, SamplingConfig(group_weights={"e0": 1.0}))
