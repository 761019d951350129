"""Clips to triplets: one tar sample as plain WebDataset gives it, its JSON read, triplets drawn and put in a batch.

JSON and npy without pickle only; what a clip says is checked, and errors name shard and key.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped

from dynaclr_wds.contract import LEVELS, STATISTICS
from dynaclr_wds.errors import FormatError
from dynaclr_wds.plan.rng import Tag, make_generator
from dynaclr_wds.tau import tau_range_frames

_CLIP_KEYS = ("experiment", "condition", "well", "fov_name", "lineage_id")
_PATCH_KEYS = ("global_track_id", "track_id", "parent_track_id", "id", "t", "hpi", "z", "y", "x")


def sample_triplets(
    sample: Mapping[str, Any], tau_range_hours: tuple[float, float] | None, decay_rate: float, key: tuple[int, int]
) -> list[dict[str, Any]]:
    """Draw a positive for every anchor of a clip.

    Parameters
    ----------
    sample
        A tar sample: `json` and the patches as bytes, `__key__` and `__url__`.
    tau_range_hours
        (min, max) hours; None = what the clip was built for.
    decay_rate
        Decay of P(τ) over the range.
    key
        (seed, pass): with the clip's own key, all that the draws depend on.

    Returns
    -------
    One dict per anchor that has a positive in the range: `anchor` and `positive` as npy bytes, `anchor_meta`,
    `positive_meta`, `anchor_norm_meta`, `positive_norm_meta` for one sample each.

    Raises
    ------
    FormatError
        The clip is not as `docs/FORMAT.md` says.
    ValueError
        A τ range that the shard was not built for.
    """
    where = f"{sample.get('__url__', '?')}, clip {sample.get('__key__', '?')}"
    clip = _parse_json(sample, where)
    try:
        patches = clip["patches"]
        low, high = _frames(clip, tau_range_hours, where)
        rng = make_generator(Tag.PLAIN, key[0], 0, key[1], _key_number(clip["key"]))
        t = np.array([p["t"] for p in patches], np.int64)
        out = []
        for anchor in np.flatnonzero([bool(p["is_anchor"]) for p in patches]).tolist():
            candidates = np.array(patches[anchor]["candidates"], np.int64)
            tau = t[candidates] - t[anchor]
            candidates = candidates[(tau >= max(low, 1)) & (tau <= high)]
            if len(candidates):
                positive = sample_candidate(rng, t[candidates] - t[anchor], (low, high), decay_rate)
                out.append(_triplet(sample, clip, anchor, int(candidates[positive])))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise FormatError(
            f"{where}: is not a clip as docs/FORMAT.md says ({error!r}). Build the shard again."
        ) from error
    return out


def sample_candidate(
    rng: np.random.Generator, tau: Int64[np.ndarray, " n"], tau_frames: tuple[int, int], decay_rate: float
) -> int:
    """Draw one of n candidates: first τ, P(τ) ∝ exp(−decay (τ − τ_min) / (τ_max − τ_min)), then one at that τ."""
    low, high = tau_frames
    values, where, count = np.unique(tau, return_inverse=True, return_counts=True)
    weight = np.exp(-decay_rate * (values - low) / max(high - low, 1))
    chance = (weight / weight.sum() / count)[where]
    return int(rng.choice(len(tau), p=chance))


def collate_triplets(triplets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put triplets into one batch; patches are decoded here.

    Raises
    ------
    FormatError
        A patch is not an npy file of plain numbers, or not of the same shape as the others.
    """
    batch: dict[str, Any] = {}
    for name in ("anchor", "positive"):
        arrays = [_read_npy(t[name], t[f"{name}_file"]) for t in triplets]
        for array, triplet in zip(arrays, triplets, strict=True):
            if array.shape != arrays[0].shape:
                raise FormatError(
                    f"{triplet[f'{name}_file']}: shape {array.shape}, others of the batch have {arrays[0].shape}. "
                    "Give shards of one build."
                )
        dtypes = {a.dtype for a in arrays}
        kind = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
        batch[name] = torch.from_numpy(np.stack(arrays).astype(kind, copy=False))
        batch[f"{name}_meta"] = [t[f"{name}_meta"] for t in triplets]
        batch[f"{name}_norm_meta"] = {
            level: torch.from_numpy(np.stack([t[f"{name}_norm_meta"][level] for t in triplets])) for level in LEVELS
        }
    return batch


def _parse_json(sample: Mapping[str, Any], where: str) -> dict[str, Any]:
    if "json" not in sample:
        raise FormatError(f"{where}: has no JSON; the shard is cut off, or is not of this format. Copy it again.")
    try:
        clip = json.loads(sample["json"])
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{where}: its JSON can't be read ({error}). Copy the shard again.") from error
    if not isinstance(clip, dict):
        raise FormatError(f"{where}: its JSON is no object. Build the shard again.")
    return clip


def _key_number(key: Any) -> int:
    if not (isinstance(key, str) and key and set(key) <= set("0123456789abcdef")):
        raise TypeError(f"key={key!r} is not hexadecimal")
    return int(key, 16)


def _frames(clip: Mapping[str, Any], hours: tuple[float, float] | None, where: str) -> tuple[int, int]:
    """τ range in frames."""
    least, most = clip["tau_frames"]
    if hours is None:
        return int(least), int(most)
    interval = clip["interval_minutes"]
    low, high = tau_range_frames(hours, interval)
    if low < least or high > most or high < max(low, 1):
        raise ValueError(
            f"tau_range_hours={tuple(hours)} is {low}…{high} frames in experiment {clip['experiment']!r} ({where}), "
            f"but its clips hold positives at {least}…{most} frames "
            f"({least * interval / 60:g}…{most * interval / 60:g} h). Ask for a range inside it that reaches one "
            "frame, or build the shards with a wider tau_range_hours."
        )
    return low, high


def _triplet(sample: Mapping[str, Any], clip: Mapping[str, Any], anchor: int, positive: int) -> dict[str, Any]:
    """Refer to two patches of a clip; only their bytes are kept."""
    out: dict[str, Any] = {}
    for name, place in (("anchor", anchor), ("positive", positive)):
        patch = clip["patches"][place]
        out[name] = sample[patch["file"]]
        out[f"{name}_file"] = f"{sample['__url__']}, {sample['__key__']}.{patch['file']}"
        out[f"{name}_meta"] = {key: clip[key] for key in _CLIP_KEYS} | {key: patch[key] for key in _PATCH_KEYS}
        tables = clip["statistics"]
        levels = {"timepoint": tables["timepoint"][str(patch["t"])], "fov": tables["fov"], "dataset": tables["dataset"]}
        order = [tables["names"].index(n) for n in STATISTICS]
        out[f"{name}_norm_meta"] = {level: _table(levels[level], order, level, out[f"{name}_file"]) for level in LEVELS}
    return out


def _table(rows: Any, order: list[int], level: str, where: str) -> Float32[np.ndarray, "c k"]:
    """Statistics of each channel."""
    if any(value is None for row in rows for value in row):
        raise FormatError(
            f"{where}: a statistic of level {level!r} is not a number; what is normalised by it would be none either. "
            "Mend the plate, or leave the field of view out with exclude_fovs, and build the shards again."
        )
    return np.array([[row[k] for k in order] for row in rows], np.float32)


def _read_npy(data: bytes, where: str) -> Shaped[np.ndarray, "*shape"]:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FormatError(f"{where}: is not an npy file of plain numbers ({error}). Build the shard again.") from error
    if not isinstance(array, np.ndarray):
        raise FormatError(f"{where}: is an archive, not an npy file. Build the shard again.")
    return array
