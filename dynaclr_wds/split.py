"""Names to masks: which FOVs each split of a shard set uses.

Pure: records in, masks out. Splits by whole experiments, wells and FOVs are here; a split by another column belongs
here too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Bool

from dynaclr_wds.contract import FovRecord


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
    fovs: Sequence[FovRecord], include_wells: Sequence[str] | None, exclude_fovs: Sequence[str] | None
) -> Bool[np.ndarray, " f"]:
    """Say which FOVs may be used.

    Parameters
    ----------
    fovs
        Those of the shard set.
    include_wells
        `row/col` of the wells to use; None = all.
    exclude_fovs
        `row/col/fov` of FOVs to leave out.

    Raises
    ------
    ValueError
        A well or FOV that no experiment has; lists those that are there.
    """
    for field, asked, known in (
        ("include_wells", include_wells or (), {f.well for f in fovs}),
        ("exclude_fovs", exclude_fovs or (), {f.fov_name for f in fovs}),
    ):
        unknown = sorted(set(asked) - known)
        if unknown:
            raise ValueError(f"{field} names {unknown}, which no experiment has. Known: {sorted(known)}.")
    excluded = set(exclude_fovs or ())
    return np.array(
        [(include_wells is None or f.well in include_wells) and f.fov_name not in excluded for f in fovs], bool
    )
