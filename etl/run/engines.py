"""Chooses what runs the units of a build: threads, processes, SLURM (through submitit) or Dask.

Each is made as `executors.MakeExecutor` asks. Whichever runs them, units are the same functions of the same jobs, so
the bytes are the same. A unit whose worker is lost is run again, a few times.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dynaclr_wds.errors import BuildError, ConfigError
from etl.run.executors import Advance, Elsewhere, MakeExecutor, ThreadUnits
from etl.run.semaphores import naming_semaphores

if TYPE_CHECKING:
    from submitit import Job

EngineName = Literal["threads", "processes", "slurm", "dask"]
_MOST_TRIES = 3
"""How often a unit is run whose worker is lost each time."""
_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What runs the units, and where."""

    name: EngineName = "threads"
    dask_address: str | None = None
    """Scheduler to connect to; None starts a cluster on this machine."""
    slurm: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of submitit, such as `slurm_partition`, `mem_gb`, `timeout_min`, `cpus_per_task`."""
    slurm_folder: Path = Path("slurm-logs")
    """Where SLURM's jobs leave their logs; every machine must see it."""

    def __post_init__(self) -> None:
        """Check that options are given to the engine that takes them.

        Raises
        ------
        ConfigError
            An unknown engine, or an option of another one.
        """
        if self.name not in get_args(EngineName):
            raise ConfigError(f"engine={self.name!r} must be one of {list(get_args(EngineName))}. Correct it.")
        if self.dask_address is not None and self.name != "dask":
            raise ConfigError(f"dask_address is for engine=dask, and engine={self.name}. Leave one of them out.")
        if self.slurm and self.name != "slurm":
            raise ConfigError(f"slurm={dict(self.slurm)} is for engine=slurm, and engine={self.name}. Leave one out.")

    def maker(self) -> MakeExecutor:
        """Return what makes the executor; imports the library of the engine.

        Raises
        ------
        ConfigError
            The library isn't installed, or SLURM isn't there.
        """
        if self.name == "threads":
            return ThreadUnits
        if self.name == "processes":
            return lambda workers, _advance: ProcessUnits(workers)
        return self._make_slurm("slurm") if self.name == "slurm" else self._make_dask()

    def _make_slurm(self, cluster: str) -> MakeExecutor:
        try:
            import submitit
        except ImportError as error:
            raise _missing("slurm", "submitit") from error
        if cluster == "slurm" and shutil.which("srun") is None:  # submitit would run all jobs here at once
            raise ConfigError(
                "engine=slurm needs SLURM, but its command srun is not found on this machine. Start the build where "
                "jobs are submitted, perhaps after loading a module; or give engine=processes to run here."
            )

        def make(_workers: int, _advance: Advance) -> Executor:
            jobs = submitit.AutoExecutor(self.slurm_folder, cluster=cluster)
            jobs.update_parameters(**self.slurm)
            return SubmititUnits(jobs.submit)

        return Elsewhere(make)

    def _make_dask(self) -> MakeExecutor:
        try:
            import distributed
        except ImportError as error:
            raise _missing("dask", "dask") from error

        def make(workers: int, _advance: Advance) -> Executor:
            return DaskUnits(distributed, self.dask_address, workers)

        return make if self.dask_address is None else Elsewhere(make)


def _missing(engine: str, extra: str) -> ConfigError:
    return ConfigError(f"engine={engine} needs a library that isn't installed: pip install 'dynaclr-wds[{extra}]'.")


