"""Options and environment to credentials: what a store is told so that it signs its requests, or not.

obstore knows the clouds' environment variables and refreshes what expires. Here is what it lacks: keys in the AWS
credentials file, and an error where there are no credentials at all. It would then ask the metadata address of the
cloud, which on any other machine is nobody, or somebody else.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.storage.location import Location
from dynaclr_wds.storage.options import CredentialProvider, StorageOptions

_KEEP = timedelta(minutes=5)
"""How long keys of the credentials file are used before it is read again."""

_OPTIONS = {
    "s3": """access_key_id aws_access_key_id web_identity_token_file container_credentials_full_uri
        container_credentials_relative_uri skip_signature""",
    "gs": "service_account service_account_key application_credentials bearer_token skip_signature",
    "az": """account_key access_key sas_key sas_token token client_secret federated_token_file use_azure_cli
        use_emulator msi_endpoint skip_signature""",
}
"""Options of a store that are credentials, or lead to them."""

_ENVIRONMENT = {
    "s3": """AWS_ACCESS_KEY_ID AWS_WEB_IDENTITY_TOKEN_FILE AWS_CONTAINER_CREDENTIALS_RELATIVE_URI
        AWS_CONTAINER_CREDENTIALS_FULL_URI AWS_SKIP_SIGNATURE""",
    "gs": """GOOGLE_SERVICE_ACCOUNT GOOGLE_SERVICE_ACCOUNT_PATH GOOGLE_SERVICE_ACCOUNT_KEY
        GOOGLE_APPLICATION_CREDENTIALS GOOGLE_BEARER_TOKEN GOOGLE_SKIP_SIGNATURE""",
    "az": """AZURE_STORAGE_ACCOUNT_KEY AZURE_STORAGE_ACCESS_KEY AZURE_STORAGE_MASTER_KEY AZURE_STORAGE_SAS_KEY
        AZURE_STORAGE_SAS_TOKEN AZURE_STORAGE_TOKEN AZURE_STORAGE_CLIENT_SECRET AZURE_CLIENT_SECRET
        AZURE_FEDERATED_TOKEN_FILE AZURE_USE_AZURE_CLI AZURE_STORAGE_USE_EMULATOR AZURE_MSI_ENDPOINT
        AZURE_IDENTITY_ENDPOINT AZURE_SKIP_SIGNATURE""",
}
"""Variables that obstore takes credentials from."""

_WAYS = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a section of ~/.aws/credentials",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}

_MACHINE = {
    "s3": ("sys_vendor", "Amazon EC2"),
    "gs": ("product_name", "Google Compute Engine"),
    "az": ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"),
}
"""File of /sys/class/dmi/id, and what it holds on a machine of the cloud."""


def choose_credentials(where: Location, options: StorageOptions) -> tuple[dict[str, Any], CredentialProvider | None]:
    """Choose how requests are signed.

    Returns
    -------
    Settings of the store, and what it asks for keys; None where it finds them itself.

    Raises
    ------
    ConfigError
        There are no credentials, or the profile that is asked for has none.
    """
    scheme = where.scheme
    if scheme not in _WAYS:
        return {}, None
    if options.anonymous:
        return {"skip_signature": True}, None
    if options.credential_provider is not None:
        return {}, options.credential_provider
    if any(options.store.get(name) for name in _OPTIONS[scheme].split()):
        return {}, None
    if scheme == "s3" and options.profile is not None:
        return {}, _ProfileKeys(options.profile, must=True)
    if any(os.environ.get(name) for name in _ENVIRONMENT[scheme].split()):
        return {}, None
    if scheme == "s3" and (profile := _ProfileKeys(os.environ.get("AWS_PROFILE", "default"))).found():
        return {}, profile
    if scheme == "gs" and Path("~/.config/gcloud/application_default_credentials.json").expanduser().is_file():
        return {}, None
    asked = _runs_there(scheme) if options.instance_role is None else options.instance_role
    if asked:
        return {}, None
    raise ConfigError(
        f"{where}: there are no credentials for {scheme}://. {_WAYS[scheme]}. For a public bucket set anonymous: true "
        "in storage_options, and instance_role: true to use the role of this machine."
    )


def _runs_there(scheme: str) -> bool:
    """Whether this machine is one of the cloud's, as its firmware says; nobody is asked."""
    name, expected = _MACHINE[scheme]
    try:
        return (Path("/sys/class/dmi/id") / name).read_text().strip() == expected
    except OSError:
        return False


class _ProfileKeys:
    """Keys of a section of the AWS credentials file, read again when they are needed again."""

    def __init__(self, profile: str, *, must: bool = False) -> None:
        self._profile = profile
        if must and not self.found():
            raise ConfigError(
                f"storage_options.profile={profile!r}: {_credentials_file()} has no such section with "
                "aws_access_key_id and aws_secret_access_key. Keys of other kinds (SSO, roles) can be put into the "
                "environment with `aws configure export-credentials --format env`."
            )

    def found(self) -> bool:
        """Whether the section is there, with keys."""
        return self._read() is not None

    def __call__(self) -> Mapping[str, Any]:
        """Return the keys, as obstore wants them."""
        keys = self._read()
        if keys is None:
            raise LookupError("the section is gone")
        return keys

    def _read(self) -> dict[str, Any] | None:
        parser = configparser.RawConfigParser()
        try:
            parser.read(_credentials_file(), encoding="utf-8")
            section = parser[self._profile]
            return {
                "access_key_id": section["aws_access_key_id"],
                "secret_access_key": section["aws_secret_access_key"],
                "token": section.get("aws_session_token"),
                "expires_at": datetime.now(UTC) + _KEEP,
            }
        except (KeyError, configparser.Error, UnicodeDecodeError, OSError):
            return None


def _credentials_file() -> Path:
    return Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
