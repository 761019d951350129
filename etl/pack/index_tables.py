"""Writes the parquet tables of the index, which say with names what the arrays say.

Rows come group by group and are written by so many at a time, in a thread of their own: the bytes don't depend on where
groups end, and of the rows no more are in memory than what is written next.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int, UInt64

from dynaclr_wds.contract import LEVELS, NO_ID, STATISTICS, FileRecord
from etl.labels import encode_names
from etl.pack.joining import GroupRows, JoinedParts
from etl.run.output import HashingFile, writing

_AT_A_TIME = 1 << 20
"""Rows of a row group of parquet."""
_INTERNAL = ("experiment_index", "fov_index", "partition_index")
_COUNTED = {"observation": "obs", "track_index": "track", "lineage_index": "lineage"}
"""Column of the observations → what its numbers count."""


class _Sink(io.RawIOBase):
    """What pyarrow writes to. It ends its files whatever happens, so after an error nothing is written any more."""

    def __init__(self, file: HashingFile) -> None:
        self._file, self.is_broken = file, False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data) if self.is_broken else self._file.write(data)

    def tell(self) -> int:
        return self._file.bytes


class TableFile:
    """A parquet table that is written piece by piece, behind the caller."""

    def __init__(self, file: HashingFile, pool: ThreadPoolExecutor) -> None:
        self._file, self._sink, self._pool = file, _Sink(file), pool
        self._writer: pq.ParquetWriter | None = None
        self._pieces: deque[pa.Table] = deque()
        self._rows = 0
        self._waiting: deque[tuple[Future[None], int]] = deque()

    def append(self, count: int, make: Callable[[], pa.Table]) -> None:
        """Have rows made and written; waits while too many are waiting.

        Parameters
        ----------
        count
            Rows.
        """
        while self._waiting and sum(rows for _, rows in self._waiting) + count > _AT_A_TIME:
            self._waiting.popleft()[0].result()
        self._waiting.append((self._pool.submit(lambda: self._add(make())), count))

    def finish(self) -> None:
        """Write the rows that are left, and the end of the file."""
        for future, _ in self._waiting:
            future.result()
        if self._rows:
            self._write(self._rows)
        if self._writer is not None:
            self._writer.close()

    def give_up(self) -> None:
        """Write nothing more."""
        self._sink.is_broken = True
        for future, _ in self._waiting:
            future.cancel()

    def describe(self, path: str) -> FileRecord:
        """Return the record of the file."""
        return FileRecord(path=path, bytes=self._file.bytes, xxh3=self._file.xxh3)

    def close(self) -> None:
        """Let go of pyarrow's writer, which would write on when it is thrown away."""
        if self._writer is not None:
            self._writer.is_open = False

    def _add(self, rows: pa.Table) -> None:
        self._pieces.append(rows)
        self._rows += len(rows)
        while self._rows >= _AT_A_TIME:
            self._write(_AT_A_TIME)

    def _write(self, count: int) -> None:
        taken: list[pa.Table] = []
        self._rows -= count
        while count:
            piece = self._pieces.popleft()
            taken.append(piece.slice(0, count))
            if len(piece) > count:
                self._pieces.appendleft(piece.slice(count))
            count -= len(taken[-1])
        table = _join_pieces(taken)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._sink, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=_AT_A_TIME)


@contextmanager
def writing_table(path: Path) -> Iterator[TableFile]:
    """Write a table that gets its name when the block ends."""
    with writing(path) as file:
        pool = ThreadPoolExecutor(1, thread_name_prefix="table")
        table = TableFile(file, pool)
        try:
            yield table
            table.finish()
        except BaseException:
            table.give_up()
            raise
        finally:
            pool.shutdown()
            table.close()


class NamedRows:
    """Makes the rows of both tables from those of a group."""

    def __init__(self, joined: JoinedParts, fovs: Sequence[str]) -> None:
        self._experiments, names = joined.experiments, tuple(dict.fromkeys(fovs))
        self._place = {name: number for number, name in enumerate(names)}
        self._values = {label.name: pa.array(label.values, pa.string()) for label in joined.labels}
        self._values["fov_name"] = pa.array(names, pa.string())

    def name_observations(self, rows: GroupRows) -> pa.Table:
        """One row per observation."""
        table = rows.index.observations.drop_columns(list(_INTERNAL))
        fov = np.array([self._place[fov.fov_name] for fov in rows.index.fovs], np.int32)
        codes = {**rows.labels, "fov_name": fov[rows.index.observations["fov_index"].to_numpy()]}
        columns = {name: table[name] for name in table.column_names}
        for name, values in codes.items():
            indices = pa.array(values, mask=values < 0)
            columns[name] = pa.DictionaryArray.from_arrays(indices, self._values[name])
        for name, kind in _COUNTED.items():
            columns[name] = columns[name].to_numpy() + np.int32(rows.before[kind])
        return pa.table(columns)

    def name_patches(self, rows: GroupRows) -> pa.Table:
        """One row per stored patch."""
        part, before = rows.part.arrays, rows.before
        clip = np.repeat(np.arange(part["clip_key"].size, dtype=np.int32), np.diff(part["clip_first"]))
        block = np.repeat(np.arange(part["block_shard"].size, dtype=np.int32), np.diff(part["block_first"]))[clip]
        size = np.full(clip.size, self._experiments[rows.experiment].patch_bytes)
        shards = [shard.path for shard in rows.part.shards]
        return pa.table(
            {
                "observation": part["patch_obs"] + np.int32(before["obs"]),
                "clip": encode_names(_write_keys(part["clip_key"]), clip),
                "shard": encode_names(shards, part["block_shard"][block].astype(np.int32)),
                "block": block + np.int32(before["block"]),
                "offset": part["patch_offset"],
                "bytes": part["patch_stored"].sum(axis=1, dtype=np.int64) if "patch_stored" in part else size,
                "t": part["patch_t"],
                "is_sample": part["patch_is_sample"],
                "has_candidate": part["patch_has_candidate"],
            }
        )


