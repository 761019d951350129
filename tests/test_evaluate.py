"""Laws of judging embeddings: known answers come out, nothing leaks between sides, intervals are over lineages."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynaclr_wds import ShardSet
from dynaclr_wds import __main__ as command
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.evaluate.annotations import annotate
from dynaclr_wds.evaluate.cells import Cells, Embedding
from dynaclr_wds.evaluate.judge import Settings, Verdict, judge
from dynaclr_wds.evaluate.mmd import compare
from dynaclr_wds.evaluate.pixels import NAME, Patches, embed_pixels
from dynaclr_wds.evaluate.probes import plan_experiments, plan_folds, vote_accuracy
from dynaclr_wds.evaluate.projections import project_pca
from dynaclr_wds.evaluate.rank import effective_rank
from dynaclr_wds.evaluate.reading import align, draw_lineages, parse_name, read_table
from dynaclr_wds.evaluate.resampling import draw_lineages as draw_weights
from dynaclr_wds.evaluate.smoothness import measure_smoothness
from dynaclr_wds.evaluate.strips import choose_examples, find_neighbours
from dynaclr_wds.evaluate.tables import list_findings
from tests.test_pages import Tags


def make_cells(
    experiments: int = 2, fovs: int = 4, tracks: int = 3, frames: int = 5, gap: tuple[int, ...] = ()
) -> Cells:
    """Tracks without divisions, conditions by FOV; frames in `gap` are missing in every track."""
    rows = [
        (e, f, k, t) for e in range(experiments) for f in range(fovs) for k in range(tracks) for t in range(frames)
        if t not in gap
    ]  # fmt: skip
    fov = np.array([f"e{e}/A/1/{f}" for e, f, _, _ in rows], object)
    track = np.array([f"e{e}/A/1/{f}/{k}" for e, f, k, _ in rows], object)
    t = np.array([row[3] for row in rows], np.int64)
    return Cells(
        name=np.array([f"{one}/{frame}" for one, frame in zip(track, t, strict=True)], object),
        experiment=np.array([f"e{e}" for e, *_ in rows], object),
        fov=fov,
        track=track,
        lineage=track,
        t=t,
        hpi=3 + 0.5 * t.astype(np.float64),
        labels={"condition": np.array([("infected", "mock")[f % 2] for _, f, _, _ in rows], object)},
    )


def judge_one(cells: Cells, x: np.ndarray, **settings: object) -> Verdict:
    return judge(cells, [Embedding(name="x", features=x.astype(np.float32))], Settings(**settings))


def test_smoothness_is_that_of_the_published_definition_on_tracks_without_gaps():
    cells = make_cells(experiments=1, fovs=2, tracks=3, frames=4)
    x = np.random.default_rng(0).normal(size=(len(cells), 5)).cumsum(axis=0).astype(np.float32)
    found = measure_smoothness(x, cells, draw_weights(6, 0))

    scaled = (x - x.mean(0)) / x.std(0)

    def distance(a: int, b: int) -> float:
        return 1 - scaled[a] @ scaled[b] / np.linalg.norm(scaled[a]) / np.linalg.norm(scaled[b])

    adjacent = [distance(row, row + 1) for row in range(len(x) - 1) if row % 4 != 3]
    random = [distance(a, b) for a in range(len(x)) for b in range(len(x)) if a != b]
    assert found.pairs == len(adjacent) == 18
    assert found.gaps == 0
    assert found.adjacent == pytest.approx(np.mean(adjacent), rel=1e-5)
    assert found.random == pytest.approx(np.mean(random), rel=1e-5)
    assert found.score.value == pytest.approx(np.mean(adjacent) / np.mean(random), rel=1e-5)
    assert found.score.low < found.score.value < found.score.high


def test_the_dynamic_range_of_tracks_at_the_corners_of_a_simplex_is_the_distance_of_two_corners():
    cells = make_cells(experiments=1, fovs=2, tracks=4, frames=4)
    corner = {track: n for n, track in enumerate(np.unique(cells.track.astype(str)))}
    found = measure_smoothness(np.eye(8, dtype=np.float32)[[corner[t] for t in cells.track]], cells, draw_weights(8, 0))
    assert found.score.value == pytest.approx(0, abs=1e-6)
    # of 8 corners around their centre, two have the cosine -1/7
    assert found.dynamic_range == pytest.approx(8 / 7, abs=0.01)


def test_a_gap_in_a_track_is_left_out_and_counted():
    cells = make_cells(experiments=1, fovs=1, tracks=4, frames=7, gap=(3, 4))
    jump = np.where(cells.t < 3, 1.0, -1.0)  # all that changes happens in the gap
    place = np.array([int(track[-1]) for track in cells.track])
    x = np.stack([jump, place, place**2], axis=1).astype(np.float32)
    found = measure_smoothness(x, cells, draw_weights(4, 0))
    assert (found.pairs, found.gaps) == (12, 4)
    assert found.score.value == pytest.approx(0, abs=1e-6)


def test_an_embedding_that_is_the_label_is_found_always_and_shuffled_labels_by_chance():
    cells = make_cells(fovs=8, tracks=4, frames=4)
    truth = cells.labels["condition"] == "infected"
    rng = np.random.default_rng(1)
    x = np.stack([truth, ~truth], axis=1) + rng.normal(scale=1e-3, size=(len(cells), 2))
    (of_label,) = judge_one(cells, x).embeddings
    assert [(p.held_out, p.linear.value, p.vote.value) for p in of_label.probes] == [
        ("FOV", 1.0, 1.0),
        ("experiment", 1.0, 1.0),
    ]
    lineages = np.unique(cells.lineage.astype(str))
    dealt = dict(zip(lineages, rng.permutation(np.arange(len(lineages)) % 2), strict=True))
    shuffled = np.array([("infected", "mock")[dealt[lineage]] for lineage in cells.lineage], object)
    by_chance = Cells(
        **{f: getattr(cells, f) for f in Cells.__slots__ if f != "labels"}, labels={"condition": shuffled}
    )
    (found,) = judge_one(by_chance, rng.normal(size=(len(cells), 8))).embeddings
    for probe in found.probes:
        for guess in (probe.linear, probe.vote):
            assert guess.low < 0.5 < guess.high
            assert probe.chance == 0.5


def test_a_constant_embedding_is_named_as_collapsed_and_breaks_no_measure():
    cells = make_cells()
    same, few, alive = (
        np.full((len(cells), 16), 3.0),
        np.outer(np.random.default_rng(0).normal(size=len(cells)), np.arange(16.0)) + 1,
        np.random.default_rng(0).normal(size=(len(cells), 16)),
    )
    found = [judge_one(cells, x).embeddings[0] for x in (same, same + 1e-7 * alive, few, alive)]
    assert all(one.collapse.startswith("collapsed: all cells have the same embedding") for one in found[:2])
    assert found[0].smoothness.score is None
    assert found[2].collapse == "nearly collapsed: of 16 dimensions the cells use 1.0 (effective rank)."
    assert found[3].collapse is None
    alive[3, 2] = np.nan
    assert judge_one(cells, alive).embeddings[0].collapse == "1 of 120 cells have features that are not finite."


def test_effective_rank_is_the_number_of_equal_directions():
    corners = np.concatenate([np.eye(4), -np.eye(4)]).astype(np.float32)
    assert effective_rank(corners) == pytest.approx(4)
    assert effective_rank(corners * np.float32([1, 1, 0, 0])) == pytest.approx(2)
    # singular values 3 : 1 are shares 3/4 and 1/4
    assert effective_rank(corners[[0, 1, 4, 5]] * np.float32([3, 1, 0, 0])) == pytest.approx(4 / 3**0.75)
    assert effective_rank(np.ones((5, 3), np.float32)) == 0


def test_no_lineage_and_no_fov_is_on_both_sides():
    cells = make_cells(fovs=6)
    folds = plan_folds(cells.labels["condition"], cells)
    assert (folds.held_out, folds.count) == ("FOV", 5)
    for fov in set(cells.fov):
        assert len(set(folds.number[cells.fov == fov])) == 1
    one_each = cells.take(np.flatnonzero(np.isin(cells.fov, ["e0/A/1/0", "e0/A/1/1"])))
    folds = plan_folds(one_each.labels["condition"], one_each)
    assert (folds.held_out, folds.count) == ("lineage", 3)
    for lineage in set(one_each.lineage):
        assert len(set(folds.number[one_each.lineage == lineage])) == 1
    (note,) = judge_one(one_each, np.random.default_rng(0).normal(size=(len(one_each), 4))).notes
    assert note.startswith("condition: one of its values is in one field of view only, so lineages were held out")


def test_the_vote_gains_nothing_from_knowing_the_field_of_view():
    """Features that name the FOV, and so within a FOV the condition, say nothing of the other FOVs."""
    cells, rng = make_cells(experiments=1, fovs=8, tracks=10, frames=5), np.random.default_rng(0)
    of_fov = {fov: n for n, fov in enumerate(np.unique(cells.fov.astype(str)))}
    scores = []
    for _ in range(8):
        x = rng.normal(size=(8, 16))[[of_fov[fov] for fov in cells.fov]] + 0.01 * rng.normal(size=(len(cells), 16))
        scores.append(vote_accuracy(x, cells.labels["condition"], cells))
    assert np.mean(scores) < 0.7


def test_an_experiment_with_a_value_of_its_own_is_not_held_out():
    cells = make_cells(experiments=3)
    values = cells.labels["condition"].copy()
    values[cells.experiment == "e2"] = "drug"
    folds = plan_experiments(values, cells)
    assert set(folds.number[cells.experiment == "e2"]) == {-1}
    assert set(folds.number[cells.experiment != "e2"]) == {0, 1}


def test_intervals_are_over_lineages_and_not_rows():
    """Ten times the frames of the same cells, all alike, tell no more."""
    few, many = make_cells(fovs=8, frames=2), make_cells(fovs=8, frames=20)
    of_track = {track: n for n, track in enumerate(np.unique(few.track.astype(str)))}
    noise = np.random.default_rng(0).normal(size=(len(of_track), 3))
    widths = []
    for cells in (few, many):
        (found,) = judge_one(cells, noise[[of_track[track] for track in cells.track]]).embeddings
        widths.append(found.probes[0].linear.high - found.probes[0].linear.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.25)
    assert widths[1] > 0.15


def test_cells_that_keep_their_place_are_found_again_and_noise_is_not():
    cells = make_cells(tracks=6, frames=6)
    of_track = {track: n for n, track in enumerate(np.unique(cells.track.astype(str)))}
    rng = np.random.default_rng(0)
    stays = rng.normal(size=(len(of_track), 8))[[of_track[track] for track in cells.track]]
    (found,) = judge_one(cells, stays + rng.normal(scale=1e-3, size=stays.shape), tau_hours=1.0).embeddings
    assert found.retrieval.queries == 48 * 4  # 6 frames of half an hour: the last two have no successor
    assert found.retrieval.farther.value == 1
    assert found.retrieval.nearest.value == 1
    assert found.retrieval.nearest_by_chance == pytest.approx(1 / 24)
    (noise,) = judge_one(cells, rng.normal(size=stays.shape)).embeddings
    assert noise.retrieval.farther.low < 0.5 < noise.retrieval.farther.high
    (same,) = judge_one(cells, np.ones(stays.shape)).embeddings
    assert (same.retrieval.farther.value, same.retrieval.nearest.value) == (0.5, 0)


def test_mmd_is_the_unbiased_estimate_and_its_p_deals_whole_lineages():
    cells = make_cells(experiments=1, fovs=2, tracks=4, frames=3)
    x = np.random.default_rng(0).normal(size=(24, 3))
    groups = cells.fov == "e0/A/1/0", cells.fov == "e0/A/1/1"
    mmd2, p, _, counts, lineages = compare(x, cells, groups, 0)
    squared = [[((a - b) ** 2).sum() for b in x] for a in x]
    median = np.median([squared[i][j] for i in range(24) for j in range(i)])
    kernel = np.exp(-np.array(squared) / (2 * median))
    within = [np.mean([kernel[i, j] for i in rows for j in rows if i != j]) for rows in (range(12), range(12, 24))]
    assert mmd2 == pytest.approx(sum(within) - 2 * kernel[:12, 12:].mean())
    assert (counts, lineages) == ((12, 12), (4, 4))
    assert p > 0.05
    moved = x + 10.0 * groups[0][:, None]
    # 35 ways to deal 8 lineages into two fours: no p can be much smaller than 1/35
    assert 1 / 60 < compare(moved, cells, groups, 0)[1] < 1 / 20
    assert compare(x, cells.take(np.arange(24)), (cells.t == 99, groups[1]), 0) is None


def test_neighbours_are_of_other_lineages_and_fields_of_view_one_each():
    cells = make_cells(experiments=1, fovs=3, tracks=2, frames=3)
    x = Embedding(name="x", features=np.random.default_rng(0).normal(size=(len(cells), 4)).astype(np.float32))
    (example,) = choose_examples(cells, "condition", 1)
    near = find_neighbours(x, cells, int(example), 4)
    assert len(near) == 4
    assert len({cells.lineage[n] for n in near}) == 4
    assert cells.fov[example] not in {cells.fov[n] for n in near}


def test_neighbours_are_of_the_same_field_of_view_where_no_other_has_such_cells():
    cells = make_cells(experiments=1, fovs=3, tracks=3, frames=2)  # the second field of view alone is mock
    x = np.random.default_rng(0).normal(size=(len(cells), 4))
    x += 50 * (cells.labels["condition"] == "mock")[:, None]
    example = int(np.flatnonzero(cells.labels["condition"] == "mock")[0])
    near = find_neighbours(Embedding(name="x", features=x.astype(np.float32)), cells, example, 2, "condition")
    assert {cells.fov[n] for n in near} == {cells.fov[example]}
    assert cells.lineage[example] not in {cells.lineage[n] for n in near}


def test_an_embedding_no_better_than_raw_pixels_is_named():
    cells = make_cells()
    told = np.random.default_rng(0).normal(size=(len(cells), 8))
    told[:, 0] += 10 * (cells.labels["condition"] == "mock")
    pixels = Embedding(name="PCA of raw pixels", features=told.astype(np.float32))
    same, blind = (
        Embedding(name=name, features=x.astype(np.float32)) for name, x in (("same", told), ("blind", told[:, 1:]))
    )
    found = [said for _, said in list_findings(judge(cells, [same, blind, pixels], Settings()))]
    assert (
        "same: condition is found no better than from raw pixels by the linear probe (1.00 (1.00–1.00); PCA of raw "
        "pixels 1.00 (1.00–1.00); held out by FOV)."
    ) in found
    assert not any("raw pixels by" in said for said in found if said.startswith(("blind", "PCA")))


def test_lineages_are_drawn_by_name_whole_and_at_least_one():
    counts = Counter({f"e/A/1/0/{n}": 10 + n for n in range(50)})
    drawn = draw_lineages(counts, 200)
    assert 150 < sum(counts[name] for name in drawn) <= 200
    assert draw_lineages(Counter({**counts, "later": 5}), 200) >= drawn - {max(drawn)} or len(drawn) > 3
    assert len(draw_lineages(counts, 1)) == 1


def test_principal_components_of_a_line_hold_all_its_variance():
    plane, shares = project_pca(np.outer(np.arange(6.0), [3.0, 4.0]).astype(np.float32))
    assert shares[0] == pytest.approx(1)
    assert sorted(np.abs(plane[:, 0]).round(3).tolist()) == [2.5, 2.5, 7.5, 7.5, 12.5, 12.5]
    assert project_pca(np.ones((4, 3), np.float32))[1] == (0, 0)


class Halves(Patches):
    """Patches of two channels: faint noise, and strong noise."""

    def __init__(self) -> None:
        pass

    def read(self, places: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).normal(size=(len(places), 2, 6, 6)).astype(np.float32)
        return noise * np.float32([1e-3, 1])[:, None, None]


def test_principal_components_of_one_channel_do_not_see_the_other():
    cells = make_cells(experiments=1)
    faint, strong, both = (embed_pixels(Halves(), cells, channel).features[:, :5].std() for channel in (0, 1, None))
    assert 0 < faint < 0.01
    assert strong == pytest.approx(both, rel=1e-3)


def write_table(path: Path, cells: Cells, x: np.ndarray, channels: tuple[str, ...] = ()) -> Path:
    """A table as `predict` writes it."""
    times = max(len(channels), 1)
    columns = {
        "name": [f"{n}/{c}" for n in cells.name for c in channels] if channels else cells.name.tolist(),
        "experiment": np.repeat(cells.experiment, times).tolist(),
        "condition": np.repeat(cells.labels["condition"], times).tolist(),
        "fov_name": [fov.partition("/")[2] for fov in np.repeat(cells.fov, times)],
        "global_track_id": np.repeat(cells.track, times).tolist(),
        "lineage_id": np.repeat(cells.lineage, times).tolist(),
        "t": np.repeat(cells.t, times),
        "hpi": np.repeat(cells.hpi, times),
    }
    if channels:
        columns["channel"] = list(channels) * len(cells)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.astype(np.float32).ravel()), x.shape[1])
    pq.write_table(pa.table({**columns, "features": lists, "projections": lists}), path)
    return path


def test_a_table_with_channels_is_one_embedding_a_channel_and_one_of_them_joined(tmp_path: Path):
    cells = make_cells(experiments=1, fovs=2, tracks=2, frames=2)
    x = np.random.default_rng(0).normal(size=(16, 3))
    table = read_table(write_table(tmp_path / "t.parquet", cells, x, ("P", "G")), "bag", "features", 99)
    assert [(e.name, e.features.shape) for e in table.embeddings] == [
        ("bag", (8, 6)), ("bag: P", (8, 3)), ("bag: G", (8, 3)),
    ]  # fmt: skip
    assert table.cells.name.tolist() == cells.name.tolist()
    np.testing.assert_allclose(table.embeddings[2].features, x[1::2], rtol=1e-6)


def test_tables_are_joined_by_the_names_of_cells_whatever_their_order(tmp_path: Path):
    cells = make_cells(experiments=1, fovs=2, tracks=2, frames=2)
    x = np.arange(16.0).reshape(8, 2)
    order = np.random.default_rng(0).permutation(7)
    paths = (
        write_table(tmp_path / "a.parquet", cells, x),
        write_table(tmp_path / "b.parquet", cells.take(order), x[order]),
    )
    both, embeddings, left_out = align([read_table(path, path.stem, "features", 99) for path in paths])
    assert left_out == 1
    assert both.name.tolist() == cells.name[:7].tolist()
    for embedding in embeddings:
        assert embedding.features.tolist() == x[:7].tolist()
    with pytest.raises(ConfigError, match=r"Two embeddings are called 'a'. Name them: first=PATH second=PATH."):
        align([read_table(paths[0], "a", "features", 99)] * 2)
    assert parse_name("ours=x/b.parquet") == ("ours", Path("x/b.parquet"))
    assert parse_name("logs/run3/embeddings.parquet")[0] == "run3"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("fov_name,track_id,kind\n/A/1/0,0,x\nA/1/1,1,\n", {"e0/A/1/0/0/0": "x", "e0/A/1/0/0/1": "x"}),
        ("fov_name,track_id,t,kind\nA/1/0,1,1,y\n", {"e0/A/1/0/1/1": "y"}),
        ("name,kind\ne0/A/1/0/0/0,7\n", {"e0/A/1/0/0/0": "7"}),
        ("global_track_id,kind\ne0/A/1/1/0,z\n", {"e0/A/1/1/0/0": "z", "e0/A/1/1/0/1": "z"}),
    ],
)
def test_annotations_find_their_cells(tmp_path: Path, rows: str, expected: dict[str, str]):
    (tmp_path / "a.csv").write_text(rows)
    cells, labels, unmatched = annotate(make_cells(experiments=1, fovs=2, tracks=2, frames=2), tmp_path / "a.csv")
    assert (labels, unmatched) == (("kind",), "")
    assert {n: v for n, v in zip(cells.name, cells.labels["kind"], strict=True) if v} == expected


def test_annotations_of_no_cell_are_counted_and_the_first_is_named(tmp_path: Path):
    (tmp_path / "a.csv").write_text("fov_name,track_id,kind\nA/1/0,0,x\nB/2/9,0,x\nA/1/0,77,x\n")
    unmatched = annotate(make_cells(experiments=1, fovs=2, tracks=2, frames=2), tmp_path / "a.csv")[2]
    assert unmatched == (
        f"{tmp_path}/a.csv: 2 rows of 3 are about no cell that is judged; the first is fov_name=B/2/9 track_id=0."
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("id,kind\n1,x\n", r"has the columns id, kind, which don't say which cells it labels. Needed are fov_name"),
        ("fov_name,track_id\nA/1/0,0\n", r"has no column besides fov_name, track_id. Add one with labels."),
        ("fov_name,track_id,kind\nA/1/0,0,x\n", r"fov_name=A/1/0 track_id=0 is in e0 and in e1. Add a column"),
        ("name,kind\nn,x\n", r"labels none of the 16 cells that are judged. Its first row is about n, but the first"),
        ("name,k\ne0/A/1/0/0/0,x\ne0/A/1/0/0/0,y\n", r"says k=x and y of e0/A/1/0/0/0. Keep one of the rows"),
    ],
)
def test_annotations_that_say_too_little_are_refused(tmp_path: Path, rows: str, said: str):
    (tmp_path / "a.csv").write_text(rows)
    with pytest.raises(ConfigError, match=said):
        annotate(make_cells(experiments=2, fovs=2, tracks=2, frames=2), tmp_path / "a.csv")


def cells_of(shards: ShardSet) -> Cells:
    """All cells of some shards."""
    count = len(shards.arrays["obs_t"])
    arrays, fovs = shards.arrays, shards.manifest.fovs
    of = [fovs[n] for n in arrays["obs_fov"][:count]]
    fov = np.array([f"{one.experiment}/{one.fov_name}" for one in of], object)
    track = np.array([f"{one}/{n}" for one, n in zip(fov, arrays["obs_track_id"][:count], strict=True)], object)
    t = arrays["obs_t"][:count].astype(np.int64)
    return Cells(
        name=np.array([f"{one}/{frame}" for one, frame in zip(track, t, strict=True)], object),
        experiment=np.array([one.experiment for one in of], object),
        fov=fov,
        track=track,
        lineage=np.array([shards.lineage_ids[n] for n in arrays["obs_lineage"][:count]], object),
        t=t,
        hpi=t.astype(np.float64),
        labels={"condition": np.array([shards.labels_of(n)["condition"] for n in range(count)], object)},
    )


def test_raw_pixels_are_those_of_the_very_cells(shards: Path):
    opened = ShardSet.open(shards)
    cells = cells_of(opened).take(np.arange(40))
    order = np.random.default_rng(0).permutation(40)
    patches = Patches(opened, cells.take(order), (12, 12))
    assert patches.observations.tolist() == order.tolist()
    assert patches.read(np.arange(2)).shape == (2, 2, 12, 12)
    assert embed_pixels(patches, cells.take(order)).features.shape == (40, 32)
    strange = cells.take(np.arange(2))
    strange.t[1] = 99
    with pytest.raises(ConfigError, match=r"has no cell \S+; it lacks 1 of the 2 that are judged. Give the shards"):
        Patches(opened, strange, None)


@pytest.mark.slow
def test_the_command_judges_side_by_side_and_writes_a_page(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dynaclr_wds"])
    cells = cells_of(ShardSet.open(shards))
    x = np.random.default_rng(0).normal(size=(len(cells), 6))
    write_table(tmp_path / "a.parquet", cells, x)
    write_table(tmp_path / "b.parquet", cells, np.ones((len(cells), 6)))
    given = ["a.parquet", "flat=b.parquet", "--shards", str(shards), "--html", "page.html", "--cells", "300"]
    assert command.main(["evaluate", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["embeddings"]] == ["a", "flat", NAME]
    assert 150 < found["cells"] <= 300
    assert found["embeddings"][1]["collapse"].startswith("collapsed")
    assert found["embeddings"][0]["smoothness"]["score"]["low"] > 0
    page = (tmp_path / "page.html").read_text()
    assert len(page) < 5e6
    assert "flat: collapsed: all cells have the same embedding" in page
    pictures = [a["alt"] for tag, a in Tags(page).found if tag == "img"]
    assert len([alt for alt in pictures if "coloured by condition" in alt]) == 3
    assert len([alt for alt in pictures if "paths of the largest lineages" in alt]) == 3
    assert len([alt for alt in pictures if alt.startswith(f"{NAME}, example 1")]) > 1
    assert command.main(["evaluate", *given]) == 2
    assert "page.html: is there already. Give another name, or --overwrite" in capsys.readouterr().err
    assert command.main(["evaluate", "a.parquet", "--cells", "60"]) == 0
    said = capsys.readouterr().out
    assert f"of {len(cells):,} rows are judged: whole lineages, drawn by name (--cells)." in said
    assert "Without --shards there is no baseline of raw pixels." in said
    assert "temporal smoothness" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["no.parquet"], "error: no.parquet: no such table. Give what `dynaclr-wds predict` wrote, or NAME=PATH."),
        (["bad.parquet"], "error: bad.parquet: can't be read as Parquet"),
        (["thin.parquet"], "error: thin.parquet: has no column name, experiment"),
        (["a.parquet", "--label", "kind"], "error: --label kind: the tables have no such label; they have condition."),
        (["a.parquet", "--labels", "no.csv"], "error: no.csv: can't be read as a table"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_a_line(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dynaclr_wds"])
    cells = make_cells(experiments=1)
    write_table(tmp_path / "a.parquet", cells, np.ones((len(cells), 2)))
    pq.write_table(pa.table({"features": [1.0]}), tmp_path / "thin.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not quite")
    assert command.main(["evaluate", *given]) == 2
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == 1
