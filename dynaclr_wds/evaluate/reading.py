"""Tables of embeddings to cells and features: what `predict` wrote, as Parquet or AnnData, or somebody else's AnnData.

Large tables are not read whole: whole lineages are drawn, by a hash of their names, until there are enough cells. So
the same lineages are drawn of every table. A table with a row for each cell and channel becomes one embedding of the
channels of a cell joined, and one for each channel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from jaxtyping import Float32
from xxhash import xxh3_64_intdigest

from dynaclr_wds.errors import ConfigError, FormatError
from dynaclr_wds.evaluate.cells import Cells, Embedding, Rows, Text
from dynaclr_wds.evaluate.smoothness import unit_length
from dynaclr_wds.strict_json import parse_json

Which = Literal["features", "projections"]

NEEDED = ("name", "experiment", "fov_name", "global_track_id", "lineage_id", "t", "hpi")
_NO_LABELS = {*NEEDED, "well", "channel", "marker"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What one table holds: embeddings of the same cells."""

    cells: Cells
    embeddings: list[Embedding]
    total: int
    """Rows of the whole table."""
    yx: tuple[int, int] | None = None
    """Pixels (Y, X) that the network saw, where the table says it."""
    lineages: frozenset[str] | None = field(default=None, repr=False)
    """Those that were drawn; None = all."""


def parse_name(given: str) -> tuple[str, Path]:
    """Split `NAME=PATH`; a path alone is named by its file, or by its folder where that says more."""
    name, equals, path = given.rpartition("=")
    place = Path(path)
    if equals and name and not Path(given).exists():
        return name, place
    place = Path(given)
    return (place.parent.name if place.stem == "embeddings" and place.parent.name else place.stem), place


def read_table(path: Path, name: str, which: Which, most_cells: int, lineages: frozenset[str] | None = None) -> Table:
    """Read a table of embeddings.

    Parameters
    ----------
    name
        What its embedding is called.
    which
        The column to judge.
    most_cells
        Rows to read at most, of whole lineages.
    lineages
        Read these lineages instead.

    Raises
    ------
    ConfigError
        It isn't there, or isn't a table of embeddings.
    """
    if path.suffix == ".zarr" and path.exists():
        from dynaclr_wds.evaluate.anndata_input import read_anndata

        return read_anndata(path, name, which, most_cells, lineages)
    found = _open(path, which)
    columns = found.schema.names
    total = found.count_rows()
    if lineages is None and total > most_cells:
        lineages = _draw(found, most_cells)
    chosen = None if lineages is None else pc.field("lineage_id").isin(pa.array(sorted(lineages), pa.string()))
    other = {"features", "projections"} - {which}
    rows = found.to_table(columns=[c for c in columns if c not in other], filter=chosen)
    if not len(rows):
        raise ConfigError(f"{path}: has no cell to judge. Give a table of the same cells, or one with rows.")
    cells, embeddings = _split_channels(rows, name, which)
    return Table(cells=cells, embeddings=embeddings, total=total, yx=_seen(found.schema.metadata), lineages=lineages)


def _open(path: Path, which: Which) -> pads.Dataset:
    if not path.exists():
        raise ConfigError(f"{path}: no such table. Give what `dynaclr-wds predict` wrote, or NAME=PATH.")
    try:
        found = pads.dataset(path, format="parquet", exclude_invalid_files=False)
        columns = found.schema.names
    except (pa.ArrowInvalid, OSError) as error:
        raise FormatError(
            f"{path}: can't be read as Parquet ({str(error).splitlines()[0]:.200}). Give a table that "
            "`dynaclr-wds predict` wrote."
        ) from error
    if missing := [column for column in (*NEEDED, which) if column not in columns]:
        raise ConfigError(
            f"{path}: has no column {', '.join(missing)}; it has {', '.join(columns)}. Give a table that "
            "`dynaclr-wds predict` wrote."
        )
    return found


def _draw(found: pads.Dataset, most_cells: int) -> frozenset[str]:
    """Draw lineages, in the order of the hashes of their names, until there are enough rows; at least one."""
    counts: Counter[str] = Counter()
    for batch in found.to_batches(columns=["lineage_id"]):
        for pair in pc.value_counts(batch.column(0)).to_pylist():
            counts[pair["values"]] += pair["counts"]
    return draw_lineages(counts, most_cells)


def draw_lineages(counts: Counter[str], most_cells: int) -> frozenset[str]:
    """Draw lineages by the hash of their names, as many as have no more than so many rows; at least one."""
    kept: set[str] = set()
    rows = 0
    for lineage in sorted(counts, key=lambda name: (xxh3_64_intdigest(name.encode()), name)):
        if kept and rows + counts[lineage] > most_cells:
            continue
        kept.add(lineage)
        rows += counts[lineage]
    return frozenset(kept)


