"""Laws of stores and of checked reads: no descriptor is held, a failing file is an error, damage never trains."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from dynaclr_wds import contract
from dynaclr_wds.contract import ShardRecord
from dynaclr_wds.contract import channel_checksum as sum_of
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.errors import ChecksumError, FormatError, StorageError
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.read import channel_ranges
from dynaclr_wds.read.crop import plan_crop
from dynaclr_wds.read.dataset import MultiExperimentTripletDataset
from dynaclr_wds.read.files import FileStore, check_inside
from dynaclr_wds.read.mapped import MappedStore, load_copy
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.store import BlockStore, RowFailure
from tests.set_files import find_array

PAGE = 4096
STORES = pytest.mark.parametrize("kind", [MappedStore, FileStore])


class DictStore:
    """Shards in memory, without a file: the least that the protocol asks for."""

    def __init__(self, root: Path, shards: Sequence[ShardRecord]) -> None:
        self.shards = {n: (root / shard.path).read_bytes() for n, shard in enumerate(shards)}
        self.fetched: list[tuple[int, int, int]] = []

    def read(self, shard: np.ndarray, begin: np.ndarray, offset: np.ndarray, out: np.ndarray) -> None:
        size = np.array([len(self.shards[n]) for n in shard.tolist()], np.int64)
        check_inside(begin + offset[0], begin + offset[-1] + out.shape[2], size)
        for row, number in enumerate(shard.tolist()):
            for k, at in enumerate((begin[row] + offset).tolist()):
                out[row, k] = np.frombuffer(self.shards[number], np.uint8, out.shape[2], at)

    def fetch(self, shard: int, begin: int, end: int) -> None:
        self.fetched.append((shard, begin, end))

    def forget(self, shard: int, begin: int, end: int) -> None:
        self.fetched.remove((shard, begin, end))

    def checksum(self, shard: int, begin: int, end: int) -> int:
        return contract.checksum(self.shards[shard][begin:end])

    def close(self) -> None:
        pass


STORES_ANYWHERE = pytest.mark.parametrize("kind", [MappedStore, FileStore, DictStore])


def write_shards(root: Path, *sizes: int) -> list[ShardRecord]:
    """Files of numbers that only a store looks at."""
    records = []
    for number, size in enumerate(sizes):
        path = f"{number}.tar"
        (root / path).write_bytes(np.random.default_rng(number).bytes(size))
        records.append(ShardRecord(path=path, partition=0, bytes=size, xxh3="", clips=0, blocks=0))
    return records


def read(store: BlockStore, shard: list[int], begin: list[int], size: int, offset=(0,)) -> np.ndarray:
    out = np.empty((len(shard), len(offset), size), np.uint8)
    store.read(np.array(shard), np.array(begin), np.array(offset), out)
    return out


@STORES_ANYWHERE
def test_a_store_reads_runs_blocks_and_checksums(tmp_path, kind):
    store = kind(tmp_path, write_shards(tmp_path, 300_000, 70_000))
    raw = [(tmp_path / f"{n}.tar").read_bytes() for n in range(2)]
    store.fetch(0, 1000, 290_000)
    out = read(store, [1, 0, 0], [60_000, 7, 299_000], 50, offset=(0, 130, 950))
    for row, (shard, begin) in enumerate([(1, 60_000), (0, 7), (0, 299_000)]):
        assert [out[row, k].tobytes() for k in range(3)] == [raw[shard][begin + o :][:50] for o in (0, 130, 950)]
    assert store.checksum(0, 1000, 290_000) == contract.checksum(raw[0][1000:290_000])
    store.forget(0, 1000, 290_000)
    assert read(store, [0], [1000], 100).tobytes() == raw[0][1000:1100]
    store.close()
    assert read(store, [1], [0], 100).tobytes() == raw[1][:100]
    assert isinstance(store, BlockStore)


@STORES_ANYWHERE
@pytest.mark.parametrize(("begin", "size"), [(-1, 10), (69_990, 11)])
def test_a_range_outside_its_shard_is_refused(tmp_path, kind, begin, size):
    store = kind(tmp_path, write_shards(tmp_path, 70_000))
    with pytest.raises(RowFailure) as failure:
        read(store, [0, 0], [5, begin], size)
    assert failure.value.row == 1
    assert "outside its shard of 70,000 bytes" in str(failure.value.error)


MANY = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import numpy as np
from dynaclr_wds.contract import ShardRecord
from dynaclr_wds.read.mapped import MappedStore
root = Path(sys.argv[1])
records = []
for n in range(1500):
    (root / f"{n}.tar").write_bytes(n.to_bytes(4, "little"))
    records.append(ShardRecord(path=f"{n}.tar", partition=0, bytes=4, xxh3="", clips=0, blocks=0))
store = MappedStore(root, records)
before = len(list(Path("/proc/self/fd").iterdir()))
out = np.empty((1500, 1, 4), np.uint8)
store.read(np.arange(1500), np.zeros(1500, np.int64), np.zeros(1, np.int64), out)
assert (out.view("<u4").ravel() == np.arange(1500)).all()
assert len(list(Path("/proc/self/fd").iterdir())) == before
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_shards_hold_no_descriptor(tmp_path):
    env = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", MANY, tmp_path], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@STORES
def test_a_file_that_is_cut_short_while_in_use_is_an_error_and_not_the_end_of_the_process(tmp_path, kind):
    store = kind(tmp_path, write_shards(tmp_path, 20 * PAGE, 20 * PAGE))
    whole = read(store, [0, 1], [0, 5], 20 * PAGE - 5)
    os.truncate(tmp_path / "1.tar", 3 * PAGE)
    message = r"1.tar: (byte 12,288 can't be read: the file has|has) 12,288 bytes( now)?, the manifest says 81,920"
    with pytest.raises(RowFailure) as failure:
        read(store, [0, 1], [0, 5], 20 * PAGE - 5)
    assert failure.value.row == 1
    with pytest.raises((StorageError, FormatError), match=message):
        raise failure.value.error
    with pytest.raises(FormatError, match=r"1.tar: has 12,288 bytes.*, the manifest says 81,920"):
        store.checksum(1, 0, 20 * PAGE)
    with pytest.raises(FormatError, match=r"1.tar: has 12,288 bytes"):
        store.fetch(1, 0, PAGE)
    assert (read(store, [0], [0], 20 * PAGE - 5) == whole[:1]).all()  # the next copy is as safe as the first


@pytest.mark.skipif(load_copy() is None, reason="not compiled")
def test_a_handler_that_a_trainer_took_away_is_back_for_the_next_copy(tmp_path):
    store = MappedStore(tmp_path, write_shards(tmp_path, 20 * PAGE))
    read(store, [0], [0], PAGE)
    os.truncate(tmp_path / "0.tar", PAGE)
    signal.signal(signal.SIGBUS, signal.SIG_DFL)  # as Lightning does at the end of a run
    with pytest.raises(RowFailure):
        read(store, [0], [0], 20 * PAGE)


def test_every_thread_survives_a_failing_file(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    store = MappedStore(tmp_path, write_shards(tmp_path, 20 * PAGE))
    read(store, [0], [0], PAGE)
    os.truncate(tmp_path / "0.tar", PAGE)

    def attempt(number: int) -> str:
        try:
            read(store, [0], [PAGE * (number % 2)], PAGE)
        except RowFailure as failure:
            return type(failure.error).__name__
        return "read"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(attempt, range(200))) == ["read", "StorageError"] * 100


ELSEWHERE = """
import ctypes, faulthandler, mmap, os, sys
from dynaclr_wds.read.mapped import load_copy
assert load_copy() is not None
path = sys.argv[1]
with open(path, "w+b") as file:
    file.truncate(8192)
    view = mmap.mmap(file.fileno(), 8192)
    file.truncate(0)
