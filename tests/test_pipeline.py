"""The plain pipeline: triplets from URLs alone, each anchor once a pass, damage named, nothing run from the data.

The shards are written by `webdataset.TarWriter`, which knows nothing of this project.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds

from dynaclr_wds import triplet_pipeline
from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.errors import ConfigError, FormatError
from dynaclr_wds.plain import tars
from dynaclr_wds.plain.clips import sample_candidate

FRAMES = 6
TAU = (1, 2)
BLOCK = 512
Sample = dict[str, Any]


def make_clip(number: int, shape: Sequence[int] = (2, 1, 4, 4), dtype: str = "<u2") -> Sample:
    """Make a clip of one cell in frames `number` to `number + 5`, 30 minutes each; the last frame has no candidate."""
    rng = np.random.default_rng([5, number])
    experiment = f"e{number % 2}"
    patches = [
        {
            "file": f"{place:03d}.npy",
            "global_track_id": f"{experiment}/A/1/0/{number}",
            "track_id": number,
            "parent_track_id": -1,
            "id": 100 * number + place,
            "t": number + place,
            "hpi": 3.0 + (number + place) / 2,
            "z": None,
            "y": 8.0,
            "x": 9.5,
            "y_clamp": 8,
            "x_clamp": 9,
            "is_sample": True,
            "candidates": list(range(place + TAU[0], min(place + TAU[1], FRAMES - 1) + 1)),
        }
        for place in range(FRAMES)
    ]
    table = [[float(10 * c + k) for k in range(len(STATISTICS))] for c in range(shape[0])]
    record = {
        "key": f"{number:016x}",
        "experiment": experiment,
        "fov_name": "A/1/0",
        "lineage_id": f"{experiment}/A/1/0/{number}",
        "channel_names": ["Phase", "GFP"][: shape[0]],
        "shape": list(shape),
        "dtype": dtype,
        "interval_minutes": 30.0,
        "tau_frames": list(TAU),
        "labels": {"experiment": experiment, "condition": "mock", "well": "A/1", "drug": None},
        "patches": patches,
        "statistics": {
            "names": list(STATISTICS),
            "fov": table,
            "timepoint": {str(number + place): table for place in range(FRAMES)},
        },
    }
    pixels = {p["file"]: rng.integers(0, 1000, shape).astype(dtype) for p in patches}
    return {"__key__": f"{number:016x}", "json": record, **pixels}


def write_shard(path: Path, samples: Iterable[Sample]) -> str:
    with wds.TarWriter(str(path), mtime=0) as tar:
        for sample in samples:
            tar.write(sample)
    return str(path)


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four shards of three clips each, of two experiments."""
    root = tmp_path_factory.mktemp("pipeline")
    return [write_shard(root / f"s-{n:06d}.tar", map(make_clip, range(3 * n, 3 * n + 3))) for n in range(4)]


ANCHORS = sorted((f"e{n % 2}/A/1/0/{n}", n + place) for n in range(12) for place in range(FRAMES - 1))
"""Of all four shards: every frame but each cell's last."""


def who(meta: Sample) -> tuple[str, int]:
    return meta["global_track_id"], meta["t"]


def triplets(batches: Iterable[Sample]) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    return [(who(a), who(p)) for b in batches for a, p in zip(b["anchor_meta"], b["positive_meta"], strict=True)]


# --- what a batch holds ----------------------------------------------------------------------------------------------


def test_a_batch_holds_pixels_identities_labels_and_statistics(urls: list[str]):
    for batch in triplet_pipeline(urls, batch_size=16, shuffle=20):
        for side in ("anchor", "positive"):
            assert batch[side].dtype == torch.uint16
            for pixels, meta in zip(batch[side], batch[f"{side}_meta"], strict=True):
                number, place = meta["track_id"], meta["t"] - meta["track_id"]
                assert np.array_equal(pixels.numpy(), make_clip(number)[f"{place:03d}.npy"])
                assert meta == {
                    "experiment": f"e{number % 2}", "condition": "mock", "well": "A/1", "drug": None,
                    "fov_name": "A/1/0", "lineage_id": f"e{number % 2}/A/1/0/{number}",
                    "global_track_id": f"e{number % 2}/A/1/0/{number}", "track_id": number, "parent_track_id": -1,
                    "id": 100 * number + place, "t": number + place, "hpi": 3.0 + (number + place) / 2,
                    "z": None, "y": 8.0, "x": 9.5,
                }  # fmt: skip
            assert set(batch[f"{side}_norm_meta"]) == {"timepoint", "fov"}
            for table in batch[f"{side}_norm_meta"].values():
                assert table.shape == (len(batch[side]), 2, 8)
                assert table[0].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [10, 11, 12, 13, 14, 15, 16, 17]]


