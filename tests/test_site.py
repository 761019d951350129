"""The documents make a site: every link leads to a page and to a heading of it, every docstring can be shown."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

DOCS = Path(__file__).parent.parent / "docs"


def build_site(source: Path, out: Path) -> str:
    """Read all documents, resolve their links, write no page; return the warnings."""
    warnings = io.StringIO()
    with patch_docutils(DOCS), docutils_namespace():
        Sphinx(source, DOCS, out, out / "doctrees", "dummy", status=None, warning=warnings).build()
    return re.sub(r"\x1b\[[0-9;]*m", "", warnings.getvalue())


@pytest.fixture(autouse=True)
def _path_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Sphinx and its extensions
def test_nothing_is_amiss(tmp_path: Path) -> None:
    assert build_site(DOCS, tmp_path) == ""


@pytest.mark.filterwarnings("ignore")
def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    (source / "index.md").write_text(
        "# Title\n\n[page](OTHER.md) [heading](OTHER.md#not-there) [top](#nowhere)\n\n:::{toctree}\nOTHER\n:::\n"
    )
    (source / "OTHER.md").write_text("# Other\n\n[good](index.md#title) [bad](MISSING.md)\n")
    lines = build_site(source, tmp_path / "site").splitlines()
    found = sorted(line.split("WARNING: ")[1].split(" [")[0] for line in lines)
    assert found == [
        "'myst' cross-reference target not found: 'MISSING.md'",
        "'myst' cross-reference target not found: 'nowhere'",
        "local id not found in doc 'OTHER': 'not-there'",
    ]
