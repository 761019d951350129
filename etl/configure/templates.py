"""Fills the shipped configs: finds `configs/*.yaml` and replaces values, keeping order and comments.

The configs are the templates; there is no second copy. What depends on the user's data is marked CHANGE in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import dynaclr_wds
from dynaclr_wds.errors import BuildError

MARK = "CHANGE"
"""Stands in the comment of each line that depends on the user's data."""

_KEY = re.compile(r"(?P<indent> *)(?P<item>- )?(?P<key>\w+):(?P<rest>\s.*)?")


class Value(NamedTuple):
    """What a key is given."""

    text: str
    """As YAML, in one line."""
    comment: str
    """Stands behind it, in place of the template's."""


def quote(text: str) -> str:
    """Write a text as YAML, in quotes where it would be read as something else."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./\-]*", text) and text.lower() not in (
        "null",
        "true",
        "false",
        "yes",
        "no",
        "on",
        "off",
    )
    return text if plain and text != "." else "'" + text.replace("'", "''") + "'"


def find_templates() -> Path:
    """Return the folder of the shipped configs: inside the installed package, or beside it in the repository.

    Raises
    ------
    BuildError
        They are in neither place.
    """
    package = Path(dynaclr_wds.__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "fit.yaml").is_file():
            return folder
    raise BuildError(
        f"{package / 'configs'}: the configs are missing from the installation. Install the package again."
    )


def name_files(template: str, names: Mapping[str, str]) -> str:
    """Name the user's files in the comments of a template, in place of those that it names.

    Parameters
    ----------
    template
        As for `fill_template`.
    names
        What stands there → what the user has, such as `experiments.yaml` → `plates/experiments.yaml`.
    """
    found = re.compile("|".join(map(re.escape, names)))
    lines = []
    for line in template.splitlines():
        before, mark, comment = line.partition("#")
        lines.append(before + mark + found.sub(lambda one: names[one[0]], comment))
    return "\n".join(lines) + "\n"


def fill_template(template: str, values: Mapping[str, Value], said: str) -> str:
    """Replace the values of lines that are marked, in the text of a YAML file.

    Parameters
    ----------
    template
        YAML in block style, one `key: value` a line, indented by two.
    values
        Path of a key, such as `data.shards`, with `-` for an item of a list → what it gets. Paths that the template
        lacks are left out.
    said
        Stands in place of a comment line that speaks of the mark.
    """
    path: list[tuple[int, str]] = []
    lines = []
    for line in template.splitlines():
        if line.startswith("#") and MARK in line:
            lines.append(f"# {said}")
            continue
        if (found := _KEY.fullmatch(line)) is None:
            lines.append(line)
            continue
        indent, item = len(found["indent"]), found["item"] or ""
        path = [(column, key) for column, key in path if column < indent]
        path += [(indent, "-")] if item else []
        path.append((indent + len(item), found["key"]))
        value = values.get(".".join(key for _, key in path)) if MARK in line else None
        start = f"{found['indent']}{item}{found['key']}"
        lines.append(line if value is None else f"{start}: {value.text} # {value.comment}")
    return "\n".join(lines) + "\n"
