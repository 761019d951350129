"""`init` writes configs that run for given experiments, or an experiments.yaml for plates. It replaces nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaclr_wds import __main__ as program
from dynaclr_wds.errors import BuildError, ConfigError
from dynaclr_wds.hashed_sides import hold_out
from dynaclr_wds.plan.audit.verdict import plan_verdict
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.shardset import ShardSet
from etl.configure.choices import choose_values
from etl.configure.facts import AnchorCells, ExperimentFacts, find_facts
from etl.configure.templates import Value, fill_template, find_templates, quote
from etl.indexing import build_index
from etl.simulate.__main__ import SimulationConfig, simulate_collection
from etl.source.experiments import parse_build_config
from etl.source.preflight import open_plates
from etl.source.scales import fill_in_from_plates
from tests.plates import write_plate
from tests.synthetic import Synthetic, make_index
from tests.test_images import write_image

ROOT = Path(__file__).parent.parent
SMALL = SimulationConfig(experiments=2, fovs=2, frames=8, size=64, cells=5, cell_radius=7.0)
SHORT = shlex.split(
    "--trainer.max_epochs 2 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.accelerator cpu "
    "--trainer.enable_progress_bar false --trainer.enable_model_summary false --trainer.num_sanity_val_steps 0 "
    "--trainer.log_every_n_steps 1 --model.encoder.init_args.backbone resnet10"
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dynaclr-wds"])
    monkeypatch.chdir(tmp_path)


TEMPLATE = {
    "data": {"batch_size": 999, "temporal_enrichment": True, "temporal_window_hours": 2.0, "num_workers": 4},
}


def facts(
    name: str = "a", fovs: Mapping[str, Mapping[str, int]] | None = None, frames: int = 40, **changes: object
) -> ExperimentFacts:
    """`fovs` says how many lineages there are; each is there from the first frame to the last, one cell a frame."""
    given = {
        "channels": ("Phase3D", "GFP"),
        "shape": (2, 5, 192, 192),
        "interval_minutes": 30.0,
        "start_hpi": 3.0,
        "stored_bytes": 4_000_000_000,
    }
    fovs = {"A/1/0": {"mock": 60, "infected": 40}} if fovs is None else fovs
    named = tuple(dict.fromkeys(condition for own in fovs.values() for condition in own))
    of = [(f, named.index(c)) for f, own in enumerate(fovs.values()) for c, count in own.items() for _ in range(count)]
    fov, condition = np.repeat(np.array(of, np.int64).reshape(-1, 2), frames, axis=0).T
    cells = AnchorCells(
        fovs=tuple(fovs),
        conditions=named,
        fov=fov,
        condition=condition,
        lineage=np.repeat(np.arange(len(of)), frames),
        t=np.tile(np.arange(frames), len(of)),
    )
    return ExperimentFacts(name=name, cells=cells, **{**given, **changes})


def values_for(*experiments: ExperimentFacts, memory: int = 64_000_000_000, **data: object) -> dict[str, Value]:
    template = {"data": {**TEMPLATE["data"], **data}}
    return choose_values(experiments, "shards", (0.5, 2.0), memory, template)


def choose(*experiments: ExperimentFacts, memory: int = 64_000_000_000, **data: object) -> dict[str, str]:
    return {key: value.text for key, value in values_for(*experiments, memory=memory, **data).items()}


def test_values_follow_from_the_experiments():
    assert choose(facts("a"), facts("b", fovs={"A/1/0": {"mock": 3}})) == {
        "model.encoder.init_args.in_channels": "2",
        "model.encoder.init_args.in_stack_depth": "5",
        "data.shards": "shards",
        "data.split": "experiments",
        "data.val_experiments": "[b]",
        "data.split_ratio": "null",
        "data.split_seed": "0",
        "data.final_yx_patch_size": "[104, 104]",
        "data.batch_size": "64",
        "data.temporal_enrichment": "true",
        "data.window_bytes": "null",
        "data.tau_range": "[0.5, 2.0]",
        "data.channels_per_sample": "null",
        "data.channel_dropout_channels": "[1]",
    }


def test_reasons_stand_beside_the_values():
    values = values_for(facts("a"), facts("b"), facts("c", interval_minutes=20.0), memory=10**11)
    said = {key.rpartition(".")[2]: value.comment for key, value in values.items()}
    assert said["val_experiments"] == "held out for validation; trained on: a, b"
    assert said["batch_size"] == (
        "per rank; at this size no batch holds a lineage twice; a has only 40 lineages of a condition, and fewer at "
        "one time"
    )
    assert said["window_bytes"] == "null = all at hand: shards of about 12 GB, memory 100 GB"
    assert said["tau_range"].endswith("as the shards are built: 1 to 4 frames of 30 min, 2 to 6 frames of 20 min")
    assert said["in_channels"] == "Phase3D + GFP"
    assert said["channel_dropout_channels"] == "fluorescence by its name: GFP"


@pytest.mark.parametrize(
    ("changes", "key", "text"),
    [
        ({}, "data.val_experiments", "[]"),
        ({"fovs": {"A/1/0": {"mock": 1}}}, "data.batch_size", "2"),
        ({"fovs": {"A/1/0": {"mock": 2}}}, "data.batch_size", "2"),
        ({"fovs": {"A/1/0": {"mock": 5}}}, "data.batch_size", "4"),
        ({"fovs": {"A/1/0": {"mock": 10_000}}, "frames": 20}, "data.batch_size", "256"),
        # 24 would just be possible in this layout of the cells; another one may repeat a lineage then
        ({"fovs": {"A/1/0": {"mock": 12, "infected": 12}}}, "data.batch_size", "20"),
        ({"fovs": {"A/1/0": {"mock": 300, "infected": 9}}}, "data.batch_size", "16"),
        ({"fovs": {"A/1/0": {}}}, "data.batch_size", "2"),
        ({"stored_bytes": 33_000_000_000}, "data.window_bytes", "32_000_000_000"),
        ({"stored_bytes": 32_000_000_000}, "data.window_bytes", "null"),
        ({"shape": (2, 5, 256, 192)}, "data.final_yx_patch_size", "[144, 104]"),
        ({"shape": (2, 5, 40, 40)}, "data.final_yx_patch_size", "null"),
        ({"channels": ("Phase3D",), "shape": (1, 1, 64, 64)}, "data.channel_dropout_channels", "[]"),
        ({"channels": ("GFP", "mCherry")}, "data.channel_dropout_channels", "[]"),
        ({"channels": ("GFP", "DIC")}, "data.channel_dropout_channels", "[0]"),
    ],
)
def test_one_value_at_a_time(changes, key, text):
    assert choose(facts(**changes))[key] == text


def test_a_single_experiment_holds_out_fields_of_view():
    """Ten FOVs of ten lineages: two are held out, and the batch is sized for the other eight."""
    fovs = {f"{row}/1/{n}": {condition: 10} for row, condition in (("A", "mock"), ("B", "infected")) for n in range(5)}
    values = values_for(facts(fovs=fovs, frames=10), temporal_enrichment=False)
    assert {key.rpartition(".")[2]: value.text for key, value in values.items() if "split" in key or "val" in key} == {
        "split": "fovs",
        "val_experiments": "[]",
        "split_ratio": "0.8",
        "split_seed": "4",
    }
    assert values["data.split"].comment == (
        "held out for validation: 2 of 10 fields of view, 20% of the lineages; at least one of each condition, so that "
        "validation has all 2"
    )
    held = hold_out([f"a/{name}" for name in fovs], 0.8, 4)
    assert sorted(name[0] for name, out in zip(fovs, held, strict=True) if out) == ["A", "B"]
    assert values["data.batch_size"].comment == (
        "per rank; at this size no batch holds a lineage twice; a has only 40 lineages of a condition"
    )


@pytest.mark.parametrize(
    ("fovs", "said"),
    [
        ({"A/1/0": {"mock": 9}}, "one experiment, one field of view: nothing is held out, so there is no validation"),
        (
            {"A/1/0": {"mock": 9}, "B/1/0": {"infected": 9}},
            "one experiment, none of its fields of view can be spared: nothing is held out, so there is no validation",
        ),
    ],
)
def test_nothing_is_held_out_that_training_needs(fovs, said):
    values = values_for(facts(fovs=fovs))
    assert values["data.split"].text == "experiments"
    assert values["data.val_experiments"] == Value("[]", said)


FEW = facts("few", fovs={"A/1/0": {"mock": 3, "infected": 9}})
OTHER = facts("other", fovs={"A/1/0": {"mock": 2}})


@pytest.mark.parametrize(
    ("experiments", "held_out", "said", "size"),
    [
        ((facts("a"), FEW, facts("c")), "[few]", "held out for validation for its few lineages; trained on: a, c", 64),
        ((FEW, OTHER, facts("c")), "[few, other]", "held out for validation for their few lineages; trained on: c", 64),
        ((FEW, OTHER), "[other]", "held out for validation for its few lineages; trained on: few", 6),
    ],
)
def test_experiments_with_few_lineages_are_held_out_where_others_are_richer(experiments, held_out, said, size):
    values = values_for(*experiments)
    assert values["data.val_experiments"] == Value(held_out, said)
    assert values["data.batch_size"].text == str(size)


@pytest.mark.parametrize(
    ("frames", "enriched", "comment"),
    [
        (40, "true", "most of a batch near one time after perturbation"),
        (
            5,
            "false",
            "true = most of a batch near one time; the 2 h in which cells of a have a positive are too short for it",
        ),
        (
            8,
            "false",
            "true = most of a batch near one time; the 3.5 h in which cells of a have a positive are too short for it",
        ),
        (
            9,
            "false",
            "true = most of a batch near one time; the 4 h in which cells of a have a positive are too short for it",
        ),
    ],
)
def test_batches_are_near_one_time_where_movies_are_longer_than_the_window(frames, enriched, comment):
    """Two hours before and after a time are nine frames of half an hour; a third of a batch has to be outside."""
    assert values_for(facts(frames=frames))["data.temporal_enrichment"] == Value(enriched, comment)
    assert choose(facts(frames=frames), temporal_enrichment=False)["data.temporal_enrichment"] == "false"


@given(
    lineages=st.lists(st.lists(st.integers(1, 30), min_size=2, max_size=2), min_size=1, max_size=3),
    frames=st.integers(1, 30),
)
@settings(max_examples=15, deadline=None)
def test_the_verdict_on_what_is_chosen_has_nothing_to_say_that_another_size_would_have_avoided(lineages, frames):
    """Checked with a plan of another index, made of the lineages by the tests' own factory."""
    experiments = [
        facts(f"e{k}", fovs={"A/1/0": dict(zip("ab", n, strict=True))}, frames=frames) for k, n in enumerate(lineages)
    ]
    values = choose(*experiments)
    held_out = yaml.safe_load(values["data.val_experiments"])
    kept = [n for k, n in enumerate(lineages) if f"e{k}" not in held_out]
    spec = Synthetic(
        experiments=len(kept),
        conditions=("a", "b"),
        mother=frames + 1,
        daughter=0,
        frames=frames + 1,
        tau_frames=(1, 1),
    )
    index = make_index(spec, **{f"e{k}": tuple(n) for k, n in enumerate(kept)})
    size, enriched = int(values["data.batch_size"]), values["data.temporal_enrichment"] == "true"
    assert size <= 2 * min(min(n) for n in kept)
    sampler = FlexibleBatchSampler(index, SamplingConfig(batch_size=size, temporal_enrichment=enriched))
    troubles = {note.about for note in plan_verdict(sampler).troubles}
    assert not troubles & {"lineages", "quotas"}


