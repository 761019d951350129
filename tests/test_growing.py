"""Laws of sets that grow: what is added is built alone, nothing is lost or changed unasked, and readers keep theirs."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import etl.unit.build
from dynaclr_wds.contract import MANIFEST, FovRecord, Manifest
from dynaclr_wds.errors import BuildError, ConfigError
from dynaclr_wds.file_checks import read_manifest_file
from dynaclr_wds.set_versions import hash_content
from dynaclr_wds.shardset import ShardSet
from etl.build_shards import build_shards
from etl.run.differences import compare_with
from etl.run.progress import Progress
from etl.source.experiments import parse_build_config
from etl.verify import verify
from tests.plates import make_collection
from tests.remote import EXACT, STREAMING, assert_same, make_data, read_batches
from tests.set_files import digests

pytestmark = pytest.mark.usefixtures("without_fsync")

EACH_FOV = {"group_bytes": 1}
SMALL = {"block_bytes": 6000, "clip_anchors": 2}


class Said(Progress):
    """Keeps what a build says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments of three FOVs of 6 frames."""
    return make_collection(tmp_path_factory.mktemp("growing"), shape=(6, 2, 1, 32, 32), lineages=5, **SMALL)


@pytest.fixture(scope="module")
def first(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of the first experiment, of two of its wells' FOVs."""
    out = tmp_path_factory.mktemp("first") / "shards"
    build(change(collection, "first.yaml", drop_second), out)
    return out


def build(path: Path, out: Path, said: Said | None = None, **flags: Any) -> Manifest:
    return build_shards(parse_build_config(path, EACH_FOV), out, progress=said, **flags)


def change(path: Path, name: str, how: Any) -> Path:
    """Write an experiments.yaml that says something else than another one."""
    document = yaml.safe_load(path.read_text())
    how(document["experiments"])
    path.with_name(name).write_text(yaml.safe_dump(document))
    return path.with_name(name)


def drop_second(experiments: list[dict[str, Any]]) -> None:
    del experiments[1]


def mark_channel(experiments: list[dict[str, Any]]) -> None:
    drop_second(experiments)
    experiments[0]["channel_markers"] = {"GFP": "TOMM20"}


def watch_cuts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    cut: list[str] = []
    cut_fov = etl.unit.build.cut_fov

    def watched(job: Any, stored: Any) -> Any:
        cut.append(job.fov.where.partition("growing")[2].partition("/")[2])
        return cut_fov(job, stored)

    monkeypatch.setattr(etl.unit.build, "cut_fov", watched)
    return cut


