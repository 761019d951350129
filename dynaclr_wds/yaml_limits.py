"""Refuses YAML that would fill the memory or the stack, before anything is made of it, event by event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from dynaclr_wds.errors import ConfigError

_MOST_VALUES = 100_000
"""Aliases may expand to this many values beyond those that are written."""
_MOST_DEPTH = 100
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_yaml(text: str, where: str) -> None:
    """Check how deep a YAML text is nested, and how much its aliases expand to; tells nothing about its syntax.

    Parameters
    ----------
    where
        The file, for errors.

    Raises
    ------
    ConfigError
        It is nested too deeply, a value contains itself, or aliases expand to far more values than are written.
    """
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    written = expanded = 0
    try:
        for event in yaml.parse(text, Loader=_PARSER):
            if isinstance(event, yaml.AliasEvent):
                if event.anchor in [anchor for anchor, _ in opened]:
                    raise ConfigError(f"{where}: a value contains itself ({_place(event)}). Remove the alias.")
                expanded += sizes.get(str(event.anchor), 0)
            elif isinstance(event, yaml.ScalarEvent):
                written, expanded = written + 1, expanded + 1
                if event.anchor is not None:
                    sizes[event.anchor] = 1
            elif isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, expanded))
                written, expanded = written + 1, expanded + 1
                if len(opened) > _MOST_DEPTH:
                    raise ConfigError(
                        f"{where}: is nested too deeply, more than {_MOST_DEPTH} levels ({_place(event)}). Write "
                        "it flat."
                    )
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = opened.pop()
                if anchor is not None:
                    sizes[anchor] = expanded - before
    except yaml.YAMLError:
        return  # whoever reads it says so
    if expanded > written + _MOST_VALUES:
        raise ConfigError(
            f"{where}: {written} values are written, but the aliases (*name) expand them to {expanded:.3g}; allowed "
            f"are {_MOST_VALUES} more than are written. Write the values out, or use fewer aliases."
        )


def _place(event: yaml.Event) -> str:
    return f"line {event.start_mark.line + 1}" if event.start_mark else "somewhere"


def limit_loader(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make a loader of jsonargparse that checks a text before it loads it."""

    def check_and_load(stream: str) -> Any:
        if len(stream) > _MOST_DEPTH:
            try:
                check_yaml(stream, "the config")
            except ConfigError as error:
                raise yaml.YAMLError(str(error).removeprefix("the config: ").rstrip(".")) from error
        return load(stream)

    return check_and_load
