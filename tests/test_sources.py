"""Honest sources: what changed since a set was built is noticed, named and rebuilt, and nothing else is."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import etl.run.stages
import etl.unit.build
from dynaclr_wds.contract import Manifest
from dynaclr_wds.errors import BuildError, ConfigError, PlateError
from dynaclr_wds.manifest_checks import parse_manifest
from etl.build_shards import build_shards
from etl.run.progress import Progress
from etl.source.experiments import parse_build_config
from tests.plates import make_collection
from tests.set_files import digests, find_array
from tests.test_build import Killed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_fsync")]


class Told(Progress):
    """Keeps what a build says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    return make_collection(tmp_path / "collection", shard_bytes=60_000, block_bytes=10_000)


def build(collection: Path, out: Path, **flags: Any) -> tuple[Manifest, list[str]]:
    told = Told()
    options = flags.pop("options", {})
    return build_shards(parse_build_config(collection, options), out, progress=told, **flags), told.lines


def inodes(out: Path) -> dict[str, int]:
    """Inode of each shard of the newest version."""
    shards = parse_manifest((out / "manifest.json").read_bytes()).shards
    return {shard.path: (out / shard.path).stat().st_ino for shard in sorted(shards, key=lambda shard: shard.path)}


def change_pixels(collection: Path, experiment: str, fov: str) -> None:
    """Let two chunk files of a FOV change places."""
    chunks = sorted(p for p in (collection.parent / experiment / "plate.zarr" / fov / "0").rglob("*") if p.is_file())
    chunks = [path for path in chunks if not path.name.startswith((".", "zarr"))]
    first, last = chunks[0].read_bytes(), chunks[-1].read_bytes()
    assert first != last
    chunks[0].write_bytes(last)
    chunks[-1].write_bytes(first)


def drop_last_row(collection: Path, experiment: str, fov: str) -> None:
    path = collection.parent / experiment / "tracks" / fov / "tracks.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def test_changed_pixels_are_named_and_only_their_experiment_is_rebuilt(collection: Path, tmp_path: Path):
    out = tmp_path / "out"
    build(collection, out)
    before, kept = digests(out), inodes(out)
    change_pixels(collection, "experiment0", "A/1/1")
    _, lines = build(collection, out)
    assert "changed since the set was built: experiment0: files of pixels changed: A/1/1" in lines
    after = inodes(out)
    assert {path for path in after if kept.get(path) == after[path]} == {p for p in after if "experiment1" in p}
    assert digests(out) != before
    build(collection, tmp_path / "fresh")
    assert digests(out) == digests(tmp_path / "fresh")
    _, lines = build(collection, out)
    assert lines[0].startswith(f"{out}: up to date, nothing to do: 2 experiments, ")
    assert re.fullmatch(r".* files \(.*\) of 1 earlier version of the set stay for .* --prune removes them\.", lines[1])
    assert len(lines) == 2


def test_changed_tracks_are_named_and_rebuilt(collection: Path, tmp_path: Path):
    out = tmp_path / "out"
    manifest, _ = build(collection, out)
    drop_last_row(collection, "experiment1", "B/2/0")
    changed, lines = build(collection, out)
    assert "changed since the set was built: experiment1: files of tracks changed: B/2/0" in lines
    count = sum(p.observations for p in manifest.partitions)
    assert sum(p.observations for p in changed.partitions) == count - 1
    build(collection, tmp_path / "fresh")
    assert digests(out) == digests(tmp_path / "fresh")


def test_changed_metadata_is_named(collection: Path, tmp_path: Path):
    out = tmp_path / "out"
    build(collection, out)
    path = collection.parent / "experiment0/plate.zarr/A/1/0/.zattrs"
    path.write_text(path.read_text().replace("FFFFFF", "00FF00"))
    _, lines = build(collection, out)
    assert "changed since the set was built: experiment0: metadata changed: A/1/0" in lines


def test_the_same_yaml_beside_other_plates_is_not_up_to_date(collection: Path, tmp_path: Path):
    out = tmp_path / "out"
    build(collection, out)
    other = make_collection(tmp_path / "other", seed=9, shard_bytes=60_000, block_bytes=10_000)
    assert other.read_text() == collection.read_text()
    build(other, out)
    build(other, tmp_path / "fresh")
    assert digests(out) == digests(tmp_path / "fresh")


def test_a_removed_plate_is_named_and_costs_nothing(collection: Path, tmp_path: Path):
    out = tmp_path / "out"
    build(collection, out)
    before = digests(out)
    shutil.rmtree(collection.parent / "experiment1/plate.zarr")
    with pytest.raises(ConfigError, match=r"experiments\[1\].data_path='.*experiment1/plate.zarr' has no plate"):
        build(collection, out)
    assert digests(out) == before
    _, lines = build(collection, out, trust_sources=True)
    assert len(lines) == 1
    assert lines[0].startswith(f"{out}: up to date, nothing to do: 2 experiments, ")


