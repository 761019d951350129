"""Request, checkpoint and shards to what the network will see in prediction; refuses what differs from its training.

Slices, crop, channels and shapes are those of the checkpoint. What the caller or the shards say otherwise is an error
that shows both, or, where it can be done and is asked for (`override`), a note that goes with the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynaclr_wds.contract import ExperimentRecord
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.fov_names import check_experiments, keep_experiments, keep_fovs
from dynaclr_wds.read.crop import plan_crop
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.train.checkpoint_content import Checkpoint, read_checkpoint, shown_shape

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to embed, with what, and where to."""

    ckpt: str
    out: str
    shards: str | None = None
    """None: those of the training."""
    experiments: Sequence[str] | None = None
    include_wells: Sequence[str] | None = None
    exclude_fovs: Sequence[str] | None = None
    limit: int | None = None
    """Most cells to embed."""
    z_range: Pair | None = None
    yx_patch_size: Pair | None = None
    final_yx_patch_size: Pair | None = None
    batch_size: int | None = None
    """None: that of the training, as for `num_workers`."""
    num_workers: int | None = None
    accelerator: str = "auto"
    devices: str = "1"
    precision: str = "32-true"
    overwrite: bool = False
    override: bool = False
    """Go on where caller or shards say otherwise than the checkpoint, if it can be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is read of each patch, and what the network sees of that; None is all there is."""

    z_range: Pair | None
    yx_patch_size: Pair | None
    final_yx_patch_size: Pair | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request that is settled."""

    asked: Request
    checkpoint: Checkpoint
    shards: ShardSet
    view: View
    experiments: tuple[ExperimentRecord, ...]
    """Those that cells are embedded of."""
    overridden: tuple[str, ...]
    """What differs from the training, and was asked for nevertheless."""


@dataclass(slots=True)
class _Differences:
    override: bool
    told: list[str] = field(default_factory=list)

    def add(self, what: str, instead: str) -> None:
        """Refuse a difference, or note it where the caller wants it."""
        if not self.override:
            raise ConfigError(f"{what}. {instead}, or add --override to embed nevertheless.")
        self.told.append(what)


def settle(asked: Request) -> Job:
    """Read the checkpoint, open the shards, and check that they fit each other and what is asked.

    Raises
    ------
    CheckpointError
        The checkpoint can't be used.
    ConfigError, ValueError
        What is asked, or what the shards hold, is not what the network was trained on.
    """
    checkpoint = read_checkpoint(asked.ckpt)
    differences = _Differences(asked.override)
    view = settle_view(asked, checkpoint, differences)
    shards = open_shards(asked, checkpoint)
    check_experiments(asked.experiments or (), shards.experiments, "experiments")
    job = Job(
        asked=asked,
        checkpoint=checkpoint,
        shards=shards,
        view=view,
        experiments=tuple(choose_experiments(asked, shards)),
        overridden=(),
    )
    check_seen(job, differences)
    return Job(**{name: getattr(job, name) for name in Job.__slots__} | {"overridden": tuple(differences.told)})


def settle_view(asked: Request, checkpoint: Checkpoint, differences: _Differences) -> View:
    """Take slices and crop from the checkpoint; refuse what the caller says otherwise."""
    seen, data = checkpoint.seen, checkpoint.data
    read = sorted({shape[2:] for shape in seen.read})
    one_size = read[0] if len(read) == 1 else None
    final = _pair(data.get("final_yx_patch_size"))
    trained = {  # setting, and what it came to
        "z_range": (_pair(data.get("z_range")), seen.z_range),
        "yx_patch_size": (_pair(data.get("yx_patch_size")) or one_size, one_size),
        "final_yx_patch_size": (final, final or one_size),
    }
    settled: dict[str, Pair | None] = {}
    for name, (setting, effect) in trained.items():
        given = getattr(asked, name)
        settled[name] = setting
        if given is not None and given != effect:
            shown = f"{effect[0]} {effect[1]}" if effect else " or ".join(map(str, read))
            what = f"--{name} {given[0]} {given[1]}, but {checkpoint.path} was trained on {shown}"
            differences.add(what, "Leave the option out to embed as in training")
            settled[name] = given
    return View(**settled)


def open_shards(asked: Request, checkpoint: Checkpoint) -> ShardSet:
    """Open the shards that are asked for, or those of the training."""
    folder = asked.shards or checkpoint.seen.folder
    if asked.shards is None and not Path(folder).is_dir():
        raise ConfigError(
            f"{checkpoint.path} was trained on the shards in {folder}, which are not there any more. Give --shards "
            "FOLDER."
        )
    return ShardSet.open(folder, verify=False)  # the DataModule verifies the set when it opens it


def choose_experiments(asked: Request, shards: ShardSet) -> list[ExperimentRecord]:
    """List the experiments that cells are embedded of."""
    fovs = shards.manifest.fovs
    keep = keep_fovs(fovs, asked.include_wells, asked.exclude_fovs)
    keep &= keep_experiments(fovs, asked.experiments or shards.experiments)
    names = {fov.experiment for fov, kept in zip(fovs, keep, strict=True) if kept}
    return [e for e in shards.manifest.experiments if e.name in names]


def check_seen(job: Job, differences: _Differences) -> None:
    """Check that patches hold what those of the training held: slices, shapes, and channels by name.

    Raises
    ------
    ConfigError
        They don't. A number of channels or planes that the network never saw can't be overridden.
    """
    seen, shards, view = job.checkpoint.seen, job.shards, job.view
    crop = plan_crop(shards, view.z_range, view.yx_patch_size, job.asked.experiments)
    where = f"{job.checkpoint.path} was trained on"
    for e in job.experiments:
        shape = shown_shape(crop.shape(e.shape), view.final_yx_patch_size)
        known = sorted({s[:2] for s in seen.shown})
        if shape[:2] not in known:
            raise ConfigError(
                f"{e.name!r} in {shards.root} has patches of (channels, planes) = {shape[:2]}, {where} "
                f"{' or '.join(map(str, known))}. Choose other --experiments, or build shards with the same source "
                "channels and z_range."
            )
        if shape not in seen.shown:
            differences.add(
                f"{e.name!r} in {shards.root} gives patches of (C, Z, Y, X) = {shape}, {where} "
                f"{' or '.join(map(str, seen.shown))}",
                "Build shards with the same yx_patch_size",
            )
        for place, name in enumerate(e.source_channel):
            if name not in seen.channels[place]:
                differences.add(
                    f"Channel {place} of {e.name!r} in {shards.root} is {name!r}, {where} "
                    f"{' or '.join(map(repr, seen.channels[place]))} there",
                    "Give shards with the same channels in the same order",
                )
    if view.z_range is None and shards.z_range != seen.z_range:
        differences.add(
            f"{shards.root} holds the slices {shards.z_range} of the plates, {where} {seen.z_range}",
            "Build shards with the same z_range",
        )


def _pair(value: Any) -> Pair | None:
    return None if value is None else (int(value[0]), int(value[1]))
