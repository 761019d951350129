"""Counts of an epoch to sentences: says in words what is good about a plan, what is not, and what would help.

`shuffle` and the training say the same sentences, because both take them from here. Numbers come from the ledger and
from the measured quality; nothing is read but index arrays. A long epoch is judged by a sample of its batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dynaclr_wds.plan.audit.batch_size import count_lineages, find_batch_size
from dynaclr_wds.plan.audit.expected_pairs import UniformDraw
from dynaclr_wds.plan.audit.ledger import Ledger
from dynaclr_wds.plan.audit.quality import Quality, QualityMeter
from dynaclr_wds.plan.audit.report import Report
from dynaclr_wds.plan.compose.schedule import plan_groups
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.words import count_of, percent, size_of

CLUMPED, FINE = 1.3, 1.1
"""C of FOVs: above the first, batches hold clumps; below the second, none that matter."""
RARE, OFTEN, THRICE = 0.01, 0.02, 0.05
"""Fractions: samples of shared lineages that hardly matter, and that are bad; anchors drawn often, to be told."""
_LEAST, _MOST, _SAMPLES = 256, 2048, 1 << 15  # batches, and samples, that are planned for a verdict before training
_MOST_MEASURED = 2_000_000  # anchors; counting what chance would do takes seconds beyond
_LISTED = 3

Level = Literal["good", "fair", "bad"]
Subject = Literal["fovs", "lineages", "window", "draws", "strata", "quotas", "crop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One sentence on a plan."""

    level: Level
    about: Subject
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be said about the plan of an epoch."""

    batches: int
    """Batches of the epoch, over all ranks."""
    planned: int
    """Batches that were planned to say it."""
    notes: tuple[Note, ...]

    @property
    def troubles(self) -> tuple[Note, ...]:
        """The sentences on what is not good."""
        return tuple(note for note in self.notes if note.level != "good")


def plan_verdict(sampler: FlexibleBatchSampler) -> Verdict:
    """Plan the sampler's epoch, or a sample of its batches where it is long, and judge it.

    Where FOVs are not compared with chance (beyond two million anchors), nothing is said about them.
    """
    index, config = sampler.index, sampler.epoch_config
    numbers = sampler.sample_batches(count_judged(config.batch_size))
    ledger = Ledger(index, config)
    meter = QualityMeter(UniformDraw(index), config) if len(index.row) <= _MOST_MEASURED else None
    for number in numbers.tolist():
        plan = sampler.plan(number)
        ledger.add(plan)
        if meter is not None:
            meter.add(plan)
    whole = len(numbers) == sampler.global_batches
    notes = judge(sampler, ledger.report(), None if meter is None else meter.quality(), whole=whole)
    return Verdict(batches=sampler.global_batches, planned=len(numbers), notes=notes)


def count_judged(batch_size: int) -> int:
    """Return the most batches of an epoch that are planned to judge it."""
    return max(_LEAST, min(_MOST, _SAMPLES // batch_size))


def judge(
    sampler: FlexibleBatchSampler, report: Report, quality: Quality | None, *, whole: bool = True
) -> tuple[Note, ...]:
    """Say what is good and what is not, one sentence each.

    Parameters
    ----------
    sampler
        Where the batches came from.
    report, quality
        What was counted and measured of them; without `quality`, nothing is said about FOVs.
    whole
        Whether they were one epoch, no more and no less. Else draws of an epoch are worked out from their shares.
    """
    return (
        *(_judge_fovs(quality) if quality is not None else ()),
        *_judge_lineages(sampler, report),
        *_judge_window(sampler),
        *_judge_draws(report, sampler.global_batches, whole),
        *_judge_strata(sampler),
        *_judge_quotas(report),
    )


def _judge_fovs(quality: Quality) -> list[Note]:
    ratio = quality.collisions["fov"].ratio
    if ratio is None:
        return []
    if ratio > CLUMPED:
        text = (
            f"Samples of one field of view (FOV) meet in a batch {ratio:.2f} times as often as by chance. Give a "
            "larger window, fewer streams, or build with a smaller block_bytes."
        )
        return [Note(level="bad", about="fovs", text=text)]
    word = "hardly more often than" if ratio > FINE else "no more often than"
    return [
        Note(
            level="good",
            about="fovs",
            text=f"Samples of one field of view (FOV) meet in a batch {word} by chance ({ratio:.2f} times).",
        )
    ]


def _judge_lineages(sampler: FlexibleBatchSampler, report: Report) -> list[Note]:
    """Say how many negatives are positives, which strata are too small for the batch, and which size would do."""
    samples = report.batches * report.batch_size
    shared = report.relaxed["lineage"]
    few = _describe_few(sampler)
    if not shared:
        return [Note(level="good", about="lineages", text="No two samples of a batch share a lineage."), *few]
    has = "has" if shared == 1 else "have"
    of = f"{shared:,} of {count_of(samples, 'sample')} ({percent(shared / samples)})"
    text = (
        f"{of} {has} the lineage of another sample in the batch, so they count as negatives of each other although "
        f"they are positives. {_describe_cure(sampler)}"
    )
    return [Note(level="bad" if shared > OFTEN * samples else "fair", about="lineages", text=text), *few]


def _describe_cure(sampler: FlexibleBatchSampler) -> str:
    """Name the batch size without shared lineages, and what else would help."""
    config = sampler.config
    found, size = find_batch_size(sampler), "No batch_size above 1 avoids this."
    if found > 1:
        size = f"Give batch_size: {found} to avoid this; it is the largest that was found to do so."
    if (larger := find_batch_size(sampler, RARE)) > found:
        size = f"{size} With batch_size: {larger} it concerns less than {RARE:.0%} of the samples."
    others = []
    if sampler.window_bytes is not None:
        whole = sampler.window_bytes >= sampler.index.stored_bytes
        others.append(f"{'no window_bytes' if whole else 'a larger window_bytes'} or fewer num_streams")
    if config.temporal_enrichment:
        others.append("a larger temporal_window_hours or temporal_global_fraction")
    return f"{size} It also helps to give {', or '.join(others)}." if others else size


def _describe_few(sampler: FlexibleBatchSampler) -> list[Note]:
    """List the strata of which a batch takes more samples than they have lineages."""
    index, config = sampler.index, sampler.epoch_config
    lineages, found = count_lineages(index), []
    for group in plan_groups(index, index.sizes, config):
        taken = group.share * config.batch_size * (1 - config.leaky)
        pairs = zip(group.strata.tolist(), taken.tolist(), strict=True)
        found += [(index.strata[s].name, int(lineages[s]), n) for s, n in pairs if n > lineages[s] + 0.5]
    if not found:
        return []
    found.sort(key=lambda one: one[1] / one[2])
    listed = [f"{name} has {have:,}, but a batch takes {n:.0f} samples of it" for name, have, n in found[:_LISTED]]
    text = f"Too few lineages for this batch_size: {'; '.join(listed)}{_and_more(found)}."
    return [Note(level="bad", about="lineages", text=text)]


def _judge_window(sampler: FlexibleBatchSampler) -> list[Note]:
    """Say so where the window holds everything, as then nothing is gained by streaming."""
    window, stored = sampler.window_bytes, sampler.index.stored_bytes
    if window is None or window < stored:
        return []
    text = (
        f"window_bytes ({size_of(window)}) holds all {size_of(stored)} that are used. window_bytes: null (exact mode) "
        "mixes at least as well, unless the shards are on a slow or remote disk."
    )
    return [Note(level="fair", about="window", text=text)]


def _judge_draws(report: Report, batches: int, whole: bool) -> list[Note]:
    """Say how many anchors are drawn more than twice an epoch; by their share of the draws, where it is a sample."""
    anchors = sum(c.anchors for c in report.coverage)
    scale = batches / max(report.batches, 1)
    mean = {c: (c.unique + c.repeated) * scale / max(c.anchors, 1) for c in report.coverage}
    # repeats of a stratum differ by at most one: with 2.4 draws an anchor, 40 % of the anchors are drawn three times
    often = {c: c.often if whole else round(c.anchors * min(max(mean[c] - 2, 0.0), 1.0)) for c in report.coverage}
    count = sum(often.values())
    if count <= THRICE * anchors:
        return []
    worst = max(report.coverage, key=lambda c: (mean[c], often[c]))
    name = "/".join(dict.fromkeys((worst.experiment, worst.group, worst.value)))
    text = (
        f"{'' if whole else 'About '}{count:,} of {count_of(anchors, 'anchor')} ({percent(count / anchors)}) are "
        f"drawn more than twice an epoch; those of {name} {mean[worst]:.1f} times on average"
    )
    most = f", one of them {max(c.most_repeats for c in report.coverage)} times" if whole else ""
    return [Note(level="fair", about="draws", text=f"{text}{most}.")]


def _judge_strata(sampler: FlexibleBatchSampler) -> list[Note]:
    """List the strata that have cells and can't be drawn from."""
    barren = sampler.index.barren
    if not barren:
        return []
    noun = "cell" if sampler.index.choices is None else "sample"  # a cell has several where they hold some channels
    listed = [f"{stratum.name} ({count_of(samples, noun)})" for stratum, samples in barren[:_LISTED]]
    why, cure = "has a positive in the τ range", "Widen tau_range"
    if sampler.index.positives.kind == "columns":
        why, cure = "agrees with another in positive_match_columns", "Name fewer columns"
    text = f"Never drawn, because no {noun} {why}: {', '.join(listed)}{_and_more(barren)}. {cure}, or leave them out."
    return [Note(level="bad", about="strata", text=text)]


