"""Compares what a build is asked for with the set that is there, and refuses what would lose or change cells of it.

Adding is no difference that matters: an experiment, a well, a field of view. Nor is an option that no stored byte
depends on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dynaclr_wds.contract import Manifest
from dynaclr_wds.errors import BuildError
from dynaclr_wds.words import list_some

Record = Mapping[str, Any]
"""A config, or an experiment of one, as a manifest holds it."""

_CHANGES_NO_SHARD = ("channel_markers", "on_no_anchor")
_CHOOSING = ("condition_wells", "include_wells", "exclude_fovs")
"""What says which fields of view there are; what they lose is found by their names."""


@dataclass(frozen=True, slots=True)
class Difference:
    """In what a config asks for something else than what a set holds."""

    lost: tuple[str, ...]
    """What the set holds and the config does not ask for, in words."""
    changed: tuple[str, ...]
    """What the config asks to be otherwise, in words."""

    def refuse(self, where: str, why: str, *, replace: bool, prune: bool) -> None:
        """Raise an error unless flags say that the difference is meant.

        Parameters
        ----------
        where
            The manifest, as people know it.
        why
            Who does not give what is lost, such as "experiments.yaml does not ask for".

        Raises
        ------
        BuildError
            Says what differs, and which flags would do.
        """
        lost = () if prune else self.lost
        changed = () if replace else self.changed
        if changed:
            flags = "--replace" + " and --prune" * bool(lost)
            without = f"; without {', '.join(lost)}" if lost else ""
            raise BuildError(
                f"{where}: holds shards of another config: {'; '.join(changed)}{without}. Give {flags} to replace "
                "them, or another --out."
            )
        if lost:
            raise BuildError(
                f"{where}: holds {', '.join(lost)}, which {why} any more. Give --prune to drop that, bring it back, or "
                "give another --out."
            )


def compare_with(manifest: Manifest, asked: Record) -> Difference:
    """Compare the config of a set with another one."""
    stored = manifest.config
    old, new = ({entry["name"]: entry for entry in config["experiments"]} for config in (stored, asked))
    held: dict[str, list[str]] = {}
    for fov in manifest.fovs:
        held.setdefault(fov.experiment, []).append(fov.fov_name)
    lost, changed = [], []
    for name, entry in old.items():
        if name not in new:
            lost += [name] if name in held else []
            continue
        lost += _find_lost(name, held.get(name, []), _list_wells(asked, new[name]), _list_excluded(asked, new[name]))
        changed += _find_changed(name, entry, new[name])
    return Difference(tuple(lost), (*changed, *_find_changed_options(stored, asked)))


def compare_fovs(manifest: Manifest, asked: Collection[tuple[str, str]]) -> Difference:
    """Compare the fields of view of a set with those that plates have, (experiment, fov_name)."""
    gone: dict[str, list[str]] = {}
    for fov in manifest.fovs:
        if (fov.experiment, fov.fov_name) not in asked:
            gone.setdefault(fov.experiment, []).append(fov.fov_name)
    return Difference(tuple(_name_fovs(names, experiment) for experiment, names in gone.items()), ())


def _name_fovs(names: list[str], experiment: str) -> str:
    return f"{list_some(names)} of {experiment}"


def _list_wells(config: Record, entry: Record) -> dict[str, str]:
    """Return well → condition of the wells of an experiment that are built."""
    lists = [wells for wells in (config.get("include_wells"), entry.get("include_wells")) if wells is not None]
    return {
        well: condition
        for condition, wells in entry.get("condition_wells") or ()
        for well in wells
        if all(well in included for included in lists)
    }


def _list_excluded(config: Record, entry: Record) -> set[str]:
    return {*(config.get("exclude_fovs") or ()), *(entry.get("exclude_fovs") or ())}


def _find_lost(experiment: str, held: Iterable[str], wells: Collection[str], excluded: Collection[str]) -> list[str]:
    names = [name for name in held if name in excluded or name.rpartition("/")[0] not in wells]
    return [_name_fovs(names, experiment)] if names else []


def _find_changed(name: str, old: Record, new: Record) -> list[str]:
    """Say which keys of an experiment have another value that its cells depend on."""
    then, now = (_list_wells({}, entry | {"include_wells": None}) for entry in (dict(old), dict(new)))
    keys = [
        key for key in {**old, **new} if key not in (*_CHOOSING, *_CHANGES_NO_SHARD) and old.get(key) != new.get(key)
    ]
    if any(now[well] != condition for well, condition in then.items() if well in now):
        keys.append("condition_wells")
    return [f"other {', '.join(keys)} of {name}"] if keys else []


def _find_changed_options(stored: Record, asked: Record) -> list[str]:
    skip = ("experiments", *_CHOOSING, *_CHANGES_NO_SHARD)
    other = [key for key in {**stored, **asked} if key not in skip and stored.get(key) != asked.get(key)]
    return [
        f"{key}={stored.get(key)}, asked for {asked.get(key)}"
        for key in other
        if key != "max_border_shift_px" or "yx_patch_size" not in other  # its default follows from that
    ]
