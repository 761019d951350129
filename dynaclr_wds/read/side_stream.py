"""Batch to GPU: copies it on a stream of its own, while the GPU computes on the batch before.

It needs page-locked batches, which `BufferPool` makes, and a training that doesn't wait for the GPU in each step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor


class SideStreams:
    """One stream for copies per GPU, made when it is first used."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def run(self, copy: Callable[[], Any], device: torch.device) -> Any:
        """Call what copies a batch to a device, and return the batch.

        On a GPU the copy begins at once, beside what was asked of the GPU before; what is asked afterwards waits for
        it. The calling thread waits for neither. On another device it is only called.

        Parameters
        ----------
        copy
            Returns the batch on the device: tensors, in dicts and lists of any depth.
        device
            Where to.
        """
        if device.type != "cuda":
            return copy()
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream, main = self._streams[device], torch.cuda.current_stream(device)
        with torch.cuda.stream(stream):
            batch = copy()
        main.wait_stream(stream)
        # the memory belongs to the side stream, which must not use it again before the main stream has read it
        apply_to_collection(batch, Tensor, lambda tensor: tensor.record_stream(main))
        return batch
