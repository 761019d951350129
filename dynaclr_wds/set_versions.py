"""Names the version of a set that a training reads, and refuses to go on with another one.

A set that grows has versions. A training goes on exactly as it would have gone where the content is the same, whatever
the number of the version: the cells and where they lie, the checksums of their pixels, and their statistics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dynaclr_wds.contract import ARRAYS, CODEC_ARRAYS, Manifest, array_path, checksum, format_checksum
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.storage.location import Place, name_place


def hash_content(manifest: Manifest) -> str:
    """Return a hash of all that a training reads but labels: of the checksums of the arrays, 16 hexadecimal digits."""
    paths = {manifest.index_file(array_path(name)): name for name in ARRAYS | CODEC_ARRAYS}
    sums = {paths[file.path]: file.xxh3 for file in manifest.files if file.path in paths}
    return format_checksum(checksum(json.dumps(sums, sort_keys=True).encode()))


def describe_version(manifest: Manifest) -> dict[str, Any]:
    """Return what a checkpoint says of the version that it was trained on: plain values."""
    return {"set_version": manifest.set_version, "content": hash_content(manifest)}


def check_version(saved: Mapping[str, Any], manifest: Manifest, root: Place) -> None:
    """Check that a set holds what a training was begun with.

    Parameters
    ----------
    saved
        What `describe_version` said when the checkpoint was written.
    manifest, root
        Of the set that is there.

    Raises
    ------
    ConfigError
        It holds something else, so the batches would be others than those of the uninterrupted training.
    """
    now = describe_version(manifest)
    if saved["content"] == now["content"]:
        return
    then, where = saved["set_version"], name_place(root)
    raise ConfigError(
        f"The checkpoint was written with version {then} of its shards (content {saved['content']}), but {where} is "
        f"opened as version {now['set_version']} (content {now['content']}): batches would be others. Give "
        f"--data.shards_version {then} to go on where that version is kept; or begin another training with its weights "
        "by --model.init_from.path and this checkpoint, in place of --ckpt_path."
    )
