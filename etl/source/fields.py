"""Says what a value of experiments.yaml must be: one annotated type per kind of value, with the words of its error.

pydantic checks the types. `says` puts our words to its errors: what the value must be, and what to do.
`explain` turns the first error into a `ConfigError` that names the YAML path.
"""

from __future__ import annotations

import difflib
import math
import posixpath
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    WrapValidator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from dynaclr_wds.byte_sizes import SIZES, parse_size
from dynaclr_wds.errors import ConfigError

WELL = (r"^[^/\s]+/[^/\s]+$", "A/1")
FOV = (r"^[^/\s]+/[^/\s]+/[^/\s]+$", "A/1/0")


def value_error(where: str, value: object, rule: str, advice: str) -> ConfigError:
    """Make the error for a value: where and what it is, what it must be, what to do."""
    return ConfigError(f"{where}={hide_options(value)!r} must be {rule}. {advice}")


def hide_options(value: object) -> object:
    """Return a value as errors may show it: without what stands under `storage_options`, which may be keys."""
    if isinstance(value, Mapping):
        return {key: "…" if key == "storage_options" else hide_options(inside) for key, inside in value.items()}
    return [hide_options(inside) for inside in value] if isinstance(value, list) else value


def refuse(value: object, rule: str, advice: str, *loc: str | int) -> ValidationError:
    """Make the error that a validator raises; `loc` leads from the validated value to the wrong one inside it."""
    error = PydanticCustomError("rule", "must be {rule}. {advice}", {"rule": rule, "advice": advice})
    return ValidationError.from_exception_data("rule", [InitErrorDetails(type=error, loc=loc, input=value)])


@dataclass(frozen=True)
class As:
    """Validates a field as a finer type than type checkers see: `Annotated[tuple[str, ...], As(texts())]`."""

    kind: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let pydantic check for `kind`."""
        return handler.generate_schema(self.kind)


def says(rule: str, advice: str) -> WrapValidator:
    """Put words to the errors of the type that this annotates: what the value must be, and what to do."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            if any(line["loc"] or line["type"] == "rule" for line in error.errors()):
                raise  # an inner value is wrong, and has its own words
            raise refuse(value, rule, advice) from None

    return WrapValidator(check)


def explain(error: ValidationError, where: str) -> ConfigError:
    """Turn pydantic's first error into ours; `where` is the YAML path of the section."""
    line = error.errors()[0]
    loc, key = list(line["loc"]), ""
    if loc and loc[-1] == "[key]":
        key = " key"
        del loc[-2:]
    path = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc) + key
    words = line.get("ctx", {})
    if line["type"] == "rule":
        return value_error(path, line["input"], words["rule"], words["advice"])
    return ConfigError(f"{path}={hide_options(line['input'])!r}: {line['msg']}. Correct it.")


def parse_table(raw: object, where: str, allowed: Collection[str]) -> dict[str, Any]:
    """Parse a mapping whose keys are all in `allowed`."""
    if not isinstance(raw, dict):
        raise value_error(where, raw, f"a mapping with keys of {sorted(allowed)}", "Write `key: value` lines.")
    for key in raw:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            advice = f"Did you mean {close[0]!r}?" if close else "Remove it."
            raise ConfigError(f"{where}: unknown key {key!r}. {advice} Allowed are {', '.join(sorted(allowed))}.")
    return raw


def is_null_text(text: str) -> bool:
    """Say whether a label's text stands for no value: blank, or NaN."""
    return text.strip().lower() in ("", "nan", ".nan")


def _list_once(texts: tuple[str, ...]) -> tuple[str, ...]:
    for number, text in enumerate(texts):
        if text in texts[:number]:
            raise refuse(text, "listed once", "Remove the second.", number)
    return texts


def _parse_label(raw: object) -> str | None:
    if raw is None or (isinstance(raw, float) and math.isnan(raw)):
        return None
    if not isinstance(raw, str):
        raise refuse(raw, "a text", "Put it in quotes.")
    return None if is_null_text(raw) else raw


def _make_pair(raw: object) -> object:
    return (raw, raw) if isinstance(raw, int) and not isinstance(raw, bool) else raw


def _drop_auto(raw: object) -> object:
    return None if raw == "auto" else raw


def _check_order(ends: tuple[Any, Any]) -> tuple[Any, Any]:
    if ends[1] < ends[0]:
        raise refuse(list(ends), "[shortest, longest] in hours", "Swap the two.")
    return ends


def _check_slices(ends: tuple[int, int]) -> tuple[int, int]:
    if ends[1] <= ends[0]:
        raise refuse(list(ends), "[first, one past the last], first < last", "Write [0, 1] for one slice.")
    return ends


def texts(pattern: str = r"\S", example: str = "GFP", *, least: int = 1) -> Any:
    """Make the type of a list of at least `least` texts of the form `pattern`, none of them twice."""
    item = Annotated[Text, Field(pattern=pattern), says(f"of the form {example}", "Correct it.")]
    words = says("a list of at least one string" if least else "a list of strings", f"Write [{example}].")
    return Annotated[tuple[item, ...], Field(min_length=least), words, AfterValidator(_list_once)]


