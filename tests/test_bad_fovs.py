"""Laws of fields of view that can't be used: named and nothing lost, or left out, listed, and tried again."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console

import etl.unit.build
from dynaclr_wds.contract import MANIFEST, Manifest, SkippedRecord
from dynaclr_wds.errors import ConfigError, FormatError, FovError, PlateError
from dynaclr_wds.manifest_checks import parse_manifest
from dynaclr_wds.set_versions import hash_content
from etl.build_shards import build_part, build_shards
from etl.inspect.as_json import to_json
from etl.inspect.looking import Inspection, Options, inspect
from etl.inspect.page import write_inspection
from etl.inspect.tables import list_skipped, print_inspection
from etl.run.progress import Progress
from etl.source.experiments import parse_build_config
from etl.verify import main, verify
from tests.plates import make_collection
from tests.set_files import digests

pytestmark = pytest.mark.usefixtures("without_fsync")

SKIP = {"on_bad_fov": "skip"}
EACH_FOV = {"group_bytes": 1}


class Said(Progress):
    """Keeps what a build says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One experiment of three FOVs of 6 frames; read only."""
    return make_collection(
        tmp_path_factory.mktemp("good"), experiments=1, shape=(6, 2, 1, 32, 32), fovs=("A/1/0", "A/1/1", "B/2/0")
    )


@pytest.fixture
def collection(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good.parent, tmp_path / "data")) / good.name


def build(path: Path, out: Path, said: Said | None = None, options: Any = None, **flags: Any) -> Manifest:
    return build_shards(parse_build_config(path, SKIP | (options or {})), out, progress=said, **flags)


def plate(collection: Path, fov: str) -> Path:
    return collection.parent / "experiment0/plate.zarr" / fov


def spoil_pixels(collection: Path, fov: str) -> tuple[Path, bytes]:
    """Overwrite the chunk of a frame; return where it is, and what was there."""
    chunk = sorted(path for path in (plate(collection, fov) / "0/2").rglob("*") if path.is_file())[0]
    data = chunk.read_bytes()
    chunk.write_bytes(b"x" * len(data))
    return chunk, data


def cut_tracks(collection: Path, fov: str) -> tuple[Path, bytes]:
    """Cut a track table in the middle of a row."""
    path = collection.parent / "experiment0/tracks" / fov / "tracks.csv"
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b",", 0, len(data) // 2) + 1])
    return path, data


def spoil_metadata(collection: Path, fov: str) -> tuple[Path, bytes]:
    path = plate(collection, fov) / ".zattrs"
    data = path.read_bytes()
    path.write_bytes(data[:20])
    return path, data


SPOIL = {"pixels": spoil_pixels, "tracks": cut_tracks, "metadata": spoil_metadata}
REASONS = {
    "pixels": "experiment0/plate.zarr/A/1/1: frame 2 can't be read (",
    "tracks": "experiment0/tracks/A/1/1/tracks.csv: ",
    "metadata": "experiment0/plate.zarr/A/1/1",
}


@pytest.mark.parametrize("kind", SPOIL)
def test_a_bad_fov_is_left_out_listed_and_comes_in_when_it_is_mended(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    out, said = tmp_path / "out", Said()
    path, data = SPOIL[kind](collection, "A/1/1")
    manifest = build(collection, out, said, EACH_FOV)
    (record,) = manifest.skipped
    assert (record.experiment, record.fov_name) == ("experiment0", "A/1/1")
    assert record.reason.startswith(REASONS[kind])
    assert f"skipped: experiment0, A/1/1: {record.reason}" in said.lines
    assert [fov.fov_name for fov in manifest.fovs] == ["A/1/0", "B/2/0"]
    without = build(collection, tmp_path / "without", None, {**EACH_FOV, "exclude_fovs": ["A/1/1"]})
    assert hash_content(manifest) == hash_content(without)
    assert manifest.shards == without.shards
    assert verify(out) == []
    again = build(collection, out, None, EACH_FOV)
    assert again == manifest
    path.write_bytes(data)
    cut: list[str] = []
    cut_fov = etl.unit.build.cut_fov
    monkeypatch.setattr(
        etl.unit.build, "cut_fov", lambda job, stored: (cut.append(job.fov.name), cut_fov(job, stored))[1]
    )
    mended = build(collection, out, None, EACH_FOV)
    assert cut == ["A/1/1"]
    assert (mended.skipped, mended.set_version) == ((), 2)
    build(collection, tmp_path / "fresh", None, EACH_FOV)
    assert digests(out) == digests(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("pixels", FovError, "A/1/1: frame 2 can't be read .* or all such with on_bad_fov: skip"),
        ("tracks", ConfigError, r"A/1/1/tracks\.csv: "),
        ("metadata", PlateError, "A/1/1"),
    ],
)
def test_without_skip_a_bad_fov_is_an_error_that_names_it_and_what_is_finished_stays(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[Exception], said: str
):
    out, options = tmp_path / "out", {**EACH_FOV, "on_bad_fov": "error", "workers": 1}
    path, data = SPOIL[kind](collection, "B/2/0")
    with pytest.raises(error, match=said.replace("A/1/1", "B/2/0")):
        build(collection, out, None, options)
    assert not (out / MANIFEST).exists()
    path.write_bytes(data)
    cut: list[str] = []
    cut_fov = etl.unit.build.cut_fov
    monkeypatch.setattr(
        etl.unit.build, "cut_fov", lambda job, stored: (cut.append(job.fov.name), cut_fov(job, stored))[1]
    )
    build(collection, out, None, options)
    assert sorted(cut) == (["B/2/0"] if kind == "pixels" else ["A/1/0", "A/1/1", "B/2/0"])
    build(collection, tmp_path / "fresh", None, EACH_FOV)
    assert digests(out) == digests(tmp_path / "fresh")


def test_what_is_left_of_a_group_is_what_exclude_fovs_leaves_whoever_builds_it(collection: Path, tmp_path: Path):
    spoil_pixels(collection, "A/1/1")
    out, parts = tmp_path / "out", tmp_path / "parts"
    manifest = build(collection, out, options={"workers": 2})
    without = build(collection, tmp_path / "without", options={"exclude_fovs": ["A/1/1"]})
    assert hash_content(manifest) == hash_content(without)
    assert manifest.shards == without.shards
    config = parse_build_config(collection, SKIP)
    for part in ("2/2", "1/2", "1/2"):
        build_part(config, parts, part)
    build_shards(config, parts, finish=True)
    assert digests(parts) == digests(out)
    same = {path.name: path.stat().st_ino for path in out.rglob("*.tar")}
    assert build(collection, out) == manifest
    assert {path.name: path.stat().st_ino for path in out.rglob("*.tar")} == same


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("pixels", FovError, r"experiment0: none of 3 fields of view can be read\. The first: .*/A/1/0: frame 2 can't"),
        ("tracks", ConfigError, r"A/1/0/tracks\.csv: "),
    ],
)
def test_where_all_fovs_are_bad_the_first_is_an_error(
    collection: Path, tmp_path: Path, kind: str, error: type[Exception], said: str
):
    for fov in ("A/1/0", "A/1/1", "B/2/0"):
        SPOIL[kind](collection, fov)
    with pytest.raises(error, match=said):
        build(collection, tmp_path / "out")


def test_a_fov_that_a_table_of_all_does_not_name_yet_waits_for_the_next_build(collection: Path, tmp_path: Path):
    tables = {fov: collection.parent / f"experiment0/tracks/{fov}/tracks.csv" for fov in ("A/1/0", "A/1/1", "B/2/0")}
    every = pd.concat([pd.read_csv(path).assign(fov=fov) for fov, path in tables.items()])
    document = yaml.safe_load(collection.read_text())
    (entry,) = document["experiments"]
    entry["tracks_path"], table = "all.csv", collection.parent / "all.csv"
    entry["condition_wells"] = {name: [well] for name, well in (("mock", "A/1"),)}
    collection.write_text(yaml.safe_dump(document))
    every[every["fov"] != "A/1/1"].to_csv(table, index=False)
    with pytest.raises(ConfigError, match=r"no row is of FOV A/1/1; .* not tracked yet with on_bad_fov: skip\."):
        build(collection, tmp_path / "out", options={"on_bad_fov": "error"})
    said = Said()
    first = build(collection, tmp_path / "out", said)
    (record,) = first.skipped
    assert (record.fov_name, record.reason) == ("A/1/1", "all.csv: no row is of this field of view.")
    assert "experiment0: left out, because condition_wells names no condition of theirs: B/2." in said.lines
    assert "skipped: the next build tries again what was skipped; exclude_fovs ends that." in said.lines
    every.to_csv(table, index=False)
    whole = build(collection, tmp_path / "out")
    assert [fov.fov_name for fov in whole.fovs] == ["A/1/0", "A/1/1"]
    spoil_pixels(collection, "A/1/1")
    assert build(collection, tmp_path / "out", said).set_version == 3
    held = "Of these, version 2 of the set holds 1, until a build with --prune removes it."
    assert any(line.endswith(held) for line in said.lines)


def test_a_set_with_skipped_fovs_is_refused_when_it_is_finished_without_skip(collection: Path, tmp_path: Path):
    spoil_pixels(collection, "A/1/1")
    out = tmp_path / "out"
    build(collection, out)
    with pytest.raises(FovError, match="A/1/1: frame 2 can't"):
        build(collection, out, options={"on_bad_fov": "error"})
    assert len(parse_manifest((out / MANIFEST).read_bytes()).skipped) == 1


def test_verify_and_inspect_tell_of_skipped_fovs(collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spoil_pixels(collection, "A/1/1")
    (record,) = build(collection, tmp_path / "out").skipped
    assert main([str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "1 field of view was left out when the set was built: experiment0, A/1/1 (experiment0/plate.zarr" in said
    assert said.endswith("Restore the plate, and build again.). The next build tries again.\n")
    assert "on_bad_fov" not in said
    found = inspect(tmp_path / "out")
    (skipped,) = list_skipped(found)
    assert skipped.rows == [["experiment0", "A/1/1", record.reason]]
    assert to_json(found)["skipped"] == [dataclasses.asdict(record)]
    assert "the build left out 1 field of view that can't be used: A/1/1." in find_text(found, "fovs_skipped")
    print_inspection(found, Console(width=140))
    assert skipped.title in capsys.readouterr().out
    write_inspection(tmp_path / "page.html", found)
    assert record.reason in html.unescape((tmp_path / "page.html").read_text())


def find_text(found: Inspection, code: str) -> str:
    (text,) = [one.text for one in found.findings if one.code == code]
    return text


def test_inspect_names_frames_that_cannot_be_read_and_shows_the_others(collection: Path):
    spoil_pixels(collection, "A/1/1")
    found = inspect(collection, Options(frames=18))
    said = r"experiment0: .*/A/1/1: frame 2 can't be read \(.* or all such with on_bad_fov: skip\."
    assert re.fullmatch(said, find_text(found, "frame_unreadable"))
    assert found.frames[0].seen == 17
    assert len(found.pairs) > 0
    for fov in ("A/1/0", "A/1/1", "B/2/0"):
        for chunk in (plate(collection, fov) / "0").rglob("0"):
            if chunk.is_file():
                chunk.write_bytes(b"x")
    with pytest.raises(FovError, match=r": frame \d can't be read"):
        inspect(collection, Options(frames=2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fov_name": "A/1/0"}, r"SkippedRecord\(.*'A/1/0'.* is skipped, but among the FOVs"),
        ({"reason": ""}, "must have a reason of one printable line"),
        ({"reason": "a\x1b[2J"}, "must have a reason of one printable line"),
    ],
)
def test_a_manifest_with_impossible_skipped_fovs_is_refused(good: Path, tmp_path: Path, change: Any, said: str):
    manifest = build(good, tmp_path / "out")
    record = {"experiment": "experiment0", "fov_name": "A/1/7", "reason": "is bad"} | change
    forged = json.loads(dataclasses.replace(manifest, skipped=(SkippedRecord(**record),)).to_json())
    with pytest.raises(FormatError, match=said):
        parse_manifest(json.dumps(forged))
