"""Lists the trials: each fault when it passes, after one time or two, and when it stays."""

from __future__ import annotations

import dataclasses
from typing import Any

from tests.servers.faults import KINDS, Rule, Schedule

ONCE, TWICE, ALWAYS = "once", "twice", "always"
LENGTHS = (ONCE, TWICE, ALWAYS)
"""How often one and the same request fails."""

HARMLESS = ("delay", "slow")
"""Faults that no request fails of."""

MOST_SECONDS = 60.0
"""A trial that takes longer hangs. Its time limits end it within two seconds where the machine is idle."""

_REPEATS = {ONCE: (0,), TWICE: (0, 1), ALWAYS: ()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One fault, given to requests for one kind of object."""

    kind: str
    """One of `tests.servers.faults.KINDS`."""
    length: str
    """One of `LENGTHS`."""
    seed: int
    """Decides where in a reply it happens, and which requests fail."""
    share: float
    """Fraction of the requests that fail."""

    @property
    def name(self) -> str:
        """Different for each trial."""
        return f"{self.kind}-{self.length}-{self.seed}"

    def schedule(self, target: str, methods: tuple[str, ...], least_share: float) -> Schedule:
        """What the proxy does to requests for `target`."""
        rule = Rule(
            kinds=(self.kind,),
            share=max(self.share, least_share),
            methods=methods,
            target=target,
            repeats=_REPEATS[self.length],
            seconds=MOST_SECONDS if self.kind == "stall" else 0.03,
            bytes_per_second=3e5,
        )
        return Schedule(self.seed, (rule,))

    @property
    def options(self) -> dict[str, Any]:
        """Time limits: short where they are what ends the trial, else such that a busy machine keeps them."""
        stays = self.length == ALWAYS and self.kind not in HARMLESS
        return {
            "retry_timeout": 0.25 if stays else 20.0,
            "stall_timeout": 0.4 if self.kind == "stall" else 10.0,
            "request_timeout": 10.0,
            "connect_timeout": 10.0,
        }


TRIALS = tuple(
    Trial(kind=kind, length=length, seed=seed, share=share)
    for kind in KINDS
    for length, seed, share in ((ONCE, 1, 1.0), (ONCE, 2, 0.7), (TWICE, 3, 1.0), (ALWAYS, 4, 1.0))
)
"""Four schedules of each fault."""
