"""Reads JSON of strangers: what two readers might take for two things is refused. Standard library only."""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: str | bytes) -> Any:
    """Read JSON that must be UTF-8, with every key once, and without NaN, Infinity and halves of characters.

    Raises
    ------
    ValueError
        It is not so, or it is nested too deeply; says in a line what is wrong.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        raw = json.loads(text, object_pairs_hook=_refuse_twins, parse_constant=_refuse_constant)
        if "\\u" in text:  # only so can half of a surrogate pair be written
            json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start:,} is not UTF-8") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a character (a surrogate alone)") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return raw


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.100} is there twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
