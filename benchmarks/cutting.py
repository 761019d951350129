"""Measures what focus, reduction and rescaling cost at a build: CPU seconds and bytes, each beside a build without.

The same simulated stacks are built in every way, in turn and several times over, by one thread. CPU time is that of the
whole process, so that a busy machine changes it little; medians count.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config

FOCUS = {"window": 8, "channel": "Phase3D"}
RULE = {"default": "center", "fluorescence": "mip"}
WAYS: dict[str, Mapping[str, Any]] = {
    "8 slices of the stack": {"z_range": [4, 12]},
    "8 slices around the focus, from attributes": {"z_focus": FOCUS},
    "8 slices around the focus, measured": {"z_focus": FOCUS},
    "reduced to one slice": {"z_range": [4, 12], "z_reduction": RULE},
    "one slice": {"z_range": [8, 9]},
    "one slice, rescaled to smaller pixels (scale 0.8)": {"z_range": [8, 9], "reference_pixel_size_um": 0.52},
    "one slice, rescaled to larger pixels (scale 1.25)": {"z_range": [8, 9], "reference_pixel_size_um": 0.8125},
    "8 slices, rescaled to larger pixels (scale 1.25)": {"z_range": [4, 12], "reference_pixel_size_um": 0.8125},
}


def simulate(folder: Path, options: Sequence[str]) -> Path:
    """Write one plate of stacks of 16 slices; return the experiments.yaml."""
    flags = ["--experiments", "1", "--z", "16", *options]
    subprocess.run([sys.executable, "-m", "etl.simulate", str(folder), *flags], check=True, stdout=subprocess.DEVNULL)
    return folder / "experiments.yaml"


def add_focus(path: Path) -> None:
    """Write a focus into the attributes of every plate, as VisCy's quality control does."""
    import zarr

    for experiment in yaml.safe_load(path.read_text())["experiments"]:
        group = zarr.open_group(path.parent / experiment["data_path"], mode="r+")
        names = experiment["channel_names"]
        group.attrs["focus_slice"] = {name: {"dataset_statistics": {"z_focus_mean": 8.0}} for name in names}


def measure(path: Path, out: Path, options: Mapping[str, Any]) -> tuple[float, int, int]:
    """Build once; return CPU seconds, patches and bytes of the shards."""
    config = parse_build_config(path, {**options, "workers": 1, "yx_patch_size": 128})
    begin = time.process_time()
    manifest = build_shards(config, out)
    seconds = time.process_time() - begin
    shutil.rmtree(out)
    return seconds, sum(p.patches for p in manifest.partitions), sum(s.bytes for s in manifest.shards)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table: a row per way of building."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="512", help="pixels of an image along y and x")
    parser.add_argument("--frames", default="12")
    parser.add_argument("--cells", default="24", help="per field of view, in the first frame")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        flags = ["--size", arguments.size, "--frames", arguments.frames, "--cells", arguments.cells]
        plain, told = simulate(root / "plain", flags), simulate(root / "told", flags)
        add_focus(told)
        runs: dict[str, list[tuple[float, int, int]]] = {name: [] for name in WAYS}
        for _ in range(arguments.rounds):
            for name, options in WAYS.items():
                path = told if name.endswith("attributes") else plain
                runs[name].append(measure(path, root / "out", options))
    print("| | CPU seconds | ms a patch | MB |\n| --- | ---: | ---: | ---: |")
    for name, results in runs.items():
        seconds, (_, patches, size) = statistics.median(r[0] for r in results), results[0]
        print(f"| {name} | {seconds:.1f} | {1000 * seconds / patches:.2f} | {size / 1e6:,.0f} |")
    print(f"\n{patches} patches of 128 x 128, images of {arguments.size}, 2 channels, uint16")


if __name__ == "__main__":
    main()