def _write_keys(keys: UInt64[np.ndarray, " clips"]) -> pa.Array:
    """Write numbers as 16 hexadecimal digits."""
    digits, raw = np.frombuffer(b"0123456789abcdef", np.uint8), keys.astype(">u8").view(np.uint8)
    text = np.stack([digits[raw >> 4], digits[raw & 15]], axis=1)
    edges = np.arange(0, 16 * keys.size + 1, 16, dtype=np.int32)
    return pa.StringArray.from_buffers(keys.size, pa.py_buffer(edges), pa.py_buffer(text))


def _join_pieces(pieces: Sequence[pa.Table]) -> pa.Table:
    """Join tables; of a column of names the dictionary holds those that are there, in the order of the pieces."""
    whole = pa.concat_tables(pieces)
    columns = {}
    for name in whole.column_names:
        chunks = whole[name].chunks
        is_name = pa.types.is_dictionary(whole[name].type)
        columns[name] = _join_names(chunks) if is_name else pa.concat_arrays(chunks)
    return pa.table(columns)


def _join_names(chunks: Sequence[pa.DictionaryArray]) -> pa.DictionaryArray:
    values: list[pa.Array] = []
    codes, before = [], 0
    for chunk in chunks:
        if not values or not chunk.dictionary.equals(values[-1]):
            before = sum(map(len, values))
            values.append(chunk.dictionary)
        own = chunk.indices.fill_null(NO_ID).to_numpy()
        codes.append(np.where(own < 0, own, own + np.int32(before)))
    return encode_names(pa.concat_arrays(values), np.concatenate(codes))


def make_stats_table(joined: JoinedParts) -> pa.Table:
    """One row per (level, experiment, fov, t, channel)."""
    tables = [joined.arrays[f"stats_{level}"] for level in LEVELS]
    first, fovs = joined.arrays["fov_first_frame"], len(joined.fovs)
    frames = np.diff(first)
    names = [experiment.name for experiment in joined.experiments]
    fov_of_frame = np.repeat(np.arange(fovs), frames)
    t = np.arange(first[-1]) - first[fov_of_frame]
    none = np.full(len(names), -1)
    experiment = np.concatenate([joined.fov_experiment[fov_of_frame], joined.fov_experiment, np.arange(len(names))])
    fov = np.concatenate([fov_of_frame, np.arange(fovs), none])
    frame = np.concatenate([t, np.full(fovs, -1), none])
    values = np.concatenate(tables)
    level = np.repeat(np.arange(len(LEVELS)), [len(table) for table in tables])
    width = values.shape[1]
    channels = sorted({name for record in joined.experiments for name in record.source_channel})
    named = [[channels.index(name) for name in record.source_channel] for record in joined.experiments]
    channel = np.array([row + [-1] * (width - len(row)) for row in named])  # -1 fills up
    wide = [np.repeat(column, width) for column in (level, experiment, fov, frame)]
    table = pa.table(
        {
            "level": _names(list(LEVELS), wide[0]),
            "experiment": _names(names, wide[1]),
            "fov_name": _names([fov.fov_name for fov in joined.fovs], wide[2]),
            "t": pa.array(wide[3].astype(np.int32), mask=wide[3] < 0),
            "channel": _names(channels, channel[experiment].ravel()),
            **{name: values[..., column].ravel() for column, name in enumerate(STATISTICS)},
        }
    )
    return table.filter(pc.is_valid(table["channel"]))


def _names(names: Sequence[str], rows: Int[np.ndarray, " n"]) -> pa.Array:
    """Make a column of names; null where the row is negative."""
    values = pa.array(names, pa.string())
    return values.take(pa.array(rows.astype(np.int64), mask=rows < 0)).dictionary_encode()