def _judge_quotas(report: Report) -> list[Note]:
    missed = [c for c in report.composition if c.missed]
    if missed:
        worst = max(missed, key=lambda c: c.missed / c.batches)
        of = f"{worst.missed:,} of {count_of(worst.batches, 'batch', 'batches')}"
        way = "higher" if worst.mean > worst.asked else "lower"
        text = f"The share of {worst.title} is {way} than asked, by more than one sample, in {of}"
        others = f", and {count_of(len(missed) - 1, 'other share')} is off in fewer" if len(missed) > 1 else ""
        cure = ""
        if worst.name == "focal window" and way == "higher":
            cure = (
                " The movies are short: nearly all cells are near any time. Lower temporal_window_hours, or leave it."
            )
        return [Note(level="fair", about="quotas", text=f"{text}{others}.{cure}")]
    if report.composition:
        return [
            Note(
                level="good",
                about="quotas",
                text="Every batch holds the shares that were asked for, to within one sample.",
            )
        ]
    return []


def judge_crop(outside: int, cells: int, yx: tuple[int, int], least: tuple[int, int]) -> tuple[Note, ...]:
    """Say how many cells lie outside the (Y, X) that the network sees; nothing where none does.

    Parameters
    ----------
    outside, cells
        Cells that lie outside, and all.
    yx
        What the network sees of a patch.
    least
        The smallest (Y, X) that would hold all of them.
    """
    if not outside:
        return ()
    lie, size = "lies" if outside == 1 else "lie", [max(pair) for pair in zip(yx, least, strict=True)]
    text = (
        f"{outside:,} of {count_of(cells, 'cell')} ({percent(outside / cells)}) {lie} outside the {yx[0]} x {yx[1]} "
        "pixels that the network sees, because the build moved patches near the border into the image. Give "
        f"final_yx_patch_size: {size}, the smallest that holds all of them (yx_patch_size must not be smaller), or "
        "build with --border pad, which keeps each cell in the middle."
    )
    return (Note(level="bad" if outside > OFTEN * cells else "fair", about="crop", text=text),)


def _and_more(found: Sequence[object]) -> str:
    return f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
