"""Stands between a client and a server and makes the way faulty, slow or far, by a schedule that a test gives.

Requests go on byte for byte, so signatures stay valid: the server sees the host that the client signed for.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import socket
import ssl
import threading
from typing import Self
from urllib.parse import urlsplit

from tests.servers.bucket import Bucket
from tests.servers.exchange import Exchange
from tests.servers.faults import Fault, Schedule, identify
from tests.servers.http1 import Head


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A way to the server that is longer or narrower than loopback, for every request."""

    delay_seconds: float = 0.0
    """Each reply comes later by this."""
    bytes_per_second: float = float("inf")
    """Each connection brings bodies at this rate at most."""
    drop_headers: tuple[str, ...] = ()
    """Headers of requests that the server never sees, such as If-None-Match: a server that ignores conditions."""


@dataclasses.dataclass(slots=True)
class Seen:
    """A request that went through, or didn't."""

    head: Head
    fault: str = ""
    """Kind of the fault given; empty: none."""
    status: int = 0
    """Of the reply as the client got it; 0: it got none."""
    bytes_sent: int = 0
    """Bytes of the reply's body that were sent on."""


class Proxy:
    """An HTTP proxy before one server, in threads of this process; one thread a connection.

    Attributes
    ----------
    seen
        Every request since the start or `use`, in the order of arrival.
    faults_left
        Number of faults that will be given yet; None: no limit.
    """

    def __init__(
        self,
        upstream: str,
        schedule: Schedule | None = None,
        link: Link | None = None,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "", parts.port or 80)
        self.link = link or Link()
        self._tls = tls
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.ended = threading.Event()
        self.use(schedule or Schedule())
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def use(self, schedule: Schedule) -> None:
        """Follow another schedule from now on, and forget what was seen."""
        with self._lock:
            self.schedule, self.faults_left = schedule, schedule.fault_limit
            self.seen: list[Seen] = []
            self._repeats: collections.Counter[str] = collections.Counter()

    def before(self, bucket: Bucket) -> Bucket:
        """The bucket as reached through this proxy."""
        return bucket.at(self.endpoint)

    @property
    def requests(self) -> collections.Counter[str]:
        """Requests by method."""
        return collections.Counter(seen.head.method for seen in list(self.seen))

    @property
    def faults(self) -> collections.Counter[str]:
        """Faults given, by kind."""
        return collections.Counter(seen.fault for seen in list(self.seen) if seen.fault)

    @property
    def bytes_sent(self) -> int:
        """Bytes of bodies that clients were sent."""
        return sum(seen.bytes_sent for seen in list(self.seen))

    def draw(self, head: Head) -> tuple[Seen, Fault | None]:
        """Note a request and decide what happens to it."""
        with self._lock:
            name = identify(head)
            fault = None if self.faults_left == 0 else self.schedule.draw(head, self._repeats[name])
            self._repeats[name] += 1
            self.seen.append(Seen(head))
            return self.seen[-1], fault

    def claim(self, seen: Seen, fault: Fault) -> bool:
        """Count a fault that is about to be given; False where the limit was reached meanwhile."""
        with self._lock:
            if self.faults_left == 0:
                return False
            if self.faults_left is not None:
                self.faults_left -= 1
            seen.fault = fault.kind
            return True

    def close(self) -> None:
        """Close the listener and all connections."""
        self.ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits there
        self._listener.close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), name="proxy connection", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = self._tls.wrap_socket(client, server_side=True) if self._tls else client
            with Exchange(self, stream) as exchange, contextlib.suppress(OSError, ValueError):
                exchange.serve()
        except OSError:
            pass  # the client went away, or did not trust us
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()
