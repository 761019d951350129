"""Opens tables that are text and reads columns of them: finds out compression, encoding, delimiter and header lines.

The suffix says only that a file is text. Tables may be gzipped; UTF-8, UTF-16 (with a byte order mark) or, where they
are not UTF-8, Latin-1; with columns between `,`, `;` or tabs; with a decimal comma where columns are between `;` or
tabs; and with the three more header lines of TrackMate. A file that may be cut short is refused.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dynaclr_wds.errors import ConfigError
from etl.source.trackmate import parse_units

DELIMITERS = (",", ";", "\t")

_HEAD_BYTES = 1 << 16
_HEAD_LINES = 8
_GZIP = b"\x1f\x8b"
_NEWLINE = re.compile(rb"\r\n?|\n")
_DECIMAL_COMMA = r"^\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*$"
_NULLS = [*pa.csv.ConvertOptions().null_values, "None", "<NA>"]

_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

_NOT_TEXT = {
    b"PK\x03\x04": "an Excel workbook (or another zip file)",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"PAR1": "a Parquet file",
    b"\x89HDF": "an HDF5 file",
    b"<": "HTML or XML",
}
"""First bytes → what such a file is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLayout:
    """How a table is written."""

    encoding: str
    """`utf-8`, `utf-8-sig`, `utf-16` or `latin-1`; of a table called `utf-8` only the first lines were looked at."""
    delimiter: str
    header: tuple[str, ...]
    """Names of the columns, without spaces around them."""
    lines: int
    """Lines before the first row."""
    units: tuple[str, ...]
    """Unit of each column, as TrackMate writes them, e.g. `micron`; empty for all other tables."""


def find_layout(path: Path) -> TextLayout:
    """Find out how a table is written, from its first lines.

    Raises
    ------
    ConfigError
        The file is empty, no text, or not a whole gzip file.
    """
    size = _HEAD_BYTES
    while len(head := _read_head(path, size)) == size and len(_NEWLINE.findall(head)) < _HEAD_LINES:
        size *= 8
    for first, kind in _NOT_TEXT.items():
        if head.lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(first):
            raise ConfigError(f"{path}: is {kind}, not a text table. Export it as CSV, with the suffix .csv.")
    encoding = _find_encoding(path, head)
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    if not text.strip():
        raise ConfigError(f"{path}: is empty, but the first line must name the columns. Write it again.")
    return _parse_head(path, encoding, text)


def _read_head(path: Path, size: int) -> bytes:
    """Read the first bytes; gzip is known by its first bytes, whatever the suffix."""
    with path.open("rb") as raw:
        head = raw.read(size)
        if not head.startswith(_GZIP):
            return head
        raw.seek(0)
        return _unpack(path, raw, size)


def _read_all(path: Path) -> pa.Buffer:
    """Read a whole file; one that is packed must be whole."""
    with pa.OSFile(str(path)) as file:  # reads into memory that pyarrow uses again and again
        data = file.read_buffer()
    if data.slice(0, 2).to_pybytes() != _GZIP:
        return data
    return pa.py_buffer(_unpack(path, io.BytesIO(data)))


def _unpack(path: Path, raw: io.BufferedIOBase, size: int = -1) -> bytes:
    try:
        return gzip.GzipFile(fileobj=raw).read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}: is not a whole gzip file ({error}). Write it again.") from error


