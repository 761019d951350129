"""Laws of ThreadDataLoader: order, bounds, errors and ends, whatever the threads do."""

import json
import random
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.errors import FormatError
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.read.loader import PLANS_AHEAD, ThreadDataLoader
from tests.synthetic import Synthetic, make_index


class Numbers:
    """Returns the numbers that it is asked for, after a while, and remembers who was reading how much."""

    def __init__(self, wait=lambda _: 0.0, fail_at: int | None = None) -> None:
        self.wait = wait
        self.fail_at = fail_at
        self.asked = 0
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return 100

    def __getitems__(self, numbers):
        self.asked += 1
        self.threads.add(threading.current_thread().name)
        time.sleep(self.wait(numbers))
        if numbers == [self.fail_at]:
            raise OSError(f"number {self.fail_at} can't be read")
        return list(numbers)


class Plans:
    """A batch sampler of plans that are their numbers, endless if asked to be."""

    def __init__(self, count: int, fail_at: int | None = None) -> None:
        self.count, self.fail_at, self.planned = count, fail_at, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        for number in range(self.count):
            if number == self.fail_at:
                raise RuntimeError(f"no plan for batch {number}")
            self.planned = number + 1
            yield [number]


def ours() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("dynaclr-")]


def wait_for_all_to_end() -> None:
    end = time.monotonic() + 5
    while ours() and time.monotonic() < end:
        time.sleep(0.01)
    assert ours() == []


@pytest.mark.parametrize("num_workers", [0, 1, 2, 7])
def test_order_is_kept_whatever_the_threads_do(num_workers):
    rng = random.Random(3)
    data = Numbers(wait=lambda _: rng.choice([0, 0.001, 0.01]))
    loader = ThreadDataLoader(data, batch_sampler=Plans(60), num_workers=num_workers)
    assert list(loader) == [[n] for n in range(60)]
    assert list(loader) == [[n] for n in range(60)]
    assert len(loader) == 60
    if num_workers == 0:
        assert data.threads == {"MainThread"}
    else:
        assert len(data.threads) == num_workers
    assert ours() == []


def test_sequential_batches_need_no_sampler():
    loader = ThreadDataLoader(Numbers(), batch_size=30, num_workers=2)
    assert [len(batch) for batch in loader] == [30, 30, 30, 10]
    assert [n for batch in loader for n in batch] == list(range(100))
    assert loader.state_dict() == {}
    loader.load_state_dict({})


@pytest.mark.parametrize(("num_workers", "prefetch_factor"), [(1, 1), (2, 2), (3, 1)])
def test_no_more_is_read_ahead_than_asked_for(num_workers, prefetch_factor):
    data, plans = Numbers(), Plans(150)
    loader = ThreadDataLoader(data, batch_sampler=plans, num_workers=num_workers, prefetch_factor=prefetch_factor)
    for delivered, _ in enumerate(loader):
        time.sleep(0.002)
        assert data.asked <= delivered + num_workers * prefetch_factor
        assert plans.planned <= delivered + num_workers * prefetch_factor + PLANS_AHEAD + 1


def test_nothing_is_read_before_the_first_batch_is_asked_for():
    data = Numbers()
    iterator = iter(ThreadDataLoader(data, batch_sampler=Plans(50), num_workers=2))
    time.sleep(0.02)
    assert (data.asked, ours()) == (0, [])
    next(iterator)
    assert data.asked > 0
    iterator.close()
    assert ours() == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_a_thread_is_raised_in_its_turn(num_workers):
    loader = ThreadDataLoader(Numbers(fail_at=5), batch_sampler=Plans(60), num_workers=num_workers)
    iterator = iter(loader)
    assert [next(iterator) for _ in range(5)] == [[n] for n in range(5)]
    with pytest.raises(OSError, match="number 5 can't be read") as error:
        next(iterator)
    assert error.value.__notes__ == ["while reading samples 5 to 5 in sequence"]
    assert ours() == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_the_plan_is_raised_in_its_turn(num_workers):
    iterator = iter(ThreadDataLoader(Numbers(), batch_sampler=Plans(60, fail_at=5), num_workers=num_workers))
    assert [next(iterator) for _ in range(5)] == [[n] for n in range(5)]
    with pytest.raises(RuntimeError, match="no plan for batch 5"):
        next(iterator)
    assert ours() == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_missing_shard_is_named_in_the_caller(shards, tmp_path, num_workers):
    copied = shutil.copytree(shards, tmp_path / "shards")
    data = MultiExperimentDataModule(
        shards=str(copied), batch_size=8, tau_range=(0.5, 1.5), val_experiments=["e3"], num_workers=num_workers
    )
    data.setup("fit")
    shard = next(copied.glob("e1/*.tar"))
    shard.unlink()
    with pytest.raises(FormatError, match=rf"e1/{shard.name}: is gone") as error:
        list(data.train_dataloader())
    member, batch = error.value.__notes__
    assert member.startswith(f"while reading {shard}, clip ")
    assert batch.startswith("while reading batch ")
    assert batch.endswith(" of the epoch")
    assert ours() == []