def test_experiments_that_no_network_fits_together_are_named():
    with pytest.raises(ConfigError, match=r"different shapes: \{'a': '2x5x192x192', 'b': '2x3x192x192'\}; one network"):
        choose(facts("a"), facts("b", shape=(2, 3, 192, 192)))


def test_experiments_that_store_different_numbers_of_channels_are_a_bag_of_channels():
    values = values_for(facts("a"), facts("b", channels=("GFP",), shape=(1, 5, 192, 192)), facts("c"))
    assert values["model.encoder.init_args.in_channels"].text == "1"
    assert values["data.channels_per_sample"] == Value(
        "1",
        "a bag of channels: every channel of a cell is a sample, as experiments store different numbers "
        "(a 2, b 1, c 2)",
    )
    assert values["data.channel_dropout_channels"].text == "[]"


@pytest.mark.parametrize(
    ("shape", "off", "crop"),
    [
        ((2, 1, 64, 64), ((0, 0), (0, 0)), "[32, 32]"),
        ((2, 1, 64, 64), ((16, 15), (16, 15)), "[40, 40]"),  # 2 * 16 and a margin of 2 on both sides
        ((2, 1, 64, 64), ((3, 15), (0, 14)), "[40, 40]"),  # 2 * (15 + 1) and the margins; 2 * (14 + 1) and these
        ((2, 1, 192, 192), ((48, 47), (48, 47)), "[112, 112]"),
        ((2, 1, 64, 64), ((3, 15), (0, 2)), "[40, 40]"),  # square, as the patch is
        ((2, 1, 64, 128), ((30, 31), (32, 32)), "[64, 80]"),
        ((2, 1, 64, 64), ((30, 31), (32, 31)), "null"),
    ],
)
def test_every_cell_lies_inside_the_crop_with_a_margin(shape, off, crop):
    assert choose(facts(shape=shape, off_middle=off))["data.final_yx_patch_size"] == crop


