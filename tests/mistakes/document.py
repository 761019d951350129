"""Reads docs/MISTAKES.md: what the program says of each mistake."""

from __future__ import annotations

import re
from pathlib import Path

PATH = Path(__file__).parent.parent.parent / "docs" / "MISTAKES.md"

_ENTRY = re.compile(r"^(?P<what>[^\n#]+):\n\n```text\n(?P<says>.*?)\n```$", re.MULTILINE | re.DOTALL)


def parse_document(text: str) -> dict[str, str]:
    """Return what was done → what is said of it; `…` stands for anything."""
    found = [(entry["what"], entry["says"]) for entry in _ENTRY.finditer(text)]
    assert len(dict(found)) == len(found), "a mistake stands there twice"
    return dict(found)


def as_pattern(says: str) -> re.Pattern[str]:
    """Make a pattern of what is said: `…` is anything, any white space is any white space."""
    parts = [r"\s+".join(map(re.escape, part.split())) for part in says.split("…")]
    return re.compile(r".*?".join(r"\s*" + part + r"\s*" for part in parts), re.DOTALL)