def well_groups(noun: str, example: str) -> Any:
    """Make the type of a mapping from a value (`noun`) to wells, in which a well is listed once."""

    def check(groups: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
        owner: dict[str, str] = {}
        for name, wells in groups.items():
            for well in wells:
                if well in owner:
                    raise refuse(well, f"in one {noun} only, but {owner[well]!r} has it too", "Remove it.", name)
                owner[well] = name
        return groups

    words = says(f"a mapping of {noun} to wells", f"Write {{{example}: [A/1, A/2]}}.")
    kinds: Any = Mapping[Text, texts(*WELL)]  # type: ignore[misc]
    return Annotated[kinds, Field(min_length=1), words, AfterValidator(check)]


def choice(literal: Any, advice: str) -> Any:
    """Make the type of one of a few texts."""
    return Annotated[literal, says(f"one of {list(literal.__args__)}", advice)]


def whole(low: int) -> Any:
    """Make the type of a whole number, at least `low`, that fits into 64 bits."""
    return Annotated[int, Field(strict=True, ge=low, lt=1 << 63), says(f"a whole number ≥ {low}", "Correct it.")]


def _read_size(raw: object) -> object:
    """Read a size that is written with a unit, as `512K`; other values are judged as they are."""
    if not isinstance(raw, str):
        return raw
    try:
        return parse_size(raw)
    except ValueError:
        return raw


def pair(item: Any, example: str) -> Any:
    """Make the type of a list of two numbers."""

    def check(raw: object) -> object:
        if not isinstance(raw, (list, tuple)) or len(raw) != 2:
            raise refuse(raw, "a list of two numbers", f"Write {example}.")
        return raw

    return Annotated[tuple[item, item], BeforeValidator(check)]


def _check_axes(raw: object) -> object:
    if not isinstance(raw, (list, tuple)) or len(raw) not in (2, 3):
        raise refuse(raw, "a list of two or three numbers", "Write [0.325, 0.325] for y and x in micrometres.")
    return raw


def _repeat_number(raw: object) -> object:
    """Make the size along y and x of one number, or of a list of one, as the command line gives it."""
    one = raw[0] if isinstance(raw, (list, tuple)) and len(raw) == 1 else raw
    return (one, one) if isinstance(one, (int, float)) and not isinstance(one, bool) else raw


def _check_names(names: Mapping[str, str]) -> Mapping[str, str]:
    """Check that no two columns get one name."""
    source: dict[str, str] = {}
    for theirs, ours in names.items():
        if ours in source:
            raise refuse(ours, f"the name of one column, but {source[ours]!r} has it too", "Remove one.", theirs)
        source[ours] = theirs
    return names


_MINUTES = "Give the minutes between frames."
_FINITE = Field(strict=True, allow_inf_nan=False)

Text = Annotated[
    str,
    Field(strict=True, pattern=r"\S"),
    says("a non-empty string", "Put it in quotes if it looks like something else."),
]
Number = Annotated[float, _FINITE, says("a number", "Correct it.")]
NotNegative = Annotated[float, _FINITE, Field(ge=0), says("a number ≥ 0", "Correct it.")]
Minutes = Annotated[
    float, _FINITE, says("a number", _MINUTES), Field(ge=0), says("> 0, or 0 for a plate of one frame", _MINUTES)
]
Micrometres = Annotated[float, _FINITE, Field(gt=0), says("a number > 0", "Give micrometres per pixel.")]
PixelSize: Any = Annotated[tuple[Micrometres, ...], BeforeValidator(_check_axes)]
ReferenceSize: Any = Annotated[PixelSize, BeforeValidator(_repeat_number)]
Label = Annotated[str | None, BeforeValidator(_parse_label)]
Labels = Annotated[Mapping[Text, Label], says("a mapping of label to value", "Write {marker: TOMM20}.")]
ColumnMap = Annotated[
    Mapping[Text, Text],
    says("a mapping of your columns to ours", "Write {FRAME: t, POSITION_Y: y}."),
    AfterValidator(_check_names),
]


def _check_images(wells: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    """Check that images lie below `data_path`, and that none is of two wells."""
    owner: dict[str, str] = {}
    for well, images in wells.items():
        for place, image in enumerate(images):
            inside = posixpath.normpath(image)
            if inside.startswith("/") or inside.split("/")[0] == "..":
                raise refuse(image, "a path below data_path", "Move data_path up, or the image below it.", well, place)
            if inside in owner:
                raise refuse(image, f"of one well only, but {owner[inside]!r} has it too", "Remove it.", well, place)
            owner[inside] = well
    return wells


_Well = Annotated[Text, Field(pattern=WELL[0]), says("of the form A/1", "Correct it.")]
WellImages: Any = Annotated[
    Mapping[_Well, texts(example="movie_1.zarr")],  # type: ignore[misc]  # pydantic reads it, nobody else
    Field(min_length=1),
    says("a mapping of well to images", "Write {A/1: [movie_1.zarr]}."),
    AfterValidator(_check_images),
]
WellLabels: Any = Annotated[
    Mapping[Text, well_groups("value", "TOMM20")],  # type: ignore[misc]  # pydantic reads it, nobody else
    says("a mapping of label to values", "Write {marker: {TOMM20: [A/1, A/2]}}."),
]
Slices: Any = Annotated[pair(whole(0), "[0, 5]"), AfterValidator(_check_slices)]
Hours: Any = Annotated[pair(NotNegative, "[0.5, 2.0]"), AfterValidator(_check_order)]
Lengths: Any = Annotated[pair(whole(1), "[256, 256]"), BeforeValidator(_make_pair)]
Bytes: Any = Annotated[
    int,
    Field(strict=True, ge=1),
    BeforeValidator(_read_size),
    says("a size in bytes ≥ 1", f"Give one such as {SIZES}."),
]
ClipLength: Any = Annotated[whole(1) | None, BeforeValidator(_drop_auto)]
