"""`python -m dynaclr_wds shuffle` plans an epoch without reading a pixel, and says how well it is mixed."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
import yaml

from dynaclr_wds import __main__ as command
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.plan.streaming.window import parse_window
from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config
from tests.plates import make_collection


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        folder = tmp_path_factory.mktemp("shuffle")
        fovs = ("A/1/0", "A/1/1", "B/2/0", "B/2/1")
        path = make_collection(
            folder / "plates", fovs=fovs, lineages=10, shard_bytes=99_000, block_bytes=4_000, clip_anchors=4
        )
        build_shards(parse_build_config(path, {}), folder / "shards")
    return str(folder / "shards")


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    try:
        status = command.main(["shuffle", *argv])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    out = capsys.readouterr()
    return status, out.out, out.err


def test_tables_show_exact_beside_ideal(shards, capsys):
    status, out, _ = run(capsys, shards, "--batch_size", "8", "--leaky", "0.25")
    assert status == 0
    lines = out.splitlines()
    assert "anchors (samples with a positive) of 2 experiments; " in lines[0]
    assert "  pairs of samples of one lineage¹" in out
    assert "¹ In a batch, as a multiple of the pairs that chance would give: 2.00 is twice as many." in out
    assert next(line for line in lines if "exact" in line).split()[:2] == ["exact", "ideal"]
    (leak,) = [line.split() for line in lines if "(leaky)" in line]
    assert leak[5:8] == ["0.250", "0.250", "(0.250)"]
    assert "  good  exact      Every batch holds the shares that were asked for, to within one sample." in lines
    assert not re.search("stratum|strata|quota|focal|candidate|ledger", out)


def test_json_is_complete_and_strict(shards, capsys):
    options = ["--batch_size", "4", "--window_bytes", "80%", "--num_streams", "1", "--epochs", "2", "--json"]
    status, out, _ = run(capsys, shards, *options)
    assert status == 0
    found = json.loads(out, parse_constant=pytest.fail)
    assert list(found["modes"]) == ["streaming", "exact", "ideal"]
    assert found["window_bytes"] == int(0.8 * found["bytes_stored"])
    for mode in found["modes"].values():
        assert set(mode["quality"]["collisions"]) == {"value", "fov", "lineage", "block"}
        assert mode["report"]["batches"] == mode["quality"]["batches"]
    traffic = found["modes"]["streaming"]["report"]["streaming"]
    assert 0 < traffic["planned_peak_bytes"] <= found["window_bytes"]
    assert found["modes"]["exact"]["report"]["streaming"] == {}


def test_pixels_make_no_difference(shards, capsys, tmp_path):
    shutil.copytree(shards, tmp_path / "blank")
    for path in (tmp_path / "blank").rglob("*.tar"):
        size = path.stat().st_size
        os.truncate(path, 0)
        os.truncate(path, size)
    found = [json.loads(run(capsys, str(p), "--batch_size", "8", "--json")[1]) for p in (shards, tmp_path / "blank")]
    assert found[0]["modes"]["exact"]["quality"] == found[1]["modes"]["exact"]["quality"]


def test_a_config_gives_the_options_and_the_command_line_wins(shards, capsys, tmp_path):
    config = tmp_path / "fit.yaml"
    config.write_text(
        f"model: {{}}\ndata: {{shards: {shards}, batch_size: 8, leaky: 0, val_experiments: [experiment1],"
        " condition_ratio: {A/1: 3, B/2: 1}, num_workers: 2, window_bytes: 100000000,"
        " num_streams: 1, batch_group_by: [condition], stratify_by: [well]}\n"
    )
    status, out, err = run(capsys, "-c", str(config), "--batch_size", "4", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["strata"] == 2
    assert found["sampling"]["batch_size"] == 4
    assert found["sampling"]["condition_ratio"] == {"A/1": 3.0, "B/2": 1.0}
    assert (found["window_bytes"], found["num_streams"]) == (100_000_000, 1)
    assert list(found["modes"]) == ["streaming", "exact", "ideal"]
    report = found["modes"]["exact"]["report"]
    assert (report["group_label"], report["value_label"]) == ("condition", "well")


def test_every_key_that_says_what_a_sample_is_may_stand_in_a_config(shards, capsys, tmp_path):
    keys = {
        "positive": "temporal",
        "positive_match_columns": [],
        "positive_channel": "same",
        "tau_direction": "both",
        "positive_relatives": "descendants",
        "channels_per_sample": 1,
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump({"data": {"shards": str(shards), "batch_size": 4, **keys}}))
    status, out, err = run(capsys, "-c", str(tmp_path / "fit.yaml"), "--json")
    assert status == 0, err
    options = ["--tau_direction", "both", "--positive_relatives", "descendants", "--channels_per_sample", "1"]
    given = run(capsys, shards, "--batch_size", "4", "--json", *options)[1]
    assert json.loads(out)["anchors"] == json.loads(given)["anchors"]


def test_an_option_takes_back_what_the_config_says(shards, capsys, tmp_path):
    config = {"shards": str(shards), "batch_size": 4, "val_experiments": ["experiment1"]}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump({"data": config}))
    given = ["-c", str(tmp_path / "fit.yaml"), "--split", "fovs", "--split_ratio", "0.6", "--json"]
    status, _, err = run(capsys, *given)
    assert (status, "Give --val_experiments null, or --split experiments." in err) == (2, True)
    status, out, err = run(capsys, *given, "--val_experiments", "null")
    assert status == 0, err
    assert json.loads(out)["strata"] == 4


def test_cells_can_be_chosen(shards, capsys):
    whole = json.loads(run(capsys, shards, "--json", "--batch_size", "4")[1])
    options = ["--experiments", "experiment0", "--include_wells", "A/1", "--exclude_fovs", "A/1/1"]
    part = json.loads(run(capsys, shards, "--json", "--batch_size", "4", *options)[1])
    assert (whole["strata"], part["strata"]) == (4, 1)
    assert 0 < part["anchors"] < whole["anchors"] / 4


def test_what_training_holds_out_is_left_out(shards, capsys, tmp_path):
    """The DataModule with the same options trains on as many anchors."""
    splits = (
        {"split": "fovs", "split_ratio": 0.6, "split_seed": 1},
        {"split": "fovs", "val_fovs": ["experiment0/A/1/0", "B/2/0"]},
        {"split": "condition", "val_values": ["infected"], "exclude_fovs": {"experiment1": ["A/1/1"]}},
    )
    counts = []
    for split in splits:
        config = tmp_path / "fit.yaml"
        config.write_text(yaml.safe_dump({"data": {"shards": str(shards), "tau_range": [0.5, 1.0], **split}}))
        status, out, err = run(capsys, "-c", str(config), "--batch_size", "4", "--json")
        assert status == 0, err
        data = MultiExperimentDataModule(str(shards), tau_range=(0.5, 1.0), batch_size=4, **split)
        data.setup("fit")
        counts.append((json.loads(out)["anchors"], len(data.train_sampler.index.row)))
    assert all(shown == trained for shown, trained in counts)
    assert len(set(counts)) == 3
    options = ["--split", "fovs", "--split_ratio", "0.6", "--split_seed", "1", "--batch_size", "4", "--json"]
    assert json.loads(run(capsys, shards, *options)[1])["anchors"] == counts[0][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--leaky", "2"], r"leaky=2.0 must be in \[0, 1\)"),
        (["--leaky", "x"], "argument --leaky: invalid float value: 'x'. `dynaclr-wds shuffle --help` lists"),
        (["--experiments", "nobody"], r"names \['nobody'\].*They hold \['experiment0', 'experiment1'\]"),
        (["--include_wells", "Z/9"], r"include_wells names \['Z/9'\]"),
        (["--tau_range", "0.5", "9"], "its shards hold positives at 1…2 frames"),
        (["--condition_ratio", "mock"], "'mock' must be NAME=NUMBER"),
        (["--condition_ratio", "mock=1"], r"condition_ratio names \['mock'\].*Known: \['control', 'infected'\]"),
        (["--condition_balanced", "maybe"], "'maybe' is neither true nor false"),
        (
            ["--window_bytes", "lots"],
            r"window_bytes='lots' is no size. Give bytes \(4000000.*leave it out for exact mode",
        ),
        (
            ["--window_bytes", "0"],
            "window_bytes=0 must be > 0. Give the bytes of memory to use, or None for exact mode",
        ),
        (["--window_bytes", "0%"], "window_bytes=0 must be > 0"),
        (["--window_bytes=-5M"], "window_bytes=-5,242,880 must be > 0"),
        (["--window_bytes", "50%", "--num_streams", "0"], r"num_streams=0 must be a multiple.*Give num_streams=1"),
        (["--window_bytes", "1K"], r"--window_bytes 1K \(1.0 KiB\) is too small. Each of 8 streams must hold"),
        (["--window_bytes", "inf"], "window_bytes='inf' is no size"),
        (["--tau_range", "0.5", "inf"], "τ range of 0.5 to inf hours must be two finite numbers"),
        (["--tau_range", "nan", "1"], "τ range of nan to 1.0 hours must be two finite numbers"),
        (["--experiment_weights", "experiment0=1", "experiment1=nan"], "experiment_weights=.* must be finite and >= 0"),
        (["--epochs", "0"], "epochs=0 must be >= 1"),
        (["-c", "gone.yaml"], "gone.yaml"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(shards, capsys, options, message):
    status, out, err = run(capsys, shards, *options)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(err)


def test_without_shards_it_says_what_to_give(capsys):
    assert "name the folder, or give a config" in run(capsys)[2]
    assert "there is no manifest.json. Build the shards with" in run(capsys, "nowhere")[2]


def test_a_config_without_data_is_named(capsys, tmp_path):
    (tmp_path / "empty.yaml").write_text("trainer: {}")
    assert "empty.yaml: has no `data:` section" in run(capsys, "-c", str(tmp_path / "empty.yaml"))[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data: {shards: [", r"c.yaml: can't be read as YAML \(while parsing"),
        (b"\xff", r"c.yaml: can't be read as YAML \('utf-8' codec"),
        (b"data: {shards: [a]}", r"c.yaml: data.shards=\['a'\] is not what the option --shards takes"),
        (b"data: {batch_size: x}", r"data.batch_size='x' is not what the option --batch_size takes"),
        (b"data: {leaky: q}", r"data.leaky='q' is not what the option --leaky takes"),
        (b"data: {experiment_weights: [1]}", r"data.experiment_weights=\[1\] is not what the option"),
        (b"data: {split_ratio: [1]}", r"data.split_ratio=\[1\] is not what the option --split_ratio takes"),
        (b"data: {exclude_fovs: {a: A/1/0}}", r"data.exclude_fovs={'a': 'A/1/0'} is not what the option"),
        (b"data: {val_experiments: 3}", r"data.val_experiments=3 is not what the option"),
        (b"data: {tau_range: 5}", r"data.tau_range=5 is not what the option"),
        (b"data: {experiment_aware: 2}", r"data.experiment_aware=2 is not what the option"),
    ],
)
def test_a_mistake_in_a_config_is_named_with_its_file(capsys, tmp_path, content, message):
    (tmp_path / "c.yaml").write_bytes(content)
    status, _, err = run(capsys, "-c", str(tmp_path / "c.yaml"))
    assert (status, len(err.splitlines())) == (2, 1)
    with pytest.raises(ValueError, match=message):
        raise ValueError(err)


def test_the_batch_size_that_would_do_is_said_and_is_accepted(shards, capsys):
    options = [shards, "--batch_size", "128"]
    told = " ".join(run(capsys, *options)[1].split())
    size = re.search(
        r"bad exact .* although they are positives. Give batch_size: (\d+) to avoid this; it is the largest", told
    )
    assert size is not None
    _, out, _ = run(capsys, shards, "--batch_size", size[1])
    assert "good  exact      No two samples of a batch share a lineage." in out
    notes = json.loads(run(capsys, *options, "--json")[1])["modes"]["exact"]["notes"]
    assert [note["level"] for note in notes] == ["good", "bad", "bad", "good"]
    assert all(note["text"] in told for note in notes)


def test_every_way_out_of_a_small_window_is_an_option_of_this_command_and_works(shards, capsys):
    given = [shards, "--batch_size", "12", "--window_bytes", "20%"]
    status, _, err = run(capsys, *given)
    assert status == 2
    told = re.search("Give one of these instead: (.*)[.] Or build", err)[1]
    ways = re.sub(r" \([^)]*\)", "", told).split("; ")
    named = [set(re.findall("--([a-z_]+)", way)) for way in ways]
    assert {"window_bytes"} in named
    assert any("relax_lineages" in way for way in named)
    for way in ways:
        status, _, err = run(capsys, *given, *way.split())
        assert (status, err) == (0, ""), way


def test_a_window_larger_than_the_set_is_called_needless(shards, capsys):
    told = run(capsys, shards, "--batch_size", "4", "--window_bytes", "200%", "--num_streams", "1")[1]
    assert "window_bytes: null (exact mode) mixes at least as well" in " ".join(told.split())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("4000000", 4_000_000), ("512M", 2**29), ("1.5GiB", 3 * 2**29), ("2kb", 2048), ("10%", 70)),
        *((None, None), ("null", None), ("none", None), (1e6, 1_000_000), (5, 5)),
    ],
)
def test_windows_are_read_as_people_write_them(text, size):
    assert parse_window(text, 700) == size


def test_help_teaches(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert "dynaclr-wds shuffle -c configs/fit.yaml" in out
    assert "  shuffle " in command.describe_commands()
