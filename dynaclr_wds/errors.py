"""The errors of this project, offline and online. Imports no library.

::

    Exception
    └── DynaCLRError               every error that is ours
        ├── FormatError            a shard set that is not what its manifest or docs/FORMAT.md says (ValueError)
        │   └── ChecksumError      bytes that are not those that were written
        ├── ConfigError            a setting, YAML file or track table that can't be used (ValueError)
        │   └── WindowError        a window that is too small; it holds the settings that would do
        ├── CheckpointError        a checkpoint that can't be read or used for what is asked (ValueError)
        ├── PlateError             a plate that can't be read, or is not OME-Zarr (ValueError)
        │   └── FovError           a field of view of which some pixels can't be read
        ├── BuildError             a build that can't start or go on, for a reason outside its input (RuntimeError)
        ├── StorageError           a file that fails while it is read (OSError)
        └── NotFiniteError         a loss or weights that are NaN or infinite (FloatingPointError)

Each is also a builtin, so callers may catch that. A message has three parts: what broke and where, what is allowed,
what to do.
"""

from __future__ import annotations

from dynaclr_wds.words import size_of, size_option


class DynaCLRError(Exception):
    """Base of every error that is ours."""


class FormatError(DynaCLRError, ValueError):
    """A shard set that is not what the manifest says, or a manifest of another format."""


class ChecksumError(FormatError):
    """Bytes that are not those that were written."""


class ConfigError(DynaCLRError, ValueError):
    """A setting, an experiments.yaml, or a track file it names, that cannot be used."""


class WindowError(ConfigError):
    """A window that is too small; holds the settings that would do, to be written as the user gives them.

    Parameters
    ----------
    window_bytes
        The window.
    problem
        What it can't hold, in sentences.
    ways
        Settings that would be accepted, name → value, each with a remark or an empty text.
    asked
        What was to be read through the window, as `plan.streaming.window` holds it.
    """

    def __init__(
        self, window_bytes: int, problem: str, ways: list[tuple[dict[str, object], str]], asked: object = None
    ) -> None:
        self.window_bytes, self.problem, self.ways, self.asked = window_bytes, problem, ways, asked
        self.typed: int | float | str = window_bytes
        """What the user gave for it, such as `10%`."""
        super().__init__(window_bytes, problem, ways)

    def __str__(self) -> str:
        return self.spell()

    def spell(self, before: str | None = None) -> str:
        """Write the message with settings as options that begin with `before`, such as `--`; None = as in Python."""
        ways = []
        for settings, remark in self.ways:
            size = settings.get("window_bytes")
            sizes = [size_of(size)] if before is None and isinstance(size, int) else []  # as an option it has a unit
            told = "; ".join([*sizes, *[remark] * bool(remark)])
            words = [_spell(*one, before) for one in settings.items()]
            ways.append((", " if before is None else " ").join(words) + f" ({told})" * bool(told))
        given = f"window_bytes={self.typed!r}" if before is None else f"{before}window_bytes {self.typed}"
        return (
            f"{given} ({size_of(self.window_bytes)}) is too small. {self.problem} Give one of these instead: "
            f"{'; '.join(ways)}. Or build shards with a smaller block_bytes."
        )


def _spell(name: str, value: object, before: str | None) -> str:
    """Write a setting: as an argument in Python, or as an option."""
    number = isinstance(value, int) and name == "window_bytes"
    if before is None:
        return f"{name}={value:_}" if number else f"{name}={value}"
    words = size_option(int(str(value))) if number else str(value).lower().replace("none", "null")
    return f"{before}{name} {words}"


class CheckpointError(DynaCLRError, ValueError):
    """A checkpoint that can't be read, isn't ours, or doesn't fit what is asked of it."""


class PlateError(DynaCLRError, ValueError):
    """A plate whose metadata or arrays are not what OME-Zarr or this project needs."""


class FovError(PlateError):
    """A field of view of which some pixels can't be read."""


class BuildError(DynaCLRError, RuntimeError):
    """A build that cannot start or go on, for a reason outside the input."""


class StorageError(DynaCLRError, OSError):
    """A file or disk that fails while it is read."""


class NotFiniteError(DynaCLRError, FloatingPointError):
    """A loss, or weights, that are NaN or infinite."""
