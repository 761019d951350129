"""Laws of what a sample is: three kinds of positives, bags of channels, and that all other laws hold with them."""

import dataclasses
import functools
import itertools

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaclr_wds.errors import ConfigError, FormatError
from dynaclr_wds.plan.channels import list_choices
from dynaclr_wds.plan.columns import PlanColumns
from dynaclr_wds.plan.compose.positives import draw_positives
from dynaclr_wds.plan.config import PositiveRule, SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.relatives import find_parents, on_one_line
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.plan.validation import plan_validation
from tests.set_files import find_index
from tests.synthetic import Synthetic, index_columns, make_columns

STORED = (("Phase", "GFP"), ("Phase", "RFP", "GFP"), ("Phase",))
MARKERS = (("Phase", "ER"), ("Phase", "MITO", "ER"), ("Phase",))
EXPERIMENTS = ("e0", "e1", "e2")
SPEC = Synthetic(experiments=3, lineages=(12, 8))
COLUMNS, CODES = make_columns(SPEC)
MANY = make_columns(dataclasses.replace(SPEC, lineages=(40, 30)))

RULES = {
    "temporal": PositiveRule(),
    "both": PositiveRule(tau_direction="both"),
    "descendants": PositiveRule(relatives="descendants"),
    "own line": PositiveRule(relatives="descendants", tau_direction="both"),
    "self": PositiveRule(kind="self"),
    "columns": PositiveRule(kind="columns", match_columns=("condition", "stage")),
}


def index_of(
    rule=RULES["temporal"], channels=None, group=("experiment",), stratify=("condition",), made=(COLUMNS, CODES)
) -> PlanIndex:
    spec = dataclasses.replace(SPEC, batch_group_by=group, stratify_by=stratify)
    columns, codes = made
    if channels is not None:
        codes = dataclasses.replace(codes, choices=list_choices(EXPERIMENTS, STORED, MARKERS, channels, [True] * 3))
    return index_columns(spec, columns, codes, positives=rule)


def observations() -> pd.DataFrame:
    """One row per observation, with its lineage, frame and labels; built without the plan."""
    c = COLUMNS
    samples = np.flatnonzero(c.patch_is_sample)
    table = pd.DataFrame(
        {
            "row": samples,
            "observation": c.patch_obs[samples],
            "clip": c.patch_clip[samples],
            "lineage": c.clip_lineage[c.patch_clip[samples]],
            "t": c.patch_t[samples],
        }
    )
    for name, code in c.labels.items():
        table[name] = np.array(CODES.values[name])[code[table["observation"]]]
    return table


def patches() -> pd.DataFrame:
    """One row per stored patch."""
    c = COLUMNS
    clip = pd.Series(c.patch_clip)
    return pd.DataFrame({"row": np.arange(len(clip)), "clip": clip, "t": c.patch_t, "observation": c.patch_obs})


def is_on_line(one: int, other: int) -> bool:
    """Whether one of two observations of a lineage descends from the other, or both are of one track."""
    chains = [{(track := int(COLUMNS.obs_track_id[o])), MOTHER.get(track, track)} for o in (one, other)]
    own = [int(COLUMNS.obs_track_id[o]) for o in (one, other)]
    return own[0] in chains[1] or own[1] in chains[0]


MOTHER = {
    t: m for t, m in zip(COLUMNS.obs_track_id.tolist(), COLUMNS.obs_parent_track_id.tolist(), strict=True) if m > 0
}


