"""Takes checked values from columns of a table: an error names the first rows that are wrong, by their lines."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int64

from dynaclr_wds.contract import NO_ID
from dynaclr_wds.errors import ConfigError
from etl.source.track_formats import TableFile


def refuse_repeats(file: TableFile, name: str, *keys: Int64[np.ndarray, " rows"]) -> None:
    """Refuse rows whose key was there in a row before."""
    order = np.lexsort(keys[::-1])
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for key in keys:
        same &= np.diff(key[order]) == 0
    twice = np.zeros(len(order), dtype=bool)
    twice[order[1:]] = same
    if twice.any():
        refuse_rows(file, name, twice, np.stack(keys, axis=1), "in one row only")


def parse_floats(raw: pa.Table, name: str, file: TableFile) -> Float[np.ndarray, " rows"]:
    """Return a column as float64, NaN where it is missing."""
    if name not in raw.column_names:
        return np.full(len(raw), np.nan)
    column = raw[name]
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        values = np.array([str(value) for value in column.to_pylist()], dtype=object)
        refuse_rows(file, name, np.array([not _is_number(value) for value in values], dtype=bool), values, "a number")
        raise ConfigError(f"{file}: column {name!r} is of type {kind}, which is not a number. Write it as numbers.")
    return np.asarray(column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy())


def parse_integers(raw: pa.Table, name: str, file: TableFile, *, optional: bool = False) -> Int64[np.ndarray, " rows"]:
    """Return a column as int64; `NO_ID` for what is missing where that may be."""
    if name in raw.column_names and pa.types.is_signed_integer(raw[name].type) and not raw[name].null_count:
        return np.asarray(raw[name].cast(pa.int64()).to_numpy())
    values = parse_floats(raw, name, file)
    missing = np.isnan(values) & optional
    with np.errstate(invalid="ignore"):
        whole = (np.abs(values) <= 2**53) & (values == np.floor(values))
    refuse_rows(file, name, ~(whole | missing), values, "a whole number")
    return np.where(missing, NO_ID, values).astype(np.int64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def refuse_rows(file: TableFile, name: str, bad: Bool[np.ndarray, " rows"], values: np.ndarray, rule: str) -> None:
    """Raise an error that names the rows where `bad` holds, if any."""
    rows = np.flatnonzero(bad)
    if len(rows):
        named = zip(file.name_rows(rows[:5].tolist()), values[rows[:5]], strict=True)
        shown = ", ".join(f"{row} ({value})" for row, value in named)
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        advice = "Correct these lines" if file.find_lines else "Correct these rows (the first is row 0)"
        raise ConfigError(f"{file}: {name} must be {rule}, but is not in {shown}{more}. {advice}.")
