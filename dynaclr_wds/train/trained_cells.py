"""A checkpoint's split against the one at hand: notices cells that were trained on among those to validate on.

What a training used is told by the names of fields of view, which the checkpoint holds, so it is known of other shards
too. Where a label was split, fields of view are on both sides, and lineages are told apart by splitting them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.errors import CheckpointError, ConfigError
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.split import Side
from dynaclr_wds.split_config import EXPERIMENTS, FOVS, SplitConfig, parse_split
from dynaclr_wds.words import count_of

if TYPE_CHECKING:
    from dynaclr_wds.train.engine import ContrastiveModule

_CHOOSING = (*SplitConfig.__dataclass_fields__, "include_wells", "exclude_fovs")
"""Arguments of the DataModule that say which cells are on which side."""
_LISTED = 3

_Places = Mapping[str, Sequence[str]]
"""Experiment → its fields of view, `row/col/fov`."""


def compare_splits(module: ContrastiveModule, content: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Compare what is validated on with what a checkpoint was trained on and held out.

    Parameters
    ----------
    module
        Attached to a Trainer whose data are set up.
    content
        What the checkpoint says under `CONTENT_KEY`.
    saved
        Arguments of the DataModule that it was trained with.

    Raises
    ------
    ConfigError
        `validate` would run on cells that the checkpoint was trained on, and `module.validates_trained_cells` is not
        set. Where it is, and where only other cells are held out, it is a warning.
    CheckpointError
        The checkpoint doesn't say which fields of view were trained on.
    """
    trainer = module.trainer
    data = trainer.datamodule  # type: ignore[attr-defined]
    then = content.get("shards", {}).get("experiments")
    if not isinstance(data, MultiExperimentDataModule) or data.sides is None or not then or not saved:
        return
    ckpt = trainer.ckpt_path or "the checkpoint"
    if trained := _describe_trained(data, _list_places(then, "trained_fovs", ckpt), saved):
        told = f"{trained[0]} that {ckpt} was trained on: {trained[1]}. {_describe_way(saved, data)}"
        if trainer.state.fn == TrainerFn.VALIDATING and not module.validates_trained_cells:
            raise ConfigError(f"{told}, or add --override to validate on them nevertheless.")
        rank_zero_warn(f"{told}.")
    elif other := _describe_other(data, _list_places(then, "held_out_fovs", ckpt), saved):
        rank_zero_warn(
            f"{ckpt} held out {other[0]} in training, but now {other[1]} would be validated on: the metrics are of "
            f"other cells. {_describe_way(saved, data)}."
        )


def _list_places(experiments: Mapping[str, Mapping[str, Any]], key: str, ckpt: object) -> _Places:
    if any(key not in entry for entry in experiments.values()):
        raise CheckpointError(
            f"{ckpt}: does not say the {key} of its experiments, so it is damaged or of another version. Train anew."
        )
    return {name: entry[key] for name, entry in experiments.items()}


def _describe_trained(
    data: MultiExperimentDataModule, places: _Places, saved: Mapping[str, Any]
) -> tuple[str, str] | None:
    """Say how many fields of view to validate on were trained on, and which; None where none was."""
    assert data.sides is not None
    assert data.shard_set is not None
    shards, val = data.shard_set, data.sides.val
    both, every = (find_common_fovs(val, side, shards) for side in (_find_trained(shards, places, saved), val))
    if not both.any():
        return None
    hold = "holds" if both.sum() == 1 else "hold"
    count = f"{both.sum():,} of the {count_of(int(every.sum()), 'field')} of view to validate on {hold} cells"
    return count, _name_places(Side(fovs=both).list_fovs(shards.manifest.fovs))


def _describe_other(
    data: MultiExperimentDataModule, places: _Places, saved: Mapping[str, Any]
) -> tuple[str, str] | None:
    """Say what was held out in training and what is now; None where it is the same."""
    assert data.sides is not None
    assert data.shard_set is not None
    now = data.sides.val.list_fovs(data.shard_set.manifest.fovs)
    told = _describe_held(parse_split(saved), places), _describe_held(data.holding_out, now)
    return told if told[0] != told[1] else None


def _find_trained(shards: ShardSet, places: _Places, saved: Mapping[str, Any]) -> Side:
    """Find the cells of a shard set that were trained on, by the names of their fields of view."""
    known = {(experiment, name) for experiment, names in places.items() for name in names}
    fovs = np.array([(fov.experiment, fov.fov_name) in known for fov in shards.manifest.fovs], bool)
    asked = parse_split(saved)
    if asked.split in (EXPERIMENTS, FOVS):
        return Side(fovs=fovs)
    try:
        again = shards.plan_split(asked, saved.get("include_wells"), saved.get("exclude_fovs"))
    except ValueError:  # other shards, where the label or a name is absent
        return Side(fovs=fovs)
    return replace(again.train, fovs=fovs)


def find_common_fovs(one: Side, other: Side, shards: ShardSet) -> Bool[np.ndarray, " f"]:
    """Find the fields of view in which two sides have a cell in common."""
    both = one.fovs & other.fovs
    masks = [side.lineages for side in (one, other) if side.lineages is not None]
    if not masks:
        return both
    lineage, fov = shards.arrays["obs_lineage"], shards.arrays["obs_fov"]
    found = np.zeros(len(both), bool)
    found[fov[np.logical_and.reduce(masks)[lineage]]] = True
    return both & found


def _describe_way(saved: Mapping[str, Any], data: MultiExperimentDataModule) -> str:
    """Say which options choose cells as the training did; without a full stop."""
    options = " ".join(
        f"--data.{name} {_write(saved.get(name))}"
        for name in _CHOOSING
        if _plain(saved.get(name)) != _plain(data.hparams.get(name))
    )
    if not options:
        return "The options are those of the training, but the shards are others: hold out other cells"
    return f"To hold out what the training did, give {options}"


def _write(value: Any) -> str:
    """Write a value as it is typed after an option."""
    if isinstance(value, list | tuple):
        return f"'[{', '.join(map(str, value))}]'" if value else "null"
    return f"'{json.dumps(value)}'" if isinstance(value, Mapping) else "null" if value is None else str(value)


def _plain(value: Any) -> Any:
    return list(value) or None if isinstance(value, list | tuple) else value


def _describe_held(asked: SplitConfig, places: _Places) -> str:
    """Say what is held out: by its fields of view, or by the values of a label."""
    return _name_places(places) if asked.split in (EXPERIMENTS, FOVS) else str(asked)


def _name_places(places: _Places) -> str:
    """Name experiments with some of their fields of view, and how many these are."""
    named = [f"{experiment} ({_list_some(sorted(fovs))})" for experiment, fovs in sorted(places.items()) if fovs]
    return ", ".join(named) if named else "nothing"


def _list_some(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
