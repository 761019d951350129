"""Pages open in a browser: pictures are there, nothing fails, nothing leaves the page, and no page is too wide."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynaclr_wds.pages.shell import Page, Section, write_page
from dynaclr_wds.pages.tables import table
from tests.servers.chromium import Chromium
from tests.test_pages import make_page

_HEAD = '<!doctype html><html><head><meta charset="utf-8"><link rel="icon" href="data:,"></head><body><main>'
_PIXEL = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"

FAULTS = {
    "nothing": (f'<img alt="a dot" src="data:image/gif;base64,{_PIXEL}"><a href="#here" id="here">here</a>', []),
    "a broken picture": ('<img alt="cells" src="data:image/png;base64,AAAA">', ["the picture 'cells' is not there."]),
    "a script that fails": ("<script>absent()</script>", ["the browser says: Uncaught"]),
    "a script that complains": ("<script>console.error('no')</script>", ["the browser says: ['no']"]),
    "a picture from elsewhere": (
        '<img alt="x" src="http://example.org/a.png">',
        [
            "the picture 'x' is not there.",
            "the browser says: Failed to load resource: net::ERR_NAME_NOT_RESOLVED",
            "it asks for http://example.org/a.png.",
        ],
    ),
    "a font from elsewhere": (
        "<style>@font-face{font-family:f;src:url(https://example.org/f.woff)} p{font-family:f}</style><p>text</p>",
        ["it asks for https://example.org/f.woff."],
    ),
    "a link that leads nowhere": ('<a href="#gone">there</a>', ["the link #gone leads nowhere."]),
    "a wide part, folded": (
        "<details><summary>more</summary><div style='width:900px'>wide</div></details>",
        ["it is 908 pixels wide, because of ['<div style=\"width:900px\">wide</div>']."],
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_is_wrong_with_a_page_is_found(what: str, tmp_path: Path, chromium: Chromium) -> None:
    content, faults = FAULTS[what]
    page = tmp_path / "page.html"
    page.write_text(f"{_HEAD}{content}</main></body></html>")
    found = chromium.open(page)
    for fault in faults:
        assert any(fault in one for one in found.faults), found.faults
    if not faults:
        assert found.faults == ()
        assert found.images == 1
    if what == "a wide part, folded":
        assert all(one.startswith("at 400 pixels: ") for one in found.faults)


def test_no_table_scrolls_sideways_on_a_phone(tmp_path: Path, chromium: Chromium) -> None:
    heads = ["experiment", "cells", "with a positive", "FOVs", "tracks", "lineages", "divisions", "tracks with gaps"]
    content = [table(heads, [["a549_dengue", 12345, "11,111 (90.0%)", 12, 345, 123, 45, 6]], "Experiments.")]
    content += [table(["by", "both", "Retardance", "mNeonGreen"], [["both channels", "0.58", "0.51", "0.64"]])]
    content += [
        table(["share of the batch", "asked", "is", ""], [["near (temporal_enrichment)", "1%", "2%", "as asked"]])
    ]
    page = Page(title="x", lead="x", sections=[Section(title="x", content=content)])
    write_page(tmp_path / "page.html", page)
    found = chromium.open(tmp_path / "page.html")
    assert found.faults == ()
    (tmp_path / "old.html").write_text((tmp_path / "page.html").read_text().replace(" class=many", ""))
    faults = chromium.open(tmp_path / "old.html").faults
    assert any(fault.startswith("at 400 pixels: the table 'Experiments.") for fault in faults)


def test_every_piece_of_a_page_opens_without_a_fault(tmp_path: Path, chromium: Chromium) -> None:
    long = "a_name_without_a_space_that_is_longer_than_the_screen_of_a_phone_is_wide" * 2
    write_page(tmp_path / "page.html", make_page(long))
    found = chromium.open(tmp_path / "page.html")
    assert found.faults == ()
    assert found.images == 4
    assert long in found.text
