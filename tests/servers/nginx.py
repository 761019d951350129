"""Runs nginx, which serves files of a folder over https (and http, for a proxy), and lists nothing."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

from tests.servers.bucket import Bucket
from tests.servers.daemon import Daemon
from tests.servers.programs import find_program

_CONFIG = """
daemon off; master_process off; pid nginx.pid; error_log log;
events {{ worker_connections 256; }}
http {{
  access_log off; default_type application/octet-stream; sendfile on;
  client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
  server {{
    listen 127.0.0.1:{https} ssl; listen 127.0.0.1:{http}; root files;
    ssl_certificate server.pem; ssl_certificate_key server.pem;
  }}
}}
"""


class Nginx(Daemon):
    """Files over https, with a certificate of an authority that only `certificate` names."""

    name = "nginx"
    port_count = 2

    def __init__(self) -> None:
        super().__init__()
        (self.folder / "files").mkdir()
        self.authority = trustme.CA()
        self.server_certificate = self.authority.issue_cert("127.0.0.1", "localhost")
        self.server_certificate.private_key_and_cert_chain_pem.write_to_path(self.folder / "server.pem")

    @property
    def endpoint(self) -> str:
        """Where https requests go."""
        return f"https://127.0.0.1:{self.ports[0]}"

    @property
    def plain_endpoint(self) -> str:
        """Where http requests go: to the same files."""
        return f"http://127.0.0.1:{self.ports[1]}"

    @property
    def certificate(self) -> str:
        """The authority's certificate, PEM: clients that don't know it refuse the server."""
        return self.authority.cert_pem.bytes().decode()

    def tls(self) -> ssl.SSLContext:
        """The server side of TLS with nginx's own certificate, for a proxy before it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server_certificate.configure_cert(context)
        return context

    def command(self) -> list[str]:
        """One process, in the foreground."""
        config = self.folder / "nginx.conf"
        config.write_text(_CONFIG.format(https=self.ports[0], http=self.ports[1]))
        return [find_program("nginx"), "-p", str(self.folder), "-e", "log", "-c", str(config)]

    def files(self, name: str) -> Path:
        """The folder behind a bucket: what a test writes there is served."""
        return self.folder / "files" / name

    def bucket(self, name: str) -> Bucket:
        """Make a folder unless it is there; return its URL. It can only be read."""
        self.files(name).mkdir(exist_ok=True)
        options = {"allow_http": True, "root_certificate": self.certificate}
        return Bucket(url=f"{self.endpoint}/{name}", endpoint=self.endpoint, client_options=options)
