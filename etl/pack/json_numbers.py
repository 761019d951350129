"""Writes columns of numbers as JSON: floats as the shortest decimals that give the same float32, NaN as null."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Shaped

_NULL = "null"
_PLAIN = 2**24
"""Whole numbers below this are written as digits only."""


def write_numbers(values: Shaped[np.ndarray, " n"]) -> pa.StringArray:
    """Write numbers, or true and false."""
    if values.dtype.kind == "b":
        return pc.if_else(pa.array(values), "true", "false")
    if values.dtype.kind != "f":
        return pc.cast(pa.array(values), pa.string())
    values = values.astype(np.float32, copy=False)
    found = pa.array(values, from_pandas=True)  # NaN is null
    texts = pc.cast(found, pa.string())
    whole = values == np.floor(values)
    if whole.any():
        digits = pa.array(whole)
        if (np.abs(values[whole]) >= _PLAIN).any():  # those may have an exponent
            digits = pc.match_substring_regex(texts, r"^-?\d+$")
        texts = pc.if_else(digits, pc.binary_join_element_wise(texts, "0", "."), texts)
    return pc.fill_null(texts, _NULL)


def write_tables(statistics: Float[np.ndarray, "n channels 8"]) -> list[str]:
    """Write each table as a list of lists."""
    numbers: list[str] = write_numbers(statistics.ravel()).to_pylist()
    _, channels, width = statistics.shape
    rows = [f"[{','.join(numbers[at : at + width])}]" for at in range(0, len(numbers), width)]
    return [f"[{','.join(rows[at : at + channels])}]" for at in range(0, len(rows), channels)]
