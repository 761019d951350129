"""Turns a batch as it was read into a batch to train on: normalise, augment, crop, reduce, drop channels.

`on_after_batch_transfer` calls `BatchTransform`, which runs on the device and never waits for it: no value of a tensor
is needed on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from dynaclr_wds.plan.channels import ChannelsPerSample
from dynaclr_wds.read.crop import Shape
from dynaclr_wds.transforms.augment import as_augmentation
from dynaclr_wds.transforms.channel_dropout import ChannelDropout
from dynaclr_wds.transforms.crop import apply_center_crop, parse_size
from dynaclr_wds.transforms.dictionary import DictTransform
from dynaclr_wds.transforms.z_reduction import MIP, apply_z_reduction

IMAGE_KEYS = ("anchor", "positive", "negative")
"""Keys of a batch that hold patches."""

DROPOUT_KEYS = ("anchor", "positive")


class BatchTransform(nn.Module):
    """Does everything between the transfer of a batch and the network.

    The patches of each key become float32, are normalised, augmented in training (with other draws for each key),
    cropped to their centre, and reduced to one plane if that is asked for. `<key>_norm_meta` and `<key>_channel_meta`
    are taken out of the batch. In training `channel_dropout` comes last, on anchor and positive only.

    Parameters
    ----------
    normalizations
        Modules called as `module(x, norm_meta)`, such as `NormalizeSampled`.
    augmentations
        Kornia augmentations, 2D or 3D, or any modules that map (B, C, Z, Y, X) to the same; see
        `dynaclr_wds.transforms.augment`.
    final_size
        (Z, Y, X) that is left of each patch; None for an axis = as it comes out of the augmentations.
    reduce_z
        Leave one plane of each stack: the maximum or the centre, as `<key>_channel_meta` says.
    channel_dropout
        None = no dropout.

    Raises
    ------
    ValueError
        In `forward`: a batch without statistics although there are normalizations, or without `mip` although Z is to
        be reduced, or a final size larger than the patch.
    """

    def __init__(
        self,
        normalizations: Sequence[nn.Module] = (),
        augmentations: Sequence[nn.Module] = (),
        final_size: Sequence[int | None] = (None, None, None),
        channel_dropout: ChannelDropout | None = None,
        reduce_z: bool = False,
    ) -> None:
        super().__init__()
        self.normalizations = nn.ModuleList(normalizations)
        self.augmentations = nn.ModuleList(as_augmentation(module) for module in augmentations)
        self.final_size = parse_size(final_size, "final size")
        self.reduce_z = reduce_z
        self.channel_dropout = ChannelDropout(()) if channel_dropout is None else channel_dropout

    @torch.no_grad()
    def forward(self, batch: dict[str, Any], training: bool, augment: bool | None = None) -> dict[str, Any]:
        """Transform a batch.

        Parameters
        ----------
        batch
            `anchor`, `positive`, `negative` (those that are there): (B, C, Z, Y, X) in any dtype, each with its
            `<key>_norm_meta`, and with `<key>_channel_meta` where something asks for it; other keys are passed on as
            they are.
        training
            False: all but augmentations and dropout.
        augment
            Whether to augment; None = in training.

        Returns
        -------
        A new dict: patches in float32, without `<key>_norm_meta` and `<key>_channel_meta`.
        """
        result = dict(batch)
        for key in IMAGE_KEYS:
            known = result.pop(f"{key}_norm_meta", None), result.pop(f"{key}_channel_meta", None)
            if key in result:
                augmented = training if augment is None else augment
                result[key] = self._image(key, result[key].to(torch.float32), known, augmented)
        self.channel_dropout.train(training)
        for key in DROPOUT_KEYS:
            if key in result:
                result[key] = self.channel_dropout(result[key])
        return result

    def _image(
        self,
        key: str,
        x: Float32[Tensor, "b c z y x"],
        known: tuple[Mapping[str, Tensor] | None, Mapping[str, Tensor] | None],
        augment: bool,
    ) -> Float32[Tensor, "b c crop_z crop_y crop_x"]:
        norm_meta, channel_meta = known
        if len(self.normalizations) > 0 and norm_meta is None:
            raise ValueError(
                f"The batch has no {key}_norm_meta, which the normalizations need. "
                "Give statistics with the batch, or no normalizations."
            )
        for module in self.normalizations:
            x = module(x, norm_meta, channel_meta) if isinstance(module, DictTransform) else module(x, norm_meta)
        if augment:
            for module in self.augmentations:
                x = module(x, norm_meta, channel_meta) if isinstance(module, DictTransform) else module(x)
        x = apply_center_crop(x, self.final_size, "final size")
        if not self.reduce_z:
            return x
        if channel_meta is None or MIP not in channel_meta:
            raise ValueError(
                f"The batch has no {key}_channel_meta[{MIP!r}], which says which channels to project. "
                "Give the dataset its channel_flags, or reduce_z=False."
            )
        return apply_z_reduction(x, channel_meta[MIP])


@runtime_checkable
class LastSteps(Protocol):
    """What gives patches their last shape, as the DataModule and `train.settle.View` have it."""

    @property
    def final_yx_patch_size(self) -> tuple[int, int] | None:
        """(Y, X) of the last crop."""

    @property
    def final_z(self) -> int | None:
        """Slices that the last crop leaves."""

    @property
    def z_reduction(self) -> Mapping[str, Any] | None:
        """How one slice is made of a stack."""


def shown_shape(read: Shape, steps: LastSteps, channels_per_sample: ChannelsPerSample = None) -> Shape:
    """Return (C, Z, Y, X) as the network sees it, of a patch with all its channels as it is read."""
    channels = read[0]
    if channels_per_sample is not None:
        channels = channels_per_sample if isinstance(channels_per_sample, int) else len(channels_per_sample)
    height, width = steps.final_yx_patch_size or read[2:]
    depth = 1 if steps.z_reduction is not None else steps.final_z or read[1]
    return channels, depth, height, width
