"""Two identities of an order to words: in what a checkpoint's order of batches differs from the one at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CHECKSUM, _COUNTS, _TAU = "anchors_xxh3", "anchors", "tau_frames"


def list_differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], chosen_by: tuple[str, str]) -> list[str]:
    """List what differs, theirs first; where other anchors were chosen, by what, not how many of each there are.

    Parameters
    ----------
    mine, theirs
        `FlexibleBatchSampler.identity` of both.
    chosen_by
        What the anchors were chosen by, mine and theirs.
    """
    common = mine[_TAU].keys() & theirs.get(_TAU, {}).keys()
    mine, theirs = (
        {**one, _TAU: {name: tau for name, tau in one.get(_TAU, {}).items() if name in common}}
        for one in (mine, theirs)
    )
    same_choice = chosen_by[0] == chosen_by[1]
    hidden = {_CHECKSUM} if same_choice else {_CHECKSUM, _COUNTS}
    found = [name for name in mine if name not in hidden and theirs.get(name) != mine[name]]
    told = [f"{name}={theirs.get(name)!r}, but {name}={mine[name]!r}" for name in found]
    if mine[_CHECKSUM] == theirs.get(_CHECKSUM) or (told and same_choice):
        return told
    anchors = f"other anchors of {chosen_by[1]}" if same_choice else f"anchors of {chosen_by[1]}, but of {chosen_by[0]}"
    return [*told, anchors]
