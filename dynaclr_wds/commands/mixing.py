"""Measures how well batches would be mixed: plans epochs of streaming, exact mode and an ideal draw, without pixels.

What `dynaclr-wds shuffle` prints; docs/SAMPLING.md defines every number.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from dynaclr_wds.commands.tables import WIDTH, Mode, format_modes
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.audit.bytes_read import account_bytes
from dynaclr_wds.plan.audit.expected_pairs import UniformDraw
from dynaclr_wds.plan.audit.ledger import Ledger
from dynaclr_wds.plan.audit.quality import QualityMeter, sample_ideal
from dynaclr_wds.plan.audit.verdict import judge
from dynaclr_wds.plan.config import PositiveRule, SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.plan.streaming.window import parse_window
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.split_config import SplitConfig, parse_split
from dynaclr_wds.storage.options import parse_words
from dynaclr_wds.words import count_of
from dynaclr_wds.yaml_limits import check_yaml

_SAMPLING = tuple(f.name for f in fields(SamplingConfig))
_LABELS = ("batch_group_by", "stratify_by")
_SPLIT = tuple(f.name for f in fields(SplitConfig))
_STORAGE = ("storage_options", "cache_dir")
_PLACES = ("include_wells", "exclude_fovs")
_POSITIVES = {
    "positive": "kind",
    "positive_match_columns": "match_columns",
    "positive_channel": "channel",
    "tau_direction": "tau_direction",
    "positive_relatives": "relatives",
}
_OURS = (
    *("shards", "tau_range", "window_bytes", "num_streams", *_PLACES, *_SPLIT),
    *(*_LABELS, *_POSITIVES, "channels_per_sample", *_STORAGE),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to measure."""

    index: PlanIndex
    config: SamplingConfig
    window_bytes: int | None
    num_streams: int | None
    epochs: int
    first_epoch: int = 0
    most_batches: int | None = None
    """Batches of an epoch that are planned, where it has more; None = all."""


def parse_request(values: Mapping[str, Any]) -> Request:
    """Open the shards and check what is asked of them.

    Raises
    ------
    ValueError
        A value or name that isn't allowed; the message says what is.
    """
    if "shards" not in values:
        raise ValueError("no shards: name the folder, or give a config with `data.shards`.")
    if values["epochs"] < 1:
        raise ValueError(f"epochs={values['epochs']} must be >= 1.")
    options = values.get("storage_options")
    shards = ShardSet.open(
        values["shards"],
        storage_options=parse_words(options) if isinstance(options, list) else options,
        cache_dir=values.get("cache_dir"),
    )
    index = _choose_anchors(shards, values)
    given = {name: values[name] for name in _SAMPLING if name in values}
    for name in _NUMBERS:
        if name in given:  # pairs from the command line, a mapping from a config
            given[name] = _to_floats(given[name] if isinstance(given[name], Mapping) else dict(given[name]))
    for name in ("leaky", "temporal_window_hours", "temporal_global_fraction", "tau_decay_rate"):
        if name in given:
            given[name] = float(given[name])
    return Request(
        index=index,
        config=SamplingConfig(**given),
        window_bytes=parse_window(values.get("window_bytes"), index.stored_bytes),
        num_streams=values.get("num_streams"),
        epochs=values["epochs"],
    )


def _choose_anchors(shards: ShardSet, values: Mapping[str, Any]) -> PlanIndex:
    """List the anchors of the experiments that are named, or of what training would use."""
    places = values.get("include_wells"), values.get("exclude_fovs")
    split = shards.plan_split(parse_split(values), *places)
    named = values.get("experiments")
    if not named:
        split.check(str(shards.root))
    rule = {own: values[name] for name, own in _POSITIVES.items() if name in values}
    if "match_columns" in rule:
        rule["match_columns"] = tuple(rule["match_columns"])
    return shards.plan_index(
        named or shards.experiments,
        tuple(values.get("tau_range") or shards.manifest.tau_range_hours),
        *places,
        **{name: tuple(values[name] or ()) for name in _LABELS if name in values},
        side=None if named else split.train,
        positives=PositiveRule(**rule),
        channels_per_sample=values.get("channels_per_sample"),
    )


