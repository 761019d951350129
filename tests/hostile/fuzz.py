"""Opens thousands of forged sets in every public way: each ends in the same content, or in one error that names a file.

    python -m tests.hostile.fuzz [--cases 10000] [--seed 0] [--kind manifest]

A case is a small set in which one thing was changed, by seed; of most, checksums were made right again, as an attacker
would do. Allowed are success (of a set whose checksums are not forged: with the very bytes of the set that was built),
errors of `dynaclr_wds.errors` that name a file of the set, and, where the set is whole but not what was asked for, our
error that names the option. All else fails the case: another error, a program or pickle that is run, a file that is
written elsewhere, memory beyond the limit, or too much time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import logging
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from dynaclr_wds import MultiExperimentDataModule
from dynaclr_wds.errors import DynaCLRError, FormatError
from dynaclr_wds.manifest_checks import parse_manifest
from dynaclr_wds.plain.pipeline import triplet_pipeline
from dynaclr_wds.program import is_ours
from dynaclr_wds.shardset import ShardSet
from etl.verify import verify
from tests.hostile import mutations, watch
from tests.hostile.forgery import Forgery, build_small_set, seal_manifest

SECONDS = 20.0
"""Most that a case may take, on a machine that does other things too."""
MEMORY = 2 << 30
"""Most addresses that a run may take beyond those that it begins with."""
RESIDENT = 256 << 20
"""Most memory that a run may make resident beyond what it begins with."""


def read_by_plan(root: Path, **options: object) -> str:
    """Train on a set: read two batches, with who is on them."""
    data = MultiExperimentDataModule(
        str(root), val_experiments=["experiment1"], batch_size=2, tau_range=(0.5, 1.0), channel_dropout_channels=(),
        relax_lineages=True, num_workers=1, verify_reads=True, **options,
    )  # fmt: skip
    data.setup("fit")
    found = hashlib.sha256()
    for _, batch in zip(range(2), data.train_dataloader(), strict=False):
        for key, value in sorted(batch.items()):
            found.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
            if key.endswith("_meta") and not isinstance(value, dict):
                found.update(repr(list(value)).encode())
    return found.hexdigest()


def open_set(root: Path) -> str:
    """Open a set, and look at what it says of itself."""
    shards = ShardSet.open(root)
    return f"{shards.lineage_ids} {shards!r} {shards.z_range} {shards.labels_of(0)}".replace(str(root), "")


def verify_files(root: Path) -> str:
    """Verify a set; what is found is an answer, and names its files."""
    found = verify(root, workers=1)
    assert all(finding.path for finding in found)
    return "all is well" if not found else str(found[0])


def read_plain(root: Path) -> str:
    """Read shards without the index."""
    batches = [b for path in sorted(root.rglob("*.tar")) for b in triplet_pipeline(str(path), batch_size=8, shuffle=0)]
    return str(sum(len(batch["anchor"]) for batch in batches))


WAYS: dict[str, Callable[[Path], str]] = {
    "open": open_set,
    "exact": read_by_plan,
    "streaming": lambda root: read_by_plan(root, window_bytes=80_000, num_streams=1),
    "verify": verify_files,
    "plain": read_plain,
}
_BY_KIND = {"tar": ("exact", "streaming", "verify", "plain", "plain"), "clip": ("plain", "plain", "verify")}
_BY_KIND |= {"table": ("open", "verify"), "npy": ("open", "open", "verify", "plain", "exact")}
_BY_KIND |= dict.fromkeys(("manifest", "array"), ("open", "exact", "streaming", "verify"))


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case."""

    kind: str
    seed: int
    way: str
    sealed: bool
    answer: str
    """`same`, `other content`, or the class of an error."""
    fault: str = ""
    """Why this must not be; empty if it may."""


