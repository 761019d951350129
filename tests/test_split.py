"""Laws of splits: no lineage on two sides, sides stay when data are added, names that aren't there are listed."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynaclr_wds.contract import FovRecord
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.fov_names import check_experiments, keep_experiments, keep_fovs
from dynaclr_wds.hashed_sides import find_seed, hash_place, hold_out
from dynaclr_wds.plan.columns import keep_lineages
from dynaclr_wds.split import LabelledCells, split_fovs, split_lineages
from dynaclr_wds.split_config import SplitConfig
from tests.synthetic import Synthetic, index_columns, make_columns


def record(experiment: str, name: str) -> FovRecord:
    return FovRecord(experiment=experiment, fov_name=name, well=name.rsplit("/", 1)[0], frames=1, height=8, width=8)


FOVS = [record(e, f) for e, f in (("a", "A/1/0"), ("a", "A/1/1"), ("a", "B/2/0"), ("b", "A/1/0"))]
ALL = np.ones(len(FOVS), bool)
names = st.text("abcd/é", min_size=1, max_size=6)
ratios = st.floats(0.01, 1.0)
seeds = st.integers(0, 2**64 - 1)


def test_masks_say_which_fovs_are_used():
    assert keep_experiments(FOVS, ["b"]).tolist() == [False, False, False, True]
    assert keep_fovs(FOVS, None, None).tolist() == [True] * 4
    assert keep_fovs(FOVS, ["A/1"], None).tolist() == [True, True, False, True]
    assert keep_fovs(FOVS, None, ["A/1/0"]).tolist() == [False, True, True, False]
    assert keep_fovs(FOVS, ["A/1"], ["A/1/1"]).tolist() == [True, False, False, True]
    assert keep_fovs(FOVS, [], None).tolist() == [False] * 4


def test_a_name_with_its_experiment_is_of_that_experiment_only():
    assert keep_fovs(FOVS, ["a/A/1"], None).tolist() == [True, True, False, False]
    assert keep_fovs(FOVS, ["a/B/2", "A/1"], None).tolist() == [True, True, True, True]
    assert keep_fovs(FOVS, None, ["b/A/1/0"]).tolist() == [True, True, True, False]
    assert keep_fovs(FOVS, None, {"b": ["A/1/0"]}).tolist() == [True, True, True, False]
    # a mapping leaves the experiments that it doesn't name as they are; a list is of all that is used
    assert keep_fovs(FOVS, {"a": ["B/2"]}, None).tolist() == [False, False, True, True]
    assert keep_fovs(FOVS, {"a": []}, {}).tolist() == [False, False, False, True]


def test_names_that_are_not_there_are_refused():
    check_experiments(["a"], ["b", "a"], "val_experiments")
    with pytest.raises(ValueError, match=r"val_experiments names \['c'\], .* They hold \['a', 'b'\]"):
        check_experiments(["a", "c"], ["b", "a"], "val_experiments")
    with pytest.raises(ValueError, match=r"include_wells names \['C/9'\], .* Known: \['A/1', 'B/2'\]"):
        keep_fovs(FOVS, ["C/9"], None)
    with pytest.raises(ValueError, match=r"exclude_fovs names \['A/1/7'\], .* Known: \['A/1/0', 'A/1/1', 'B/2/0'\]"):
        keep_fovs(FOVS, None, ["A/1/7"])
    with pytest.raises(ValueError, match=r"exclude_fovs names \['b/B/2/0'\].*as in 'a/A/1/0'"):
        keep_fovs(FOVS, None, {"b": ["B/2/0"]})
    with pytest.raises(ValueError, match=r"include_wells names \['c'\], .* They hold \['a', 'b'\]"):
        keep_fovs(FOVS, {"c": ["A/1"]}, None)
    with pytest.raises(ValueError, match=r"val_fovs names \['B/7/0'\]"):
        split_fovs(SplitConfig(split="fovs", val_fovs=("B/7/0",)), FOVS, ALL)
    with pytest.raises(ValueError, match=r"val_values names \['z'\], .* 'donor'. They are \['x', 'y'\]"):
        split_lineages(SplitConfig(split="donor", val_values=("x", "z")), labelled([0, 1], [0, 1]), ALL)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"split": "fovs"}, r"split='fovs' needs val_fovs or split_ratio. Give split_ratio: 0.8"),
        ({"split": "donor"}, r"split='donor' needs val_values or split_ratio"),
        ({"split": "fovs", "val_experiments": ("a",)}, r"val_experiments=\['a'\] does not go with split='fovs', which"),
        ({"val_values": ("a",)}, r"val_values=\['a'\] does not go with split='experiments', which takes val_exper"),
        ({"split_ratio": 0.8, "val_experiments": ("a",)}, r"split_ratio=0.8 and val_experiments=\['a'\] both say"),
        ({"split_ratio": 0.0}, r"split_ratio=0.0 must be in \(0, 1\]"),
        ({"split_ratio": 80.0}, r"split_ratio=80.0 must be in \(0, 1\]"),
        ({"split_seed": -1}, r"split_seed=-1 must be a whole number in \[0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        SplitConfig(**settings)


def test_sides_of_known_names_never_change():
    """Pinned: another release must not move a lab's validation set."""
    assert [round(hash_place(name, 0), 4) for name in ("e0/A/1/0", "e0/A/1/1", "é")] == [0.6547, 0.9131, 0.2624]
    assert round(hash_place("e0/A/1/0", 1), 4) == 0.194
    held = hold_out([f"e/A/1/{n}" for n in range(20)], 0.8, 0)
    assert np.flatnonzero(held).tolist() == [0, 6, 7, 12]


