"""Simulates plates, track tables and `experiments.yaml`: the command `dynaclr-wds simulate OUT`.

Cells of two conditions move, divide, die and respond, for the demo, the tests and the benchmarks. A field of view (FOV)
depends on (seed, experiment, FOV) alone: the number of workers or of other FOVs changes nothing in it.
`experiments.yaml` is written last and a line of it holds the options, so the same command run again does nothing. A run
that is stopped leaves nothing behind.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shlex
import shutil
import signal
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
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
_ABOUT = "# Simulated cells to try things with: plates and tracks lie beside this file, which says what is on them.\n"
_OPTIONS = "# Made with the options "
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
    if target.exists():
        if _read_options(target) == _options_of(config):
            return target
        raise FileExistsError(
            f"{target}: is there already, but {_describe_difference(target, config)}. Give another directory, or "
            "delete this one."
        )
    designs = [plan_experiment(config, index) for index in range(config.experiments)]
    with _whole_or_absent(out, designs):
        fovs = [fov for design in designs for fov in _start_experiment(out, config, design)]
        with closing(_simulate_all(fovs, config.workers)) as done:  # closed, no worker writes any more
            _show_progress(done, len(fovs), console)
        document = {"experiments": [describe_experiment(d) for d in designs], "shards": describe_shards(config)}
        text = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120)
        with write_whole(target) as file:
            file.write((_ABOUT + _OPTIONS + json.dumps(_options_of(config)) + ".\n" + text).encode())
    return target


@contextmanager
def _whole_or_absent(out: Path, designs: Sequence[ExperimentDesign]) -> Iterator[None]:
    """Remove what was written when a run is stopped or fails."""
    was_there = out.exists()
    try:
        yield
    except BaseException:
        for design in designs:
            shutil.rmtree(out / design.name, ignore_errors=True)
        if not was_there:
            with suppress(OSError):  # something else was put there meanwhile
                out.rmdir()
        raise


def _show_progress(done: Iterable[None], total: int, console: Console | None) -> None:
    with Progress(
        TextColumn("simulate"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("FOVs"),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
    ) as progress:
        for _ in progress.track(done, total=total):
            pass


def _options_of(config: SimulationConfig) -> dict[str, Any]:
    """Return what the bytes depend on, as JSON gives it back."""
    options = dataclasses.asdict(config)
    del options["workers"]
    parsed: dict[str, Any] = json.loads(json.dumps(options))
    return parsed


def _read_options(target: Path) -> dict[str, Any] | None:
    """Return the options that a collection was made with; None where it says none."""
    for line in target.read_text(encoding="utf-8").splitlines():
        if line.startswith(_OPTIONS):
            with suppress(ValueError):
                options: dict[str, Any] = json.loads(line.removeprefix(_OPTIONS).removesuffix("."))
                return options
    return None


def _describe_difference(target: Path, config: SimulationConfig) -> str:
    """Say in which options a collection that is there differs from the one that is asked for."""
    stored = _read_options(target)
    if stored is None:
        return "was not made by simulate"
    return "was made with " + ", ".join(
        f"{name}={stored.get(name)} (asked for {value})"
        for name, value in _options_of(config).items()
        if stored.get(name) != value
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


def _simulate_all(fovs: Sequence[_Fov], workers: int) -> Generator[None, None, None]:
    if workers == 1:
        yield from map(_simulate_fov, fovs)
        return
    # spawn: zarr keeps an event loop in a thread, which does not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts) as pool:
        try:
            futures: list[Future[None]] = [pool.submit(_simulate_fov, fov) for fov in fovs]
            for future in futures:
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which the terminal sends to every process, to the one that can tidy up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
    return run_command(
        _run, arguments, when_stopped="stopped, and nothing is left behind. Give the same command to begin anew."
    )


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
    parser = Parser(prog=called_as("simulate", "etl.simulate"), description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=str, help="directory to write")
    parser.add_class_arguments(SimulationConfig, as_group=False, skip={_RATIO})
    about = "Wells of uninfected to wells of infected cells."
    parser.add_argument(f"--{_RATIO}", nargs=2, type=int, default=[1, 1], metavar="N", help=about)
    return parser


if __name__ == "__main__":
    sys.exit(main())