def _seen(metadata: dict[bytes, bytes] | None) -> tuple[int, int] | None:
    try:
        said: Any = parse_json((metadata or {}).get(b"dynaclr_wds", b"{}"))
    except ValueError:  # somebody else's
        return None
    yx = said.get("final_yx_patch_size") or said.get("yx_patch_size")
    return (int(yx[0]), int(yx[1])) if yx else None


def _split_channels(rows: pa.Table, name: str, which: Which) -> tuple[Cells, list[Embedding]]:
    if "channel" not in rows.column_names:
        return _cells(rows, _text(rows, "name")), [Embedding(name=name, features=_matrix(rows, which))]
    ends = zip(rows["name"].to_pylist(), rows["channel"].to_pylist(), strict=True)
    names = np.array([str(full).removesuffix(f"/{channel}") for full, channel in ends], object)
    order = np.argsort(names.astype(str), kind="stable")  # the channels of a cell keep their order
    count = len(names) // len(set(names))
    if len(names) % count or (names[order].reshape(-1, count) != names[order][::count, None]).any():
        raise ConfigError(
            f"{name}: its cells differ in how many channels they have, so they can't be judged side by side. Embed "
            "experiments with as many channels, by --experiments of `predict`, and judge each table by itself."
        )
    each = [order[n::count] for n in range(count)]
    singles = [
        Embedding(name=f"{name}: {_name_channel(rows, own, n)}", features=_matrix(rows.take(pa.array(own)), which))
        for n, own in enumerate(each)
    ]
    joined = np.concatenate([unit_length(single.features) for single in singles], axis=1)
    cells = _cells(rows.take(pa.array(each[0])), names[each[0]])
    return cells, [Embedding(name=name, features=joined), *singles] if count > 1 else singles


def _name_channel(rows: pa.Table, own: Rows, place: int) -> str:
    """Name a channel by its position, where experiments call it differently."""
    names = rows["channel"].take(pa.array(own)).unique().to_pylist()
    return str(names[0]) if len(names) == 1 else f"channel {place}"


def _cells(rows: pa.Table, names: Text) -> Cells:
    labels = [
        f.name
        for f in rows.schema
        if f.name not in _NO_LABELS and pa.types.is_string(f.type) and not f.name.endswith("_predicted")
    ]
    experiment, fov = _text(rows, "experiment"), _text(rows, "fov_name")
    return Cells(
        name=names,
        experiment=experiment,
        fov=experiment + "/" + fov,
        track=_text(rows, "global_track_id"),
        lineage=_text(rows, "lineage_id"),
        t=rows["t"].to_numpy().astype(np.int64),
        hpi=rows["hpi"].to_numpy().astype(np.float64),
        labels={label: _text(rows, label) for label in labels},
    )


def _text(rows: pa.Table, column: str) -> Text:
    return np.array(["" if value is None else value for value in rows[column].to_pylist()], object)


def _matrix(rows: pa.Table, which: Which) -> Float32[np.ndarray, "n d"]:
    parts = [chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in rows[which].chunks if len(chunk)]
    return np.concatenate(parts).astype(np.float32)


def align(tables: Sequence[Table]) -> tuple[Cells, list[Embedding], int]:
    """Keep the cells that all tables have, in the order of the first.

    Returns
    -------
    tuple
        Cells with the labels of all tables, their embeddings, and how many cells not all tables have.

    Raises
    ------
    ConfigError
        They have none in common.
    """
    first = tables[0]
    common = set(first.cells.name).intersection(*(set(other.cells.name) for other in tables[1:]))
    rows = np.flatnonzero([name in common for name in first.cells.name])
    if not len(rows):
        raise ConfigError(
            "The tables have no cell in common. Give embeddings of the same cells, or judge them one by one."
        )
    cells, embeddings = first.cells.take(rows), [_take(e, rows) for e in first.embeddings]
    labels = dict(cells.labels)
    for other in tables[1:]:
        at = {name: n for n, name in enumerate(other.cells.name)}
        own = np.array([at[name] for name in cells.name])
        embeddings += [_take(e, own) for e in other.embeddings]
        labels = {**{label: values[own] for label, values in other.cells.labels.items()}, **labels}
    _check_names([embedding.name for embedding in embeddings])
    whole = Cells(**{f: getattr(cells, f) for f in Cells.__slots__ if f != "labels"}, labels=labels)
    every = {name for table in tables for name in table.cells.name}
    return whole, embeddings, len(every) - len(rows)


def _take(embedding: Embedding, rows: Rows) -> Embedding:
    return Embedding(name=embedding.name, features=embedding.features[rows])


def _check_names(names: Sequence[str]) -> None:
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ConfigError(f"Two embeddings are called {twice[0]!r}. Name them: first=PATH second=PATH.")
