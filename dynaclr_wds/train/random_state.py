"""States of the global random generators, of all ranks: augmentations and dropout draw from them.

With them a training that goes on draws what it would have drawn. They are plain values,
which `torch.load(weights_only=True)` takes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info

from dynaclr_wds.words import count_of


def collect_random_states() -> list[dict[str, Any]]:
    """Return the state of every rank, in their order. Every rank has to call it."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  users' augmentations draw from it
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state()
    if not (dist.is_available() and dist.is_initialized()):
        return [state]
    states: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(states, state)
    return states


def resume_random_states(states: Sequence[dict[str, Any]], rank: int, world_size: int) -> None:
    """Set the generators of this rank to what `collect_random_states` found; say so if there are other ranks now."""
    if len(states) == world_size:
        _restore(states[rank])
    else:
        rank_zero_info(
            f"The checkpoint was written by {count_of(len(states), 'rank')}, and now the run has {world_size}: the "
            "batches are those that remain, their augmentations are drawn anew."
        )


def _restore(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numbers, *rest = state["numpy"]
    np.random.set_state((name, numbers.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
