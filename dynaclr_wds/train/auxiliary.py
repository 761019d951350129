"""Features to label values: heads that are trained beside the contrastive loss, and what they are scored by.

Which label a head predicts, and which values it knows, is settled when the shards are known, and is in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dynaclr_wds.errors import CheckpointError, ConfigError
from dynaclr_wds.train.annealing import Schedule, anneal
from dynaclr_wds.train.heads import ClassifierHead

NO_TARGET = -100
"""Stands for a row without a value that the head knows; what `cross_entropy` leaves out by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuxiliaryHead:
    """What a head predicts, how it is made, and how much its loss weighs."""

    label: str
    """The label to predict, as `anchor_meta` has it."""
    values: list[str] | None = None
    """Its values, in the order of the logits; null = those that the shards know. Rows of another value, or of none,
    play no part."""
    num_classes: int | None = None
    """Number of logits; null = one for each value."""
    hidden_dims: int | list[int] = 256
    """Width of the hidden layer, or of each of several; [] = none."""
    cosine_classifier: bool = True
    """Logits are cosines to a direction per class, times a learned scale. False: a linear layer."""
    loss_weight: float = 1.0
    """What the head's loss is multiplied by."""
    weight_schedule: Schedule = "constant"
    """cosine: the weight goes from `weight_start` to `loss_weight` by half a cosine."""
    weight_start: float = 0.0
    weight_warmup_epochs: int = 50
    """The first epoch, counted from 0, that has `loss_weight`."""
    top_k: int = 5
    """A second accuracy counts the rows whose value is among the k highest logits."""
    in_dims: int | None = None
    """Number of features; null = the encoder says it."""

    def weight(self, epoch: int) -> float:
        """Return the weight of the loss in an epoch, counted from 0."""
        if self.weight_schedule == "constant":
            return self.loss_weight
        return anneal(self.weight_start, self.loss_weight, epoch, self.weight_warmup_epochs)


if TYPE_CHECKING:
    HeadSettings = Mapping[str, AuxiliaryHead | Mapping[str, Any]]
else:  # the command line reads annotations, and must not take other mappings
    HeadSettings = dict[str, AuxiliaryHead]
"""Name → settings, or the same as plain data."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a head made of a batch."""

    name: str
    loss: Float[Tensor, ""]
    """Mean over the rows with a target; 0 where there are none."""
    metrics: dict[str, Float[Tensor, ""]]
    """By the names that they are logged under, without the stage."""
    count: int
    """Rows with a target."""
    labelled: Float[Tensor, ""]
    """Their share."""


