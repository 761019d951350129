"""The plan says which samples share a batch, in what order, and which blocks must be at hand: numpy in, numpy out.

It opens no file and asks no clock: a batch is a function of (index, config, epoch, stream), where the config holds the
seed. What reads the pixels obeys it and decides nothing. `docs/SAMPLING.md` explains the rules and what is promised.

Map
---
`index`, `listing`, `strata`
    `PlanIndex` holds the anchors that may be drawn, by stratum; `plan_index` in `listing` makes it of the columns of a
    shard set.
`config`
    `SamplingConfig`: what the user asks of a batch; `PositiveRule`: what makes a positive.
`channels`, `matches`
    Which channels a sample may hold, and which samples agree in the columns that positives share.
`relatives`
    Which patches of a lineage lie on one line of descent.
`sampler`
    `FlexibleBatchSampler`: the door of the wing. It yields one `BatchPlan` per batch.
`identity`
    In what the order of a checkpoint differs from the one at hand.
`batch`
    What the plan hands to the loader: `BatchPlan`, `BlockReads`, and `PlannedBatches`, all that a loader may ask.
`validation`
    The fixed table that validation reads, every anchor once.
`rng`
    Where all randomness comes from.
`places`, `compiled`
    Where the anchors of a clip come up in a queue, and the compiled passes over all anchors (`anchors.c`).
`compose/`
    What a batch holds. `schedule`, `group_quotas` and `quotas` count, `leak` takes from other groups, `pool` orders
    anchors in queues (by `hashed_order` where strata are many), `rounds` plans some tens of batches together:
    `lineages` keeps lineages distinct, `focal_window` and `focal_batches` draw near one HPI (from the table in
    `draws`, or by time from `hpi_table` where values are many), `positives` and `negatives` complete the samples;
    `stand_ins` says who takes the place of those that can't be read.
`streaming/`
    What must be resident. `needs` counts what a batch needs, `window` what a window can hold, `partition` deals blocks
    to streams, `rotation` says which groups are active when, `residency` when each block comes and goes, `mixer` puts
    them together, `planner` makes batches of them.
`audit/`
    What came of it. `ledger` counts batches against `targets` and makes a `report` (`report_text` prints it), `quality`
    measures how well they are mixed against `expected_pairs`, `bytes_read` adds up what streaming reads. `verdict`
    says all that in sentences, and `batch_size` finds the largest one without shared lineages.

Glossary
--------
stratum
    One value of (experiment, group labels, stratify labels). Quotas are counted in samples of a stratum.
group
    One value of the `batch_group_by` labels, by default one experiment; the main part of a batch is drawn from it.
value
    One value of the `stratify_by` labels, by default a condition; a batch is balanced between values.
patch row
    Row of a patch in the index (`PatchRow`).
sample index
    Position of an anchor in `PlanIndex.row` (`SampleIndex`).
queue
    Random order of a stratum's anchors, passed through again and again; draws of an epoch are places in it.
round
    Some tens of batches of one group that are planned together.
quota group
    Strata that share a quota within a round: each main stratum is one, and so are the leaked strata of one value.
within reach
    What a batch may draw from: everything in exact mode, the resident blocks in streaming.
visit
    One stay of a block in memory.
segment, lane
    Consecutive batches of a group for which its blocks are resident; a lane is a row of segments, one after another.
"""