def measure_modes(asked: Request) -> list[Mode]:
    """Measure streaming (where a window is given), exact mode, and an ideal draw of the first's composition."""
    uniform = UniformDraw(asked.index)
    modes: list[Mode] = []
    if asked.window_bytes is not None:
        streaming = FlexibleBatchSampler(
            asked.index, asked.config, window_bytes=asked.window_bytes, num_streams=asked.num_streams
        )
        modes += measure("streaming", streaming, uniform, asked, ideal=True)
    exact = measure("exact", FlexibleBatchSampler(asked.index, asked.config), uniform, asked, ideal=not modes)
    return [*modes[:1], *exact, *modes[1:]]


def measure(
    name: str, sampler: FlexibleBatchSampler, uniform: UniformDraw, asked: Request, *, ideal: bool
) -> list[Mode]:
    """Measure one way of reading and, if asked for, an ideal draw of its composition."""
    index = asked.index
    config = sampler.config.of_epoch(asked.first_epoch) if asked.epochs == 1 else sampler.config
    seconds, traffic = 0.0, []
    ledgers = [Ledger(index, config) for _ in range(1 + ideal)]
    meters = [QualityMeter(uniform, config) for _ in ledgers]
    for epoch in range(asked.first_epoch, asked.first_epoch + asked.epochs):
        sampler.set_epoch(epoch)
        for number in _choose_batches(sampler, asked.most_batches):
            begun = time.perf_counter()
            plan = sampler.plan(number)
            seconds += time.perf_counter() - begun
            plans = [plan, *(sample_ideal(uniform, config, [plan], epoch) if ideal else ())]
            for one, ledger, meter in zip(plans, ledgers, meters, strict=True):
                ledger.add(one)
                meter.add(one)
        schedules = [s for s in map(sampler.blocks, range(sampler.num_streams)) if s is not None]
        if schedules:
            traffic.append(account_bytes(index, schedules, sampler.global_batches // sampler.num_streams))
    mean = {key: float(np.mean([t[key] for t in traffic])) for key in (traffic[0] if traffic else ())}
    reports = [ledger.report(streaming) for ledger, streaming in zip(ledgers, (mean, {}), strict=False)]
    ms = 1000 * seconds / max(reports[0].batches, 1)
    modes = [
        Mode(name=n, report=report, quality=meter.quality(), ms_per_batch=ms)
        for n, report, meter in zip((name, "ideal"), reports, meters, strict=False)
    ]
    sampler.set_epoch(asked.first_epoch)
    whole = asked.epochs == 1 and reports[0].batches == sampler.global_batches
    notes = judge(sampler, modes[0].report, modes[0].quality, whole=whole)
    return [replace(modes[0], notes=notes), *modes[1:]]


def _choose_batches(sampler: FlexibleBatchSampler, most: int | None) -> Sequence[int]:
    return range(sampler.global_batches) if most is None else sampler.sample_batches(most).tolist()


def describe(asked: Request, modes: Sequence[Mode]) -> dict[str, Any]:
    """Return plain values, for JSON."""
    return {
        "anchors": len(asked.index.row),
        "strata": len(asked.index.strata),
        "bytes_stored": asked.index.stored_bytes,
        "window_bytes": asked.window_bytes,
        "num_streams": asked.num_streams,
        "epochs": asked.epochs,
        "sampling": {name: getattr(asked.config, name) for name in _SAMPLING},
        "modes": {
            m.name: {
                "quality": m.quality.to_dict(),
                "report": m.report.to_dict(),
                "ms_per_batch": m.ms_per_batch,
                "notes": [{"level": note.level, "text": note.text} for note in m.notes],
            }
            for m in modes
        },
    }


def print_modes(shards: str, asked: Request, modes: Sequence[Mode]) -> None:
    """Print the tables."""
    console = Console(width=None if sys.stdout.isatty() else max(WIDTH, 130), highlight=False)
    console.print(_headline(shards, asked, modes))
    console.print()
    console.print(format_modes(modes))


def _headline(shards: str, asked: Request, modes: Sequence[Mode]) -> str:
    config, index = asked.config, asked.index
    experiments = count_of(len({s.experiment for s in index.strata}), "experiment")
    what = [f"batch of {config.batch_size}", f"seed {config.seed}"]
    what += [f"leak {config.leaky:g}"] if config.leaky else []
    what += [f"{index.value_label}s balanced"] if config.condition_balanced else []
    if config.temporal_enrichment:
        share = f"{1 - config.temporal_global_fraction:.0%}"
        what.append(f"{share} of a batch within ±{config.temporal_window_hours:g} h of one time after infection (HPI)")
    if asked.window_bytes is not None:
        what.append(f"window {asked.window_bytes / index.stored_bytes:.1%} of the bytes")
    batches = count_of(modes[0].report.batches, "batch", "batches")
    anchors = f"{count_of(len(index.row), 'anchor')} (samples with a positive) of {experiments}"
    return f"[bold]{shards}[/]: {anchors}; {batches}\n{', '.join(what)}"


def merge_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill up what was given on the command line from a config's `data:` section."""
    if "config" not in given:
        return dict(given)
    try:
        text = Path(given["config"]).read_text(encoding="utf-8")
        check_yaml(text, given["config"])
        document = yaml.safe_load(text)
    except ConfigError:
        raise
    except (OSError, yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{given['config']}: can't be read as YAML ({' '.join(str(error).split())}). Give the config of a training."
        ) from error
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, dict):
        raise ValueError(f"{given['config']}: has no `data:` section. Give the config of a training.")
    data = {**data, **{name: [] for name in _LABELS if name in data and data[name] is None}}  # null: by nothing
    known = {key: value for key, value in data.items() if key in (*_SAMPLING, *_OURS) and value is not None}
    for key, value in known.items():
        _check_kind(f"{given['config']}: data.{key}", key, value)
    return {key: value for key, value in {**known, **given}.items() if value not in _NULL}


_NULL: tuple[Any, ...] = (None, ["null"])
"""What takes back a value of the config."""
_WEIGHTS = ("experiment_weights", "group_weights")
_NUMBERS = (*_WEIGHTS, "condition_ratio", "stratify_ratio")
_TEXTS = ("val_experiments", "val_fovs", "val_values", "positive_match_columns", *_LABELS)
_WORDS = ("shards", "split", "window_bytes", "cache_dir", *(name for name in _POSITIVES if name not in _TEXTS))


def _to_floats(shares: Mapping[Any, Any]) -> dict[Any, Any]:
    """Make the shares floats, those of every epoch of a schedule too; `1e-1` in YAML is text."""
    return {
        int(key) if isinstance(value, Mapping) else key: _to_floats(value)
        if isinstance(value, Mapping)
        else float(value)
        for key, value in shares.items()
    }


def _is_shares(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and _is_number(v) for k, v in value.items())


def _check_kind(where: str, key: str, value: Any) -> None:
    """Check that a value of a config is of the kind that its option has; YAML reads `1e-1` as text."""
    if key in ("batch_size", "seed", "num_streams", "split_seed"):
        good = isinstance(value, int) and not isinstance(value, bool)
    elif key in ("leaky", "temporal_window_hours", "temporal_global_fraction", "tau_decay_rate", "split_ratio"):
        good = _is_number(value)
    elif key in _NUMBERS:
        scheduled = key in _WEIGHTS and isinstance(value, dict) and all(str(k).isdigit() for k in value)
        good = all(map(_is_shares, value.values())) if scheduled else _is_shares(value)
    elif key in _TEXTS:
        good = _is_texts(value)
    elif key in _PLACES:
        good = _is_texts(value) or (isinstance(value, dict) and all(map(_is_texts, value.values())))
    elif key == "tau_range":
        good = isinstance(value, list) and len(value) == 2 and all(type(item) in (int, float) for item in value)
    elif key == "channels_per_sample":
        good = type(value) is int or _is_texts(value)
    elif key == "storage_options":
        good = isinstance(value, dict)
    elif key in _WORDS:
        good = isinstance(value, str) or (key == "window_bytes" and _is_number(value))
    else:
        good = isinstance(value, bool)
    if not good:
        shown = "…" if key == "storage_options" else f"{value!r:.100}"  # it may hold keys
        raise ValueError(f"{where}={shown} is not what the option --{key} takes. Correct it; --help says more.")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
