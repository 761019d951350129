"""Laws of groups: each FOV is built once, by one unit that needs no other, and what comes or goes moves few of them."""

from __future__ import annotations

import shutil
import tarfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import etl.cut.counting
import etl.cut.moments
import etl.cut.patches
import etl.pack.tars
import etl.unit.build
from dynaclr_wds.shardset import ShardSet
from etl.build_shards import build_shards
from etl.cut.compiled import load_compiled
from etl.layout.groups import plan_groups
from etl.pack.tar_headers import make_header, make_patch_headers
from etl.source.experiments import parse_build_config
from tests.plates import make_collection
from tests.set_files import digests
from tests.test_build import build

pytestmark = pytest.mark.usefixtures("without_fsync")

EACH_FOV = {"group_bytes": 1}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_collection(tmp_path_factory.mktemp("groups"), experiments=1, lineages=2)


@pytest.fixture(scope="module")
def whole(collection: Path) -> Path:
    build(collection, collection.parent / "shards", **EACH_FOV)
    return collection.parent / "shards"


def draw_fovs(seed: int) -> tuple[list[str], list[int]]:
    rng = np.random.default_rng(seed)
    names = sorted(f"{'ABCDEFGH'[k // 12 % 8]}/{k % 12}/{k}" for k in range(rng.integers(1, 300)))
    return names, rng.integers(0, 50, len(names)).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_groups_hold_each_fov_once_in_order_and_are_no_larger_than_asked_for(seed: int):
    names, sizes = draw_fovs(seed)
    groups = plan_groups(names, sizes, 200)
    assert [row for group in groups for row in group] == list(range(len(names)))
    totals = [sum(sizes[row] for row in group) for group in groups]
    assert max(totals) <= 200
    assert all(2 * total >= 200 - 50 for total in totals[:-1])


def test_a_fov_larger_than_a_group_is_a_group():
    assert plan_groups(["A/1/0", "A/1/1", "A/1/2"], [10, 500, 10], 100) == [range(0, 1), range(1, 2), range(2, 3)]


def test_a_fov_that_comes_moves_few_groups():
    moved = []
    for seed in range(40):
        names, sizes = draw_fovs(seed)
        before = {tuple(names[row] for row in group) for group in plan_groups(names, sizes, 200)}
        at = len(names) // 2
        names, sizes = [*names[:at], f"{names[at]}5", *names[at:]], [*sizes[:at], 30, *sizes[at:]]
        after = {tuple(names[row] for row in group) for group in plan_groups(sorted(names), sizes, 200)}
        moved.append(len(after - before))
    assert np.mean(moved) < 4
    assert np.median(moved) <= 2


def test_a_fov_that_comes_is_built_and_no_other(
    collection: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, cut = tmp_path / "out", []
    build(collection, out, exclude_fovs=["A/1/1"], **EACH_FOV)
    kept = {path.name: path.stat().st_ino for path in out.rglob("*.tar")}
    cut_fov = etl.unit.build.cut_fov

    def watched(job: Any, stored: Any) -> Any:
        cut.append(job.fov.name)
        return cut_fov(job, stored)

    monkeypatch.setattr(etl.unit.build, "cut_fov", watched)
    build_shards(parse_build_config(collection, EACH_FOV), out)
    assert cut == ["A/1/1"]
    assert kept.items() <= {path.name: path.stat().st_ino for path in out.rglob("*.tar")}.items()
    assert digests(out) == digests(whole)


def test_an_option_that_no_shard_depends_on_builds_no_group(
    collection: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    document = yaml.safe_load(collection.read_text())
    document["experiments"][0]["channel_markers"] = {"GFP": "TOMM20"}
    path = collection.with_name("marked.yaml")
    path.write_text(yaml.safe_dump(document))
    monkeypatch.setattr(etl.unit.build, "cut_fov", None)
    manifest = build_shards(parse_build_config(path, EACH_FOV), out)
    assert manifest.experiments[0].markers == ("Phase", "TOMM20")


class Twice(ThreadPoolExecutor):
    """Runs every unit twice, side by side, as schedulers do that requeue."""

    def submit(self, *arguments: Any, **keywords: Any) -> Future[Any]:
        super().submit(*arguments, **keywords)
        return super().submit(*arguments, **keywords)


def test_two_copies_of_each_unit_at_once_end_with_the_same_bytes(collection: Path, whole: Path, tmp_path: Path):
    out = tmp_path / "out"
    build_shards(parse_build_config(collection, EACH_FOV), out, make_executor=lambda *_: Twice(4))
    assert digests(out) == digests(whole)
    assert not list(out.rglob("*.partial"))


def test_headers_are_those_that_tarfile_writes():
    def expected(name: str, size: int) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o444
        return info.tobuf(tarfile.USTAR_FORMAT)

    for name, size in (("0123456789abcdef.json", 0), ("0123456789abcdef.12345.npy", 2**32 + 7)):
        assert make_header(name, size) == expected(name, size)
    headers = make_patch_headers(["fedcba9876543210", "0123456789abcdef", "f" * 16], np.array([1201, 1, 12]), 777)
    assert len(headers) == 1214
    for number in (0, 9, 10, 99, 1000, 1200):
        assert headers[number].tobytes() == expected(f"fedcba9876543210.{number:04d}.npy", 777)
    assert headers[1201].tobytes() == expected("0123456789abcdef.000.npy", 777)
    assert headers[1213].tobytes() == expected(f"{'f' * 16}.011.npy", 777)


def test_a_set_is_the_same_without_compiled_code(
    collection: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert load_compiled() is not None or shutil.which("cc") is None
    for module in (etl.cut.counting, etl.cut.moments, etl.cut.patches, etl.pack.tars):
        monkeypatch.setattr(module, "load_compiled", lambda: None)
    build(collection, tmp_path / "out", **EACH_FOV)
    assert digests(tmp_path / "out") == digests(whole)


def test_a_stratum_holds_its_cells_of_all_groups_and_no_others(tmp_path: Path):
    path = make_collection(tmp_path, experiments=1, lineages=2, fovs=("A/1/0", "B/2/0", "C/3/0"))
    document = yaml.safe_load(path.read_text())
    document["experiments"][0]["condition_wells"] = {"control": ["A/1", "C/3"], "infected": ["B/2"]}
    path.write_text(yaml.safe_dump(document))
    build(path, tmp_path / "shards", **EACH_FOV)
    shards = ShardSet.open(tmp_path / "shards")
    a = shards.arrays
    runs = np.array([shard.partition for shard in shards.manifest.shards])
    assert (np.diff(runs) != 0).sum() >= 2, "the partition of A/1 and C/3 lies in two runs"
    index = shards.plan_index(shards.experiments, shards.manifest.tau_range_hours)
    condition = a["label_condition"][a["patch_obs"]]
    names = next(label.values for label in shards.manifest.labels if label.name == "condition")
    assert [stratum.value for stratum in index.strata] == [("control",), ("infected",)]
    for number, stratum in enumerate(index.strata):
        wanted = np.flatnonzero(a["patch_has_candidate"] & (condition == names.index(str(stratum.value[0]))))
        np.testing.assert_array_equal(index.row[index.first[number] : index.first[number + 1]], wanted)
