"""Makes tracks of a graph of cells: a node is a cell in one frame, an edge leads to the same cell or a daughter later.

A track ends where its cell divides. It is called by the id of its first node, so it keeps its name when frames are
added. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.contract import NO_ID
from dynaclr_wds.errors import ConfigError
from etl.source.config import FOV_COLUMN, MORE_TRACK_COLUMNS, TRACK_COLUMNS


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTracks:
    """The track of every node."""

    track_id: Int64[np.ndarray, " nodes"]
    """Id of the first node of its track."""
    parent_track_id: Int64[np.ndarray, " nodes"]
    """Track that its track comes from; −1 without one."""


def name_features(names: Iterable[str], ours: Mapping[str, str | None]) -> tuple[str | None, ...]:
    """Give features of cells our names.

    A feature that is none of ours keeps its own name, so that it may be a label; None where that would be taken for
    one of ours.
    """
    taken = {*TRACK_COLUMNS, *MORE_TRACK_COLUMNS, FOV_COLUMN}
    return tuple(ours.get(name, None if name in taken else name) for name in names)


def split_tracks(
    ids: Int64[np.ndarray, " nodes"],
    t: Int64[np.ndarray, " nodes"] | None,
    edges: Int64[np.ndarray, "edges 2"],
    where: str,
) -> NodeTracks:
    """Follow edges from frame to frame; a track ends where there are several.

    Parameters
    ----------
    ids
        Of the nodes, each its own.
    t
        Their frames; None where they are not known.
    edges
        Ids of two nodes each. Time says which comes first, whatever their order; without it the first does.
    where
        The file, for errors.

    Raises
    ------
    ConfigError
        An id that is there twice, an edge to no node or within one frame, nodes with several parents, or a cycle.
    """
    before, after = _find_ends(ids, t, edges, where)
    parents = np.bincount(after, minlength=len(ids))
    merges = np.flatnonzero(parents > 1)
    if len(merges):
        first = int(ids[merges[0]])
        raise ConfigError(
            f"{where}: tracks merge at {len(merges)} {'cell' if len(merges) == 1 else 'cells'} (the first is node "
            f"{first}, with {parents[merges[0]]} parents), but a cell must have one parent at most. Remove all but "
            "one of the edges to each in the tracking program, or track without merging."
        )
    daughters = np.bincount(before, minlength=len(ids))
    parent = np.full(len(ids), -1)
    parent[after] = before
    begins = (parent < 0) | (daughters[parent] > 1)
    head = np.where(begins, np.arange(len(ids)), parent)
    for _ in range(len(ids).bit_length()):  # each step doubles how far back a node looks
        head = head[head]
    if not begins[head].all():
        raise ConfigError(f"{where}: edges lead in a circle, but must lead to later frames. Write the file again.")
    mother = parent[head]
    return NodeTracks(
        track_id=ids[head], parent_track_id=np.where(mother < 0, NO_ID, ids[head[mother]]) if len(ids) else ids[:0]
    )


def _find_ends(
    ids: Int64[np.ndarray, " nodes"],
    t: Int64[np.ndarray, " nodes"] | None,
    edges: Int64[np.ndarray, "edges 2"],
    where: str,
) -> tuple[Int64[np.ndarray, " links"], Int64[np.ndarray, " links"]]:
    """Return the places of the earlier and the later node of each edge; an edge that is there twice counts once."""
    order = np.argsort(ids, kind="stable")
    known = ids[order]
    twice = np.flatnonzero(known[1:] == known[:-1])
    if len(twice):
        raise ConfigError(f"{where}: node {known[twice[0]]} is there twice. Write the file again.")
    place = np.searchsorted(known, edges)
    lost = edges[(place == len(known)) | (known[np.minimum(place, len(known) - 1)] != edges)] if len(ids) else edges
    if lost.size:
        raise ConfigError(
            f"{where}: edges lead to node {lost.flat[0]}, but there is no such node ({lost.size} ends of edges are "
            "lost). Write the file again."
        )
    ends = order[place]
    if t is None:
        ends = np.unique(ends, axis=0)
        return ends[:, 0], ends[:, 1]
    late = t[ends[:, 0]] > t[ends[:, 1]]
    ends = np.unique(np.where(late[:, None], ends[:, ::-1], ends), axis=0)
    level = np.flatnonzero(t[ends[:, 0]] == t[ends[:, 1]])
    if len(level):
        pair = [int(node) for node in ids[ends[level[0]]]]
        raise ConfigError(
            f"{where}: {len(level)} edges join cells of one frame (the first joins nodes {pair}), but an edge must "
            "lead to a later frame. Remove them in the tracking program."
        )
    return ends[:, 0], ends[:, 1]