view[5000]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may number the signal otherwise")
def test_a_bus_error_elsewhere_still_ends_the_process(tmp_path):
    env = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "file"], env=env, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == -7


# --- a set that is damaged after it was built -----------------------------------------------------------------------


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def read_all(root: Path, **options) -> None:
    """Train, validate and predict on everything."""
    data = MultiExperimentDataModule(
        str(root), batch_size=8, tau_range=(0.5, 1.5), val_experiments=["e3"], num_workers=1, **options
    )
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        for _ in loader:
            pass


def payload_offset(root: Path) -> tuple[Path, int]:
    shards = ShardSet.open(root)
    row = int(np.flatnonzero(shards.arrays["patch_is_sample"])[3])
    block = shards.arrays["clip_block"][shards.arrays["patch_clip"][row]]
    path = root / shards.manifest.shards[shards.arrays["block_shard"][block]].path
    return path, int(shards.arrays["patch_offset"][row])


def damage_payload(root: Path) -> None:
    path, offset = payload_offset(root)
    flip(path, offset + 100)


def damage_header(root: Path) -> None:
    path, offset = payload_offset(root)
    flip(path, offset - 30)


def damage_manifest(root: Path) -> None:
    text = (root / "manifest.json").read_text()
    (root / "manifest.json").write_text(text.replace('"start_hpi": 1.0', '"start_hpi": 1.5'))


