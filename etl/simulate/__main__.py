"""Simulates plates, track tables and `experiments.yaml`: the command `dynaclr-wds simulate OUT`.

Cells of two conditions move, divide, die and respond, for the demo, the tests and the benchmarks. A field of view (FOV)
depends on (seed, experiment, FOV) alone: the number of workers or of other FOVs changes nothing in it.
`experiments.yaml` is written last and its first line holds the options, so the same command run again does nothing.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dynaclr_wds.config_errors import Asked, explain_mistake
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.files import write_whole
from dynaclr_wds.local_paths import refuse_url
from dynaclr_wds.program import called_as, run_command
from dynaclr_wds.words import count_of
from etl.simulate.colony import sample_frames
from etl.simulate.design import CONDITIONS, ExperimentDesign, SimulationConfig, plan_experiment
from etl.simulate.render import render_frame, sample_scenery
from etl.simulate.track import Tracker
from etl.simulate.write import (
    FRAMES_PER_WRITE,
    describe_experiment,
    describe_shards,
    write_frames,
    write_image,
    write_plate,
    write_tracks,
)

__all__ = ["SimulationConfig", "main", "simulate_collection"]

EXPERIMENTS_YAML = "experiments.yaml"
_TAG_CELLS, _TAG_LIGHT, _TAG_TRACKER = 0x51A2, 0x51A3, 0x51A4
_HEADER = "# etl.simulate "
_RATIO = "condition_ratio"
_RATIO_FORM = (
    f"--{_RATIO} must be two whole numbers: the wells of uninfected to infected cells. Write `--{_RATIO} 3 1`."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fov:
    """All that a worker needs to simulate one FOV."""

    config: SimulationConfig
    design: ExperimentDesign
    directory: Path
    """Folder of the experiment."""
    name: str
    """`row/col/fov`."""
    number: int
    infected: bool


def simulate_collection(out: Path, config: SimulationConfig, console: Console | None = None) -> Path:
    """Simulate a collection of experiments.

    Parameters
    ----------
    out
        Directory to write; made if missing.
    config
        Sizes and seed. The same config gives the same bytes.
    console
        Shows the progress; None is silent.

    Returns
    -------
    Path
        `experiments.yaml`, for `dynaclr-wds build`.

    Raises
    ------
    FileExistsError
        `out` holds a collection made with other options.
    """
    target = out / EXPERIMENTS_YAML
    header = _header(config)
    if target.exists():
        if target.read_text().startswith(header):
            return target
        raise FileExistsError(
            f"{target}: is there already, but {_describe_difference(target, config)}. Give another directory, or "
            "delete this one."
        )
    designs = [plan_experiment(config, index) for index in range(config.experiments)]
    fovs = [fov for design in designs for fov in _start_experiment(out, config, design)]
    with Progress(
        TextColumn("simulate"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("FOVs"),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
    ) as progress:
        for _ in progress.track(_simulate_all(fovs, config.workers), total=len(fovs)):
            pass
    document = {"experiments": [describe_experiment(d) for d in designs], "shards": describe_shards(config)}
    with write_whole(target) as file:
        text = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120)
        file.write((header + text).encode())
    return target


def _header(config: SimulationConfig) -> str:
    options = dataclasses.asdict(config)
    del options["workers"]
    return _HEADER + json.dumps(options) + "\n"


def _describe_difference(target: Path, config: SimulationConfig) -> str:
    """Say in which options a collection that is there differs from the one that is asked for."""
    first = target.read_text().partition("\n")[0]
    if not first.startswith(_HEADER):
        return "was not made by simulate"
    stored, asked = (json.loads(line[len(_HEADER) :]) for line in (first, _header(config)))
    return "was made with " + ", ".join(
        f"{name}={stored.get(name)} (asked for {value})" for name, value in asked.items() if stored.get(name) != value
    )


def _start_experiment(out: Path, config: SimulationConfig, design: ExperimentDesign) -> list[_Fov]:
    directory = out / design.name
    if directory.exists():
        shutil.rmtree(directory)  # left by a run that did not end: experiments.yaml is not there
    names = write_plate(directory / "plate.zarr", config, design)
    return [
        _Fov(
            config=config,
            design=design,
            directory=directory,
            name=name,
            number=number,
            infected=condition == CONDITIONS[1],
        )
        for number, (condition, name) in enumerate(names)
    ]


def _simulate_all(fovs: Sequence[_Fov], workers: int) -> Iterator[None]:
    if workers == 1:
        yield from map(_simulate_fov, fovs)
        return
    # spawn: zarr keeps an event loop in a thread, which does not survive a fork
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures: list[Future[None]] = [pool.submit(_simulate_fov, fov) for fov in fovs]
        for future in futures:
            yield future.result()


def _simulate_fov(fov: _Fov) -> None:
    """Simulate and write one FOV with its track table."""
    config, design = fov.config, fov.design
    cell_rng, light_rng, track_rng = (
        np.random.default_rng([tag, config.seed, design.index, fov.number])
        for tag in (_TAG_CELLS, _TAG_LIGHT, _TAG_TRACKER)
    )
    array = write_image(fov.directory / "plate.zarr" / fov.name, config, design)
    scenery = sample_scenery(light_rng, config, design)
    tracker = Tracker(size=config.size, z=config.z)
    waiting: list[Any] = []
    for frame, cells in enumerate(sample_frames(cell_rng, config, design, fov.infected)):
        tracker.sample_observations(track_rng, frame, cells)
        waiting.append(render_frame(light_rng, cells, scenery, config, design))
        if len(waiting) == FRAMES_PER_WRITE or frame == config.frames - 1:
            write_frames(array, frame + 1 - len(waiting), waiting)
            waiting = []
    write_tracks(
        fov.directory / "tracks" / fov.name / "tracks.csv", tracker.rows, config, blank_parent=design.index % 2 == 1
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run_command(_run, arguments, when_stopped="stopped. Give the same command again to simulate anew.")


def _run(arguments: Sequence[str]) -> int:
    parser = _make_parser(arguments)
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    refuse_url(out, "out")
    config = SimulationConfig(**{**options, _RATIO: tuple(options[_RATIO])})
    there = (Path(out) / EXPERIMENTS_YAML).exists()
    path = simulate_collection(Path(out), config, Console(stderr=True))
    made = f"{count_of(config.experiments, 'experiment')} of {count_of(config.wells * config.fovs, 'field')} of view"
    print(f"{path}: {'already there with these options, unchanged' if there else 'written'}: {made}. Next:")
    print(f"  {called_as('init')} {shlex.quote(str(path))}")
    return 0


def _make_parser(arguments: Sequence[str]) -> Any:
    """Make the command line: an option per field of `SimulationConfig`, explained by its docstring."""
    import jsonargparse  # here, because no test of the simulation needs it

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            asked = Asked("simulate", arguments, [action.dest for action in self._actions])
            raise ConfigError(_RATIO_FORM if _RATIO in message else explain_mistake(message, asked)) from ex

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=called_as("simulate", "etl.simulate"), description=__doc__)
    parser.add_argument("out", type=str, help="directory to write")
    parser.add_class_arguments(SimulationConfig, as_group=False, skip={_RATIO})
    about = "Wells of uninfected to wells of infected cells."
    parser.add_argument(f"--{_RATIO}", nargs=2, type=int, default=[1, 1], metavar="N", help=about)
    return parser


if __name__ == "__main__":
    sys.exit(main())
