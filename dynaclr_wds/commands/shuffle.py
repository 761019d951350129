"""Shards to a verdict on the sampling: `dynaclr-wds shuffle SHARDS` plans an epoch without reading a pixel.

It prints how well batches would be mixed in streaming, in exact mode and in an ideal draw of the same composition. The
options are those of `MultiExperimentDataModule`, or its config's. This module is the command line, and light; what it
prints is measured in `dynaclr_wds.commands.mixing`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.program import CommandParser, called_as, run_command

_EPILOG = """examples:
  %(prog)s shards                              # exact mode, the DataModule's defaults
  %(prog)s -c configs/fit.yaml                 # what this config would train on
  %(prog)s shards --window_bytes 10%% --num_streams 4 # would streaming mix as well?
  %(prog)s shards --leaky 0.2 --temporal_enrichment --json | jq .modes.exact.quality

Reads the manifest and the index, no shard. docs/SAMPLING.md defines every number.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for a mistake in what was asked."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    given = vars(make_parser().parse_args(argv))
    from dynaclr_wds.commands.mixing import describe, measure_modes, merge_config, parse_request, print_modes

    values = merge_config(given)
    asked = parse_request(values)
    modes = measure_modes(asked)
    if given["json"]:
        print(json.dumps(describe(asked, modes), indent=1, allow_nan=False))
    else:
        print_modes(values["shards"], asked, modes)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; every option is absent from the result unless it is given."""
    parser = CommandParser(
        prog=called_as("shuffle"),
        usage="%(prog)s SHARDS [options]",
        description="Plan an epoch without reading a pixel, and show how well its batches are mixed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("shards", nargs="?", help="folder that `dynaclr-wds build` wrote")
    parser.add_argument("-c", "--config", help="config of a training; its `data:` section gives the options below")
    add = parser.add_argument_group("which cells").add_argument
    add("--experiments", nargs="+", metavar="NAME", help="draw from these (default: all but --val_experiments)")
    add("--val_experiments", nargs="+", metavar="NAME", help="leave these out, as training does")
    add("--include_wells", nargs="+", metavar="ROW/COL", help="draw from these wells only")
    add("--exclude_fovs", nargs="+", metavar="ROW/COL/FOV", help="leave these FOVs out")
    add(
        "--tau_range", nargs=2, type=float, metavar="H", help="least and most hours to the positive (default: as built)"
    )
    _add_batch_options(parser)
    add = parser.add_argument_group("how it is read").add_argument
    add("--window_bytes", metavar="BYTES", help="streaming: resident at a time, as 4G, 512M, or 10%% of what is used")
    add("--num_streams", type=int, help="streaming: logical streams (default: 8)")
    add = parser.add_argument_group("output").add_argument
    add("--epochs", type=int, default=1, help="epochs to plan, taken together (default: 1)")
    add("--json", action="store_true", default=False, help="print JSON instead of tables")
    return parser


def _add_batch_options(parser: argparse.ArgumentParser) -> None:
    default = SamplingConfig()
    add = parser.add_argument_group("what a batch holds").add_argument
    add("--batch_size", type=int, help=f"samples per step per rank (default: {default.batch_size})")
    for name, text in (
        ("experiment_aware", "each batch from one group"),
        ("condition_balanced", "stratify values in equal parts, or those of --condition_ratio"),
        ("temporal_enrichment", "most of a batch near one focal HPI"),
        ("relax_lineages", "streaming: accept a window too small for distinct lineages"),
    ):
        shown = str(getattr(default, name)).lower()
        add(f"--{name}", nargs="?", const=True, type=_flag, metavar="true|false", help=f"{text} (default: {shown})")
    add("--batch_group_by", nargs="*", metavar="LABEL", help="labels that make a group (default: experiment)")
    add("--stratify_by", nargs="*", metavar="LABEL", help="labels to balance in a batch (default: condition)")
    add("--leaky", type=float, help="fraction of a batch from other groups (default: 0)")
    for names, what, text in (
        (("--group_weights", "--experiment_weights"), "NAME=WEIGHT", "share of batches (default: by size)"),
        (("--stratify_ratio", "--condition_ratio"), "NAME=SHARE", "share of samples (default: equal)"),
    ):
        for name in names:
            add(name, nargs="+", type=_share, metavar=what, help=text)
    add("--temporal_window_hours", type=float, help="half-width of the focal window (default: 2)")
    add("--temporal_global_fraction", type=float, help="fraction from outside the focal window (default: 0.3)")
    add("--tau_decay_rate", type=float, help="decay of P(τ) (default: 2)")
    add("--seed", type=int, help="seed of the order and of all draws (default: 0)")


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _share(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=NUMBER, such as mock=2") from error
