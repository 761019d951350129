"""Shard sets, checkpoints, configs and sources of a stranger: nothing of them is run, and errors name the file."""

from __future__ import annotations

import json
import pickle
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from dynaclr_wds.contract import OBSERVATIONS
from dynaclr_wds.describe import make_module
from dynaclr_wds.errors import CheckpointError, ConfigError, FormatError, PlateError
from dynaclr_wds.files import write_whole
from dynaclr_wds.npy_files import map_array, parse_npy_header
from dynaclr_wds.plain.pipeline import triplet_pipeline
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.location import parse_place
from dynaclr_wds.storage.options import parse_options
from dynaclr_wds.strict_json import parse_json
from dynaclr_wds.train.checkpoint_content import read_checkpoint
from dynaclr_wds.train.checkpoint_files import WholeCheckpointIO
from dynaclr_wds.yaml_limits import check_yaml
from etl.source.plates import open_plate
from etl.source.yaml_values import read_yaml
from tests.hostile import mutations
from tests.hostile.forgery import Forgery, build_small_set
from tests.plates import write_plate
from tests.shared_build import make_once

pytestmark = pytest.mark.usefixtures("without_fsync")


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set. Read only."""
    return make_once(tmp_path_factory, "small_set", build_small_set) / "shards"


@pytest.fixture
def forged(small_set: Path) -> Forgery:
    return Forgery.read(small_set).copy()


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


# --- the index -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [False, True])
def test_an_array_of_pickled_objects_in_the_index_is_never_loaded(forged: Forgery, tmp_path: Path, sealed: bool):
    forged.put_array("obs_t", np.array([Bomb(tmp_path / "ran")], dtype=object))
    if sealed:
        forged.seal()
    forged.write(tmp_path / "set", {})
    with pytest.raises(FormatError, match=r"obs_t\.npy: "):
        ShardSet.open(tmp_path / "set", verify=False)
    assert not (tmp_path / "ran").exists()


def test_offsets_that_wrap_around_do_not_lead_out_of_the_shard(forged: Forgery, tmp_path: Path):
    """A sum of such an offset is below the size of the shard again, and its difference to the next one is positive."""
    values = forged.array("patch_offset")
    values[1:3] = np.iinfo(np.int64).max - 100, np.iinfo(np.int64).min + 100
    forged.put_array("patch_offset", values)
    forged.seal()
    forged.write(tmp_path / "set", {})
    with pytest.raises(
        FormatError, match=r"patch_offset\.npy: row 1 is 9223372036854775707; it must be a byte of a block"
    ):
        ShardSet.open(tmp_path / "set")


def test_runs_that_wrap_around_take_no_memory(forged: Forgery, tmp_path: Path):
    """Differences of 32 bits would all be positive, and ask for rows by the thousand million."""
    values = forged.array("block_first")
    values[1:3] = 1 << 30, -(1 << 31) + 5
    forged.put_array("block_first", values)
    forged.seal()
    forged.write(tmp_path / "set", {})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        FormatError, match=r"block_first\.npy: row 2 is -2147483643; it must be above the entry before it"
    ):
        ShardSet.open(tmp_path / "set")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(
    "head", [b"PK\x03\x04", b"\x80\x04.", b"\x93NUMPY\x02\x00\x00\x00", b"\x93NUMPY\x01\x00\xff\xff", b""]
)
def test_files_of_other_kinds_are_no_arrays(tmp_path: Path, head: bytes):
    (tmp_path / "x.npy").write_bytes(head + bytes(200))
    with pytest.raises(FormatError, match=r"x\.npy: can't be mapped"):
        map_array(tmp_path / "x.npy")


@pytest.mark.parametrize("code", mutations.CODES)
def test_a_header_is_not_parsed_as_python(code: str):
    text = f"{{'descr': '<u2', 'fortran_order': False, 'shape': ({code},)}}\n".encode("latin-1")[:65535]
    head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with pytest.raises(ValueError, match=r"its header (is not that of an array of plain numbers|says that it has)"):
        parse_npy_header(head)


def test_headers_of_numpy_are_read_as_numpy_reads_them(tmp_path: Path):
    for values in (
        np.zeros((), "<f4"),
        np.zeros(3, "|b1"),
        np.zeros((2, 0, 5), "<i8"),
        np.ones((2, 3), ">u2", order="F"),
    ):
        np.save(tmp_path / "x.npy", values)
        found = map_array(tmp_path / "x.npy")
        assert (found.shape, found.dtype, found.flags.f_contiguous) == (
            values.shape, values.dtype, values.flags.f_contiguous
        )  # fmt: skip
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("content", [b"PAR1" + bytes(40) + b"PAR1", b"", bytes(1 << 20)])
def test_tables_that_are_no_parquet_are_named(forged: Forgery, tmp_path: Path, content: bytes):
    forged.put(forged.index_file(OBSERVATIONS), content)
    forged.seal()
    forged.write(tmp_path / "set", {})
    with pytest.raises(FormatError, match=r"observations\.parquet: the lineages can't be read"):
        _ = ShardSet.open(tmp_path / "set").lineage_ids


def test_a_table_of_other_rows_is_refused_before_it_is_read(forged: Forgery, tmp_path: Path):
    """A million rows of one long name are a few hundred bytes on the disk."""
    name = pa.DictionaryArray.from_arrays(np.zeros(1_000_000, np.int32), ["x" * 10_000])
    pq.write_table(pa.table({"lineage_id": name}), tmp_path / "x")
    forged.put(forged.index_file(OBSERVATIONS), (tmp_path / "x").read_bytes())
    forged.seal()
    forged.write(tmp_path / "set", {})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match=r"observations\.parquet: has 1,000,000 rows, the index arrays have \d+"):
        _ = ShardSet.open(tmp_path / "set").lineage_ids
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


# --- the manifest ----------------------------------------------------------------------------------------------------


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Change one value of a manifest: keys, and the value."""
    *keys, last, value = path

    def change(manifest: dict[str, Any]) -> None:
        for key in keys:
            manifest = manifest[key]
        manifest[last] = value

    return change


