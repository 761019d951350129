"""Makes a site of the documents: `make docs`. A link that leads nowhere stops it.

In the repository the documents link to each other as files. Here links to documents of the top folder become links to
pages, and links to what is no page (a config, the licence) lead to the repository.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from dynaclr_wds import __version__
from dynaclr_wds.__main__ import COMMANDS, LIGHTNING, main

ROOT = Path(__file__).parent.parent
REPOSITORY = "https://github.com/dynaclr-wds/dynaclr-wds"
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Document of the top folder → the page that includes it."""

project, author, copyright, version = "dynaclr-wds", "the dynaclr-wds authors", "the dynaclr-wds authors", __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
exclude_patterns = ["*.py"]

html_theme = "furo"
html_title = f"dynaclr-wds {__version__}"
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}
html_show_sphinx = False
html_copy_source = False
pygments_style, pygments_dark_style = "friendly", "monokai"

# docstrings are numpy's, with single backticks for code
default_role = "code"
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
add_module_names = False
maximum_signature_line_length = 88
python_use_unqualified_type_names = True


def include_top(text: str) -> str:
    """Put documents of the top folder in the place of the directives that include them."""
    return re.sub(
        r"^:::\{include\} \.\./(\S+)\n:::$", lambda found: (ROOT / found[1]).read_text(), text, flags=re.MULTILINE
    )


def lead_links(text: str, origin: str, pages: set[str]) -> str:
    """Let links lead to pages where there is one, else to the repository.

    Parameters
    ----------
    text
        Markdown.
    origin
        The file that the links stand in, relative to the repository.
    pages
        All pages, relative to `docs/`.
    """
    here = PAGES.get(origin, origin.removeprefix("docs/"))

    def lead(found: re.Match[str]) -> str:
        where = posixpath.normpath(posixpath.join(posixpath.dirname(origin), found[1]))
        page = PAGES.get(where, where.removeprefix("docs/"))
        if page in pages:
            return f"]({posixpath.relpath(page, posixpath.dirname(here) or '.')}{found[2] or ''})"
        if (ROOT / where).exists():
            kind = "tree" if (ROOT / where).is_dir() else "blob"
            return f"]({REPOSITORY}/{kind}/main/{where}{found[2] or ''})"
        return found[0]  # Sphinx names it

    return re.sub(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", lead, text)


def _read_source(app: Any, docname: str, source: list[str]) -> None:
    pages = {os.fspath(app.env.doc2path(name, base=False)) for name in app.env.found_docs}
    if f"{docname}.md" not in pages:
        return
    origin = next((top for top, page in PAGES.items() if page == f"{docname}.md"), f"docs/{docname}.md")
    source[0] = lead_links(include_top(source[0]), origin, pages)


def read_help(command: str) -> str:
    """Return what `--help` of a command says, 100 columns wide and without colours."""
    text = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["dynaclr-wds"]),
        mock.patch.dict("os.environ", COLUMNS="100", NO_COLOR="1"),
        contextlib.redirect_stdout(text),
        contextlib.suppress(SystemExit),
    ):
        main([command, "--help"])
    return re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()).strip()


class CommandHelp(SphinxDirective):
    """Shows the help of every command, a section each."""

    def run(self) -> list[nodes.Node]:
        """Make the sections."""
        sections: list[nodes.Node] = []
        for name, says in ({name: entry[1] for name, entry in COMMANDS.items()} | LIGHTNING).items():
            section = nodes.section(ids=[name], names=[name])
            self.state.document.note_explicit_target(section)
            section += [nodes.title(text=name), nodes.paragraph(text=says)]
            section += nodes.literal_block(text=read_help(name), language="text")
            sections.append(section)
        return sections


def setup(app: Any) -> None:
    """Register the above."""
    app.connect("source-read", _read_source)
    app.add_directive("command-help", CommandHelp)
