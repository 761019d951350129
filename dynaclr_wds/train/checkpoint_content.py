"""Checkpoints to what prediction needs: how the network was made, and what data it saw. docs/CHECKPOINTS.md lists it.

Written: plain data beside Lightning's own (`describe_training`). Read: `read_checkpoint`, which loads no pickled
objects and refuses a file that is damaged, of somebody else, or of another version, before anything is made of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.describe import NotDescribedError, describe, list_undescribed, make_modules
from dynaclr_wds.errors import CheckpointError, ConfigError
from dynaclr_wds.plan.channels import list_positions
from dynaclr_wds.read.crop import Shape, plan_crop
from dynaclr_wds.set_versions import describe_version
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.storage.location import name_place
from dynaclr_wds.train.checkpoint_files import load_plain
from dynaclr_wds.transforms.batch import shown_shape

if TYPE_CHECKING:
    from dynaclr_wds.train.engine import ContrastiveModule

CONTENT_KEY = "dynaclr_wds"
"""Key of a checkpoint under which this module writes."""

CONTENT_VERSION = 1
"""Rises when what is under `CONTENT_KEY` changes its meaning."""

PACKAGE = "dynaclr-wds"

_MODULE = "dynaclr_wds.train.engine.ContrastiveModule"
_DATA = "dynaclr_wds.datamodule.MultiExperimentDataModule"
_PYTHON = (
    "Embed from Python: make module and data as in training, and call Trainer.predict with "
    "dynaclr_wds.train.EmbeddingWriter."
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the network saw in training, of all experiments of its shards."""

    folder: str
    """Absolute path of the shards."""
    config_hash: str
    z_range: tuple[int, int]
    """Slices of the plates' stack."""
    channels: tuple[tuple[str, ...], ...]
    """Names that each position of the C axis has."""
    read: tuple[Shape, ...]
    """Shapes of patches as they are read, each once."""
    shown: tuple[Shape, ...]
    """Shapes as the network sees them, after the last crop, each once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint of ours, read."""

    path: str
    sha256: str
    package: str
    """Version of this package that wrote it."""
    epoch: int
    step: int
    module: Mapping[str, Any]
    """Arguments of `ContrastiveModule`, objects as descriptions."""
    data: Mapping[str, Any]
    """Arguments of `MultiExperimentDataModule`, objects as descriptions."""
    seen: Seen
    weights: Mapping[str, Tensor]


def describe_training(module: ContrastiveModule) -> dict[str, Any]:
    """Return what a checkpoint of ours holds beside Lightning's own: plain data."""
    data = module.trainer.datamodule  # type: ignore[attr-defined]
    content: dict[str, Any] = {
        "version": CONTENT_VERSION,
        "package": version(PACKAGE),
        "module": _name(module),
        "data": None if data is None else _name(data),
    }
    if module.started_from is not None:
        content["init_from"] = asdict(module.started_from)
    if isinstance(data, MultiExperimentDataModule) and data.shard_set is not None:
        content["shards"] = _describe_shards(data, data.shard_set)
    return content


def _describe_shards(data: MultiExperimentDataModule, shards: ShardSet) -> dict[str, Any]:
    crop = plan_crop(shards, data.z_range, data.yx_patch_size)
    fovs, sides = shards.manifest.fovs, data.sides
    held_out = {} if sides is None else sides.held_out_fovs(fovs)
    trained = {} if sides is None else sides.train.list_fovs(fovs)
    return {
        "folder": name_place(shards.root),
        "config_hash": shards.manifest.config_hash,
        **describe_version(shards.manifest),
        "z_range": list(data.z_range or shards.z_range),
        "experiments": {
            e.name: {
                "channels": list_positions(e.source_channel, data.channels_per_sample),
                "stored": list(e.shape),
                "read": list(crop.shape(e.shape)),
                "shown": list(shown_shape(crop.shape(e.shape), data, data.channels_per_sample)),
                "trained_fovs": trained.get(e.name, []),
                "held_out_fovs": held_out.get(e.name, []),
            }
            for e in shards.manifest.experiments
        },
    }


def warn_of_undescribed(module: ContrastiveModule) -> None:
    """Warn, when training starts, of objects that its checkpoints will not be able to make again."""
    trainer = module.trainer
    data = trainer.datamodule  # type: ignore[attr-defined]
    missing = list_undescribed(module.hparams)
    if isinstance(data, MultiExperimentDataModule):
        missing |= {n: c for n, c in list_undescribed(data.hparams).items() if n == "normalizations"}
    if missing and trainer.checkpoint_callbacks:
        what = ", ".join(f"{name} ({kind})" for name, kind in missing.items())
        rank_zero_warn(
            f"The checkpoints will not say how to make {what}: made in Python, of a class that doesn't keep its "
            "arguments. Weights are saved, but `dynaclr-wds predict` can't use them, and load_from_checkpoint needs "
            f"{', '.join(f'{name}=…' for name in missing)}. Derive the class from dynaclr_wds.describe.Described, or "
            "give its class_path and init_args in place of the object."
        )


