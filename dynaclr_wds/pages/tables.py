"""Rows to HTML tables: numbers to the right, and wide tables scroll by themselves, not the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from dynaclr_wds.pages.markup import Html


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
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(_cell(value, n == 0) for n, value in enumerate(row))}</tr>" for row in rows)
    said = f"<caption><span>{escape(caption)}</span></caption>" if caption else ""
    return Html(f'<div class="wide"><table>{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def _cell(value: object, is_head: bool) -> str:
    if is_head:
        return f'<th scope="row">{escape(str(value))}</th>'
    number = isinstance(value, int | float) and not isinstance(value, bool)
    shown = f"{value:,}" if isinstance(value, int) and number else f"{value:.3g}" if number else str(value)
    return f"<td{' class=n' if number or _looks_like_number(shown) else ''}>{escape(shown)}</td>"


def _looks_like_number(shown: str) -> bool:
    return re.match(r"[-+–<≤]?\d|–$", shown) is not None
