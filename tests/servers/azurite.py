"""Runs Azurite, Microsoft's own emulator of Azure Blob Storage, with objects on disk."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import urllib.error
import urllib.request

from tests.servers.bucket import Bucket
from tests.servers.daemon import Daemon
from tests.servers.programs import find_program

ACCOUNT = "devstoreaccount1"
# public: every Azurite has this key
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_VERSION = "2021-08-06"


class Azurite(Daemon):
    """Azurite's blob service."""

    name = "azurite"

    @property
    def endpoint(self) -> str:
        """Where requests go; the account is the first part of every path."""
        return f"http://127.0.0.1:{self.ports[0]}/{ACCOUNT}"

    def command(self) -> list[str]:
        """One HTTP port; clients newer than Azurite are let in."""
        options = ["--location", "data", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
        return [find_program("azurite-blob"), "--blobHost", "127.0.0.1", "--blobPort", str(self.ports[0]), *options]

    def bucket(self, name: str) -> Bucket:
        """Make the container unless it is there; return it with the account's key."""
        date = email.utils.formatdate(usegmt=True)
        request = urllib.request.Request(f"{self.endpoint}/{name}?restype=container", method="PUT")
        for header, value in (("x-ms-date", date), ("x-ms-version", _VERSION)):
            request.add_header(header, value)
        request.add_header("Authorization", f"SharedKey {ACCOUNT}:{_sign(name, date)}")
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 409:  # it is there
                    raise
        return Bucket(
            url=f"az://{name}",
            endpoint=self.endpoint,
            endpoint_key="endpoint",
            options={"account_name": ACCOUNT, "account_key": KEY},
        )


def _sign(container: str, date: str) -> str:
    """Signature of a request that makes a container, by the scheme SharedKey of the Blob service."""
    resource = f"/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container"
    text = "PUT" + 12 * "\n" + f"x-ms-date:{date}\nx-ms-version:{_VERSION}\n{resource}"
    return base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
