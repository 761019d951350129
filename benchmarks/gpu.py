"""Shards to gradients on one device: what each part of a training step costs, and whether anything waits for it.

A step takes a batch of anchors and positives from our loader, copies it to the device on a side stream, normalises,
augments, crops and drops channels, and runs encoder and loss forwards and backwards in bfloat16. Each part is timed by
itself on one batch; then whole steps run one after the other, as in a training. On a CPU there is no side stream and no
page-locked memory; the rest is the same, and smaller.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dynaclr_wds.shardset import ShardSet

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `benchmarks`, which is not installed
from benchmarks.gpu_step import KEYS, Batch, Setting, Step, copy_beside, endless, make_loader
from benchmarks.gpu_training import run_training
from benchmarks.kornia_chain import KorniaChain
from benchmarks.loader import make_shards, warm

KORNIA = "augment by Kornia, channel by channel"


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, by the device's own clock where it has one."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def count_bytes(batch: Batch) -> int:
    """Bytes of the patches of a batch."""
    return sum(batch[key].numel() * batch[key].element_size() for key in KEYS)


def list_parts(step: Step, batch: Batch) -> dict[str, tuple[Callable[[], object], int]]:
    """List the parts of a step, on one batch: name → what to call, and bytes of the patches that it takes in."""
    setting, parts = step.setting, {}

    def add(name: str, call: Callable[[Batch], object], given: Batch) -> None:
        parts[name] = (lambda: call(given)), count_bytes(given)

    if setting.on_gpu:
        pageable = {k: v.clone() if isinstance(v, Tensor) else v for k, v in batch.items()}
        locked = {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in pageable.items()}
        add("copy, pageable", step.copy, pageable)
        add("copy, page-locked", step.copy, locked)
    else:
        add("copy", lambda given: {key: given[key].clone() for key in KEYS}, batch)
    moved = step.copy(batch)
    normalised = step.normalise(moved, training=True)
    augmented = step.augment(normalised, training=True)
    chain = KorniaChain(planes=batch["anchor"].shape[2]).to(setting.device)
    add("normalise", lambda given: step.normalise(given, training=True), moved)
    add("augment", lambda given: step.augment(given, training=True), normalised)
    add("crop, drop", lambda given: step.finish(given, training=True), augmented)
    add("encoder, loss, optimizer", step.learn, step.finish(augmented, training=True))
    add(KORNIA, lambda given: [chain(given[key]) for key in KEYS], normalised)
    return parts


def time_parts(step: Step, batch: Batch) -> dict[str, tuple[list[float], int]]:
    """Time the parts in turn, several times over, after one round that does not count: seconds and bytes of each."""
    parts = list_parts(step, batch)
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(step.setting.steps + 1):
        for name, (call, _) in parts.items():
            took = time_call(call, step.setting.device)
            if number:
                seconds[name].append(took)
    return {name: (seconds[name], size) for name, (_, size) in parts.items()}


def run_steps(step: Step, batches: Iterator[Batch]) -> tuple[float, float]:
    """Run whole steps; return seconds a step, and the share of the time that the device computes.

    A GPU says itself when it computed; on a CPU it is the time after a batch came, as the loader's threads compute too.
    """
    setting = step.setting
    ready = copy_beside(batches, step)
    step.run(next(ready))
    if setting.on_gpu:
        return _run_profiled(step, ready)
    working, begin = 0.0, time.perf_counter()
    for _ in range(setting.steps):
        batch = next(ready)
        came = time.perf_counter()
        step.run(batch)
        working += time.perf_counter() - came
    took = time.perf_counter() - begin
    return took / setting.steps, working / took


def _run_profiled(step: Step, ready: Iterator[Batch]) -> tuple[float, float]:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(step.setting.steps):
        step.run(next(ready))
    torch.cuda.synchronize()
    took = (time.perf_counter() - begin) / step.setting.steps
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(step.setting.steps):
            step.run(next(ready))
        torch.cuda.synchronize()
    return took, share_busy(list_spans(profile))


def list_spans(profile: torch.profiler.profile) -> list[tuple[float, float]]:
    """List begin and end of all that a GPU computed; copies are not among it."""
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [(e.time_range.start, e.time_range.end) for e in events if not e.name.startswith(("Memcpy", "Memset"))]


def share_busy(spans: Sequence[tuple[float, float]]) -> float:
    """Return the share of the time from the first begin to the last end in which at least one span is open."""
    busy, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return busy / (reached - min(begin for begin, _ in spans))


def find_wait(step: Step, batches: Iterator[Batch]) -> str | None:
    """Run whole steps while torch raises at every call that waits for the GPU; return what it says, or None."""
    read = [next(batches) for _ in range(3)]
    step.run(step.copy(read[0]))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in copy_beside(read, step):
            step.run(batch)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def report(setting: Setting) -> None:
    """Measure, and print a table."""
    name = torch.cuda.get_device_name(setting.device) if setting.on_gpu else platform.machine()
    shape = "x".join(map(str, setting.shards.manifest.experiments[0].shape))
    print(f"{name}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads of torch, torch {torch.__version__}")
    print(f"{setting.backbone}, batches of {setting.batch_size} samples, patches {shape} cropped to {setting.final}\n")
    loader = make_loader(setting)
    for batch in loader:  # mapped pages are touched for the first time
        del batch
    step, batches = Step(setting), endless(loader)
    parts = time_parts(step, next(batches))
    took, busy = run_steps(step, batches)
    print(f"{'':40}{'ms':>10}{'GB/s':>8}{'of a step':>12}")
    for part, (times, size) in parts.items():
        seconds = statistics.median(times)
        print(f"{part:40}{seconds * 1e3:10,.1f}{size / seconds / 1e9:8.2f}{seconds / took:12.1%}")
    print(f"{'whole step':40}{took * 1e3:10,.1f}{'':8}{setting.batch_size / took:12,.0f} samples/s")
    ratio = statistics.median(k / own for k, own in zip(parts[KORNIA][0], parts["augment"][0], strict=True))
    print(f"\nKornia, channel by channel, takes {ratio:.1f} times as long as our augmentations.")
    print(f"The device computes {busy:.1%} of the time.")
    if setting.on_gpu:
        wait = find_wait(step, batches)
        print("Nothing waits for the device." if wait is None else f"Something waits for the device: {wait}")
    del step, batches
    clock = run_training(setting)
    print(f"\nA training by Lightning: {clock.seconds * 1e3:,.1f} ms a step, ", end="")
    print(f"{setting.batch_size / clock.seconds:,.0f} samples/s", end="")
    print("." if clock.profile is None else f"; the device computes {share_busy(list_spans(clock.profile)):.1%} of it.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python benchmarks/gpu.py", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if gpu else "cpu", help="(%(default)s)")
    parser.add_argument("--shards", type=Path, help="a shard set; simulated in a temporary folder when left out")
    parser.add_argument("--patch", type=int, help="of simulated shards: height and width (192; on a CPU 96)")
    parser.add_argument("--planes", type=int, default=1, help="of simulated shards: slices of a stack (%(default)s)")
    parser.add_argument("--final", type=int, help="height and width that the network sees (160; on a CPU 64)")
    parser.add_argument("--gib", type=float, help="of simulated shards, about (2; on a CPU 0.1)")
    parser.add_argument("--batch_size", type=int, help="samples (256; on a CPU 32)")
    parser.add_argument("--backbone", help="(resnet50; on a CPU resnet10)")
    parser.add_argument("--threads", type=int, default=2, help="of our loader (%(default)s)")
    parser.add_argument("--steps", type=int, help="that are timed (20; on a CPU 5)")
    given = vars(parser.parse_args(arguments))
    small = {"patch": 96, "final": 64, "gib": 0.1, "batch_size": 32, "backbone": "resnet10", "steps": 5}
    large = {"patch": 192, "final": 160, "gib": 2.0, "batch_size": 256, "backbone": "resnet50", "steps": 20}
    chosen = (small if given["device"] == "cpu" else large) | {k: v for k, v in given.items() if v is not None}
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.get("shards") or make_shards(
            Path(folder), chosen["patch"], "source", chosen["gib"], chosen["planes"]
        )
        shards = ShardSet.open(path)
        warm(shards)
        names = ("batch_size", "threads", "final", "backbone", "steps")
        setting = Setting(shards=shards, device=torch.device(chosen["device"]), **{n: chosen[n] for n in names})
        report(setting)
    return 0


if __name__ == "__main__":
    sys.exit(main())
