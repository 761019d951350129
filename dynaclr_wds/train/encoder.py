"""Turns patches into embeddings: a backbone in 2D or 3D with a projection head.

Training compares the projections. What is kept of a cell are the features before the head, which transfer better
(Chen et al., "A simple framework for contrastive learning of visual representations", ICML 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dynaclr_wds.describe import Described, ModuleOrDescription, make_module
from dynaclr_wds.errors import ConfigError

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
"""Spatial dimensions → how GPUs take images and volumes fastest."""


class ProjectedEncoder(Described, nn.Module):
    """A backbone for images or volumes, with a projection head, on patches (B, C, Z, Y, X).

    Parameters
    ----------
    backbone
        Maps (B, C·Z, Y, X) or (B, C, Z, Y, X) to features (B, `embedding_dim`). A module, or its description: the
        `class_path` and `init_args` that a config would have. With a description a checkpoint says how to make it.
    spatial_dims
        2: every Z of every channel is an input channel of the backbone. 3: the backbone sees volumes.
    embedding_dim
        Number of features.
    projection_dim
        Length of the projections, where `projection` is None.
    projection
        Another head, from features to projections, such as `dynaclr_wds.train.heads.MLP`, `torch.nn.Linear` or
        `torch.nn.Identity`; None = two linear layers. A module or its description.

    Raises
    ------
    ValueError
        In `forward`: the backbone gives features of another length.
    """

    def __init__(
        self,
        backbone: ModuleOrDescription,
        spatial_dims: Literal[2, 3] = 2,
        embedding_dim: int = 512,
        projection_dim: int = 128,
        projection: ModuleOrDescription | None = None,
    ) -> None:
        super().__init__()
        self.backbone = make_module(backbone, "backbone")
        self.spatial_dims = spatial_dims
        self.embedding_dim = embedding_dim
        # the head of SimCLR, with batch normalisation after each layer as in mehta-lab/VisCy
        self.projection = (
            nn.Sequential(
                nn.Linear(embedding_dim, embedding_dim, bias=False),
                nn.BatchNorm1d(embedding_dim),
                nn.ReLU(inplace=True),
                nn.Linear(embedding_dim, projection_dim, bias=False),
                nn.BatchNorm1d(projection_dim),
            )
            if projection is None
            else make_module(projection, "projection")
        )

    @property
    def num_features(self) -> int:
        """Length of the features."""
        return self.embedding_dim

    def forward(self, x: Float[Tensor, "b c z y x"]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b p"]]:
        """Return features and projections."""
        x = x.flatten(1, 2) if self.spatial_dims == 2 else x
        if x.is_cuda:  # tensor cores take channels last: up to twice as fast, docs/BENCHMARKS.md
            x = x.contiguous(memory_format=CHANNELS_LAST[self.spatial_dims])
        features = self.backbone(x)
        if features.ndim != 2 or features.shape[1] != self.embedding_dim:
            raise ValueError(
                f"model.encoder: the backbone gives features of shape {tuple(features.shape)}, but embedding_dim="
                f"{self.embedding_dim} asks for (batch, {self.embedding_dim}). Make them agree."
            )
        return features, self.projection(features)


class MonaiEncoder(ProjectedEncoder):
    """A MONAI network, in 2D with Z as channels or in 3D.

    Parameters
    ----------
    backbone
        One of `BACKBONES`: resnet10, resnet18, resnet34, resnet50, densenet121, densenet169, efficientnet-b0.
    spatial_dims
        2: every Z of every channel is an input channel. 3: volumes, of any depth for a ResNet, of at least 32 planes
        for a DenseNet or an EfficientNet.
    in_channels
        Channels of a patch.
    in_stack_depth
        Planes (Z) of a patch.
    embedding_dim
        Number of features.
    projection_dim
        Length of the projections, where `projection` is None.
    projection
        Another head, as for `ProjectedEncoder`.

    Raises
    ------
    ValueError
        An unknown backbone; in `forward`, patches with another number of channels or planes.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        spatial_dims: Literal[2, 3] = 2,
        in_channels: int = 2,
        in_stack_depth: int = 1,
        embedding_dim: int = 512,
        projection_dim: int = 128,
        projection: ModuleOrDescription | None = None,
    ) -> None:
        if backbone not in BACKBONES:
            raise ValueError(
                f"model.encoder.backbone={backbone!r} is not one of {', '.join(BACKBONES)}. "
                "For another network give dynaclr_wds.train.encoder.ProjectedEncoder with your backbone."
            )
        planes = in_channels * (in_stack_depth if spatial_dims == 2 else 1)
        super().__init__(
            BACKBONES[backbone](spatial_dims, planes, embedding_dim),
            spatial_dims,
            embedding_dim,
            projection_dim,
            projection,
        )
        if spatial_dims == 3:  # in 2D the arrangement of the input is enough
            self.backbone.to(memory_format=CHANNELS_LAST[3])  # type: ignore[call-overload]
        self.in_channels = in_channels
        self.in_stack_depth = in_stack_depth

    def forward(self, x: Float[Tensor, "b c z y x"]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b p"]]:
        """Return features and projections."""
        check_planes(self, x.shape[1], x.shape[2])
        return super().forward(x)


def check_planes(encoder: nn.Module, channels: int, planes: int) -> None:
    """Check that an encoder takes patches of so many channels and planes, if it says what it takes.

    Raises
    ------
    ConfigError
        It takes others.
    """
    given = channels, planes
    expected = getattr(encoder, "in_channels", None), getattr(encoder, "in_stack_depth", None)
    if None not in expected and given != expected:
        raise ConfigError(
            f"model.encoder: patches have (channels, planes) = {given}, but in_channels, in_stack_depth "
            f"= {expected}. Set model.encoder.init_args.in_channels: {given[0]}, in_stack_depth: {given[1]}."
        )


def _resnet(name: str) -> Callable[[int, int, int], nn.Module]:
    def build(spatial_dims: int, in_channels: int, features: int) -> nn.Module:
        # MONAI's stem keeps full resolution at four times the work; halve it as ResNet does, but never in Z
        stride = (1, 2, 2)[-spatial_dims:]
        return _monai(
            name,
            spatial_dims=spatial_dims,
            n_input_channels=in_channels,
            num_classes=features,
            conv1_t_stride=stride,
        )

    return build


def _densenet(name: str) -> Callable[[int, int, int], nn.Module]:
    def build(spatial_dims: int, in_channels: int, features: int) -> nn.Module:
        return _monai(name, spatial_dims=spatial_dims, in_channels=in_channels, out_channels=features)

    return build


def _efficientnet(model_name: str) -> Callable[[int, int, int], nn.Module]:
    def build(spatial_dims: int, in_channels: int, features: int) -> nn.Module:
        return _monai(
            "EfficientNetBN",
            model_name=model_name,
            pretrained=False,
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_classes=features,
        )

    return build


def _monai(name: str, **settings: object) -> nn.Module:
    # imported here, because MONAI imports all of itself and every optional library it finds: seconds, and zarr
    network: nn.Module = getattr(import_module("monai.networks.nets"), name)(**settings)
    return network


BACKBONES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "resnet10": _resnet("resnet10"),
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
    "resnet50": _resnet("resnet50"),
    "densenet121": _densenet("DenseNet121"),
    "densenet169": _densenet("DenseNet169"),
    "efficientnet-b0": _efficientnet("efficientnet-b0"),
}
"""Name → network from (spatial_dims, in_channels, features)."""
