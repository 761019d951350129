"""Turns patches into embeddings with networks of timm: ConvNeXt and ResNet behind a stem for stacks, or any for images.

Needs the extra: `pip install 'dynaclr-wds[timm]'`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from dynaclr_wds.describe import Described, ModuleOrDescription, make_module
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.optional import import_optional
from dynaclr_wds.train.encoder import check_planes

Triple = tuple[int, int, int]


class StackStem(nn.Module):
    """A convolution in 3D whose planes become channels, in front of a network for images.

    Parameters
    ----------
    in_channels
        Channels of a patch.
    in_stack_depth
        Planes of a patch.
    out_channels
        Channels that the network takes; they must be a multiple of the planes that the convolution leaves.
    kernel_size, stride
        (Z, Y, X).

    Raises
    ------
    ConfigError
        The planes that are left do not divide `out_channels`.
    """

    def __init__(
        self, in_channels: int, in_stack_depth: int, out_channels: int, kernel_size: Triple, stride: Triple
    ) -> None:
        super().__init__()
        planes = (in_stack_depth - kernel_size[0]) // stride[0] + 1
        if planes < 1 or out_channels % planes:
            raise ConfigError(
                f"model.encoder: in_stack_depth={in_stack_depth} with stem_kernel_size={tuple(kernel_size)} and "
                f"stem_stride={tuple(stride)} leaves {max(planes, 0)} planes, but they must be 1 or more and divide "
                f"the {out_channels} channels of the stem. Choose another stem, or another depth."
            )
        self.conv = nn.Conv3d(in_channels, out_channels // planes, kernel_size, stride)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k h w"]:
        """Return an image with channels and planes as channels."""
        # (B, K/planes, planes, H, W) → (B, K, H, W)
        return self.conv(x).flatten(1, 2)


class TimmEncoder(Described, nn.Module):
    """A network of timm behind a stem for stacks, with a projection head: `ContrastiveEncoder` of mehta-lab/VisCy.

    Its weights have the names of VisCy's: `stem`, `encoder`, `projection`. `model.init_from` takes them from there.

    Parameters
    ----------
    backbone
        A network of timm whose first layer is a convolution: convnext_tiny, convnextv2_tiny, resnet50, … .
    in_channels
        Channels of a patch.
    in_stack_depth
        Planes (Z) of a patch.
    stem_kernel_size, stem_stride
        (Z, Y, X) of the convolution that replaces the network's first one.
    embedding_dim
        Width of the hidden layer of the head; None = the number of features, which is the network's own (768 for
        convnext_tiny).
    projection_dim
        Length of the projections.
    drop_path_rate
        Share of residual branches that are left out in training.
    projection
        Another head, from the features to the projections; None = linear, batch normalisation, ReLU, linear, batch
        normalisation. A module or its description.

    Raises
    ------
    ConfigError
        timm is not installed or doesn't know the network; the stem doesn't fit; in `forward`: patches with another
        number of channels or planes, or too small ones.
    """

    def __init__(
        self,
        backbone: str = "convnext_tiny",
        in_channels: int = 1,
        in_stack_depth: int = 1,
        stem_kernel_size: Triple = (5, 4, 4),
        stem_stride: Triple = (5, 4, 4),
        embedding_dim: int | None = None,
        projection_dim: int = 128,
        drop_path_rate: float = 0.0,
        projection: ModuleOrDescription | None = None,
    ) -> None:
        super().__init__()
        encoder = make_timm(backbone, drop_path_rate=drop_path_rate)
        first = encoder.default_cfg.get("first_conv")
        if not isinstance(first, str) or not hasattr(encoder.get_submodule(first), "out_channels"):
            raise ConfigError(
                f"model.encoder.backbone={backbone!r} does not begin with one convolution, which the stem would "
                "replace. Give a ConvNeXt or a ResNet, such as convnext_tiny."
            )
        self.in_channels, self.in_stack_depth = in_channels, in_stack_depth
        self.stem = StackStem(
            in_channels, in_stack_depth, encoder.get_submodule(first).out_channels, stem_kernel_size, stem_stride
        )
        parent, _, last = first.rpartition(".")
        setattr(encoder.get_submodule(parent), last, nn.Identity())
        self.encoder = encoder
        self.num_features: int = encoder.num_features
        hidden = embedding_dim or self.num_features
        self.projection = (
            nn.Sequential(
                nn.Linear(self.num_features, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(inplace=True),
                nn.Linear(hidden, projection_dim),
                nn.BatchNorm1d(projection_dim),
            )
            if projection is None
            else make_module(projection, "projection")
        )

    def forward(self, x: Float[Tensor, "b c z y x"]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b p"]]:
        """Return features and projections."""
        check_planes(self, x.shape[1], x.shape[2])
        try:
            features = self.encoder(self.stem(x))
        except RuntimeError as error:
            if "Kernel size can't be greater" not in str(error):
                raise
            raise ConfigError(
                f"model.encoder: patches of (Z, Y, X) = {tuple(x.shape[2:])} are too small for the network: nothing is "
                f"left after its {self.stem.conv.stride} stem and its layers. Give larger patches, or a smaller "
                "stem_stride."
            ) from error
        return features, self.projection(features)


class TimmBackbone(Described, nn.Module):
    """A network of timm as it is, for images (B, channels, Y, X).

    Parameters
    ----------
    name
        Of the network in timm, such as vit_large_patch16_224.
    settings
        Other arguments of `timm.create_model`, such as `in_chans: 1`.

    Raises
    ------
    ConfigError
        timm is not installed, doesn't know the network, or doesn't take the settings.
    """

    def __init__(self, name: str, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.network = make_timm(name, **(settings or {}))
        self.num_features: int = self.network.num_features

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b f"]:
        """Return the features, pooled."""
        return self.network(x)


def make_timm(name: str, **settings: Any) -> Any:
    """Make a network of timm without its classifier and without pretrained weights.

    Raises
    ------
    ConfigError
        timm is not installed, doesn't know the network, or doesn't take the settings.
    """
    timm = import_optional("timm", f"The network {name!r}")
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **settings)
    except (RuntimeError, TypeError, ValueError) as error:
        near = ", ".join(timm.list_models(f"{name.split('_')[0]}*")[:5])
        raise ConfigError(
            f"model.encoder: timm {timm.__version__} can't make {name!r} with {_show(settings)} "
            f"({' '.join(str(error).split()):.200})."
            + (f" Near names: {near}." if near else "")
            + " timm.list_models() lists all."
        ) from error


def _show(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items()) or "no settings"
