"""Writes the index files, arrays and parquet tables, and makes the manifest that comes last.

Every array of `contract.ARRAYS` is a plain `.npy` that readers memory-map; the parquet tables say the same with names,
for people and other tools. Rows come group by group, in the order of the index; files are written whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dynaclr_wds.contract import OBSERVATIONS, PATCHES, STATS, FileRecord, Manifest, SourceRecord, index_folder
from etl.pack.array_files import writing_arrays
from etl.pack.fov_runs import GroupParts
from etl.pack.index_tables import NamedRows, make_stats_table, writing_table
from etl.pack.joining import GroupRows, JoinedParts
from etl.run.output import naming_file
from etl.source.experiments import BuildConfig
from etl.suspicious.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedIndex:
    """An index in the folder that it has in the set."""

    folder: str
    """Relative to the set, named by a hash of what is in it."""
    files: tuple[FileRecord, ...]


def write_index(
    staged: Path, parts: GroupParts, joined: JoinedParts, groups: Iterable[GroupRows]
) -> tuple[FileRecord, ...]:
    """Write the arrays and tables of an index to a folder; return its files, with paths relative to it.

    Parameters
    ----------
    groups
        As `etl.pack.joining.read_rows`.
    """
    named = NamedRows(joined, [fov.fov_name for fov in parts.index.fovs])
    with (
        writing_arrays(staged, joined, parts.config.codec) as arrays,
        writing_table(staged / OBSERVATIONS) as observations,
        writing_table(staged / PATCHES) as patches,
        writing_table(staged / STATS) as statistics,
    ):
        for rows in groups:
            observations.append(len(rows.index.observations), partial(named.name_observations, rows))
            patches.append(rows.part.arrays["patch_t"].size, partial(named.name_patches, rows))
            arrays.append(rows)
        table = make_stats_table(joined)
        statistics.append(len(table), lambda: table)
    tables = {OBSERVATIONS: observations, PATCHES: patches, STATS: statistics}
    return (*arrays.list_records(), *(table.describe(path) for path, table in tables.items()))


def name_index(staged: Path, written: Path, files: Sequence[FileRecord]) -> NamedIndex:
    """Move the index that `write_index` has written to its place among staged files."""
    folder = index_folder({file.path: file.xxh3 for file in files})
    place = staged / folder
    with naming_file(place):
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        written.rename(place)
    return NamedIndex(folder=folder, files=tuple(replace(file, path=f"{folder}/{file.path}") for file in files))


def make_manifest(
    config: BuildConfig,
    joined: JoinedParts,
    sources: Sequence[SourceRecord],
    named: NamedIndex,
    parts: Sequence[FileRecord],
    report: Report,
) -> Manifest:
    """Make the manifest of a set whose files are written.

    Parameters
    ----------
    sources
        Fingerprint of every FOV that was asked for.
    """
    return Manifest(
        config_hash=config.token,
        config=config.as_record(),
        tau_range_hours=config.tau_range_hours,
        experiments=joined.experiments,
        fovs=joined.fovs,
        labels=joined.labels,
        shard_by=config.shard_by,
        partitions=joined.partitions,
        shards=joined.shards,
        codec=config.codec,
        index=named.folder,
        files=(*named.files, *parts),
        sources=tuple(sources),
        dropped=report.dropped,
        facts=report.facts,
        suspicious=report.suspicious,
    )
