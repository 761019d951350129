"""Mistakes with shards that are there: in building again, copying, looking at them."""

from __future__ import annotations

import os
import shutil

from tests.mistakes.world import Mistake, World
from tests.set_files import find_index

AGAIN = ["build", "experiments.yaml", "--out", "shards"]


def _other_options(world: World) -> list[str]:
    world.set_options(yx_patch_size=[12, 12])
    return AGAIN


def _dropped_experiment(world: World) -> list[str]:
    world.edit_yaml(lambda document: document["experiments"].pop())
    return AGAIN


def _lost_tracks(world: World) -> list[str]:
    world.set_experiment(tracks_path="trakcs")
    return AGAIN


def _other_well(world: World) -> list[str]:
    world.set_experiment(condition_wells={"control": ["A/9"]})
    return AGAIN


def _not_empty(world: World) -> list[str]:
    folder = world.root / "results"
    folder.mkdir()
    (folder / "figure.png").write_bytes(b"a figure")
    return ["build", "experiments.yaml", "--out", "results"]


def _a_file(world: World) -> list[str]:
    (world.root / "out").write_text("text")
    return ["build", "experiments.yaml", "--out", "out"]


def _read_only(world: World) -> list[str]:
    (world.root / "locked").write_text("")  # a root user may write anywhere, so a file stands where a folder should
    return ["build", "experiments.yaml", "--out", "locked/shards"]


def _cut_shard(world: World) -> list[str]:
    shard = next(iter(sorted((world.root / "shards").rglob("*.tar"))))
    os.truncate(shard, shard.stat().st_size - 1024)
    return ["verify", "shards"]


def _bit_rot(world: World) -> list[str]:
    shard = next(iter(sorted((world.root / "shards").rglob("*.tar"))))
    with shard.open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    return ["verify", "shards"]


def _lost_shard(world: World) -> list[str]:
    next(iter(sorted((world.root / "shards").rglob("*.tar")))).unlink()
    return ["fit", "-c", world.config()]


def _no_index(world: World) -> list[str]:
    shutil.rmtree(world.root / "shards/index")
    return ["shuffle", "shards"]


def _format_9(world: World) -> list[str]:
    world.edit_json("shards/manifest.json", lambda document: document.update(version=9))
    return ["shuffle", "shards"]


def _other_index(world: World) -> list[str]:
    path = next(iter(sorted((find_index(world.root / "shards") / "arrays").glob("*.npy"))))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return ["shuffle", "shards"]


def _command(*argv: str):
    return lambda _: list(argv)


WITH_SHARDS = [
    Mistake(what="Builds with other options into a set that is there", make=_other_options),
    Mistake(what="Leaves an experiment of a finished set out", make=_dropped_experiment),
    Mistake(what="Misspells the folder of tracks beside a finished set", make=_lost_tracks),
    Mistake(what="Names a well that there is not beside a finished set", make=_other_well),
    Mistake(what="Builds into a folder that holds something else", make=_not_empty),
    Mistake(what="Builds into a file", make=_a_file),
    Mistake(what="Builds where nothing can be written", make=_read_only),
    Mistake(what="Copied a shard only in part", make=_cut_shard, status=1),
    Mistake(what="Has a bit that flipped", make=_bit_rot, status=1),
    Mistake(what="Lost a shard and trains", make=_lost_shard),
    Mistake(what="Copied shards without the index", make=_no_index),
    Mistake(what="Has shards of another format", make=_format_9),
    Mistake(what="Has an index that is damaged", make=_other_index),
    Mistake(what="Verifies a folder without shards", make=_command("verify", "e0")),
    Mistake(what="Verifies a bucket, without keys", make=_command("verify", "gs://bucket/shards")),
    Mistake(what="Shuffles a folder that is not there", make=_command("shuffle", "shard")),
    Mistake(
        what="Shuffles with a window that is too small",
        make=_command("shuffle", "shards", "--window_bytes", "100K"),
    ),
    Mistake(
        what="Shuffles with a window that is no size",
        make=_command("shuffle", "shards", "--window_bytes", "all"),
    ),
    Mistake(what="Shuffles with an unknown experiment", make=_command("shuffle", "shards", "--experiments", "e7")),
    Mistake(
        what="Shuffles with a batch larger than a group",
        make=_command("shuffle", "shards", "--batch_size", "4096"),
        status=0,
    ),
    Mistake(what="Previews without shards", make=_command("preview")),
    Mistake(
        what="Previews batches that an epoch does not have",
        make=_command("preview", "shards", "--data.tau_range", "[0.5, 1.5]", "--data.batch_size", "8", "--from", "900"),
    ),
    Mistake(
        what="Groups by a label that there is not",
        make=_command("shuffle", "shards", "--batch_group_by", "marker"),
    ),
    Mistake(
        what="Draws positives by columns and names none", make=_command("shuffle", "shards", "--positive", "columns")
    ),
    Mistake(
        what="Asks for a τ that the shards were not built for",
        make=_command("shuffle", "shards", "--tau_range", "0.5", "9"),
    ),
]
