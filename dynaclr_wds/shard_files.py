"""Place to the files of a shard set: its manifest, read and checked, and where shards and index files are.

A set on a disk is checked to have every file in the right size. Of one in object storage the index is brought to this
node, and shards are pinned: by one listing where there is one, else when each is first read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dynaclr_wds import contract
from dynaclr_wds.contract import FileRecord, Manifest
from dynaclr_wds.errors import ConfigError, FormatError
from dynaclr_wds.file_checks import MOST_MANIFEST_BYTES, check_content, check_size, read_manifest_file
from dynaclr_wds.manifest_checks import parse_manifest
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.index_cache import IndexCache
from dynaclr_wds.storage.location import Location
from dynaclr_wds.storage.options import StorageOptions
from dynaclr_wds.storage.versions import ObjectInfo

_CHECKED_AT_ONCE = 2


@dataclass(frozen=True, kw_only=True)
class RemoteFiles:
    """A set in object storage."""

    storage: Storage
    """Names in it are the paths of the manifest."""
    manifest: Manifest
    index: IndexCache
    listed: Mapping[str, ObjectInfo] | None
    """Version of each object when the set was opened; None where the storage has no listing."""

    def find_table(self, path: str) -> Path:
        """Return where a table of the index is on this node; downloads it when it is first asked for."""
        self.index.fetch([file for file in self.manifest.files if file.path == path], self.listed)
        return self.index.folder / path


def find_local(root: Path, version: int | None = None) -> tuple[Path, Manifest]:
    """Read the manifest of a folder, and check that every file is there and of the right size; return its path too.

    Parameters
    ----------
    version
        Of the set; None = the newest.

    Raises
    ------
    FileNotFoundError
        There is no manifest.
    ConfigError
        There is no such version.
    FormatError
        As `dynaclr_wds.shardset.ShardSet.open` says.
    """
    path = root / contract.MANIFEST
    if not path.is_file():
        raise _absent(root)
    manifest = read_manifest_file(path)
    if version not in (None, manifest.set_version):
        path = root / contract.version_path(version)
        if not path.is_file():
            raise _no_version(root, version, manifest)
        manifest = read_manifest_file(path)
    for name, size in [(f.path, f.bytes) for f in manifest.files] + [(s.path, s.bytes) for s in manifest.shards]:
        check_size(root / name, size)
    return path, manifest


def list_arrays(manifest: Manifest) -> list[FileRecord]:
    """List the files of the index that are mapped, the largest first."""
    paths = {manifest.index_file(contract.array_path(name)) for name in contract.array_dtypes(manifest)}
    return sorted((file for file in manifest.files if file.path in paths), key=lambda file: -file.bytes)


def check_contents(folder: Path, files: Sequence[FileRecord]) -> None:
    """Check that files have the checksums that the manifest says, some at a time.

    Raises
    ------
    ChecksumError
        One has another.
    StorageError
        One can't be read.
    """
    with ThreadPoolExecutor(_CHECKED_AT_ONCE, thread_name_prefix="dynaclr-check") as pool:
        for _ in pool.map(lambda file: check_content(folder / file.path, file.xxh3), files):
            pass


def find_remote(
    root: Location,
    options: StorageOptions,
    cache_dir: str | Path | None,
    version: int | None = None,
    *,
    verify: bool,
) -> RemoteFiles:
    """Read the manifest of a set in object storage, and bring its index arrays to this node.

    Parameters
    ----------
    version
        Of the set; None = the newest.

    Raises
    ------
    FileNotFoundError
        There is no manifest.
    ConfigError, FormatError, ChecksumError, StorageError
        As `dynaclr_wds.shardset.ShardSet.open` says.
    """
    storage = Storage(root, options)
    content, manifest = read_manifest(storage, version)
    listed = _list_files(storage, manifest)
    index = IndexCache(storage, content, cache_dir)
    index.fetch(list_arrays(manifest), listed, verify=verify)
    return RemoteFiles(storage=storage, manifest=manifest, index=index, listed=listed)


def read_manifest(storage: Storage, version: int | None = None) -> tuple[bytes, Manifest]:
    """Read the manifest of a version, or of the newest one, which has to be there in any case.

    Raises
    ------
    FileNotFoundError
        There is none.
    ConfigError
        There is no such version.
    FormatError, ChecksumError, StorageError
        It can't be read, or used.
    """
    try:
        content, manifest = _read_one(storage, contract.MANIFEST)
    except FileNotFoundError:
        raise _absent(storage.root) from None
    if version in (None, manifest.set_version):
        return content, manifest
    try:
        return _read_one(storage, contract.version_path(version))
    except FileNotFoundError:
        raise _no_version(storage.root, version, manifest) from None


def _read_one(storage: Storage, name: str) -> tuple[bytes, Manifest]:
    """Read a manifest; once more where it came damaged, as a byte may have been changed on its way."""
    for last in (False, True):
        content = storage.read(name, MOST_MANIFEST_BYTES)
        try:
            return content, parse_manifest(content, str(storage.root / name))
        except FormatError:
            if last:
                raise
    raise AssertionError("never reached")


def _list_files(storage: Storage, manifest: Manifest) -> Mapping[str, ObjectInfo] | None:
    """List a set, and check that everything is there; once more where something is not, as the answer may be damaged.

    Raises
    ------
    FormatError
        A file is missing, or of another size.
    """
    sizes = {s.path: s.bytes for s in manifest.shards} | {f.path: f.bytes for f in manifest.files}
    for last in (False, True):
        listed = storage.list()
        if listed is None:
            return None
        try:
            for path, size in sizes.items():
                _check_listed(storage.root / path, listed.get(path), size)
        except FormatError:
            if last:
                raise
        else:
            return listed
    raise AssertionError("never reached")


def _check_listed(where: Location, found: ObjectInfo | None, size: int) -> None:
    if found is None:
        raise FormatError(f"{where}: is missing, though the manifest lists it. Restore it, or build the shards again.")
    if found.size != size:
        raise FormatError(
            f"{where}: has {found.size:,} bytes, the manifest says {size:,}. Copy it again, or build the shards again."
        )


def _no_version(root: Path | Location, version: int, newest: Manifest) -> ConfigError:
    return ConfigError(
        f"shards={str(root)!r}: there is no version {version} of the set; the newest is {newest.set_version}, and "
        "earlier ones are there until a build with --prune. Leave shards_version out for the newest. "
        "A checkpoint of a version that is gone can't go on: begin with its weights (--model.init_from.path)."
    )


def _absent(root: Path | Location) -> FileNotFoundError:
    how = f"Build the shards with `dynaclr-wds build experiments.yaml --out {root}`"
    if isinstance(root, Location):
        how = "Copy a set of shards there, manifest last"
    return FileNotFoundError(
        f"shards={str(root)!r}: there is no {contract.MANIFEST}. {how}, or name the folder that holds them."
    )
