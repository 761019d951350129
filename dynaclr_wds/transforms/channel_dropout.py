"""Drops channels: zeroes whole channels of single samples, so that the network can't lean on one channel alone.

Draws are made per sample and channel on the tensor's own device, so no step waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

REFERENCE_P = 0.0
"""`channel_dropout_prob` of `MultiExperimentDataModule` in mehta-lab/VisCy, unless it is given."""


def describe_channel_dropout(channels: Sequence[int], p: float) -> str | None:
    """Say in a sentence that channels will be dropped, since the reference implementation drops none by default.

    Meant to be logged once, by rank 0, when a training starts.

    Parameters
    ----------
    channels
        Channels that may be dropped and that the data have.
    p
        Probability of dropping.

    Returns
    -------
    None where nothing will be dropped.
    """
    if not channels or p == REFERENCE_P:
        return None
    return (
        f"Channel dropout is on: in training, channels {list(channels)} of anchor and positive become 0 with "
        f"probability {p:g} each, so that the network learns from the other channels, too. In VisCy it is off; "
        "data.channel_dropout_prob: 0.0 does the same."
    )


class ChannelDropout(nn.Module):
    """Zero whole channels of single samples in training; do nothing in evaluation.

    Each listed channel of each sample is dropped independently with probability `p`. Where all channels are listed, a
    sample may lose all of them.

    Parameters
    ----------
    channels
        Channels that may be dropped, counted from 0 in stored order.
    p
        Probability of dropping, in [0, 1].

    Raises
    ------
    ValueError
        A probability outside [0, 1], or a channel that is negative, named twice, or (in `forward`) not in the data.
    """

    def __init__(self, channels: Sequence[int], p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"ChannelDropout: p={p} must be in [0, 1]. Give the probability of dropping a channel.")
        if any(c < 0 for c in channels) or len(set(channels)) != len(channels):
            raise ValueError(f"ChannelDropout: channels={list(channels)} must be different and >= 0. Count from 0.")
        self.channels = tuple(channels)
        self.p = p

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Return a copy with the drawn channels at 0, or `x` itself where nothing can be dropped."""
        count = x.shape[1]
        if any(c >= count for c in self.channels):
            raise ValueError(
                f"ChannelDropout: channels={list(self.channels)}, but the data have {count} "
                f"(allowed: 0 to {count - 1}). Name only those, or none ([])."
            )
        if not self.training or self.p == 0 or not self.channels:
            return x
        drop = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        for c in self.channels:  # one by one: an index list would be copied from the host
            drop[:, c] = torch.rand(x.shape[0], device=x.device) < self.p
        return x.masked_fill(drop[:, :, None, None, None], 0.0)  # not a product: NaN * 0 is NaN

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        return f"channels={list(self.channels)}, p={self.p}"
