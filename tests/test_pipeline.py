"""The plain pipeline: triplets from URLs alone, each anchor once a pass, and nothing run from the data."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds

from dynaclr_wds import MultiExperimentTripletDataset, triplet_pipeline
from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.errors import FormatError
from dynaclr_wds.plain.clips import sample_candidate
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.read.patches import plan_crop
from dynaclr_wds.shardset import ShardSet
from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config
from tests.plates import make_collection


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        folder = tmp_path_factory.mktemp("pipeline")
        path = make_collection(
            folder / "plates", lineages=4, shard_bytes=60_000, block_bytes=9_000, clip_anchors=4, seed=5
        )
        build_shards(parse_build_config(path, {}), folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="module")
def urls(root: Path) -> list[str]:
    return sorted(str(path) for path in root.rglob("*.tar"))


def who(meta: dict) -> tuple[str, int]:
    return meta["global_track_id"], meta["t"]


def triplets(batches) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    return [(who(a), who(p)) for b in batches for a, p in zip(b["anchor_meta"], b["positive_meta"], strict=True)]


def anchors_of(root: Path) -> list[tuple[str, int]]:
    shards, columns = ShardSet.open(root), ShardSet.open(root).arrays
    found = []
    for obs in columns["patch_obs"][columns["patch_is_anchor"]]:
        fov = shards.manifest.fovs[columns["obs_fov"][obs]]
        found.append((f"{fov.experiment}/{fov.fov_name}/{columns['obs_track_id'][obs]}", int(columns["obs_t"][obs])))
    return sorted(found)


# --- what a batch holds ----------------------------------------------------------------------------------------------


def test_a_batch_holds_what_the_dataset_reads(root: Path, urls: list[str]):
    shards = ShardSet.open(root)
    arrays = shards.arrays
    names = [f"{f.experiment}/{f.fov_name}" for f in shards.manifest.fovs]
    row = {}
    for patch in range(len(arrays["patch_obs"])):
        obs = arrays["patch_obs"][patch]
        track = f"{names[arrays['obs_fov'][obs]]}/{arrays['obs_track_id'][obs]}"
        row[track, int(arrays["obs_t"][obs])] = patch
    dataset = MultiExperimentTripletDataset(shards, plan_crop(shards, None, None))
    for batch in triplet_pipeline(urls, batch_size=16, shuffle=50):
        sides = {n: np.array([row[who(m)] for m in batch[f"{n}_meta"]]) for n in ("anchor", "positive")}
        read = dataset.__getitems__(BatchPlan(number=0, **sides))
        for name in sides:
            assert batch[name].dtype == torch.uint16
            assert torch.equal(batch[name], read[name])
            for level, values in read[f"{name}_norm_meta"].items():
                assert torch.equal(batch[f"{name}_norm_meta"][level], values)
            for meta, other in zip(batch[f"{name}_meta"], read[f"{name}_meta"], strict=True):
                shared = {k: meta[k] for k in ("experiment", "condition", "well", "fov_name", "track_id", "t", "id")}
                assert shared.items() <= other.items()
                assert meta["hpi"] == pytest.approx(other["hpi"])


def test_every_anchor_comes_once_a_pass_with_a_positive_of_its_lineage_in_range(root: Path, urls: list[str]):
    batches = list(triplet_pipeline(urls, batch_size=32))
    assert sorted(a for a, _ in triplets(batches)) == anchors_of(root)
    assert {len(b["anchor"]) for b in batches[:-1]} == {32}
    for batch in batches:
        for anchor, positive in zip(batch["anchor_meta"], batch["positive_meta"], strict=True):
            assert anchor["lineage_id"] == positive["lineage_id"]
            assert 1 <= positive["t"] - anchor["t"] <= 2  # 0.5 to 1 h, a frame each 30 minutes


def test_a_narrower_tau_range_is_kept(urls: list[str]):
    batches = list(triplet_pipeline(urls, batch_size=32, tau_range_hours=(1.0, 1.0)))
    assert {p[1] - a[1] for a, p in triplets(batches)} == {2}


def test_tau_is_drawn_with_the_stated_probabilities():
    rng = np.random.default_rng(0)
    tau = np.array([1, 1, 2, 4])  # two candidates at 1, none at 3
    drawn = Counter(sample_candidate(rng, tau, (1, 4), 2.0) for _ in range(8_000))
    # exp(0), exp(-2/3), exp(-2), normalised by their sum 1.6488; the first is shared by two
    for candidate, p in enumerate((0.3033, 0.3033, 0.3114, 0.0821)):
        assert drawn[candidate] / 8_000 == pytest.approx(p, abs=0.02)


def test_the_last_partial_batch_can_be_left_out(root: Path, urls: list[str]):
    sizes = [len(b["anchor"]) for b in triplet_pipeline(urls, batch_size=32, partial=False)]
    assert sizes == [32] * (len(anchors_of(root)) // 32)


# --- order -----------------------------------------------------------------------------------------------------------


def test_same_seed_same_order_another_seed_or_pass_another(urls: list[str]):
    pipeline = triplet_pipeline(urls, batch_size=8, shuffle=20, seed=1)
    first, second = triplets(pipeline), triplets(pipeline)
    again = triplet_pipeline(urls, batch_size=8, shuffle=20, seed=1)
    assert [triplets(again), triplets(again)] == [first, second]
    assert triplets(triplet_pipeline(urls, batch_size=8, shuffle=20, seed=2)) != first
    assert sorted(first) != sorted(second)  # other positives, not only another order


def test_without_a_buffer_triplets_keep_the_order_of_the_shard(urls: list[str]):
    (batch,) = triplet_pipeline(urls[:1], batch_size=1000, shuffle=0)
    with tarfile.open(urls[0]) as tar:
        clips = [json.loads(tar.extractfile(m).read()) for m in tar if m.name.endswith(".json")]
    stored = [(p["global_track_id"], p["t"]) for c in clips for p in c["patches"] if p["is_anchor"]]
    assert [who(m) for m in batch["anchor_meta"]] == stored


def test_workers_share_the_shards_and_begin_another_pass_each_time(urls: list[str]):
    alone = triplet_pipeline(urls, batch_size=8, seed=1)
    passes = [sorted(triplets(alone)), sorted(triplets(alone))]
    loader = wds.WebLoader(triplet_pipeline(urls, batch_size=8, seed=1), batch_size=None, num_workers=2)
    # a triplet depends on seed, pass and clip alone, so it is the same whichever worker draws it
    assert [sorted(triplets(loader)), sorted(triplets(loader))] == passes
    assert passes[0] != passes[1]


def test_ranks_read_what_the_nodesplitter_gives_them(root: Path, urls: list[str]):
    def rank(number: int) -> Callable:
        return lambda shards: islice(shards, number, None, 2)

    halves = [triplets(triplet_pipeline(urls, batch_size=8, nodesplitter=rank(r))) for r in range(2)]
    assert sorted(a for half in halves for a, _ in half) == anchors_of(root)


# --- what can go wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("urls", "options", "message"),
    [
        ("pipe:cat a.tar", {}, "'pipe:cat a.tar' runs a shell command"),
        ([], {}, "names no shard"),
        ("a.tar", {"batch_size": 0}, "batch_size=0 must be >= 1"),
        ("a.tar", {"shuffle": -1}, "shuffle=-1 must be >= 0"),
    ],
)
def test_bad_values_are_named(urls, options, message):
    with pytest.raises(ValueError, match=message):
        triplet_pipeline(urls, **{"batch_size": 4, **options})


def test_braces_are_expanded(urls: list[str]):
    first, second = sorted(Path(urls[0]).parent.glob("control-00000[01].tar"))
    braces = str(first).replace("000000.tar", "{000000..000001}.tar")
    listed = triplet_pipeline([str(first), str(second)], batch_size=8)
    assert triplets(triplet_pipeline(braces, batch_size=8)) == triplets(listed)


def test_a_tau_range_the_shards_do_not_hold_is_named(urls: list[str]):
    with pytest.raises(ValueError, match=r"tau_range_hours=\(0.5, 3.0\) is 1…6 frames in experiment 'experiment[01]'"):
        list(triplet_pipeline(urls, batch_size=4, tau_range_hours=(0.5, 3.0)))


def rewrite(source: str, target: Path, change: Callable[[str, bytes], bytes | None]) -> str:
    """Copy a shard, each member changed or left out."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            data = change(member.name, old.extractfile(member).read())
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return str(target)


