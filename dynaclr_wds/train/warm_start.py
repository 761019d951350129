"""A checkpoint, of ours or of somebody else, to the first weights of an encoder.

The keys of ours are found under other names in the file by their prefixes, so a checkpoint of mehta-lab/VisCy is taken
with `map: {encoder.: model.}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from dynaclr_wds.errors import CheckpointError
from dynaclr_wds.train.checkpoint_files import load_plain

NAMED_KEYS = 5
"""Keys that an error lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """Which weights an encoder begins with."""

    path: str
    """A checkpoint of Lightning, or a file of weights."""
    map: dict[str, str | None] = field(default_factory=dict)
    """Prefix of our keys → prefix of the file's, the longest that fits is taken: {encoder.: model.} for a checkpoint of
    VisCy. In the file's `*` stands for one part of a key. null = these weights begin anew. Left out, keys are equal."""
    ignore: list[str] = field(default_factory=list)
    """Prefixes of keys of the file that are not wanted, such as auxiliary_heads."""
    strict: bool = True
    """Weights of the encoder that the file lacks, and keys of the file that nobody takes, are an error. False: they are
    told."""


if TYPE_CHECKING:
    WarmStartOrData = WarmStart | Mapping[str, Any]
else:  # the command line reads annotations, and must not take other mappings
    WarmStartOrData = WarmStart
"""A warm start, or the same as plain data."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a warm start was made of, for the checkpoints to come."""

    path: str
    sha256: str


def load_weights(encoder: nn.Module, start: WarmStart | Mapping[str, Any]) -> Loaded:
    """Load the weights of an encoder from a file; tensors and plain data only are read.

    Parameters
    ----------
    encoder
        The network.
    start
        What to load, or the same as plain data.

    Raises
    ------
    CheckpointError
        The file can't be read; a weight has another shape; or, if `strict`, keys are missing or left over.
    """
    if not isinstance(start, WarmStart):
        start = WarmStart(**start)
    try:
        content, sha256 = load_plain(start.path)
    except CheckpointError as error:
        error.add_note("It is what model.init_from.path names.")
        if Path(start.path).is_file():
            error.add_note(
                "If you trust the file and it holds pickled objects, keep its weights alone: "
                "torch.save({'state_dict': torch.load(path, weights_only=False)['state_dict']}, new_path)."
            )
        raise
    given = {k: v for k, v in content.get("state_dict", content).items() if isinstance(v, Tensor)}
    own = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    places = plan_places(own, given, start.map)
    found = {name: place for name, place in places.items() if place is not None and place in given}
    _check(own, given, places, start)
    weights = {name.removeprefix("encoder."): given[place] for name, place in found.items()}
    encoder.load_state_dict(weights, strict=False)
    rank_zero_info(f"model.init_from: {len(weights)} of {len(own)} weights of the encoder are from {start.path}.")
    return Loaded(start.path, sha256)


def plan_places(own: Iterable[str], given: Iterable[str], mapping: Mapping[str, str | None]) -> dict[str, str | None]:
    """Say where each of our keys is in a file.

    Parameters
    ----------
    own
        Our keys.
    given
        Those of the file.
    mapping
        As in `WarmStart.map`.

    Returns
    -------
    Our key → the file's, which may not be there; None where the mapping leaves it out.

    Raises
    ------
    CheckpointError
        More than one key of the file fits.
    """
    prefixes = sorted(mapping, key=len, reverse=True)
    keys = list(given)
    places: dict[str, str | None] = {}
    for name in own:
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        target = "" if prefix is None else mapping[prefix]
        places[name] = None if target is None else _find(target, name[len(prefix or "") :], keys)
    return places


def _find(prefix: str, rest: str, keys: list[str]) -> str:
    if "*" not in prefix:
        return prefix + rest
    pattern = re.compile(re.escape(prefix).replace(r"\*", r"[^.]+") + re.escape(rest))
    found = [key for key in keys if pattern.fullmatch(key)]
    if len(found) > 1:
        raise CheckpointError(
            f"model.init_from.map: {prefix}{rest} fits {len(found)} keys of the file "
            f"({', '.join(found[:NAMED_KEYS])}), but must fit one. Say more of the prefix."
        )
    return found[0] if found else prefix + rest


def _check(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], places: Mapping[str, str | None], start: WarmStart
) -> None:
    other = [
        f"{name} is {tuple(own[name].shape)}, {place} of the file {tuple(given[place].shape)}"
        for name, place in places.items()
        if place is not None and place in given and own[name].shape != given[place].shape
    ]
    missing = [
        f"{name} ({place})" if place != name else name for name, place in places.items() if place and place not in given
    ]
    taken = set(places.values())
    left = [key for key in given if key not in taken and not key.startswith(tuple(start.ignore))]
    problems = _tell("have another shape", other)
    if start.strict or not any(place in given for place in taken):
        problems += _tell("of the encoder are not in the file", missing)
    if start.strict:
        problems += _tell("of the file are taken by nobody", left)
    if problems:
        raise CheckpointError(
            f"model.init_from: {start.path} does not fit the encoder: {'; '.join(problems)}. {_advise(given, start)}"
        )
    if told := [*_tell("of the encoder begin anew", missing), *_tell("of the file are not used", left)]:
        rank_zero_info(f"model.init_from: {start.path}: {'; '.join(told)}.")


def _tell(what: str, names: list[str]) -> list[str]:
    more = ", …" if len(names) > NAMED_KEYS else ""
    return [f"{len(names)} {what}: {', '.join(names[:NAMED_KEYS])}{more}"] if names else []


def _advise(given: Mapping[str, Any], start: WarmStart) -> str:
    if not start.map and any(key.startswith("model.") for key in given):
        return "For a checkpoint of mehta-lab/VisCy give map: {encoder.: model.}."
    return (
        "Make the encoder as it was, correct map, name what is not wanted in ignore, begin with some weights anew by "
        "null in map, or give strict: false."
    )
