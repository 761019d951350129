"""Checks a set in object storage as one on a disk is checked: nothing is kept, shards are read in bounded requests."""

from __future__ import annotations

from dynaclr_wds.contract import MANIFEST
from dynaclr_wds.errors import FormatError
from dynaclr_wds.shard_files import read_manifest
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.location import Location
from dynaclr_wds.storage.options import StorageOptions
from etl.run.progress import Progress
from etl.run.verification import Verification, say_damaged, verify_files
from etl.scratch import scratch_folder
from etl.upload.bucket_files import BucketFiles


def verify_remote(
    where: Location, options: StorageOptions, *, quick: bool, workers: int, progress: Progress
) -> Verification:
    """Check a shard set; see `etl.verify.verify`."""
    storage = Storage(where, options)
    try:
        _, manifest = read_manifest(storage)
    except FormatError as error:
        return say_damaged(error, str(where / MANIFEST))
    with scratch_folder("verify") as folder:
        files = BucketFiles(storage, manifest, folder, storage.list())
        return verify_files(files, manifest, quick=quick, workers=workers, progress=progress)
