"""Turns a batch as it was read into a batch to train on: normalise, augment, crop, drop channels.

`on_after_batch_transfer` calls `BatchTransform`, which runs on the device and never waits for it: no value of a tensor
is needed on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from dynaclr_wds.transforms.augment import as_augmentation
from dynaclr_wds.transforms.channel_dropout import ChannelDropout
from dynaclr_wds.transforms.crop import apply_center_crop

IMAGE_KEYS = ("anchor", "positive", "negative")
"""Keys of a batch that hold patches."""

DROPOUT_KEYS = ("anchor", "positive")


class BatchTransform(nn.Module):
    """Does everything between the transfer of a batch and the network.

    The patches of each key become float32, are normalised, augmented in training (with other draws for each key), and
    cropped to their centre. `<key>_norm_meta` is taken out of the batch. In training `channel_dropout` comes last, on
    anchor and positive only.

    Parameters
    ----------
    normalizations
        Modules called as `module(x, norm_meta)`, such as `NormalizeSampled`.
    augmentations
        Kornia augmentations, 2D or 3D, or any modules that map (B, C, Z, Y, X) to the same; see
        `dynaclr_wds.transforms.augment`.
    final_yx_patch_size
        (Y, X) that the network sees; None = as read.
    channel_dropout
        None = no dropout.

    Raises
    ------
    ValueError
        In `forward`: a batch without statistics although there are normalizations, or a final size larger than
        the patch.
    """

    def __init__(
        self,
        normalizations: Sequence[nn.Module] = (),
        augmentations: Sequence[nn.Module] = (),
        final_yx_patch_size: Sequence[int] | None = None,
        channel_dropout: ChannelDropout | None = None,
    ) -> None:
        super().__init__()
        self.normalizations = nn.ModuleList(normalizations)
        self.augmentations = nn.ModuleList(as_augmentation(module) for module in augmentations)
        self.final_yx_patch_size: tuple[int, int] | None = None
        if final_yx_patch_size is not None:
            height, width = final_yx_patch_size
            self.final_yx_patch_size = (height, width)
        self.channel_dropout = ChannelDropout(()) if channel_dropout is None else channel_dropout

    @torch.no_grad()
    def forward(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        """Transform a batch.

        Parameters
        ----------
        batch
            `anchor`, `positive`, `negative` (those that are there): (B, C, Z, Y, X) in any dtype, each with its
            `<key>_norm_meta`; other keys are passed on as they are.
        training
            False: normalizations and crop only.

        Returns
        -------
        A new dict: patches in float32, without `<key>_norm_meta`.
        """
        result = dict(batch)
        for key in IMAGE_KEYS:
            norm_meta = result.pop(f"{key}_norm_meta", None)
            if key in result:
                result[key] = self._image(key, result[key].to(torch.float32), norm_meta, training)
        self.channel_dropout.train(training)
        for key in DROPOUT_KEYS:
            if key in result:
                result[key] = self.channel_dropout(result[key])
        return result

    def _image(
        self, key: str, x: Float32[Tensor, "b c z y x"], norm_meta: dict[str, Tensor] | None, training: bool
    ) -> Float32[Tensor, "b c z crop_y crop_x"]:
        if len(self.normalizations) > 0 and norm_meta is None:
            raise ValueError(
                f"The batch has no {key}_norm_meta, which the normalizations need. "
                "Give statistics with the batch, or no normalizations."
            )
        for normalization in self.normalizations:
            x = normalization(x, norm_meta)
        if training:
            for augmentation in self.augmentations:
                x = augmentation(x)
        return x if self.final_yx_patch_size is None else apply_center_crop(x, self.final_yx_patch_size)
