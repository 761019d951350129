"""Writes what a new user starts from: the command `dynaclr-wds init`.

    dynaclr-wds init experiments.yaml [--out configs]     configs for these experiments
    dynaclr-wds init PLATE [TRACKS] [PLATE [TRACKS] …]    experiments.yaml for these plates
    dynaclr-wds init --recipe NAME                        one of the configs that labs train with
    dynaclr-wds init                                      the first, or else an experiments.yaml to fill in

Nothing that is there is replaced, unless `--overwrite` says so.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dynaclr_wds.errors import BuildError, ConfigError
from dynaclr_wds.files import write_whole
from dynaclr_wds.local_paths import parse_local_path, parse_yaml_place
from dynaclr_wds.program import CommandParser, called_as, run_command
from dynaclr_wds.storage.location import Location, Place

EXPERIMENTS = Path("experiments.yaml")
_NOT_FILLED = ("demo.yaml", EXPERIMENTS.name)
_CROP = "data.final_yx_patch_size"
"""Shipped configs that are of no use with other data."""


_EXAMPLES = """examples:
  %(prog)s experiments.yaml
      configs/*.yaml with channels, patches, held-out experiment, batch size and window filled in
  %(prog)s plate.zarr tracks
      experiments.yaml with what the plate says of itself
  %(prog)s images tracks.parquet
      the same for a folder of OME-Zarr images, and one table of all tracks (docs/TRACKS.md)
  %(prog)s --recipe DynaCLR-2D-MIP-BagOfChannels
      configs/recipes/DynaCLR-2D-MIP-BagOfChannels.yaml, to be filled in (docs/SWITCHING.md)
  %(prog)s
      an experiments.yaml to fill in
"""


def make_parser() -> CommandParser:
    """Make the command line."""
    parser = CommandParser(
        prog=called_as("init", "etl.init"),
        description="Write configs for your experiments.yaml, or an experiments.yaml for your plates.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        nargs="*",
        type=parse_yaml_place,
        help="an experiments.yaml; or local plates (or OME-Zarr images), each with its tracks",
    )
    parser.add_argument("--out", type=parse_local_path, help="folder for configs (default: configs)")
    parser.add_argument("--recipe", metavar="NAME", help="write a config that labs train with, and nothing else")
    parser.add_argument("--shards", default="shards", help="folder that the shards will be in (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    given = make_parser().parse_args(argv)
    what: list[Place] = given.what
    if given.recipe is not None:
        return _write_recipe(given.recipe, what, given.out or Path("configs"), given.overwrite)
    if not what and not EXPERIMENTS.exists():
        return _write_template(given.overwrite)
    what = what or [EXPERIMENTS]
    yamls = [path for path in what if path.name.lower().endswith((".yaml", ".yml"))]
    if yamls and len(what) > 1:
        raise ConfigError(
            f"init takes one YAML, or plates, but not {[str(path) for path in what]}. Give one of the two."
        )
    if yamls:
        _refuse_unfilled(yamls[0])
        return _write_configs(yamls[0], given.out or Path("configs"), given.shards, overwrite=given.overwrite)
    if given.out is not None:
        raise ConfigError(
            f"--out={given.out} is a folder for configs, but for plates init writes ./{EXPERIMENTS}. Leave --out out, "
            "or run init in the folder that the file is for."
        )
    return _write_experiments([_refuse_remote(path) for path in what], given.overwrite)


def _refuse_remote(plate: Place) -> Path:
    if isinstance(plate, Location):
        raise ConfigError(
            f"{plate}: init fills in an experiments.yaml from plates on a disk only. Write one with this URL as "
            f"data_path; `{called_as('init')}` alone gives one to fill in."
        )
    return plate


def _write_configs(path: Place, out: Path, shards: str, *, overwrite: bool) -> int:
    import yaml

    from etl.configure.choices import choose_values, describe, explain_bag, is_bag
    from etl.configure.facts import find_facts
    from etl.configure.templates import fill_template, find_templates, name_files
    from etl.run.executors import usable_memory
    from etl.source.experiments import parse_build_config

    templates = [file for file in sorted(find_templates().glob("*.yaml")) if file.name not in _NOT_FILLED]
    _refuse_existing([out / file.name for file in templates], overwrite)
    config = parse_build_config(path)
    facts = find_facts(config)
    if facts[0].shape[1] == 1:
        templates = [file for file in templates if "_3d" not in file.stem]
    said = f"Filled in for {path} by `dynaclr-wds init`."
    texts = {file.name: file.read_text(encoding="utf-8") for file in templates}
    memory = usable_memory()
    named = {"experiments.yaml": str(path), "--out shards": f"--out {shlex.quote(shards)}", "configs/": f"{out}/"}
    for name, text in texts.items():  # all of them, before the first is written
        values = choose_values(facts, shards, config.tau_range_hours, memory, yaml.safe_load(text))
        texts[name] = fill_template(name_files(text, named), values, said)
        crop = values[_CROP]
    for name, text in texts.items():
        _write(out / name, text)
    for name, text in describe(facts).items():
        print(f"{name}: {text}")
    print(f"{_CROP}: {crop.text}, {crop.comment}.")
    if is_bag(facts):
        print(f"data.channels_per_sample: 1, {explain_bag(facts)}.")
    flat = " (no fit_3d.yaml, as patches have one plane)" if facts[0].shape[1] == 1 else ""
    print(f"Wrote {', '.join(str(out / file.name) for file in templates)}{flat}. Next:")
    print(f"  {called_as('build')} {shlex.quote(str(path))} --out {shlex.quote(shards)}")
    print(f"  {called_as('fit')} -c {shlex.quote(str(out / 'fit.yaml'))}")
    return 0


def _write_recipe(name: str, what: Sequence[Place], out: Path, overwrite: bool) -> int:
    from etl.configure.templates import find_templates

    shipped = {file.stem: file for file in sorted((find_templates() / "recipes").glob("*.yaml"))}
    if name not in shipped:
        raise ConfigError(f"--recipe={name} must be one of {list(shipped)}. Correct it.")
    if what:
        raise ConfigError(f"--recipe takes no {what[0]}: nothing is filled in. Leave one of the two out.")
    path = out / "recipes" / f"{name}.yaml"
    _refuse_existing([path], overwrite)
    _write(path, shipped[name].read_text(encoding="utf-8"))
    print(f"Wrote {path}. Its first lines say what it needs. Look at the lines marked CHANGE.")
    return 0


def _write_experiments(what: Sequence[Path], overwrite: bool) -> int:
    import yaml

    from etl.configure.experiments import is_plate, write_experiments
    from etl.configure.templates import MARK, find_templates

    plates: list[tuple[Path, Path | None]] = []
    for path in what:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder. Give an experiments.yaml, or a plate and its tracks.")
        if path.is_dir() and is_plate(path):
            plates.append((path, None))
        elif plates and plates[-1][1] is None:
            plates[-1] = (plates[-1][0], path)
        else:
            written = path / EXPERIMENTS.name
            instead = f"Give {written}, which is there, or PLATE TRACKS." if written.is_file() else "Give PLATE TRACKS."
            raise ConfigError(f"{path}: is no Zarr folder, and tracks follow their plate. {instead}")
    template = (find_templates() / EXPERIMENTS.name).read_text(encoding="utf-8")
    _refuse_existing([EXPERIMENTS], overwrite or _is_unfilled(EXPERIMENTS))
    text = write_experiments(template, plates, Path())
    _write(EXPERIMENTS, text)
    for entry in yaml.safe_load(text)["experiments"]:
        there = "" if Path(entry["tracks_path"]).exists() else " (not there)"
        print(f"{entry['name']}: plate {entry['data_path']}, tracks {entry['tracks_path']}{there}")
    _say_what_is_left(_list_marked(text.splitlines(), MARK, many=len(plates) > 1))
    return 0


def _is_unfilled(path: Path) -> bool:
    """Whether a file is the shipped experiments.yaml, as `init` wrote it."""
    from etl.configure.templates import find_templates

    return path.is_file() and path.read_bytes() == (find_templates() / EXPERIMENTS.name).read_bytes()


def _refuse_unfilled(path: Place) -> None:
    if isinstance(path, Path) and _is_unfilled(path):
        raise ConfigError(
            f"{path}: is still as init wrote it and names no plate of yours. Fill in the lines marked CHANGE, or let "
            f"`{called_as('init')} PLATE TRACKS` do so."
        )


def _write_template(overwrite: bool) -> int:
    from etl.configure.templates import find_templates

    _refuse_existing([EXPERIMENTS], overwrite)
    _write(EXPERIMENTS, (find_templates() / EXPERIMENTS.name).read_text(encoding="utf-8"))
    _say_what_is_left([])
    print(f"Or let the plates fill it in: {called_as('init')} PLATE TRACKS")
    return 0


def _list_marked(lines: Sequence[str], mark: str, *, many: bool) -> list[str]:
    """List the lines that wait for the user, with their experiment where there are several."""
    marked, of = [], ""
    for line in lines:
        if line.startswith("  - name: "):
            of = line.removeprefix("  - name: ").partition(" #")[0] + ": "
        elif line and not line.startswith(" "):
            of = ""  # another section
        if mark in line and not line.startswith("#"):
            marked.append((of if many else "") + line.strip().removeprefix("- "))
    return marked


def _say_what_is_left(lines: Sequence[str]) -> None:
    print(f"Wrote {EXPERIMENTS}. Look at the lines marked CHANGE{':' if lines else '.'}")
    for line in lines:
        print(f"  {line}")
    print(f"Then: {called_as('init')} {EXPERIMENTS}")


def _refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    there = [str(path) for path in paths if path.exists()]
    if there and not overwrite:
        other = "Move it away" if EXPERIMENTS in paths else "Give another --out"
        lose = "already there, perhaps with changes of yours"
        raise BuildError(f"{', '.join(there)}: {lose}. {other}, or give --overwrite to replace.")


def _write(path: Path, text: str) -> None:
    with write_whole(path) as file:
        file.write(text.encode())


if __name__ == "__main__":
    sys.exit(main())