@functools.cache
def admissible(kind: str) -> frozenset[tuple[int, int]]:
    """All (observation of an anchor, observation of a positive) that a rule allows, by joins of tables."""
    own = observations()
    if kind == "self":
        return frozenset((o, o) for o in own["observation"])
    if kind == "columns":
        both = own.merge(own, on=["condition", "stage"])
        other = both[both["lineage_x"] != both["lineage_y"]]
        return frozenset(zip(other["observation_x"], other["observation_y"], strict=True))
    both = own.merge(patches(), on="clip")
    both["tau"] = both["t_y"] - both["t_x"]
    if kind in ("descendants", "own line"):
        both = both[[is_on_line(x, y) for x, y in zip(both["observation_x"], both["observation_y"], strict=True)]]
    ahead = both[both["tau"].between(1, SPEC.tau_frames[1])]
    pairs = ahead
    if kind in ("both", "own line"):
        behind = both[both["tau"].between(-SPEC.tau_frames[1], -1)]
        pairs = pd.concat([ahead, behind[~behind["observation_x"].isin(ahead["observation_x"])]])
    return frozenset(zip(pairs["observation_x"], pairs["observation_y"], strict=True))


def drawn_pairs(sampler: FlexibleBatchSampler, epochs: int = 1) -> list[tuple[int, int]]:
    out = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for plan in sampler:
            pair = (COLUMNS.patch_obs[rows] for rows in (plan.anchor, plan.positive))
            out += zip(*(p.tolist() for p in pair), strict=True)
    return out


@pytest.mark.parametrize("kind", RULES)
def test_the_pairs_of_an_epoch_are_those_that_a_join_of_tables_allows(kind):
    allowed = admissible(kind)
    index = index_of(RULES[kind])
    assert set(COLUMNS.patch_obs[index.row].tolist()) == {a for a, _ in allowed}
    sampler = FlexibleBatchSampler(index, SamplingConfig(batch_size=16, condition_balanced=False))
    pairs = drawn_pairs(sampler)
    assert set(pairs) <= allowed
    assert len({a for a, _ in pairs}) >= len({a for a, _ in allowed}) - 3 * 16  # all but the last, partial batches


@pytest.mark.parametrize("kind", ["temporal", "both", "descendants", "own line", "self"])
def test_every_admissible_pair_is_drawn_in_the_end(kind):
    index, rng, found = index_of(RULES[kind]), np.random.default_rng(1), set()
    everyone = np.arange(len(index.row))
    for _ in range(200):
        pair = index.row[everyone], draw_positives(rng, index, everyone, 0.0, None).row
        found |= set(zip(*(COLUMNS.patch_obs[rows].tolist() for rows in pair), strict=True))
    assert found == admissible(kind)


def test_descendants_leave_out_sisters_in_streaming_too():
    assert admissible("descendants") < admissible("temporal")
    assert admissible("own line") < admissible("both")
    window = int(1.2 * COLUMNS.block_bytes.sum())
    config = SamplingConfig(batch_size=4, relax_lineages=True)
    sampler = FlexibleBatchSampler(index_of(RULES["descendants"]), config, window_bytes=window, num_streams=1)
    assert set(drawn_pairs(sampler)) <= admissible("descendants")


def test_lines_of_descent_are_followed_over_generations_inside_a_field_of_view():
    """In FOV 0 track 5 is mother of 2, and 2 of 7 and 9; the mother of 4 isn't stored. FOV 1 has another 5 and 2."""
    tracks = pd.DataFrame(
        [(0, 2, 5), (0, 4, 8), (0, 5, -1), (0, 7, 2), (0, 9, 2), (1, 2, 5), (1, 5, -1)],
        columns=["fov", "track_id", "parent"],
    )
    count = len(tracks)
    fov, own, above = (np.repeat(tracks[name].to_numpy(), 2) for name in tracks)  # two frames each
    some = np.arange(2 * count)
    columns = PlanColumns(
        patch_obs=some,
        patch_clip=np.zeros_like(some),
        patch_t=np.repeat([2, 9, 0, 4, 4, 2, 0], 2) + some % 2,
        patch_is_sample=some >= 0,
        patch_has_candidate=some >= 0,
        clip_first=np.array([0, 2 * count]),
        clip_lineage=np.zeros(1, np.int64),
        clip_block=np.zeros(1, np.int64),
        block_first=np.array([0, 1]),
        block_bytes=np.ones(1, np.int64),
        block_partition=np.zeros(1, np.int64),
        obs_track=some // 2,
        obs_track_id=own,
        obs_parent_track_id=above,
        obs_fov=fov,
        fov_experiment=np.zeros(2, np.int64),
        labels={},
    )
    parents = find_parents(columns)
    assert parents.tolist() == [2, -1, -1, 0, 0, 6, -1]
    rows = {name: 2 * place for place, name in enumerate(["2", "4", "5", "7", "9", "other 2", "other 5"])}
    pairs = {
        ("5", "5"): True,
        ("5", "2"): True,
        ("5", "9"): True,
        ("9", "5"): True,
        ("7", "9"): False,
        ("5", "4"): False,
    }
    one, other = (np.array([rows[pair[k]] for pair in pairs]) for k in (0, 1))
    assert on_one_line(columns, parents, one, other).tolist() == list(pairs.values())
    circle = find_parents(dataclasses.replace(columns, obs_parent_track_id=np.repeat([5, 8, 2, 2, 2, 5, -1], 2)))
    with pytest.raises(FormatError, match="parents go round in a circle"):
        on_one_line(columns, circle, np.array([rows["9"]]), np.array([rows["other 5"]]))


