"""Mistakes in experiments.yaml and in the options of a build."""

from __future__ import annotations

from etl.build_shards import build_part
from etl.source.experiments import parse_build_config
from tests.mistakes.world import Mistake, World

BUILD = ["build", "experiments.yaml", "--out", "new"]


def _set(**values: object):
    def make(world: World) -> list[str]:
        world.set_experiment(**values)
        return BUILD

    return make


def _options(**values: object):
    def make(world: World) -> list[str]:
        world.set_options(**values)
        return BUILD

    return make


def _command(*argv: str):
    return lambda _: list(argv)


def _one_part(world: World) -> list[str]:
    build_part(parse_build_config(world.yaml, {}), world.root / "new", "1/2")
    return [*BUILD, "--finish"]


def _same_name(world: World) -> list[str]:
    world.edit_yaml(lambda document: document["experiments"][1].update(name="e0"))
    return BUILD


def _tab(world: World) -> list[str]:
    world.yaml.write_text(world.yaml.read_text().replace("  name:", "\tname:", 1).replace("- name:", "-\tname: [", 1))
    return BUILD


def _key_twice(world: World) -> list[str]:
    text = world.yaml.read_text()
    world.yaml.write_text(text.replace("  start_hpi: 0.0\n", "  start_hpi: 0.0\n  start_hpi: 3.0\n", 1))
    return BUILD


def _bare_list(world: World) -> list[str]:
    world.yaml.write_text("- name: e0\n")
    return BUILD


def _misspelt(world: World) -> list[str]:
    world.set_experiment(condition_wells=None, conditions_wells={"control": ["A/1"]})
    return BUILD


IN_EXPERIMENTS_YAML = [
    Mistake(what="Names a file that is not there", make=_command("build", "experiment.yaml")),
    Mistake(what="Writes YAML that is not YAML", make=_tab),
    Mistake(what="Writes a key twice", make=_key_twice),
    Mistake(what="Leaves out `experiments:`", make=_bare_list),
    Mistake(what="Misspells a key", make=_misspelt),
    Mistake(what="Leaves out a key that is needed", make=_set(tracks_path=None)),
    Mistake(what="Gives two experiments one name", make=_same_name),
    Mistake(what="Gives a plate that is not there", make=_set(data_path="plates/e0.zarr")),
    Mistake(what="Gives a folder of tracks that is not there", make=_set(tracks_path="trakcs")),
    Mistake(what="Gives the folder above the plate", make=_set(data_path="e0")),
    Mistake(what="Names a channel that the plate does not have", make=_set(source_channel=["Phase", "mCherry"])),
    Mistake(what="Lists channels in another order than the plate", make=_set(channel_names=["GFP", "Phase"])),
    Mistake(what="Names a well that the plate does not have", make=_set(condition_wells={"control": ["A/9"]})),
    Mistake(what="Writes a well as `A1`", make=_set(condition_wells={"control": ["A1"], "infected": ["B2"]})),
    Mistake(what="Includes a well that has no condition", make=_set(include_wells=["C/7"])),
    Mistake(
        what="Puts a well in two conditions",
        make=_set(condition_wells={"control": ["A/1"], "infected": ["A/1", "B/2"]}),
    ),
    Mistake(what="Gives a negative interval", make=_set(interval_minutes=-30)),
    Mistake(what="Gives an interval of 0 for a movie", make=_set(interval_minutes=0)),
    Mistake(what="Gives an interval with its unit", make=_set(interval_minutes="30 min")),
    Mistake(what="Leaves out the interval, which the plate does not say", make=_set(interval_minutes=None)),
    Mistake(what="Gives a plate in a bucket, without keys", make=_set(data_path="s3://bucket/plate.zarr")),
    Mistake(what="Puts a key into a URL", make=_set(tracks_path="https://me:hush@host/tracks")),
    Mistake(what="Gives a folder of tracks that has no listing", make=_set(tracks_path="https://host/tracks")),
    Mistake(what="Gives storage options that are no mapping", make=_set(storage_options=["anonymous"])),
    Mistake(what="Uses a variable that is not set", make=_set(data_path="${NO_SUCH_DISK}/plate.zarr")),
    Mistake(what="Asks for patches larger than the images", make=_options(yx_patch_size=[256, 256])),
    Mistake(what="Gives three numbers for the patch size", make=_options(yx_patch_size=[1, 16, 16])),
    Mistake(what="Asks for slices that the stack does not have", make=_options(z_range=[0, 9])),
    Mistake(what="Rescales without saying the pixel size", make=_options(reference_pixel_size_um=0.3)),
    Mistake(
        what="Asks for the focus of a channel that is not there", make=_options(z_focus={"window": 2, "channel": "BF"})
    ),
    Mistake(what="Reduces a channel that is not stored", make=_options(z_reduction={"RFP": "mip"})),
    Mistake(what="Swaps the ends of τ", make=_options(tau_range_hours=[2.0, 0.5])),
    Mistake(what="Asks for a τ shorter than a frame", make=_options(tau_range_hours=[0.1, 0.2])),
    Mistake(what="Asks for a τ longer than any track", make=_options(tau_range_hours=[20, 30])),
    Mistake(what="Partitions by a label that there is not", make=_options(shard_by=["marker"])),
    Mistake(what="Excludes every FOV", make=_command(*BUILD, "--include_wells", "C/7")),
    Mistake(what="Gives a size that is none", make=_options(block_bytes="512Q")),
    Mistake(what="Misspells an option of the command", make=_command(*BUILD, "--patch_size", "64", "64")),
    Mistake(what="Shortens an option", make=_command("simulate", "plates", "--experiment", "3")),
    Mistake(what="Misspells the command", make=_command("biuld", "experiments.yaml")),
    Mistake(
        what="Builds into a bucket, without keys",
        make=_command("build", "experiments.yaml", "--out", "s3://b/shards"),
    ),
    Mistake(
        what="Builds to a web server",
        make=_command("build", "experiments.yaml", "--out", "https://example.org/shards"),
    ),
    Mistake(
        what="Builds into a folder with an option for buckets",
        make=_command("build", "experiments.yaml", "--out", "new", "--keep_staging"),
    ),
    Mistake(what="Puts parts together before all have ended", make=_one_part),
]
