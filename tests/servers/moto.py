"""Runs moto's S3, a second implementation: objects in memory, no check of signatures, strict about conditions."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

from tests.servers.bucket import Bucket
from tests.servers.daemon import Daemon


class Moto(Daemon):
    """moto's server; what it holds is gone after a restart."""

    name = "moto"

    @property
    def endpoint(self) -> str:
        """Where S3 requests go."""
        return f"http://127.0.0.1:{self.ports[0]}"

    def command(self) -> list[str]:
        """One HTTP port."""
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.ports[0])]

    def bucket(self, name: str) -> Bucket:
        """Make the bucket unless it is there; any keys will do."""
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT"), timeout=10).close()
        return Bucket(
            url=f"s3://{name}",
            endpoint=self.endpoint,
            endpoint_key="endpoint",
            options={"access_key_id": "ANYACCESSKEY", "secret_access_key": "any", "region": "us-east-1"},
        )
