"""Request, checkpoint and shards to what the network will see in prediction; refuses what differs from its training.

Slices, crop, channels and shapes are those of the checkpoint. What the caller or the shards say otherwise is an error
that shows both, or, where it can be done and is asked for (`override`), a note that goes with the embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynaclr_wds.contract import ExperimentRecord
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.fov_names import check_experiments, keep_experiments, keep_fovs
from dynaclr_wds.plan.channels import list_positions
from dynaclr_wds.read.crop import Crop, Shape
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.storage.location import parse_place
from dynaclr_wds.train.checkpoint_content import Checkpoint, read_checkpoint
from dynaclr_wds.train.differences import Difference, refuse, tell_once
from dynaclr_wds.transforms.batch import shown_shape

Pair = tuple[int, int]

_LISTED = 3
_BY_STATISTICS = (
    "dynaclr_wds.transforms.NormalizeSampled",
    "dynaclr_wds.transforms.normalize.NormalizeSampled",
    "dynaclr_wds.transforms.NormalizePercentiles",
    "dynaclr_wds.transforms.percentiles.NormalizePercentiles",
)
"""Normalisations by stored statistics, unless their level is the patch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to embed, with what, and where to."""

    ckpt: str
    out: str | None = None
    """Table to write, or its URL; None: none, and `anndata` is given."""
    anndata: str | None = None
    """Folder of an AnnData to write."""
    shards: str | None = None
    """None: those of the training."""
    experiments: Sequence[str] | None = None
    include_wells: Sequence[str] | None = None
    exclude_fovs: Sequence[str] | None = None
    tracks: Sequence[str] | None = None
    """Names or tables of tracks, as `track_names` has them."""
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
    storage_options: Mapping[str, Any] | None = None
    """How object storage is reached; None: as in training, with keys from the environment."""
    cache_dir: str | None = None
    overwrite: bool = False
    override: bool = False
    """Go on where caller or shards say otherwise than the checkpoint, if it can be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is read of each patch, and what the network sees of that; None is all there is."""

    z_range: Pair | None
    yx_patch_size: Pair | None
    final_yx_patch_size: Pair | None
    final_z: int | None
    """This and the next are always those of the training."""
    z_reduction: Mapping[str, Any] | None


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
    view, differences = settle_view(asked, checkpoint)
    shards = open_shards(asked, checkpoint)
    check_experiments(asked.experiments or (), shards.experiments, "experiments")
    experiments = tuple(choose_experiments(asked, shards))
    job = Job(
        asked=asked,
        checkpoint=checkpoint,
        shards=shards,
        view=view if asked.yx_patch_size else read_no_more_than_shown(view, checkpoint, experiments),
        experiments=experiments,
        overridden=(),
    )
    differences = tell_once(list(find_differences(job)), differences)
    refuse(differences, asked.override)
    return replace(job, overridden=tuple(d.what for d in differences))


def settle_view(asked: Request, checkpoint: Checkpoint) -> tuple[View, list[Difference]]:
    """Take slices and crop from the checkpoint, or as the caller says; list where that is something else."""
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
    differences = []
    for name, (setting, effect) in trained.items():
        given = getattr(asked, name)
        settled[name] = setting
        if given is not None and given != effect:
            shown = f"{effect[0]} {effect[1]}" if effect else " or ".join(map(str, read))
            what = f"--{name} {given[0]} {given[1]}, but {checkpoint.path} was trained on {shown}"
            instead = "Leave the option out to embed as in training"
            differences.append(Difference(what=what, instead=instead, options=(name,)))
            settled[name] = given
    view = View(**settled, final_z=data.get("final_z"), z_reduction=data.get("z_reduction"))
    return view, differences


def read_no_more_than_shown(view: View, checkpoint: Checkpoint, experiments: Sequence[ExperimentRecord]) -> View:
    """Read the final crop alone where more is not stored, and nothing needs more: prediction does not augment."""
    final, read = view.final_yx_patch_size, view.yx_patch_size
    if final is None or read is None or not any(_is_smaller(e.shape, read) for e in experiments):
        return view
    modules = checkpoint.data.get("normalizations") or []
    return replace(view, yx_patch_size=final) if all(map(_is_by_statistics, modules)) else view


def _is_by_statistics(module: object) -> bool:
    """Whether a normalisation takes no value from the patch itself, so that its size plays no part."""
    if not isinstance(module, Mapping):
        return False
    of_patch = (module.get("init_args") or {}).get("level") == "patch"
    return str(module.get("class_path")) in _BY_STATISTICS and not of_patch


def open_shards(asked: Request, checkpoint: Checkpoint) -> ShardSet:
    """Open the shards that are asked for, or those of the training."""
    folder = parse_place(asked.shards or checkpoint.seen.folder, "--shards")
    if asked.shards is None and isinstance(folder, Path) and not folder.is_dir():
        raise ConfigError(
            f"{checkpoint.path} was trained on the shards in {folder}, which are not there any more. Give --shards "
            "FOLDER."
        )
    options, cache_dir = choose_storage(asked, checkpoint)
    # the DataModule verifies the set when it opens it
    return ShardSet.open(folder, verify=False, storage_options=options, cache_dir=cache_dir)


def choose_storage(asked: Request, checkpoint: Checkpoint) -> tuple[dict[str, Any] | None, str | None]:
    """Say how object storage is reached, and where indexes are kept: as asked for, else as in training."""
    trained = checkpoint.data.get("storage_options") or {}
    options = {**trained, **(asked.storage_options or {})}
    return options or None, asked.cache_dir or checkpoint.data.get("cache_dir")


def choose_experiments(asked: Request, shards: ShardSet) -> list[ExperimentRecord]:
    """List the experiments that cells are embedded of."""
    fovs = shards.manifest.fovs
    keep = keep_fovs(fovs, asked.include_wells, asked.exclude_fovs)
    keep &= keep_experiments(fovs, asked.experiments or shards.experiments)
    names = {fov.experiment for fov, kept in zip(fovs, keep, strict=True) if kept}
    return [e for e in shards.manifest.experiments if e.name in names]


def find_differences(job: Job) -> Iterator[Difference]:
    """Compare patches with those of the training: first channels, then slices, then (Y, X). Experiments go together."""
    alike: dict[tuple[object, ...], list[ExperimentRecord]] = {}
    for e in job.experiments:
        alike.setdefault((e.shape, *e.source_channel), []).append(e)
    groups = [(_name_experiments([e.name for e in group]), group[0]) for group in alike.values()]
    for names, e in groups:
        yield from _compare_channels(job, names, e)
    yield from _compare_slices(job)
    for names, e in groups:
        yield from _compare_sizes(job, names, e)


def _compare_channels(job: Job, names: str, e: ExperimentRecord) -> Iterator[Difference]:
    """Compare number and names of channels, and the number of planes."""
    seen, view, root = job.checkpoint.seen, job.view, job.shards.root
    where = f"{job.checkpoint.path} was trained on"
    found, known = _shown(job, e)[:2], sorted({s[:2] for s in seen.shown})
    if found[0] not in {s[0] for s in known} or (found not in known and _holds_slices(job.shards, view)):
        asked = ("z_range",) if found[0] in {s[0] for s in known} and job.asked.z_range else ()
        cure = "Choose other --experiments, or build shards with the same source channels and z_range"
        yield Difference(
            what=f"Patches of {names} in {root} are (channels, planes) = {found}, {where} "
            f"{' or '.join(map(str, known))}",
            instead="Leave --z_range out to embed as in training" if asked else cure,
            fatal=True,
            options=asked,
        )
        return
    for place, own in enumerate(list_positions(e.source_channel, job.checkpoint.data.get("channels_per_sample"))):
        for name in (name for name in own if name not in seen.channels[place]):
            yield Difference(
                what=f"Channel {place} of {names} in {root} is {name!r}, {where} "
                f"{' or '.join(map(repr, seen.channels[place]))} there",
                instead="Give shards with the same channels in the same order",
            )


def _compare_slices(job: Job) -> Iterator[Difference]:
    shards, view, seen = job.shards, job.view, job.checkpoint.seen
    holds = f"{shards.root} holds the slices {shards.z_range} of the plates"
    if not _holds_slices(shards, view):
        given = job.asked.z_range is not None
        asked = "--z_range asks for" if given else f"{job.checkpoint.path} was trained on"
        yield Difference(
            what=f"{holds}, {asked} {view.z_range}",
            instead=f"Build shards with a z_range that holds them{', or leave the option out' * given}",
            fatal=True,
            options=("z_range",) * given,
        )
    elif view.z_range is None and shards.z_range != seen.z_range:
        yield Difference(
            what=f"{holds}, {job.checkpoint.path} was trained on {seen.z_range}",
            instead="Build shards with the same z_range",
        )


def _compare_sizes(job: Job, names: str, e: ExperimentRecord) -> Iterator[Difference]:
    """Compare what is stored with what is read, and what the network sees with what it saw."""
    view, root, where = job.view, job.shards.root, f"{job.checkpoint.path} was trained on"
    name = "yx_patch_size" if view.yx_patch_size else "final_yx_patch_size"
    needed = view.yx_patch_size or view.final_yx_patch_size
    if needed is not None and _is_smaller(e.shape, needed):
        given = getattr(job.asked, name) is not None
        otherwise = (
            "leave the option out"
            if given
            else f"give --yx_patch_size and --final_yx_patch_size of at most {e.shape[2]} {e.shape[3]} with --override"
        )
        yield Difference(
            what=f"Stored patches of {names} in {root} are (Y, X) = {e.shape[2:]}, "
            f"{f'--{name} asks for' if given else where} {needed}",
            instead=f"Build shards with a yx_patch_size of at least {list(needed)}, or {otherwise}",
            fatal=True,
            options=(name,) * given,
        )
        return
    seen = sorted({s[2:] for s in job.checkpoint.seen.shown})
    if (found := _shown(job, e)[2:]) not in seen:
        yield Difference(
            what=f"Patches of {names} in {root} are (Y, X) = {found}, {where} {' or '.join(map(str, seen))}",
            instead="Build shards with the same yx_patch_size",
            options=("yx_patch_size", "final_yx_patch_size"),
        )


def _shown(job: Job, e: ExperimentRecord) -> Shape:
    """(C, Z, Y, X) that the network sees of an experiment."""
    view, first = job.view, job.shards.z_range[0]
    z = slice(None) if view.z_range is None else slice(max(view.z_range[0] - first, 0), max(view.z_range[1] - first, 0))
    per_sample = job.checkpoint.data.get("channels_per_sample")
    return shown_shape(Crop(z=z, yx=view.yx_patch_size).shape(e.shape), view, per_sample)


def _holds_slices(shards: ShardSet, view: View) -> bool:
    low, high = view.z_range or shards.z_range
    return shards.z_range[0] <= low < high <= shards.z_range[1]


def _is_smaller(stored: Shape, yx: Pair) -> bool:
    return stored[2] < yx[0] or stored[3] < yx[1]


def _name_experiments(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(repr, names[:_LISTED])) + more


def _pair(value: Any) -> Pair | None:
    return None if value is None else (int(value[0]), int(value[1]))
