"""Stand-ins for timm and transformers, which the tests' environment lacks: networks of the same parts and names.

timm needs torchvision, which must be built for the very torch that is installed, and transformers makes every process
start slower. Where the real libraries can be imported, the tests use them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn


def use_timm(patch: pytest.MonkeyPatch) -> None:
    """Make `import timm` work: the library, or its stand-in."""
    _use(patch, "timm", {"create_model": create_model, "list_models": lambda *_: [], "__version__": "stand-in"})


def use_transformers(patch: pytest.MonkeyPatch) -> None:
    """Make `import transformers` work: the library, or its stand-in."""
    names = {"AutoModel": AutoModel, "AutoConfig": AutoConfig, "Dinov2Config": Dinov2Config, "__version__": "stand-in"}
    _use(patch, "transformers", names)


def hide(patch: pytest.MonkeyPatch, name: str) -> None:
    """Make an import fail as that of a library that is not installed."""
    patch.setitem(sys.modules, name, None)


def _use(patch: pytest.MonkeyPatch, name: str, names: dict[str, Any]) -> None:
    try:
        import_module(name)
    except ImportError:
        module = ModuleType(name)
        module.__dict__.update(names)
        patch.setitem(sys.modules, name, module)


# timm

SIZES = {
    "convnext_tiny": ((96, 192, 384, 768), (3, 3, 9, 3)),
    "test_convnext": ((24, 32, 48, 64), (1, 2, 4, 2)),
}


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, 4 * width))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(4 * width, width))
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))
        self.drop_path = drop_path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.mlp(self.norm(self.conv_dw(x).movedim(1, -1))).movedim(-1, 1) * self.gamma[:, None, None]
        if self.training and self.drop_path:
            keep = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_path
            branch = branch * keep / (1 - self.drop_path)
        return x + branch


class ConvNeXt(nn.Module):
    def __init__(self, widths: Sequence[int], depths: Sequence[int], num_classes: int, drop_path_rate: float) -> None:
        super().__init__()
        self.default_cfg = {"first_conv": "stem.0"}
        self.num_features = widths[-1]
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), LayerNorm2d(widths[0], eps=1e-6))
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.stages = nn.Sequential()
        before = widths[0]
        for width, depth in zip(widths, depths, strict=True):
            stage = nn.Sequential()
            down = nn.Sequential(LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, width, 2, 2))
            stage.add_module("downsample", down if width != before else nn.Identity())
            stage.add_module("blocks", nn.Sequential(*(Block(width, rates.pop(0)) for _ in range(depth))))
            self.stages.append(stage)
            before = width
        self.head = nn.Sequential()
        self.head.add_module("global_pool", nn.AdaptiveAvgPool2d(1))
        self.head.add_module("norm", LayerNorm2d(before, eps=1e-6))
        self.head.add_module("flatten", nn.Flatten())
        self.head.add_module("fc", nn.Linear(before, num_classes) if num_classes else nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(x)))


def create_model(name: str, pretrained: bool, num_classes: int, drop_path_rate: float = 0.0) -> nn.Module:
    assert not pretrained
    if name not in SIZES:
        raise RuntimeError(f"Unknown model ({name})")
    return ConvNeXt(*SIZES[name], num_classes, drop_path_rate)


# transformers


class Dinov2Config:
    def __init__(self, hidden_size: int = 8, **settings: Any) -> None:
        self.hidden_size, self.settings = hidden_size, settings

    def to_json_string(self) -> str:
        return json.dumps({"model_type": "dinov2", "hidden_size": self.hidden_size})


class Dinov2(nn.Module):
    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, config.hidden_size))
        self.layers.append(nn.BatchNorm1d(config.hidden_size))  # which changes while it is trained
        self.layers.append(nn.Dropout(0.5))

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=self.layers(pixel_values))

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(self.config.to_json_string())
        torch.save(self.state_dict(), folder / "weights.pt")


class AutoConfig:
    @staticmethod
    def for_model(model_type: str, **settings: Any) -> Dinov2Config:
        assert model_type == "dinov2"
        return Dinov2Config(**settings)


class AutoModel:
    @staticmethod
    def from_config(config: Dinov2Config) -> Dinov2:
        return Dinov2(config)

    @staticmethod
    def from_pretrained(model: str) -> Dinov2:
        if not Path(model).is_dir():
            raise OSError(f"{model} is not a local folder and is not a valid model identifier")
        network = Dinov2(AutoConfig.for_model(**json.loads((Path(model) / "config.json").read_text())))
        network.load_state_dict(torch.load(Path(model) / "weights.pt", weights_only=True))
        return network.eval()
