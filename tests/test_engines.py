"""Whatever runs the units of a build, and in how many parts, the bytes are the same; a lost unit is run again."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import etl.unit.build
from dynaclr_wds.errors import BuildError
from etl.build_shards import build_part, build_shards, main
from etl.run.engines import Engine, ProcessUnits, SubmititUnits
from etl.run.executors import ThreadUnits
from etl.source.experiments import parse_build_config
from tests.lost_workers import count_units, die_always, die_once, fail, read_units
from tests.plates import make_collection
from tests.set_files import digests
from tests.test_build import Killed

pytestmark = pytest.mark.usefixtures("without_fsync")

SMALL = {"shard_bytes": 60_000, "block_bytes": 10_000, "group_bytes": 150_000, "segment_frames": 5, "workers": 2}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_collection(tmp_path_factory.mktemp("collection"), **SMALL)


@pytest.fixture(scope="module")
def by_threads(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("built") / "shards"
    manifest = build_shards(parse_build_config(collection, {}), out)
    assert len([file for file in manifest.files if "part" in file.path]) >= 4, "several units"
    return digests(out)


@contextmanager
def local_jobs(folder: Path) -> Iterator[Executor]:
    """submitit's own executor for one machine, as `engine: slurm` uses the one for SLURM."""
    make = Engine(name="slurm", slurm_folder=folder, slurm={"timeout_min": 5})._make_slurm(cluster="local")
    with make(2, lambda _done, _size: None) as executor:
        yield executor


def check_units(log: Path) -> None:
    """Each unit ended once, and one began twice: the one whose process was killed."""
    units = read_units(log)
    assert sorted(units["end"]) == sorted(set(units["begin"]))
    assert len(units["begin"]) == len(units["end"]) + 1


@pytest.mark.slow
def test_a_job_that_is_killed_costs_its_unit_only(collection: Path, by_threads: dict[str, str], tmp_path: Path):
    units = Engine(name="slurm", slurm_folder=tmp_path / "logs")._make_slurm(cluster="local")
    make = count_units(units, tmp_path / "units.log", kill_at=1)
    build_shards(parse_build_config(collection, {}), tmp_path / "out", make_executor=make)
    assert digests(tmp_path / "out") == by_threads
    check_units(tmp_path / "units.log")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # distributed leaves sockets to the collector
def test_a_dask_worker_that_is_killed_costs_its_unit_only(collection: Path, by_threads: dict[str, str], tmp_path: Path):
    make = count_units(Engine(name="dask").maker(), tmp_path / "units.log", kill_at=1)
    build_shards(parse_build_config(collection, {}), tmp_path / "out", make_executor=make)
    assert digests(tmp_path / "out") == by_threads
    check_units(tmp_path / "units.log")


@pytest.mark.slow
def test_a_unit_whose_process_is_killed_is_run_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with ProcessUnits(1) as executor:
        found = [executor.submit(die_once, str(tmp_path / name)) for name in "ab"]
        assert [future.result(60) for future in found] == ["done a", "done b"]
        with pytest.raises(ValueError, match="no luck"):
            executor.submit(fail, "luck").result(60)
        with pytest.raises(BuildError, match="A process of the build was killed, 3 times in the same unit"):
            executor.submit(die_always, "").result(60)
        called_off = executor.submit(time.sleep, 0.5)
        called_off.cancel()
    assert called_off.cancelled()
    assert not caplog.records, "it was told as a fault that nobody waits for the result"


@pytest.mark.slow
def test_processes_leave_out_the_fields_of_view_that_threads_leave_out(tmp_path: Path):
    collection = make_collection(tmp_path, experiments=1, fovs=("A/1/0", "A/1/1"), shape=(5, 2, 1, 32, 32))
    frame = collection.parent / "experiment0/plate.zarr/A/1/1/0/2"
    chunk = sorted(path for path in frame.rglob("*") if path.is_file())[0]
    chunk.write_bytes(b"x" * chunk.stat().st_size)
    config = parse_build_config(collection, {"on_bad_fov": "skip", "workers": 1})
    skipped = build_shards(config, tmp_path / "threads").skipped
    assert [(record.fov_name, "frame 2 can't" in record.reason) for record in skipped] == [("A/1/1", True)]
    build_shards(config, tmp_path / "processes", make_executor=Engine(name="processes").maker())
    assert digests(tmp_path / "processes") == digests(tmp_path / "threads")