MANIFESTS = {
    "climbs": (_set("shards", 0, "path", "../../x.tar"), r"the path '\.\./\.\./x\.tar' leaves the folder"),
    "absolute": (_set("files", 0, "path", "/etc/passwd"), r"the path '/etc/passwd' leaves the folder"),
    "a drive": (_set("files", 0, "path", "C:/x"), r"the path 'C:/x' leaves the folder"),
    "a zero byte": (_set("shards", 0, "path", "a\0b"), r"leaves the folder or is no plain path"),
    "negative size": (_set("shards", 0, "bytes", -1), r"shards\[0\]: bytes=-1 must be >= 0"),
    "negative count": (_set("shards", 0, "blocks", -5), r"shards\[0\]: blocks=-5 must be >= 0"),
    "negative frames": (_set("fovs", 0, "frames", -(1 << 62)), r"fovs\[0\]: frames=-\d+ must be >= 0"),
    "huge size": (_set("shards", 0, "bytes", 1 << 62), r"has [\d,]+ bytes, the manifest says 4,611,686,018,427,3"),
    "no plates": (_set("config", "experiments", None), r"config\.experiments must give name and data_path"),
    "no border": (_set("config", "border", 5), r"config\.border=5 must be a text"),
    "slices": (_set("config", "z_range", [5, -(10**30)]), r"config\.z_range=.* must be null or two integers"),
    "τ backwards": (_set("tau_range_hours", [1.0, 0.5]), r"tau_range_hours=\(1\.0, 0\.5\) must ascend"),
    "no interval": (_set("experiments", 0, "interval_minutes", 1e-300), r"tau_frames=.* are not the frames of"),
    "half a letter": (_set("labels", 0, "name", "\ud800"), r"it holds half of a character"),
    "infinite": (_set("config", "x", float("inf")), r"Infinity is no number of JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_lies_with_a_checksum_that_fits_is_refused(forged: Forgery, tmp_path: Path, case: str):
    change, message = MANIFESTS[case]
    change(forged.manifest)
    forged.write(tmp_path / "set", {})
    with pytest.raises(FormatError, match=rf"set/(manifest\.json|\w+/[\w.-]+): .*{message}|set/.*{message}"):
        ShardSet.open(tmp_path / "set")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"9" * 5000, "integer string conversion"),
        (b'["\\ud800"]', "half of a character"),
        (b'"\xff"', "byte 1 is not UTF-8"),
    ],
)
def test_json_that_could_mean_two_things_is_refused(text: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_a_manifest_of_any_size_is_not_taken_into_memory(tmp_path: Path):
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate((1 << 28) + 1)  # of a disk, no byte is used
    with pytest.raises(FormatError, match=r"manifest\.json: has more than 268,435,456 bytes, which are not read"):
        ShardSet.open(tmp_path)


def test_fifos_and_devices_in_place_of_files_are_refused(forged: Forgery, tmp_path: Path):
    forged.write(tmp_path / "set", {})
    path = tmp_path / "set" / forged.manifest["shards"][0]["path"]
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(FormatError, match=r"is missing, though the manifest lists it"):
        ShardSet.open(tmp_path / "set")


def test_a_link_in_place_of_a_partial_file_is_not_written_through(tmp_path: Path):
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "x.partial").symlink_to(tmp_path / "precious")
    with write_whole(tmp_path / "x") as file:
        file.write(b"content")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "x").is_symlink()
    assert (tmp_path / "x").read_bytes() == b"content"


