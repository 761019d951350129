"""Ranges that are drawn from, and probabilities: parsed with errors that name the module, and drawn per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

Range = tuple[float, float]
"""(low, high); drawn from uniformly."""


def parse_range(owner: object, name: str, value: Sequence[float] | object, minimum: float = float("-inf")) -> Range:
    """Return a range of numbers.

    Raises
    ------
    ValueError
        It is none: not two numbers, the first above the second, or one below `minimum`.
    """
    bound = "" if minimum == float("-inf") else f" with low >= {minimum}"
    if isinstance(value, Sequence) and len(value) == 2 and not any(isinstance(end, Sequence) for end in value):
        low, high = value
        if minimum <= low <= high:
            return float(low), float(high)
        value = f"({low}, {high})"
    raise ValueError(
        f"{type(owner).__name__}: {name}={value} must be a range (low, high){bound}. Give both ends, the lower first."
    )


def check_p(owner: object, p: float) -> float:
    """Return a probability; refuse what is none."""
    if not 0 <= p <= 1:
        raise ValueError(f"{type(owner).__name__}: p={p} must be in [0, 1]. Give the probability of a change.")
    return p


def draw_gate(x: Tensor, p: float) -> Bool[Tensor, "b 1 1 1 1"]:
    """Draw which samples are altered, on the tensor's own device."""
    return torch.rand((x.shape[0], 1, 1, 1, 1), device=x.device) < p