class Fuzzer:
    """Makes cases of one small set and reads them, in a folder of its own; some kinds of events can be ignored."""

    def __init__(self, small_set: Path, folder: Path, ignored: tuple[str, ...] = ()) -> None:
        self._ignored = ignored
        self.folder = folder / "set"
        self.whole = Forgery.read(small_set)
        self.written = self.whole.copy().write(self.folder, {})
        with contextlib.suppress(FormatError):  # once before it is watched, as types of records are evaluated
            parse_manifest(seal_manifest(self.whole.manifest | {"suspicious": [{}]}))
        for name in ("decoding", "remote_decoding"):  # a forged manifest may say that there is a codec
            importlib.import_module(f"dynaclr_wds.read.{name}")
        self.reference = {way: read(self.folder) for way, read in WAYS.items()}
        self.peak = watch.peak_bytes()

    def run(self, kind: str, seed: int) -> Outcome:
        """Make one case, read it and judge what came of it."""
        rng = random.Random(f"{kind} {seed}")
        forged, way = self.whole.copy(), rng.choice(_BY_KIND[kind])
        wants_seal = kind != "manifest" and rng.random() < 0.8
        mutations.KINDS[kind](rng, forged)
        if wants_seal:
            forged.seal()
        self.written = forged.write(self.folder, self.written)
        with watch.watch(self.folder) as done:
            answer, error = self._read(way)
        fault = self._judge(error, way) if isinstance(error, Exception) else str(error or "")
        if answer == "other content" and not forged.sealed:
            fault = "content that nobody wrote, though no checksum was forged"
        if done := [what for what in done if not what.startswith(self._ignored)]:
            fault = f"it did what reading never needs: {done[:3]}"
        if mutations.CANARY.exists():
            fault = "code of the set was run"
        if (peak := watch.peak_bytes()) > self.peak + RESIDENT:
            fault = f"{peak - self.peak:,} bytes more were resident than before"
            self.peak = peak
        return Outcome(kind, seed, way, forged.sealed, answer, fault)

    def _read(self, way: str) -> tuple[str, BaseException | None]:
        try:
            with watch.limit_seconds(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                warnings.simplefilter("error", SyntaxWarning)
                found = WAYS[way](self.folder)
        except Exception as error:
            return type(error).__name__, error
        except watch.TooSlow as slow:
            return "hang", slow
        return "same" if found == self.reference[way] or way in ("verify", "plain") else "other content", None

    def _judge(self, error: Exception, way: str) -> str:
        """Say why an error must not be; empty if it may."""
        text = "\n".join([str(error), *getattr(error, "__notes__", ())])
        where = "".join(traceback.format_exception(error)[-6:])
        if isinstance(error, DynaCLRError | FileNotFoundError):
            named = str(self.folder) in text or any(path in text for path in (*self.whole.files, "manifest.json"))
            return "" if named or way in ("exact", "streaming") else f"names no file: {text}"
        if way in ("exact", "streaming") and is_ours(error):
            return ""
        return where


def run_cases(fuzzer: Fuzzer, kind: str, seeds: Sequence[int]) -> list[Outcome]:
    """Run the cases of a kind, within the limits of memory."""
    with watch.limit_memory(MEMORY):
        return [fuzzer.run(kind, seed) for seed in seeds]


SHARES = {"manifest": 0.3, "array": 0.25, "npy": 0.15, "tar": 0.15, "clip": 0.1, "table": 0.05}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Open forged shard sets in every public way.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", choices=mutations.KINDS, help="of this kind only")
    arguments = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    begun, shares = time.process_time(), {arguments.kind: 1.0} if arguments.kind else SHARES
    faults = []
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as name, contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(os, "fsync", lambda _: None)
        fuzzer = Fuzzer(build_small_set(Path(name)), Path(name))
        for kind, share in shares.items():
            first = arguments.seed
            outcomes = run_cases(fuzzer, kind, range(first, first + round(share * arguments.cases)))
            counts = Counter((o.way, o.answer) for o in outcomes)
            print(f"{kind}: {len(outcomes):,} cases, {time.process_time() - begun:.0f} s CPU so far", flush=True)
            for (way, answer), count in sorted(counts.items()):
                print(f"  {way:10} {answer:20} {count:6,}")
            faults += [o for o in outcomes if o.fault]
    for outcome in faults[:50]:
        print(
            f"\n{outcome.kind} {outcome.seed} ({outcome.way}, sealed={outcome.sealed}): {outcome.answer}: "
            f"{outcome.fault}"
        )
    print(f"\n{len(faults):,} cases ended as none may, peak {watch.peak_bytes() / 2**20:,.0f} MiB resident")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
