"""Reads the JSON of a clip: who is on each patch, what may be its positive, how bright its frames are.

Nothing in it is believed: each value is checked to be of the kind that `docs/FORMAT.md` says, and errors name shard and
clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from dynaclr_wds.contract import CLIP_LEVELS, STATISTICS
from dynaclr_wds.errors import FormatError
from dynaclr_wds.npy_files import NUMBERS
from dynaclr_wds.strict_json import parse_json
from dynaclr_wds.tau import TauFrames

_PATCH_KEYS = ("global_track_id", "track_id", "parent_track_id", "id", "t", "hpi", "z", "y", "x")
_MOST_FRAMES = 1 << 31
_MOST_NUMBERS = 1 << 40  # in a patch; keeps sizes far from the range of int64


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRecord:
    """What the JSON of one clip says, checked."""

    where: str
    """Shard and clip, for errors."""
    key: int
    """The clip's key as a number: part of the key of its random generator."""
    experiment: str
    shape: tuple[int, ...]
    """(C, Z, Y, X) of every patch."""
    dtype: np.dtype[Any]
    interval_minutes: float
    tau_frames: TauFrames
    """τ range that the clip was built for."""
    t: Int64[np.ndarray, " patches"]
    """Frame of each patch."""
    files: tuple[str, ...]
    """Member of the tar sample that holds each patch."""
    metas: tuple[dict[str, Any], ...]
    """Identity of each patch: labels, lineage, track, frame, position."""
    candidates: Mapping[int, Int64[np.ndarray, " n"]]
    """Patch that is a sample → the patches that may be its positive."""
    statistics: Mapping[str, Any]
    """As in the JSON; `read_statistics` reads one patch's."""