@given(known=st.lists(names), added=st.lists(names), ratio=ratios, seed=seeds)
def test_data_that_are_added_move_nothing(known, added, ratio, seed):
    before, after = hold_out(known, ratio, seed), hold_out([*added, *known], ratio, seed)
    assert before.tolist() == after[len(added) :].tolist()


@given(known=st.lists(names), low=ratios, high=ratios, seed=seeds)
def test_a_larger_share_of_training_holds_out_fewer_of_the_same(known, low, high, seed):
    low, high = sorted((low, high))
    assert not (hold_out(known, high, seed) & ~hold_out(known, low, seed)).any()
    assert not hold_out(known, 1.0, seed).any()


def test_the_share_is_the_ratio_and_seeds_differ():
    many = [f"e/A/1/{n}" for n in range(20_000)]
    first, second = hold_out(many, 0.8, 0), hold_out(many, 0.8, 1)
    assert abs(first.mean() - 0.2) < 0.01
    assert abs((first & second).mean() - 0.04) < 0.005  # independent of each other


@given(st.sets(names, max_size=12), ratios)
def test_a_seed_that_is_offered_has_two_sides(known, ratio):
    seed = find_seed(known, ratio)
    if seed is None:
        assert all(hold_out(sorted(known), ratio, s).sum() in (0, len(known)) for s in range(100))
    else:
        assert 0 < hold_out(sorted(known), ratio, seed).sum() < len(known)


@given(
    fovs=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 8)), unique=True, max_size=20),
    usable=st.lists(st.booleans(), min_size=20, max_size=20),
    ratio=ratios,
    seed=seeds,
    kind=st.sampled_from(["fovs", "experiments"]),
)
def test_every_usable_fov_is_on_one_side(fovs, usable, ratio, seed, kind):
    records = [record(e, f"A/1/{n}") for e, n in fovs]
    use = np.array(usable[: len(records)], bool)
    split = split_fovs(SplitConfig(split=kind, split_ratio=ratio, split_seed=seed), records, use)
    assert (split.train.fovs ^ split.val.fovs).tolist() == use.tolist()
    assert not (split.train.fovs & split.val.fovs).any()
    if kind == "experiments":
        sides = {(r.experiment, bool(v)) for r, v, u in zip(records, split.val.fovs, use, strict=True) if u}
        assert len({e for e, _ in sides}) == len(sides)


def test_fovs_are_held_out_by_name_of_one_or_of_all_experiments():
    one = split_fovs(SplitConfig(split="fovs", val_fovs=("a/A/1/0",)), FOVS, ALL)
    assert one.val.fovs.tolist() == [True, False, False, False]
    both = split_fovs(SplitConfig(split="fovs", val_fovs=("A/1/0",)), FOVS, ALL)
    assert both.val.fovs.tolist() == [True, False, False, True]
    assert both.notes == (
        "split='fovs', val_fovs=['A/1/0'] holds out 2 of 4 fields of view (50%): a/A/1/0, b/A/1/0.",
        "Nothing is trained on of b.",
    )
    assert both.held_out_fovs(FOVS) == {"a": ["A/1/0"], "b": ["A/1/0"]}