def edit_manifest(root: Path) -> None:
    record = json.loads((root / "manifest.json").read_text())
    record["shards"][0], record["shards"][1] = record["shards"][1], record["shards"][0]
    (root / "manifest.json").write_text(json.dumps(record))


def swap_shards(root: Path) -> None:
    """Two shards of one partition and size change places."""
    by_size: dict[int, list[Path]] = {}
    for path in sorted(root.rglob("*.tar")):
        by_size.setdefault(path.stat().st_size, []).append(path)
    pair = next((paths[:2] for paths in by_size.values() if len(paths) > 1), None)
    if pair is None:  # none are of one size: the content of one takes the size of the other
        a, b = sorted(root.rglob("*.tar"))[:2]
        b.write_bytes(a.read_bytes()[: b.stat().st_size].ljust(b.stat().st_size, b"\0"))
        return
    a, b = pair
    other = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(other)


def remove_shard(root: Path) -> None:
    next(root.glob("e1/*.tar")).unlink()


DAMAGES = {
    "payload": (damage_payload, ChecksumError, r"block \d+, bytes [\d,]+ to [\d,]+, is not what was .*wds verify"),
    "header": (damage_header, ChecksumError, r"block \d+, bytes [\d,]+ to [\d,]+, is not what was written"),
    "manifest": (damage_manifest, ChecksumError, r"manifest.json: was changed after it was written"),
    "order of shards": (edit_manifest, ChecksumError, r"manifest.json: was changed after it was written"),
    "swapped shards": (swap_shards, ChecksumError, r"\.tar: block \d+, bytes .* is not what was written"),
    "removed shard": (remove_shard, FormatError, r"\.tar: is missing, though the manifest lists it"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_trains_silently_in_streaming(copied, damage):
    do, error, message = DAMAGES[damage]
    do(copied)
    with pytest.raises(error, match=message):
        read_all(copied, verify_reads=True, window_bytes=1 << 27, num_streams=1)


CROPPED = {"yx_patch_size": (12, 10), "z_range": (1, 3)}


@pytest.mark.parametrize("options", [{}, {"channels_per_sample": 1} | CROPPED], ids=["whole", "a channel, cropped"])
@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "header"])
def test_no_damage_trains_silently_in_exact_mode(copied, damage, options):
    """Also where the byte is in a part of the channel that no batch holds: the channel is what is checked."""
    do, error, message = DAMAGES[damage]
    do(copied)
    message = message.replace(r"block \d+, bytes [\d,]+ to [\d,]+, is", r"at t=\d+: is").replace(
        r"\.tar: block \d+, bytes .* is", r"\.tar, clip .* is"
    )
    with pytest.raises(error, match=message):
        read_all(copied, verify_reads=True, **options)


def test_exact_mode_reads_no_header_and_so_is_not_kept_from_reading_by_one(copied):
    damage_header(copied)
    read_all(copied, verify_reads=True)


def test_batches_are_the_same_whether_they_are_checked_or_not(copied):
    """Of experiments that differ in dtype, cropped: then patches are cast on their way."""
    shards = ShardSet.open(copied)
    for crop in (plan_crop(shards, None, None), plan_crop(shards, (1, 3), (12, 10))):
        rows = np.flatnonzero(shards.arrays["patch_is_sample"])[::9]
        plan = BatchPlan(number=0, anchor=rows, positive=rows[::-1].copy())
        plain, checked = (
            MultiExperimentTripletDataset(shards, crop, verify_reads=verify).__getitems__(plan)
            for verify in (False, True)
        )
        assert plain["anchor"].dtype == checked["anchor"].dtype == torch.float32
        assert checked["anchor"].equal(plain["anchor"])
        assert checked["positive"].equal(plain["positive"])


@pytest.mark.parametrize("name", [*contract.ARRAYS, "label_condition"])
def test_no_altered_index_array_trains_silently(copied, name):
    path = find_array(copied, name)
    flip(path, path.stat().st_size - 1)
    with pytest.raises(ChecksumError, match=rf"{name}.npy: was changed after it was written, or is damaged"):
        MultiExperimentDataModule(str(copied), verify_reads=True).setup()


