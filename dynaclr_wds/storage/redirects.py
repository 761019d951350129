"""Finds out whether a server sends requests to another host, before one is made that holds a secret.

obstore follows redirects and can't be told not to. Its client drops `Authorization` and cookies where the host changes,
and nothing else: headers of other names go along, and the query of the first URL, which holds the signature of Azure's
SAS, is told to the new host as `Referer`. So, where there are such secrets, the same URL is asked for once without
them. Servers that redirect everybody are found so; one that redirects only those who show their secret has it already.
"""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.storage.location import Location
from dynaclr_wds.storage.options import StorageOptions

_DROPPED = ("authorization", "cookie", "cookie2", "proxy-authorization", "www-authenticate")
"""Headers that the client of obstore drops where the host changes."""
_SAS = ("sas_key", "sas_token", "azure_storage_sas_key", "azure_storage_sas_token")
_SAS_VARIABLES = ("AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN")


def would_go_along(root: Location, options: StorageOptions) -> str | None:
    """Name the secret that a redirect would take to another host; None where there is none."""
    if root.scheme in ("http", "https"):
        kept = [name for name in options.headers if name.lower() not in _DROPPED]
        return f"the header {kept[0]!r}" if kept else None
    if root.scheme == "az" and not options.anonymous:
        given = [options.store.get(name) for name in _SAS] + [os.environ.get(name) for name in _SAS_VARIABLES]
        return "the SAS" if any(given) else None
    return None


def refuse_redirect(where: Location, url: str, secret: str, options: StorageOptions) -> None:
    """Ask for a URL without secrets; anything but a redirect to another host is no matter.

    Parameters
    ----------
    where
        What is to be read, for the error.
    url
        The URL, without query.
    secret
        Names the secret, for the error.

    Raises
    ------
    ConfigError
        The server redirects to another host.
    """
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        opener = urllib.request.build_opener(_Stay, urllib.request.HTTPSHandler(context=context))
        opener.open(urllib.request.Request(url, method="HEAD"), timeout=options.connect_timeout).close()
    except urllib.error.HTTPError as error:
        with error:
            target = urljoin(url, error.headers.get("Location") or "") if 300 <= error.code < 400 else url
    except (OSError, ValueError):
        return
    else:
        return
    if (there := _find_origin(target)) != _find_origin(url):
        raise ConfigError(
            f"{where}: the server redirects to {there[1]!r}, and would take {secret} along, from "
            "storage_options or the environment. Name that host in the URL or endpoint if you trust it, or use an "
            "Authorization header or an account key."
        )


def object_url(where: Location, endpoint: str | None, account: str | None) -> str:
    """Return the URL that an object is asked for under."""
    if where.scheme in ("http", "https"):
        return str(where)
    base = endpoint or f"https://{account}.blob.core.windows.net"
    return f"{base.rstrip('/')}/{where.bucket}/{quote(where.key)}"


def _find_origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for an error."""

    def redirect_request(self, *_: Any) -> None:
        """Go nowhere."""