def test_positives_of_real_shards_are_descendants_by_the_tables(shard_set):
    table = pq.read_table(find_index(shard_set.root) / "observations.parquet").to_pandas()
    mother = {
        (e, f, t): (e, f, p)
        for e, f, t, p in table[["experiment", "fov_name", "track_id", "parent_track_id"]].itertuples(index=False)
    }

    def line(track):
        while track in mother:
            yield track
            track = mother[track]

    index = shard_set.plan_index(["e0", "e1"], (0.5, 1.5), positives=PositiveRule(relatives="descendants"))
    everyone, rng = np.repeat(np.arange(len(index.row)), 20), np.random.default_rng(0)
    drawn = draw_positives(rng, index, everyone, 0.0, None).row
    of = table[["experiment", "fov_name", "track_id"]].apply(tuple, axis=1).tolist()
    pairs = {
        (of[a], of[b])
        for a, b in zip(*(index.columns.patch_obs[r].tolist() for r in (index.row[everyone], drawn)), strict=True)
    }
    assert all(a in line(b) for a, b in pairs)
    assert any(a != b for a, b in pairs)
    every = shard_set.plan_index(["e0", "e1"], (0.5, 1.5))
    assert set(index.row.tolist()) <= set(every.row.tolist())


def test_validation_draws_admissible_pairs_too():
    for kind, rule in RULES.items():
        table = plan_validation(index_of(rule), SamplingConfig(batch_size=16))
        pair = (COLUMNS.patch_obs[rows].tolist() for rows in (table.anchor, table.positive))
        assert set(zip(*pair, strict=True)) <= admissible(kind)


def test_partners_are_drawn_uniformly_from_other_lineages():
    index = index_of(PositiveRule(kind="columns", match_columns=("experiment", "condition")))
    sampler = FlexibleBatchSampler(index, SamplingConfig(batch_size=16))
    report = sampler.report()
    assert report.partners == {"same_lineage": 0, "itself": 0}
    pairs = drawn_pairs(sampler, epochs=40)
    own = observations().set_index("observation")
    chosen = own.loc[[b for _, b in pairs]]
    for _, of in chosen.groupby(["experiment", "condition"]):
        expected = of["lineage"].value_counts(normalize=True)
        assert expected.max() < 3 * expected.mean()


def lonely() -> PlanIndex:
    """Two conditions; all cells of `infected` are of one lineage."""
    spec = Synthetic(experiments=1, lineages=(20, 1))
    columns, codes = make_columns(spec)
    rule = PositiveRule(kind="columns", match_columns=("condition",))
    return index_columns(spec, columns, codes, positives=rule)


