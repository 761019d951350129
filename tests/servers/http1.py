"""Heads of HTTP/1.1 messages, read and written byte by byte as they are, so that signatures stay valid."""

from __future__ import annotations

import dataclasses
from io import BufferedReader


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """First line and headers of a request or a reply."""

    start: str
    """`GET /bucket/key HTTP/1.1` or `HTTP/1.1 200 OK`."""
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """Value of a header, whatever the case of its name."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def without(self, *names: str) -> Head:
        """The same head without some headers."""
        unwanted = {name.lower() for name in names}
        return Head(self.start, tuple(pair for pair in self.headers if pair[0].lower() not in unwanted))

    def replaced(self, name: str, value: str) -> Head:
        """The same head with another value of a header."""
        return Head(self.start, (*self.without(name).headers, (name, value)))

    @property
    def method(self) -> str:
        """Of a request: `GET`."""
        return self.start.split(" ", 1)[0]

    @property
    def target(self) -> str:
        """Of a request: path and query, encoded as the client sent them."""
        return self.start.split(" ")[1]

    @property
    def status(self) -> int:
        """Of a reply: 200."""
        return int(self.start.split(" ")[1])

    @property
    def closes(self) -> bool:
        """Whether the sender closes the connection after this message."""
        return (self.get("Connection") or "").lower() == "close" or self.start.startswith("HTTP/1.0")

    def encode(self) -> bytes:
        """The bytes to send, with the empty line that ends a head."""
        lines = [self.start, *(f"{name}: {value}" for name, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")


def read_head(stream: BufferedReader) -> Head | None:
    """Read the next head; None where the sender has closed the connection."""
    start = stream.readline()
    if not start.endswith(b"\r\n"):
        return None
    headers = []
    while (line := stream.readline()) != b"\r\n":
        if not line.endswith(b"\r\n"):
            return None
        name, _, value = line.decode("latin-1").rstrip("\r\n").partition(":")
        headers.append((name, value.strip()))
    return Head(start.decode("latin-1").rstrip("\r\n"), tuple(headers))


def read_chunks(stream: BufferedReader) -> bytes:
    """Read a body that comes in chunks (`Transfer-Encoding: chunked`)."""
    body = bytearray()
    while size := int(stream.readline().split(b";")[0], 16):
        body += stream.read(size)
        stream.readline()
    while stream.readline() not in (b"\r\n", b""):
        pass
    return bytes(body)
