"""Location and options to an obstore store: how the client that makes the requests is set up."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.storage.credentials import choose_credentials
from dynaclr_wds.storage.failures import classify
from dynaclr_wds.storage.location import Location
from dynaclr_wds.storage.options import StorageOptions

_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Variables that name a server, the first that is set."""


def make_store(root: Location, options: StorageOptions, retries: int = 0) -> Any:
    """Make the store of a bucket, or of a host; it asks for credentials anew.

    Parameters
    ----------
    retries
        How often obstore itself repeats a request.

    Raises
    ------
    ConfigError
        There are no credentials, or an option that the store doesn't know.
    """
    config, provider = choose_credentials(root, options)
    config = {**options.store, **config}
    endpoint = find_endpoint(root.scheme, options)
    limit = options.retry_timeout if retries else options.request_timeout
    shared: dict[str, Any] = {
        "client_options": _client_options(root, options, endpoint),
        "retry_config": {"max_retries": retries, "retry_timeout": timedelta(seconds=limit)},
    }
    try:
        if root.scheme in ("http", "https"):
            return HTTPStore(f"{root.scheme}://{root.bucket}", **shared)
        if endpoint:
            config["base_url" if root.scheme == "gs" else "endpoint"] = endpoint
        if root.scheme == "s3" and options.region:
            config["region"] = options.region
        kind: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[root.scheme]
        return kind(root.bucket, config=config, credential_provider=provider, **shared)
    except Exception as error:
        cause = classify(error).cause
    raise ConfigError(
        f"{root}: storage_options, or the environment, hold something that {root.scheme}:// doesn't take ({cause}). "
        "docs/OBJECT_STORAGE.md lists the options."
    )


def is_plain(root: Location, options: StorageOptions) -> bool:
    """Whether bytes come without TLS, so that one could change on its way without notice."""
    return urlsplit(find_endpoint(root.scheme, options) or str(root)).scheme == "http"


def find_endpoint(scheme: str, options: StorageOptions) -> str | None:
    """Return the URL of the server that options or environment name; None = the cloud's own."""
    given = [options.store.get(name) for name in ("base_url", "aws_endpoint_url_s3")]
    given += [os.environ.get(name) for name in _ENDPOINTS.get(scheme, ())]
    return options.endpoint or next((str(url) for url in given if url), None)


def _client_options(root: Location, options: StorageOptions, endpoint: str | None) -> dict[str, Any]:
    here = urlsplit(endpoint or str(root)).hostname in ("127.0.0.1", "localhost", "::1")
    nothing_to_hide = root.scheme == "http" and not options.headers
    chosen: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=options.connect_timeout),
        "read_timeout": timedelta(seconds=options.stall_timeout),
        "timeout": timedelta(seconds=options.request_timeout),
        "allow_http": options.allow_http or nothing_to_hide or here or bool(options.store.get("use_emulator")),
    }
    if options.headers:
        chosen["default_headers"] = dict(options.headers)
    ca_file = options.ca_file or (os.environ.get("AWS_CA_BUNDLE") if root.scheme == "s3" else None)
    if ca_file:
        try:
            chosen["root_certificate"] = Path(ca_file).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"storage_options.ca_file={ca_file!r}, or AWS_CA_BUNDLE: can't be read ({error.strerror}). Correct it."
            ) from error
    return chosen