def test_an_experiment_that_is_added_is_built_alone_and_needs_no_flag(
    collection: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = Path(shutil.copytree(first, tmp_path / "out"))
    cut, said = watch_cuts(monkeypatch), Said()
    manifest = build(collection, out, said)
    assert sorted(cut) == [f"experiment1/plate.zarr/{fov}" for fov in ("A/1/0", "A/1/1", "B/2/0")]
    assert (read_manifest_file(first / MANIFEST).set_version, manifest.set_version) == (1, 2)
    assert "changed since the set was built: experiment1: added: A/1/0, A/1/1, B/2/0" in said.lines
    build(collection, tmp_path / "fresh")
    assert digests(out) == digests(tmp_path / "fresh")
    assert verify(out) == []


def test_what_matters_to_no_shard_needs_no_flag_and_builds_nothing(
    collection: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = Path(shutil.copytree(first, tmp_path / "out"))
    monkeypatch.setattr(etl.unit.build, "cut_fov", None)

    manifest = build(change(collection, "marked.yaml", mark_channel), out)
    assert (manifest.set_version, manifest.experiments[0].markers) == (2, ("Phase", "TOMM20"))
    assert manifest.shards == read_manifest_file(first / MANIFEST).shards


CONFIG: dict[str, Any] = {
    "yx_patch_size": [16, 16],
    "include_wells": None,
    "exclude_fovs": [],
    "on_no_anchor": "error",
    "experiments": [
        {"name": "a", "condition_wells": [["mock", ["A/1", "A/2"]], ["infected", ["B/1"]]], "start_hpi": 0.0},
        {"name": "b", "condition_wells": [["mock", ["A/1"]]], "include_wells": None, "exclude_fovs": ["A/1/1"]},
    ],
}
FOVS = [("a", "A/1/0"), ("a", "A/1/1"), ("a", "A/2/0"), ("a", "B/1/0"), ("b", "A/1/0")]
DIFFERENCES: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "another order": ({"experiments": [1, 0]}, (), ()),
    "another experiment": ({"added": {"name": "c"}}, (), ()),
    "an experiment less": ({"experiments": [0]}, ("b",), ()),
    "a well more": ({"a.condition_wells": [["infected", ["B/1", "B/2"]], ["mock", ["A/2", "A/1"]]]}, (), ()),
    "a well less": ({"a.condition_wells": [["mock", ["A/1"]], ["infected", ["B/1"]]]}, ("A/2/0 of a",), ()),
    "another condition": (
        {"a.condition_wells": [["mock", ["A/1", "A/2", "B/1"]]]}, (), ("other condition_wells of a",),
    ),
    "wells are chosen": ({"include_wells": ["A/1"]}, ("A/2/0, B/1/0 of a",), ()),
    "wells of one are chosen": ({"a.include_wells": ["B/1"]}, ("A/1/0, A/1/1, A/2/0 of a",), ()),
    "a FOV less": ({"exclude_fovs": ["A/1/0"]}, ("A/1/0 of a", "A/1/0 of b"), ()),
    "a FOV more": ({"b.exclude_fovs": []}, (), ()),
    "a FOV that is not held": ({"exclude_fovs": ["A/1/7"]}, (), ()),
    "a clock": ({"a.start_hpi": 3.0}, (), ("other start_hpi of a",)),
    "markers": ({"a.channel_markers": {"x": "y"}}, (), ()),
    "what is kept": ({"on_no_anchor": "keep"}, (), ()),
    "a size": (
        {"yx_patch_size": [12, 12], "max_border_shift_px": [3, 3]}, (), ("yx_patch_size=[16, 16], asked for [12, 12]",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENCES)
def test_only_what_would_lose_or_change_cells_is_a_difference(first: Path, case: str):
    changes, lost, changed = DIFFERENCES[case]
    asked = copy.deepcopy(CONFIG)
    entries = {entry["name"]: entry for entry in asked["experiments"]}
    for key, value in changes.items():
        if key == "experiments":
            asked["experiments"] = [asked["experiments"][number] for number in value]
        elif key == "added":
            asked["experiments"].append(value)
        elif "." in key:
            entries[key[0]][key[2:]] = value
        else:
            asked[key] = value
    fovs = tuple(
        FovRecord(experiment=name, fov_name=fov, well=fov[:3], frames=1, height=1, width=1) for name, fov in FOVS
    )
    held = dataclasses.replace(read_manifest_file(first / MANIFEST), config=CONFIG, fovs=fovs)
    found = compare_with(held, asked)
    assert (found.lost, found.changed) == (lost, changed)


def test_a_loss_and_a_change_are_refused_together_with_the_flags_that_do(collection: Path, first: Path, tmp_path: Path):
    def other(experiments: list[dict[str, Any]]) -> None:
        drop_second(experiments)
        experiments[0]["start_hpi"] = 7.0
        experiments[0]["condition_wells"] = {"control": ["A/1"]}

    out = Path(shutil.copytree(first, tmp_path / "out"))
    path, before = change(collection, "other.yaml", other), digests(out)
    said = r"other start_hpi of experiment0; without B/2/0 of experiment0\. Give --replace and --prune to replace them"
    with pytest.raises(BuildError, match=said):
        build(path, out)
    with pytest.raises(BuildError, match=r"holds B/2/0 of experiment0, which .*other\.yaml does not ask for any more"):
        build(path, out, replace=True)
    assert digests(out) == before
    build(path, out, replace=True, prune=True)
    build(path, tmp_path / "fresh")
    assert digests(out) == digests(tmp_path / "fresh")


def test_a_fov_that_its_plate_does_not_have_any_more_is_not_dropped_unasked(collection: Path, tmp_path: Path):
    home = Path(shutil.copytree(collection.parent, tmp_path / "home"))
    path, out = home / "first.yaml", tmp_path / "out"
    path = change(home / collection.name, "first.yaml", drop_second)
    build(path, out)
    well = home / "experiment0/plate.zarr/A/1/.zattrs"
    well.write_text(well.read_text().replace('{"path": "0"}, ', ""))
    before = digests(out)
    with pytest.raises(BuildError, match=r"holds A/1/0 of experiment0, which the plate does not have any more\. Give"):
        build(path, out)
    assert digests(out) == before
    manifest = build(path, out, prune=True)
    assert [fov.fov_name for fov in manifest.fovs] == ["A/1/1", "B/2/0"]


def test_a_version_stays_as_it_is_until_it_is_pruned(collection: Path, first: Path, tmp_path: Path):
    out = Path(shutil.copytree(first, tmp_path / "out"))
    before = {path.relative_to(out): path.stat().st_ino for path in out.rglob("*") if path.is_file()}
    content, said = (out / MANIFEST).read_bytes(), Said()
    manifest = build(collection, out, said)
    after = {path.relative_to(out): path.stat().st_ino for path in out.rglob("*") if path.is_file()}
    assert {path for path in before if after.get(path) != before[path]} == {Path(MANIFEST)}
    assert (out / "versions/1.json").read_bytes() == content
    index = out / read_manifest_file(first / MANIFEST).index
    files = [path for path in index.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e3
    kept = f"{len(files)} files ({size:.3g} kB) of 1 earlier version of the set stay for trainings that read them."
    assert said.lines[-1] == f"{out}: {kept} --prune removes them."
    again, pruned = Said(), Said()
    assert build(collection, out, again) == manifest
    assert again.lines[-1] == said.lines[-1]
    build(collection, out, pruned, prune=True)
    assert pruned.lines[-1] == f"{out}: removed {len(files)} files ({size:.3g} kB) of 1 earlier version of the set"
    assert not index.exists()
    assert not (out / "versions").exists()
    build(collection, tmp_path / "fresh")
    assert {p.relative_to(out) for p in out.rglob("*")} == {
        p.relative_to(tmp_path / "fresh") for p in (tmp_path / "fresh").rglob("*")
    }
    assert verify(out) == []


def test_the_same_content_is_the_same_version(collection: Path, first: Path, tmp_path: Path):
    out = Path(shutil.copytree(first, tmp_path / "out"))
    path = collection.with_name("first.yaml")
    assert build(path, out, overwrite=True).set_version == 1
    next(out.rglob("*.tar")).unlink()
    assert build(path, out).set_version == 1
    assert digests(out) == digests(first)
    assert not (out / "versions").exists()
    build(collection, out)
    build(path, out, prune=True)
    assert read_manifest_file(out / MANIFEST).set_version == 3


def grow_copy(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "out"))


HELD_OUT = {"split": "fovs", "val_experiments": None, "val_fovs": ["experiment0/A/1/1"], "tau_range": (0.5, 1.0)}


@pytest.mark.parametrize("mode", [EXACT, STREAMING], ids=["exact", "streaming"])
def test_a_loader_reads_the_version_that_it_opened_to_its_end_while_the_set_grows(
    collection: Path, first: Path, tmp_path: Path, mode: dict[str, Any]
):
    out, options = grow_copy(first, tmp_path), {**HELD_OUT, **mode}
    expected = read_batches(make_data(first, **options))
    opened = make_data(out, **options)
    begun = iter(opened.train_dataloader())
    read = [next(begun)]
    build(collection, out)
    read += begun
    read += opened.val_dataloader()
    assert_same(read, expected)
    assert_same(read_batches(opened), expected)
    assert opened.shard_set is not None
    assert opened.shard_set.lineage_ids == ShardSet.open(first).lineage_ids  # read when it is first asked for
    newest = make_data(out, **options)
    assert newest.shard_set is not None
    assert newest.shard_set.manifest.set_version == 2
    assert newest.shard_set.experiments == ("experiment0", "experiment1")
    earlier = make_data(out, shards_version=1, **options)
    assert_same(read_batches(earlier), expected)
    build(collection, out, prune=True)
    with pytest.raises(ConfigError, match=r"there is no version 1 of the set; the newest is 2, and earlier ones are"):
        make_data(out, shards_version=1, **options)


def test_a_training_goes_on_with_the_content_that_it_was_begun_with(collection: Path, first: Path, tmp_path: Path):
    out = grow_copy(first, tmp_path)
    whole = make_data(out, **HELD_OUT)
    assert whole.train_sampler is not None
    rest = read_batches(whole)[2:]
    whole.train_sampler.deliver(2)
    state = json.loads(json.dumps(whole.state_dict()))
    build(change(collection, "marked.yaml", mark_channel), out)  # another version, of the same content
    again = make_data(out, **HELD_OUT)
    again.load_state_dict(state)
    assert_same(read_batches(again), rest)
    build(collection, out)
    other = make_data(out, **HELD_OUT)
    other.load_state_dict(state)
    said = r"written with version 1 of its shards .* opened as version 3 .*Give --data\.shards_version 1 to go on where"
    with pytest.raises(ConfigError, match=said):
        other.train_dataloader()
    kept = make_data(out, shards_version=1, **HELD_OUT)
    kept.load_state_dict(state)
    assert_same(read_batches(kept), rest)


def test_all_ranks_open_the_version_that_the_first_one_has_found(collection: Path, first: Path, tmp_path: Path):
    out = grow_copy(first, tmp_path)
    data = make_data(out, **HELD_OUT)
    build(collection, out)
    strategy = SimpleNamespace(broadcast=lambda _: 1)
    data.trainer = SimpleNamespace(world_size=2, strategy=strategy)  # type: ignore[assignment]
    assert data._open_shards().manifest.set_version == 1


def test_pixels_that_changed_are_another_content_though_the_cells_are_the_same(collection: Path, tmp_path: Path):
    home = Path(shutil.copytree(collection.parent, tmp_path / "home"))
    path, out = change(home / collection.name, "first.yaml", drop_second), tmp_path / "out"
    before = build(path, out)
    chunks = sorted(p for p in (home / "experiment0/plate.zarr/A/1/0/0/2").rglob("*") if p.is_file())
    first, second = chunks[0].read_bytes(), chunks[1].read_bytes()
    chunks[0].write_bytes(second)
    chunks[1].write_bytes(first)
    after = build(path, out)
    assert [p.observations for p in before.partitions] == [p.observations for p in after.partitions]
    assert hash_content(before) != hash_content(after)
