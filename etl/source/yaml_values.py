"""Reads a YAML file to plain values, safely: no tag is run, no key is lost, no alias fills the memory.

Nothing here knows what a value is for. What the values must be is said in `etl.source.fields`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Hashable, Mapping
from typing import Any

import yaml

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.storage.location import Location, Place
from dynaclr_wds.storage.objects import open_object, read_whole
from dynaclr_wds.storage.options import StorageOptions
from dynaclr_wds.yaml_limits import check_yaml
from etl.source.reading import naming_file

_MOST_BYTES = 1 << 26
"""Of an object that is read as YAML."""

_NOT_TEXT = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "timestamp"))


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, and keeps the scalars below some keys as they are written."""

    as_text: Collection[str] = ()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:  # YAML would keep the last and lose the first
                line = key.start_mark.line + 1
                raise ConfigError(f"{self.name}: key {key.value!r} is written twice (line {line}). Remove one.")
            seen.add(key.value)
        self.flatten_mapping(node)
        node.value = [(key, _keep_text(value) if key.value in self.as_text else value) for key, value in node.value]
        return super().construct_mapping(node, deep)


def _keep_text(node: yaml.Node) -> yaml.Node:
    """Copy a node so that numbers, booleans and dates in it stay the text that they are written as."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(_keep_text(key), _keep_text(value)) for key, value in node.value]
        return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)
    if isinstance(node, yaml.SequenceNode):
        return yaml.SequenceNode(node.tag, [_keep_text(item) for item in node.value], node.start_mark, node.end_mark)
    tag = "tag:yaml.org,2002:str" if node.tag in _NOT_TEXT else node.tag
    return yaml.ScalarNode(tag, node.value, node.start_mark, node.end_mark)


def read_yaml(path: Place, as_text: Collection[str] = (), options: StorageOptions | None = None) -> object:
    """Read a YAML file.

    Parameters
    ----------
    path
        A UTF-8 file, or an object that is one.
    as_text
        Keys below which `007`, `yes` and `2024-01-05` are text, as written.
    options
        How requests to object storage are made.

    Raises
    ------
    ConfigError
        No such file, not YAML, a key written twice, or aliases that expand to too much.
    StorageError
        The file cannot be read.
    """
    text, loader = _read(path, options), None
    check_yaml(text, str(path))
    try:
        loader = _StrictLoader(text)
        loader.name, loader.as_text = str(path), as_text
        node = loader.get_single_node()
        if node is None:
            return None
        return loader.construct_document(node)
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply. Write it flat.") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        # the constructors of explicit tags, such as `!!int ""`, raise whatever the text leads to
        raise ConfigError(f"{path}: can't be read as YAML ({_tell(error)}). Correct it.") from error
    finally:
        if loader is not None:
            loader.dispose()


def _read(path: Place, options: StorageOptions | None) -> str:
    with naming_file(path, "YAML"):
        try:
            if isinstance(path, Location):
                storage, name = open_object(path, options or StorageOptions())
                return bytes(read_whole(storage, name, _MOST_BYTES)[0]).decode()
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            pass
    raise ConfigError(f"{path}: no such file. Give the path of an experiments.yaml.")


def _tell(error: Exception) -> str:
    """Say in one line what is wrong, and in which line and column."""
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or " ".join(str(error).split())
    return said if mark is None else f"{said}, in line {mark.line + 1}, column {mark.column + 1}"


def expand_variables(text: str, where: str, variables: Mapping[str, str] | None = None) -> str:
    """Replace `${VAR}` by the value of a variable.

    Parameters
    ----------
    variables
        Those that the file defines itself; others are the environment's.

    Raises
    ------
    ConfigError
        The variable is not set.
    """
    known = {**os.environ, **(variables or {})}

    def expand(match: re.Match[str]) -> str:
        name = match[1]
        if name not in known:
            raise ConfigError(f"{where}={text!r}: ${{{name}}} is not set. Set the environment variable {name}.")
        return known[name]

    return re.sub(r"\$\{(\w+)\}", expand, text)
