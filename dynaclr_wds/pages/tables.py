"""Rows to HTML tables: numbers to the right. A wide one becomes a list on a narrow screen, a line for each row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from dynaclr_wds.pages.markup import Html

_FITS, _HEAD = 40, 13
"""Letters of the longest words of all columns that a phone shows side by side, and least width of heads of rows."""
_NUMBER = 24
"""Letters of the longest number, such as `0.49 (0.48–0.50)`; what is longer is text that begins with one."""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> Html:
    """Make a table.

    Parameters
    ----------
    columns
        Names; the first one is that of the rows' heads.
    rows
        Cells as they are to be shown: text, or numbers, which stand to the right.
    caption
        What it shows.

    Raises
    ------
    ValueError
        A row has not as many cells as there are columns.
    """
    if ragged := next((row for row in rows if len(row) != len(columns)), None):
        raise ValueError(f"The row {list(ragged)} must have {len(columns)} cells: {list(columns)}.")
    shown = [[_write(value, n == 0) for n, value in enumerate(row)] for row in rows]
    numbers = [n > 0 and _are_numbers([row[n] for row in shown]) for n in range(len(columns))]
    head = "".join(f'<th scope="col"{_align(n)}>{escape(name)}</th>' for name, n in zip(columns, numbers, strict=True))
    body = "".join(f"<tr>{_write_row(row, columns, numbers)}</tr>" for row in shown)
    said = f"<caption><span>{escape(caption)}</span></caption>" if caption else ""
    kind = " class=many" if _is_wide(columns, shown, numbers) else ""
    return Html(
        f'<div class="wide"><table{kind}>{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _write_row(row: Sequence[str], columns: Sequence[str], numbers: Sequence[bool]) -> str:
    """Write the cells of a row, each with the name of its column, which a list shows before it."""
    cells = [f'<th scope="row">{escape(row[0])}</th>'] if row else []
    for value, name, is_number in zip(row[1:], columns[1:], numbers[1:], strict=True):
        cells.append(f'<td{_align(is_number)} data-of="{escape(name)}">{escape(value)}</td>')
    return "".join(cells)


def _align(is_number: bool) -> str:
    return " class=n" if is_number else ""


def _write(value: object, is_head: bool) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool) and not is_head
    return f"{value:,}" if isinstance(value, int) and number else f"{value:.3g}" if number else str(value)


def _looks_like_number(shown: str) -> bool:
    return len(shown) <= _NUMBER and re.match(r"[-+–<≤]?\d|–$", shown) is not None


def _are_numbers(cells: Sequence[str]) -> bool:
    return any(cells) and all(_looks_like_number(cell) for cell in cells if cell)


def _is_wide(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> bool:
    """Whether the columns can't be side by side on a phone, however their words are broken into lines."""
    parts = [
        [*name.split(), *(part for row in rows for part in ([row[n]] if is_number else row[n].split()))]
        for n, (name, is_number) in enumerate(zip(columns, numbers, strict=True))
    ]
    longest = [max(map(len, of), default=0) for of in parts]
    return sum(longest[1:]) + max(longest[0], _HEAD) + len(longest) > _FITS
