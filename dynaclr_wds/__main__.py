"""One command for everything: `dynaclr-wds init | build | fit | …`; `python -m dynaclr_wds` is the same program.

`fit` and `validate` are Lightning's: every argument of `ContrastiveModule`, `MultiExperimentDataModule` and `Trainer`
is an option and a key of the config. Commands in `COMMANDS` parse their own arguments. A command's module is
imported when it is called, so that help is quick and the online half needs none of the ETL's libraries.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from dynaclr_wds import __version__
from dynaclr_wds.program import called_as, run_command, suggest
from dynaclr_wds.train.stop_signals import Stopped, StopSignals, is_first_process

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("etl.init", "Write configs for your experiments.yaml, or an experiments.yaml for your plates."),
    "inspect": ("etl.inspect.__main__", "Look at experiments before a build, or at shards: counts, pairs, warnings."),
    "build": ("etl.build_shards", "Cut the cells of OME-Zarr plates into shards; go on, or bring a set up to date."),
    "simulate": ("etl.simulate.__main__", "Write plates and tracks of simulated cells."),
    "predict": ("dynaclr_wds.commands.predict", "Embed cells with a trained network, as it was trained."),
    "shuffle": ("dynaclr_wds.commands.shuffle", "Show how well batches would be mixed, without reading a pixel."),
    "preview": ("dynaclr_wds.commands.preview", "Show batches as the network will see them, before a training."),
    "evaluate": ("dynaclr_wds.commands.evaluate", "Judge embeddings side by side: smooth, informative, alive?"),
    "export": ("dynaclr_wds.commands.export", "Write a trained encoder as ONNX, for programs without torch."),
    "bench-storage": (
        "dynaclr_wds.commands.bench_storage",
        "Measure how fast shards come from object storage, and what to set.",
    ),
    "verify": ("etl.verify", "Check every file of a shard set."),
}
"""Name → (module with `main(argv: Sequence[str]) -> int`, one line of help)."""

LIGHTNING: dict[str, str] = {
    "fit": "Train, validate after every epoch, keep checkpoints.",
    "validate": "Run the held-out experiments through a trained network.",
}
"""Name → one line of help."""

_ORDER = (
    "init",
    "inspect",
    "build",
    "simulate",
    "preview",
    "fit",
    "validate",
    "predict",
    "evaluate",
    "export",
    "shuffle",
    "verify",
    "bench-storage",
)

_EXAMPLES = """From plates to embeddings:

  {program} init experiments.yaml          # writes configs/ to fit your plates
  {program} inspect experiments.yaml --html before.html
  {program} build experiments.yaml         # writes shards/
  {program} preview -c configs/fit.yaml --html preview.html
  {program} fit -c configs/fit.yaml
  {program} predict --ckpt last.ckpt --out embeddings.parquet
  {program} evaluate embeddings.parquet --shards shards --html report.html

`{program} COMMAND --help` explains a command. --debug shows where an error comes from, --version says which
version this is.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        Arguments after the program's name; None = those of the process.

    Returns
    -------
    Exit status.
    """
    return run_command(_dispatch, argv)


def _dispatch(given: Sequence[str]) -> int:
    name = given[0] if given else "--help"
    if name in ("-h", "--help"):
        print(describe_commands())
        return 0 if given else 2
    if name == "--version":
        print(f"dynaclr-wds {__version__}")
        return 0
    if name in COMMANDS:
        status: int = import_module(COMMANDS[name][0]).main(given[1:])
        return status
    if name not in LIGHTNING:
        names = [*COMMANDS, *LIGHTNING]
        near = suggest(name, names) or f" There are {', '.join(sorted(names))}."
        print(f"error: {called_as('')} has no command {name!r}.{near}", file=sys.stderr)
        return 2
    return _run_lightning(given)


def _run_lightning(given: Sequence[str]) -> int:
    from dynaclr_wds.commands.short_help import describe_options, has_short_help

    if has_short_help(given[0]) and {"-h", "--help"} & set(given):
        print(describe_options(given[0]))
        return 0
    from dynaclr_wds.commands.option_check import refuse_unknown_options

    refuse_unknown_options(given)
    signals = StopSignals()
    try:
        with signals:  # Ctrl-C and SIGTERM end it with one line, also during the imports
            from dynaclr_wds.commands.lightning import leave_processes, run_lightning  # heavy: not for other commands

            run_lightning(["--help" if word == "--help_all" else word for word in given])
            leave_processes()
    except Stopped as stopped:
        if not stopped.said:
            _say_stopped(given[0], stopped)
        return stopped.code
    except Exception:
        if signals.received is None:
            raise
        late = Stopped(signals.received)  # a library caught it within an import, and failed later
        _say_stopped(given[0], late)
        return late.code
    return 0


def _say_stopped(command: str, stopped: Stopped) -> None:
    """Say that a command was stopped which leaves nothing behind."""
    undone = "before its metrics were there" if command == "validate" else "before anything was done"
    if is_first_process():
        print(f"Stopped by {stopped.cause} {undone}; nothing was saved.", file=sys.stderr)


def describe_commands() -> str:
    """Return the text of `--help`."""
    known = {**{name: text for name, (_, text) in COMMANDS.items()}, **LIGHTNING}
    names = [*(name for name in _ORDER if name in known), *(name for name in known if name not in _ORDER)]
    program = called_as("")
    lines = [
        f"usage: {program} COMMAND [options]",
        "",
        "Shards of live cells: make them, train on them, embed them.",
        "",
        *(f"  {name:<14} {known[name]}" for name in names),
        "",
        _EXAMPLES.format(program=program),
    ]
    return "\n".join(lines).rstrip()


def run() -> None:
    """Run as a program: the entry point of the console script."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while Python itself starts or ends
        print("stopped.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
