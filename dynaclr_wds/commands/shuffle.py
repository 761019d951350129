"""Shards to a verdict on the sampling: `dynaclr-wds shuffle SHARDS` plans an epoch without reading a pixel.

It prints how well batches would be mixed in streaming, in exact mode and in an ideal draw of the same composition. The
options are those of `MultiExperimentDataModule`, or its config's. This module is the command line, and light; what it
prints is measured in `dynaclr_wds.commands.mixing`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import get_args

from dynaclr_wds.errors import ConfigError, WindowError
from dynaclr_wds.plan.config import PositiveChannel, PositiveKind, PositiveRelatives, SamplingConfig, TauDirection
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
    from dynaclr_wds.plan.audit.window_offers import window_as_typed

    values = merge_config(given)
    try:
        asked = parse_request(values)
        with window_as_typed(values.get("window_bytes")):
            modes = measure_modes(asked)
    except WindowError as error:
        raise ConfigError(error.spell("--")) from error
    except ConfigError as error:  # options of a training are options of this command
        raise ConfigError(str(error).replace("--data.", "--")) from error
    if given["json"]:
        print(json.dumps(describe(asked, modes), indent=1, allow_nan=False))
    else:
        print_modes(values["shards"], asked, modes)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; every option is absent from the result unless it is given."""
    parser = CommandParser(
        prog=called_as("shuffle"),
        usage="%(prog)s [SHARDS] [options]",
        description="Plan an epoch without reading a pixel, and show how well its batches are mixed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("shards", nargs="?", help="folder that `dynaclr-wds build` wrote, or the URL of its copy")
    parser.add_argument("-c", "--config", help="config of a training; its `data:` section gives the options below")
    add = parser.add_argument_group("which cells").add_argument
    add("--experiments", nargs="+", metavar="NAME", help="draw from these (default: what training uses)")
    add("--split", metavar="KIND", help="leave out as a whole: experiments, fovs or a label (default: experiments)")
    add("--split_ratio", type=_ratio, metavar="SHARE", help="share of training, as 0.8, drawn by name")
    add("--split_seed", type=int, help="another seed draws another split (default: 0)")
    add("--val_experiments", nargs="+", metavar="NAME", help="leave these out, as training does")
    add("--val_fovs", nargs="+", metavar="EXPERIMENT/ROW/COL/FOV", help="with --split fovs: leave these out")
    add("--val_values", nargs="+", metavar="VALUE", help="with --split LABEL: leave these values out")
    add("--include_wells", nargs="+", metavar="ROW/COL", help="draw from these wells only, as A/1 or EXPERIMENT/A/1")
    add("--exclude_fovs", nargs="+", metavar="ROW/COL/FOV", help="leave these out, as A/1/0 or EXPERIMENT/A/1/0")
    add(
        "--tau_range", nargs=2, type=float, metavar="H", help="least and most hours to the positive (default: as built)"
    )
    _add_batch_options(parser)
    add = parser.add_argument_group("how it is read").add_argument
    add(
        "--window_bytes",
        metavar="BYTES",
        help="streaming: memory to use, as 4G, 512M, or 10%% of the shards' bytes; none = exact mode",
    )
    add("--num_streams", type=int, help="streaming: logical streams (default: 8)")
    add("--storage_options", nargs="+", metavar="KEY=VALUE", help="for shards in object storage, as endpoint=https://…")
    add("--cache_dir", metavar="FOLDER", help="for shards in object storage: where to keep their index on this machine")
    add = parser.add_argument_group("output").add_argument
    add("--epochs", type=int, default=1, help="epochs to plan, taken together (default: 1)")
    add("--json", action="store_true", default=False, help="print JSON instead of tables")
    return parser


def _add_batch_options(parser: argparse.ArgumentParser) -> None:
    default = SamplingConfig()
    add = parser.add_argument_group("what a batch holds").add_argument
    add("--batch_size", type=int, help=f"samples per step per rank (default: {default.batch_size})")
    for name, text in (
        ("experiment_aware", "each batch from one experiment"),
        ("condition_balanced", "conditions in equal parts, or those of --condition_ratio"),
        ("temporal_enrichment", "most of a batch near one time after infection (HPI)"),
        ("relax_lineages", "streaming: accept a window too small for distinct lineages"),
    ):
        shown = str(getattr(default, name)).lower()
        add(f"--{name}", nargs="?", const=True, type=_flag, metavar="true|false", help=f"{text} (default: {shown})")
    add("--batch_group_by", nargs="*", metavar="LABEL", help="labels in place of experiment (default: experiment)")
    add("--stratify_by", nargs="*", metavar="LABEL", help="labels in place of condition (default: condition)")
    add(
        "--channels_per_sample",
        type=int,
        metavar="K",
        help="channels of a sample, any K of those stored (default: all)",
    )
    add("--positive", choices=get_args(PositiveKind), help="what a positive is (default: temporal)")
    add("--positive_match_columns", nargs="+", metavar="LABEL", help="labels that a positive by columns shares")
    add("--positive_channel", choices=get_args(PositiveChannel), help="channels of the positive (default: same)")
    add("--tau_direction", choices=get_args(TauDirection), help="may a positive be earlier? (default: forward)")
    add("--positive_relatives", choices=get_args(PositiveRelatives), help="of whom? (default: lineage)")
    add("--leaky", type=float, help="fraction of a batch from other experiments (default: 0)")
    for names, what, text in (
        (("--group_weights", "--experiment_weights"), "NAME=WEIGHT", "share of batches (default: by size)"),
        (("--stratify_ratio", "--condition_ratio"), "NAME=SHARE", "share of samples (default: equal)"),
    ):
        for name in names:
            add(name, nargs="+", type=_share, metavar=what, help=text)
    add("--temporal_window_hours", type=float, help="hours to either side of that time (default: 2)")
    add("--temporal_global_fraction", type=float, help="fraction of a batch from other times (default: 0.3)")
    add("--tau_decay_rate", type=float, help="decay of P(τ) (default: 2)")
    add("--seed", type=int, help="seed of the order and of all draws (default: 0)")


def _ratio(text: str) -> float | None:
    return None if text.lower() in ("null", "none") else float(text)


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
