"""Decides what is held out for validation: which FOVs and lineages each side of a split uses.

Pure: records and columns in, masks out. The side of an experiment, an FOV or a label's value is named, or drawn by a
keyed hash of its own name (`dynaclr_wds.hashed_sides`), so it stays where it is when other data are added. A lineage
is never on two sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from dynaclr_wds.contract import FovRecord
from dynaclr_wds.fov_names import check_experiments, keep_experiments, match_fovs, qualify
from dynaclr_wds.hashed_sides import find_seed, hold_out
from dynaclr_wds.split_config import EXPERIMENTS, FOVS, NOUNS, SplitConfig
from dynaclr_wds.words import count_of, list_some

NULL = "~"
"""Names the cells without a value, as it does in groups."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """What may be drawn on one side of a split."""

    fovs: Bool[np.ndarray, " f"]
    lineages: Bool[np.ndarray, " l"] | None = None
    """None: all in these FOVs."""
    said: str = "both sides"
    """How it was split off, for messages."""

    @property
    def is_empty(self) -> bool:
        """Whether no cell is on this side."""
        return not (self.fovs if self.lineages is None else self.lineages).any()

    def list_fovs(self, fovs: Sequence[FovRecord]) -> dict[str, list[str]]:
        """List the FOVs (`row/col/fov`) of each experiment that it may draw from."""
        found: dict[str, list[str]] = {}
        for place in np.flatnonzero(self.fovs).tolist():
            found.setdefault(fovs[place].experiment, []).append(fovs[place].fov_name)
        return found


_MOST_NAMED = 5
"""Names that a sentence lists one by one."""
_HOLD_OUT_FOVS = (
    "There is one experiment, so hold out fields of view of it: --data.split fovs --data.split_ratio 0.8 "
    "--data.val_experiments null (in Python split='fovs', split_ratio=0.8)."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Both sides of a split."""

    asked: SplitConfig
    train: Side
    val: Side
    notes: tuple[str, ...] = ()
    """What the user should be told."""
    warnings: tuple[str, ...] = ()
    """What is probably not meant."""
    units: tuple[str, ...] = ()
    """Names of what the sides were drawn for."""

    def held_out_fovs(self, fovs: Sequence[FovRecord]) -> dict[str, list[str]]:
        """List the FOVs (`row/col/fov`) of each experiment of which all is held out."""
        return self.val.list_fovs(fovs) if self.val.lineages is None else {}

    def check(self, where: str, *, train: bool = True) -> None:
        """Check that a side isn't empty, unless nothing is to be held out.

        Parameters
        ----------
        where
            The shards, for the error.
        train
            The side of training; else that of validation.

        Raises
        ------
        ValueError
            It is empty.
        """
        noun = NOUNS.get(self.asked.split, ("cell", "cells"))[0]
        if train and self.train.is_empty:
            alone = self.asked.split == EXPERIMENTS and len(set(self.units)) == 1
            remedy = self._remedy() or (_HOLD_OUT_FOVS if alone else "Name fewer.")
            raise ValueError(f"{self.asked} holds out every {noun} of {where}; none is left to train on. {remedy}")
        if not train and self.asked.holds_out and self.val.is_empty:
            remedy = self._remedy() or "Name others, or leave fewer out with include_wells and exclude_fovs."
            raise ValueError(f"{self.asked} holds out no {noun} of {where}: nothing to validate on. {remedy}")

    def describe_val(self, fovs: Sequence[FovRecord]) -> str:
        """Say what is validated on."""
        found = self.val.list_fovs(fovs)
        names = [f"{experiment}/{name}" for experiment, own in found.items() for name in own]
        count = count_of(len(names), "field")
        if self.val.lineages is not None:
            lineages = count_of(int(np.count_nonzero(self.val.lineages)), "lineage")
            return f"Validation: {lineages} of {list_some(sorted(found), _MOST_NAMED)}, held out by {self.asked}."
        listed = f" ({', '.join(sorted(names))})" if len(names) <= _MOST_NAMED else ""
        return (
            f"Validation: {count} of view of {list_some(sorted(found), _MOST_NAMED)}{listed}, held out by {self.asked}."
        )

    def _remedy(self) -> str | None:
        """Say which seed draws two sides, where they are drawn."""
        if self.asked.split_ratio is None:
            return None
        units = sorted(set(self.units))
        seed = find_seed(units, self.asked.split_ratio)
        if seed is None:
            one, more = NOUNS.get(self.asked.split, ("value", "values"))
            many = count_of(len(units), one, more)
            finer = "" if self.asked.split == FOVS else "or split fields of view (--data.split fovs), "
            return (
                f"split_ratio={self.asked.split_ratio:g} can't split {many}. Give up one of the two: name {more} in "
                f"{self.asked.naming} (and --data.split_ratio null), {finer}or train without validation "
                "(--data.split_ratio 1.0)."
            )
        out = int(hold_out(units, self.asked.split_ratio, seed).sum())
        return (
            f"The side of each of the {len(units)} is drawn by its name: split_seed={seed} holds out {out}. "
            f"Give it, or {self.asked.naming}."
        )


class LabelledCells(NamedTuple):
    """A label of every observation of a shard set, with what it is part of."""

    values: Sequence[str]
    code: Integer[np.ndarray, " o"]
    """Place in `values`, −1 for null."""
    lineage: Integer[np.ndarray, " o"]
    fov: Integer[np.ndarray, " o"]


