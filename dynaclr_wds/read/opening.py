"""Opens the store of a set: says which way its bytes are read. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from dynaclr_wds.contract import NO_CODEC
from dynaclr_wds.read.files import FileStore
from dynaclr_wds.read.mapped import MappedStore, load_copy
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.store import BlockStore

_REQUESTS_PER_WORKER, _MOST_REQUESTS = 16, 64


def open_store(
    shards: ShardSet, *, ask: bool = True, num_workers: int = 1, pool_bytes: int = 0, disk_bytes: int = 0
) -> BlockStore:
    """Open the store of a set: mapped files, plain reads where the compiled copy is absent, or requests to a server.

    Parameters
    ----------
    ask
        See `MappedStore`.
    num_workers, pool_bytes
        Of a set in object storage: threads that read batches, and bytes of patches to keep in memory.
    disk_bytes
        Of a set in object storage: bytes to keep on this node, beside its index; 0 = none.
    """
    records, root, is_plain = shards.manifest.shards, shards.root, shards.manifest.codec == NO_CODEC
    if isinstance(root, Path):
        local = FileStore(root, records) if load_copy() is None else MappedStore(root, records, ask=ask)
        if is_plain:
            return local
        from dynaclr_wds.read.decoding import DecodingStore  # only those who read compressed shards need isal

        return DecodingStore(local, shards)
    # only those who read from object storage need these
    from dynaclr_wds.read.disk_pool import DiskPool
    from dynaclr_wds.read.object_store import ObjectStore
    from dynaclr_wds.storage.byte_cache import ByteCache

    remote = shards.remote
    assert remote is not None
    listed, asked = remote.listed or {}, remote.storage.options.requests_in_flight
    in_flight = asked or min(_REQUESTS_PER_WORKER * max(num_workers, 1), _MOST_REQUESTS)
    versions = [listed.get(record.path) for record in records]
    disk = None
    if disk_bytes:
        cache = ByteCache(remote.index.base / "bytes", disk_bytes)
        urls = [str(root / record.path) for record in records]
        disk = DiskPool(cache, remote.index.folder.name, urls, remote.storage.options.request_bytes)
    store = ObjectStore(remote.storage, records, versions, in_flight=in_flight, pool_bytes=pool_bytes, disk=disk)
    if is_plain:
        return store
    from dynaclr_wds.read.remote_decoding import RemoteDecodingStore

    return RemoteDecodingStore(store, shards)
