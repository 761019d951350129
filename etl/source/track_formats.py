"""Reads one table file into columns: the formats that track files and annotations may have.

A new format is one function here and one entry of `READERS`. It opens a file, which reads its column names, and
returns how to read values. It refuses a file that may be cut short. What the columns mean is not known here; see
`etl.source.tracks`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from dynaclr_wds.errors import ConfigError
from etl.source.fields import is_null_text
from etl.source.reading import naming_file

MOST_VALUES = 100_000
"""Distinct values that a label may have: it is a category, not a measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """A table file whose column names are known and whose values are not read yet."""

    path: Path
    columns: tuple[str, ...]
    """Names in the file, in its order; a name may stand there twice."""
    read: Callable[[Sequence[str], Collection[str]], pa.Table]
    """(names, text names) → table of these columns; text columns come as they are written in the file."""


def open_csv(path: Path, delimiter: str = ",") -> TableFile:
    """Open a CSV with a header; a byte order mark is skipped."""
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        try:
            columns = next(csv.reader(file, delimiter=delimiter), [])
        except csv.Error as error:
            raise ConfigError(f"{path}: is not a {path.suffix[1:].upper()} table ({error}). Write it again.") from error
    "".join(columns).encode()  # a surrogate is a byte that is not UTF-8

    def read(names: Sequence[str], text: Collection[str]) -> pa.Table:
        _refuse_cut_csv(path)
        # one block, so that the type of a column is inferred from all of it
        block = min(path.stat().st_size + 1, 2**31 - 1)
        return pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(block_size=block, use_threads=False),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter),
            convert_options=pa.csv.ConvertOptions(
                include_columns=list(names), column_types=dict.fromkeys(text, pa.string())
            ),
        )

    return TableFile(path=path, columns=tuple(columns), read=read)


def _refuse_cut_csv(path: Path) -> None:
    """Refuse a text table whose last line does not end: a copy that stopped may have lost digits of the last number."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1000, 0))
        tail = file.read()
    if tail and not tail.endswith((b"\n", b"\r")):
        line = tail.splitlines()[-1].decode(errors="replace")
        raise ConfigError(
            f"{path}: the last line ({line!r}) must end with a newline; the file may be cut short. Write it again, or "
            "add a newline if the line is whole."
        )


def open_tsv(path: Path) -> TableFile:
    """Open a table whose columns are separated by tabs; all else is as in a CSV."""
    return open_csv(path, "\t")


def open_parquet(path: Path) -> TableFile:
    """Open a Parquet file."""
    columns = tuple(pa.parquet.read_schema(path).names)

    def read(names: Sequence[str], text: Collection[str]) -> pa.Table:
        del text  # a Parquet file says itself what is text
        return pa.parquet.read_table(path, columns=list(names), partitioning=None, page_checksum_verification=True)

    return TableFile(path=path, columns=columns, read=read)


READERS: dict[str, Callable[[Path], TableFile]] = {".csv": open_csv, ".parquet": open_parquet, ".tsv": open_tsv}
"""Suffix (lower case, of one part: `.csv.gz` is `.gz`) → function that opens such a file.

A file in a folder of tracks is a track file, and part of the fingerprint, if and only if its suffix stands here.
"""


def open_table(path: Path) -> TableFile:
    """Open a table file of any known format.

    Raises
    ------
    ConfigError
        A suffix that no reader knows, or a file that is not what its suffix says.
    StorageError
        The file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ConfigError(f"{path}: the suffix {suffix!r} must be one of {list(READERS)}. Write it in such a format.")
    with naming_file(path, suffix[1:].upper()):
        return READERS[suffix](path)


def read_table(file: TableFile, names: Sequence[str], labels: Sequence[str]) -> pa.Table:
    """Read columns of an opened file.

    Parameters
    ----------
    names
        Columns that are read with the type that the file has.
    labels
        Columns that are read as labels: text, dictionary-encoded, null where blank or NaN.

    Raises
    ------
    ConfigError
        The content is damaged, or a label is not text, number, boolean or date.
    StorageError
        The file cannot be read.
    """
    with naming_file(file.path, file.path.suffix[1:].upper()):
        table = file.read([*names, *labels], labels)
        columns = {name: table[name] for name in names}
        columns |= {name: encode_label(table[name], f"{file.path}: column {name!r}") for name in labels}
        return pa.table(columns)


def encode_label(column: pa.ChunkedArray, where: str) -> pa.DictionaryArray:
    """Make a label of a column: each distinct value becomes text once, blank and NaN become null."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise ConfigError(f"{where} is of type {kind}, but a label must be text, number, boolean or date. Convert it.")
    whole = column.combine_chunks()
    encoded = whole if pa.types.is_dictionary(whole.type) else whole.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    refuse_measurement(len(encoded.dictionary), where)
    written = encoded.dictionary.cast(pa.string())
    written.validate(full=True)
    values = [text for text in dict.fromkeys(written.to_pylist()) if text is not None and not is_null_text(text)]
    values_array = pa.array(values, pa.string())
    place = pc.index_in(written, value_set=values_array, skip_nulls=True)
    return pa.DictionaryArray.from_arrays(place.take(encoded.indices.cast(pa.int32())), values_array)


def refuse_measurement(values: int, where: str) -> None:
    """Refuse a label with more than `MOST_VALUES` distinct values.

    Raises
    ------
    ConfigError
        It has more.
    """
    if values > MOST_VALUES:
        raise ConfigError(
            f"{where} has {values} distinct values, but a label may have {MOST_VALUES}: it is a category. Bin the "
            "numbers, or remove the column."
        )