def split_fovs(
    asked: SplitConfig,
    fovs: Sequence[FovRecord],
    usable: Bool[np.ndarray, " f"],
    plates: Mapping[str, str] | None = None,
) -> Split:
    """Split FOVs by experiment, or by their own names.

    Parameters
    ----------
    asked
        Its `split` is `experiments` or `fovs`.
    fovs
        Those of the shard set.
    usable
        Which of them may be used at all.
    plates
        Experiment → its plate, to notice plates that are in several experiments.

    Raises
    ------
    ValueError
        A name that isn't there; lists those that are.
    """
    whole = asked.split == EXPERIMENTS
    unit = [fov.experiment if whole else qualify(fov.experiment, fov.fov_name) for fov in fovs]
    if asked.split_ratio is not None:
        held = hold_out(unit, asked.split_ratio, asked.split_seed)
    elif whole:
        check_experiments(asked.names, {fov.experiment for fov in fovs}, asked.naming)
        held = keep_experiments(fovs, asked.names)
    else:
        held = match_fovs(fovs, asked.names, asked.naming)
    used = [name for name, use in zip(unit, usable, strict=True) if use]
    return Split(
        asked=asked,
        train=Side(fovs=usable & ~held, said=f"training, {asked}"),
        val=Side(fovs=usable & held, said=f"validation, {asked}"),
        notes=() if whole and asked.split_ratio is None else _describe_fovs(asked, fovs, usable, held),
        warnings=() if plates is None or whole else _find_torn(fovs, usable, held, plates),
        units=tuple(used),
    )


def split_lineages(asked: SplitConfig, cells: LabelledCells, usable: Bool[np.ndarray, " f"]) -> Split:
    """Split lineages by a label: one that has a held-out value anywhere is held out as a whole.

    Cells without a value are for training, unless `~` is named.

    Raises
    ------
    ValueError
        A value that isn't there; lists those that are.
    """
    values = [*cells.values, NULL]  # null has the code −1, the last
    if asked.split_ratio is not None:
        of_value = hold_out(values, asked.split_ratio, asked.split_seed)
        of_value[-1] = False
    else:
        if unknown := sorted(set(asked.names) - set(values)):
            raise ValueError(
                f"val_values names {unknown}, which are no values of {asked.split!r}. They are {list(cells.values)}."
            )
        of_value = np.isin(values, asked.names)
    held_cell, used = of_value[cells.code], usable[cells.fov]
    size = int(cells.lineage.max(initial=-1)) + 1
    has_held, has_other = np.zeros((2, size), bool)
    has_held[cells.lineage[used & held_cell]] = True
    has_other[cells.lineage[used & ~held_cell]] = True
    val, train = has_held, has_other & ~has_held
    named = [value for value, out in zip(values, of_value, strict=True) if out]
    count = int((val | train).sum())
    which = list_some(named, _MOST_NAMED)
    notes = [f"{asked} holds out {val.sum():,} of {count:,} lineages: those with {asked.split} {which}."]
    if not named:
        none = f"none of the values of {asked.split!r} ({list_some(cells.values, _MOST_NAMED)}) was drawn"
        notes = [f"{asked} holds out none of {count:,} lineages: {none}."]
    if both := int((has_held & has_other).sum()):
        notes.append(
            f"{both:,} of them have other values of {asked.split!r} too: all of such a lineage is held out, so that no "
            "lineage is on two sides."
        )
    return Split(
        asked=asked,
        train=Side(fovs=usable, lineages=train, said=f"training, {asked}"),
        val=Side(fovs=usable, lineages=val, said=f"validation, {asked}"),
        notes=tuple(notes),
        units=tuple(cells.values),
    )


def _describe_fovs(
    asked: SplitConfig, fovs: Sequence[FovRecord], usable: Bool[np.ndarray, " f"], held: Bool[np.ndarray, " f"]
) -> tuple[str, ...]:
    """Say how many FOVs are held out, and which experiments are on one side only."""
    used = int(usable.sum())
    share = (usable & held).sum() / max(used, 1)
    names = [f"{fovs[n].experiment}/{fovs[n].fov_name}" for n in np.flatnonzero(usable & held).tolist()]
    listed = f": {', '.join(names)}" if asked.split == FOVS and 0 < len(names) <= _MOST_NAMED else ""
    notes = [f"{asked} holds out {len(names):,} of {used:,} fields of view ({share:.0%}){listed}."]
    if asked.split == FOVS and asked.holds_out:
        owner = np.array([fov.experiment for fov in fovs])
        out, kept = (set(owner[usable & side].tolist()) for side in (held, ~held))
        if missing := sorted(kept - out):
            notes.append(f"Nothing is held out of {list_some(missing, _MOST_NAMED)}.")
        if missing := sorted(out - kept):
            notes.append(f"Nothing is trained on of {list_some(missing, _MOST_NAMED)}.")
    return tuple(notes)


def _find_torn(
    fovs: Sequence[FovRecord],
    usable: Bool[np.ndarray, " f"],
    held: Bool[np.ndarray, " f"],
    plates: Mapping[str, str],
) -> tuple[str, ...]:
    """Warn of FOVs that are on both sides, because their plate is in several experiments."""
    used = np.flatnonzero(usable).tolist()
    where = [(plates.get(fovs[place].experiment), fovs[place].fov_name) for place in used]
    out, kept = ({key for key, place in zip(where, used, strict=True) if held[place] == side} for side in (True, False))
    torn = sorted(name for _, name in out & kept)
    if not torn:
        return ()
    return (
        f"Fields of view of a plate that is in several experiments are on both sides ({len(torn)}): "
        f"{list_some(torn, _MOST_NAMED)}. Name those to hold out in val_fovs, without the experiment: "
        f"val_fovs=[{torn[0]!r}].",
    )