def test_a_built_set_gives_every_anchor_once(shards: Path):
    found = []
    for path in shards.rglob("*.tar"):
        with tarfile.open(path) as tar:
            clips = [json.loads(tar.extractfile(m).read()) for m in tar if m.name.endswith(".json")]
        found += [who(p) for c in clips for p in c["patches"] if p["is_sample"] and p["candidates"]]
    batches = triplet_pipeline([str(path) for path in sorted(shards.rglob("*.tar"))], batch_size=64)
    assert sorted(a for a, _ in triplets(batches)) == sorted(found)
    assert len(found) == len(set(found)) > 200


def test_labels_that_change_along_a_track_are_those_of_the_frame(tmp_path: Path):
    clip = make_clip(0)
    clip["json"]["labels"]["state"] = "well"
    for patch in clip["json"]["patches"][3:]:
        patch["labels"] = {"state": "ill"}
    (batch,) = triplet_pipeline(write_shard(tmp_path / "a.tar", [clip]), batch_size=9, shuffle=0)
    assert [m["state"] for m in batch["anchor_meta"]] == ["well", "well", "well", "ill", "ill"]


def test_every_anchor_comes_once_a_pass_with_a_positive_of_its_lineage_in_range(urls: list[str]):
    batches = list(triplet_pipeline(urls, batch_size=32))
    assert sorted(a for a, _ in triplets(batches)) == ANCHORS
    assert [len(b["anchor"]) for b in batches] == [32, 28]
    for (track, t), (other, later) in triplets(batches):
        assert track == other
        assert later - t in (1, 2)


def test_a_patch_that_is_no_sample_is_no_anchor(tmp_path: Path):
    clip = make_clip(0)
    for patch in clip["json"]["patches"][2:]:
        patch |= {"is_sample": False, "candidates": []}
    batches = triplet_pipeline(write_shard(tmp_path / "a.tar", [clip]), batch_size=9)
    assert sorted(a for a, _ in triplets(batches)) == [("e0/A/1/0/0", 0), ("e0/A/1/0/0", 1)]


def test_a_narrower_tau_range_is_kept(urls: list[str]):
    batches = triplet_pipeline(urls, batch_size=32, tau_range_hours=(1.0, 1.0))
    assert {p[1] - a[1] for a, p in triplets(batches)} == {2}


def test_tau_is_drawn_with_the_stated_probabilities():
    rng = np.random.default_rng(0)
    tau = np.array([1, 1, 2, 4])  # two candidates at 1, none at 3
    drawn = Counter(sample_candidate(rng, tau, (1, 4), 2.0) for _ in range(4_000))
    # exp(0), exp(-2/3), exp(-2), normalised by their sum 1.6488; the first is shared by two
    for candidate, p in enumerate((0.3033, 0.3033, 0.3114, 0.0821)):
        assert drawn[candidate] / 4_000 == pytest.approx(p, abs=0.03)


def test_the_last_partial_batch_can_be_left_out(urls: list[str]):
    assert [len(b["anchor"]) for b in triplet_pipeline(urls, batch_size=32, partial=False)] == [32]


def test_shards_of_other_dtypes_share_a_batch_as_float32(tmp_path: Path):
    path = write_shard(tmp_path / "a.tar", [make_clip(0, dtype="<u2"), make_clip(1, dtype="<f4")])
    (batch,) = triplet_pipeline(path, batch_size=16)
    assert batch["anchor"].dtype == torch.float32


# --- order -----------------------------------------------------------------------------------------------------------


def test_same_seed_same_order_another_seed_or_pass_another(urls: list[str]):
    pipeline = triplet_pipeline(urls, batch_size=8, shuffle=20, seed=1)
    first, second = triplets(pipeline), triplets(pipeline)
    again = triplet_pipeline(urls, batch_size=8, shuffle=20, seed=1)
    assert [triplets(again), triplets(again)] == [first, second]
    assert triplets(triplet_pipeline(urls, batch_size=8, shuffle=20, seed=2)) != first
    assert sorted(first) != sorted(second)  # other positives, not only another order


def test_without_a_buffer_triplets_keep_the_order_of_the_shard(urls: list[str]):
    (batch,) = triplet_pipeline(urls[:1], batch_size=1000, shuffle=0)
    assert [who(m) for m in batch["anchor_meta"]] == [
        (f"e{n % 2}/A/1/0/{n}", n + place) for n in range(3) for place in range(5)
    ]