def test_where_there_is_one_lineage_the_partner_is_another_observation_of_it_and_counted():
    index = lonely()
    sampler = FlexibleBatchSampler(index, SamplingConfig(batch_size=8))
    columns = index.columns
    alone = 0
    for plan in sampler:
        anchor, positive = columns.patch_obs[plan.anchor], columns.patch_obs[plan.positive]
        lineage, other = (columns.clip_lineage[columns.patch_clip[r]] for r in (plan.anchor, plan.positive))
        infected = columns.labels["condition"][anchor] == 1
        assert (lineage != other)[~infected].all()
        assert (lineage == other)[infected].all()
        assert (anchor != positive).all()
        alone += int(infected.sum())
    assert sampler.report().partners == {"same_lineage": alone, "itself": 0}


def test_a_weight_of_zero_leaves_no_partner_either():
    index = index_of(PositiveRule(kind="columns", match_columns=("condition",)))
    weights = {"e0": 1.0, "e1": 0.0, "e2": 1.0}
    experiment = observations().set_index("observation")["experiment"]
    for _, positive in drawn_pairs(
        FlexibleBatchSampler(index, SamplingConfig(batch_size=16, experiment_weights=weights))
    ):
        assert experiment[positive] != "e1"


def test_null_agrees_with_nothing():
    labels = COLUMNS.labels | {"gene": np.where(np.arange(len(COLUMNS.obs_track)) % 3 == 0, -1, 0).astype(np.int32)}
    columns = dataclasses.replace(COLUMNS, labels=labels)
    codes = dataclasses.replace(CODES, values={**CODES.values, "gene": ("RAB7A",)})
    rule = PositiveRule(kind="columns", match_columns=("gene",))
    index = index_columns(SPEC, columns, codes, positives=rule)
    assert (labels["gene"][columns.patch_obs[index.row]] == 0).all()
    assert sum(index.without_positive) == (labels["gene"] < 0).sum()


# --- bags of channels


def test_every_channel_of_every_cell_is_a_sample_and_an_epoch_reaches_each_once():
    index = index_of(RULES["self"], channels=1)
    cells = observations()["experiment"].value_counts()
    assert len(index.row) == 2 * cells["e0"] + 3 * cells["e1"] + cells["e2"]
    sampler = FlexibleBatchSampler(index, SamplingConfig(batch_size=1, condition_balanced=False))
    drawn = [(int(p.anchor[0]), int(p.anchor_choice[0])) for p in sampler]
    assert len(drawn) == len(set(drawn)) == len(index.row)


def test_the_marker_of_the_channel_groups_and_balances():
    index = index_of(channels=1, group=("marker",), stratify=("experiment",))
    shown = {(e, c): m for e, of in enumerate(MARKERS) for c, m in enumerate(of)}
    groups = set()
    for plan in FlexibleBatchSampler(index, SamplingConfig(batch_size=12)):
        experiment = COLUMNS.fov_experiment[COLUMNS.obs_fov[COLUMNS.patch_obs[plan.anchor]]]
        markers = {shown[e, c] for e, c in zip(experiment.tolist(), plan.anchor_choice.tolist(), strict=True)}
        assert markers == {plan.group}
        groups |= markers
        if plan.group == "Phase":
            assert np.bincount(experiment).tolist() == [4, 4, 4]
        if plan.group == "ER":
            assert np.bincount(experiment, minlength=3).tolist() == [6, 6, 0]
    assert groups == {"Phase", "ER", "MITO"}


def test_anchors_are_found_with_their_channels_however_many_strata_there_are():
    genes = tuple(f"g{k}" for k in range(60))
    code = (np.arange(len(COLUMNS.obs_track)) % 60).astype(np.int32)
    columns = dataclasses.replace(COLUMNS, labels={**COLUMNS.labels, "gene": code})
    codes = dataclasses.replace(CODES, values={**CODES.values, "gene": genes})
    for stratify in (("condition",), ("gene",)):  # 6 and 180 strata
        index = index_of(channels=1, stratify=stratify, made=(columns, codes))
        everyone = np.arange(len(index.row))
        assert (index.find(index.row, index.choice) == everyone).all()
        other = np.setdiff1d(np.arange(len(COLUMNS.patch_obs)), index.row)
        assert set(index.find(other, np.zeros(len(other), int)).tolist()) == {-1}


