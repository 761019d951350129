"""Laws of pages: data can't become markup, pictures lie inside, nothing is asked for, and a page is whole or absent."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dynaclr_wds.errors import StorageError
from dynaclr_wds.pages import shell
from dynaclr_wds.pages.markup import bullets, command, details, grid, heading, join, note, paragraph, text
from dynaclr_wds.pages.pictures import new_figure, show_figure, show_image, show_strip, to_grey
from dynaclr_wds.pages.shell import Page, Section, write_page
from dynaclr_wds.pages.tables import table
from tests.test_imports import loaded_by, modules_of

EVIL = "<script>alert(1)</script>\" onload='x' &"


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def make_page(words: str = "words") -> Page:
    figure = new_figure()
    figure.subplots().plot([0, 1], [1, 0])
    patch = np.arange(12, dtype=np.float32).reshape(3, 4)
    content = [
        paragraph(words),
        paragraph(words, small=True),
        bullets([words]),
        command(words),
        note(words, "bad"),
        note(words),
        note(words, "fair", words),
        heading(words),
        details(words, join([text(words)])),
        table([words, "b"], [[words, words], ["x", 0.5]], words),
        show_figure(figure, words, words),
        show_figure(figure, words, kind="svg"),
        grid([show_image(to_grey(patch), words)]),
        show_strip([to_grey(patch)], [words], words),
    ]
    return Page(title=words, lead=words, sections=[Section(title=words, content=content)], made_by=words)


def test_what_comes_from_data_never_becomes_markup():
    plain, evil = (Tags(make_page(words).render()).found for words in ("w" * len(EVIL), EVIL))
    assert [tag for tag, _ in evil] == [tag for tag, _ in plain]
    assert [set(attributes) for _, attributes in evil] == [set(attributes) for _, attributes in plain]


def test_a_page_has_no_script_and_asks_for_nothing():
    tags = Tags(make_page().render()).found
    assert {"script", "iframe", "object", "embed", "form", "base"}.isdisjoint({tag for tag, _ in tags})
    links = [a[key] or "" for _, a in tags for key in ("src", "href") if key in a]
    assert len([link for link in links if link.startswith("data:image/")]) == 4
    assert all(link.startswith(("data:", "#")) for link in links)
    (policy,) = [a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not re.search(r"url\(|@import", make_page().render())


def test_pictures_are_whole_and_say_what_they_show():
    pictures = [a for tag, a in Tags(make_page("cells").render()).found if tag == "img"]
    assert all(str(a["alt"]).startswith("cells") for a in pictures)
    kinds = {"data:image/png;base64": b"\x89PNG", "data:image/svg+xml;base64": b"<?xml"}
    for picture in pictures:
        head, _, data = str(picture["src"]).partition(",")
        assert base64.b64decode(data, validate=True).startswith(kinds[head])


def test_grey_runs_from_the_darkest_to_the_brightest_pixel_and_takes_what_is_not_finite():
    assert to_grey(np.array([[0.0, 5.0, 10.0]]), (0, 10)).tolist() == [[0, 127, 255]]
    assert to_grey(np.array([[np.nan, 1.0, np.inf]]), (1, 2)).tolist() == [[0, 0, 0]]
    assert to_grey(np.full((2, 2), 7.0)).tolist() == [[0, 0], [0, 0]]
    assert to_grey(np.full((1, 1), np.nan)).tolist() == [[0]]


def test_a_note_says_its_level_or_another_word():
    assert note("x", "bad") == '<p class="note bad"><b>bad</b> x</p>'
    assert note("x", "bad", "wrong") == '<p class="note bad"><b>wrong</b> x</p>'
    assert note("x") == '<p class="note note">x</p>'


def test_numbers_stand_to_the_right_and_a_short_row_is_refused():
    made = table(["", "n", "share", "word"], [["a", 12345, 0.12345, "few"]])
    assert (
        '<td class=n data-of="n">12,345</td><td class=n data-of="share">0.123</td><td data-of="word">few</td>' in made
    )
    assert '<th scope="col" class=n>share</th><th scope="col">word</th>' in made
    assert "class=n" not in table(["", "n"], [["a", 1], ["b", "none"]])  # a column is one or the other
    with pytest.raises(ValueError, match=r"The row \['a'\] must have 2 cells: \['', 'n'\]"):
        table(["", "n"], [["a"]])


def test_a_table_that_a_phone_cannot_show_side_by_side_becomes_a_list():
    names = ["batch", "cells", "tracks", "lineages", "divisions", "with a positive"]
    assert "<table class=many>" in table(names, [["sim_00/uninfected", 290, 30, 21, 5, "268 (92.4%)"]])
    mixed = ["pairs of samples of one FOV", "1.00 (1.02)", "0.99 (1.00)", "about 1; above 1.3 too many are of one FOV"]
    assert "<table class=many>" in table(["", "exact", "ideal", "what is good"], [mixed])  # numbers are not broken
    assert "<table>" in table(["experiment", "count", "why"], [["sim_00", 149, "cells so near the border that " * 9]])


def test_a_page_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "page.html"
    assert write_page(path, make_page()) == path.stat().st_size
    assert path.read_text().endswith("</html>\n")
    monkeypatch.setattr(shell, "MOST_BYTES", 1000)
    with pytest.raises(StorageError, match=r"page.html: the page would have .* more than 1,000 bytes. Show fewer"):
        write_page(tmp_path / "page.html", make_page())
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


@pytest.mark.slow
def test_pages_need_neither_torch_nor_readers_of_plates():
    loaded = loaded_by(*(f"import {name}" for name in modules_of("dynaclr_wds/pages")))
    assert loaded.isdisjoint({"torch", "lightning", "duckdb", "zarr", "etl", "pyarrow"})