def test_workers_share_the_shards_and_begin_another_pass_each_time(urls: list[str]):
    alone = triplet_pipeline(urls, batch_size=8, seed=1)
    passes = [sorted(triplets(alone)), sorted(triplets(alone))]
    loader = wds.WebLoader(triplet_pipeline(urls, batch_size=8, seed=1), batch_size=None, num_workers=2)
    # a triplet depends on seed, pass and clip alone, so it is the same whichever worker draws it
    assert [sorted(triplets(loader)), sorted(triplets(loader))] == passes
    assert passes[0] != passes[1]


def test_ranks_read_what_the_nodesplitter_gives_them(urls: list[str]):
    def rank(number: int) -> Callable:
        return lambda shards: islice(shards, number, None, 2)

    halves = [triplets(triplet_pipeline(urls, batch_size=8, nodesplitter=rank(r))) for r in range(2)]
    assert sorted(a for half in halves for a, _ in half) == ANCHORS


def test_braces_are_expanded(urls: list[str]):
    braces = urls[0].replace("000000.tar", "{000000..000001}.tar")
    assert triplets(triplet_pipeline(braces, batch_size=8)) == triplets(triplet_pipeline(urls[:2], batch_size=8))


# --- settings that can't work ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("urls", "options", "message"),
    [
        ("pipe:cat a.tar", {}, "'pipe:cat a.tar' runs a shell command"),
        (["PIPE:cat a.tar"], {}, "'PIPE:cat a.tar' runs a shell command"),
        ([], {}, "names no shard"),
        ("a.tar", {"batch_size": 0}, "batch_size=0 must be >= 1"),
        ("a.tar", {"shuffle": -1}, "shuffle=-1 must be >= 0"),
    ],
)
def test_bad_values_are_named(urls, options, message):
    with pytest.raises(ValueError, match=message):
        triplet_pipeline(urls, **{"batch_size": 4, **options})


def test_a_tau_range_the_shards_do_not_hold_is_named(urls: list[str]):
    with pytest.raises(ValueError, match=r"tau_range_hours: 1…6 frames \(0.5…3 h\) in experiment 'e[01]' \(.*\.tar"):
        list(triplet_pipeline(urls, batch_size=4, tau_range_hours=(0.5, 3.0)))


def test_experiments_of_two_shapes_in_a_batch_are_both_named(tmp_path: Path):
    path = write_shard(tmp_path / "a.tar", [make_clip(0), make_clip(1, shape=(1, 1, 4, 4))])
    with pytest.raises(FormatError, match=r"experiment 'e1' .*\(1, 1, 4, 4\), but experiment 'e0' .*\(2, 1, 4, 4\)"):
        list(triplet_pipeline(path, batch_size=16, shuffle=0))


# --- clips that are not as the format says ---------------------------------------------------------------------------


def read_one(tmp_path: Path, clip: Sample) -> list[Sample]:
    return list(triplet_pipeline(write_shard(tmp_path / "bad.tar", [clip]), batch_size=4))


def test_pickles_are_not_opened(tmp_path: Path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Harm()], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match=r"bad.tar, clip 0+, 00\d.npy: is no npy file, .*'\|O'"):
        read_one(tmp_path, make_clip(0) | {f"{n:03d}.npy": buffer.getvalue() for n in range(6)})
    assert not (tmp_path / "harm").exists()


