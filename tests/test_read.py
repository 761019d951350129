"""Laws of reading: pixels are the plate's, identities the index's, buffers are never shared, bad files are named."""

import gc
import shutil
import weakref
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorstore as ts
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.errors import ChecksumError, FormatError
from dynaclr_wds.fov_names import keep_experiments
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.read.buffers import BufferPool
from dynaclr_wds.read.crop import Crop, plan_crop
from dynaclr_wds.read.dataset import MultiExperimentTripletDataset, list_observations
from dynaclr_wds.read.files import FileStore
from dynaclr_wds.read.mapped import copy_runs, load_copy
from dynaclr_wds.read.metadata import RowDicts
from dynaclr_wds.read.opening import open_store
from dynaclr_wds.read.patches import PatchReader
from dynaclr_wds.shardset import ShardSet
from tests.set_files import find_array, find_index

WHOLE = (None, None)


def dataset(shards: ShardSet, *crop, **options) -> MultiExperimentTripletDataset:
    return MultiExperimentTripletDataset(shards, plan_crop(shards, *(crop or WHOLE)), **options)


def pairs(*rows: int) -> BatchPlan:
    """A batch whose positives are its anchors, the other way round."""
    anchor = np.array(rows, np.int64)
    return BatchPlan(number=0, anchor=anchor, positive=anchor[::-1].copy())


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards that a test may damage."""
    return Path(shutil.copytree(shards, tmp_path / "shards"))


class Plates:
    """Pixels of the collection by tensorstore: a library that the reader does not use."""

    def __init__(self, root: Path, experiments: dict) -> None:
        self.root = root
        self.experiments = experiments
        self.read: dict[tuple[str, str], np.ndarray] = {}

    def patch(self, experiment: str, fov: str, t: int, y: int, x: int) -> np.ndarray:
        """16 x 16 around a clamped centre, channels as stored: (Phase, GFP)."""
        entry = self.experiments[experiment]
        if (experiment, fov) not in self.read:
            path = self.root / entry["data_path"] / fov / "0"
            driver = "zarr3" if (path / "zarr.json").exists() else "zarr"
            store = ts.open({"driver": driver, "kvstore": {"driver": "file", "path": str(path)}}).result()
            self.read[experiment, fov] = store.read().result()
        order = [entry["channel_names"].index(name) for name in ("Phase", "GFP")]
        return self.read[experiment, fov][t][order][:, :, y - 8 : y + 8, x - 8 : x + 8]


def test_patches_of_batches_equal_slices_of_the_plates(collection, shards, experiments):
    plates = Plates(collection.parent, experiments)
    table = pq.read_table(find_index(shards) / "observations.parquet").to_pylist()
    data = MultiExperimentDataModule(shards=str(shards), batch_size=8, tau_range=(0.5, 1.5), val_experiments=["e3"])
    data.setup("fit")
    seen = set()
    for batch in data.train_dataloader():
        for key in ("anchor", "positive"):
            mixed = {meta["experiment"] for meta in batch[f"{key}_meta"]}
            assert batch[key].dtype == (torch.float32 if "e1" in mixed else torch.uint16)  # as its experiment stores it
            for patch, meta in zip(batch[key].numpy(), batch[f"{key}_meta"], strict=True):
                row = table[meta["observation"]]
                expected = plates.patch(row["experiment"], row["fov_name"], row["t"], row["y_clamp"], row["x_clamp"])
                np.testing.assert_array_equal(patch, expected.astype(np.float32))
                seen.add(row["experiment"])
    assert seen == {"e0", "e1", "e2"}
    assert experiments["e0"]["channel_names"] != experiments["e1"]["channel_names"]


def test_a_set_of_one_dtype_keeps_it(single_channel):
    shards = ShardSet.open(single_channel)
    batch = dataset(shards).__getitems__(pairs(0, 3, 5))
    assert batch["anchor"].dtype == torch.uint16
    raw = (single_channel / shards.manifest.shards[0].path).read_bytes()
    begin = int(shards.arrays["patch_offset"][3])
    stored = np.frombuffer(raw[begin : begin + 2 * 3 * 16 * 16], "<u2").reshape(1, 3, 16, 16)
    np.testing.assert_array_equal(batch["anchor"][1].numpy(), stored)


def test_metadata_and_statistics_are_those_of_the_index(shards, shard_set):
    table = pq.read_table(find_index(shards) / "observations.parquet").to_pylist()
    stats = pq.read_table(find_index(shards) / "stats.parquet").to_pylist()
    by_key = {(s["level"], s["experiment"], s["fov_name"], s["t"], s["channel"]): s for s in stats}
    rows = np.arange(0, len(shard_set.arrays["patch_obs"]), 7)
    batch = dataset(shard_set).__getitems__(BatchPlan(number=0, anchor=rows, positive=rows))
    assert len(batch["anchor_meta"]) == len(rows)
    for place, meta in enumerate(batch["anchor_meta"]):
        row = table[meta["observation"]]
        for name in (
            "experiment",
            "condition",
            "well",
            "fov_name",
            "global_track_id",
            "lineage_id",
            "track_id",
            "t",
            "hpi",
            "y",
            "x",
        ):
            assert meta[name] == row[name], name
        assert (meta["id"], meta["parent_id"], meta["parent_track_id"]) == (-1, -1, row["parent_track_id"])
        assert repr(meta) == repr(batch["anchor_meta"][place])
        where = {"timepoint": (row["fov_name"], row["t"]), "fov": (row["fov_name"], None), "dataset": (None, None)}
        for level, (fov, t) in where.items():
            for c, channel in enumerate(("Phase", "GFP")):
                expected = by_key[level, row["experiment"], fov, t, channel]
                found = batch["anchor_norm_meta"][level][place, c].tolist()
                assert found == [expected[k] for k in ("mean", "std", "median", "iqr", "p1", "p99", "min", "max")]


def test_identities_name_every_label_and_the_root_of_the_lineage(shard_set):
    labels = {"experiment", "condition", "well"} | {label.name for label in shard_set.manifest.labels}
    rows = list(RowDicts(shard_set, np.arange(0, 900, 50)))
    for row in rows:
        assert labels <= set(row)
        experiment, *fov, root = row["lineage_id"].split("/")
        assert (experiment, "/".join(fov)) == (row["experiment"], row["fov_name"])
        assert int(root) <= row["track_id"]
    assert any(row["lineage_id"] != row["global_track_id"] for row in rows)


def test_metadata_is_made_when_it_is_looked_at(shard_set):
    rows = RowDicts(shard_set, np.array([4, 2]))
    assert repr(rows) == "RowDicts(2 observations)"
    assert [row["observation"] for row in rows] == [4, 2]
    assert type(rows[0]["t"]) is int
    assert type(rows[0]["y"]) is float


def test_a_table_is_read_by_number(shard_set):
    table = list_observations(shard_set, keep_experiments(shard_set.manifest.fovs, ["e1"]))
    data = dataset(shard_set, table=table)
    assert len(data) == len(table)
    batch = data[5]
    assert batch["anchor"].shape == (1, 2, 3, 16, 16)
    assert batch["index"][0]["experiment"] == "e1"
    assert torch.equal(data.__getitems__([4, 5])["anchor"][1], batch["anchor"][0])
    halves = [data.share(rank, 2, 8).table.anchor.tolist() for rank in range(2)]
    assert halves == [
        [row for at in range(8 * rank, len(table), 16) for row in table.anchor[at : at + 8].tolist()]
        for rank in range(2)
    ]


def test_without_a_table_there_are_no_numbers(shard_set):
    with pytest.raises(TypeError, match="read by plan, not by number; iterate over its batch sampler"):
        len(dataset(shard_set))
    with pytest.raises(TypeError, match="no table of samples to take numbers"):
        dataset(shard_set)[0]


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_a_buffer_is_used_again_once_its_batch_is_dropped(shard_set):
    data = dataset(shard_set)
    batch = data.__getitems__(pairs(0, 1))
    used = {address(batch["anchor"]), address(batch["positive"])}
    del batch
    batch = data.__getitems__(pairs(2, 3))
    assert {address(batch["anchor"]), address(batch["positive"])} == used


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x,
        lambda x: x[2, 0],
        lambda x: x.numpy(),
        lambda x: x.numpy()[:, :1],
        lambda x: np.asarray(x.detach()).view(np.uint8),
        lambda x: memoryview(x.numpy()),
        lambda x: torch.as_strided(x, (4,), (1,)),
    ],
    ids=["tensor", "view", "array", "view of array", "detached", "memoryview", "strided"],
)
def test_no_buffer_is_used_again_while_anything_looks_at_it(look):
    pool = BufferPool()
    view = look(pool.take((4, 1, 1, 4, 4), np.float32)[1])
    gc.collect()
    kept = np.asarray(view).copy()
    for _ in range(3):
        array, tensor = pool.take((4, 1, 1, 4, 4), np.float32)
        array[...] = 7
        del array, tensor
    array, _ = pool.take((4, 1, 1, 4, 4), np.float32)
    assert not np.shares_memory(np.asarray(view), array)
    np.testing.assert_array_equal(np.asarray(view), kept)


def test_a_pool_keeps_few_idle_buffers():
    pool = BufferPool(keep=2)
    taken = [pool.take((8,), np.uint8) for _ in range(5)]
    arrays = [weakref.ref(array.base) for array, _ in taken]
    del taken
    gc.collect()
    assert sum(ref() is not None for ref in arrays) == 2


def test_a_buffer_may_come_back_while_another_is_taken():
    """The collector runs whenever it likes, so also inside `take`: nothing may wait for itself."""
    pool = BufferPool()

    class Cycle:
        pass

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for size in range(1, 200):
            cycle = Cycle()
            cycle.itself, cycle.tensor = cycle, pool.take((size % 7 + 1,), np.uint8)
            del cycle
    finally:
        gc.set_threshold(*threshold)


def test_opening_names_what_is_not_there(copied):
    with pytest.raises(FileNotFoundError, match=r"there is no manifest.json. Build the shards with"):
        ShardSet.open(copied / "e0")
    shard = next(copied.glob("e1/*.tar"))
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 512)
    with pytest.raises(
        FormatError, match=rf"{shard.name}: has {size - 512:,} bytes, the manifest says {size:,}. Copy it"
    ):
        ShardSet.open(copied)
    shard.unlink()
    with pytest.raises(FormatError, match=rf"{shard.name}: is missing, though the manifest lists it. Restore it"):
        ShardSet.open(copied)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"manifest.json: is not JSON"),
        ("{}", r"manifest.json: is not the manifest of a dynaclr-wds shard set"),
        ('{"format": "dynaclr-wds", "version": 99}', r"version=99, but this release reads version 2"),
        ('{"format": "dynaclr-wds", "version": 2}', r"was changed after it was written, or is damaged"),
    ],
)
def test_opening_refuses_a_damaged_manifest(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(FormatError, match=message):
        ShardSet.open(tmp_path)


def open_unverified(root: Path) -> ShardSet:
    return ShardSet.open(root, verify=False)


def test_opening_refuses_a_damaged_array(copied):
    path = find_array(copied, "obs_t")
    good, count = path.read_bytes(), len(np.load(path))
    path.write_bytes(b"\x00" * len(good))
    with pytest.raises(
        ChecksumError, match=r"obs_t.npy: was changed after it was written, or is damaged: its checksum"
    ):
        ShardSet.open(copied)
    with pytest.raises(FormatError, match=r"obs_t.npy: can't be mapped"):
        open_unverified(copied)
    path.write_bytes(good.replace(b"'<i4'", b"'<f4'"))
    with pytest.raises(FormatError, match=r"obs_t.npy: has dtype <f4, the format says <i4"):
        open_unverified(copied)
    path.write_bytes(good.replace(f"({count},)".encode(), f"({count - 1},)".encode()))
    with pytest.raises(FormatError, match=rf"obs_t.npy: its header says {4 * (count - 1):,} bytes of data"):
        open_unverified(copied)


def test_a_shard_that_goes_away_after_opening_is_named_with_its_member(copied):
    shards = ShardSet.open(copied)
    shard = copied / shards.manifest.shards[0].path
    size = shard.stat().st_size
    member = int(shards.arrays["patch_offset"][1])
    with shard.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(FormatError, match=rf"{shard.name}: has 1,000 bytes, the manifest says {size:,}") as short:
        dataset(shards).__getitems__(pairs(1, 0))
    assert short.value.__notes__ == [f"while reading {shard}, clip 0, patch 001, byte {member}"]
    shard.unlink()
    with pytest.raises(FormatError, match=rf"{shard.name}: is gone. Restore it") as gone:
        dataset(shards).__getitems__(pairs(1, 0))
    assert gone.value.__notes__ == short.value.__notes__


@pytest.mark.parametrize("level", ["timepoint", "fov", "dataset"])
def test_a_statistic_that_is_not_a_number_is_refused(copied, level):
    path = find_array(copied, f"stats_{level}")
    values = np.load(path)
    values[:, 1, 3] = np.nan
    np.save(path, values)
    shards = open_unverified(copied)
    with pytest.raises(
        FormatError, match=rf"iqr of level '{level}' is not a number in experiment 'e\d', ./\d/\d, t=\d"
    ) as e:
        dataset(shards).__getitems__(pairs(0, 1))
    assert "channel 1; every stored cell needs its statistics" in str(e.value)


def test_threads_read_what_one_reads(shard_set):
    rows = np.arange(len(shard_set.arrays["patch_obs"]))
    reader = PatchReader(shard_set, plan_crop(shard_set, (1, 2), (9, 8)), open_store(shard_set))
    one = np.empty((len(rows), *reader.layout(rows)[0]), np.float32)
    reader.read(rows, one)
    whole = np.empty((len(rows), 2, 3, 16, 16), np.float32)
    PatchReader(shard_set, plan_crop(shard_set, *WHOLE), open_store(shard_set)).read(rows, whole)
    np.testing.assert_array_equal(one, whole[:, :, 1:2, 4:13, 4:12])


def test_a_patch_outside_its_shard_is_refused_before_it_is_touched(copied):
    path = find_array(copied, "patch_offset")
    offsets = np.load(path)
    for bad in (-1, 1 << 40):
        np.save(path, np.where(np.arange(len(offsets)) == 2, bad, offsets))
        with pytest.raises(FormatError, match=r"patch_offset.npy: row [23] is"):
            open_unverified(copied)


def test_a_set_says_what_it_is_in_a_line(shard_set):
    samples, shards = len(shard_set.arrays["obs_t"]), len(shard_set.manifest.shards)
    assert repr(shard_set) == (
        f"ShardSet({str(shard_set.root)!r}, 4 experiments, {samples} samples of 2x3x16x16 float32 or "
        f"2x3x16x16 uint16, {shards} shards, 0.00 GiB)"
    )
    table = list_observations(shard_set, keep_experiments(shard_set.manifest.fovs, ["e1"]))
    data = dataset(shard_set, table=table)
    assert repr(data) == (
        f"MultiExperimentTripletDataset({len(table)} samples in sequence, verify_reads=False, {shard_set!r})"
    )


# --- memory --------------------------------------------------------------------------------------------------------


def test_the_copy_is_compiled_where_there_is_a_compiler():
    assert load_copy() is not None or shutil.which("cc") is None


@given(
    run_bytes=st.integers(1, 700),
    starts=st.lists(st.integers(0, 3000), max_size=20),
    offsets=st.lists(st.integers(0, 300), min_size=1, max_size=4),
    shift=st.integers(0, 70),
)
@pytest.mark.parametrize("tile", [1, 300])  # 300: more than a mebibyte is written past the caches
def test_runs_are_copied_from_and_to_any_address_and_nothing_else_is_written(run_bytes, starts, offsets, shift, tile):
    source = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)
    starts = starts * tile
    size = run_bytes * len(starts) * len(offsets)
    target = np.full(shift + size + 100, 7, np.uint8)
    out = target[shift : shift + size].reshape(len(starts), len(offsets), run_bytes)
    assert copy_runs(source.ctypes.data + np.array(starts, np.int64), np.array(offsets), out) is None
    want = [[source[a + b : a + b + run_bytes] for b in offsets] for a in starts]
    assert (out == np.array(want, np.uint8).reshape(out.shape)).all()
    assert (target[:shift] == 7).all()
    assert (target[shift + out.size :] == 7).all()


@given(
    stored=st.tuples(*[st.integers(1, 6)] * 4),
    cut=st.tuples(*[st.floats(0, 1)] * 4),
    dtype=st.sampled_from(["<u2", "<f4"]),
)
def test_the_runs_of_a_crop_are_the_crop(stored, cut, dtype):
    z0 = int(cut[0] * (stored[1] - 1))
    z1 = z0 + 1 + int(cut[1] * (stored[1] - z0 - 1))
    y, x = 1 + int(cut[2] * (stored[2] - 1)), 1 + int(cut[3] * (stored[3] - 1))
    crop = Crop(z=slice(z0, z1), yx=(y, x))
    patch = np.random.default_rng(0).integers(0, 100, stored).astype(dtype)
    top, left = stored[2] // 2 - y // 2, stored[3] // 2 - x // 2
    want = patch[:, z0:z1, top : top + y, left : left + x]
    offset, run_bytes = crop.runs(stored, dtype)
    raw = patch.tobytes()
    assert b"".join(raw[at : at + run_bytes] for at in offset.tolist()) == want.tobytes()
    assert crop.shape(stored) == want.shape
    whole = Crop(z=slice(None), yx=None)
    assert [whole.runs(stored, dtype)[0].tolist(), whole.shape(stored)] == [[0], stored]


@pytest.mark.parametrize("crop", [(None, None), ((1, 2), None), ((0, 2), (9, 8)), (None, (16, 5))])
def test_the_store_without_the_compiled_copy_reads_the_same(shard_set, crop):
    rows = np.flatnonzero(shard_set.clip_experiment[shard_set.arrays["patch_clip"]] == 1)[::3]
    plan = BatchPlan(number=0, anchor=rows, positive=rows[::-1].copy())
    mapped = dataset(shard_set, *crop)
    files = dataset(shard_set, *crop, store=FileStore(shard_set.root, shard_set.manifest.shards), verify_reads=True)
    a, b = mapped.__getitems__(plan), files.__getitems__(plan)
    assert torch.equal(a["anchor"], b["anchor"])
    assert torch.equal(a["positive"], b["positive"])
    mixed = BatchPlan(number=0, anchor=np.arange(0, 900, 100), positive=np.arange(0, 900, 100))  # cast to float32
    a, b = mapped.__getitems__(mixed), files.__getitems__(mixed)
    assert a["anchor"].dtype == torch.float32
    assert torch.equal(a["anchor"], b["anchor"])


def test_without_the_compiled_copy_files_are_read(shard_set, monkeypatch):
    assert type(open_store(shard_set)).__name__ == "MappedStore"
    monkeypatch.setattr("dynaclr_wds.read.opening.load_copy", lambda: None)
    assert type(open_store(shard_set)).__name__ == "FileStore"


@pytest.mark.parametrize("size", [1, 1000, 1 << 23])
def test_buffers_begin_where_copies_are_fast(size):
    array, tensor = BufferPool().take((size,), np.uint8)
    assert array.ctypes.data == tensor.data_ptr()
    assert array.ctypes.data % 64 == 0