def test_a_bad_shard_and_a_plate_that_no_longer_decodes_lose_no_other_shard(collection: Path, tmp_path: Path):
    out = tmp_path / "out"
    manifest, _ = build(collection, out)
    before = digests(out)
    bad = out / next(shard.path for shard in manifest.shards if "experiment1" in shard.path)
    bad.write_bytes(bad.read_bytes()[:-512])
    for chunk in (collection.parent / "experiment1/plate.zarr/A/1/0/0/c").rglob("*"):
        if chunk.is_file():
            times = chunk.stat()
            chunk.write_bytes(b"x" * times.st_size)
            os.utime(chunk, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(PlateError, match="A/1/0: frames 0 to 1 can't be read"):
        build(collection, out)
    after = digests(out)
    assert {path for path in before if after.get(path) != before[path]} == {str(bad.relative_to(out))}


def test_only_the_bad_shard_is_written_again_from_the_fovs_of_its_group(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    manifest, _ = build(collection, out)
    before, kept = digests(out), inodes(out)
    bad = next(shard.path for shard in manifest.shards if "experiment0/infected" in shard.path)
    (out / bad).unlink()
    cut: list[str] = []
    cut_fov = etl.unit.build.cut_fov

    def watched(job: Any, stored: Any) -> Any:
        cut.append(job.fov.where.removeprefix(f"{collection.parent}/"))
        return cut_fov(job, stored)

    monkeypatch.setattr(etl.unit.build, "cut_fov", watched)
    build(collection, out)
    assert digests(out) == before
    assert {path for path, inode in inodes(out).items() if kept[path] != inode} == {bad}
    assert sorted(cut) == [f"experiment0/plate.zarr/{fov}" for fov in ("A/1/0", "A/1/1", "B/2/0")]


def test_repair_mends_what_only_a_checksum_tells(collection: Path, tmp_path: Path):
    out = tmp_path / "out"
    manifest, _ = build(collection, out)
    before = digests(out)
    shard, array = out / manifest.shards[2].path, find_array(out, "stats_fov")
    for path in (shard, array):
        data = bytearray(path.read_bytes())
        data[-1 if path == array else 3000] ^= 1
        path.write_bytes(data)
    assert "up to date, nothing to do: " in build(collection, out)[1][-1]
    assert digests(out) != before
    build(collection, out, repair=True)
    assert digests(out) == before
    (out / "manifest.json").write_bytes(b"\x00\xff")
    build(collection, out, repair=True)
    assert digests(out) == before


def test_an_experiment_that_is_added_leaves_the_others_as_they_are(collection: Path, tmp_path: Path):
    out, short = tmp_path / "out", collection.with_name("short.yaml")
    document = yaml.safe_load(collection.read_text())
    short.write_text(yaml.safe_dump({**document, "experiments": document["experiments"][:1]}))
    build(short, out)
    kept = inodes(out)
    build(collection, out)
    assert {path: inode for path, inode in inodes(out).items() if "experiment0" in path} == kept
    build(collection, tmp_path / "fresh")
    assert digests(out) == digests(tmp_path / "fresh")
    lost = r"holds experiment1, which .*short\.yaml does not ask for any more\. Give --prune"
    with pytest.raises(BuildError, match=lost):
        build(short, out, replace=True)
    build(short, out, prune=True)  # and what is gone is gone
    assert inodes(out) == kept
    assert not (out / "experiment1").exists()
    build(short, tmp_path / "short")
    assert digests(out) == digests(tmp_path / "short")


def test_a_plate_that_changes_between_a_kill_and_the_next_run_is_cut_again(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(etl.run.stages, "write_index", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            build(collection, out)
    assert list(out.rglob("*.tar"))
    change_pixels(collection, "experiment0", "A/1/0")
    build(collection, out)
    build(collection, tmp_path / "fresh")
    assert digests(out) == digests(tmp_path / "fresh")


def test_a_plate_that_changes_while_it_is_read_is_an_error(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_index = etl.run.stages.write_index

    def meddling(*arguments: Any) -> Any:
        change_pixels(collection, "experiment0", "A/1/0")
        return write_index(*arguments)

    monkeypatch.setattr(etl.run.stages, "write_index", meddling)
    with pytest.raises(BuildError, match=r"while they were read \(experiment0: files of pixels changed: A/1/0\)"):
        build(collection, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_trusted_sources_keep_their_fingerprints(collection: Path, tmp_path: Path):
    out = tmp_path / "out"
    manifest, _ = build(collection, out)
    change_pixels(collection, "experiment0", "A/1/1")
    (out / manifest.shards[-1].path).unlink()
    build(collection, out, trust_sources=True)
    assert parse_manifest((out / "manifest.json").read_bytes()) == manifest


def test_an_unchanged_experiment_keeps_what_its_pixels_ruled_out(collection: Path, tmp_path: Path):
    out = tmp_path / "out"
    shutil.rmtree(collection.parent / "experiment0/plate.zarr/A/1/0/0/3/0")  # frame 3, one channel: blank
    manifest, _ = build(collection, out)
    assert manifest.dropped["experiment0"]["blank_channel"] > 0
    drop_last_row(collection, "experiment1", "B/2/0")
    build(collection, out)
    build(collection, tmp_path / "fresh")
    assert digests(out) == digests(tmp_path / "fresh")


def test_experiments_that_share_a_partition_share_no_shard(collection: Path, tmp_path: Path):
    out, options = tmp_path / "out", {"shard_by": ["condition"], "shard_bytes": 1 << 20}
    build(collection, out, options=options)
    before = inodes(out)
    drop_last_row(collection, "experiment1", "B/2/0")
    build(collection, out, options=options)
    kept = [path for path, inode in inodes(out).items() if before.get(path) == inode]
    assert len(kept) == 2  # control and infected of experiment0
    assert sorted(path.partition("-")[0] for path in inodes(out)) == ["control", "control", "infected", "infected"]
    build(collection, tmp_path / "fresh", options=options)
    assert digests(out) == digests(tmp_path / "fresh")
