"""Carries requests and replies of one connection through the proxy, and spoils those that the schedule says."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
import time
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING, Self

from tests.servers.faults import Fault
from tests.servers.http1 import Head, read_chunks, read_head

if TYPE_CHECKING:
    from tests.servers.proxy import Proxy, Seen

_CHUNK = 1 << 18
_PACED_CHUNK = 1 << 16
_CODES = {403: "AccessDenied", 429: "TooManyRequests", 500: "InternalError", 501: "NotImplemented", 503: "SlowDown"}


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """Head of a server's reply and where its body comes from."""

    head: Head
    length: int
    body: BufferedReader | BytesIO


class Pacer:
    """Lets bytes through at a rate at most; no more than 10 ms without any are made up for (sleeps are not exact)."""

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self._due = 0.0

    def wait(self, count: int) -> None:
        """Wait until so many more bytes may be there."""
        now = time.monotonic()
        self._due = max(self._due, now - 0.01) + count / self.bytes_per_second
        if self._due > now:
            time.sleep(self._due - now)


class Exchange:
    """One client's connection, and one of our own to the server, kept between requests."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy, self._client = proxy, client
        self._requests = client.makefile("rb")
        self._server: socket.socket | None = None
        self._replies: BufferedReader | None = None
        self._buffer = memoryview(bytearray(_CHUNK))
        self._pacer = Pacer(proxy.link.bytes_per_second)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._disconnect()
        self._requests.close()
        with contextlib.suppress(OSError):
            self._client.close()

    def serve(self) -> None:
        """Carry one request after the other, until a fault or one of the two sides closes the connection."""
        while (head := read_head(self._requests)) is not None and self._carry(head):
            pass

    def _carry(self, head: Head) -> bool:
        """Carry one request; return whether the connection stays open."""
        if head.get("Expect"):
            self._client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self._requests.read(int(head.get("Content-Length") or 0))
        seen, fault = self._proxy.draw(head)
        self._proxy.ended.wait(self._proxy.link.delay_seconds)
        if fault and fault.unheard and self._proxy.claim(seen, fault):
            if fault.kind == "drop":
                return False
            return self._send(seen, _refusal(fault, head.method), None) and not head.closes
        head = head.without("Expect", *self._proxy.link.drop_headers)
        if fault and fault.needs_body and body and self._proxy.claim(seen, fault):
            if fault.kind == "truncate":
                return self._cut_off(head, body[: int(fault.place * len(body))])
            head, body = _spoil(head, body, fault)
            fault = None
        reply = self._ask(head, body)
        if fault and (fault.unheard or fault.needs_body > bool(reply.length) or not self._proxy.claim(seen, fault)):
            fault = None
        return self._send(seen, reply, fault) and not head.closes

    def _ask(self, head: Head, body: bytes) -> Reply:
        """Send a request on. A connection that the server closed since the last one is made anew."""
        while True:
            kept = self._server is not None
            reply = None
            with contextlib.suppress(ConnectionError):
                server, replies = self._connect()
                server.sendall(head.encode() + body)
                while (reply := read_head(replies)) is not None and reply.status < 200:
                    pass
            if reply is not None:
                return _with_body(reply, head.method, replies)
            self._disconnect()
            if not kept:
                raise ConnectionError("the server closed the connection")

    def _cut_off(self, head: Head, begin: bytes) -> bool:
        """Send the server the begin of a request, and close both connections."""
        with contextlib.suppress(OSError):
            self._connect()[0].sendall(head.encode() + begin)
        self._disconnect()
        return False

    def _send(self, seen: Seen, reply: Reply, fault: Fault | None) -> bool:
        """Send a reply to the client, spoiled by `fault`; return whether the connection stays open."""
        kind = fault.kind if fault else ""
        if kind == "lose":
            self._disconnect()
            return False
        if fault and kind == "delay":
            self._proxy.ended.wait(fault.seconds)
        cut = min(int(fault.place * reply.length), reply.length - 1) if fault else 0
        head = reply.head.replaced("Content-Length", str(cut)) if kind == "short" else reply.head
        seen.status = head.status
        if kind in ("reset", "stall") and reply.length == 0:
            self._client.sendall(head.encode()[:20])
        else:
            self._client.sendall(head.encode())
        stop = cut if kind in ("reset", "stall", "truncate", "short") else reply.length
        pacer = Pacer(fault.bytes_per_second) if fault and kind == "slow" else self._pacer
        self._send_body(seen, reply.body, max(0, stop), pacer, cut if kind == "flip" else None)
        return self._end(kind, fault.seconds if fault else 0.0, reply.head.closes)

    def _send_body(
        self, seen: Seen, source: BufferedReader | BytesIO, length: int, pacer: Pacer, flip_at: int | None
    ) -> None:
        paced = pacer.bytes_per_second != float("inf")
        chunk = int(min(max(_PACED_CHUNK, 0.004 * pacer.bytes_per_second), _CHUNK))  # or the proxy is what is slow
        done = 0
        while done < length:
            count = source.readinto(self._buffer[: min(length - done, chunk)])
            if not count:
                raise ConnectionError("the server closed the connection in the middle of a body")
            if flip_at is not None and done <= flip_at < done + count:
                self._buffer[flip_at - done] ^= 1
            if paced:
                pacer.wait(count)
            done += count
            seen.bytes_sent = done
            self._client.sendall(self._buffer[:count])

    def _end(self, kind: str, seconds: float, server_closes: bool) -> bool:
        """What comes after a reply: nothing, or the end of a connection; return whether the client's stays open."""
        if kind in ("short", "reset", "stall", "truncate") or server_closes:
            self._disconnect()
        if kind == "stall":
            self._proxy.ended.wait(seconds)
        if kind == "reset":
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return kind not in ("reset", "stall", "truncate") and not server_closes

    def _connect(self) -> tuple[socket.socket, BufferedReader]:
        if self._server is None or self._replies is None:
            self._server = socket.create_connection(self._proxy.upstream)
            self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._replies = self._server.makefile("rb")
        return self._server, self._replies

    def _disconnect(self) -> None:
        if self._replies is not None:
            self._replies.close()
        if self._server is not None:
            self._server.close()
        self._server = self._replies = None