class AuxiliaryHeads(nn.ModuleDict):
    """The heads of a module: name → head. Empty until `build`, if the values of a label have to be asked for.

    Parameters
    ----------
    settings
        Name → settings, or the same as plain data.
    encoder
        Says how many features there are.
    """

    def __init__(self, settings: Mapping[str, AuxiliaryHead | Mapping[str, Any]], encoder: nn.Module) -> None:
        super().__init__()
        self.settings: dict[str, AuxiliaryHead] = {
            name: given if isinstance(given, AuxiliaryHead) else AuxiliaryHead(**given)
            for name, given in settings.items()
        }
        for name, head in self.settings.items():
            if head.in_dims is None:
                self.settings[name] = replace(head, in_dims=find_num_features(encoder, name))
        self._build()

    def build(self, known: Mapping[str, Sequence[str]]) -> None:
        """Make the heads that are not made yet.

        Parameters
        ----------
        known
            Label → its values, of the shards.

        Raises
        ------
        ConfigError
            The shards have no such label, or it has no values.
        """
        for name, head in self.settings.items():
            if head.values is None:
                if not known.get(head.label):
                    raise ConfigError(
                        f"model.auxiliary_heads.{name}.label={head.label!r} is not a label of the shards with values; "
                        f"they have {', '.join(sorted(k for k, v in known.items() if v)) or 'none'}. Give one of "
                        "these, or name its values."
                    )
                self.settings[name] = replace(head, values=list(known[head.label]))
        self._build()

    def _build(self) -> None:
        for name, head in self.settings.items():
            if head.values is None or name in self:
                continue
            classes = head.num_classes or len(head.values)
            if classes < len(head.values):
                raise ConfigError(
                    f"model.auxiliary_heads.{name}.num_classes={classes} is less than the {len(head.values)} values of "
                    f"{head.label!r}. Leave it out, or name fewer values."
                )
            self[name] = ClassifierHead(int(head.in_dims or 0), head.hidden_dims, classes, head.cosine_classifier)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return the settings as plain data, with the values of the labels."""
        return {name: asdict(head) for name, head in self.settings.items()}

    def check_saved(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that a checkpoint's heads predict the same values in the same order.

        Raises
        ------
        CheckpointError
            They don't; says which and what.
        """
        own = self.describe()
        for name in own.keys() & saved.keys():
            for key in ("label", "values"):
                now, then = own[name][key], saved[name][key]
                if now is not None and now != then:
                    raise CheckpointError(
                        f"model.auxiliary_heads.{name}.{key}={now!r:.200}, but the checkpoint was trained with "
                        f"{then!r:.200}. Give the same, or train with shards of the same values."
                    )

    def score(self, features: Float[Tensor, "b f"], meta: Iterable[Mapping[str, Any]] | None) -> list[Scored]:
        """Return what each head makes of the anchors of a batch.

        Parameters
        ----------
        features
            Of the anchors.
        meta
            One mapping per anchor, with its labels.
        """
        if not self.settings:
            return []
        if len(self) < len(self.settings) or meta is None:
            raise ConfigError(
                "model.auxiliary_heads: the values of their labels are not known, or the batch has no anchor_meta. "
                "Train with MultiExperimentDataModule, or name the values and give anchor_meta."
            )
        rows = list(meta)
        return [self._score(name, features, rows) for name in self.settings]

    def _score(self, name: str, features: Float[Tensor, "b f"], rows: list[Mapping[str, Any]]) -> Scored:
        head = self.settings[name]
        target, count = plan_targets(rows, head)
        target = target.to(features.device, non_blocking=True)
        logits = self[name](features).float()
        loss = cross_entropy(logits, target, ignore_index=NO_TARGET, reduction="sum") / max(count, 1)
        metrics = {f"loss/aux/{name}": loss.detach(), f"accuracy/{name}": _share(logits, target, 1, count)}
        if 1 < head.top_k < logits.shape[1]:
            metrics[f"accuracy_top{head.top_k}/{name}"] = _share(logits, target, head.top_k, count)
        return Scored(name, loss, metrics, count, (target != NO_TARGET).float().mean())

    def predict(self, features: Float[Tensor, "b f"]) -> dict[str, tuple[list[str | None], Float[Tensor, " b"]]]:
        """Return each head's most probable value of every row, and its probability; None is a class without a value."""
        predicted = {}
        for name, head in self.settings.items():
            if name in self:
                values = dict(enumerate(cast(list[str], head.values)))
                best = self[name](features).float().softmax(1).max(1)
                predicted[name] = [values.get(place) for place in best.indices.tolist()], best.values
        return predicted


def plan_targets(rows: Sequence[Mapping[str, Any]], head: AuxiliaryHead) -> tuple[Int64[Tensor, " b"], int]:
    """Return each row's place among the values of a head, `NO_TARGET` where it has none, and how many have one.

    Raises
    ------
    ConfigError
        The rows have no such label.
    """
    if rows and head.label not in rows[0]:
        raise ConfigError(
            f"model.auxiliary_heads: anchor_meta has no {head.label!r}; it has {', '.join(rows[0])}. Give one of these."
        )
    places = {value: place for place, value in enumerate(head.values or ())}
    targets = [places.get(row[head.label], NO_TARGET) for row in rows]
    return torch.tensor(targets, dtype=torch.int64), len(targets) - targets.count(NO_TARGET)


def _share(logits: Float[Tensor, "b k"], target: Int64[Tensor, " b"], top: int, count: int) -> Float[Tensor, ""]:
    """Share of the rows with a target that have it among their highest logits."""
    hit = (logits.detach().topk(top, 1).indices == target[:, None]).any(1)
    return hit.sum() / max(count, 1)


def find_num_features(encoder: nn.Module, head: str) -> int:
    """Return the length of an encoder's features.

    Raises
    ------
    ConfigError
        The encoder doesn't say it.
    """
    found = getattr(encoder, "num_features", None)
    if not isinstance(found, int):
        raise ConfigError(
            f"model.auxiliary_heads.{head}: {type(encoder).__name__} has no attribute num_features, the length of its "
            f"features. Give model.auxiliary_heads.{head}.in_dims."
        )
    return found
