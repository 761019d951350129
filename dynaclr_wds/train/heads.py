"""Features to projections or to logits of classes: the heads that stand on a backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from dynaclr_wds.describe import Described

Norm = Literal["bn", "ln"]
Activation = Literal["relu", "gelu", "silu"]

_NORMS: dict[str, type[nn.Module]] = {"bn": nn.BatchNorm1d, "ln": nn.LayerNorm}
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class MLP(Described, nn.Sequential):
    """Linear layers with a normalisation after each, and an activation after each but the last: as in mehta-lab/VisCy.

    A projection head by one linear layer is `torch.nn.Linear`; one that does nothing is `torch.nn.Identity`.

    Parameters
    ----------
    in_dims
        Number of features.
    hidden_dims
        Width of the hidden layer, or of each of several.
    out_dims
        Length of the projections.
    norm
        bn: batch normalisation; ln: layer normalisation.
    activation
        relu, gelu or silu.
    dropout
        Share of the hidden values that are set to 0 in training.
    """

    def __init__(
        self,
        in_dims: int,
        hidden_dims: int | Sequence[int],
        out_dims: int,
        norm: Norm = "bn",
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        hidden = _list_hidden(in_dims, hidden_dims, norm, activation, dropout)
        last = _widths(in_dims, hidden_dims)[-1]
        super().__init__(*hidden, nn.Linear(last, out_dims), _NORMS[norm](out_dims))


class ClassifierHead(nn.Sequential):
    """Hidden layers, then logits of classes.

    Parameters
    ----------
    in_dims
        Number of features.
    hidden_dims
        Width of the hidden layer, or of each of several; an empty list = none.
    num_classes
        Number of logits.
    cosine_classifier
        Logits are cosines to a direction per class, times a scale that is learned. False: a linear layer.
    """

    def __init__(
        self, in_dims: int, hidden_dims: int | Sequence[int], num_classes: int, cosine_classifier: bool = True
    ) -> None:
        last = _widths(in_dims, hidden_dims)[-1]
        classifier = CosineClassifier(last, num_classes) if cosine_classifier else nn.Linear(last, num_classes)
        super().__init__(*_list_hidden(in_dims, hidden_dims), classifier)


class CosineClassifier(nn.Module):
    """Logits by the cosine to a direction per class, times a scale that is learned and begins at 20.

    Parameters
    ----------
    in_dims
        Number of features.
    num_classes
        Number of logits.
    """

    def __init__(self, in_dims: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, in_dims).normal_(std=0.01))
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def forward(self, x: Float[Tensor, "b f"]) -> Float[Tensor, "b k"]:
        """Return the logits."""
        return self.log_scale.exp() * linear(normalize(x, dim=1), normalize(self.weight, dim=1))


def _widths(in_dims: int, hidden_dims: int | Sequence[int]) -> list[int]:
    return [in_dims, *([hidden_dims] if isinstance(hidden_dims, int) else hidden_dims)]


def _list_hidden(
    in_dims: int,
    hidden_dims: int | Sequence[int],
    norm: Norm = "bn",
    activation: Activation = "relu",
    dropout: float = 0.0,
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, width in pairwise(_widths(in_dims, hidden_dims)):
        layers += [nn.Linear(before, width), _NORMS[norm](width), _ACTIVATIONS[activation]()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    return layers