def test_several_channels_a_sample_are_all_sets_of_so_many():
    choices = list_choices(EXPERIMENTS[:2], STORED[:2], MARKERS[:2], 2, [True, True])
    assert choices.channels == (((0, 1),), ((0, 1), (0, 2), (1, 2)))
    assert choices.labels["marker"] == (("Phase+ER",), ("Phase+MITO", "Phase+ER", "MITO+ER"))


def test_named_channels_are_found_by_name_or_marker_in_the_order_asked():
    choices = list_choices(EXPERIMENTS[:2], STORED[:2], MARKERS[:2], ["ER", "Phase"], [True, True])
    assert choices.channels == (((1, 0),), ((2, 0),))
    with pytest.raises(ConfigError, match=r"names 'MITO', which 'e0' doesn't store: .*\['Phase', 'GFP'\]"):
        list_choices(EXPERIMENTS, STORED, MARKERS, ["MITO"], [True] * 3)
    with pytest.raises(ConfigError, match="channels_per_sample=2, but 'e2' stores 1 channels"):
        list_choices(EXPERIMENTS, STORED, MARKERS, 2, [True] * 3)


@pytest.mark.parametrize(("channel", "most"), [("same", 1), ("any", 3)])
def test_the_positive_has_the_channel_of_its_anchor_or_any(channel, most):
    for kind in ("temporal", "self"):
        index = index_of(PositiveRule(kind=kind, channel=channel), channels=1)
        seen = set()
        for plan in FlexibleBatchSampler(index, SamplingConfig(batch_size=16)):
            seen |= set(zip(plan.anchor_choice.tolist(), plan.positive_choice.tolist(), strict=True))
        assert {len({p for a, p in seen if a == anchor}) for anchor in (0, 1, 2)} == {most}


def test_a_partner_shows_the_marker_of_its_anchor_though_in_another_channel():
    index = index_of(PositiveRule(kind="columns", match_columns=("condition",)), channels=1, group=("condition",))
    marker = [list(of) for of in MARKERS]
    crossed = 0
    for plan in FlexibleBatchSampler(index, SamplingConfig(batch_size=16)):
        own, other = (
            [
                marker[e][c]
                for e, c in zip(COLUMNS.fov_experiment[COLUMNS.obs_fov[COLUMNS.patch_obs[r]]], ch, strict=True)
            ]
            for r, ch in ((plan.anchor, plan.anchor_choice), (plan.positive, plan.positive_choice))
        )
        assert own == other
        crossed += int((plan.anchor_choice != plan.positive_choice).sum())
    assert crossed > 0  # ER is channel 1 of e0 and 2 of e1