def test_a_damaged_patch_is_named_and_its_neighbours_are_read(copied):
    damage_payload(copied)
    shards = ShardSet.open(copied)
    dataset = MultiExperimentTripletDataset(shards, plan_crop(shards, None, None), verify_reads=True)
    a, samples = shards.arrays, np.flatnonzero(shards.arrays["patch_is_sample"])[:40]
    rows, good = samples[3:4], np.delete(samples, 3)
    block = int(a["clip_block"][a["patch_clip"][rows[0]]])
    shard = shards.manifest.shards[int(a["block_shard"][block])].path
    dataset.__getitems__(BatchPlan(number=0, anchor=good, positive=good))
    fov, track = (
        shards.manifest.fovs[int(a["obs_fov"][a["patch_obs"][rows[0]]])],
        a["obs_track_id"][a["patch_obs"][rows[0]]],
    )
    cell = f"{fov.experiment}/{fov.fov_name}/{track} at t={a['patch_t'][rows[0]]}"
    what = f"byte {a['patch_offset'][rows[0]]}, channel 0, of the cell {cell}: is not what was written: its checksum is"
    with pytest.raises(ChecksumError, match=rf"{shard}, clip \d+, patch \d+, {what}"):
        dataset.__getitems__(BatchPlan(number=0, anchor=rows, positive=rows))


def test_a_damaged_block_is_named(copied):
    damage_header(copied)
    shards = ShardSet.open(copied)
    row = int(np.flatnonzero(shards.arrays["patch_is_sample"])[3])
    block = int(shards.arrays["clip_block"][shards.arrays["patch_clip"][row]])
    begin, end = int(shards.arrays["block_begin"][block]), int(shards.arrays["block_end"][block])
    shard = shards.manifest.shards[int(shards.arrays["block_shard"][block])].path
    with pytest.raises(ChecksumError, match=rf"{shard}: block {block}, bytes {begin:,} to {end:,}, is not what was"):
        read_all(copied, window_bytes=1 << 27, num_streams=1)


@pytest.mark.parametrize("yx", [None, (12, 10)])
def test_a_store_without_files_gives_the_same_batches(copied, yx):
    shards = ShardSet.open(copied)
    crop = plan_crop(shards, None, yx)
    rows = np.flatnonzero(shards.arrays["patch_is_sample"])[::7]
    plan = BatchPlan(number=0, anchor=rows, positive=rows[::-1].copy())
    expected = MultiExperimentTripletDataset(shards, crop).__getitems__(plan)
    store = DictStore(shards.root, shards.manifest.shards)
    for path in copied.rglob("*.tar"):
        path.unlink()
    found = MultiExperimentTripletDataset(shards, crop, store=store, verify_reads=True).__getitems__(plan)
    assert len(rows) > 50
    for name in ("anchor", "positive"):
        assert found[name].equal(expected[name])


@pytest.mark.parametrize("bag", [{}, {"channels_per_sample": 1}], ids=["whole", "bag of channels"])
def test_a_patch_is_checked_once_and_no_block_is_read_for_it(shards, monkeypatch, bag):
    checked: list[int] = []
    monkeypatch.setattr(channel_ranges, "channel_checksum", lambda data: checked.append(1) or sum_of(data))
    monkeypatch.delattr(MappedStore, "checksum")
    data = MultiExperimentDataModule(
        str(shards), batch_size=8, tau_range=(0.5, 1.5), val_experiments=["e3"], num_workers=0, verify_reads=True, **bag
    )
    data.setup("fit")
    seen: set[tuple[int, int]] = set()
    for epoch in range(2):
        data.train_sampler.set_epoch(epoch)
        for plan in data.train_sampler:
            data.train_dataset.__getitems__(plan)
            for rows, choice in ((plan.anchor, plan.anchor_choice), (plan.positive, plan.positive_choice)):
                for channel in (0, 1) if choice is None else (None,):
                    seen |= set(
                        zip(rows.tolist(), [channel] * len(rows) if choice is None else choice.tolist(), strict=True)
                    )
    assert len(checked) == len(seen) > 500


def test_a_block_is_checked_once(shards, monkeypatch):
    asked: list[tuple[int, int]] = []
    checksum = MappedStore.checksum

    def count(self: MappedStore, shard: int, begin: int, end: int) -> int:
        asked.append((shard, begin))
        return checksum(self, shard, begin, end)

    monkeypatch.setattr(MappedStore, "checksum", count)
    monkeypatch.setattr(channel_ranges, "channel_checksum", lambda _: pytest.fail("its patches are checked too"))
    options = {"window_bytes": 1 << 27, "num_streams": 1}
    data = MultiExperimentDataModule(
        str(shards), batch_size=8, tau_range=(0.5, 1.5), val_experiments=["e3"], num_workers=0, **options
    )
    data.setup("fit")
    for epoch in range(2):
        data.train_sampler.set_epoch(epoch)
        for _ in data.train_dataloader():
            pass
    assert len(asked) == len(set(asked)) > 10