@pytest.mark.parametrize(
    "text", ["a", "no", "007", "a: b", "it's", "a#b", "x, y", "null", "µ", "[a]", ".", "a/b-c.zarr", "~"]
)
def test_quoted_texts_are_read_as_they_were(text):
    assert yaml.safe_load(f"[{quote(text)}]") == [text]


def test_only_marked_lines_are_filled_and_the_rest_stays_as_it_is():
    lines = ["# About.", "# Lines marked CHANGE depend on you.", "a:", "  b: 1 # CHANGE", "  c: 1", "  # d: 1 # CHANGE"]
    lines += ["l:", "  - k: 1", "    b: 2 # CHANGE: x", "  - b: 1 # CHANGE", "b: 3 # CHANGE"]
    values = {
        "a.b": Value("[2]", "two"),
        "a.c": Value("9", "no"),
        "l.-.b": Value("'x'", "in a list"),
        "z": Value("1", ""),
    }
    expected = ["# About.", "# Filled in.", "a:", "  b: [2] # two", "  c: 1", "  # d: 1 # CHANGE"]
    expected += ["l:", "  - k: 1", "    b: 'x' # in a list", "  - b: 'x' # in a list", "b: 3 # CHANGE"]
    assert fill_template("\n".join(lines), values, "Filled in.").splitlines() == expected


