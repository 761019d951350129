"""Command line to training: `python -m dynaclr_wds fit | validate -c CONFIG`, and commands of our own.

`fit` and `validate` are Lightning's: every argument of `ContrastiveModule`, `MultiExperimentDataModule` and `Trainer`
is an option and a key of the config. Commands in `COMMANDS` parse their own arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS: dict[str, tuple[str, str]] = {
    "predict": ("dynaclr_wds.commands.predict", "Embed cells with a trained network, as it was trained."),
    "shuffle": ("dynaclr_wds.commands.shuffle", "Show how well batches would be mixed, without reading a pixel."),
}
"""Name → (module with `main(argv: Sequence[str]) -> int`, one line of help)."""

DESCRIPTION = """Train on shards of live cells and embed them.

  python -m dynaclr_wds fit -c configs/fit.yaml
  python -m dynaclr_wds fit -c configs/fit.yaml --data.batch_size 256 --trainer.max_epochs 50
  python -m dynaclr_wds fit -c configs/fit.yaml --print_config      # what would run, defaults included
  python -m dynaclr_wds validate -c configs/fit.yaml --ckpt_path last.ckpt
  python -m dynaclr_wds predict --ckpt last.ckpt --out embeddings.parquet

Options given on the command line win over the config. `fit --help` lists them all: --model.* is the network
and its loss, --data.* what a batch holds, --trainer.* how it runs. Make shards first:

  python -m etl.build_shards experiments.yaml --out shards
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
    given = sys.argv[1:] if argv is None else argv
    if given and given[0] in COMMANDS:
        status: int = import_module(COMMANDS[given[0]][0]).main(given[1:])
        return status
    from dynaclr_wds.commands.lightning import leave_processes, run_lightning  # heavy: not for the commands above

    run_lightning(argv, description=describe_commands())
    leave_processes()
    return 0


def describe_commands() -> str:
    """Return the text of `--help`, the commands of our own included."""
    own = [f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([DESCRIPTION, *(["Also:", *own] if own else [])])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # also while the heavy imports are under way
        print("stopped.", file=sys.stderr)
        sys.exit(130)