# --- shards ----------------------------------------------------------------------------------------------------------


def test_pickles_among_the_members_of_a_shard_are_not_opened(forged: Forgery, tmp_path: Path):
    path, members = mutations.split_tar(random.Random(0), forged)
    members[0][0].name = members[0][0].name.replace(".npy", ".pkl")
    members[0] = (members[0][0], pickle.dumps(Bomb(tmp_path / "ran")))
    (tmp_path / "x.tar").write_bytes(mutations.join_tar(members))
    with pytest.raises(FormatError, match=r"x\.tar: byte 0: holds '\w+\.\d+\.pkl' of type '0'"):
        list(triplet_pipeline(str(tmp_path / "x.tar"), batch_size=4))
    assert not (tmp_path / "ran").exists()
    assert path.endswith(".tar")


@pytest.mark.parametrize(
    "url", ["pipe:touch x", "PIPE:touch x", "file:///etc/x.tar", "ftp://host/x.tar", "gopher://x/x"]
)
def test_urls_that_run_programs_or_are_of_other_schemes_are_refused(url: str):
    with pytest.raises(ValueError, match=r"runs a shell command|can't be read; use s3://"):
        triplet_pipeline(url, batch_size=4)


# --- YAML ------------------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"x\.yaml: \d+ values are written, but the aliases .* expand them to \d\.\d+e\+09"),
        ("a: &a [*a]", r"x\.yaml: a value contains itself \(line 1\)"),
        ("- " * 5000 + "1", r"x\.yaml: is nested too deeply, more than 100 levels \(line 1\)"),
    ],
)
def test_yaml_that_would_fill_the_memory_is_refused_before_it_is_made(text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        check_yaml(text, "x.yaml")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch ran']",
        "!!python/name:os.system",
        "!!int ''",
        "!!bool x",
        "!!timestamp x",
    ],
)
def test_tags_of_yaml_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(f"experiments: {value}\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: can't be read as YAML"):
        read_yaml(tmp_path / "x.yaml")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit", "shuffle"])