def _find_encoding(path: Path, head: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        raise ConfigError(f"{path}: holds zero bytes, so it is not UTF-8 text. Save it as UTF-8 (Excel: `CSV UTF-8`).")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a character that is cut at the end is no error
    except UnicodeDecodeError as error:
        return "latin-1" if head[: error.start].isascii() else "utf-8"
    return "utf-8"


def _parse_head(path: Path, encoding: str, text: str) -> TextLayout:
    """Choose the delimiter under which the first row has as many fields as the header, and the most."""
    found: dict[str, list[tuple[list[str], int]]] = {}
    for delimiter in DELIMITERS:
        with suppress(csv.Error):  # one field longer than 128 KiB: it is another delimiter
            found[delimiter] = _split(text, delimiter)
    if not found:
        raise ConfigError(f"{path}: the first line is not a list of column names. Write it again.")

    def rank(delimiter: str) -> tuple[bool, int]:
        records = found[delimiter]
        width = len(records[0][0])
        return len(records) > 1 and 1 < width == len(records[1][0]), width

    delimiter = max(found, key=rank)
    (header, lines), *rows = found[delimiter]
    names = tuple(name.strip() for name in header)
    units = parse_units(names, [row for row, _ in rows])
    if units:
        lines = rows[2][1]
    return TextLayout(encoding=encoding, delimiter=delimiter, header=names, lines=lines, units=units)


def _split(text: str, delimiter: str) -> list[tuple[list[str], int]]:
    """Split the first lines into fields: the rows that are not empty, each with the number of lines up to its end."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    records: list[tuple[list[str], int]] = []
    for row in reader:
        if row:
            records.append((row, reader.line_num))
        if len(records) == _HEAD_LINES // 2:
            break
    return records


def read_text(path: Path, layout: TextLayout, places: Sequence[int], text: Collection[int]) -> pa.Table:
    """Read columns of a table.

    Parameters
    ----------
    places
        Places of the columns in the header; column `str(place)` of the result is one of these.
    text
        Those that come as text, as they are written.

    Returns
    -------
    pa.Table
        The types of the other columns are inferred. Metadata `encoding` says how the file was read.

    Raises
    ------
    ConfigError
        A row has more or fewer fields than the header, the encoding is not what the first lines say, or the file is
        cut.
    """
    data, encoding = _decode(path, layout, _read_all(path))
    _refuse_cut(path, data)
    begin, end = _find_rows(data, layout.lines)
    body = data.slice(begin, end - begin)
    table = _parse_rows(path, layout, body, (places, text, "."))
    numbers = [table[str(place)] for place in places if place not in text]
    if layout.delimiter != "," and any(_has_decimal_comma(column) for column in numbers):
        table = _parse_rows(path, layout, body, (places, text, ","))
    return table.replace_schema_metadata({"encoding": encoding})


def _decode(path: Path, layout: TextLayout, data: pa.Buffer) -> tuple[pa.Buffer, str]:
    """Return a table as UTF-8 without byte order mark, and its encoding."""
    encoding = layout.encoding
    if encoding == "utf-8-sig":
        data, encoding = data.slice(len(codecs.BOM_UTF8)), "utf-8"
    if encoding == "utf-8" and np.frombuffer(data, np.uint8).max(initial=0) < 128:
        return data, encoding
    raw = data.to_pybytes()
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if layout.encoding != "utf-8" or not raw[: error.start].isascii():
            line = 1 + len(re.findall(r"\r\n?|\n", raw[: error.start].decode(encoding, "replace")))
            raise ConfigError(
                f"{path}: begins as {encoding.upper()} text, but line {line} is not ({error.reason}). Write it again."
            ) from error
        encoding, text = "latin-1", raw.decode("latin-1")
    return (data if encoding == "utf-8" else pa.py_buffer(text.encode())), encoding


def _refuse_cut(path: Path, data: pa.Buffer) -> None:
    """Refuse a text table whose last line does not end: a copy that stopped may have lost digits of the last number."""
    tail = data.slice(max(data.size - 1000, 0)).to_pybytes()
    if not tail.endswith((b"\n", b"\r")):
        line = tail.splitlines()[-1].decode(errors="replace")
        raise ConfigError(
            f"{path}: the last line ({line!r}) must end with a newline; the file may be cut short. Write it again, or "
            "add a newline if the line is whole."
        )


def _find_rows(data: pa.Buffer, lines: int) -> tuple[int, int]:
    """Return where the rows begin and end; rows at the end that are empty don't count: spreadsheets write them."""
    ends = (match.end() for match in _NEWLINE.finditer(memoryview(data)))
    begin = next(islice(ends, lines - 1, None), data.size)
    first = max(data.size - _HEAD_BYTES, begin)
    tail = data.slice(first).to_pybytes()
    while tail:
        last = tail.rfind(b"\n", 0, len(tail) - 1) + 1
        if tail[last:].strip(b',;" \t\r\n'):
            break
        tail = tail[:last]
    return begin, first + len(tail)


def find_lines(path: Path, layout: TextLayout, rows: Sequence[int]) -> list[int]:
    """Return the lines of the file, as editors count them from 1, that rows stand in; empty lines are no rows."""
    data, _ = _decode(path, layout, _read_all(path))
    begin, end = _find_rows(data, layout.lines)
    lines = _NEWLINE.split(data.slice(begin, end - begin).to_pybytes())
    places = [layout.lines + number for number, line in enumerate(lines, 1) if line]
    return [places[row] for row in rows]


def _parse_rows(
    path: Path, layout: TextLayout, body: pa.Buffer, asked: tuple[Sequence[int], Collection[int], str]
) -> pa.Table:
    """Parse rows; `asked` is which columns, which of them as text, and the decimal point."""
    places, text, decimal_point = asked
    bad: list[pa.csv.InvalidRow] = []

    def stop(row: pa.csv.InvalidRow) -> str:
        bad.append(row)
        return "error"

    if not body.size:
        return pa.table({str(place): pa.nulls(0, pa.string() if place in text else pa.null()) for place in places})
    # one block, so that the type of a column is inferred from all of it
    read_options = pa.csv.ReadOptions(
        block_size=min(body.size + 1, 2**31 - 1),
        use_threads=False,
        column_names=[str(place) for place in range(len(layout.header))],
    )
    try:
        return pa.csv.read_csv(
            pa.BufferReader(body),
            read_options=read_options,
            parse_options=pa.csv.ParseOptions(delimiter=layout.delimiter, invalid_row_handler=stop),
            convert_options=pa.csv.ConvertOptions(
                include_columns=[str(place) for place in places],
                column_types={str(place): pa.string() for place in text},
                null_values=_NULLS,
                decimal_point=decimal_point,
            ),
        )
    except pa.ArrowInvalid as error:
        if bad:
            raise _explain_row(path, layout, bad[0]) from error
        raise


def _explain_row(path: Path, layout: TextLayout, row: pa.csv.InvalidRow) -> ConfigError:
    advice = "Correct the line"
    (line,) = find_lines(path, layout, [row.number - 1])
    if layout.delimiter == "," and row.actual_columns > row.expected_columns:
        advice += "; numbers with a decimal comma need ; or tabs between the columns"
    return ConfigError(
        f"{path}: line {line} has {row.actual_columns} fields ({row.text[:200]!r}), but the header has "
        f"{row.expected_columns}, separated by {layout.delimiter!r}. {advice}."
    )


def _has_decimal_comma(column: pa.ChunkedArray) -> bool:
    return pa.types.is_string(column.type) and bool(pc.any(pc.match_substring_regex(column, _DECIMAL_COMMA)).as_py())
