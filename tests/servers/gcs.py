"""Runs our own Google Cloud Storage (`gcs_api.py`) as a process.

PyPI's fakes of it speak the JSON API; obstore speaks the XML API, which they have for reading at best.
"""

from __future__ import annotations

import sys
import urllib.request

from tests.servers import gcs_api
from tests.servers.bucket import Bucket
from tests.servers.daemon import Daemon


class Gcs(Daemon):
    """The XML API of Google Cloud Storage; what it holds is gone after a restart."""

    name = "gcs"

    @property
    def endpoint(self) -> str:
        """Where requests go."""
        return f"http://127.0.0.1:{self.ports[0]}"

    def command(self) -> list[str]:
        """One HTTP port."""
        return [sys.executable, gcs_api.__file__, str(self.ports[0])]

    def bucket(self, name: str, role: str = "admin") -> Bucket:
        """Make the bucket unless it is there; return it with a token that may do everything, or only read."""
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        request.add_header("Authorization", f"Bearer {gcs_api.TOKENS['admin']}")
        urllib.request.urlopen(request, timeout=10).close()
        return Bucket(
            url=f"gs://{name}",
            endpoint=self.endpoint,
            endpoint_key="base_url",
            options={"bearer_token": gcs_api.TOKENS[role]},
        )