def test_fields_of_view_of_a_plate_that_is_in_two_experiments_are_warned_of():
    plates = {"a": "one.zarr", "b": "one.zarr"}
    torn = split_fovs(SplitConfig(split="fovs", val_fovs=("a/A/1/0", "B/2/0")), FOVS, ALL, plates)
    assert torn.warnings == (
        "Fields of view of a plate that is in several experiments are on both sides (1): A/1/0. Name those to hold out "
        "in val_fovs, without the experiment: val_fovs=['A/1/0'].",
    )
    assert split_fovs(SplitConfig(split="fovs", val_fovs=("A/1/0",)), FOVS, ALL, plates).warnings == ()
    assert split_fovs(torn.asked, FOVS, ALL, plates | {"b": "two.zarr"}).warnings == ()
    assert split_fovs(torn.asked, FOVS, np.array([True, True, True, False]), plates).warnings == ()


def labelled(code: list[int], lineage: list[int], fov: list[int] | None = None) -> LabelledCells:
    fov = [0] * len(code) if fov is None else fov
    return LabelledCells(("x", "y"), *(np.array(column, np.int32) for column in (code, lineage, fov)))


def test_a_lineage_with_a_held_out_value_is_held_out_as_a_whole():
    cells = labelled([0, 0, 1, 1, -1, -1, 0], [0, 0, 0, 1, 1, 2, 3])
    split = split_lineages(SplitConfig(split="donor", val_values=("y",)), cells, ALL)
    assert split.val.lineages.tolist() == [True, True, False, False]
    assert split.train.lineages.tolist() == [False, False, True, True]
    assert split.notes == (
        "split='donor', val_values=['y'] holds out 2 of 4 lineages: those with donor y.",
        "2 of them have other values of 'donor' too: all of such a lineage is held out, so that no lineage is on two "
        "sides.",
    )
    null = split_lineages(SplitConfig(split="donor", val_values=("~",)), cells, ALL)
    assert null.val.lineages.tolist() == [False, True, True, False]


def test_a_label_of_which_no_value_is_drawn_is_said_so():
    """Of 97 % each of the two values is for training, by its name and the seed 0."""
    split = split_lineages(SplitConfig(split="donor", split_ratio=0.97), labelled([0, 1], [0, 1]), ALL)
    assert split.notes == (
        "split='donor', split_ratio=0.97, split_seed=0 holds out none of 2 lineages: none of the values of 'donor' "
        "(x, y) was drawn.",
    )
    with pytest.raises(ValueError, match=r"holds out no cell of shards: nothing to validate on\. .* split_seed=\d+"):
        split.check("shards", train=False)


@given(data=st.data(), ratio=ratios, seed=seeds)
def test_no_lineage_is_on_two_sides_and_training_never_sees_a_held_out_value(data, ratio, seed):
    """Over random labels, some of which change along a track, some of which are null."""
    cells = data.draw(st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 6)), max_size=40))
    code, lineage = np.array(cells, np.int32).reshape(-1, 2).T
    fov = lineage % len(FOVS)  # a lineage lives in one FOV
    usable = np.array(data.draw(st.lists(st.booleans(), min_size=4, max_size=4)))
    values = ("v", "w", "x", "y", "z")
    named = tuple(data.draw(st.sets(st.sampled_from([*values, "~"]))))
    asked = SplitConfig(split="donor", split_ratio=None if named else ratio, split_seed=seed, val_values=named)
    split = split_lineages(asked, LabelledCells(values, code, lineage, fov), usable)
    drawn = {value for value in values if hash_place(value, seed) >= ratio}
    for number in range(len(split.val.lineages)):
        own = {"~" if c < 0 else values[c] for c, owner in cells if owner == number}
        if not own or not usable[number % len(FOVS)]:
            assert not split.val.lineages[number]
            assert not split.train.lineages[number]
            continue
        assert split.val.lineages[number] == bool(own & (set(named) or drawn))
        assert split.train.lineages[number] != split.val.lineages[number]