def parse_clip(sample: Mapping[str, Any]) -> ClipRecord:
    """Read the JSON of a tar sample.

    Parameters
    ----------
    sample
        `json` as bytes, the patches, `__key__` and `__url__`.

    Raises
    ------
    FormatError
        There is none, or it is not as `docs/FORMAT.md` says.
    """
    where = f"{sample.get('__url__', '?')}, clip {sample.get('__key__', '?')}"
    clip = _parse_json(sample, where)
    try:
        patches = clip["patches"]
        least, most = _range(clip["tau_frames"])
        return ClipRecord(
            where=where,
            key=_key_number(clip["key"]),
            experiment=_text(clip["experiment"]),
            shape=_parse_shape(clip["shape"]),
            dtype=_parse_dtype(clip["dtype"]),
            interval_minutes=_not_negative(clip["interval_minutes"]),
            tau_frames=(least, most),
            t=np.array([_frame(p["t"]) for p in patches], np.int64),
            files=tuple(_member(p["file"], sample) for p in patches),
            metas=tuple(_parse_meta(clip, p) for p in patches),
            candidates={k: _parse_candidates(p, len(patches)) for k, p in enumerate(patches) if _flag(p["is_sample"])},
            statistics=clip["statistics"],
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _not_a_clip(where, error) from error


def read_statistics(clip: ClipRecord, patch: int) -> dict[str, Float32[np.ndarray, "c k"]]:
    """Return the statistics of each channel at one patch: level → (C, len(STATISTICS)), of the levels that are there.

    Raises
    ------
    FormatError
        A statistic is missing, or is not a number.
    """
    tables = clip.statistics
    try:
        order = [tables["names"].index(name) for name in STATISTICS]
        levels = {**tables, "timepoint": tables["timepoint"][str(clip.t[patch])]}
        found = {level: _parse_table(levels[level], order) for level in CLIP_LEVELS if level in levels}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise _not_a_clip(clip.where, error) from error
    for level, table in found.items():
        if len(table) != clip.shape[0]:
            raise _not_a_clip(clip.where, f"{len(table)} channels of statistics, {clip.shape[0]} of the patch")
        if not np.isfinite(table).all():
            raise FormatError(
                f"{clip.where}: a statistic of level {level!r} is not a number; normalised by it, the patch would not "
                "be one either. Mend the plate, or leave the field of view out with exclude_fovs, and build the shards "
                "again."
            )
    return found


def _parse_json(sample: Mapping[str, Any], where: str) -> dict[str, Any]:
    if "json" not in sample:
        raise FormatError(f"{where}: has no JSON; the shard is cut off, or is not of this format. Copy it again.")
    try:
        clip = parse_json(sample["json"])
    except ValueError as error:
        raise FormatError(f"{where}: its JSON can't be read ({error}). Copy the shard again.") from error
    if not isinstance(clip, dict):
        raise FormatError(f"{where}: its JSON is no object. Build the shard again.")
    return clip


def _parse_meta(clip: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Gather who is on a patch; labels that change along the track stand in the patch and win over the clip's."""
    labels = {**clip["labels"], **patch.get("labels", {})}
    identity = {"fov_name": clip["fov_name"], "lineage_id": clip["lineage_id"]}
    return labels | identity | {key: patch[key] for key in _PATCH_KEYS}


def _parse_candidates(patch: Mapping[str, Any], count: int) -> Int64[np.ndarray, " n"]:
    candidates = np.array([_whole(place) for place in patch["candidates"]], np.int64)
    if not ((candidates >= 0) & (candidates < count)).all():
        raise ValueError(f"candidates={patch['candidates']} of a clip with {count} patches")
    return candidates


def _parse_shape(raw: Any) -> tuple[int, ...]:
    shape = tuple(_whole(length) for length in raw)
    if len(shape) != 4 or min(shape) < 1 or int(np.prod([float(length) for length in shape])) > _MOST_NUMBERS:
        raise ValueError(f"shape={raw!r}")
    return shape


def _parse_dtype(raw: Any) -> np.dtype[Any]:
    if _text(raw) not in NUMBERS:  # numpy would parse it as Python
        raise TypeError(f"dtype={raw!r:.100}")
    return np.dtype(raw)


def _parse_table(rows: Any, order: list[int]) -> Float32[np.ndarray, "c k"]:
    values = [[np.nan if row[k] is None else _number(row[k]) for k in order] for row in rows]
    with np.errstate(over="ignore"):  # infinity, which is refused
        return np.array(values, np.float64).astype(np.float32).reshape(len(values), len(order))


def _number(raw: Any) -> float:
    if not isinstance(raw, int | float) or isinstance(raw, bool):
        raise TypeError(f"{raw!r:.100} is no number")
    return float(raw)


def _member(raw: Any, sample: Mapping[str, Any]) -> str:
    if not isinstance(raw, str) or not isinstance(sample.get(raw), bytes) or raw == "json":
        raise KeyError(raw)
    return raw


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise TypeError(f"{raw!r} is no text")
    return raw


def _flag(raw: Any) -> bool:
    if not isinstance(raw, bool):
        raise TypeError(f"{raw!r} is neither true nor false")
    return raw


def _whole(raw: Any) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise TypeError(f"{raw!r} is no whole number")
    return raw


def _frame(raw: Any) -> int:
    if not 0 <= _whole(raw) < _MOST_FRAMES:
        raise ValueError(f"{raw!r:.100} is no number of a frame")
    return int(raw)


def _range(raw: Any) -> TauFrames:
    least, most = (_frame(frames) for frames in raw)
    if least > most:
        raise ValueError(f"tau_frames={raw!r:.100}")
    return least, most


def _not_negative(raw: Any) -> float:
    if not isinstance(raw, int | float) or not 0 <= raw < float("inf"):
        raise TypeError(f"{raw!r} is not >= 0")
    return float(raw)


def _key_number(key: Any) -> int:
    if not (isinstance(key, str) and key and set(key) <= set("0123456789abcdef")):
        raise TypeError(f"key={key!r} is not hexadecimal")
    return int(key, 16)


def _not_a_clip(where: str, error: object) -> FormatError:
    return FormatError(f"{where}: is not a clip as docs/FORMAT.md says ({error!r:.300}). Build the shard again.")
