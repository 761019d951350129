"""Account of one epoch, as plain values: what was covered, how batches were composed, what had to be relaxed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynaclr_wds.files import write_whole
from dynaclr_wds.plan.audit.report_text import describe_report, summarize
from dynaclr_wds.words import count_of


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumCoverage:
    """What an epoch drew from one stratum."""

    experiment: str
    group: str
    value: str
    anchors: int
    unique: int
    """Anchors drawn at least once."""
    repeated: int
    """Draws beyond the first of each anchor."""
    never_seen: int
    often: int
    """Anchors drawn more than twice."""
    most_repeats: int
    """Draws of the anchor that was drawn most."""
    without_positive: int
    """Samples that have no positive in the τ range asked for; never drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """One quota over the epoch, as fractions of a batch: asked for against achieved."""

    name: str
    asked: float
    mean: float
    worst: float
    """Fraction in the batch that is furthest off."""
    batches: int
    """Batches that the quota applies to."""
    missed: int
    """Batches more than one sample off."""

    @property
    def title(self) -> str:
        """Its name as people read it, with the option that sets it."""
        return {
            "leak": "samples of other groups (leaky)",
            "focal window": "samples near one time (temporal_enrichment)",
        }.get(self.name, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShare:
    """Share of the epoch's batches that are about one group: asked for against achieved."""

    group: str
    asked: float
    achieved: float
    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The ledger of one epoch, over all ranks."""

    batches: int
    batch_size: int
    group_label: str
    """Labels that make a group: `experiment`, unless the index was made with others."""
    value_label: str
    """Labels that make a stratify value: `condition`, unless the index was made with others."""
    coverage: tuple[StratumCoverage, ...]
    groups: tuple[BatchShare, ...]
    """Empty unless batches are drawn from one group each."""
    composition: tuple[Composition, ...]
    """Quotas of a batch: `leak`, `<value label> <value> in <group>`, `focal window`, as far as they were asked for."""
    relaxed: Mapping[str, int]
    """Anchors of a batch that share their lineage, track or observation with an earlier one of it."""
    tau_frames: Mapping[int, int]
    """τ in frames → positives."""
    tau_hours: Mapping[float, int]
    """τ in hours → positives: what can be compared between experiments of different frame intervals."""
    partners: Mapping[str, int]
    """Positives by columns that are not of another lineage, as no other was within reach: `same_lineage`, `itself`."""
    bytes_used: int
    """Bytes of the patches that were drawn as anchor, positive or negative, each counted once."""
    substituted: Mapping[str, int] = field(default_factory=dict)
    """Shard → samples that could not be read since the epoch was (re)started, replaced by others of their stratum."""
    streaming: Mapping[str, float] = field(default_factory=dict)
    """Bytes stored and read, peak resident bytes, … (`bytes_read.account_bytes`); empty in exact mode."""

    @property
    def seen(self) -> float:
        """Fraction of all anchors that were drawn at least once."""
        return sum(c.unique for c in self.coverage) / max(sum(c.anchors for c in self.coverage), 1)

    def __str__(self) -> str:
        return describe_report(self)

    def __repr__(self) -> str:
        return f"Report({count_of(self.batches, 'batch', 'batches')} of {self.batch_size}; {summarize(self)})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return dataclasses.asdict(self)

    def write(self, path: Path) -> None:
        """Write as JSON; the file is whole or absent."""
        with write_whole(path) as file:
            file.write((json.dumps(self.to_dict(), indent=1) + "\n").encode())