def _with_body(head: Head, method: str, replies: BufferedReader) -> Reply:
    """A reply and the length of its body; one of unknown length is read whole and gets a Content-Length."""
    if method == "HEAD" or head.status in (204, 304):
        return Reply(head, 0, BytesIO())
    if (length := head.get("Content-Length")) is not None:
        return Reply(head, int(length), replies)
    chunked = (head.get("Transfer-Encoding") or "").lower() == "chunked"
    body = read_chunks(replies) if chunked else replies.read()
    whole = head.without("Transfer-Encoding").replaced("Content-Length", str(len(body)))
    return Reply(whole, len(body), BytesIO(body))


def _spoil(head: Head, body: bytes, fault: Fault) -> tuple[Head, bytes]:
    """Change a request on its way to the server, or have it take long."""
    at = int(fault.place * len(body))
    if fault.kind == "flip":
        return head, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
    if fault.kind == "short":
        return head.replaced("Content-Length", str(at)), body[:at]
    Pacer(fault.bytes_per_second).wait(len(body))
    return head, body


def _refusal(fault: Fault, method: str) -> Reply:
    """An error as S3 words it, or a redirection."""
    code = _CODES.get(int(fault.kind), "Refused")
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>drawn by a schedule</Message></Error>".encode()
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    if fault.location:
        headers.append(("Location", fault.location))
    body = b"" if method == "HEAD" else body
    return Reply(Head(f"HTTP/1.1 {fault.kind} {code}", tuple(headers)), len(body), BytesIO(body))
