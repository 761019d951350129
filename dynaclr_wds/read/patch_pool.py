"""Patches that were read lately, kept in memory up to a limit: what was used longest ago goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.read.arrivals import Arrival


class PatchPool:
    """Recently read ranges.

    Parameters
    ----------
    most_bytes
        Bytes to keep; 0 keeps nothing.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Arrival] = OrderedDict()
        self.held_bytes = 0

    def find(self, spans: Int64[np.ndarray, "n 2"]) -> dict[tuple[int, int], Arrival]:
        """Return the ranges that are kept, of those that are asked for; they count as used now."""
        if not self._kept:
            return {}
        found = {}
        with self._lock:
            for begin, end in spans.tolist():
                kept = self._kept.get((begin, end))
                if kept is not None:
                    self._kept.move_to_end((begin, end))
                    found[begin, end] = kept
        return found

    def keep(self, piece: Arrival, spans: Int64[np.ndarray, "n 2"]) -> None:
        """Keep ranges of a piece that came, each in memory of its own."""
        if not self._most:
            return
        for begin, end in spans.tolist():
            copied = Arrival.of(begin, piece.bytes[begin - piece.begin : end - piece.begin])
            with self._lock:
                if (begin, end) not in self._kept:
                    self._kept[begin, end] = copied
                    self.held_bytes += end - begin
                while self.held_bytes > self._most:
                    (first, last), _ = self._kept.popitem(last=False)
                    self.held_bytes -= last - first