@given(seed=st.integers(0, 50), by=st.sampled_from(["stage", "random"]), partitioned=st.booleans())
def test_both_sides_hold_every_anchor_once_and_share_no_lineage(seed, by, partitioned):
    spec = Synthetic(lineages=(9, 4), clips_per_block=4, seed=seed)
    columns, codes = make_columns(spec)
    if not partitioned:
        spec = replace(spec, stratify_by=("stage",))
    lineage = np.zeros(len(columns.obs_track), np.int32)
    lineage[columns.patch_obs] = columns.clip_lineage[columns.patch_clip]
    rng = np.random.default_rng(seed)
    code = (
        columns.labels["stage"]
        if by == "stage"
        else rng.integers(-1, 2, len(lineage)) * (rng.random(len(lineage)) < 0.05)
    )
    cells = LabelledCells(("early", "late"), code.astype(np.int32), lineage, columns.obs_fov)
    usable = np.ones(len(columns.fov_experiment), bool)
    split = split_lineages(SplitConfig(split="stage", val_values=("late",)), cells, usable)
    whole = index_columns(spec, columns, codes)
    train, val = (
        index_columns(spec, keep_lineages(columns, side.lineages), codes, keep_fov=side.fovs)
        for side in (split.train, split.val)
    )
    assert sorted([*train.row.tolist(), *val.row.tolist()]) == sorted(whole.row.tolist())
    assert set(lineage[columns.patch_obs[train.row]]).isdisjoint(lineage[columns.patch_obs[val.row]])
    assert "late" not in {cells.values[c] for c in code[columns.patch_obs[train.row]] if c >= 0}
    assert sum(train.without_positive) + sum(val.without_positive) + sum(
        n for _, n in (*train.barren, *val.barren)
    ) == (sum(whole.without_positive) + sum(n for _, n in whole.barren))


def test_an_empty_side_is_an_error_that_says_which_seed_would_do():
    asked = SplitConfig(split="fovs", split_ratio=0.5, split_seed=7)
    split = split_fovs(asked, FOVS, ALL)
    assert not split.val.fovs.any()
    with pytest.raises(
        ValueError,
        match=r"split_seed=7 holds out no field of view of here: nothing .* each of the 4 is drawn by its name: "
        r"split_seed=\d+ holds out 2. Give it, or val_fovs.",
    ):
        split.check("here", train=False)
    split.check("here")
    alone = split_fovs(SplitConfig(split="fovs", split_ratio=0.999), FOVS[:1], ALL[:1])
    with pytest.raises(
        ValueError, match=r"split_ratio=0.999 can't split 1 field of view. .* \(--data.split_ratio 1.0\)"
    ):
        alone.check("here", train=False)
    whole = split_fovs(SplitConfig(split_ratio=0.001), FOVS[:2], ALL[:2])
    told = re.escape(
        "split_ratio=0.001, split_seed=0 holds out every experiment of here; none is left to train on. "
        "split_ratio=0.001 can't split 1 experiment. Give up one of the two: name experiments in val_experiments (and "
        "--data.split_ratio null), or split fields of view (--data.split fovs), or train without validation "
        "(--data.split_ratio 1.0)."
    )
    with pytest.raises(ValueError, match=told):
        whole.check("here")
    nothing = split_fovs(SplitConfig(split="fovs", split_ratio=1.0), FOVS[:1], ALL[:1])
    nothing.check("here", train=False)
    every = split_fovs(SplitConfig(split="fovs", val_fovs=("A/1/0", "A/1/1", "B/2/0")), FOVS, ALL)
    with pytest.raises(
        ValueError, match=r"holds out every field of view of here; none is left to train on. Name fewer"
    ):
        every.check("here")
    alone = split_fovs(SplitConfig(val_experiments=("a",)), FOVS[:1], ALL[:1])
    with pytest.raises(
        ValueError, match=r"There is one experiment, so hold out fields of view of it: --data\.split fovs"
    ):
        alone.check("here")
    assert alone.describe_val(FOVS[:1]).startswith("Validation: 1 field of view of ")
