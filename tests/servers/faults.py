"""Decides which requests go wrong and how: by a seed, the request, and how often it was made before.

The decision does not depend on the order in which threads ask for different things, so a seed gives the same faults
in every run that makes the same requests.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from tests.servers.http1 import Head

KINDS = ("drop", "lose", "reset", "stall", "truncate", "short", "flip", "delay", "slow", "403", "429", "500", "503")
"""What can happen to a request.

- drop: the connection closes; the server never sees the request.
- lose: the server does what was asked, but its reply is lost.
- reset: the connection is reset in the middle of the reply.
- stall: the reply stops in the middle, and the connection closes after `seconds`.
- truncate: the connection closes in the middle of the body.
- short: Content-Length is too small and the body that short, so the reply looks whole.
- flip: one bit of the body is another.
- delay: the reply comes `seconds` later.
- slow: the body comes at `bytes_per_second`.
- a number: the reply is an error of this status; the server never sees the request.

Of a request with a body, as of a PUT, it is the body of the request that is truncated, short, flipped or slow. Where
neither request nor reply has a body, such a fault is none: the reply passes as it is, and nothing is counted.
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to one request."""

    kind: str
    """One of `KINDS`, or any other status, as digits."""
    place: float = 0.5
    """Where in the body, as a fraction of it, in [0, 1)."""
    seconds: float = 0.03
    bytes_per_second: float = 1e6
    location: str = ""
    """Where a status such as 307 sends the client."""

    @property
    def unheard(self) -> bool:
        """Whether the server never sees the request."""
        return self.kind == "drop" or self.kind.isdigit()

    @property
    def needs_body(self) -> bool:
        """Whether an exchange without a body can't have this fault."""
        return self.kind in ("truncate", "short", "flip", "slow")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Some requests, and what may happen to them."""

    kinds: tuple[str, ...]
    """One of these is drawn."""
    share: float = 1.0
    """Fraction of the requests that go wrong."""
    methods: tuple[str, ...] = ()
    """Empty: all."""
    target: str = ""
    """Regular expression, searched for in path and query."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name of a header the request has, and a regular expression, searched for in its value."""
    repeats: tuple[int, ...] = ()
    """Which times of the very same request: (0,) the first only, so that its repetition succeeds. Empty: all."""
    seconds: float = 0.03
    bytes_per_second: float = 1e6
    location: str = ""

    def concerns(self, request: Head, repeat: int) -> bool:
        """Whether the rule is about this request, made `repeat` times before."""
        return (
            (not self.methods or request.method in self.methods)
            and (not self.repeats or repeat in self.repeats)
            and re.search(self.target, request.target) is not None
            and all(re.search(pattern, request.get(name) or "\0") for name, pattern in self.headers.items())
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """Rules, the first that applies first, and the seed that draws."""

    seed: int = 0
    rules: tuple[Rule, ...] = ()
    fault_limit: int | None = None
    """So many faults are given at most."""

    def draw(self, request: Head, repeat: int) -> Fault | None:
        """What happens to this request, made `repeat` times before; None: nothing."""
        for number, rule in enumerate(self.rules):
            if rule.concerns(request, repeat):
                generator = random.Random(f"{self.seed} {number} {identify(request)} {repeat}")
                if generator.random() < rule.share:
                    return Fault(
                        kind=generator.choice(rule.kinds),
                        place=generator.random(),
                        seconds=rule.seconds,
                        bytes_per_second=rule.bytes_per_second,
                        location=rule.location,
                    )
        return None


def one_fault(kind: str, **rule: object) -> Schedule:
    """One fault, given to the first request that the rule (`Rule`'s fields) is about."""
    return Schedule(0, (Rule(kinds=(kind,), **rule),), fault_limit=1)  # type: ignore[arg-type]


def identify(request: Head) -> str:
    """What makes two requests the same: method, path, number of the part, range; not signatures, dates, upload ids."""
    url = urlsplit(request.target)
    query = parse_qs(url.query)
    part = "".join(query.get("partNumber", []) + query.get("blockid", []))
    return f"{request.method} {url.path} {part} {request.get('Range') or request.get('x-ms-range') or ''}"