@pytest.mark.parametrize("text", [LAUGHS, "x: !!python/object/apply:os.system ['touch ran']\n"])
def test_configs_of_trainings_neither_run_code_nor_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, text: str
):
    from dynaclr_wds.__main__ import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("data:\n" + "".join(f"  {line}\n" for line in text.splitlines()))
    assert main([command, "-c", "x.yaml"]) == 2
    said = capsys.readouterr().err
    assert "x.yaml: " in said
    assert "values are written, but the aliases" in said or "can't be read as YAML" in said
    assert not (tmp_path / "ran").exists()


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path):
    torch.save({"state_dict": {}, "x": Bomb(tmp_path / "ran")}, tmp_path / "x.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=2))
    for name in ("x.ckpt", "plain.ckpt"):
        with pytest.raises(CheckpointError, match=rf"{name}: can't be read as a checkpoint"):
            read_checkpoint(tmp_path / name)
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            WholeCheckpointIO().load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_a_url_is_not_unpickled(monkeypatch: pytest.MonkeyPatch):
    """Lightning would, unless it is told not to."""
    asked: list[bool | None] = []
    monkeypatch.setattr(
        "lightning.fabric.plugins.io.torch_io.pl_load", lambda *_, weights_only, **__: asked.append(weights_only) or {}
    )
    monkeypatch.setattr(
        "lightning.fabric.plugins.io.torch_io.get_filesystem", lambda _: type("F", (), {"exists": lambda *_: True})()
    )
    WholeCheckpointIO().load_checkpoint("https://example.org/x.ckpt")
    assert asked == [True]


POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": "touch ran", "shell": True}}


@pytest.mark.parametrize(
    "description",
    [
        POPEN,
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1, "dtype": POPEN}},
        {"class_path": "dynaclr_wds.transforms.dictionary.DictTransform", "init_args": {"transform": POPEN}},
        {"class_path": "dynaclr_wds.transforms.dictionary.DictTransform", "init_args": {"transform": [[POPEN]]}},
        {"class_path": "os.system", "init_args": {"command": "touch ran"}},
        {"class_path": "torch.nn.Sequential", "init_args": {"x": {"y": {"class_path": "pandas.DataFrame"}}}},
        {"class_path": ["os.system"]},
        {"class_path": "Popen"},
    ],
)
def test_what_a_checkpoint_names_is_made_only_if_it_is_a_module_or_transform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, description: dict[str, Any]
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"normalizations: .* can't be made of "):
        make_module(description, "normalizations")
    assert not (tmp_path / "ran").exists()


# --- servers ---------------------------------------------------------------------------------------------------------


def test_a_redirect_that_would_take_a_secret_along_is_refused(two_hosts: tuple[str, list[dict[str, str]]]):
    host, told = two_hosts
    sas = {"endpoint": f"http://{host}", "account_name": "a", "sas_key": "sv=1&sig=hunter2"}
    for url, options, secret in (
        (f"http://{host}/a", {"headers": {"PRIVATE-TOKEN": "hunter2"}}, "the header 'PRIVATE-TOKEN'"),
        ("az://container/a", sas, "the SAS"),
    ):
        with pytest.raises(
            ConfigError, match=rf"a/x: the server redirects to 'localhost', and would take {secret} along"
        ):
            Storage(parse_place(url), parse_options(options)).info("x")
    assert told == []
    kept = Storage(parse_place(f"http://{host}/a"), parse_options({"headers": {"Authorization": "Bearer hunter2"}}))
    assert kept.info("x").size == 3
    assert told
    assert "hunter2" not in str(told)


# --- plates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["compressor", "filters"])
@pytest.mark.parametrize("dtype", ["<u2", "|O"])
def test_a_codec_that_unpickles_is_refused(tmp_path: Path, place: str, dtype: str):
    write_plate(tmp_path / "plate", version="0.4", shape=(1, 1, 1, 4, 4), channel_names=("Phase",))
    array = tmp_path / "plate/A/1/0/0"
    document = json.loads((array / ".zarray").read_text()) | {"dtype": dtype, "compressor": None, "filters": None}
    codec = {"id": "pickle", "protocol": 4}
    document[place] = [codec] if place == "filters" else codec
    (array / ".zarray").write_text(json.dumps(document))
    shutil.rmtree(array / "0")
    (array / "0/0/0/0").mkdir(parents=True)
    (array / "0/0/0/0/0").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(PlateError, match=r"plate/A/1/0/0: (its metadata is damaged|shape .* must be a 5-D)"):
        open_plate(tmp_path / "plate").fovs["A/1/0"].array[:]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["../../../secret", "/secret", "..", "a/../../x"])
def test_names_in_a_plate_do_not_leave_it(tmp_path: Path, path: str):
    write_plate(tmp_path / "plate", version="0.4", shape=(1, 1, 1, 4, 4), channel_names=("Phase",))
    zarr.create_array(tmp_path / "secret", shape=(1, 1, 1, 4, 4), dtype="u2")
    attributes = json.loads((tmp_path / "plate/A/1/0/.zattrs").read_text())
    attributes["multiscales"][0]["datasets"][0]["path"] = path
    (tmp_path / "plate/A/1/0/.zattrs").write_text(json.dumps(attributes))
    with pytest.raises(PlateError, match=r"plate/A/1/0.*: "):
        _ = open_plate(tmp_path / "plate").fovs["A/1/0"].array
