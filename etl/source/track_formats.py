"""Opens and reads one table file: the formats that track files and annotations may have.

A new format is one function here and one entry of `READERS`. It opens a file, which reads its column names, and
returns how to read values. What the columns mean is not known here; see `etl.source.tracks`. Tracks that are no tables
are in `etl.source.track_sources`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from dynaclr_wds.errors import ConfigError, StorageError
from etl.source.fields import is_null_text
from etl.source.reading import naming_file
from etl.source.text_tables import find_layout, find_lines, read_text

MOST_VALUES = 100_000
"""Distinct values that a label may have: it is a category, not a measurement."""


@dataclass(frozen=True, slots=True)
class TablePlace:
    """Where a table is."""

    path: Path
    """Its bytes, on this machine."""
    name: str
    """What errors call it: the path, or the URL that it was copied from."""

    @classmethod
    def of(cls, path: Path) -> TablePlace:
        """A table that is read where it is."""
        return cls(path, str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """A table file whose column names are known and whose values are not read yet; as text, its name."""

    path: Path
    name: str = ""
    """What errors call it, where that is not its path."""
    header: tuple[str, ...]
    """Names of the columns as they stand in the file, in its order; a name may stand there twice."""
    columns: tuple[str | None, ...]
    """Names that we give these columns; None for one that is not used."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Name in the file → unit, where the file says it; "" for a column without a unit."""
    kind: str = ""
    """What the file is, for errors: `CSV`, `GEFF`."""
    converts: bool = False
    """Whether positions are converted from the units that the file says, whatever `tracks_unit` is."""
    doubts: Mapping[str, str] = field(default_factory=dict)
    """Our name → why the file does not say for certain which of its columns that is."""
    read: Callable[[Sequence[int], Collection[int]], pa.Table]
    """(places, places of text) → table with a column `str(place)` for each; text comes as it is written in the file."""
    rows: int | None = None
    """Rows, where the file says it; None for a text."""
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Name in the file → type, where the file says it: of a Parquet file."""
    find_lines: Callable[[Sequence[int]], Sequence[int]] | None = None
    """Rows → the lines that they stand in, counted from 1; None for a file without lines."""

    def __str__(self) -> str:
        return self.name or str(self.path)

    def name_rows(self, rows: Sequence[int]) -> list[str]:
        """Name rows as a person finds them: by the line of a text file, else by number from 0."""
        if self.find_lines is None:
            return [f"row {row}" for row in rows]
        return [f"line {line}" for line in self.find_lines(rows)]


def open_text(path: Path) -> TableFile:
    """Open a text table with a header."""
    layout = find_layout(path)
    header = layout.header

    def read(places: Sequence[int], text: Collection[int]) -> pa.Table:
        return read_text(path, layout, places, text)

    return TableFile(
        path=path,
        header=header,
        columns=_leave_out_index(header),
        units=dict(zip(header, layout.units, strict=True)) if layout.units else {},
        read=read,
        find_lines=lambda rows: find_lines(path, layout, rows),
    )


def open_parquet(path: Path) -> TableFile:
    """Open a Parquet file."""
    footer = pa.parquet.read_metadata(path)
    schema = footer.schema.to_arrow_schema()
    header = tuple(schema.names)

    def read(places: Sequence[int], text: Collection[int]) -> pa.Table:
        del text  # a Parquet file says itself what is text
        names = [header[place] for place in places]
        table = pa.parquet.read_table(path, columns=names, partitioning=None, page_checksum_verification=True)
        return pa.table({str(place): table[name] for place, name in zip(places, names, strict=True)})

    return TableFile(
        path=path,
        header=header,
        columns=_leave_out_index(header),
        read=read,
        rows=footer.num_rows,
        types=dict(zip(header, schema.types, strict=True)),
    )


def _leave_out_index(header: Sequence[str]) -> tuple[str | None, ...]:
    """Leave out the row numbers that pandas writes: a first column without a name."""
    return tuple(None if n == 0 and name in _INDEX_NAMES else name for n, name in enumerate(header))


_INDEX_NAMES = ("", "Unnamed: 0", "__index_level_0__")

READERS: dict[str, Callable[[Path], TableFile]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz"), open_text),
    ".parquet": open_parquet,
}
"""Suffix (lower case) → function that opens such a file."""


def table_suffix(path: Path) -> str | None:
    """Return the suffix of a table file as it stands in `READERS`; None for any other file."""
    return next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), None)


def choose_tables(names: Iterable[str]) -> list[str]:
    """Choose the tables among files, sorted: a text (.txt), which may be a note, only where there is no other."""
    tables = {name: table_suffix(Path(name)) for name in sorted(names) if not name.startswith((".", "~$"))}
    found = [name for name, suffix in tables.items() if suffix is not None]
    return [name for name in found if not str(tables[name]).startswith(".txt")] or found


def open_table(place: Path | TablePlace) -> TableFile:
    """Open a table file of any known format.

    Raises
    ------
    ConfigError
        A suffix that no reader knows, or a file that is not what its suffix says.
    StorageError
        The file cannot be read.
    """
    place = TablePlace.of(place) if isinstance(place, Path) else place
    suffix = table_suffix(place.path)
    if suffix is None:
        raise ConfigError(
            f"{place.name}: the suffix {place.path.suffix!r} must be one of {list(READERS)}. Write it in such a format."
        )
    with naming_table(place, suffix[1:].upper()):
        return replace(READERS[suffix](place.path), name=place.name, kind=suffix[1:].upper())


@contextmanager
def naming_table(place: TablePlace, kind: str) -> Iterator[None]:
    """Name a table in errors as the user knows it, not by the path of a copy."""
    try:
        with naming_file(place.name, kind):
            yield
    except (ConfigError, StorageError) as error:
        if place.name == str(place.path):
            raise
        raise type(error)(str(error).replace(str(place.path), place.name)) from error


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
    place = {name: file.columns.index(name) for name in (*names, *labels)}
    with naming_table(TablePlace(file.path, str(file)), file.kind):
        table = file.read(list(place.values()), [place[name] for name in labels])
        columns = {name: table[str(place[name])] for name in names}
        for name in labels:
            columns[name] = encode_label(table[str(place[name])], f"{file}: column {file.header[place[name]]!r}")
        return pa.table(columns, metadata=table.schema.metadata)


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
