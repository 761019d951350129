"""`storage_options` of a config to `StorageOptions`: how requests to object storage are signed, timed and tried again.

Nothing of it is ever shown: options may hold keys. `kept_options` is the part that a checkpoint or a saved config may
hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from dynaclr_wds.errors import ConfigError

MIB = 1 << 20

CredentialProvider = Callable[[], Mapping[str, Any]]
"""Returns keys as obstore's providers do: `access_key_id`, `secret_access_key`, `token`, `expires_at` (s3), …"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class StorageOptions:
    """How requests to object storage are made; all times are in seconds."""

    endpoint: str | None = None
    """URL of an S3-like, Google or Azure server; None = the environment, else the cloud's own."""
    region: str | None = None
    """Region of the bucket (s3); None = the environment, else us-east-1."""
    anonymous: bool = False
    """Send no credentials: for public buckets."""
    profile: str | None = None
    """Section of the AWS credentials file; None = `AWS_PROFILE`, else `default`."""
    instance_role: bool | None = None
    """Ask the cloud's metadata address for the role of this machine; None = only on a machine of that cloud."""
    credential_provider: CredentialProvider | None = None
    """From Python only: called for keys when there are none, or those there are have expired or are refused."""
    allow_http: bool = False
    """Allow an endpoint without TLS that is not on this machine; what is read, and tokens, can then be seen."""
    ca_file: str | None = None
    """PEM file of a certificate authority to trust as well."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every request (http, https); where they would go along, a redirect to another host is an error."""
    connect_timeout: float = 5.0
    """Longest wait for a connection."""
    stall_timeout: float = 20.0
    """Longest wait for the next bytes of an answer."""
    request_timeout: float = 60.0
    """Longest time that one request may take from beginning to end."""
    retry_timeout: float = 120.0
    """A request that fails is tried again until so long after it was first made, and then once at most."""
    requests_in_flight: int | None = None
    """Requests at a time; None = 16 for each of `num_workers`, at most 64."""
    request_bytes: int = 8 * MIB
    """Most bytes of a request; larger ranges are read in several."""
    coalesce_bytes: int = 256 << 10
    """Patches that are at most so far apart in a shard are read with one request (exact mode)."""
    store: Mapping[str, str | bool] = field(default_factory=dict)
    """Other keys, as obstore's S3Store, GCSStore or AzureStore know them, such as `access_key_id` or `account_name`."""

    def __repr__(self) -> str:
        return "StorageOptions(…)"


_OWN = tuple(f.name for f in fields(StorageOptions) if f.name != "store")
_NUMBERS = ("connect_timeout", "stall_timeout", "request_timeout", "retry_timeout")
_WHOLE = {"requests_in_flight": 1, "request_bytes": 1 << 12, "coalesce_bytes": 0}
_FLAGS = ("anonymous", "instance_role", "allow_http")
_TEXTS = ("endpoint", "region", "profile", "ca_file")

_KEPT = (*_TEXTS, *_FLAGS, *_NUMBERS, *_WHOLE)
_KEPT_OF_STORE = ("account_name", "virtual_hosted_style_request", "request_payer", "use_emulator", "s3_express")


def parse_options(raw: Any, where: str = "storage_options") -> StorageOptions:
    """Check options: a mapping, name → value; None is none; those that are checked are returned as they are.

    Raises
    ------
    ConfigError
        A value of the wrong kind; the value is not shown.
    """
    if isinstance(raw, StorageOptions):
        return raw
    if raw is None:
        return StorageOptions()
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(f"{where} must be a mapping, name → value. Give such as {{endpoint: https://…}}.")
    given = {key: value for key, value in raw.items() if value is not None}
    own = {key: _parse_value(key, value, where) for key, value in given.items() if key in _OWN}
    rest = {key: value for key, value in given.items() if key not in _OWN}
    for key, value in rest.items():
        if not isinstance(value, str | bool):
            raise ConfigError(f"{where}.{key} must be text or true or false. Correct it.")
    return StorageOptions(**own, store=rest)


def kept_options(raw: Mapping[str, Any] | StorageOptions | None) -> dict[str, Any] | None:
    """Return the part of the options that a checkpoint or a saved config may hold: no keys, tokens or headers."""
    if isinstance(raw, StorageOptions):
        raw = {name: getattr(raw, name) for name in _KEPT} | dict(raw.store)
    kept = {k: v for k, v in (raw or {}).items() if k in (*_KEPT, *_KEPT_OF_STORE) and v is not None}
    return kept or None


def parse_words(words: Sequence[str], where: str = "--storage_options") -> dict[str, Any]:
    """Read options as a command line gives them: `endpoint=https://…`, `anonymous=true`, `retry_timeout=30`.

    Raises
    ------
    ConfigError
        A word without `=`.
    """
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{where}: every word must be KEY=VALUE, such as endpoint=https://s3.example.org.")
        given[key] = value
        if key in _FLAGS and value.lower() in ("true", "false"):
            given[key] = value.lower() == "true"
        elif key in (*_NUMBERS, *_WHOLE):
            try:
                given[key] = int(value) if value.isdigit() else float(value)
            except ValueError:
                raise ConfigError(f"{where}: {key} must be a number. Correct it.") from None
    return given


def _parse_value(key: str, value: Any, where: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if key in _NUMBERS:
        good, allowed = number and value > 0, "seconds above 0"
        value = float(value) if good else value
    elif key in _WHOLE:
        least = _WHOLE[key]
        good, allowed = isinstance(value, int) and number and value >= least, f"a whole number >= {least}"
    elif key in _FLAGS:
        good, allowed = isinstance(value, bool), "true or false"
    elif key == "headers":
        good = isinstance(value, Mapping) and all(isinstance(t, str) for pair in value.items() for t in pair)
        allowed = "a mapping of texts"
    elif key == "credential_provider":
        good, allowed = callable(value), "a function, given from Python"
    else:
        good, allowed = isinstance(value, str) and bool(value), "text"
        if key == "endpoint" and good and ("@" in value or "?" in value or "://" not in value):
            good, allowed = False, "a URL without user, password and query, such as https://s3.example.org"
    if not good:
        raise ConfigError(f"{where}.{key} must be {allowed}. Correct it.")
    return value
