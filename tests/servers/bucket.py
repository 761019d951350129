"""Says where a test's objects are and with which keys one gets at them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from obstore.store import ObjectStore, from_url


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A bucket of a test server: a URL, and what obstore's `from_url` takes beside it."""

    url: str
    """`s3://name`, `gs://name`, `az://container`, or `http(s)://host:port/folder`."""
    endpoint: str
    """`http://127.0.0.1:port`, with the account as path for Azure."""
    endpoint_key: str = ""
    """Name of the option that takes the endpoint; empty where the URL holds it."""
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Keys and region, in obstore's names."""
    client_options: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"allow_http": True})
    """Options of the HTTP client, in obstore's names."""

    def storage_options(self) -> dict[str, str]:
        """Endpoint, keys and region together."""
        return {**self.options, self.endpoint_key: self.endpoint} if self.endpoint_key else dict(self.options)

    def store(self, *, retries: int = 0, seconds: float = 10.0, **client_options: object) -> ObjectStore:
        """Open the bucket with obstore, `retries` soon after each other, nothing longer than `seconds`."""
        limit = timedelta(seconds=seconds)
        backoff = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2}
        config: Any = self.storage_options()
        client: Any = {**self.client_options, "timeout": limit, **client_options}
        retry: Any = {"max_retries": retries, "retry_timeout": limit, "backoff": backoff}
        return from_url(self.url, config=config, client_options=client, retry_config=retry)

    def at(self, endpoint: str) -> Bucket:
        """The same bucket by way of another host and port, such as a proxy's."""
        scheme, host = urlsplit(endpoint)[:2]
        if not self.endpoint_key:
            url = urlsplit(self.url)._replace(scheme=scheme, netloc=host).geturl()
            return dataclasses.replace(self, url=url, endpoint=endpoint)
        moved = urlsplit(self.endpoint)._replace(scheme=scheme, netloc=host).geturl()
        return dataclasses.replace(self, endpoint=moved)

    def with_options(self, **options: str) -> Bucket:
        """The same bucket with other keys."""
        return dataclasses.replace(self, options={**self.options, **options})
