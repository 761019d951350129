"""Draws of augmentations that are the same whenever the same batch comes: for validation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng


@contextmanager
def fixed_draws(*seeds: int) -> Iterator[None]:
    """Draw by `seeds` within the block; the global generators go on behind it as if nothing had been drawn.

    Parameters
    ----------
    seeds
        Numbers >= 0; others give other draws.
    """
    number = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    with isolate_rng():
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002  users' augmentations draw from it
        random.seed(number)
        yield
