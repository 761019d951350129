"""Names to masks: which FOVs an experiment, a well or a name stands for. Pure: records in, masks out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from dynaclr_wds.contract import FovRecord

Places = Sequence[str] | Mapping[str, Sequence[str]]
"""Wells or FOVs: a list of names, or experiment → list of names.

A name is `row/col` or `row/col/fov` of any experiment, or has the experiment before it: `experiment/row/col`.
"""


def check_experiments(names: Collection[str], known: Collection[str], where: str) -> None:
    """Check that experiments are there.

    Parameters
    ----------
    names
        Those that are asked for.
    known
        Those of the shard set.
    where
        The setting that names them, for the error.

    Raises
    ------
    ValueError
        One isn't there; lists those that are.
    """
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"{where} names {unknown}, which are not in the shards. They hold {sorted(known)}.")


def keep_experiments(fovs: Sequence[FovRecord], experiments: Collection[str]) -> Bool[np.ndarray, " f"]:
    """Say which FOVs belong to some experiments."""
    return np.array([fov.experiment in experiments for fov in fovs], bool)


def keep_fovs(
    fovs: Sequence[FovRecord], include_wells: Places | None, exclude_fovs: Places | None
) -> Bool[np.ndarray, " f"]:
    """Say which FOVs may be used.

    Parameters
    ----------
    fovs
        Those of the shard set.
    include_wells
        Wells to use; None = all. A list is of all that is used; a mapping says it for its experiments, and all wells of
        the others are used.
    exclude_fovs
        FOVs to leave out.

    Raises
    ------
    ValueError
        An experiment, a well or an FOV that isn't there; lists those that are.
    """
    keep = ~match_fovs(fovs, exclude_fovs or (), "exclude_fovs")
    if include_wells is None:
        return keep
    used = match_fovs(fovs, include_wells, "include_wells", wells=True)
    if isinstance(include_wells, Mapping):
        used |= ~keep_experiments(fovs, include_wells)
    return keep & used


def match_fovs(fovs: Sequence[FovRecord], names: Places, where: str, *, wells: bool = False) -> Bool[np.ndarray, " f"]:
    """Say which FOVs are named.

    Parameters
    ----------
    fovs
        Those of the shard set.
    names
        FOVs, or wells.
    where
        The setting that names them, for the error.
    wells
        Whether the names are of wells.

    Raises
    ------
    ValueError
        One isn't there; lists those that are.
    """
    plain = [fov.well if wells else fov.fov_name for fov in fovs]
    full = [qualify(fov.experiment, name) for fov, name in zip(fovs, plain, strict=True)]
    if isinstance(names, Mapping):
        check_experiments(names, {fov.experiment for fov in fovs}, where)
        names = [qualify(experiment, name) for experiment, own in names.items() for name in own]
    if unknown := sorted(set(names) - set(plain) - set(full)):
        raise ValueError(
            f"{where} names {unknown}, which no experiment has. Known: {sorted(set(plain))}; with the experiment "
            f"before it, as in {full[0]!r}, a name is of that experiment only."
        )
    asked = set(names)
    return np.array([name in asked or long in asked for name, long in zip(plain, full, strict=True)], bool)


def qualify(experiment: str, name: str) -> str:
    """Put the experiment before the name of a well or an FOV."""
    return f"{experiment}/{name}"
