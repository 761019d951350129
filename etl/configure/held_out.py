"""Chooses what the configs hold out for validation: experiments, or FOVs where there is one experiment only. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dynaclr_wds.hashed_sides import hold_out
from dynaclr_wds.words import count_of, list_some
from etl.configure.facts import ExperimentFacts, sum_lineages
from etl.configure.templates import Value, quote

FEW = 8
"""An experiment whose batches hold fewer distinct lineages is held out where others are richer."""

_RATIO = 0.8
"""Share of training, where fields of view are split."""
_TRIED_SEEDS, _NEAR = 256, 0.01
"""Seeds of the split that are tried, until one comes so near to the share."""


def choose_split(facts: Sequence[ExperimentFacts]) -> tuple[dict[str, Value], Sequence[ExperimentFacts]]:
    """Hold out experiments, or FOVs where there is only one; also return what is trained on."""
    fovs = _choose_fovs(facts[0]) if len(facts) == 1 else None
    chosen = {
        "data.split": Value("experiments", "what is held out: experiments (by name), fovs, or values of a label"),
        "data.val_experiments": Value("[]", "none as a whole"),
        "data.split_ratio": Value("null", f"share of training, as {_RATIO}, where split is fovs or a label"),
        "data.split_seed": Value("0", "another one draws another split"),
    }
    if len(facts) > 1:
        held_out, why = _choose_held_out(facts)
        training = [fact for fact in facts if fact not in held_out]
        trained = list_some([fact.name for fact in training], 3)
        names = "[" + ", ".join(quote(fact.name) for fact in held_out) + "]"
        chosen["data.val_experiments"] = Value(names, f"held out for validation{why}; trained on: {trained}")
        return chosen, training
    if fovs is None:
        spared = "none of its fields of view can be spared" if len(facts[0].fovs) > 1 else "one field of view"
        alone = f"one experiment, {spared}: nothing is held out, so there is no validation"
        chosen["data.val_experiments"] = Value("[]", alone)
        return chosen, facts
    seed, held = fovs
    kept = replace(facts[0], cells=facts[0].cells.without(held))
    chosen["data.split"] = Value("fovs", _explain_fovs(facts[0], kept))
    chosen["data.split_ratio"] = Value(
        str(_RATIO), "share of training that is aimed at; the side of a field of view is drawn by its name"
    )
    chosen["data.split_seed"] = Value(
        str(seed),
        f"of the seeds below {_TRIED_SEEDS}, comes nearest to that in lineages, with every condition in training",
    )
    return chosen, [kept]


def _explain_fovs(fact: ExperimentFacts, kept: ExperimentFacts) -> str:
    """Say how many FOVs are held out, and why not fewer."""
    held = len(fact.fovs) - len(kept.fovs)
    share = 1 - sum(kept.lineages.values()) / sum(fact.lineages.values())
    said = (
        f"held out for validation: {held} of {count_of(len(fact.fovs), 'field')} of view, {share:.0%} of the lineages"
    )
    val = sum_lineages(own for name, own in fact.fovs.items() if name not in kept.fovs)
    if len(val) > 1 and set(val) == set(fact.lineages):
        return f"{said}; at least one of each condition, so that validation has all {len(val)}"
    return said


def _choose_held_out(facts: Sequence[ExperimentFacts]) -> tuple[Sequence[ExperimentFacts], str]:
    """Choose the last experiment or, where some have too few lineages to be trained on, these; also say why."""
    poor = [fact for fact in facts if count_distinct(fact) < FEW]
    if not poor:
        return facts[-1:], ""
    if len(poor) < len(facts):
        return poor, f" for {'its' if len(poor) == 1 else 'their'} few lineages"
    return [min(reversed(facts), key=lambda fact: sum(fact.lineages.values()))], " for its few lineages"


def _choose_fovs(fact: ExperimentFacts) -> tuple[int, set[str]] | None:
    """Choose the split seed that holds out the share nearest to the wanted one, and say which FOVs these are.

    Training keeps every condition, and validation has as many as possible; None where there is no such seed.
    """
    total = max(sum(fact.lineages.values()), 1)
    best: tuple[int, float] | None = None
    chosen = None
    for seed in range(_TRIED_SEEDS):
        out = hold_out([f"{fact.name}/{name}" for name in fact.fovs], _RATIO, seed)
        held = {name for name, is_out in zip(fact.fovs, out, strict=True) if is_out}
        sides = [
            sum_lineages(own for name, own in fact.fovs.items() if (name in held) == side) for side in (True, False)
        ]
        val, train = sides
        if not 0 < len(held) < len(fact.fovs) or set(train) != set(fact.lineages):
            continue
        score = len(train) - len(val), abs(sum(train.values()) / total - _RATIO)
        if best is None or score < best:
            best, chosen = score, (seed, held)
        if best[0] == 0 and best[1] < _NEAR:
            break
    return chosen


def count_distinct(fact: ExperimentFacts) -> int:
    """Samples of distinct lineages that a batch can hold with conditions in balance."""
    return len(fact.lineages) * min(fact.lineages.values(), default=0)
