"""Computes the loss of projections: NT-Xent in which hard negatives weigh more.

`plan_pairs` lists the pairs by arithmetic instead of comparing labels, so no step waits for the device.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor
from torch.amp import is_autocast_available
from torch.nn.functional import softplus

from dynaclr_wds.describe import Described
from dynaclr_wds.train.annealing import Schedule, anneal

Pairs = tuple[Int[Tensor, " pos"], Int[Tensor, " pos"], Int[Tensor, " neg"], Int[Tensor, " neg"]]
"""Rows of the (anchor, positive) pairs and of the (anchor, negative) pairs, as pytorch-metric-learning takes them."""


def plan_pairs(batch_size: int, device: torch.device | str = "cpu") -> Pairs:
    """List all pairs of 2·B embeddings, where rows i and i + B show the same lineage.

    These are the pairs that pytorch-metric-learning finds from the labels `arange(B)` twice, but this does not wait for
    the device.

    Parameters
    ----------
    batch_size
        B: anchors are the rows 0 to B-1, their positives the rows B to 2·B-1.
    device
        Device of the embeddings.

    Returns
    -------
    2·B positive pairs and 2·B·(2·B - 2) negative ones.
    """
    count = 2 * batch_size
    rows = torch.arange(count, device=device)
    # distance from a row to its negatives, counted in a circle: all but the row itself (0) and its partner (B)
    away = torch.cat([torch.arange(1, batch_size, device=device), torch.arange(batch_size + 1, count, device=device)])
    negatives = (rows[:, None] + away) % count
    return rows, (rows + batch_size) % count, rows[:, None].expand_as(negatives).flatten(), negatives.flatten()


def _choose_base() -> Any:
    """Return VisCy's NTXentLoss where VisCy is installed, else that of pytorch-metric-learning, which it derives from.

    The module of VisCy asks whether a loss is one of its own NTXentLoss. Any other it calls with (anchor, positive,
    negative).
    """
    if find_spec("viscy_models") is None:
        return NTXentLoss
    try:
        return import_module("viscy_models.contrastive.loss").NTXentLoss
    except Exception:  # whatever it lacks: without it there is no module of VisCy that could ask
        return NTXentLoss


class NTXentHCL(Described, _choose_base()):  # type: ignore[misc]
    """NT-Xent with hard-negative concentration β.

    For a positive pair (i, j) and the negatives k of i, with similarity s and temperature T:

        loss = -log( e^(s_ij/T) / ( e^(s_ij/T) + Σ_k w_k e^(s_ik/T) ) ),   w_k = n · e^(β s_ik) / Σ_k' e^(β s_ik')

    so the weights of the n negatives of an anchor add up to n. β = 0 is NT-Xent and runs the library's code. The idea
    is that of Robinson et al., "Contrastive learning with hard negative samples", ICLR 2021, where the concentration
    multiplies s/T instead of s. The form here, with gradients through the weights, is that of `NTXentHCL` in
    mehta-lab/VisCy.

    The loss is computed in float32 even under autocast, by log-sum-exp, in memory proportional to the number of pairs.
    β = 0 takes the memory of NT-Xent: (positive pairs) × (negative pairs).

    Parameters
    ----------
    temperature
        T, > 0.
    beta
        β, >= 0.
    temperature_schedule
        "cosine": T goes from `temperature_start` to `temperature` by half a cosine, and stays there. The module calls
        `step` at the start of each epoch.
    temperature_start
        T in the first epoch of a cosine schedule, > 0.
    temperature_warmup_epochs
        The first epoch, counted from 0, that has `temperature`.
    **kwargs
        `distance`, `reducer`, `embedding_regularizer`, ... of pytorch-metric-learning.

    Raises
    ------
    ValueError
        A temperature or β outside its range.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        beta: float = 0.5,
        temperature_schedule: Schedule = "constant",
        temperature_start: float = 0.1,
        temperature_warmup_epochs: int = 50,
        **kwargs: Any,
    ) -> None:
        if temperature <= 0 or beta < 0:
            raise ValueError(f"NTXentHCL: temperature={temperature} must be > 0 and beta={beta} >= 0.")
        if temperature_start <= 0:
            raise ValueError(f"NTXentHCL: temperature_start={temperature_start} must be > 0.")
        super().__init__(temperature=temperature, **kwargs)
        self.beta = beta
        self.temperature_schedule = temperature_schedule
        self.temperature_start = temperature_start
        self.temperature_end = temperature
        self.temperature_warmup_epochs = temperature_warmup_epochs
        self.add_to_recordable_attributes(list_of_names=["beta"], is_stat=False)
        self.step(0)

    def step(self, epoch: int) -> None:
        """Set the temperature of an epoch, counted from 0."""
        if self.temperature_schedule == "cosine":
            start, end = self.temperature_start, self.temperature_end
            self.temperature = anneal(start, end, epoch, self.temperature_warmup_epochs)

    def extra_repr(self) -> str:
        """Say the parameters when printed."""
        return f"temperature={self.temperature:g}, beta={self.beta:g}"

    def forward(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"] | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Float[Tensor, "m d"] | None = None,
        ref_labels: Int[Tensor, " m"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean loss over the positive pairs, 0 where there are no negatives.

        Parameters
        ----------
        embeddings
            One row per patch; they are normalised here.
        labels
            Rows with the same label are positives of each other. May be left out with `indices_tuple`.
        indices_tuple
            The pairs, from `plan_pairs` or a miner.
        ref_emb, ref_labels
            Take positives and negatives from here; None = from `embeddings`.
        """
        kind = embeddings.device.type
        with torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext():
            loss: Tensor = super().forward(
                _at_least_float32(embeddings),
                labels,
                indices_tuple,
                None if ref_emb is None else _at_least_float32(ref_emb),
                ref_labels,
            )
        return loss

    def pair_based_loss(self, mat: Float[Tensor, "n m"], indices_tuple: Pairs) -> dict[str, Any]:
        """Return the loss of every positive pair, from the matrix of similarities."""
        anchors, positives, negative_anchors, negatives = indices_tuple
        if self.beta == 0 or len(anchors) == 0 or len(negative_anchors) == 0:
            return dict(super().pair_based_loss(mat, indices_tuple))
        similarity = mat if self.distance.is_inverted else -mat
        negative = similarity[negative_anchors, negatives]
        emphasis = self.beta * negative
        count = torch.zeros(mat.shape[0], dtype=mat.dtype, device=mat.device)
        count = count.index_add(0, negative_anchors, torch.ones_like(negative))
        # log Σ_k w_k e^(s_k/T), one per row of `mat`; -inf for a row without negatives
        log_negatives = (
            _row_logsumexp(negative / self.temperature + emphasis, negative_anchors, mat.shape[0])
            - _row_logsumexp(emphasis, negative_anchors, mat.shape[0]).masked_fill(count == 0, 0.0)
            + count.clamp_min(1).log()
        )
        positive = similarity[anchors, positives] / self.temperature
        losses = softplus(log_negatives[anchors] - positive)
        return {"loss": {"losses": losses, "indices": (anchors, positives), "reduction_type": "pos_pair"}}


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _row_logsumexp(values: Float[Tensor, " n"], rows: Int[Tensor, " n"], row_count: int) -> Float[Tensor, " rows"]:
    """Log-sum-exp of the values of each row; -inf for a row without values."""
    top = torch.full((row_count,), float("-inf"), dtype=values.dtype, device=values.device)
    top = top.scatter_reduce(0, rows, values.detach(), "amax")
    top = top.masked_fill(top == float("-inf"), 0.0)
    total = torch.zeros_like(top).index_add(0, rows, (values - top[rows]).exp())
    return total.log() + top