def npy(header: str, data: bytes = b"") -> bytes:
    """Write an npy file of version 1.0 by hand."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


GOOD = "{'descr': '<u2', 'fortran_order': False, 'shape': (2, 1, 4, 4), }"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no npy file"),
        (b"PK\x03\x04" + bytes(60), "is no npy file"),
        (npy("{'descr': '<u2'}"), "is no npy file"),
        (npy(GOOD, bytes(63)), "has 63 bytes of numbers, not 64"),
        (npy(GOOD, bytes(65)), "has 65 bytes of numbers, not 64"),
        # a terabyte is asked for; none is taken
        (npy(GOOD.replace("4, 4", "1000000, 1000000")), r"holds uint16 of shape \(2, 1, 1000000, 1000000\)"),
        (npy(GOOD.replace("False", "True"), bytes(64)), ".* in Fortran order"),
    ],
)
def test_patches_that_are_no_plain_npy_are_named(tmp_path: Path, data: bytes, message: str):
    with pytest.raises(FormatError, match=rf"bad.tar, clip 0+, 00\d.npy: {message}"):
        read_one(tmp_path, make_clip(0) | {f"{n:03d}.npy": data for n in range(6)})


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"{", "its JSON can't be read"), (b"[]", "its JSON is no object"), (b"{}", "is not a clip .*'patches'")],
)
def test_json_that_is_no_clip_is_named(tmp_path: Path, text: bytes, message: str):
    with pytest.raises(FormatError, match=rf"bad.tar, clip \w+: {message}"):
        read_one(tmp_path, make_clip(0) | {"json": text})


def test_a_clip_without_json_is_named(tmp_path: Path):
    clip = make_clip(0)
    del clip["json"]
    with pytest.raises(FormatError, match=r"bad.tar, clip \w+: has no JSON"):
        read_one(tmp_path, clip)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "-1"}, "key='-1' is not hexadecimal"),
        ({"shape": [2, 1, 4]}, "shape="),
        ({"shape": [1 << 30, 1, 1 << 30, 1 << 30]}, "shape="),
        ({"dtype": "O"}, "dtype='O'"),
        ({"interval_minutes": -1}, "-1 is not >= 0"),
        ({"tau_frames": [1]}, "not enough values"),
    ],
)
def test_values_of_the_wrong_kind_are_named(tmp_path: Path, changes: Sample, message: str):
    with pytest.raises(FormatError, match=rf"is not a clip as docs/FORMAT.md says .*{message}"):
        read_one(tmp_path, make_clip(0) | {"json": make_clip(0)["json"] | changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": [-1]}, r"candidates=\[-1\] of a clip with 6 patches"),
        ({"candidates": [6]}, r"candidates=\[6\]"),
        ({"is_sample": 1}, "1 is neither true nor false"),
        ({"file": "009.npy"}, "009.npy"),
        ({"file": "json"}, "json"),
        ({"t": 0.5}, "0.5 is no whole number"),
    ],
)
def test_patches_of_the_wrong_kind_are_named(tmp_path: Path, changes: Sample, message: str):
    clip = make_clip(0)
    clip["json"]["patches"][2] |= changes
    with pytest.raises(FormatError, match=rf"is not a clip as docs/FORMAT.md says .*{message}"):
        read_one(tmp_path, clip)


def test_a_statistic_that_is_not_a_number_is_refused(tmp_path: Path):
    clip = make_clip(0)
    clip["json"]["statistics"]["fov"] = [[None] * 8] * 2
    with pytest.raises(FormatError, match="a statistic of level 'fov' is not a number"):
        read_one(tmp_path, clip)


# --- damaged shards --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(urls: list[str]) -> bytes:
    """A shard of three clips."""
    return Path(urls[0]).read_bytes()


@pytest.fixture(scope="module")
def last(urls: list[str]) -> int:
    """Where the header of its last member begins."""
    with tarfile.open(urls[0]) as tar:
        return tar.getmembers()[-1].offset


@pytest.fixture(scope="module")
def end(whole: bytes) -> int:
    """Where its zeros begin: behind the last member."""
    return -(-len(whole.rstrip(b"\0")) // BLOCK) * BLOCK


def read(tmp_path: Path, data: bytes) -> list[Sample]:
    (tmp_path / "bad.tar").write_bytes(data)
    return list(triplet_pipeline(str(tmp_path / "bad.tar"), batch_size=100))


def test_a_whole_shard_may_end_with_two_blocks_of_zeros_or_many(tmp_path: Path, whole: bytes, end: int):
    assert len(read(tmp_path, whole)[0]["anchor"]) == 15
    assert len(read(tmp_path, whole[: end + 2 * BLOCK])[0]["anchor"]) == 15


def test_a_shard_cut_anywhere_is_named_with_the_byte(tmp_path: Path, whole: bytes, end: int):
    cuts = [*range(0, end, 4999), end, end + 1, end + BLOCK - 1, end + BLOCK, end + 2 * BLOCK - 1]
    for cut in cuts:
        with pytest.raises(FormatError, match=r"bad\.tar: byte \d+: .*copy it again"):
            read(tmp_path, whole[:cut])


def test_where_a_shard_is_cut_is_said(tmp_path: Path, whole: bytes, last: int, end: int):
    for cut, message in {
        0: "byte 0: is empty",
        last: f"byte {last}: ends without the two blocks of zeros",
        last + 100: f"byte {last}: ends after 100 of the 512 bytes of a header",
        last + 600: rf"byte {last}: '0+2.json' should have \d+ bytes, but the shard ends at byte {last + 600}",
        end: f"byte {end}: ends without the two blocks of zeros",
        end + BLOCK: f"byte {end}: ends without the second",
    }.items():
        with pytest.raises(FormatError, match=message):
            read(tmp_path, whole[:cut])


@pytest.mark.parametrize("place", [0, 50, 110, 124, 136, 151, 156, 257, 300, 345, 500])
def test_a_flipped_byte_in_any_field_of_a_header_is_named(tmp_path: Path, whole: bytes, last: int, place: int):
    damaged = bytearray(whole)
    damaged[last + place] ^= 0x10
    with pytest.raises(FormatError, match=rf"bad\.tar: byte {last}: a member should begin here"):
        read(tmp_path, bytes(damaged))


def test_bytes_between_members_are_named(tmp_path: Path, whole: bytes, last: int):
    with pytest.raises(FormatError, match=rf"byte {last}: a member should begin here"):
        read(tmp_path, whole[:last] + b"garbage".ljust(BLOCK, b"!") + whole[last:])
    with pytest.raises(FormatError, match=rf"byte {last}: a member should begin here"):
        read(tmp_path, whole[:last] + b"!" + whole[last:])


def test_zeros_in_the_middle_do_not_end_the_shard(tmp_path: Path, whole: bytes, last: int):
    hole = whole[:last] + bytes(BLOCK) + whole[last + BLOCK :]
    with pytest.raises(FormatError, match=rf"byte {last + BLOCK}: there is something behind the end .* byte {last}"):
        read(tmp_path, hole)


def test_bytes_behind_the_end_are_named(tmp_path: Path, whole: bytes):
    with pytest.raises(FormatError, match=rf"byte {len(whole)}: there is something behind the end"):
        read(tmp_path, whole + whole)


def test_a_shard_of_zeros_is_named(tmp_path: Path):
    with pytest.raises(FormatError, match="byte 0: holds zeros and no clip"):
        read(tmp_path, bytes(10240))


def add(info: tarfile.TarInfo, data: bytes = b"") -> bytes:
    """Write a tar of one member, its header as it is said."""
    padding = bytes(-len(data) % BLOCK)
    return info.tobuf(tarfile.GNU_FORMAT) + data + padding + bytes(2 * BLOCK)


@pytest.mark.parametrize("name", ["../00.000.npy", "a/00.json", "/00.json", "00.pkl", "00.pickle", "00.npz", "00"])
def test_names_that_leave_the_folder_or_are_no_npy_or_json_are_refused(tmp_path: Path, name: str):
    with pytest.raises(FormatError, match=r"byte 0: holds '.*' of type '0' and 0 bytes"):
        read(tmp_path, add(tarfile.TarInfo(name)))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.XHDTYPE])
def test_members_that_are_no_regular_files_are_refused(tmp_path: Path, kind: bytes):
    info = tarfile.TarInfo("00.json")
    info.type = kind
    with pytest.raises(FormatError, match=rf"byte 0: holds '00.json/?' of type '{kind.decode()}'"):
        read(tmp_path, add(info))


def test_a_size_that_can_not_be_is_refused_before_memory_is_taken(tmp_path: Path):
    info = tarfile.TarInfo("00.json")
    info.size = 1 << 60
    with pytest.raises(FormatError, match=f"and {1 << 60} bytes"):
        read(tmp_path, add(info))
    info.size = tars.MOST_JSON_BYTES
    with pytest.raises(FormatError, match=r"should have 67108864 bytes, but the shard ends at byte 1536"):
        read(tmp_path, add(info))


def test_a_member_that_is_there_twice_is_named(tmp_path: Path):
    one = add(tarfile.TarInfo("00.json"))[:BLOCK]
    with pytest.raises(FormatError, match=r"byte 512: 00.json is there twice"):
        read(tmp_path, one + one + bytes(2 * BLOCK))


def test_a_failing_disk_is_named_with_the_byte():
    class Failing:
        def read(self, size: int) -> bytes:
            del size
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error") as caught:
        list(tars.read_members(Failing(), "a.tar"))
    assert caught.value.__notes__ == ["while reading a.tar at byte 0"]


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        (
            ["nope.tar"],
            "urls: 'nope.tar' is no file; every shard must be there before the first is read, and it is not. ",
        ),
        ("no-{0..2}.tar", "urls: 'no-0.tar' is no file; .*, and 3 of 3 shards are not. Give the .tar files of a build"),
        (["."], "urls: '.' is a folder, not a tar; every shard must be there"),
    ],
)
def test_a_shard_that_is_not_there_is_refused_before_the_first_is_read(urls, said):
    with pytest.raises(ConfigError, match=said):
        triplet_pipeline(urls, batch_size=2)
