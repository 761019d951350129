"""What a server says of an object: its size, and what tells one version from another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dynaclr_wds.storage.failures import TryAgain

_ETAG = re.compile(r"[\x20-\x7e]+")
_MD5 = re.compile(r'"([0-9a-f]{32})"')


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What tells one version of an object from another."""

    size: int
    etag: str | None
    """With its quotes; None where the server gives none."""
    changed: datetime | None
    version: str | None = None
    """The generation, of Google's objects."""

    @property
    def md5(self) -> str | None:
        """MD5 of the bytes, if the ETag looks like one: S3's is one, unless of an object of parts, or encrypted."""
        found = _MD5.fullmatch(self.etag or "")
        return found[1] if found else None

    @property
    def condition(self) -> str | None:
        """What `If-Match` asks for; None where the server gives no strong ETag."""
        return None if self.etag is None or self.etag.startswith("W/") else self.etag

    def is_same(self, other: ObjectInfo) -> bool:
        """Whether both are of one version, as far as it can be told."""
        if self.etag is None or other.etag is None:
            return self.size == other.size and self.changed == other.changed
        return self.size == other.size and self.etag == other.etag


def to_info(meta: Any) -> ObjectInfo:
    """Take from what obstore says of an object what we need; to be called inside a request."""
    etag = meta["e_tag"]
    if etag and not _ETAG.fullmatch(etag):  # obstore would panic when it is sent as If-Match
        raise TryAgain("an ETag came that is none")
    if etag and not etag.endswith('"'):  # Azure lists them without quotes
        etag = f'"{etag}"'
    return ObjectInfo(int(meta["size"]), etag or None, meta["last_modified"], meta["version"])
