"""Groups and strata of any labels: the same strata from partitions and from codes, and the laws of the plan on them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from dynaclr_wds.plan.compose.lineages import separate
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex, Stratum
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from tests.synthetic import Synthetic, index_columns, make_columns, make_index
from tests.test_sampler import fingerprint

ALIVE = {"lineages": (60, 40), "frames": 24, "mother": 12, "daughter": 6, "clips_per_block": 8}
BY_MARKER = {"shard_by": ("marker", "condition"), "batch_group_by": ("marker",), **ALIVE}
SHARED = make_index(Synthetic(experiments=4, markers=("er", "golgi"), **BY_MARKER))
"""Two experiments have each marker, so shards of a marker hold both."""
OWN = make_index(Synthetic(experiments=3, markers=("er", "golgi", "nuclei"), **BY_MARKER))
"""Every experiment has a marker of its own."""
STAGES = make_index(Synthetic(experiments=2, stratify_by=("condition", "stage"), **ALIVE))
"""Three labels make the strata, and one of them changes along a track."""

CASES = pytest.mark.parametrize(
    ("index", "window"),
    [(SHARED, None), (OWN, None), (OWN, 0.8)],
    ids=["shared markers, exact", "own markers, exact", "own markers, streaming"],
)


def sampler(
    index: PlanIndex, window: float | None = None, rank: int = 0, world_size: int = 1, num_streams: int = 2, **config
) -> FlexibleBatchSampler:
    return FlexibleBatchSampler(
        index,
        SamplingConfig(**{"batch_size": 16, **config}),
        rank=rank,
        world_size=world_size,
        window_bytes=None if window is None else int(window * index.stored_bytes),
        num_streams=num_streams,
    )


def samples(index: PlanIndex, rows: np.ndarray) -> list[tuple[str, ...]]:
    """Experiment, condition, marker and stage of the observations behind patch rows, straight from the columns."""
    obs = index.columns.patch_obs[rows]
    codes = [index.columns.labels[name][obs] for name in ("experiment", "condition", "marker", "stage")]
    names = [[f"e{k}" for k in range(4)], ["mock", "infected"], ["er", "golgi", "nuclei"], ["early", "late"]]
    return list(zip(*(np.array(n)[c].tolist() for n, c in zip(names, codes, strict=True)), strict=True))


def lineages(index: PlanIndex, rows: np.ndarray) -> np.ndarray:
    return index.columns.clip_lineage[index.columns.patch_clip[rows]]


# --- the index ---------------------------------------------------------------------------------------------------


def test_strata_from_partitions_equal_strata_from_codes():
    spec = Synthetic(experiments=3, lineages=(20, 6), markers=("er", "golgi"))
    fast, slow = make_index(spec), make_index(dataclasses.replace(spec, shard_by=("marker",)))
    assert [s.name for s in fast.strata] == [
        "e0/mock",
        "e0/infected",
        "e1/mock",
        "e1/infected",
        "e2/mock",
        "e2/infected",
    ]
    assert slow.strata == fast.strata
    assert slow.sizes.tolist() == fast.sizes.tolist() == [360, 108, 360, 108, 360, 108]  # lineages x 18 anchors
    for a, b in zip(fast.first[:-1], fast.first[1:], strict=True):
        one, other = (set(i.columns.patch_obs[i.row[a:b]].tolist()) for i in (fast, slow))
        assert one == other


def test_rows_ascend_in_each_stratum_and_are_found():
    spec = Synthetic(experiments=3, lineages=(20, 6), markers=("er", "golgi"), shard_by=("marker", "condition"))
    index = make_index(spec)
    assert (np.diff(index.row) < 0).any()  # but not over all
    for a, b in zip(index.first[:-1], index.first[1:], strict=True):
        assert (np.diff(index.row[a:b]) > 0).all()
    order = np.random.default_rng(0).permutation(len(index.row))
    assert index.find(index.row[order]).tolist() == order.tolist()
    other = np.setdiff1d(np.arange(len(index.columns.patch_obs)), index.row)
    assert set(index.find(other).tolist()) == {-1}


def test_several_partitions_make_one_stratum():
    spec = Synthetic(experiments=2, conditions=("a", "b", "c"), lineages=(5, 6, 7), stratify_by=("marker",))
    index = make_index(spec)
    assert [s.name for s in index.strata] == ["e0/nuclei", "e1/nuclei"]
    assert index.sizes.tolist() == [18 * 18, 18 * 18]
    assert (np.diff(index.row) > 0).all()


@pytest.mark.parametrize("shard_by", [("experiment", "condition"), ("marker",)])
def test_filters_leave_experiments_and_fovs_out(shard_by):
    spec = Synthetic(experiments=3, lineages=(30, 10), shard_by=shard_by)
    columns, codes = make_columns(spec)
    keep_fov = np.arange(len(columns.fov_experiment)) % 2 == 0
    index = index_columns(spec, columns, codes, keep_experiment=[True, False, True], keep_fov=keep_fov)
    assert {s.experiment for s in index.strata} == {"e0", "e2"}
    obs = columns.patch_obs[np.flatnonzero(columns.patch_has_candidate)]
    fov = columns.obs_fov[obs]
    assert len(index.row) == (keep_fov[fov] & (columns.fov_experiment[fov] != 1)).sum()
    assert keep_fov[index.fov(np.arange(len(index.row)))].all()
    # 2 of the 20 samples of a lineage, the ends of both daughters, have no positive
    assert [w * 9 for w in index.without_positive] == index.sizes.tolist()


def test_a_null_label_is_a_group_of_its_own():
    spec = Synthetic(experiments=2, lineages=(20, 20), shard_by=("condition",), batch_group_by=("marker",))
    columns, codes = make_columns(spec)
    marker = np.where(columns.fov_experiment[columns.obs_fov] == 0, -1, 0).astype(np.int32)
    index = index_columns(spec, dataclasses.replace(columns, labels={**columns.labels, "marker": marker}), codes)
    assert [(s.experiment, s.group, s.group_name) for s in index.strata[::2]] == [
        ("e0", (None,), "~"),
        ("e1", ("nuclei",), "nuclei"),
    ]
    assert {p.group for p in sampler(index)} == {"~", "nuclei"}


def test_samples_without_a_positive_are_counted_even_where_a_stratum_has_no_other():
    spec = Synthetic(experiments=2, conditions=("c",), lineages=(10,))
    columns, codes = make_columns(spec)
    first = columns.fov_experiment[columns.obs_fov[columns.patch_obs]] == 0
    columns = dataclasses.replace(columns, patch_has_candidate=columns.patch_has_candidate & ~first)
    index = index_columns(spec, columns, codes)
    assert [(s.name, n) for s, n in index.barren] == [("e0/c", 200)]
    assert (len(index.strata), index.without_positive) == (1, (20,))
    coverage = sampler(index).report().coverage
    assert [(c.experiment, c.anchors, c.without_positive) for c in coverage] == [("e1", 180, 20), ("e0", 0, 200)]


def test_a_narrower_tau_range_leaves_those_without_a_positive_out():
    spec = Synthetic(experiments=1, conditions=("c",), lineages=(10,))
    index = index_columns(spec, *make_columns(spec), tau_range_hours=(1.5, 2.0))  # 3 and 4 frames
    # of a mother of 8 frames and daughters of 6, the last 3 of each daughter have none
    assert (len(index.row), index.without_positive) == (140, (60,))
    with pytest.raises(ValueError, match=r"tau_range: 3…5 frames .* in experiment 'e0', but its shards hold .* 1…4"):
        index_columns(spec, *make_columns(spec), tau_range_hours=(1.5, 2.5))


def test_a_label_that_is_not_there_is_named_with_its_setting_and_the_way_to_add_it():
    with pytest.raises(ValueError, match=r"^stratify_by names \['stain'\], .* Their labels are \['condition', 'experi"):
        make_index(Synthetic(stratify_by=("condition", "stain")))
    with pytest.raises(
        ValueError, match=r"^batch_group_by names \['dye'\] and stratify_by names \['stain'\], which the"
    ):
        make_index(Synthetic(batch_group_by=("dye",), stratify_by=("stain",)))
    with pytest.raises(
        ValueError, match=r"give it in experiments\.yaml \(labels, well_labels or label_columns\) and build"
    ):
        make_index(Synthetic(batch_group_by=("dye",)))


def test_an_index_and_a_sampler_say_what_they_are_in_one_line():
    assert (
        repr(STAGES)
        == "PlanIndex(4,400 anchors of 2 experiments, in 8 combinations of experiment and condition and stage)"
    )
    assert repr(sampler(STAGES)) == "FlexibleBatchSampler(exact, 2 experiments, 4,400 samples, 274 batches of 16)"
    told = repr(sampler(OWN, 0.8))
    assert told.startswith("FlexibleBatchSampler(streaming in ")
    assert told.endswith(" bytes and 2 streams, 3 experiments, 6,600 samples, 408 batches of 16)")


# --- the laws ----------------------------------------------------------------------------------------------------


@CASES
def test_groups_quotas_and_lineages_hold_together(index, window):
    marker = {"SHARED": {"er", "golgi"}, "OWN": {"er", "golgi", "nuclei"}}["SHARED" if index is SHARED else "OWN"]
    seen = set()
    for plan in sampler(index, window, leaky=0.25):
        found = samples(index, plan.anchor)
        assert Counter(s[2] == plan.group for s in found) == {True: 12, False: 4}
        assert Counter(s[1] for s in found) == {"mock": 8, "infected": 8}
        assert len(set(lineages(index, plan.anchor).tolist())) == 16
        seen.add(plan.group)
    assert seen == marker


def test_a_group_takes_from_all_of_its_experiments():
    for plan in sampler(SHARED):
        count = Counter(s[:2] for s in samples(SHARED, plan.anchor))
        assert set(count.values()) == {4}  # 2 experiments x 2 conditions, all of one size
        assert len(count) == 4


@CASES
def test_every_anchor_comes_once_without_balancing(index, window):
    s = sampler(index, window, num_streams=1, condition_balanced=False)
    drawn = Counter(np.concatenate([p.anchor for p in s]).tolist())
    assert max(drawn.values()) == 1
    assert len(index.row) - len(drawn) < 16 * 3  # a batch of each group


@CASES
def test_ranks_get_equal_parts_of_one_sequence(index, window):
    features = {"leaky": 0.25, "temporal_enrichment": True}
    one = sampler(index, window, **features)
    ranks = [sampler(index, window, rank, 2, **features) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == len(one) // 2
    for number in (0, len(one) // 4 * 2, len(one) - 2):
        parts = [fingerprint([ranks[n % 2].plan(n)]) for n in (number, number + 1)]
        assert parts == [fingerprint([one.plan(n)]) for n in (number, number + 1)]
    first = [[p.number for p in islice(rank, 3)] for rank in ranks]
    assert first == [[0, 2, 4], [1, 3, 5]]


@CASES
def test_resume_equals_uninterrupted(index, window):
    features = {"leaky": 0.25, "temporal_enrichment": True, "batch_size": 24}
    whole = [fingerprint([p]) for p in islice(sampler(index, window, **features), 40)]
    stopped, resumed = sampler(index, window, world_size=2, **features), sampler(index, window, **features)
    for step in range(0, 20, 3):
        stopped.deliver(step)
        resumed.load_state_dict(stopped.state_dict())
        assert fingerprint([next(iter(resumed))]) == whole[2 * step]


def test_a_checkpoint_of_other_labels_is_refused():
    by_marker = make_index(Synthetic(experiments=2, batch_group_by=("marker",), **ALIVE))
    by_experiment = make_index(Synthetic(experiments=2, **ALIVE))
    with pytest.raises(ValueError, match=r"batch_group_by=\['marker'\], but batch_group_by=\['experiment'\]"):
        sampler(by_experiment).load_state_dict(sampler(by_marker).state_dict())


@pytest.mark.parametrize("temporal", [False, True])
def test_lineages_stay_distinct_where_a_label_changes_along_a_track(temporal):
    for plan in islice(sampler(STAGES, temporal_enrichment=temporal, temporal_window_hours=4.0), 96):
        count = Counter((s[1], s[3]) for s in samples(STAGES, plan.anchor))
        assert set(count.values()) == {4}
        assert len(set(lineages(STAGES, plan.anchor).tolist())) == 16


def test_draws_change_places_only_within_their_stratum_and_only_if_it_helps():
    batch, stratum = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    lineage = np.array([7, 7, 3, 9])  # batch 0 has lineage 7 from both strata
    found = separate(np.random.default_rng(0), batch, stratum, lineage)
    assert sorted(lineage[found == 0].tolist()) in ([3, 7], [7, 9])
    assert [sorted(stratum[found == b].tolist()) for b in (0, 1)] == [[0, 1], [0, 1]]
    # lineage 1 has more draws than batches; the batch that lacks it gets it all the same
    many = separate(
        np.random.default_rng(0), np.array([0, 0, 0, 1, 1, 1]), np.zeros(6, int), np.array([1, 1, 1, 3, 4, 5])
    )
    assert sorted(np.array([1, 1, 1, 3, 4, 5])[many == 1].tolist())[0] == 1
    stuck = separate(np.random.default_rng(0), batch, stratum, np.array([7, 7, 7, 9]))
    assert sorted(np.array([7, 7, 7, 9])[stuck == 0].tolist()) in ([7, 7], [7, 9])


def test_streaming_needs_blocks_of_one_stratum_and_names_the_label():
    with pytest.raises(ValueError, match=r"experiment='e0' and experiment='e2'.*Build the shards with 'experiment' in"):
        sampler(SHARED, 0.8)
    with pytest.raises(
        ValueError, match=r"stage='early' and stage='late'.*'stage' in shard_by, or use window_bytes=None"
    ):
        sampler(STAGES, 0.8)


# --- never -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 0.9])
@pytest.mark.parametrize("aware", [True, False])
def test_a_group_with_weight_0_and_a_value_with_share_0_are_never_drawn(window, aware):
    s = sampler(
        OWN,
        window,
        experiment_aware=aware,
        experiment_weights={"er": 2.0, "golgi": 1.0, "nuclei": 0.0},
        condition_ratio={"mock": 1.0, "infected": 0.0},
        leaky=0.25,
        return_negative=True,
        batch_size=8,
    )
    for plan in s:
        found = samples(OWN, np.concatenate([plan.anchor, plan.negative]))
        assert {sample[1] for sample in found} == {"mock"}
        assert {sample[2] for sample in found} <= {"er", "golgi"}
    if window is not None:
        blocks = np.concatenate([s.blocks(k).block for k in range(2)])
        assert {OWN.strata[k].name for k in OWN.block_stratum[blocks]} == {"e0/er/mock", "e1/golgi/mock"}
    report = s.report()
    never = [c for c in report.coverage if c.value == "infected" or c.group == "nuclei"]
    assert len(never) == 4
    assert all(c.unique == 0 for c in never)
    assert [(g.group, g.asked, g.batches > 0) for g in report.groups] == (
        [("er", 2 / 3, True), ("golgi", 1 / 3, True), ("nuclei", 0.0, False)] if aware else []
    )


@pytest.mark.parametrize("window", [None, 0.9])
def test_weights_are_those_of_the_batches(window):
    s = sampler(OWN, window, experiment_weights={"er": 3.0, "golgi": 1.0, "nuclei": 1.0})
    count = Counter(p.group for p in s)
    for group, share in (("er", 0.6), ("golgi", 0.2), ("nuclei", 0.2)):
        assert abs(count[group] - share * len(s)) <= 2  # one per stream


def test_weights_that_leave_nothing_to_draw_are_refused():
    nowhere = {"experiment_weights": {"er": 1.0}, "condition_ratio": {"infected": 1.0}}
    lone = make_index(Synthetic(experiments=2, markers=("er", "golgi"), **BY_MARKER), e0=(10, 0))
    with pytest.raises(
        ValueError, match=r"experiment_weights=\{'er': 1.0\} and condition_ratio=.* leave nothing to draw"
    ):
        sampler(lone, **nowhere)


@pytest.mark.parametrize(
    ("group", "value", "name"),
    [(("a",), ("mock",), "a/mock"), (("b",), ("a",), "a/b/a"), (("b",), ("b",), "a/b/b"), ((), (None,), "a/~")],
)
def test_strata_have_names_of_their_own_though_labels_share_values(group, value, name):
    clock = {"interval_minutes": 30.0, "start_hpi": 0.0, "tau_frames": (1, 4)}
    assert Stratum(experiment="a", group=group, value=value, **clock).name == name
