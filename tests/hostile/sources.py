"""Builds from plates, track tables and experiments.yaml that were changed by seed: a set, or one error.

python -m tests.hostile.sources [--cases 2000] [--seed 0] [--kind plate]
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml

from dynaclr_wds.errors import DynaCLRError
from dynaclr_wds.program import is_ours
from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config
from tests.hostile import watch
from tests.hostile.fuzz import MEMORY, SECONDS, Outcome
from tests.hostile.mutations import CANARY, PICKLE, draw_value, list_places, mutate_bytes, mutate_json
from tests.plates import make_collection

Files = dict[str, bytes]

_IMPORTS = ("compile", "exec", "marshal")
_OWN_FOLDER = f"{tempfile.gettempdir()}/dynaclr-wds-"
"""How folders begin in which a build keeps tables of object storage, and its index, meanwhile."""
_METADATA = ("zarr.json", ".zattrs", ".zarray", ".zgroup")
_CODECS: tuple[Any, ...] = (
    {"id": "pickle", "protocol": 4},
    {"id": "json2"},
    {"id": "no_such"},
    {"id": "delta", "dtype": "|O"},
    {"name": "numcodecs.pickle"},
    {"name": "sharding_indexed", "configuration": {"chunk_shape": [0, 0, 0, 0, 0], "codecs": []}},
)
_CELLS = (
    b"nan",
    b"inf",
    b"1e999",
    b"-1",
    b"9223372036854775808",
    b"=cmd|' /C calc'!A0",
    b'"',
    b"\0",
    b"\xff\xfe",
    b"a,b",
    b"1;5",
)
_YAML = (
    *(
        b"!!python/object/apply:os.system [touch x]",
        b"!!python/name:os.system",
        b"!!int ''",
        b"!!bool x",
        b"!!timestamp x",
    ),
    *(b"&a [*a]", b"[" * 200, b"? [a]\n: b\n", b"\xff", b"---\n", b"<<: *x\n", b"!!binary '@'", b"${HOME}", b"\\uD800"),
)


def change_plate(rng: random.Random, files: Files) -> str:
    """Change the metadata of a plate, or a chunk of its pixels."""
    if rng.random() < 0.1:
        path = rng.choice([path for path in files if "plate.zarr" in path and not path.endswith(_METADATA)])
        files[path] = PICKLE if rng.random() < 0.3 else mutate_bytes(rng, files[path])
        return path
    path = rng.choice([path for path in files if path.endswith(_METADATA)])
    if rng.random() < 0.15:
        files[path] = mutate_bytes(rng, files[path])
        return path
    document = json.loads(files[path])
    if rng.random() < 0.1 and isinstance(document, dict):
        key = rng.choice(("compressor", "filters", "codecs", "dtype", "data_type", "fill_value", "chunks", "shape"))
        document[key] = rng.choice(
            (rng.choice(_CODECS), [rng.choice(_CODECS)], draw_value(rng), [1 << 40] * 5, [-1] * 5)
        )
    elif rng.random() < 0.3 and (place := list_paths(document, rng)) is not None:
        place["path"] = rng.choice(
            ("../../../x", "/etc", "..", ".", "a/../../b", "", "0/../../../x", "x" * 300, "a\0b", draw_value(rng))
        )
    else:
        document = mutate_json(rng, document)
    files[path] = json.dumps(document).encode()
    return path


def list_paths(document: Any, rng: random.Random) -> dict[str, Any] | None:
    """Draw an object that has a `path`: a well, an image or a resolution level."""
    for _ in range(20):
        place = list_places(document, rng)
        if place is not None and isinstance(place[0], dict) and "path" in place[0]:
            return place[0]
    return None


def change_tracks(rng: random.Random, files: Files) -> str:
    """Change a track table; some are Parquet, some packed."""
    path = rng.choice([path for path in files if path.endswith(".csv")])
    data = files.pop(path)
    kind = rng.randrange(6)
    if kind == 0:
        files[path] = mutate_bytes(rng, data, _CELLS)
    elif kind <= 2:
        lines = data.split(b"\r\n")
        for _ in range(rng.choice((1, 3))):
            row = rng.randrange(len(lines) - 1)
            fields = lines[row].split(b",")
            fields[rng.randrange(len(fields))] = rng.choice(_CELLS)
            lines[row] = b",".join(fields)
        files[path] = b"\r\n".join(lines)
    elif kind == 3:
        packed = gzip.compress(data) if rng.random() < 0.5 else gzip.compress(bytes(1 << 24))
        files[path + ".gz"] = mutate_bytes(rng, packed) if rng.random() < 0.7 else packed
    else:
        buffer = io.BytesIO()
        pq.write_table(pa.csv.read_csv(io.BytesIO(data)), buffer)
        files[path[:-3] + "parquet"] = mutate_bytes(rng, buffer.getvalue())
    return path


def change_yaml(rng: random.Random, files: Files) -> str:
    """Change experiments.yaml, by its structure or its bytes."""
    text = files["experiments.yaml"]
    if rng.random() < 0.7:
        document = mutate_json(rng, yaml.safe_load(text))
        files["experiments.yaml"] = yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")
    else:
        files["experiments.yaml"] = mutate_bytes(rng, text, _YAML)
    return "experiments.yaml"


KINDS: dict[str, Callable[[random.Random, Files], str]] = {
    "plate": change_plate,
    "tracks": change_tracks,
    "yaml": change_yaml,
}


class SourceFuzzer:
    """Makes cases of two small experiments, one in each format, and builds from them."""

    def __init__(self, folder: Path) -> None:
        self.root, self.collections = folder / "sources", []
        options = {"fovs": ("A/1/0",), "shape": (4, 1, 1, 24, 24), "lineages": 2, "yx_patch_size": [8, 8]}
        document = yaml.safe_load(make_collection(folder / "whole", **options).read_text())
        for entry in document["experiments"]:
            own = {"experiments": [entry], "shards": document["shards"]}
            base = folder / "whole" / entry["name"]
            files = {str(p.relative_to(folder / "whole")): p.read_bytes() for p in base.rglob("*") if p.is_file()}
            self.collections.append(files | {"experiments.yaml": yaml.safe_dump(own).encode()})
        for files in self.collections:
            self._build(files)

    def run(self, kind: str, seed: int) -> Outcome:
        """Make one case, build from it and judge what came of it."""
        rng = random.Random(f"{kind} {seed}")
        files = dict(rng.choice(self.collections))
        changed = KINDS[kind](rng, files)
        answer, fault = "built", ""
        self._write(files)
        try:
            with watch.watch(self.root) as done, watch.limit_seconds(SECONDS):
                self._build()
        except (Exception, watch.TooSlow) as error:
            answer, fault = type(error).__name__, self._judge(error)
        if bad := [what for what in done if not what.startswith(_IMPORTS) and _OWN_FOLDER not in what]:
            fault = f"it did what building never needs: {bad[:3]}"
        if CANARY.exists():
            fault = "code of a source was run"
        return Outcome(kind, seed, changed, True, answer, fault)

    def _judge(self, error: BaseException) -> str:
        text = "\n".join([str(error), *getattr(error, "__notes__", ())])
        if isinstance(error, DynaCLRError) or is_ours(error):
            return "" if str(self.root) in text or "experiment" in text else f"names no file: {text}"
        return "".join(traceback.format_exception(error)[-8:])

    def _write(self, files: Files) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for path, data in files.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(data)

    def _build(self, files: Files | None = None) -> None:
        if files is not None:
            self._write(files)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = parse_build_config(self.root / "experiments.yaml", {"workers": 1})
            build_shards(config, self.root / "shards")


def run_cases(fuzzer: SourceFuzzer, kind: str, seeds: Sequence[int]) -> list[Outcome]:
    """Run the cases of a kind, within the limits of memory."""
    with watch.limit_memory(MEMORY):
        return [fuzzer.run(kind, seed) for seed in seeds]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Build from forged plates, tracks and configs.")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", choices=KINDS, help="of this kind only")
    arguments = parser.parse_args(argv)
    begun, kinds, faults = time.process_time(), [arguments.kind] if arguments.kind else list(KINDS), []
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        fuzzer = SourceFuzzer(Path(name))
        for kind in kinds:
            first = arguments.seed
            outcomes = run_cases(fuzzer, kind, range(first, first + arguments.cases // len(kinds)))
            print(f"{kind}: {len(outcomes):,} cases, {time.process_time() - begun:.0f} s CPU so far", flush=True)
            for answer, count in sorted(Counter(o.answer for o in outcomes).items()):
                print(f"  {answer:20} {count:6,}")
            faults += [o for o in outcomes if o.fault]
    for outcome in faults[:50]:
        print(f"\n{outcome.kind} {outcome.seed} ({outcome.way}): {outcome.answer}: {outcome.fault}")
    print(f"\n{len(faults):,} cases ended as none may, peak {watch.peak_bytes() / 2**20:,.0f} MiB resident")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
