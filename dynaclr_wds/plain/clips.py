"""Draws triplets from clips and puts them into batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped

from dynaclr_wds.contract import CLIP_LEVELS, GZIP, SUFFIXES, npy_header
from dynaclr_wds.errors import FormatError
from dynaclr_wds.npy_files import parse_npy_header
from dynaclr_wds.plain.clip_json import ClipRecord, parse_clip, read_statistics
from dynaclr_wds.plain.tars import MOST_MEMBER_BYTES
from dynaclr_wds.plan.rng import Tag, make_generator
from dynaclr_wds.tau import TauFrames, TauHours, check_tau_range, least_tau, tau_range_frames, tau_weights


def sample_triplets(
    sample: Mapping[str, Any], tau_range_hours: TauHours | None, decay_rate: float, key: tuple[int, int]
) -> list[dict[str, Any]]:
    """Draw a positive for every sample of a clip that has a candidate in the τ range.

    Parameters
    ----------
    sample
        A tar sample: `json` and the patches as bytes, `__key__` and `__url__`.
    tau_range_hours
        Shortest and longest τ in hours; None = the range that the clip was built for.
    decay_rate
        Decay of P(τ) over the range.
    key
        (seed, pass). With the clip's own key they decide every draw.

    Returns
    -------
    One dict per anchor: its `clip`, `anchor` and `positive` as npy bytes, `anchor_meta`, `positive_meta`,
    `anchor_norm_meta`, `positive_norm_meta` for one sample each.

    Raises
    ------
    FormatError
        The clip is not as `docs/FORMAT.md` says.
    ValueError
        A τ range that the shard was not built for.
    """
    clip = parse_clip(sample)
    low, high = _choose_frames(clip, tau_range_hours)
    rng = make_generator(Tag.PLAIN, key[0], 0, key[1], clip.key)
    out = []
    for anchor, candidates in clip.candidates.items():
        tau = clip.t[candidates] - clip.t[anchor]
        inside = (tau >= least_tau(low)) & (tau <= high)
        if inside.any():
            drawn = sample_candidate(rng, tau[inside], (low, high), decay_rate)
            out.append(_triplet(sample, clip, anchor, int(candidates[inside][drawn])))
    return out


def sample_candidate(
    rng: np.random.Generator, tau: Int64[np.ndarray, " n"], tau_frames: TauFrames, decay_rate: float
) -> int:
    """Draw one of n candidates: first a τ, weighted as `dynaclr_wds.tau` says, then one of those at that τ."""
    values, where, count = np.unique(tau, return_inverse=True, return_counts=True)
    weight = tau_weights(values, *tau_frames, decay_rate)
    chance = (weight / weight.sum() / count)[where]
    return int(rng.choice(len(tau), p=chance))


def collate_triplets(triplets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make one batch of triplets; the patches are decoded here.

    Raises
    ------
    FormatError
        Experiments with patches of different shapes, or a patch that is not what its clip says.
    """
    _check_one_shape([triplet["clip"] for triplet in triplets])
    batch: dict[str, Any] = {}
    for name in ("anchor", "positive"):
        arrays = [_parse_npy(t[name], t["clip"], t[f"{name}_file"]) for t in triplets]
        dtypes = {array.dtype for array in arrays}
        dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
        batch[name] = torch.from_numpy(np.stack(arrays).astype(dtype, copy=False))
        batch[f"{name}_meta"] = [t[f"{name}_meta"] for t in triplets]
        batch[f"{name}_norm_meta"] = {
            level: torch.from_numpy(np.stack([t[f"{name}_norm_meta"][level] for t in triplets]))
            for level in CLIP_LEVELS
            if all(level in t[f"{name}_norm_meta"] for t in triplets)
        }
    return batch


def _choose_frames(clip: ClipRecord, hours: TauHours | None) -> TauFrames:
    """Return the τ range in frames that is asked for."""
    try:
        asked = clip.tau_frames if hours is None else tau_range_frames(hours, clip.interval_minutes)
    except ValueError as error:
        error.add_note(f"in {clip.where}")
        raise
    check_tau_range("tau_range_hours", clip.experiment, asked, clip.tau_frames, clip.interval_minutes, clip.where)
    return asked


def _triplet(sample: Mapping[str, Any], clip: ClipRecord, anchor: int, positive: int) -> dict[str, Any]:
    """Refer to two patches of a clip; only their bytes are kept."""
    out: dict[str, Any] = {"clip": clip}
    for name, place in (("anchor", anchor), ("positive", positive)):
        out[name] = sample[clip.files[place]]
        out[f"{name}_file"] = clip.files[place]
        out[f"{name}_meta"] = dict(clip.metas[place])
        out[f"{name}_norm_meta"] = read_statistics(clip, place)
    return out


def _check_one_shape(clips: Sequence[ClipRecord]) -> None:
    for clip in clips:
        if clip.shape != clips[0].shape:
            raise FormatError(
                f"{clip.where}: experiment {clip.experiment!r} has patches of shape (C, Z, Y, X) = {clip.shape}, but "
                f"experiment {clips[0].experiment!r} in the same batch has {clips[0].shape} ({clips[0].where}). "
                "Patches of one shape make a batch: give each shape a pipeline of its own."
            )


def _parse_npy(data: bytes, clip: ClipRecord, file: str) -> Shaped[np.ndarray, "c z y x"]:
    """Read a patch; its header must agree with the clip and with its size before any memory is taken."""
    where = f"{clip.where}, {file}"
    if file.endswith(SUFFIXES[GZIP]):
        data = _decode(data, clip, where)
    try:
        shape, dtype, fortran_order, begin = header = parse_npy_header(data)
    except ValueError as error:
        raise FormatError(f"{where}: is no npy file, version 1.0 ({error}). Build the shard again.") from error
    if (shape, dtype, fortran_order) != (clip.shape, clip.dtype, False):
        raise FormatError(
            f"{where}: holds {dtype} of shape {shape}{' in Fortran order' if fortran_order else ''}, but its clip says "
            f"{clip.dtype} of shape {clip.shape}. Build the shard again."
        )
    if len(data) - begin != header.data_bytes:
        raise FormatError(
            f"{where}: has {len(data) - begin} bytes of numbers, not {header.data_bytes}. Build the shard again."
        )
    return np.frombuffer(data, dtype, offset=begin).reshape(shape)


def _decode(data: bytes, clip: ClipRecord, where: str) -> bytes:
    """Decode a patch that is compressed, to the size that its clip says and no more."""
    from dynaclr_wds.codec import CodecError, split_members  # only those who read compressed shards need isal

    header, channels = npy_header(clip.dtype, clip.shape), clip.shape[0]
    channel_bytes = math.prod(clip.shape[1:]) * clip.dtype.itemsize
    if channel_bytes * channels > MOST_MEMBER_BYTES:
        raise FormatError(
            f"{where}: its clip says that it has {channel_bytes * channels:,} bytes; at most {MOST_MEMBER_BYTES:,} are "
            "decoded. Build the shard again."
        )
    try:
        return b"".join(part for _, part in split_members(data, [len(header), *[channel_bytes] * channels]))
    except CodecError as error:
        raise FormatError(f"{where}: can't be decoded ({error}). Copy the shard again, or build it again.") from error
