"""Text to HTML: paragraphs, lists, notes and grids, escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Literal, NewType

Html = NewType("Html", str)
"""Markup that may go into a page as it is. Text becomes such only through the functions of this room, which escape."""

Level = Literal["good", "fair", "bad", "note"]


def text(words: str) -> Html:
    """Escape text."""
    return Html(escape(words))


def join(parts: Iterable[Html]) -> Html:
    """Put pieces one after the other."""
    return Html("\n".join(parts))


def block(parts: Iterable[Html]) -> Html:
    """Put pieces one below the other, as one piece of a grid."""
    return Html(f"<div>{join(parts)}</div>")


def paragraph(words: str, *, small: bool = False) -> Html:
    """Make a paragraph."""
    return Html(f"<p{' class=small' if small else ''}>{escape(words)}</p>")


def bullets(lines: Sequence[str]) -> Html:
    """Make a list; nothing of no lines."""
    return Html("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>") if lines else Html("")


def command(line: str) -> Html:
    """Show a command or a file's content as it is typed."""
    return Html(f"<pre>{escape(line)}</pre>")


def note(words: str, level: Level = "note", head: str | None = None) -> Html:
    """Make a sentence that stands out: what is good, fair or bad, in a word beside the colour.

    Parameters
    ----------
    head
        The word; None = the level.
    """
    head = "" if level == "note" and head is None else f"<b>{escape(head or level)}</b> "
    return Html(f'<p class="note {level}">{head}{escape(words)}</p>')


def heading(words: str, file: str | None = None) -> Html:
    """Make a heading within a section; it leads to `file`, beside the page, where one is named."""
    shown = escape(words) if file is None else f'<a href="{escape(file)}">{escape(words)}</a>'
    return Html(f"<h3>{shown}</h3>")


def details(summary: str, content: Html) -> Html:
    """Make a part that is folded until the reader opens it."""
    return Html(f"<details><summary>{escape(summary)}</summary>{content}</details>")


def grid(pieces: Sequence[Html], least_pixels: int = 300) -> Html:
    """Put pieces side by side, as many as fit: one below the other on a narrow screen.

    Parameters
    ----------
    least_pixels
        Width below which a piece moves to the next line.
    """
    columns = f"grid-template-columns:repeat(auto-fill,minmax(min({least_pixels}px,100%),1fr))"
    return Html(f'<div class="grid" style="{columns}">' + "".join(pieces) + "</div>")
