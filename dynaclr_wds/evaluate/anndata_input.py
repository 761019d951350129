"""AnnData to cells and features: embeddings of `predict --anndata`, or of a program that names the same columns."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynaclr_wds.errors import ConfigError, FormatError
from dynaclr_wds.evaluate.cells import Cells, Embedding, Text
from dynaclr_wds.optional import import_optional

if TYPE_CHECKING:
    from dynaclr_wds.evaluate.reading import Table

_NEEDED = ("fov_name", "track_id", "t")
_HOURS = ("hpi", "hours_post_perturbation")
_NO_LABELS = {
    *("fov_name", "experiment", "global_track_id", "lineage_id", "well", "channel", "marker", "name", "perturbation"),
}


def read_anndata(path: Path, name: str, which: str, most_cells: int, lineages: frozenset[str] | None) -> Table:
    """Read an AnnData whole, and keep whole lineages of it.

    Needed in obs are `fov_name`, `track_id` and `t`; `experiment`, `lineage_id`, `hpi` (or `hours_post_perturbation`)
    and `condition` (or `perturbation`) are used where they are.

    Raises
    ------
    ConfigError
        A column isn't there.
    FormatError
        It can't be read.
    """
    from dynaclr_wds.evaluate.reading import Table, draw_lineages

    anndata = import_optional("anndata", f"{path}")
    try:
        data = anndata.read_zarr(path)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FormatError(
            f"{path}: can't be read as AnnData ({first:.200}). Give what `predict --anndata` wrote."
        ) from error
    obs = data.obs
    if missing := [column for column in _NEEDED if column not in obs.columns]:
        raise ConfigError(f"{path}: obs has no column {', '.join(missing)}; it has {', '.join(map(str, obs.columns))}.")
    cells = _cells(obs)
    x = np.asarray(data.X if which == "features" else _projections(data, path), np.float32)
    if lineages is None and len(cells) > most_cells:
        lineages = draw_lineages(Counter(cells.lineage.tolist()), most_cells)
    total = len(cells)
    if lineages is not None:
        rows = np.flatnonzero([lineage in lineages for lineage in cells.lineage])
        cells, x = cells.take(rows), x[rows]
    return Table(cells=cells, embeddings=[Embedding(name=name, features=x)], total=total, lineages=lineages)


def _projections(data: Any, path: Path) -> Any:
    if "X_projections" not in data.obsm:
        raise ConfigError(f"{path}: has no X_projections in obsm; it has {', '.join(data.obsm) or 'nothing'}.")
    return data.obsm["X_projections"]


def _cells(obs: Any) -> Cells:
    fov = np.array([name.strip("/") for name in _text(obs, "fov_name")], object)
    experiment = _text(obs, "experiment") if "experiment" in obs else np.full(len(obs), "", object)
    place = np.array([f"{e}/{f}" for e, f in zip(experiment, fov, strict=True)], object)
    t = obs["t"].to_numpy().astype(np.int64)
    track = np.array([f"{one}/{int(k)}" for one, k in zip(place, obs["track_id"], strict=True)], object)
    hours = next((column for column in _HOURS if column in obs), None)
    condition = next((column for column in ("condition", "perturbation") if column in obs), None)
    names = [c for c in obs.columns if c not in _NO_LABELS and obs[c].dtype.kind not in "iufb"]
    labels = {str(c): _text(obs, c) for c in names if not str(c).endswith("_predicted")}
    if condition is not None:
        labels["condition"] = _text(obs, condition)
    return Cells(
        name=np.array([f"{one}/{frame}" for one, frame in zip(track, t, strict=True)], object),
        experiment=experiment,
        fov=place,
        track=track,
        lineage=_text(obs, "lineage_id") if "lineage_id" in obs else track,
        t=t,
        hpi=np.full(len(obs), np.nan) if hours is None else obs[hours].to_numpy().astype(np.float64),
        labels=labels,
    )


def _text(obs: Any, column: str) -> Text:
    values = obs[column]
    return np.array(["" if empty else str(v) for v, empty in zip(values, values.isna(), strict=True)], object)
