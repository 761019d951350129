"""Lays out a group of FOVs: from its index and statistics to the contents of its shards. Pure."""

from __future__ import annotations

import numpy as np

from etl.cut.intensities import GroupStatistics
from etl.index import Index
from etl.labels import label_codes
from etl.layout.clips import plan_shards
from etl.layout.jobs import lineage_ids, plan_named_clips, read_columns
from etl.pack.contents import GroupContents, estimate_clip_bytes
from etl.unit.job import UnitJob


def lay_out(job: UnitJob, index: Index, statistics: GroupStatistics) -> GroupContents:
    """Put what is left of a group into clips, blocks and shards.

    Parameters
    ----------
    index
        Of the observations that stay, with the places of their stacks.
    """
    config, columns = job.config, read_columns(index.observations)
    clips, keys = plan_named_clips(config, index, columns, job.segment)
    clip_bytes = estimate_clip_bytes(clips, job.experiment)
    return GroupContents(
        digest=job.digest,
        experiment=job.experiment,
        codec=config.codec,
        clips=clips,
        keys=keys,
        shards=plan_shards(clips.clip_partition, clip_bytes, config.shard_bytes, config.block_bytes),
        labels=index.labels,
        label_codes={label.name: label_codes(index.observations, label) for label in index.labels},
        partitions=index.partitions,
        fovs=index.fovs,
        columns=columns,
        lineage_ids=lineage_ids(index, columns),
        first_frame=job.segment.first,
        fov_first_frame=np.cumsum([0, *(len(job.segment.read(fov.frames)) for fov in index.fovs)]),
        timepoint=statistics.timepoint.astype(np.float32),
        fov=None if statistics.fov is None else statistics.fov.astype(np.float32),
    )