def warn_of_other_data(module: ContrastiveModule, saved: Mapping[str, Any]) -> None:
    """Warn where the data that a checkpoint goes on with are shown to the network in another way than before.

    Parameters
    ----------
    module
        Attached to a Trainer.
    saved
        Arguments of the DataModule that the checkpoint was trained with.
    """
    data = module.trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, MultiExperimentDataModule) or not saved:
        return
    for name in ("z_range", "yx_patch_size", "final_yx_patch_size", "final_z", "z_reduction", "normalizations"):
        try:
            then, now = (_settled(name, arguments.get(name)) for arguments in (saved, data.hparams))
        except (NotDescribedError, ConfigError):  # can't be compared
            continue
        if then != now:
            rank_zero_warn(
                f"data.{name}={now}, but the checkpoint was trained with {then}. If you don't mean it, give "
                f"--data.{name} '{json.dumps(then)}', or with -c the config.yaml in the training's log folder."
            )


def _settled(name: str, value: Any) -> Any:
    """Write alike what means the same: another path to a class, or defaults that are left out."""
    return describe(make_modules(value, name) if name == "normalizations" else value)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint that `ContrastiveModule` was saved in, with the DataModule of this package.

    Tensors and plain data are loaded, on the CPU; a file with other pickled objects is refused.

    Raises
    ------
    CheckpointError
        There is no such file, it can't be read, isn't ours, is of another version, or lacks what prediction needs.
    """
    raw, sha256 = load_plain(path)
    content = raw.get(CONTENT_KEY)
    if not isinstance(content, Mapping) or not isinstance(raw.get("state_dict"), Mapping):
        raise CheckpointError(
            f"{path}: is not a checkpoint of dynaclr_wds (it has the keys {sorted(map(str, raw))}). Give one that "
            "`dynaclr-wds fit` saved."
        )
    if content.get("version") != CONTENT_VERSION:
        raise CheckpointError(
            f"{path}: was saved by dynaclr-wds {content.get('package')}, version {content.get('version')!r} of what a "
            f"checkpoint holds; this is dynaclr-wds {version(PACKAGE)}, which reads version {CONTENT_VERSION}. Use "
            "that release."
        )
    _check_classes(content, str(path))
    try:
        return Checkpoint(
            path=str(path),
            sha256=sha256,
            package=_typed(content["package"], str),
            epoch=_typed(raw["epoch"], int),
            step=_typed(raw["global_step"], int),
            module=_typed(raw["hyper_parameters"], dict),
            data=_typed(raw["datamodule_hyper_parameters"], dict),
            seen=_parse_seen(_typed(content["shards"], dict)),
            weights=raw["state_dict"],
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path}: lacks what prediction needs, or is damaged ({type(error).__name__}: {error}). Give another one."
        ) from error


def _check_classes(content: Mapping[str, Any], path: str) -> None:
    for what, ours in (("module", _MODULE), ("data", _DATA)):
        if content.get(what) != ours:
            found = f"with {content[what]}" if content.get(what) else "without a DataModule"
            raise CheckpointError(
                f"{path}: was trained {found}, not with {ours.rpartition('.')[2]}, so what was done to its data is not "
                f"known here. {_PYTHON}"
            )


def _parse_seen(record: Mapping[str, Any]) -> Seen:
    experiments = [_typed(e, dict) for e in _typed(record["experiments"], dict).values()]
    most = max(len(e["channels"]) for e in experiments)
    names = [
        dict.fromkeys(_typed(name, str) for e in experiments if c < len(e["channels"]) for name in e["channels"][c])
        for c in range(most)
    ]
    low, high = record["z_range"]
    return Seen(
        folder=_typed(record["folder"], str),
        config_hash=_typed(record["config_hash"], str),
        z_range=(_typed(low, int), _typed(high, int)),
        channels=tuple(tuple(n) for n in names),
        read=tuple(dict.fromkeys(_shape(e["read"]) for e in experiments)),
        shown=tuple(dict.fromkeys(_shape(e["shown"]) for e in experiments)),
    )


def check_weights(module: nn.Module, weights: Mapping[str, Any], where: str) -> None:
    """Check that weights are those of a module: the same names, with the same shapes.

    Raises
    ------
    CheckpointError
        They are not; says how many, and which come first.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    lacking = [f"{name} {own[name]} is missing" for name in own if name not in given]
    beyond = [f"{name} {given[name]} is not in the network" for name in given if name not in own]
    other = [f"{name} is {given[name]}, not {own[name]}" for name in own if name in given and given[name] != own[name]]
    wrong = [*other, *lacking, *beyond]
    if wrong:
        raise CheckpointError(
            f"The weights of {where} are not those of the network that was made: {len(wrong)} of {len(own)} don't fit "
            f"({'; '.join(wrong[:3])}{'; …' if len(wrong) > 3 else ''}). Make the network as it was in training."
        )


def _shape(values: Any) -> Shape:
    c, z, y, x = (_typed(value, int) for value in values)
    return c, z, y, x


def _typed(value: Any, kind: type[_T]) -> _T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r:.100} is no {kind.__name__}")
    return value


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
