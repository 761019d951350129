"""Answers the XML API of Google Cloud Storage from memory: objects, ranges, conditions, lists, multipart uploads.

Written from the public reference (cloud.google.com/storage/docs/xml-api), as far as clients of objects use it. A script
of its own: `python gcs_api.py PORT`. Needs the standard library only.
"""

from __future__ import annotations

import dataclasses
import email.utils
import hashlib
import itertools
import re
import sys
import threading
import time
import xml.etree.ElementTree as ET
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

TOKENS = {"admin": "admin-token", "reader": "reader-token"}
_PAGE = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Blob:
    """One generation of an object."""

    body: bytes
    generation: int
    etag: str
    time: float
    metadata: dict[str, str]


@dataclasses.dataclass(slots=True)
class Memory:
    """Buckets of objects, uploads not yet complete, and the last generation given."""

    buckets: dict[str, dict[str, Blob]] = dataclasses.field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = dataclasses.field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    generations: itertools.count[int] = dataclasses.field(
        default_factory=lambda: itertools.count(1_700_000_000_000_000)
    )
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)


class Refusal(Exception):
    """A status that is not 2xx."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """One connection. `memory` is set by `serve`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    memory: Memory

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def _handle(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with self.memory.lock:
                self._check_rights()
                self._route(bucket, key, query, body)
        except Refusal as refusal:
            text = f"<?xml version='1.0'?><Error><Code>{refusal.code}</Code><Message>{refusal.code}</Message></Error>"
            self._reply(refusal.status, text.encode())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _check_rights(self) -> None:
        token = self.headers.get("Authorization", "")
        if token not in {f"Bearer {known}" for known in TOKENS.values()}:
            raise Refusal(401, "AuthenticationRequired")
        if self.command not in ("GET", "HEAD") and token != f"Bearer {TOKENS['admin']}":
            raise Refusal(403, "AccessDenied")

    def _route(self, bucket: str, key: str, query: dict[str, str], body: bytes) -> None:
        if self.command == "PUT" and not key:
            self.memory.buckets.setdefault(bucket, {})
            return self._reply(200)
        if bucket not in self.memory.buckets:
            raise Refusal(404, "NoSuchBucket")
        objects = self.memory.buckets[bucket]
        if not key:
            return self._list(bucket, objects, query)
        if self.command == "POST" or "uploadId" in query:
            return self._upload(objects, key, query, body)
        if self.command == "PUT":
            return self._put(objects, key, body)
        if key not in objects:
            raise Refusal(404, "NoSuchKey")
        if self.command == "DELETE":
            del objects[key]
            return self._reply(204)
        return self._get(objects[key])

    def _get(self, blob: Blob) -> None:
        """Send an object or a range of it."""
        if (wanted := self.headers.get("If-Match")) and not {blob.etag, "*"} & set(re.split(r"\s*,\s*", wanted)):
            raise Refusal(412, "PreconditionFailed")
        headers = {**_describe(blob), "Last-Modified": email.utils.formatdate(blob.time, usegmt=True)}
        if self.headers.get("If-None-Match") == blob.etag:
            return self._reply(304, b"", headers)
        size = len(blob.body)
        if (asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))) is None:
            return self._reply(200, blob.body, headers)
        first, last = asked.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size:
            raise Refusal(416, "InvalidRange")
        return self._reply(206, blob.body[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def _find_metadata(self) -> dict[str, str]:
        return {name: value for name, value in self.headers.items() if name.lower().startswith("x-goog-meta-")}

    def _put(self, objects: dict[str, Blob], key: str, body: bytes, reply: bytes = b"", upload: str = "") -> None:
        """Store an object, or a copy of one, unless its generation is not the one that the client wants."""
        if (wanted := self.headers.get("x-goog-if-generation-match")) is not None:
            found = objects[key].generation if key in objects else 0
            if int(wanted) != found:
                raise Refusal(412, "PreconditionFailed")
        if source := self.headers.get("x-goog-copy-source"):
            bucket, _, name = unquote(source).lstrip("/").partition("/")
            if name not in self.memory.buckets.get(bucket, {}):
                raise Refusal(404, "NoSuchKey")
            body = self.memory.buckets[bucket][name].body
        metadata = self.memory.metadata.pop(upload, {}) | self._find_metadata()
        etag = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
        objects[key] = Blob(body, next(self.memory.generations), etag, time.time(), metadata)
        if source:
            reply = f"<CopyObjectResult><ETag>{escape(etag)}</ETag></CopyObjectResult>".encode()
        self._reply(200, reply.replace(b"ETAG", escape(etag).encode()), _describe(objects[key]))

    def _upload(self, objects: dict[str, Blob], key: str, query: dict[str, str], body: bytes) -> None:
        """Begin a multipart upload, take a part, complete or abort it."""
        if "uploads" in query:
            name = f"upload{next(self.memory.generations)}"
            self.memory.uploads[name] = {}
            self.memory.metadata[name] = self._find_metadata()
            text = f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
            return self._reply(200, text.encode())
        parts = self.memory.uploads.get(query["uploadId"])
        if parts is None:
            raise Refusal(404, "NoSuchUpload")
        if self.command == "PUT":
            number = int(query["partNumber"])
            parts[number] = body
            return self._reply(200, b"", {"ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'})
        if self.command == "DELETE":
            del self.memory.uploads[query["uploadId"]]
            return self._reply(204)
        listed = [int(node.text or 0) for node in ET.fromstring(body).iter() if node.tag.endswith("PartNumber")]
        if listed != sorted(parts):
            raise Refusal(400, "InvalidPart")
        reply = b"<CompleteMultipartUploadResult><ETag>ETAG</ETag></CompleteMultipartUploadResult>"
        self._put(objects, key, b"".join(parts[number] for number in listed), reply, query["uploadId"])
        del self.memory.uploads[query["uploadId"]]
        return None

    def _list(self, bucket: str, objects: dict[str, Blob], query: dict[str, str]) -> None:
        """List names in order, pages of 1000, common prefixes up to a delimiter."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token", "") or query.get("start-after", "")
        entries: dict[str, str] = {}
        for name in sorted(name for name in objects if name.startswith(prefix)):
            shared, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            entry = prefix + shared + delimiter if found else name
            if entry > after:
                entries[entry] = _describe_prefix(entry) if found else _describe_entry(name, objects[name])
        page, more = list(entries)[:_PAGE], len(entries) > _PAGE
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        listed = "".join(entries[name] for name in page)
        head = f"<Name>{bucket}</Name><IsTruncated>{str(more).lower()}</IsTruncated>"
        self._reply(200, f"<ListBucketResult>{head}{token}{listed}</ListBucketResult>".encode())

    def _reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _describe(blob: Blob) -> dict[str, str]:
    return {"ETag": blob.etag, "x-goog-generation": str(blob.generation), **blob.metadata}


def _describe_prefix(prefix: str) -> str:
    return f"<CommonPrefixes><Prefix>{escape(prefix)}</Prefix></CommonPrefixes>"


def _describe_entry(name: str, blob: Blob) -> str:
    when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(blob.time))
    facts = f"<LastModified>{when}</LastModified><ETag>{escape(blob.etag)}</ETag><Size>{len(blob.body)}</Size>"
    return f"<Contents><Key>{escape(name)}</Key><Generation>{blob.generation}</Generation>{facts}</Contents>"


def serve(port: int) -> None:
    """Answer on a port of 127.0.0.1 until killed."""
    handler = type("Handler", (Handler,), {"memory": Memory()})
    ThreadingHTTPServer(("127.0.0.1", port), handler).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
