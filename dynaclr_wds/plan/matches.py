"""Labels to matches: numbers the values that a positive by columns shares with its anchor, and finds who has one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.channels import CHANNEL_LABELS
from dynaclr_wds.plan.columns import CodeBook, PlanColumns
from dynaclr_wds.plan.config import PositiveRule
from dynaclr_wds.plan.strata import number_keys

_MOST = 1 << 62
_OF_PLACE = ("experiment", "well")
"""Labels that say where a cell was, rather than what it is: poor examples."""


def check_match_columns(codes: CodeBook, rule: PositiveRule) -> None:
    """Check that positives by columns have columns to agree in.

    Raises
    ------
    ConfigError
        There are none; the message names the labels of the set, and an example of them.
    """
    if rule.kind != "columns" or rule.match_columns:
        return
    known = sorted({*codes.values, *(CHANNEL_LABELS if codes.choices is not None else ())})
    others = [name for name in known if name not in ("condition", *_OF_PLACE)]
    example = ", ".join([*(["condition"] if "condition" in known else []), *others][:2])
    raise ConfigError(
        "positive='columns' needs positive_match_columns: the labels in which a positive agrees with its anchor. The "
        f"shards have {known}. Name some of these, such as positive_match_columns: [{example}]."
    )


def number_matches(
    columns: PlanColumns,
    codes: CodeBook,
    rule: PositiveRule,
    rows: Sequence[Integer[np.ndarray, " _"]],
    choices: Sequence[Integer[np.ndarray, " _"]],
) -> list[Int32[np.ndarray, " _"]]:
    """Number the values that samples have in the match columns; −1 where one is null.

    With `channel="same"`, samples that hold some of the channels have to show the same marker, too.

    Parameters
    ----------
    rows, choices
        By stratum, patch row and choice of channels of each sample; no choices where there are none to make.
    """
    if not rows:
        return []
    row = np.concatenate(rows)
    obs = columns.patch_obs[row]
    names = list(dict.fromkeys(rule.match_columns))
    if codes.choices is not None and rule.channel == "same" and set(names).isdisjoint(CHANNEL_LABELS):
        names.append("marker")
    key, null, most = np.zeros(len(row), np.int64), np.zeros(len(row), bool), 1
    for name in names:
        if codes.choices is not None and name in CHANNEL_LABELS:
            table, values = codes.choices.codes(name)
            code = table[columns.fov_experiment[columns.obs_fov[obs]], np.concatenate(choices)]
        else:
            code, values = columns.labels[name][obs].astype(np.int64), tuple(codes.values[name])
        null |= code < 0
        if most * (len(values) + 1) > _MOST:
            key, most = np.unique(key, return_inverse=True)[1], len(key)
        key, most = key * (len(values) + 1) + code + 1, most * (len(values) + 1)
    number = number_keys(key, most)[1].astype(np.int32)
    number[null] = -1
    return np.split(number, np.cumsum([len(r) for r in rows])[:-1])


def find_matched(
    columns: PlanColumns, rows: Sequence[Integer[np.ndarray, " _"]], matches: Sequence[Int32[np.ndarray, " _"]]
) -> list[Bool[np.ndarray, " _"]]:
    """Say, by stratum, which samples agree with a sample of another observation."""
    if not rows:
        return []
    number = np.concatenate(matches)
    _, several = find_kinds(number, columns.patch_obs[np.concatenate(rows)], int(number.max(initial=-1)) + 1)
    kept = (number >= 0) & np.append(several, False)[number]
    return np.split(kept, np.cumsum([len(r) for r in rows])[:-1])


def find_kinds(
    number: Integer[np.ndarray, " n"], kind: Integer[np.ndarray, " n"], count: int
) -> tuple[Int64[np.ndarray, " k"], Bool[np.ndarray, " k"]]:
    """Say of each number below `count` which kind one of its samples is of (−1: it has none), and if another differs.

    Samples that are numbered −1 don't count.
    """
    one = np.full(count + 1, -1, np.int64)  # the last place is that of −1
    one[number] = kind
    several = np.zeros(count + 1, bool)
    several[number[kind != one[number]]] = True
    return one[:-1], several[:-1]
