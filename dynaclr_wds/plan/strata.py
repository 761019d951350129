"""Label values to strata: finds the samples of every (experiment, label values), and which of them may be anchors.

Where experiment and labels are among those that the shards are partitioned by, the partitions say it; otherwise the
codes of every sample's observation are looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Integer

from dynaclr_wds.plan.channels import ChannelChoices
from dynaclr_wds.plan.columns import CodeBook, PlanColumns
from dynaclr_wds.plan.compiled import address, fit, load_anchors
from dynaclr_wds.plan.relatives import list_rows, on_one_line
from dynaclr_wds.tau import least_tau

_CHUNK = 1 << 20
_PIECE = 1 << 14  # of flags, so that what is found fits the processor's cache
_MOST_COUNTED = 1 << 24  # combinations of labels that are counted in a table
_EXPERIMENT = "experiment"


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumSamples:
    """Samples of one (experiment, label values)."""

    experiment: int
    """Row of `CodeBook.experiments`."""
    labels: dict[str, str | None]
    """Label → value."""
    row: Integer[np.ndarray, " n"]
    """Patch rows, ascending; of all samples, or of those that have a candidate in the τ range of the build. A row
    stands there once for each choice of channels."""
    samples: int
    """All samples, those without a candidate too."""
    choice: Integer[np.ndarray, " n"] | None = None
    """Choice of channels of each, ascending within a row; None where there is none to make."""
    first_of_patches: bool = True
    """False where an earlier stratum has the same patches, with other channels."""


def find_strata(
    columns: PlanColumns,
    codes: CodeBook,
    labels: tuple[str, ...],
    keep_experiment: Sequence[bool],
    keep_fov: Bool[np.ndarray, " f"] | None,
    *,
    every: bool = False,
) -> Iterator[StratumSamples]:
    """Find the samples of every stratum of the observations' labels, in the order of (experiment, labels).

    Parameters
    ----------
    columns, codes, keep_experiment, keep_fov
        As for `plan_index`.
    labels
        Labels that make a stratum, each once.
    every
        List all samples, not only those that have a candidate in the τ range of the build.
    """
    shape = (len(codes.experiments), *(len(codes.values[name]) + 1 for name in labels))  # + 1: null
    if follows_from_partitions(codes, labels):
        found = _join_partitions(columns, codes, labels, shape, keep_experiment, keep_fov, every)
    else:
        found = _gather_codes(columns, labels, shape, keep_experiment, keep_fov, every)
    for key in sorted(found):
        experiment, *code = (int(c) for c in np.unravel_index(key, shape))
        values = {name: codes.values[name][c - 1] if c else None for name, c in zip(labels, code, strict=True)}
        row, samples = found[key]
        yield StratumSamples(experiment=experiment, labels=values, row=row, samples=samples)


def follows_from_partitions(codes: CodeBook, labels: tuple[str, ...]) -> bool:
    """Whether the shards are partitioned by experiment and all these labels."""
    return all(name in partition for partition in codes.partitions for name in (_EXPERIMENT, *labels))


_Found = dict[int, tuple[Integer[np.ndarray, " _"], int]]
"""Number of a stratum → rows with a candidate, and the number of all samples."""


def _join_partitions(
    columns: PlanColumns,
    codes: CodeBook,
    labels: tuple[str, ...],
    shape: tuple[int, ...],
    keep_experiment: Sequence[bool],
    keep_fov: Bool[np.ndarray, " f"] | None,
    every: bool,
) -> _Found:
    """Put together the partitions of each stratum, which lie one after another in the order of their rows."""
    number = {clock.name: place for place, clock in enumerate(codes.experiments)}
    known = [{None: 0} | {value: k + 1 for k, value in enumerate(codes.values[name])} for name in labels]
    ranges: dict[int, list[tuple[int, int]]] = {}
    for place, partition in enumerate(codes.partitions):
        experiment = number[str(partition[_EXPERIMENT])]
        if keep_experiment[experiment]:
            code = (experiment, *(k[partition[name]] for k, name in zip(known, labels, strict=True)))
            ranges.setdefault(int(np.ravel_multi_index(code, shape)), []).extend(_patch_ranges(columns, place))
    # one array for the rows of all strata: memory for them is got once; `anchors.c` writes one more than it finds
    most = sum(np.count_nonzero(columns.patch_is_sample[a:b]) for own in ranges.values() for a, b in own)
    rows = np.empty(most + 1, np.int32 if len(columns.patch_clip) < 1 << 31 else np.int64)
    found, done = {}, 0
    for key in sorted(ranges):
        begin, samples = done, 0
        for span in sorted(ranges[key]):
            written, count = _write_samples(columns, span, keep_fov, every, rows[done:])
            done, samples = done + written, samples + count
        found[key] = rows[begin:done], samples
    return found


def _gather_codes(
    columns: PlanColumns,
    labels: tuple[str, ...],
    shape: tuple[int, ...],
    keep_experiment: Sequence[bool],
    keep_fov: Bool[np.ndarray, " f"] | None,
    every: bool,
) -> _Found:
    """Number the strata of all observations, and group the rows of their samples by them."""
    wanted = np.array(keep_experiment, bool)[columns.fov_experiment]
    used = (wanted if keep_fov is None else wanted & keep_fov)[columns.obs_fov]
    key = columns.fov_experiment[columns.obs_fov].astype(np.int64)
    for name, size in zip(labels, shape[1:], strict=True):
        key *= size
        key += columns.labels[name]
        key += 1
    present, of_obs = number_keys(np.where(used, key, int(np.prod(shape))), int(np.prod(shape)) + 1)
    rows = _positions(columns.patch_is_sample)
    number = of_obs[columns.patch_obs[rows]]
    samples = np.bincount(number, minlength=len(present))
    if not every:
        candidate = columns.patch_has_candidate[rows]
        rows, number = rows[candidate], number[candidate]
    edge = np.cumsum(np.bincount(number, minlength=len(present)))[:-1]
    parts = np.split(rows[np.argsort(number, kind="stable")], edge)
    found = zip(present.tolist(), parts, samples.tolist(), strict=True)
    return {code: (part, count) for code, part, count in found if code < np.prod(shape)}


def number_keys(key: Int64[np.ndarray, " n"], most: int) -> tuple[Int64[np.ndarray, " k"], Integer[np.ndarray, " n"]]:
    """Number the keys that occur, ascending, in the smallest dtype: numpy sorts small integers by radix."""
    if most > _MOST_COUNTED:
        present, number = np.unique(key, return_inverse=True)
        return present, number.astype(np.min_scalar_type(len(present)))
    present = np.flatnonzero(np.bincount(key, minlength=most))
    table = np.zeros(most, np.min_scalar_type(len(present)))
    table[present] = np.arange(len(present))
    return present, table[key]


def _positions(flag: Bool[np.ndarray, " n"], begin: int = 0) -> Integer[np.ndarray, " k"]:
    """Where a flag is set, counted from `begin`, in the smallest dtype that holds it.

    Made piece by piece: to get memory for all of it in 64 bits would take longer than to look.
    """
    out = np.empty(np.count_nonzero(flag), np.int32 if begin + len(flag) < 2**31 else np.int64)
    done = 0
    for first in range(0, len(flag), _PIECE):
        found = np.flatnonzero(flag[first : first + _PIECE])
        np.add(found, begin + first, out=out[done : done + len(found)], casting="same_kind")
        done += len(found)
    return out


def _patch_ranges(columns: PlanColumns, partition: int) -> Iterator[tuple[int, int]]:
    """Yield the patch rows of a partition: a run in each group of FOVs that was built together."""
    blocks = np.flatnonzero(columns.block_partition == partition)
    if not len(blocks):
        yield 0, 0
        return
    for run in np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1):
        begin, end = columns.block_first[run[0]], columns.block_first[run[-1] + 1]
        yield int(columns.clip_first[begin]), int(columns.clip_first[end])


def _write_samples(
    columns: PlanColumns,
    span: tuple[int, int],
    keep_fov: Bool[np.ndarray, " f"] | None,
    every: bool,
    out: Integer[np.ndarray, " n"],
) -> tuple[int, int]:
    """Write the rows of the samples in a span, of all or of those that have a candidate; count these, and all."""
    begin, end = span
    sample, candidate = columns.patch_is_sample, columns.patch_has_candidate
    compiled = load_anchors()
    if keep_fov is None and compiled is not None and fit(np.int32, out) and fit(np.bool_, sample, candidate):
        flags = address(sample, sample if every else candidate)
        written = compiled.dynaclr_list_samples(*flags, begin, end, *address(out))
        return written, int(np.count_nonzero(sample[begin:end]))
    rows = _positions(sample[begin:end], begin)
    if keep_fov is not None:
        rows = rows[keep_fov[columns.obs_fov[columns.patch_obs[rows]]]]
    found = rows if every else rows[candidate[rows]]
    out[: len(found)] = found
    return len(found), len(rows)


def split_by_channels(
    found: StratumSamples, choices: ChannelChoices, labels: Sequence[str]
) -> Iterator[StratumSamples]:
    """Give every sample its choices of channels, in strata of their own where labels tell the choices apart.

    Parameters
    ----------
    labels
        Those of `CHANNEL_LABELS` that make a stratum.
    """
    own = {name: choices.labels[name][found.experiment] for name in labels}
    by_value: dict[tuple[str, ...], list[int]] = {}
    for choice in range(int(choices.count[found.experiment])):
        by_value.setdefault(tuple(own[name][choice] for name in labels), []).append(choice)
    for number, (value, members) in enumerate(by_value.items()):
        yield StratumSamples(
            experiment=found.experiment,
            labels=found.labels | dict(zip(labels, value, strict=True)),
            row=np.repeat(found.row, len(members)) if len(members) > 1 else found.row,
            samples=found.samples * len(members),
            choice=np.tile(np.array(members, np.min_scalar_type(members[-1])), len(found.row)),
            first_of_patches=number == 0,
        )


def has_candidate(
    columns: PlanColumns,
    row: Integer[np.ndarray, " n"],
    tau_frames: tuple[int, int],
    *,
    behind: bool = False,
    parents: Int64[np.ndarray, " tracks"] | None = None,
) -> Bool[np.ndarray, " n"]:
    """Whether each sample's clip holds a patch at t + τ for some τ of the range, τ ≠ 0; `behind` counts t − τ, too.

    With `parents`, only patches on the sample's own line of descent count.
    """
    low, high = least_tau(tau_frames[0]), tau_frames[1]
    out = np.zeros(len(row), bool)
    for a in range(0, len(row), _CHUNK):
        part = row[a : a + _CHUNK]
        clip = columns.patch_clip[part].astype(np.int64)
        begin, end = columns.clip_first[clip[0]], columns.clip_first[clip[-1] + 1]
        # rows of the clips at hand, keyed by (clip, t): ascending, as clips are stored by t
        key = (columns.patch_clip[begin:end].astype(np.int64) << 32) + columns.patch_t[begin:end]
        want = (clip << 32) + columns.patch_t[part]
        spans = [(want + low, want + high), (want - high, want - low)][: 1 + behind]
        for first, last in spans:
            start, stop = np.searchsorted(key, first, "left"), np.searchsorted(key, last, "right")
            found = start < stop
            if parents is not None:
                owner, candidate = list_rows(np.arange(len(part)), begin + start, begin + stop)
                owner = owner[on_one_line(columns, parents, part[owner], candidate)]
                found = np.bincount(owner, minlength=len(part)) > 0
            out[a : a + _CHUNK] |= found
    return out
