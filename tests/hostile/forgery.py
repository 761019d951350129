"""A small shard set in memory, to be changed and given checksums that fit again, as whoever forges one can do."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from dynaclr_wds.contract import array_path, channel_checksum
from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config
from tests.plates import make_collection

PATCH_BYTES = 8 * 8 * 2


def build_small_set(root: Path) -> Path:
    """Build two experiments of 48 patches of 8 x 8 each, in small blocks; return the folder of the shards."""
    options = {"yx_patch_size": [8, 8], "block_bytes": 6000, "clip_anchors": 3}
    fovs, shape = ("A/1/0", "B/2/0"), (6, 1, 1, 32, 32)
    collection = make_collection(root, fovs=fovs, shape=shape, lineages=4, **options)
    build_shards(parse_build_config(collection, {}), root / "shards")
    return root / "shards"


@dataclass
class Forgery:
    """The files of a set; `manifest` is its JSON without the checksum."""

    manifest: dict[str, Any]
    files: dict[str, bytes]
    raw: bytes | None = None
    """The manifest as it is to be written, whatever `manifest` says."""
    touched: set[str] = field(default_factory=set)
    sealed: bool = False
    """Whether checksums were made to fit what was changed."""

    @classmethod
    def read(cls, root: Path) -> Forgery:
        """Read a set that is whole."""
        files = {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        manifest = json.loads(files.pop("manifest.json"))
        del manifest["xxh3"]
        return cls(manifest, files)

    def copy(self) -> Forgery:
        """Return a copy to be changed; the manifest shares nothing with this one."""
        return Forgery(json.loads(json.dumps(self.manifest)), dict(self.files))

    def put(self, path: str, data: bytes) -> None:
        """Change a file, and nothing else."""
        self.files[path] = data
        self.touched.add(path)

    def index_file(self, name: str) -> str:
        """Path of a file of the index."""
        return f"{self.manifest['index']}/{name}"

    def array(self, name: str) -> np.ndarray:
        """Return an array of the index."""
        return np.load(io.BytesIO(self.files[self.index_file(array_path(name))]))

    def put_array(self, name: str, values: np.ndarray) -> None:
        """Change an array of the index."""
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=True)
        self.put(self.index_file(array_path(name)), buffer.getvalue())

    def seal(self) -> None:
        """Give every file that was changed a size and checksums that fit: in the manifest, and of each block."""
        self.sealed = True
        changed = [n for n, shard in enumerate(self.manifest["shards"]) if shard["path"] in self.touched]
        if changed:
            shard, begin, end, sums = (self.array(f"block_{k}") for k in ("shard", "begin", "end", "xxh3"))
            for block in np.flatnonzero(np.isin(shard, changed)).tolist():
                data = self.files[self.manifest["shards"][shard[block]]["path"]]
                sums[block] = xxhash.xxh3_64_intdigest(data[begin[block] : end[block]])
            self.put_array("block_xxh3", sums)
            self._seal_patches(changed, shard)
        for record in [*self.manifest["shards"], *self.manifest["files"]]:
            if record["path"] in self.touched:
                data = self.files[record["path"]]
                record |= {"bytes": len(data), "xxh3": xxhash.xxh3_64_hexdigest(data)}

    def _seal_patches(self, changed: list[int], block_shard: np.ndarray) -> None:
        """Give every patch of some shards a checksum that fits; patches of this set have one channel."""
        of_patch = block_shard[self.array("clip_block")[self.array("patch_clip")]]
        offset, sums = self.array("patch_offset"), self.array("patch_xxh3")
        for row in np.flatnonzero(np.isin(of_patch, changed)).tolist():
            data = self.files[self.manifest["shards"][of_patch[row]]["path"]]
            sums[row, 0] = channel_checksum(data[offset[row] : offset[row] + PATCH_BYTES])
        self.put_array("patch_xxh3", sums)

    def write(self, root: Path, written: Mapping[str, bytes]) -> dict[str, bytes]:
        """Write the set over another one that is there; return what is there then."""
        files = self.files | {"manifest.json": seal_manifest(self.manifest) if self.raw is None else self.raw}
        for path, data in files.items():
            if written.get(path) != data:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(data)
        return files


def seal_manifest(manifest: Any) -> bytes:
    """Write a manifest of any content, with a checksum that fits."""
    content = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    if not isinstance(manifest, dict):
        return content.encode()
    return json.dumps(
        manifest | {"xxh3": xxhash.xxh3_64_hexdigest(content.encode())}, indent=1, sort_keys=True
    ).encode()
