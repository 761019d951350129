"""Holds what the user asks to be held out for validation, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dynaclr_wds.errors import ConfigError

EXPERIMENTS, FOVS = "experiments", "fovs"

_NAMING = {EXPERIMENTS: "val_experiments", FOVS: "val_fovs"}
NOUNS = {EXPERIMENTS: ("experiment", "experiments"), FOVS: ("field of view", "fields of view")}


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """What is held out for validation; names and meaning are those of the DataModule's parameters."""

    split: str = EXPERIMENTS
    """`experiments`, `fovs`, or a label."""
    split_ratio: float | None = None
    """Share of training, in (0, 1]; None where what is held out is named."""
    split_seed: int = 0
    """Key of the hash that draws sides."""
    val_experiments: tuple[str, ...] = ()
    val_fovs: tuple[str, ...] = ()
    """`experiment/row/col/fov`, or `row/col/fov` in all experiments."""
    val_values: tuple[str, ...] = ()
    """Values of the label."""

    def __post_init__(self) -> None:
        """Check that the settings go together.

        Raises
        ------
        ConfigError
            Names that don't go with `split`, names and a ratio, neither where one is needed, or a value out of range.
        """
        needed = "" if self.names or self.split_ratio is not None else "one of these and "
        for other in ("val_experiments", "val_fovs", "val_values"):
            if other != self.naming and getattr(self, other):
                raise ConfigError(
                    f"{other}={list(getattr(self, other))} does not go with split={self.split!r}, which takes "
                    f"{self.naming} or split_ratio. Give {needed}{_option(other)}, or --data.split {_split_of(other)}."
                )
        if self.split_ratio is not None and not 0 < self.split_ratio <= 1:
            raise ConfigError(
                f"split_ratio={self.split_ratio!r} must be in (0, 1]: the share of training. Give 0.8 to hold out a "
                "fifth, 1.0 to hold out nothing."
            )
        if self.split_ratio is not None and self.names:
            raise ConfigError(
                f"split_ratio={self.split_ratio} and {self.naming}={list(self.names)} both say what is held out. "
                f"Drop one of the two: {_option('split_ratio')}, or {_option(self.naming)}."
            )
        if self.split_ratio is None and not self.names and self.split != EXPERIMENTS:
            raise ConfigError(
                f"split={self.split!r} needs {self.naming} or split_ratio. Give split_ratio: 0.8 to hold out a fifth, "
                f"or name what to hold out in {self.naming}."
            )
        if not 0 <= self.split_seed < 2**64:
            raise ConfigError(f"split_seed={self.split_seed} must be a whole number in [0, 2**64).")

    @property
    def naming(self) -> str:
        """Setting that names what is held out."""
        return _NAMING.get(self.split, "val_values")

    @property
    def names(self) -> tuple[str, ...]:
        """What is named to be held out."""
        return tuple(getattr(self, self.naming))

    @property
    def holds_out(self) -> bool:
        """Whether anything is asked to be held out."""
        return bool(self.names) or (self.split_ratio or 1.0) < 1.0

    @property
    def short(self) -> str:
        """What is held out, in three words."""
        one, more = NOUNS.get(self.split, (f"value of {self.split}", f"values of {self.split}"))
        if self.split_ratio is not None:
            return f"{1 - self.split_ratio:.0%} of {more}"
        return f"{len(self.names)} {one if len(self.names) == 1 else more}"

    def __str__(self) -> str:
        what = "" if self.split == EXPERIMENTS else f"split={self.split!r}, "
        if self.split_ratio is not None:
            return f"{what}split_ratio={self.split_ratio:g}, split_seed={self.split_seed}"
        return f"{what}{self.naming}={list(self.names)}"


def parse_split(values: Mapping[str, Any]) -> SplitConfig:
    """Read what is held out from arguments of the DataModule, or from options; others are left alone.

    Raises
    ------
    ConfigError
        Values that don't go together.
    """
    given = {f.name: values[f.name] for f in fields(SplitConfig) if values.get(f.name) is not None}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return SplitConfig(**given | ({"split_ratio": float(given["split_ratio"])} if "split_ratio" in given else {}))


def _option(name: str) -> str:
    return f"--data.{name} null"


def _split_of(naming: str) -> str:
    """Say which `split` takes these names."""
    return next((split for split, name in _NAMING.items() if name == naming), "LABEL")