@pytest.mark.slow
def test_a_job_that_slurm_lost_is_submitted_again_and_one_that_failed_is_told(tmp_path: Path):
    with local_jobs(tmp_path / "logs") as executor:
        found = executor.submit(die_once, str(tmp_path / "a"))
        failed = executor.submit(fail, "luck")
        assert found.result(60) == "done a"
        with pytest.raises(BuildError, match=r"^SLURM job \S+ failed: ValueError: no luck\nIts log: "):
            failed.result(60)


def test_parts_in_any_order_and_twice_make_the_same_bytes(
    collection: Path, by_threads: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    common = [str(collection), "--out", str(out)]
    for part in ("3/4", "1/4", "3/4", "4/4"):
        assert main([*common, "--part", part]) == 0
    assert not (out / "manifest.json").exists()
    assert main([*common, "--finish"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"\d groups? of \d+ (is|are) not built yet \(number 2 is the first\)", error)
    assert "Run --part 2/4, then --finish; or leave out --finish, and this command builds them." in error
    assert main([*common, "--part", "2/4"]) == 0
    assert "part 2/4: its " in capsys.readouterr().err
    assert main([*common, "--finish", "--memory_limit", "1M"]) == 0  # a small machine will do
    assert digests(out) == by_threads
    assert main([*common, "--part", "2/4"]) == 0  # a part that was requeued for nothing
    assert digests(out) == by_threads


@pytest.mark.parametrize("killed", ["", "first", "requeued"])
def test_a_part_that_is_requeued_while_its_first_copy_still_runs_harms_nothing(
    collection: Path, by_threads: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
):
    config, out = parse_build_config(collection, {}), tmp_path / "out"
    waits, goes_on, write = threading.Event(), threading.Event(), etl.unit.build.write_part

    def slow(*arguments: Any) -> Any:
        """Its shards are written, what says so is not."""
        copy = threading.current_thread().name.partition("_")[0]
        if copy == "first":
            waits.set()
            assert goes_on.wait(60)
        if copy == killed:
            raise Killed
        return write(*arguments)

    def build(copy: str) -> None:
        def make(workers: int, advance: Any) -> Executor:
            executor = ThreadUnits(workers, advance)
            executor._thread_name_prefix = copy
            return executor

        with suppress(Killed):
            build_part(config, out, "2/4", make_executor=make)

    monkeypatch.setattr(etl.unit.build, "write_part", slow)
    first = threading.Thread(target=build, args=("first",))
    first.start()
    assert waits.wait(60)
    build("requeued")
    goes_on.set()
    first.join(60)
    for part in ("1/4", "3/4", "4/4"):
        build_part(config, out, part)
    build_shards(config, out, finish=True)
    assert digests(out) == by_threads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part", "5/4"], "part=5/4: parts are 1/4 to 4/4"),
        (["--part", "2"], "part='2' must be i/n, such as 1/4"),
        (["--part", "1/2", "--repair"], "--part goes with --replace, --prune, --staging only, not with --repair"),
        (["--finish", "--overwrite"], "finish builds nothing, which overwrite and repair ask for"),
        (["--engine", "slurm"], "engine=slurm needs SLURM, but its command srun is not found on this machine."),
        (["--slurm", "mem_gb=4"], "slurm={'mem_gb': 4} is for engine=slurm, and engine=threads"),
        (["--dask_address", "tcp://127.0.0.1:1"], "dask_address is for engine=dask, and engine=threads"),
    ],
)
def test_options_that_do_not_fit_are_named(
    collection: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
):
    monkeypatch.setenv("PATH", "")  # on a machine of a cluster there is srun
    assert main([str(collection), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_jobs_that_are_called_off_are_cancelled():
    class Job:
        cancelled = False

        def done(self) -> bool:
            return False

        def cancel(self, check: bool) -> None:
            assert not check
            self.cancelled = True

    job = Job()
    executor = SubmititUnits(lambda *_: job, poll_seconds=0.01)  # type: ignore[arg-type,return-value]
    future = executor.submit(fail, "matter")
    executor.shutdown(cancel_futures=True)
    assert job.cancelled
    assert future.cancelled()
