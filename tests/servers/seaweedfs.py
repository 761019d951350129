"""Runs SeaweedFS, a real S3 server that keeps objects on disk and checks signatures, rights and conditions."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

from tests.servers.bucket import Bucket
from tests.servers.daemon import Daemon
from tests.servers.programs import find_program

ROLES = {
    "admin": ("ADMINACCESSKEY", "admin-secret", ["Admin", "Read", "List", "Tagging", "Write"]),
    "reader": ("READERACCESSKEY", "reader-secret", ["Read", "List"]),
    "renewed": ("RENEWEDACCESSKEY", "renewed-secret", ["Read", "List", "Write"]),
}
"""Role: access key, secret key, rights. `renewed` is for keys that replace others while something runs."""

_PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
_PORTS_S3 = ("s3.port", "s3.port.grpc")


class SeaweedFS(Daemon):
    """Master, volume server, filer and S3 gateway in one process; starts in under 3 s."""

    name = "seaweedfs"
    port_count = len(_PORTS) + len(_PORTS_S3)

    def __init__(self) -> None:
        super().__init__()
        identities = [
            {"name": role, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": rights}
            for role, (key, secret, rights) in ROLES.items()
        ]
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities}))
        # one volume a bucket at first, not seven, as tests make many buckets
        (self.folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
        (self.folder / "data").mkdir()

    @property
    def endpoint(self) -> str:
        """Where S3 requests go."""
        return f"http://127.0.0.1:{self.ports[6]}"

    def command(self) -> list[str]:
        """All ports on loopback; without what is of no use here and listens on fixed ports."""
        ports = zip((*_PORTS, *_PORTS_S3), self.ports, strict=True)
        return [
            find_program("weed"),
            "server",
            "-dir=data",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            # no election, and none resumed: a start or restart could take 5 to 20 s longer otherwise
            "-master.peers=none",
            "-master.resumeState=false",
            "-volume.max=2000",
            "-filer",
            "-filer.localSocket=filer.sock",
            "-s3",
            "-s3.localSocket=s3.sock",
            "-s3.config=s3.json",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *(f"-{name}={port}" for name, port in ports),
        ]

    def answers(self) -> bool:
        """Whether the volume server has joined, the S3 gateway refuses who has no key, and a file can be written."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[0]}/dir/status", timeout=1) as reply:
                if not json.load(reply)["Topology"]["DataCenters"]:
                    return False
            self._ask_filer("PUT", "/ready", b"yes")
            urllib.request.urlopen(self.endpoint, timeout=1).close()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code == 403
        except OSError:
            pass
        return False

    def kill(self) -> None:
        """Kill, and remove the sockets in /tmp, which have fixed names there."""
        super().kill()
        for port in self.ports:
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink(missing_ok=True)

    def bucket(self, name: str, role: str = "admin") -> Bucket:
        """Make the bucket unless it is there; return it with the keys of a role (`ROLES`)."""
        try:
            self._ask_filer("POST", f"/buckets/{name}/")
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 409:  # it is there
                    raise
        key, secret, _ = ROLES[role]
        return Bucket(
            url=f"s3://{name}",
            endpoint=self.endpoint,
            endpoint_key="endpoint",
            options={"access_key_id": key, "secret_access_key": secret, "region": "us-east-1"},
        )

    def drop(self, name: str) -> None:
        """Remove a bucket with all that it holds."""
        self._ask_filer("DELETE", f"/buckets/{name}?recursive=true")

    def _ask_filer(self, method: str, path: str, body: bytes | None = None) -> None:
        url = f"http://127.0.0.1:{self.ports[4]}{path}"
        request = urllib.request.Request(
            url, data=body, method=method, headers={"Content-Type": "text/plain"} if body else {}
        )
        urllib.request.urlopen(request, timeout=10).close()
