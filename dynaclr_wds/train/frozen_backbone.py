"""Turns patches into embeddings with a network that was trained before and stays as it is, such as DINOv3.

Patches become images as the network knows them (`RGBImage`, `ChannelImages`), the network gives features, and a head
that is trained gives projections. What is done to the images is what mehta-lab/VisCy does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dynaclr_wds.describe import Described, ModuleOrDescription, make_module
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.optional import import_optional

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Pair = tuple[int, int]


class RGBImage(Described, nn.Module):
    """Patches to images of three channels, as networks for photographs take them.

    The middle plane is taken and resized. One channel is shown three times; of two, the first is shown again as the
    third. Values, which are normalised to mean 0 and standard deviation 1, are cut at ±3, brought to 0 … 1, and
    normalised as photographs are.

    Parameters
    ----------
    size
        (Y, X) of the image, or one number for both.
    mean, std
        Of the three channels of photographs; the default is ImageNet's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int | Pair = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.size = _pair(size)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, 3, 1, 1))

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b 3 h w"]:
        """Return the images."""
        channels = x.shape[1]
        if channels > 3:
            raise ConfigError(
                f"model.encoder: patches have {channels} channels, but an RGBImage has room for 3. Choose channels, or "
                "give ChannelImages and a backbone for one channel."
            )
        image = _resize(x, self.size)
        if channels < 3:  # without an index, which would be copied to the device
            image = image.expand(-1, 3, -1, -1) if channels == 1 else torch.cat([image, image[:, :1]], 1)
        return ((image.clamp(-3, 3) + 3) / 6 - self.mean) / self.std


class ChannelImages(Described, nn.Module):
    """Patches to one image per channel, for networks that see one channel at a time, such as CELL-DINO.

    The middle plane is taken and resized, and each image is normalised to mean 0 and standard deviation 1.

    Parameters
    ----------
    size
        (Y, X) of the image, or one number for both.
    """

    def __init__(self, size: int | Pair = 224) -> None:
        super().__init__()
        self.size = _pair(size)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "bc 1 h w"]:
        """Return the images: those of the channels of a patch one after another."""
        image = _resize(x, self.size)
        std, mean = torch.std_mean(image, dim=(-2, -1), correction=0, keepdim=True)
        # (B, C, H, W) → (B·C, 1, H, W)
        return ((image - mean) / (std + 1e-7)).flatten(0, 1).unsqueeze(1)


class TransformersBackbone(Described, nn.Module):
    """A vision network of Hugging Face transformers, such as DINOv2 or DINOv3. Needs `dynaclr-wds[transformers]`.

    Parameters
    ----------
    model
        Folder with the network's config and weights, or its name on the hub. It is read once: a checkpoint holds the
        config and the weights.
    config
        What a checkpoint knows of the network: its config. With it nothing is read from `model`, and the weights are
        random until a checkpoint is loaded.

    Raises
    ------
    ConfigError
        transformers is not installed, or the network can't be read.
    """

    def __init__(self, model: str | None = None, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        transformers = import_optional("transformers", f"The network {model or (config or {}).get('model_type')!r}")
        try:
            if config is None:
                self.network = transformers.AutoModel.from_pretrained(model)
            else:
                made = transformers.AutoConfig.for_model(**config)
                self.network = transformers.AutoModel.from_config(made)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"model.encoder: transformers {transformers.__version__} can't make a network of model={model!r} "
                f"({' '.join(str(error).split()):.300}). Give the folder that save_pretrained() or a download made."
            ) from error
        self.network.train()  # from_pretrained leaves it in evaluation, a new one is not
        settings = self.network.config
        self.num_features = int(getattr(settings, "hidden_size", None) or settings.hidden_sizes[-1])
        self.settled_arguments = {"config": json.loads(settings.to_json_string())}

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        """Return the features, pooled as the network does."""
        return self.network(pixel_values=x).pooler_output


class FrozenBackbone(Described, nn.Module):
    """A network that was trained before, which stays as it is, and a head that is trained.

    The network is in evaluation always, has no gradients, and is not in the optimizer. Its weights are in the
    checkpoints all the same.

    Parameters
    ----------
    backbone
        Images to features (B, F): `TransformersBackbone`, `TimmBackbone`, or any. A module or its description.
    prepare
        Patches (B, C, Z, Y, X) to images: `RGBImage`, or `ChannelImages`, with which the features of a patch are the
        mean over its channels. A module or its description.
    projection
        Features to projections, such as `dynaclr_wds.train.heads.MLP`; None = the features are compared themselves.
    freeze
        False trains the backbone too.
    """

    def __init__(
        self,
        backbone: ModuleOrDescription,
        prepare: ModuleOrDescription,
        projection: ModuleOrDescription | None = None,
        freeze: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = make_module(backbone, "backbone")
        self.prepare = make_module(prepare, "prepare")
        self.projection = nn.Identity() if projection is None else make_module(projection, "projection")
        self.num_features: int | None = getattr(self.backbone, "num_features", None)
        self.freeze = freeze
        if freeze:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Set the mode of all but a frozen backbone."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def forward(self, x: Float[Tensor, "b c z y x"]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b p"]]:
        """Return features and projections."""
        features = self.backbone(self.prepare(x))
        if len(features) != len(x):
            # (B·C, F) → (B, F)
            features = features.unflatten(0, (len(x), -1)).mean(1)
        return features, self.projection(features)


def _pair(size: int | Pair) -> Pair:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _resize(x: Float[Tensor, "b c z y x"], size: Pair) -> Float[Tensor, "b c h w"]:
    return interpolate(x[:, :, x.shape[2] // 2], size=size, mode="bilinear", align_corners=False)
