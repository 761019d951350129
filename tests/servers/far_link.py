"""Runs the proxy as a process of its own, for measurements: a far, narrow link beside the client."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from tests.servers.bucket import Bucket
from tests.servers.daemon import Daemon
from tests.servers.proxy import Link, Proxy

_ROOT = Path(__file__).parents[2]


class FarLink(Daemon):
    """A way to one server, with a delay and a rate per connection; gives no faults and counts nothing."""

    name = "far-link"

    def __init__(self, upstream: str, link: Link) -> None:
        super().__init__()
        self.upstream, self.link = upstream, link

    @property
    def endpoint(self) -> str:
        """Where requests go."""
        return f"http://127.0.0.1:{self.ports[0]}"

    def command(self) -> list[str]:
        """Python with this module."""
        link = [str(self.link.delay_seconds), str(self.link.bytes_per_second)]
        call = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from tests.servers.far_link import serve; serve()"
        return [sys.executable, "-c", call, self.upstream, str(self.ports[0]), *link]

    def before(self, bucket: Bucket) -> Bucket:
        """The bucket as reached through this link."""
        return bucket.at(self.endpoint)


def serve() -> None:
    """Carry requests until killed; arguments: upstream, port, seconds, bytes per second."""
    upstream, port, seconds, rate = sys.argv[1:]
    Proxy(upstream, link=Link(delay_seconds=float(seconds), bytes_per_second=float(rate)), port=int(port))
    threading.Event().wait()
