"""Sections to a page: one HTML file with its style and pictures inside, readable on a phone and on paper.

The page forbids browsers to load anything: its policy allows pictures and styles that are part of the file, and no
script at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from dynaclr_wds.errors import StorageError
from dynaclr_wds.files import write_whole
from dynaclr_wds.pages.markup import Html, join
from dynaclr_wds.words import size_of

MOST_BYTES = 5 * 10**6
"""Most bytes of a page, so that it can be sent by mail and opens at once."""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a page, with a place in its list of contents."""

    title: str
    content: Sequence[Html]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page."""

    title: str
    lead: str
    """One or two sentences on what it shows."""
    sections: Sequence[Section]
    made_by: str = ""
    """The command that made it, and of what."""

    def render(self) -> str:
        """Write the page as HTML."""
        style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
        links = "".join(f'<li><a href="#s{n}">{escape(s.title)}</a></li>' for n, s in enumerate(self.sections))
        parts = [
            f'<section id="s{n}"><h2>{escape(s.title)}</h2>{join(s.content)}</section>'
            for n, s in enumerate(self.sections)
        ]
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>{escape(self.title)}</title><style>{style}</style></head><body>'
            f"<header><h1>{escape(self.title)}</h1><p>{escape(self.lead)}</p></header><nav><ul>{links}</ul></nav>"
            f"<main>{join(map(Html, parts))}</main><footer>{escape(self.made_by)}</footer></body></html>\n"
        )


def write_page(path: Path, page: Page) -> int:
    """Write a page whole; returns its bytes.

    Raises
    ------
    StorageError
        The disk is full, or the page is larger than `MOST_BYTES`; nothing is written.
    """
    content = page.render().encode()
    if len(content) > MOST_BYTES:
        raise StorageError(
            f"{path}: the page would have {size_of(len(content))}, more than {size_of(MOST_BYTES)}. "
            "Show fewer cells, experiments or embeddings on one page."
        )
    try:
        with write_whole(path) as file:
            file.write(content)
    except OSError as error:
        raise StorageError(f"{path}: can't be written ({error}). Make space, or choose another disk.") from error
    return len(content)
