"""experiments.yaml: what is wrong is said before any work, by its YAML path."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dynaclr_wds.errors import ConfigError, PlateError, StorageError
from etl.build_shards import make_parser
from etl.source.experiments import BuildConfig, parse_build_config
from etl.source.preflight import check_plates, open_plates, plan_fovs
from tests.plates import make_collection, write_experiments, write_plate

ENTRY: dict[str, Any] = {
    "name": "a",
    "data_path": "a/plate.zarr",
    "tracks_path": "a/tracks",
    "channel_names": ["Phase", "GFP"],
    "source_channel": ["GFP"],
    "condition_wells": {"mock": ["A/1"], "virus": ["A/2", "B/2"]},
    "interval_minutes": 30.0,
}


def parse(tmp_path: Path, *entries: dict[str, Any], **options: Any) -> BuildConfig:
    return parse_build_config(write_experiments(tmp_path / "experiments.yaml", entries), options)


def test_defaults_are_those_of_the_documentation(tmp_path: Path) -> None:
    config = parse(tmp_path, ENTRY, workers=1, memory_limit="4G")
    experiment = config.experiments[0]
    assert (experiment.interval_minutes, experiment.start_hpi) == (30.0, 0.0)
    assert experiment.labels == {}
    assert config == BuildConfig(experiments=(experiment,))
    assert config.z_range is None
    assert config.yx_patch_size == (256, 256)
    assert config.tau_range_hours == (0.5, 2.0)
    assert (config.shard_bytes, config.block_bytes) == (536_870_912, 8_388_608)
    assert (config.dtype, config.on_blank, config.on_nan) == ("source", "drop", "error")
    assert config.where == str(tmp_path / "experiments.yaml")


def test_values_are_parsed_to_plain_types(tmp_path: Path) -> None:
    entry = ENTRY | {"interval_minutes": 15, "date": "2024-01-05", "moi": 5, "organelle": "ER", "start_hpi": 3}
    path = write_experiments(tmp_path / "e.yaml", [entry], z_range=[1, 4], yx_patch_size=[96, 64], seed=7)
    path.write_text(path.read_text().replace("'2024-01-05'", "2024-01-05"))
    config = parse_build_config(path)
    experiment = config.experiments[0]
    assert experiment.labels == {"organelle": "ER", "date": "2024-01-05", "moi": "5"}
    assert experiment.start_hpi == 3.0
    assert experiment.conditions == ("mock", "virus")
    assert experiment.well_conditions == {"A/1": "mock", "A/2": "virus", "B/2": "virus"}
    assert experiment.channel_indices == (1,)
    assert config.yx_patch_size == (96, 64)
    assert config.z_slices(9) == slice(1, 4)
    assert dataclasses.replace(config, z_range=None).z_slices(9) == slice(0, 9)
    assert config.tau_frames(experiment) == (2, 8)
    assert config.clip_anchors_for(experiment) == 64
    assert dataclasses.replace(config, tau_range_hours=(0.0, 0.5)).clip_anchors_for(experiment) == 16
    assert dataclasses.replace(config, clip_anchors=3).clip_anchors_for(experiment) == 3
    assert config.workers >= 1


def test_overrides_win_over_the_yaml_and_none_does_not(tmp_path: Path) -> None:
    path = write_experiments(tmp_path / "e.yaml", [ENTRY], seed=7, yx_patch_size=[32, 32])
    config = parse_build_config(path, {"seed": 8, "yx_patch_size": 96, "dtype": None})
    assert (config.seed, config.yx_patch_size, config.dtype) == (8, (96, 96), "source")


def test_paths_are_relative_to_the_yaml_and_variables_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch")
    entry = ENTRY | {"data_path": "s3://bucket/a/x.zarr/", "tracks_path": "${SCRATCH}/tracks"}
    first, second = parse(tmp_path, ENTRY, entry | {"name": "b"}).experiments
    assert first.data_path == str(tmp_path / "a" / "plate.zarr")
    assert second.data_path == "s3://bucket/a/x.zarr"
    assert second.tracks_path == "/scratch/tracks"
    with pytest.raises(ConfigError, match=r"experiments\[0\]\.tracks_path='s3://bucket/\.\./x'.* must not have empty"):
        parse(tmp_path, ENTRY | {"tracks_path": "s3://bucket/../x"})
    with pytest.raises(ConfigError, match=r"experiments\[0\]\.data_path: URLs of scheme 'ftp' can't be read; use s3"):
        parse(tmp_path, ENTRY | {"data_path": "ftp://host/x.zarr"})


def test_paths_of_a_yaml_at_a_url_are_urls_in_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"experiments": [ENTRY | {"tracks_path": "../b/tracks", "annotations": "/disk/cells.csv"}]}
    monkeypatch.setattr("etl.source.experiments.read_yaml", lambda *_: content)
    config = parse_build_config("s3://bucket/a/e.yaml")
    (experiment,) = config.experiments
    assert experiment.data_path == "s3://bucket/a/a/plate.zarr"
    assert experiment.tracks_path == "s3://bucket/b/tracks"
    assert experiment.annotations == "/disk/cells.csv"
    assert config.as_record()["experiments"][0]["tracks_path"] == "../b/tracks"
    with pytest.raises(ConfigError, match=r"tracks_path='\.\./b/tracks' must be inside of s3://bucket\. Correct it"):
        parse_build_config("s3://bucket/e.yaml")


def test_storage_options_of_an_experiment_come_on_top_of_those_for_all(tmp_path: Path) -> None:
    path = write_experiments(tmp_path / "e.yaml", [ENTRY, ENTRY | {"name": "b", "storage_options": {"region": "eu"}}])
    plain = parse_build_config(write_experiments(tmp_path / "f.yaml", [ENTRY, ENTRY | {"name": "b"}]))
    document = yaml.safe_load(path.read_text())
    document["storage_options"] = {"endpoint": "https://s3.lab", "region": "us", "secret_access_key": "hush"}
    path.write_text(yaml.safe_dump(document))
    config = parse_build_config(path, None, {"endpoint": "https://another", "profile": "of the command line"})
    first, second = (experiment.storage for experiment in config.experiments)
    assert (first.endpoint, first.region, first.profile) == ("https://s3.lab", "us", None)
    assert (second.endpoint, second.region, second.store) == ("https://s3.lab", "eu", {"secret_access_key": "hush"})
    assert config.token == plain.token
    assert "hush" not in f"{config!r} {config.as_record()}"
    for spoiled, says in (
        ({"endpoint": 3}, r"e\.yaml: storage_options\.endpoint must be text"),
        (["hush"], r"e\.yaml: storage_options must be a mapping"),
        ({"secret_access_key": ["hush"]}, r"e\.yaml: storage_options\.secret_access_key must be text or true or false"),
    ):
        path.write_text(yaml.safe_dump({**document, "storage_options": spoiled}))
        with pytest.raises(ConfigError, match=says) as raised:
            parse_build_config(path)
        assert "hush" not in str(raised.value)


def test_manifest_holds_paths_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    entry = ENTRY | {"data_path": "${SCRATCH}/../plate", "tracks_path": "./a/x/../tracks", "annotations": "a/x.csv"}
    config = parse(tmp_path, entry)
    assert config.experiments[0].data_path == "/scratch/plate"
    assert config.experiments[0].tracks_path == str(tmp_path / "a/tracks")
    assert config.experiments[0].annotations == str(tmp_path / "a/x.csv")
    record = config.as_record()["experiments"][0]
    paths = (record["data_path"], record["tracks_path"], record["annotations"])
    assert paths == ("${SCRATCH}/../plate", "a/tracks", "a/x.csv")
    assert not {"me", str(tmp_path)} & set(json.dumps(record).split("/"))
    token = config.token
    monkeypatch.setenv("SCRATCH", "/elsewhere")
    assert parse(tmp_path, entry).token == token


def test_token_follows_the_bytes_and_not_the_place(tmp_path: Path) -> None:
    config = parse(tmp_path / "here", ENTRY)
    assert re.fullmatch(r"[0-9a-f]{64}", config.token)
    assert parse(tmp_path / "there", ENTRY).token == config.token
    assert parse(tmp_path, ENTRY, workers=7).token == config.token
    conditions = {"virus": ["A/2", "B/2"], "mock": ["A/1"]}
    tokens = {
        config.token,
        parse(tmp_path, ENTRY, seed=1).token,
        parse(tmp_path, ENTRY | {"start_hpi": 1.0}).token,
        parse(tmp_path, ENTRY | {"data_path": "b/plate.zarr"}).token,
        parse(tmp_path, ENTRY | {"condition_wells": conditions}).token,
        parse(tmp_path, ENTRY, exclude_fovs=["A/1/0"]).token,
        parse(tmp_path, ENTRY | {"labels": {"marker": "x"}}).token,
        parse(tmp_path, ENTRY | {"well_labels": {"marker": {"x": ["A/1"]}}}).token,
        parse(tmp_path, ENTRY | {"label_columns": ["marker"]}).token,
        parse(tmp_path, ENTRY | {"annotations": "a.csv"}).token,
        parse(tmp_path, ENTRY, shard_by=["well"]).token,
        parse(tmp_path, ENTRY, on_blank="keep").token,
        parse(tmp_path, ENTRY, on_nan="zero").token,
    }
    tokens |= {
        parse(tmp_path, ENTRY | {"exclude_fovs": ["A/1/0"]}).token,
        parse(tmp_path, ENTRY | {"include_wells": ["A/1"]}).token,
    }
    assert len(tokens) == 15


BAD_EXPERIMENTS = [
    (
        {"interval_minutes": -5},
        r"experiments\[1\]\.interval_minutes=-5 must be > 0, or 0 for a plate of one frame\. Give the minutes between",
    ),
    ({"interval_minutes": "fast"}, r"experiments\[1\]\.interval_minutes='fast' must be a number\. Give the minutes"),
    ({"interval_minutes": True}, r"interval_minutes=True must be a number"),
    ({"start_hpi": float("nan")}, r"start_hpi=nan must be a number"),
    ({"moi": -1}, r"moi=-1 must be a number ≥ 0"),
    ({"name": "a"}, r"experiments\[1\]\.name='a' must be unique, but experiments\[0\] has it too\. Rename one\."),
    ({"name": " "}, r"experiments\[1\]\.name=' ' must be a non-empty string"),
    ({"name": 5}, r"experiments\[1\]\.name=5 must be a non-empty string\. Put it in quotes"),
    ({"name": None}, r"experiments\[1\]\.name is missing\. Every experiment needs name, data_path"),
    ({"source_channel": ["RFP"]}, r"source_channel='RFP' must be one of channel_names \['Phase', 'GFP'\]"),
    (
        {"include_wells": ["C/9"]},
        r"experiments\[1\]\.include_wells='C/9' must be one of the wells \['A/1', 'A/2', 'B/2'",
    ),
    ({"include_wells": []}, r"experiments\[1\]\.include_wells=\[\] must be a list of at least one string"),
    ({"exclude_fovs": ["A/1"]}, r"experiments\[1\]\.exclude_fovs\[0\]='A/1' must be of the form A/1/0"),
    ({"channel_names": ["GFP", "GFP"]}, r"channel_names\[1\]='GFP' must be listed once"),
    ({"condition_wells": {}}, r"condition_wells=\{\} must be a mapping of condition to wells"),
    ({"condition_wells": {"mock": []}}, r"condition_wells\.mock=\[\] must be a list of at least one string"),
    ({"condition_wells": {"": ["A/1"]}}, r"condition_wells key='' must be a non-empty string"),
    ({"condition_wells": {"mock": ["A1"]}}, r"condition_wells\.mock\[0\]='A1' must be of the form A/1"),
    (
        {"condition_wells": {"m": ["A/1"], "v": ["A/1"]}},
        r"condition_wells\.v='A/1' must be in one condition only, but 'm'",
    ),
    (
        {"intervall_minutes": 5},
        r"experiments\[1\]: unknown key 'intervall_minutes'\. Did you mean 'interval_minutes'\? Allowed are annot",
    ),
    ({"written": {}}, r"unknown key 'written'\. Remove it\. Allowed are "),
    (
        {"data_path": "${NOT_SET_ANYWHERE}/x"},
        r"data_path=.*\$\{NOT_SET_ANYWHERE\} is not set\. Set the environment variable",
    ),
    ({"organelle": ["ER"]}, r"organelle=\['ER'\] must be a text"),
    ({"labels": ["x"]}, r"labels=\['x'\] must be a mapping of label to value\. Write \{marker: TOMM20\}"),
    ({"labels": {"marker": ["x"]}}, r"labels\.marker=\['x'\] must be a text\. Put it in quotes"),
    ({"labels": {"well": "x"}}, r"experiments\[1\]\.labels='well' must be none of the index's own columns \['observ"),
    (
        {"labels": {"name": "x"}},
        r"labels='name' must be none of the index's own columns .*'name', 'lineage', 'labels', 'features'",
    ),
    ({"label_columns": ["lineage_id"]}, r"label_columns='lineage_id' must be none of the index's own columns"),
    ({"well_labels": {"condition": {"x": ["A/1"]}}}, r"well_labels='condition' must be none of the index's own"),
    (
        {"labels": {"marker": "x"}, "well_labels": {"marker": {"x": ["A/1"]}}},
        r"experiments\[1\]\.well_labels='marker' must be given once, but labels has it too\. Remove one of the two",
    ),
    (
        {"labels": {"marker": "x"}, "label_columns": ["marker"]},
        r"label_columns='marker' must be given once, but labels has it too",
    ),
    (
        {"organelle": "ER", "labels": {"organelle": "ER"}},
        r"experiments\[1\]\.organelle='ER' must be given once, but it is a label elsewhere too\. Remove one",
    ),
    ({"well_labels": {"marker": ["A/1"]}}, r"well_labels\.marker=\['A/1'\] must be a mapping of value to wells"),
    ({"well_labels": {"marker": {"x": ["A1"]}}}, r"well_labels\.marker\.x\[0\]='A1' must be of the form A/1"),
    (
        {"well_labels": {"marker": {"x": ["A/1"], "y": ["A/1"]}}},
        r"well_labels\.marker\.y='A/1' must be in one value only, but 'x' has it too",
    ),
    ({"label_columns": "marker"}, r"label_columns='marker' must be a list of strings"),
    ({"annotations": 3}, r"annotations=3 must be a non-empty string"),
    ({"channel_markers": {"RFP": "x"}}, r"channel_markers key='RFP' must be one of source_channel \['GFP'\]"),
    ({"interval_minutes": 600}, r"tau_range_hours=\[0\.5, 2\.0\] must be at least one frame of b \(600\.0 min\)"),
]


@pytest.mark.parametrize(("change", "match"), BAD_EXPERIMENTS)
def test_wrong_experiment_is_an_error_that_names_the_value(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=r"experiments\.yaml: .*" + match):
        parse(tmp_path, ENTRY, ENTRY | {"name": "b"} | change)


BAD_OPTIONS = [
    ("z_range", [3, 3], r"z_range=\[3, 3\] must be \[first, one past the last\]"),
    ("z_range", [-1, 3], r"z_range\[0\]=-1 must be a whole number ≥ 0"),
    ("z_range", [3], r"z_range=\[3\] must be a list of two numbers"),
    ("z_range", 3, r"z_range=3 must be a list of two numbers\. Write \[0, 5\]"),
    ("yx_patch_size", [0, 96], r"yx_patch_size\[0\]=0 must be a whole number ≥ 1"),
    ("tau_range_hours", [2.0, 0.5], r"tau_range_hours=\[2\.0, 0\.5\] must be \[shortest, longest\] in hours"),
    ("tau_range_hours", [-1, 0.5], r"tau_range_hours\[0\]=-1 must be a number ≥ 0"),
    ("clip_anchors", 0, r"clip_anchors=0 must be a whole number ≥ 1"),
    ("block_bytes", 2**30, r"block_bytes=1073741824 must be at most shard_bytes=536870912"),
    (
        "block_bytes",
        "512Q",
        r"block_bytes='512Q' must be a size in bytes ≥ 1\. Give one such as 4000000, 512M, 1\.5GiB",
    ),
    ("block_bytes", "10%", r"block_bytes='10%' must be a size in bytes"),
    ("shard_bytes", 0, r"shard_bytes=0 must be a size in bytes ≥ 1"),
    ("shard_bytes", True, r"shard_bytes=True must be a size in bytes ≥ 1"),
    ("dtype", "int8", r"dtype='int8' must be one of \['source', 'float16', 'float32'\]"),
    ("on_blank", "zero", r"on_blank='zero' must be one of \['drop', 'keep'\]"),
    ("on_nan", True, r"on_nan=True must be one of \['error', 'drop', 'zero'\]"),
    ("shard_by", [], r"shard_by=\[\] must be a list of at least one string"),
    (
        "shard_by",
        ["well", "markr"],
        r"shard_by\[1\]='markr' must be one of the labels \['experiment', 'condition', 'well'",
    ),
    ("include_wells", ["C/9"], r"include_wells='C/9' must be one of the wells \['A/1', 'A/2', 'B/2'\]"),
    ("exclude_fovs", ["A/1"], r"exclude_fovs\[0\]='A/1' must be of the form A/1/0"),
    ("max_border_shift_px", -1, r"max_border_shift_px=-1 must be a number ≥ 0"),
    ("workers", 0, r"workers=0 must be a whole number ≥ 1"),
    ("memory_limit", "lots", r"memory_limit='lots' must be a size in bytes ≥ 1"),
    ("seed", "x", r"seed='x' must be a whole number ≥ 0"),
    ("patch_size", 96, r"unknown key 'patch_size'\. Did you mean 'yx_patch_size'\? Allowed are "),
]


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("512K", 524_288),
        ("8M", 8_388_608),
        ("1G", 2**30),
        ("1.5MiB", 1_572_864),
        ("2kb", 2048),
        ("700", 700),
        (700, 700),
    ],
)
def test_sizes_are_read_as_people_write_them(tmp_path: Path, given: Any, size: int) -> None:
    path = write_experiments(tmp_path / "experiments.yaml", [ENTRY], block_bytes=given, shard_bytes="2G")
    config = parse_build_config(path)
    assert (config.block_bytes, config.shard_bytes) == (size, 2**31)
    arguments = make_parser().parse_args([str(path), "--block_bytes", str(given), "--shard-bytes", "3G"])
    overrides = {"block_bytes": arguments.block_bytes, "shard_bytes": arguments.shard_bytes}
    config = parse_build_config(path, overrides)
    assert (config.block_bytes, config.shard_bytes) == (size, 3 * 2**30)


@pytest.mark.parametrize(("name", "value", "match"), BAD_OPTIONS)
def test_wrong_option_is_an_error_from_the_yaml_and_from_outside(
    tmp_path: Path, name: str, value: Any, match: str
) -> None:
    path = write_experiments(tmp_path / "experiments.yaml", [ENTRY], **{name: value})
    with pytest.raises(ConfigError, match=match):
        parse_build_config(path)
    path = write_experiments(tmp_path / "experiments.yaml", [ENTRY])
    with pytest.raises(ConfigError, match=match):
        parse_build_config(path, {name: value})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"top level=None must be a mapping"),
        ("experiments: []", r"experiments=\[\] must be a list of at least one experiment"),
        ("experiments: 3", r"experiments=3 must be a list"),
        ("experiments: [3]", r"experiments\[0\]=3 must be a mapping"),
        (
            "experiment: []",
            r"unknown key 'experiment'\. Did you mean 'experiments'\? Allowed are experiments, shards, storage_",
        ),
        ("a: [", r"expected the node content.*in line 1, column 5\). Correct it\."),
        ("experiments: *gone", r"can't be read as YAML \(found undefined alias 'gone'"),
        ("experiments: &a [*a]", r"a value contains itself \(line 1\)\. Remove the alias"),
        ("experiments: " + "[" * 1000, r"is nested too deeply\. Write it flat"),
        ("experiments: [{interval_minutes: 2024-13-01}]", r"can't be read as YAML \(month must be in 1\.\.12"),
        ("a: 1\nb: {c: 1, c: 2}", r"key 'c' is written twice \(line 2\)\. Remove one"),
        ("a: !!python/object/apply:os.getcwd []", r"can't be read as YAML \(could not determine a constructor"),
    ],
)
def test_wrong_document_is_an_error(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        parse_build_config(path)


def test_aliases_that_expand_to_too_much_are_refused_at_once(tmp_path: Path) -> None:
    # each line lists the one before nine times: 9^12 values
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path = tmp_path / "experiments.yaml"
    path.write_text("\n".join([*lines, "experiments: [*a11]"]))
    with pytest.raises(
        ConfigError, match=r"experiments\.yaml: \d+ values are written, but the aliases .* expand them to"
    ):
        parse_build_config(path)
    merges = ["a0: &a0 {k: v}"] + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    path.write_text("\n".join([*merges, "experiments: [*a11]"]))
    with pytest.raises(ConfigError, match=r"allowed are 100000 more than are written\. Write the values out"):
        parse_build_config(path)


def test_aliases_and_merges_are_allowed(tmp_path: Path) -> None:
    text = """
    experiments:
      - &first
        name: a
        data_path: a/plate
        tracks_path: a/tracks
        channel_names: &channels [Phase]
        source_channel: *channels
        condition_wells: {mock: [A/1]}
        labels: {passage: 007}
      - {<<: *first, name: b, data_path: b/plate}
    """
    (tmp_path / "experiments.yaml").write_text(text)
    one, other = parse_build_config(tmp_path / "experiments.yaml").experiments
    assert (other.name, other.source_channel) == ("b", ("Phase",))
    assert one.labels == other.labels == {"passage": "007"}


def test_yaml_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_bytes(b"experiments: [\xff]")
    with pytest.raises(
        ConfigError, match=r"experiments\.yaml: is not UTF-8 text \(.*0xff in position 14.*Save it as UTF-8"
    ):
        parse_build_config(path)


def test_a_failing_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_experiments(tmp_path / "experiments.yaml", [ENTRY])

    def fail(*_: object, **__: object) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(StorageError, match=r"experiments\.yaml: could not be read \(\[Errno 5\].* Look at the disk"):
        parse_build_config(path)


def test_missing_yaml_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file\. Give the path"):
        parse_build_config(tmp_path / "gone.yaml")


def drop_plate(entry: dict[str, Any]) -> None:
    entry["data_path"] = "elsewhere.zarr"


def swap_channels(entry: dict[str, Any]) -> None:
    entry["channel_names"].reverse()


def add_well(entry: dict[str, Any]) -> None:
    entry["condition_wells"]["control"].append("Q/9")


def label_a_well(entry: dict[str, Any]) -> None:
    entry["well_labels"] = {"marker": {"TOMM20": ["A/1"], "SEC61B": ["Q/9"]}}


def no_change(_: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        (drop_plate, {}, r"experiments\[1\]\.data_path='.*elsewhere\.zarr' has no plate\. Give the folder"),
        (
            swap_channels,
            {},
            r"experiments\[1\]\.channel_names=\['Phase', 'GFP'\], but the plate has \['GFP', 'Phase'\]",
        ),
        (
            add_well,
            {},
            r"experiments\[1\]\.condition_wells\.control='Q/9' is not a well of .*which has \['A/1', 'B/2'\]",
        ),
        (
            label_a_well,
            {},
            r"experiments\[1\]\.well_labels\.marker\.SEC61B='Q/9' is not a well of .*which has \['A/1', 'B/2'\]",
        ),
        (no_change, {"z_range": [0, 3]}, r"z_range=\[0, 3\] is outside the stack of .*A/1/0, which has 2 slices"),
        (
            no_change,
            {"yx_patch_size": [24, 25]},
            r"yx_patch_size=\[24, 25\] is larger than the image of .*is \[24, 24\]",
        ),
        (
            no_change,
            {"exclude_fovs": ["A/1/5"]},
            r"shards.exclude_fovs='A/1/5' is in no listed well; FOVs there are \['A/1/0'",
        ),
        (
            lambda entry: entry.update(exclude_fovs=["A/1/5"]),
            {},
            r"experiments\[1\].exclude_fovs='A/1/5' is in no listed well; FOVs there are \['A/1/0'",
        ),
    ],
)
def test_config_that_does_not_fit_the_plates_is_an_error(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], options: dict[str, Any], match: str
) -> None:
    path = make_collection(tmp_path, shape=(2, 2, 2, 24, 24))
    document = yaml.safe_load(path.read_text())
    entry = copy.deepcopy(document["experiments"][1])
    change(entry)
    document["experiments"][1] = entry
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    config = parse_build_config(path, options)
    with pytest.raises(ConfigError, match=match):
        check_plates(config, open_plates(config))


def test_a_broken_plate_is_named_by_its_yaml_path(tmp_path: Path) -> None:
    path = make_collection(tmp_path, shape=(2, 2, 1, 24, 24))
    (tmp_path / "experiment0/plate.zarr/.zattrs").write_text("{}")
    with pytest.raises(ValueError, match=r"has no OME-Zarr `plate` metadata") as caught:
        open_plates(parse_build_config(path))
    assert "experiments[0].data_path" in caught.value.__notes__[0]


def test_a_damaged_plate_is_named(tmp_path: Path) -> None:
    path = make_collection(tmp_path, experiments=1, shape=(2, 2, 1, 24, 24))
    (tmp_path / "experiment0/plate.zarr/.zattrs").write_text("{")
    with pytest.raises(PlateError, match=r"experiment0/plate\.zarr: its metadata is damaged \(Expecting property name"):
        open_plates(parse_build_config(path))
    (tmp_path / "experiment0/plate.zarr/.zattrs").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(PlateError, match=r"experiment0/plate\.zarr: its metadata is damaged \(.* 0xff"):
        open_plates(parse_build_config(path))


def write_pair(tmp_path: Path, **second: Any) -> BuildConfig:
    """Two FOVs of one plate; the second is written with other options."""
    path = tmp_path / "a/plate.zarr"
    write_plate(path, fovs=("A/1/0", "A/2/0"), shape=(1, 2, 1, 16, 16))
    other = {"shape": (1, 2, 1, 16, 16), **second}
    write_plate(tmp_path / "b", fovs=("A/2/0",), **other)
    for file in ("zarr.json", "0/zarr.json"):
        (path / "A/2/0" / file).write_text((tmp_path / "b/A/2/0" / file).read_text())
    return parse(tmp_path, ENTRY | {"condition_wells": {"c": ["A/1", "A/2"]}}, yx_patch_size=8)


def test_fovs_of_one_experiment_share_a_dtype(tmp_path: Path) -> None:
    config = write_pair(tmp_path, dtype="uint8")
    with pytest.raises(ConfigError, match=r"experiments\[0\]\.data_path: FOVs differ in dtype: \{'uint16': .*'uint8'"):
        check_plates(config, open_plates(config))


def test_experiments_may_differ_in_channels_depth_and_dtype(tmp_path: Path) -> None:
    entries = []
    for name, shape, dtype in (("a", (1, 1, 1, 16, 16), "uint8"), ("b", (1, 2, 3, 16, 16), "float32")):
        channels = ["Phase", "GFP"][: shape[1]]
        write_plate(tmp_path / name, shape=shape, dtype=dtype, channel_names=channels)
        change = {"name": name, "data_path": name, "channel_names": channels, "source_channel": channels}
        entries.append(ENTRY | change | {"condition_wells": {"mock": ["A/1"]}})
    config = parse(tmp_path, *entries, yx_patch_size=8)
    check_plates(config, open_plates(config))


def test_whole_stacks_share_a_depth(tmp_path: Path) -> None:
    config = write_pair(tmp_path, shape=(1, 2, 3, 16, 16))
    with pytest.raises(
        ConfigError, match=r"z_range=None takes whole stacks, but their depths differ in .*experiments\[0\]: \{1: .*3: "
    ):
        check_plates(config, open_plates(config))
    check_plates(dataclasses.replace(config, z_range=(0, 1)), open_plates(config))


def test_unnamed_channels_are_counted(tmp_path: Path) -> None:
    config = write_pair(tmp_path, channel_names=None)
    check_plates(config, open_plates(config))
    config = write_pair(tmp_path / "three", channel_names=None, shape=(1, 3, 1, 16, 16))
    with pytest.raises(ConfigError, match=r"but the plate has 3 channels .*A/2/0"):
        check_plates(config, open_plates(config))
    config = write_pair(tmp_path / "belied", shape=(1, 3, 1, 16, 16))
    with pytest.raises(ConfigError, match=r"A/2/0: 3 channels, but labels for 2\. Correct the plate's omero"):
        check_plates(config, open_plates(config))


def test_wells_and_fovs_are_chosen_by_name(tmp_path: Path) -> None:
    config = parse(tmp_path, ENTRY, include_wells=["A/1", "B/2"], exclude_fovs=["B/2/1"])
    names = ["B/2/1", "B/2/0", "A/2/0", "A/1/10", "A/1/2", "C/3/0"]
    assert plan_fovs(config, config.experiments[0], names) == ("A/1/10", "A/1/2", "B/2/0")


def test_an_experiment_narrows_the_choice_for_itself_only(tmp_path: Path) -> None:
    other = ENTRY | {"name": "other", "include_wells": ["A/1", "B/2"], "exclude_fovs": ["A/1/2"]}
    path = write_experiments(tmp_path / "two.yaml", [ENTRY, other], include_wells=["A/1", "A/2"])
    config = parse_build_config(path)
    names = ["B/2/0", "A/2/0", "A/1/10", "A/1/2", "C/3/0"]
    assert plan_fovs(config, config.experiments[0], names) == ("A/1/10", "A/1/2", "A/2/0")
    assert plan_fovs(config, config.experiments[1], names) == ("A/1/10",)
    assert config.as_record()["experiments"][1]["exclude_fovs"] == ["A/1/2"]