# --- the other laws, with every rule


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(RULES)),
    channels=st.sampled_from([None, 1, ["Phase"]]),
    by_marker=st.booleans(),
    window=st.booleans(),
    world=st.sampled_from([1, 2]),
    leaky=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 2**20),
)
def test_purity_distinct_lineages_equal_ranks_and_exact_resume(kind, channels, by_marker, window, world, leaky, seed):
    by_marker &= channels == 1
    group, stratify = (("marker",), ("condition",)) if by_marker else (("experiment",), ("condition",))
    if not window and not by_marker:
        stratify = ("condition", "stage")
    index = index_of(RULES[kind], channels, group, stratify, MANY)
    config = SamplingConfig(batch_size=8, leaky=leaky, seed=seed)
    size = {"window_bytes": 2 * int(index.columns.block_bytes.sum()), "num_streams": 2} if window else {}
    ranks = [FlexibleBatchSampler(index, config, rank=r, world_size=world, **size) for r in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    whole = FlexibleBatchSampler(index, config, **size)
    plans = [whole.plan(n) for n in range(min(len(ranks[0]) * world, 60))]
    for r, rank in enumerate(ranks):
        assert [key(rank.plan(p.number)) for p in plans[r::world]] == [key(p) for p in plans[r::world]]
    for plan in plans:
        anchor = index.find(plan.anchor, plan.anchor_choice)
        assert (anchor >= 0).all()
        assert len(anchor) == 8
        assert len(set(index.lineage(anchor).tolist())) == 8
        own = [index.strata[s].group_name == plan.group for s in index.stratum(anchor)]
        assert sum(own) >= 8 - np.ceil(8 * leaky)
    stopped = FlexibleBatchSampler(index, config, **size)
    stopped.deliver(40)
    resumed = FlexibleBatchSampler(index, config, **size)
    resumed.load_state_dict(stopped.state_dict())
    rest = list(itertools.islice(resumed, 20))
    assert [key(p) for p in rest] == [key(p) for p in plans[40:]]


def key(plan) -> tuple:
    parts = (plan.anchor, plan.positive, plan.anchor_choice, plan.positive_choice)
    return (plan.number, plan.group, *(None if part is None else tuple(part.tolist()) for part in parts))


def test_streaming_reads_a_block_once_for_all_its_channels():
    index = index_of(channels=1, stratify=("condition", "marker"))
    window = 2 * int(index.columns.block_bytes.sum())  # a stream's need is counted in its largest blocks
    config = SamplingConfig(batch_size=8, condition_balanced=False)
    report = FlexibleBatchSampler(index, config, window_bytes=window, num_streams=1).report()
    assert report.streaming["amplification"] <= 1.0
    assert report.streaming["planned_peak_bytes"] <= window


def test_partners_in_streaming_are_resident():
    rule = PositiveRule(kind="columns", match_columns=("condition",))
    spec = dataclasses.replace(SPEC, lineages=(300, 100))
    columns, codes = make_columns(spec)
    index = index_columns(spec, columns, codes, positives=rule)
    window = int(0.6 * columns.block_bytes.sum())
    sampler = FlexibleBatchSampler(index, SamplingConfig(batch_size=8), window_bytes=window, num_streams=1)
    blocks = sampler.blocks(0)
    for plan in sampler:
        here = set(blocks.block[(blocks.admit <= plan.number) & (blocks.retire >= plan.number)].tolist())
        assert set(columns.clip_block[columns.patch_clip[plan.positive]].tolist()) <= here
    assert sampler.report().partners == {"same_lineage": 0, "itself": 0}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"kind": "gene"}, r"positive='gene' must be one of \['temporal', 'self', 'columns'\]"),
        (
            {"match_columns": ("gene",)},
            r"positive_match_columns=\['gene'\] must be left out with positive='temporal': only positive='columns' ",
        ),
        ({"kind": "columns", "match_columns": ("lineage_id",)}, "positive of the same lineage is positive='temporal'"),
        ({"channel": "other"}, r"positive_channel='other' must be one of \['same', 'any'\]"),
        ({"relatives": "cousins"}, r"positive_relatives='cousins' must be one of \['lineage', 'descendants'\]"),
        (
            {"kind": "self", "relatives": "descendants"},
            "it says which cells a temporal positive may be. Give positive='t",
        ),
        ({"tau_direction": "back"}, r"tau_direction='back' must be one of \['forward', 'both'\]"),
    ],
)
def test_a_rule_that_makes_no_sense_is_named(rule, message):
    with pytest.raises(ConfigError, match=message):
        PositiveRule(**rule)


@pytest.mark.parametrize(
    ("channels", "labels", "example"),
    [
        (None, "['condition', 'experiment', 'marker', 'stage']", "[condition, marker]"),
        (1, "['channel', 'condition', 'experiment', 'marker', 'stage']", "[condition, channel]"),
    ],
)
def test_columns_that_are_not_given_are_asked_for_with_an_example(channels, labels, example):
    with pytest.raises(ConfigError) as caught:
        index_of(PositiveRule(kind="columns"), channels)
    assert str(caught.value) == (
        "positive='columns' needs positive_match_columns: the labels in which a positive agrees with its anchor. The "
        f"shards have {labels}. Name some of these, such as positive_match_columns: {example}."
    )
