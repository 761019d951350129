"""Raw pixels as an embedding: what a trained network has to beat.

Patches are read as the network saw them, one plane of each stack, reduced by averaging to at most 32 pixels a side,
normalised per FOV and channel, and projected on their first principal components.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64
from sklearn.decomposition import PCA

from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.evaluate.cells import Cells, Embedding
from dynaclr_wds.read.crop import plan_crop
from dynaclr_wds.read.opening import open_store
from dynaclr_wds.read.patches import PatchReader, level_statistics
from dynaclr_wds.shardset import ShardSet

NAME = "PCA of raw pixels"
_COMPONENTS, _SIDE, _AT_ONCE = 32, 32, 256


def find_observations(shards: ShardSet, cells: Cells) -> Int64[np.ndarray, " n"]:
    """Find cells in a set of shards, by experiment, FOV, track and frame.

    Raises
    ------
    ConfigError
        One isn't there.
    """
    fovs = {f"{fov.experiment}/{fov.fov_name}": n for n, fov in enumerate(shards.manifest.fovs)}
    arrays = shards.arrays
    known = _encode(*(arrays[f"obs_{name}"].astype(np.int64) for name in ("fov", "track_id", "t")))
    fov = np.array([fovs.get(name, -1) for name in cells.fov], np.int64)
    track = np.array([int(name.rpartition("/")[2]) for name in cells.track], np.int64)
    wanted = _encode(fov, track, cells.t)
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)
    found = order[place]
    if (absent := np.flatnonzero((fov < 0) | (known[found] != wanted))).size:
        raise ConfigError(
            f"{shards.root}: has no cell {cells.name[absent[0]]}; it lacks {len(absent):,} of the {len(cells):,} that "
            "are judged. Give the shards that were embedded: --shards."
        )
    return found.astype(np.int64)


def _encode(
    fov: Int64[np.ndarray, " n"], track: Int64[np.ndarray, " n"], t: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Make one number of FOV (20 bits), track (28 bits) and frame (15 bits)."""
    return (fov << 43) | ((track & 0xFFFFFFF) << 15) | (t & 0x7FFF)


class Patches:
    """Reads the patches of cells as the network saw them: (channel, Y, X), normalised.

    Parameters
    ----------
    shards
        The set.
    cells
        Cells of the set.
    yx
        Middle (Y, X) of each patch; None = all that is stored.
    """

    def __init__(self, shards: ShardSet, cells: Cells, yx: tuple[int, int] | None) -> None:
        self._shards = shards
        self.observations = find_observations(shards, cells)
        self._reader = PatchReader(shards, plan_crop(shards, None, yx), open_store(shards))
        self._rows = shards.arrays["obs_patch"][self.observations].astype(np.int64)

    def read(self, places: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, "k c y x"]:
        """Read the middle planes of cells of one shape, given by their places among the cells."""
        rows = self._rows[places]
        pixels = np.empty((len(rows), *self._reader.layout(rows)[0]), np.float32)
        self._reader.read(rows, pixels)
        statistics = level_statistics(self._shards, self.observations[places])["fov"][..., None, None, None, :]
        pixels -= statistics[..., STATISTICS.index("mean")]
        pixels /= np.maximum(statistics[..., STATISTICS.index("std")], 1e-8)
        return pixels[:, :, pixels.shape[2] // 2]


def embed_pixels(patches: Patches, cells: Cells, channel: int | None = None) -> Embedding:
    """Embed cells by the principal components of their pixels.

    Parameters
    ----------
    channel
        Position of the only channel to look at; None = all.

    Raises
    ------
    ConfigError
        Experiments have patches of different shapes.
    """
    parts: dict[int, Float32[np.ndarray, "k p"]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    rows, channels = np.arange(len(cells)), slice(None) if channel is None else [channel]
    for experiment in np.unique(cells.experiment.astype(str)):
        own = rows[cells.experiment == experiment]
        for start in range(0, len(own), _AT_ONCE):
            places = own[start : start + _AT_ONCE]
            small = _reduce(patches.read(places)[:, channels])
            shapes[str(experiment)] = small.shape[1:]
            parts |= zip(places.tolist(), small.reshape(len(places), -1), strict=True)
    if len(set(shapes.values())) > 1:
        raise ConfigError(
            f"Patches of these experiments differ in shape (channels, Y, X): {shapes}, so their pixels have no common "
            "embedding. Judge experiments of one shape at a time, or leave out --shards."
        )
    pixels = np.stack([parts[n] for n in range(len(cells))])
    count = min(_COMPONENTS, *pixels.shape)
    made = PCA(count, svd_solver="randomized", random_state=0).fit_transform(pixels)
    return Embedding(name=NAME, features=made.astype(np.float32))


def _reduce(patches: Float32[np.ndarray, "k c y x"]) -> Float32[np.ndarray, "k c v u"]:
    """Average neighbouring pixels so that no side has more than so many; what is left over at the edge is cut."""
    by = [max(-(-side // _SIDE), 1) for side in patches.shape[2:]]
    high, wide = (side // n * n for side, n in zip(patches.shape[2:], by, strict=True))
    k, c = patches.shape[:2]
    blocks = patches[:, :, :high, :wide].reshape(k, c, high // by[0], by[0], wide // by[1], by[1])
    return blocks.mean(axis=(3, 5))
