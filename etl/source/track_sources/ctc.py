"""Opens folders of the Cell Tracking Challenge: a text of tracks, and an image of labels for every frame.

A cell is where the pixels of its label are: its position is their mean. The text (`man_track.txt`, `res_track.txt`) has
a line for each track: label, first frame, last frame, label of the parent or 0.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, Int64

from dynaclr_wds.contract import NO_ID
from dynaclr_wds.errors import ConfigError
from etl.source.track_formats import TableFile
from etl.source.track_sources.optional import import_for

KIND = "Cell Tracking Challenge"

TEXTS = ("man_track.txt", "res_track.txt")
_IMAGE = re.compile(r"(?:man_track|mask)(\d+)\.tiff?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """The labels of one frame."""

    label: Int64[np.ndarray, " cells"]
    position: Float[np.ndarray, "cells axes"]
    """Means along the axes of the image."""


def is_ctc(folder: Path) -> bool:
    """Whether a folder holds tracks of the Cell Tracking Challenge."""
    return any((folder / name).is_file() for name in TEXTS)


def open_ctc(path: Path) -> TableFile:
    """Open a folder: tracks and centroids are the columns."""
    tifffile = import_for("tifffile", "ctc", str(path))
    images = _list_images(path)
    with tifffile.TiffFile(next(iter(images.values()))) as image:
        axes = image.series[0].ndim
    if axes not in (2, 3):
        raise ConfigError(
            f"{path}: its images have {axes} axes, but must have y and x, or z, y and x. Write them again."
        )
    header = ("track_id", "t", *"zyx"[-axes:], "parent_track_id")
    return TableFile(path=path, header=header, columns=header, read=partial(_read, path, header, images))


def _list_images(path: Path) -> dict[int, Path]:
    """Return frame → image, sorted; frames may lack one."""
    found: dict[int, Path] = {}
    for file in sorted(path.iterdir()):
        if match := _IMAGE.fullmatch(file.name):
            other = found.setdefault(int(match[1]), file)
            if other != file:
                raise ConfigError(f"{path}: {other.name} and {file.name} are of the same frame. Remove one.")
    if not found:
        raise ConfigError(
            f"{path}: holds no image of labels (man_track000.tif or mask000.tif) beside its text of tracks. Copy the "
            "whole folder."
        )
    return dict(sorted(found.items()))


def _read(
    path: Path, header: Sequence[str], images: dict[int, Path], places: Sequence[int], text: Collection[int]
) -> pa.Table:
    del text
    tracks = _read_tracks(path)
    frames = {t: _find_cells(image, len(header) - 3) for t, image in images.items()}
    label = np.concatenate([cells.label for cells in frames.values()])
    position = np.concatenate([cells.position for cells in frames.values()])
    t = np.repeat(list(frames), [len(cells.label) for cells in frames.values()])
    _check_labels(path, tracks, label, t)
    parent = tracks[np.searchsorted(tracks[:, 0], label), 3] if len(label) else label
    columns = {"track_id": label, "t": t, "parent_track_id": np.where(parent == 0, NO_ID, parent)}
    columns |= dict(zip(header[2:-1], position.T, strict=True))
    return pa.table({str(place): columns[header[place]] for place in places})


def _read_tracks(path: Path) -> Int64[np.ndarray, "tracks 4"]:
    """Read label, first frame, last frame and parent of every track, sorted by label."""
    file = next(path / name for name in TEXTS if (path / name).is_file())
    rows: list[list[int]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = [int(field) for field in line.split()]
            except ValueError:
                row = []
            if len(row) != 4:
                raise ConfigError(
                    f"{file}: line {number} is {line[:80]!r}, but must be four whole numbers: label, first frame, last "
                    "frame, parent or 0. Correct it."
                )
            rows.append(row)
    tracks = np.array(sorted(rows), np.int64).reshape(-1, 4)
    twice = np.flatnonzero(tracks[1:, 0] == tracks[:-1, 0])
    if len(twice):
        raise ConfigError(f"{file}: label {tracks[twice[0], 0]} is there twice, but must have one line. Correct it.")
    return tracks


def _find_cells(image: Path, axes: int) -> _Cells:
    """Return the labels of an image and the means of their pixels."""
    tifffile = import_for("tifffile", "ctc", str(image))
    try:
        labels: Int[np.ndarray, "*axes"] = tifffile.imread(image)
    except Exception as error:  # tifffile and its codecs raise whatever the file leads to
        raise ConfigError(f"{image}: can't be read as TIFF ({error!r:.200}). Write it again.") from error
    if labels.dtype.kind not in "iu" or labels.ndim != axes:
        raise ConfigError(
            f"{image}: shape {labels.shape}, dtype {labels.dtype} must be whole numbers along {axes} axes, as in the "
            "first image. Write it again."
        )
    pixels = np.nonzero(labels)
    found, code = np.unique(labels[pixels], return_inverse=True)
    count = np.bincount(code, minlength=len(found))
    means = [np.bincount(code, axis, minlength=len(found)) / count for axis in pixels]
    return _Cells(label=found.astype(np.int64), position=np.stack(means, 1))


def _check_labels(
    path: Path, tracks: Int64[np.ndarray, "tracks 4"], label: Int64[np.ndarray, " rows"], t: Int64[np.ndarray, " rows"]
) -> None:
    """Check that images and text say the same: which labels there are, and in which frame each begins and ends."""
    lost = np.setdiff1d(label, tracks[:, 0])
    if len(lost):
        raise ConfigError(
            f"{path}: {len(lost)} labels of the images are in no line of the text (the first is {lost[0]}), which must "
            "list every track. Write both again."
        )
    row = np.searchsorted(tracks[:, 0], label)
    first, last = np.full(len(tracks), np.iinfo(np.int64).max), np.full(len(tracks), -1)
    np.minimum.at(first, row, t)
    np.maximum.at(last, row, t)
    wrong = np.flatnonzero((first != tracks[:, 1]) | (last != tracks[:, 2]))
    if len(wrong):
        track, begin, end, _ = (int(value) for value in tracks[wrong[0]])
        seen = f"in frames {first[wrong[0]]} to {last[wrong[0]]}" if last[wrong[0]] >= 0 else "nowhere"
        raise ConfigError(
            f"{path}: label {track} is in frames {begin} to {end} by the text, but {seen} in the images (so it is with "
            f"{len(wrong)} of {len(tracks)} tracks). Copy all images, or write both again."
        )