def test_the_shipped_configs_are_the_templates():
    assert find_templates() == ROOT / "configs"
    assert parse_build_config(find_templates() / "experiments.yaml").experiments[0].name == "my_experiment"


def test_lineages_and_bytes_are_counted_from_the_tables(collection: Path):
    """Tables of 272 and 219 cells, six lineages in each of three FOVs; patches of 2 x 3 x 16 x 16, stored 1.2 times."""
    found = find_facts(parse_build_config(collection))
    assert [fact.name for fact in found] == ["e0", "e1", "e2", "e3"]
    assert (found[0].channels, found[0].shape) == (("Phase", "GFP"), (2, 3, 16, 16))
    assert found[0].lineages == {"control": 12, "infected": 6}
    assert (found[0].anchors, found[0].near_border) == (68 + 73 + 92, 0)
    assert found[0].cells.without(["A/1/1"]).t.size == 68 + 92
    assert found[0].stored_bytes == 1_002_701  # uint16
    assert found[1].stored_bytes == 1_614_643  # float32


def test_every_mark_is_filled_and_every_config_loads(collection: Path, capsys: pytest.CaptureFixture[str]):
    assert program.main(["init", str(collection), "--out", "mine", "--shards", "my shards"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "  dynaclr-wds fit -c mine/fit.yaml"
    assert f"  dynaclr-wds build {collection} --out 'my shards'\n" in out
    written = sorted(path.name for path in Path("mine").iterdir())
    assert {"fit.yaml", "fit_3d.yaml", "fit_triplet.yaml"} <= set(written)
    assert not {"demo.yaml", "experiments.yaml"} & set(written)
    for path in Path("mine").iterdir():
        text = path.read_text()
        assert "CHANGE" not in text, path
        assert f"# Filled in for {collection} by `dynaclr-wds init`." in text
        commands = [line for line in text.splitlines() if line.startswith("#   dynaclr-wds ")]
        assert f"#   dynaclr-wds fit -c mine/{path.name}" in commands
        assert path.stem != "fit" or f"#   dynaclr-wds build {collection} --out 'my shards'" in commands
        made, template = yaml.safe_load(text), yaml.safe_load((ROOT / "configs" / path.name).read_text())
        assert made.keys() == template.keys()
        assert made["data"]["shards"] == "my shards"
        if path.stem.startswith("fit"):
            assert made["data"]["val_experiments"] == ["e3"]
            assert made["data"]["tau_range"] == [0.5, 1.5]
            assert made["data"]["batch_size"] == 4
            assert made["data"].get("temporal_enrichment") == (False if path.stem == "fit" else None)
            assert made["model"]["encoder"]["init_args"]["in_channels"] == 2
            assert made["model"]["encoder"]["init_args"]["in_stack_depth"] == 3


def test_the_verdict_on_the_shards_is_clean(collection: Path, shards: Path):
    """Movies of five hours, lineages that divide and end: batches near one time are no good."""
    assert program.main(["init", str(collection)]) == 0
    config = yaml.safe_load(Path("configs/fit.yaml").read_text())["data"]
    known = {field.name for field in dataclasses.fields(SamplingConfig)}
    sampling = SamplingConfig(**{key: value for key, value in config.items() if key in known})
    index = ShardSet.open(shards).plan_index(["e0", "e1", "e2"], tuple(config["tau_range"]))
    assert plan_verdict(FlexibleBatchSampler(index, sampling)).troubles == ()
    twice = dataclasses.replace(sampling, batch_size=2 * sampling.batch_size)
    assert plan_verdict(FlexibleBatchSampler(index, twice)).troubles != ()


def test_nothing_is_replaced_without_being_told(collection: Path, capsys: pytest.CaptureFixture[str]):
    Path("configs").mkdir()
    own = Path("configs/fit.yaml")
    own.write_text("mine")
    assert program.main(["init", str(collection)]) == 2
    assert capsys.readouterr().err == (
        "error: configs/fit.yaml: already there, perhaps with changes of yours. Give another --out, or give "
        "--overwrite to replace.\n"
    )
    assert own.read_text() == "mine"
    assert [path.name for path in Path("configs").iterdir()] == ["fit.yaml"]
    assert program.main(["init", str(collection), "--overwrite"]) == 0
    assert own.read_text() != "mine"


def test_a_recipe_is_written_as_it_is_shipped(capsys: pytest.CaptureFixture[str]):
    assert program.main(["init", "--recipe", "OPS-373genes"]) == 0
    path = Path("configs/recipes/OPS-373genes.yaml")
    assert capsys.readouterr().out == (
        f"Wrote {path}. Its first lines say what it needs. Look at the lines marked CHANGE.\n"
    )
    assert path.read_text() == (ROOT / path).read_text()
    assert program.main(["init", "--recipe", "OPS-373genes"]) == 2
    assert f"{path}: already there" in capsys.readouterr().err
    assert program.main(["init", "--recipe", "OPS-373"]) == 2
    assert "error: --recipe=OPS-373 must be one of ['CELL-DINO-" in capsys.readouterr().err
    assert program.main(["init", "here.yaml", "--recipe", "OPS-373genes"]) == 2
    assert "error: --recipe takes no here.yaml: nothing is filled in." in capsys.readouterr().err


def test_without_anything_there_is_an_experiments_yaml_to_fill_in(capsys: pytest.CaptureFixture[str]):
    assert program.main(["init"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Wrote experiments.yaml. Look at the lines marked CHANGE.",
        "Then: dynaclr-wds init experiments.yaml",
        "Or let the plates fill it in: dynaclr-wds init PLATE TRACKS",
    ]
    assert Path("experiments.yaml").read_text() == (ROOT / "configs/experiments.yaml").read_text()
    before = Path("experiments.yaml").read_bytes()
    for what in ([], ["experiments.yaml"]):
        assert program.main(["init", *what]) == 2
        assert capsys.readouterr().err == (
            "error: experiments.yaml: is still as init wrote it and names no plate of yours. Fill in the lines marked "
            "CHANGE, or let `dynaclr-wds init PLATE TRACKS` do so.\n"
        )
        assert Path("experiments.yaml").read_bytes() == before


def test_a_plate_fills_in_the_experiments_yaml_that_nobody_has_changed(tmp_path: Path):
    write_plate(tmp_path / "mitosis.zarr", fovs=["A/1/0"], shape=(3, 1, 1, 64, 64), channel_names=["GFP"],
                dtype="uint16", seed=0)  # fmt: skip
    assert program.main(["init"]) == 0
    assert program.main(["init", "mitosis.zarr"]) == 0
    path = Path("experiments.yaml")
    assert "name: mitosis # " in path.read_text()
    assert "data_path: mitosis.zarr # 1 field of view in 1 well\n" in path.read_text()
    own = path.read_text() + "# mine\n"
    path.write_text(own)
    assert program.main(["init", "mitosis.zarr"]) == 2
    assert path.read_text() == own


def test_a_name_that_is_the_working_folders_waits_to_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_plate(tmp_path / "one2/plate.zarr", fovs=["A/1/0"], shape=(3, 1, 1, 64, 64), channel_names=["GFP"],
                dtype="uint16", seed=0)  # fmt: skip
    assert program.main(["init", "one2/plate.zarr"]) == 0
    assert "- name: one2 # unique; embeddings and batches carry it\n" in Path("experiments.yaml").read_text()
    monkeypatch.chdir("one2")
    assert program.main(["init", "plate.zarr"]) == 0
    assert "- name: one2 # CHANGE: unique; " in Path("experiments.yaml").read_text()


def test_plates_fill_in_what_they_say_of_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    channels = ["Phase: 3D", "GFP"]
    common = {"fovs": ["A/1/0", "B/2/0", "B/2/1"], "shape": (3, 2, 4, 100, 60), "channel_names": channels}
    write_plate(tmp_path / "first" / "plate.zarr", version="0.4", dtype="uint16", seed=0, **common)
    write_plate(
        tmp_path / "second.zarr", version="0.5", dtype="uint16", seed=0, **common | {"channel_names": channels[::-1]}
    )
    for fov in common["fovs"]:
        (tmp_path / "first/tracks" / fov).mkdir(parents=True)
        (tmp_path / "first/tracks" / fov / "tracks.csv").write_text("track_id,t,y,x\n")
    (tmp_path / "other").mkdir()
    assert program.main(["init", "first/plate.zarr", "second.zarr", "other"]) == 0
    text = Path("experiments.yaml").read_text()
    document = yaml.safe_load(text)
    assert [entry["name"] for entry in document["experiments"]] == ["first", "second"]
    assert [entry["tracks_path"] for entry in document["experiments"]] == ["first/tracks", "other"]
    assert [entry["channel_names"] for entry in document["experiments"]] == [channels, channels[::-1]]
    for entry in document["experiments"]:
        assert entry["source_channel"] == channels  # of both in one order
        assert entry["condition_wells"] == {"all": ["A/1", "B/2"]}
        assert entry["interval_minutes"] is None
    assert document["shards"]["yx_patch_size"] == [32, 32]
    waiting = [line.strip() for line in text.splitlines() if "CHANGE" in line and not line.startswith("#")]
    assert [line.partition(":")[0] for line in waiting] == [
        *("condition_wells", "interval_minutes", "start_hpi"),
        *("tracks_path", "condition_wells", "interval_minutes", "start_hpi"),
        "yx_patch_size",
    ]
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == [
        "first: plate first/plate.zarr, tracks first/tracks",
        "second: plate second.zarr, tracks other",
    ]
    assert [line.strip() for line in out[3:-1]] == [
        *(f"first: {line}" for line in waiting[:3]), *(f"second: {line}" for line in waiting[3:7]), waiting[7]
    ]  # fmt: skip
    assert (
        "  second: tracks_path: other # CHANGE: has no table of this plate; it must hold <row>/<col>/<fov>/*.csv, "
        in out[6]
    )
    assert program.main(["init", "second.zarr"]) == 2
    assert capsys.readouterr().err == (
        "error: experiments.yaml: already there, perhaps with changes of yours. Move it away, or give "
        "--overwrite to replace.\n"
    )


def test_a_plate_without_tracks_and_a_name_waits_for_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    common = {"fovs": ["A/1/0"], "shape": (3, 1, 1, 60, 60), "channel_names": ["GFP"], "version": "0.5"}
    for folder in ("data", "mitosis", "x/mitosis"):
        write_plate(tmp_path / folder / "plate.zarr", dtype="uint16", seed=0, **common)
    assert program.main(["init", *(f"{folder}/plate.zarr" for folder in ("data", "mitosis", "x/mitosis"))]) == 0
    out = capsys.readouterr().out
    assert out.startswith("data: plate data/plate.zarr, tracks data/tracks (not there)\n")
    assert (
        "\n  data: tracks_path: data/tracks # CHANGE: is not there; give the folder of <row>/<col>/<fov>/*.csv, " in out
    )
    explained = "# CHANGE: unique; embeddings and batches carry it; this is the name of a folder"
    assert [line.strip() for line in out.splitlines() if " name: " in line] == [
        f"{name}: name: {name} {explained}" for name in ("data", "mitosis", "mitosis")
    ]
    assert program.main(["init", "mitosis/plate.zarr", "--overwrite"]) == 0
    assert " name: " not in capsys.readouterr().out


TRACKMATE = """\
LABEL,ID,TRACK_ID,POSITION_X,POSITION_Y,FRAME
Label,Spot ID,Track ID,X,Y,Frame
Label,Spot ID,Track ID,X,Y,Frame
,,,(micron),(micron),
ID7,7,0,20.0,15.0,0
"""


@pytest.mark.parametrize(("unit", "size"), [("micron", 0.5), ("micron", None), ("pixel", None)])
def test_tables_of_trackmate_get_a_map_and_their_unit(tmp_path: Path, unit: str, size: float | None):
    scales = {"A/1/0": {"scale": [1, 1, 1, size, size], "units": dict.fromkeys("yx", "micrometer")}} if size else None
    shape = (3, 1, 1, 64, 64)
    write_plate(tmp_path / "mitosis.zarr", fovs=["A/1/0"], shape=shape, channel_names=["GFP"], dtype="uint16", seed=0,
                scales=scales)  # fmt: skip
    (tmp_path / "tracks/A/1/0").mkdir(parents=True)
    (tmp_path / "tracks/A/1/0/spots.csv").write_text(TRACKMATE.replace("micron", unit))
    assert program.main(["init", "mitosis.zarr", "tracks"]) == 0
    text = Path("experiments.yaml").read_text()
    (entry,) = yaml.safe_load(text)["experiments"]
    names = {"TRACK_ID": "track_id", "FRAME": "t", "POSITION_Y": "y", "POSITION_X": "x", "ID": "id"}
    assert entry["columns"] == names
    assert "} # CHANGE: a guess from the names in A/1/0/spots.csv; name in the table: what it is\n" in text
    assert entry.get("tracks_unit") == ("um" if unit == "micron" else None)
    assert ("CHANGE: positions are micrometres, as the table says; add pixel_size_um" in text) == (
        unit == "micron" and size is None
    )
    if size:
        Path("experiments.yaml").write_text(text.replace("interval_minutes: null", "interval_minutes: 30.0"))
        config = parse_build_config("experiments.yaml")
        plates = open_plates(config)
        observations = build_index(fill_in_from_plates(config, plates), plates).observations
        assert observations.select(["y", "x"]).to_pylist() == [{"y": 30.0, "x": 40.0}]


def test_a_table_with_our_names_needs_no_map(tmp_path: Path):
    write_plate(tmp_path / "mitosis.zarr", fovs=["A/1/0"], shape=(3, 1, 1, 64, 64), channel_names=["GFP"],
                dtype="uint16", seed=0)  # fmt: skip
    (tmp_path / "tracks/A/1/0").mkdir(parents=True)
    (tmp_path / "tracks/A/1/0/spots.csv").write_text("track_id,t,y,x,parent\n")
    assert program.main(["init", "mitosis.zarr", "tracks"]) == 0
    assert "columns:" not in Path("experiments.yaml").read_text()
    (tmp_path / "tracks/A/1/0/spots.csv").write_text("track_id,t,y,across\n")
    assert program.main(["init", "mitosis.zarr", "tracks", "--overwrite"]) == 0
    assert "columns: {} # CHANGE: a guess from the names in A/1/0/spots.csv; name in the table: what it is; no " in (
        Path("experiments.yaml").read_text()
    )


def test_a_plate_that_says_its_interval_needs_no_change_of_it(tmp_path: Path):
    simulate_collection(tmp_path / "plates", SMALL)
    assert program.main(["init", "plates/sim_01/plate.zarr"]) == 0
    (entry,) = yaml.safe_load(Path("experiments.yaml").read_text())["experiments"]
    assert (entry["name"], entry["interval_minutes"]) == ("sim_01", 20)
    assert entry["tracks_path"] == "plates/sim_01/tracks"
    made = yaml.safe_load(Path("experiments.yaml").read_text())
    assert parse_build_config("experiments.yaml").yx_patch_size == tuple(made["shards"]["yx_patch_size"]) == (32, 32)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (
            ["group.zarr", "--out", "x"],
            "--out=x is a folder for configs, but for plates init writes ./experiments.yaml. Leave --out out, ",
        ),
        (["nowhere"], "nowhere: no such file or folder. Give an experiments.yaml, or a plate and its tracks."),
        (["empty"], "empty: is no Zarr folder, and tracks follow their plate. Give PLATE TRACKS."),
        (
            ["made"],
            "made: is no Zarr folder, and tracks follow their plate. Give made/experiments.yaml, which is there",
        ),
        (["a.yaml", "b.yaml"], "init takes one YAML, or plates, but not ['a.yaml', 'b.yaml']. Give one of the two."),
        (["absent.yaml"], "absent.yaml: no such file. Give the path of an experiments.yaml."),
        (["group.zarr"], "group.zarr: has no OME-Zarr `plate` metadata."),
    ],
)
def test_mistakes_of_init_are_one_line(capsys: pytest.CaptureFixture[str], what: list[str], said: str):
    Path("empty").mkdir()
    Path("made").mkdir()
    Path("made/experiments.yaml").touch()
    Path("group.zarr").mkdir()
    Path("group.zarr/zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    assert program.main(["init", *what]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not Path("configs").exists()


def test_configs_that_are_missing_from_an_installation_are_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("dynaclr_wds.__file__", str(tmp_path / "dynaclr_wds/__init__.py"))
    with pytest.raises(BuildError, match=r"dynaclr_wds/configs: the configs are missing from the installation"):
        find_templates()


@pytest.mark.slow
@pytest.mark.usefixtures("without_fsync")
@pytest.mark.filterwarnings("ignore:val_experiments is empty:UserWarning")
@pytest.mark.filterwarnings("ignore:Total length of .list. across ranks is zero:UserWarning")
@pytest.mark.filterwarnings("ignore:.*could not find the monitored key:UserWarning")
@pytest.mark.parametrize("kind", ["two experiments", "one experiment, one channel", "two channels and one"])
def test_what_init_writes_runs_and_has_a_clean_verdict(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]):
    """simulate → init → build → fit of two epochs, with nothing edited in between."""
    alone = kind == "one experiment, one channel"
    path = simulate_collection(tmp_path, SMALL)
    if kind != "two experiments":
        document = yaml.safe_load(path.read_text())
        document["experiments"] = document["experiments"][: 1 if alone else 2]
        document["experiments"][0]["source_channel"] = ["Phase3D"]
        path.write_text(yaml.safe_dump(document))
    assert program.main(["init"]) == 0
    assert program.main(["build", "experiments.yaml", "--quiet"]) == 0
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    assert program.main(["fit", "-c", "configs/fit.yaml", *SHORT]) == 0
    assert "All is well: No two samples of a batch share a lineage." in " ".join(capsys.readouterr().out.split())
    (saved,) = Path("logs").rglob("config.yaml")
    config = yaml.safe_load(saved.read_text())
    assert config["data"]["val_experiments"] == ([] if alone else ["sim_01"])  # it has fewest lineages, too few
    assert config["data"]["split"] == ("fovs" if alone else "experiments")
    assert config["model"]["encoder"]["init_args"]["in_channels"] == (2 if kind == "two experiments" else 1)
    assert config["data"]["channels_per_sample"] == (1 if kind == "two channels and one" else None)
    ledger = [json.loads(file.read_text()) for file in sorted(Path("logs").rglob("ledger-epoch=*.json"))]
    assert len(ledger) == 2


def test_images_fill_in_a_well_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second one"):
        write_image(tmp_path / f"images/{name}.ome.zarr", "tcyx")
    shutil.copytree(Path(__file__).parent / "data/tracks", tmp_path / "there")
    (tmp_path / "tracks/A/1/first").mkdir(parents=True)
    shutil.copy(tmp_path / "there/ultrack.xml", tmp_path / "tracks/A/1/first/model.xml")
    assert program.main(["init", "images", "tracks"]) == 0
    (entry,) = yaml.safe_load(Path("experiments.yaml").read_text())["experiments"]
    assert entry["data_path"] == "images"
    assert entry["wells"] == {"A/1": ["first.ome.zarr"], "A/2": ["second one.ome.zarr"]}
    assert entry["condition_wells"] == {"all": ["A/1", "A/2"]}
    assert "columns" not in entry
    assert program.main(["init", "images", "there/ultrack.csv", "--overwrite"]) == 0
    assert "tracks_path: there/ultrack.csv # a table (.csv, " in Path("experiments.yaml").read_text()


def test_a_table_beside_the_plate_is_found_and_channels_without_a_name_are_counted(tmp_path: Path):
    write_plate(tmp_path / "mitosis.zarr", fovs=["A/1/0"], shape=(3, 2, 1, 64, 64), channel_names=None)
    (tmp_path / "tracks.csv").write_text("fov,track_id,t,y,x,parent\nA/1/0,0,0,20,20,-1\n")
    assert program.main(["init", "mitosis.zarr"]) == 0
    text = Path("experiments.yaml").read_text()
    (entry,) = yaml.safe_load(text)["experiments"]
    assert entry["tracks_path"] == "tracks.csv"
    assert entry["channel_names"] == entry["source_channel"] == ["channel_0", "channel_1"]
    assert "channel_names: [channel_0, channel_1] # CHANGE: the plate names no channel\n" in text
