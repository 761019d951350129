"""Text to a place: a local `Path`, or a `Location` in object storage. Opens nothing, and holds no secret."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote, unquote

from dynaclr_wds.errors import ConfigError

SCHEMES = ("s3", "gs", "az", "https", "http")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):/(/?)(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]*")
_HOST = re.compile(r"([A-Za-z0-9._\-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Location:
    """Where something is in object storage: a URL without credentials."""

    scheme: str
    """One of `SCHEMES`."""
    bucket: str
    """Bucket (s3, gs), container (az), or host and port (http, https)."""
    key: str = ""
    """Path in the bucket, without `/` at its ends; of http it is not percent-encoded."""

    def __str__(self) -> str:
        key = quote(self.key, safe="/~+=,@:!$&'()*;") if self.scheme.startswith("http") else self.key
        return f"{self.scheme}://{self.bucket}/{key}".rstrip("/")

    def __truediv__(self, name: str) -> Location:
        """Return the location of something below this one."""
        return Location(self.scheme, self.bucket, _check_key(f"{self.key}/{name}".strip("/"), f"{self}/{name}"))

    @property
    def name(self) -> str:
        """Last part of the key, or the bucket."""
        return self.key.rpartition("/")[2] or self.bucket


Place: TypeAlias = Path | Location
"""Where something is."""


def name_place(place: Place) -> str:
    """Name a place for a record that outlives this process: a path is made absolute."""
    return str(place.resolve() if isinstance(place, Path) else place)


def is_url(text: str | Path) -> bool:
    """Whether something is written as a URL of any scheme; a `Path` made of a URL counts too."""
    return _URL.fullmatch(str(text)) is not None


def parse_place(text: str | Path | Location, where: str = "shards") -> Place:
    """Read a path or URL.

    Parameters
    ----------
    text
        A path on a disk, or a URL of one of `SCHEMES`.
    where
        Names the option or key, for errors.

    Raises
    ------
    ConfigError
        A URL of another scheme, without a bucket, with a user, a password, a query or a fragment, or whose path has
        empty parts, `.` or `..`.
    """
    if isinstance(text, Location):
        return text
    match = _URL.fullmatch(str(text))
    if match is None:
        return Path(text)
    scheme, double, rest = match[1].lower(), match[2], match[3]
    if scheme not in SCHEMES:
        raise ConfigError(
            f"{where}: URLs of scheme {scheme!r} can't be read; use {', '.join(f'{s}://' for s in SCHEMES)} or a path."
        )
    if not double:
        raise ConfigError(f"{where}={str(text)!r:.200} has lost a '/': give the URL as text, not as a Path.")
    bucket, _, key = rest.partition("/")
    shown = f"{scheme}://…{rest.rpartition('@')[2]}" if "@" in bucket else str(text)
    shown = re.split(r"[?#]", shown)[0]
    if "@" in bucket or re.search(r"[?#]", rest):
        raise ConfigError(
            f"{where}: the URL {shown!r:.200} holds a user, a password, a query or a fragment. Secrets don't belong in "
            "URLs: give them in the environment or in storage_options, and the plain URL here."
        )
    web = scheme.startswith("http")
    if not (_HOST if web else _BUCKET).fullmatch(bucket):
        raise ConfigError(f"{where}={shown!r:.200} names no {'host' if web else 'bucket'} after {scheme}://. Name one.")
    return Location(scheme, bucket, _check_key((unquote(key) if web else key).strip("/"), f"{where}={shown!r:.200}"))


def _check_key(key: str, where: str) -> str:
    if key and (any(part in ("", ".", "..") for part in key.split("/")) or not key.isprintable() or "\\" in key):
        raise ConfigError(
            f"{where}: the path of a URL must not have empty parts, '.', '..', backslashes or control characters. "
            "Correct it."
        )
    return key