def test_pickles_are_not_opened(urls: list[str], tmp_path: Path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Harm()], dtype=object), allow_pickle=True)
    assert pickle.dumps(Harm())
    path = rewrite(urls[0], tmp_path / "bad.tar", lambda n, d: buffer.getvalue() if n.endswith("npy") else d)
    with pytest.raises(FormatError, match=r"bad.tar, \w+\.\d+\.npy: is not an npy file of plain numbers"):
        list(triplet_pipeline([path], batch_size=4))
    assert not (tmp_path / "harm").exists()


def test_a_clip_without_json_is_named(urls: list[str], tmp_path: Path):
    path = rewrite(urls[0], tmp_path / "bad.tar", lambda n, d: None if n.endswith("json") else d)
    with pytest.raises(FormatError, match=r"bad.tar, clip \w+: has no JSON"):
        list(triplet_pipeline([path], batch_size=4))


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"{", "its JSON can't be read"), (b"[]", "its JSON is no object"), (b"{}", "is not a clip .*'patches'")],
)
def test_json_that_is_no_clip_is_named(urls: list[str], tmp_path: Path, text: bytes, message: str):
    path = rewrite(urls[0], tmp_path / "bad.tar", lambda n, d: text if n.endswith("json") else d)
    with pytest.raises(FormatError, match=rf"bad.tar, clip \w+: {message}"):
        list(triplet_pipeline([path], batch_size=4))


def test_a_key_that_is_no_hash_is_named(urls: list[str], tmp_path: Path):
    def change(name: str, data: bytes) -> bytes:
        return json.dumps(json.loads(data) | {"key": "-1"}).encode() if name.endswith("json") else data

    with pytest.raises(FormatError, match=r"key='-1' is not hexadecimal"):
        list(triplet_pipeline([rewrite(urls[0], tmp_path / "bad.tar", change)], batch_size=4))


def test_a_statistic_that_is_not_a_number_is_refused(urls: list[str], tmp_path: Path):
    def blank(name: str, data: bytes) -> bytes:
        if not name.endswith("json"):
            return data
        clip = json.loads(data)
        clip["statistics"]["fov"][0][STATISTICS.index("median")] = None
        return json.dumps(clip).encode()

    path = rewrite(urls[0], tmp_path / "bad.tar", blank)
    with pytest.raises(FormatError, match="a statistic of level 'fov' is not a number"):
        list(triplet_pipeline([path], batch_size=4))


def test_a_shard_that_is_cut_off_is_named(urls: list[str], tmp_path: Path):
    path = tmp_path / "short.tar"
    shutil.copyfile(urls[0], path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises((tarfile.ReadError, FormatError), match=r"short\.tar"):
        list(triplet_pipeline([str(path)], batch_size=4))


def test_a_missing_shard_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"gone\.tar"):
        list(triplet_pipeline([str(tmp_path / "gone.tar")], batch_size=4))