def test_break_ends_the_threads():
    for number, _ in enumerate(ThreadDataLoader(Numbers(), batch_sampler=Plans(10**9), num_workers=3)):
        if number == 2:
            break
    wait_for_all_to_end()


def test_break_ends_threads_that_are_waiting_for_a_slow_read():
    loader = ThreadDataLoader(Numbers(wait=lambda n: 0.2 if n[0] > 1 else 0), batch_sampler=Plans(100), num_workers=2)
    iterator = iter(loader)
    assert next(iterator) == [0]
    begin = time.monotonic()
    iterator.close()
    assert time.monotonic() - begin < 1  # waits for the reads under way, not for those that wait their turn
    assert ours() == []


def test_ctrl_c_ends_the_threads():
    main = threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
    timer = threading.Timer(0.1, lambda: signal.pthread_kill(main.ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        for _ in ThreadDataLoader(Numbers(wait=lambda _: 0.02), batch_sampler=Plans(10**9), num_workers=2):
            pass
    signal.signal(signal.SIGINT, before)
    timer.join()
    wait_for_all_to_end()


def test_an_error_of_the_training_step_ends_the_threads():
    def train() -> None:
        for _ in ThreadDataLoader(Numbers(), batch_sampler=Plans(10**9), num_workers=2):
            raise ZeroDivisionError("the step failed")

    with pytest.raises(ZeroDivisionError, match="the step failed"):
        train()
    wait_for_all_to_end()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_workers": -1}, "num_workers=-1 must be >= 0"), ({"prefetch_factor": 0}, "prefetch_factor=0 must be >= 1")],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ThreadDataLoader(Numbers(), batch_sampler=Plans(3), **options)


class Anchors(Numbers):
    """Returns the anchors of a plan."""

    def __getitems__(self, plan):
        time.sleep(self.wait(plan))
        return plan.anchor.tolist()


def loader_of(seed: int = 0, world_size: int = 1, rank: int = 0, num_workers: int = 2) -> ThreadDataLoader:
    sampler = FlexibleBatchSampler(
        make_index(Synthetic(lineages=(30, 10))),
        SamplingConfig(batch_size=16, seed=seed),
        rank=rank,
        world_size=world_size,
    )
    return ThreadDataLoader(Anchors(), batch_sampler=sampler, num_workers=num_workers)


@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("threads_after", [0, 1, 3])
def test_state_counts_what_was_delivered_not_what_was_read_ahead(stop, threads_after):
    whole = list(loader_of())
    loader = loader_of()
    iterator = iter(loader)
    before = [next(iterator) for _ in range(stop)]
    state = loader.state_dict()
    iterator.close()
    assert (state["epoch"], state["position"], state["steps"]) == (0, stop, stop)
    assert json.loads(json.dumps(state)) == state
    again = loader_of(num_workers=threads_after)
    again.load_state_dict(state)
    assert len(again) == len(whole)
    assert before + list(again) == whole


def test_ranks_go_on_together():
    whole = list(loader_of())
    usable = len(whole) // 2 * 2
    loaders = [loader_of(world_size=2, rank=rank) for rank in range(2)]
    iterators = [iter(loader) for loader in loaders]
    got = [next(iterator) for _ in range(3) for iterator in iterators]
    assert loaders[0].state_dict() == loaders[1].state_dict()
    state = loaders[0].state_dict()
    for iterator in iterators:
        iterator.close()
    rest = []
    for rank in range(2):
        loader = loader_of(world_size=2, rank=rank)
        loader.load_state_dict(state)
        rest.append(list(loader))
    got += [batch for pair in zip(*rest, strict=True) for batch in pair]
    assert got == whole[:usable]


def test_batches_do_not_share_memory_while_they_are_read(shards):
    data = MultiExperimentDataModule(
        shards=str(shards), batch_size=8, tau_range=(0.5, 1.5), val_experiments=["e3"], num_workers=3
    )
    data.setup("fit")
    kept = [(batch["anchor"], batch["anchor"].clone()) for batch in data.train_dataloader()]
    assert all(np.array_equal(batch, copy) for batch, copy in kept)
    assert len({batch.data_ptr() for batch, _ in kept}) == len(kept)