class ProcessUnits(Executor):
    """Processes of this machine; where one is killed, the units that were lost are run by new ones.

    Parameters
    ----------
    workers
        Processes.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._lock = threading.Lock()
        self._pool = self._make_pool()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a unit; see `concurrent.futures.Executor.submit`."""
        outer: Future[Any] = Future()
        self._try(outer, 1, fn, args, kwargs)
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def count_running(self) -> int:
        """Return how many units may run at a time."""
        return self._workers

    def _make_pool(self) -> ProcessPoolExecutor:
        # libraries have threads by now, which a fork may not survive
        context = multiprocessing.get_context("spawn")
        with naming_semaphores():
            return ProcessPoolExecutor(self._workers, mp_context=context, initializer=_end_with_parent)

    def _try(self, outer: Future[Any], tries: int, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        with self._lock:
            pool = self._pool
            try:
                inner = pool.submit(fn, *args, **kwargs)
            except BrokenProcessPool:
                pool = self._pool = self._make_pool()
                inner = pool.submit(fn, *args, **kwargs)

        def ended(done: Future[Any]) -> None:
            if done.cancelled():
                outer.cancel()
            if outer.cancelled():  # nobody asks any more
                return
            error = done.exception()
            if isinstance(error, BrokenProcessPool) and tries < _MOST_TRIES:
                self._try(outer, tries + 1, fn, args, kwargs)
            elif isinstance(error, BrokenProcessPool):
                outer.set_exception(_lost("A process of the build was killed", tries))
            elif error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(done.result())

        outer.add_done_callback(lambda future: inner.cancel() if future.cancelled() else None)
        inner.add_done_callback(ended)


def _end_with_parent() -> None:
    """End this process when its parent is killed: it would wait for units for ever, and go on with the one it has."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a pool started this process"

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), name="parent-watch", daemon=True).start()


class SubmititUnits(Executor):
    """Jobs of SLURM, by submitit; one that is lost (preempted, out of time, node down) is submitted again.

    Parameters
    ----------
    submit
        (function, arguments…) → submitit's job.
    poll_seconds
        How often jobs are asked whether they have ended.
    """

    def __init__(self, submit: Callable[..., Job[Any]], poll_seconds: float = _POLL_SECONDS) -> None:
        self._submit, self._poll_seconds = submit, poll_seconds
        self._running: dict[Future[Any], tuple[Job[Any], int, Any]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="submitit-jobs", daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a job; see `concurrent.futures.Executor.submit`."""
        future: Future[Any] = Future()
        job = self._submit(fn, *args, **kwargs)
        with self._lock:
            self._running[future] = job, 1, (fn, args, kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the jobs, or call them off."""
        while wait and not cancel_futures and self._running:
            time.sleep(self._poll_seconds / 10)
        self._over.set()
        self._thread.join()
        for future, (job, *_) in list(self._running.items()):
            job.cancel(check=False)
            future.cancel()

    def count_running(self) -> int:
        """Return how many jobs run, and don't wait in the queue of SLURM."""
        return sum(job.state == "RUNNING" for job, *_ in list(self._running.values()))

    def _watch(self) -> None:
        while not self._over.wait(self._poll_seconds):
            for future, (job, tries, call) in list(self._running.items()):
                if future.cancelled():
                    job.cancel(check=False)
                elif job.done():
                    self._end(future, job, tries, call)
                    continue
                else:
                    continue
                with self._lock:
                    del self._running[future]

    def _end(self, future: Future[Any], job: Job[Any], tries: int, call: Any) -> None:
        """Take what a job returned or raised; submit it again where it never came to an end."""
        from submitit.core.utils import FailedJobError, UncompletedJobError

        fn, args, kwargs = call
        error = job.exception()
        if isinstance(error, FailedJobError):  # the text of what the unit raised; its class stays where it was raised
            error = BuildError(f"SLURM job {job.job_id} failed: {_find_error(str(error))}\nIts log: {job.paths.stderr}")
        elif isinstance(error, UncompletedJobError):
            if tries < _MOST_TRIES:
                again = self._submit(fn, *args, **kwargs)
                with self._lock:
                    self._running[future] = again, tries + 1, call
                return
            error = _lost(f"SLURM job {job.job_id} ended without a result ({str(error).splitlines()[0]})", tries)
        with self._lock:
            del self._running[future]
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(job.result())


def _find_error(text: str) -> str:
    """Return what a unit raised of what submitit says, which is its whole traceback."""
    said = re.findall(r"^(?:dynaclr_wds\.errors\.\w+: )?(\S.*)$", text.rpartition("\n---")[0], re.MULTILINE)
    return said[-1] if said else text


class DaskUnits(Executor):
    """Workers of a Dask cluster; those that are lost are made up for by its scheduler.

    Parameters
    ----------
    distributed
        The library.
    address
        Of a scheduler; None starts processes on this machine.
    workers
        How many processes.
    """

    def __init__(self, distributed: Any, address: str | None, workers: int) -> None:
        self._stack = ExitStack()
        try:
            where = address or self._stack.enter_context(
                distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
            )
            self._client = self._stack.enter_context(distributed.Client(where, set_as_default=False))
        except OSError as error:
            raise ConfigError(
                f"dask_address={address!r}: no scheduler answers there ({error}). Start one, or correct the address."
            ) from error
        # not pure: units write files, so two calls with the same job are two calls
        self._inner = self._client.get_executor(pure=False)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a unit; see `concurrent.futures.Executor.submit`."""
        future: Future[Any] = self._inner.submit(fn, *args, **kwargs)
        return future

    def count_running(self) -> int:
        """Return how many units may run at a time, on the workers that are there now."""
        return sum(self._client.nthreads().values())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; end it if it was started here."""
        self._inner.shutdown(wait=wait and not cancel_futures)
        self._stack.close()


def _lost(what: str, tries: int) -> BuildError:
    return BuildError(
        f"{what}, {tries} times in the same unit; out of memory is the usual reason. Give --workers fewer, or more "
        "memory for each, and the same command again: what is finished stays."
    )
