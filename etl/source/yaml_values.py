"""YAML text to checked values: one small parser per kind, each error naming the YAML path.

`where` is always the path of the value as the error shows it, e.g.
`experiments.yaml: experiments[2].interval_minutes`. Nothing here knows what a value is for.
"""

from __future__ import annotations

import datetime
import difflib
import math
import os
import re
from collections.abc import Collection, Hashable
from pathlib import Path
from typing import Any

import yaml

from dynaclr_wds.errors import ConfigError


def value_error(where: str, value: object, rule: str, advice: str) -> ConfigError:
    """Make the error for a value: where and what it is, what it must be, what to do."""
    return ConfigError(f"{where}={value!r} must be {rule}. {advice}")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice: YAML would keep the last and lose the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{self.name}: key {key.value!r} is written twice (line {line}). Remove one.")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> object:
    """Read a YAML file without running any tag."""
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.load(file, Loader=_StrictLoader)  # a SafeLoader
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file. Give the path of an experiments.yaml.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML. {error}") from error


def parse_table(raw: object, where: str, allowed: Collection[str]) -> dict[str, Any]:
    """Parse a mapping whose keys are all in `allowed`."""
    if not isinstance(raw, dict):
        raise value_error(where, raw, f"a mapping with keys of {sorted(allowed)}", "Write `key: value` lines.")
    for key in raw:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            advice = f"Did you mean {close[0]!r}?" if close else "Remove it."
            raise ConfigError(f"{where}: unknown key {key!r}; allowed are {sorted(allowed)}. {advice}")
    return raw


def parse_text(raw: object, where: str) -> str:
    """Parse a non-empty string."""
    if not isinstance(raw, str) or not raw.strip():
        raise value_error(where, raw, "a non-empty string", "Put it in quotes if it looks like something else.")
    return raw


def parse_texts(raw: object, where: str, pattern: str = r"[\s\S]+", example: str = "GFP") -> tuple[str, ...]:
    """Parse a list of at least one string, none twice, each of the form `pattern`."""
    if not isinstance(raw, (list, tuple)) or not raw:
        raise value_error(where, raw, "a list of at least one string", f"Write [{example}].")
    texts = tuple(parse_text(item, f"{where}[{number}]") for number, item in enumerate(raw))
    for number, text in enumerate(texts):
        if not re.fullmatch(pattern, text):
            raise value_error(f"{where}[{number}]", text, f"of the form {example}", "Correct it.")
        if text in texts[:number]:
            raise value_error(f"{where}[{number}]", text, "listed once", "Remove the second.")
    return texts


def parse_label(raw: object, where: str) -> str:
    """Parse a free text; absent is empty, a date or a number is taken as it is written."""
    if raw is None:
        return ""
    if isinstance(raw, bool) or not isinstance(raw, (str, int, float, datetime.date)):
        raise value_error(where, raw, "a text", "Put it in quotes.")
    return str(raw)


def parse_number(raw: object, where: str, *, low: float | None = None, advice: str = "Correct it.") -> float:
    """Parse a finite number, at least `low` if given."""
    number = isinstance(raw, (int, float)) and not isinstance(raw, bool)
    if not number or not math.isfinite(raw) or (low is not None and raw < low):  # type: ignore[arg-type,operator]
        raise value_error(where, raw, "a number" if low is None else f"a number ≥ {low:g}", advice)
    return float(raw)  # type: ignore[arg-type]


def parse_integer(raw: object, where: str, *, low: int) -> int:
    """Parse a whole number, at least `low`."""
    if not isinstance(raw, int) or isinstance(raw, bool) or raw < low:
        raise value_error(where, raw, f"a whole number ≥ {low}", "Correct it.")
    return raw


def parse_pair(raw: object, where: str, example: str) -> tuple[Any, Any]:
    """Parse a list of two values, which are not looked at."""
    if not isinstance(raw, (list, tuple)) or len(raw) != 2:
        raise value_error(where, raw, "a list of two numbers", f"Write {example}.")
    return raw[0], raw[1]


def parse_path(raw: object, where: str) -> str:
    """Parse a path or URL, `${VAR}` expanded from the environment."""

    def expand(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise ConfigError(f"{where}={raw!r}: ${{{name}}} is not set. Set the environment variable {name}.")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", expand, parse_text(raw, where))
