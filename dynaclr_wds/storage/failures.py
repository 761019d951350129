"""A failed request to its cause: short, without secrets, and with what to do about it. Imports nothing heavy.

obstore's messages hold whole answers of servers and URLs with signatures, so they are never passed on: the status, the
server's error code and the kind of failure are taken out of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a failure means for the next try."""

    TRANSIENT = "transient"
    """Another try may do: no connection, a time-out, a server that is busy or broken."""
    DENIED = "denied"
    """The credentials are wrong, expired, or not enough."""
    ABSENT = "absent"
    """There is no such object or bucket."""
    REPLACED = "replaced"
    """The object is no longer the one whose ETag was asked for."""
    FINAL = "final"
    """Another try would fail in the same way."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed."""

    kind: Kind
    cause: str
    """For messages; holds no secret."""


class TryAgain(Exception):
    """A failure that our own code found, and that another try may mend."""


_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9_.]{1,60})</Code>")
_AZURE_CODE = re.compile(r'"code":\s*\\?"([A-Za-z0-9_.]{1,60})')
_METADATA = re.compile(r"169\.254\.169\.254|metadata\.google\.internal|fd00:ec2")

_BY_STATUS = {
    401: Kind.DENIED,
    403: Kind.DENIED,
    404: Kind.ABSENT,
    408: Kind.TRANSIENT,
    412: Kind.REPLACED,
    501: Kind.FINAL,
}
_BY_STATUS |= {425: Kind.TRANSIENT, 429: Kind.TRANSIENT}

_EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "RequestExpired", "RequestTimeTooSkewed")
"""Codes that some servers send with status 400."""
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
"""Codes of status 404 that say nothing about the object."""
_BUSY = ("RequestTimeout", "SlowDown", "InternalError", "ServerBusy")

_BY_CLASS = {
    "PermissionDeniedError": Kind.DENIED,
    "UnauthenticatedError": Kind.DENIED,
    "FileNotFoundError": Kind.ABSENT,
    "PreconditionError": Kind.REPLACED,
    "NotSupportedError": Kind.FINAL,
    "InvalidPathError": Kind.FINAL,
    "UnknownConfigurationKeyError": Kind.FINAL,
    "AlreadyExistsError": Kind.FINAL,
    "PanicException": Kind.FINAL,
    "ValueError": Kind.FINAL,
    "TypeError": Kind.FINAL,
}

_WORDS = (
    (r"BadScheme", Kind.FINAL, "plain http is not allowed here; set allow_http: true in storage_options"),
    (r"certificate|UnknownIssuer|invalid peer", Kind.FINAL, "the server's certificate is not trusted"),
    (r"External \w+ credential provider", Kind.DENIED, "the credential_provider failed"),
    (r"does not support range|NotSupported|RangeNotSupported", Kind.FINAL, "the server can't serve ranges of bytes"),
    (r"Connection refused|ConnectionRefused", Kind.TRANSIENT, "connection refused"),
    (r"reset by peer|ConnectionReset|BrokenPipe|IncompleteMessage|UnexpectedEof", Kind.TRANSIENT, "connection lost"),
    (r"dns error|failed to lookup", Kind.TRANSIENT, "the server's name can't be resolved"),
    (r"TimedOut|timed out|Timeout|operation timed out", Kind.TRANSIENT, "no answer in time"),
    (r"kind: Connect", Kind.TRANSIENT, "no connection"),
    (r"invalid list response", Kind.TRANSIENT, "a listing came that can't be read"),
    (r"kind: (Decode|Body|Interrupted)", Kind.TRANSIENT, "the answer was cut short"),
)


def classify(error: BaseException) -> Failure:
    """Say what a failure of obstore means, without repeating what it says."""
    text, name = str(error)[:20_000], type(error).__name__
    if _METADATA.search(text):
        return Failure(Kind.DENIED, "this machine's own role gave no credentials")
    status = _STATUS.search(text)
    if status is not None:
        code = _CODE.search(text) or _AZURE_CODE.search(text)
        number, word = int(status[1]), code[1] if code else ""
        kind = _BY_STATUS.get(number, Kind.TRANSIENT if number >= 500 else Kind.FINAL)
        if word in _EXPIRED:
            kind = Kind.DENIED
        elif word in NO_BUCKET:
            kind = Kind.FINAL
        elif word in _BUSY:
            kind = Kind.TRANSIENT
        return Failure(kind, f"status {number}{f' {word}' if word else ''}")
    for pattern, kind, cause in _WORDS:
        if re.search(pattern, text):
            return Failure(kind, cause)
    known = _BY_CLASS.get(name)
    return Failure(known or Kind.TRANSIENT, {Kind.REPLACED: "status 412"}.get(known, name))  # type: ignore[arg-type]
