"""Checkpoint to an ONNX file: the encoder with its weights, compared with torch by onnxruntime."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dynaclr_wds.errors import CheckpointError
from dynaclr_wds.files import partial_name, rename_whole
from dynaclr_wds.optional import import_optional
from dynaclr_wds.train.checkpoint_content import Checkpoint, read_checkpoint
from dynaclr_wds.train.prediction import make_network

_TOLERANCE = 1e-4
"""Most that the two may differ, as a share of the largest value: kernels sum in another order."""
_BATCHES = (3, 1)
"""Sizes that are compared; the file is traced with the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    shape: tuple[int, ...]
    """(channel, Z, Y, X) of a patch."""
    features: int
    projections: int
    difference: float
    """Largest difference to torch, as a share of the largest value."""


class _Both(nn.Module):
    """An encoder that always gives features and projections."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module.encoder

    def forward(self, x: Float[Tensor, "b c z y x"]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b p"]]:
        encoded = self.module(x)
        return (encoded, encoded.clone()) if isinstance(encoded, Tensor) else (encoded[0], encoded[1])


def export_checkpoint(ckpt: str, out: Path) -> Exported:
    """Write the encoder of a checkpoint as ONNX.

    Raises
    ------
    CheckpointError
        It can't be used; the encoder can't be exported; or what was exported computes something else.
    ConfigError
        onnx, onnxscript or onnxruntime is not installed.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_optional(name, "export", "onnx")
    checkpoint = read_checkpoint(ckpt)
    network = _Both(make_network(checkpoint)).eval()
    shape = shown_shape_of(checkpoint)
    partial = partial_name(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        _export(network, shape, partial, checkpoint)
        widths, difference = compare(network, shape, partial)
        if not difference <= _TOLERANCE:
            raise CheckpointError(
                f"{ckpt}: as ONNX its encoder computes something else: by {difference:.1e} of the largest value, where "
                f"{_TOLERANCE:.0e} is allowed. Nothing was written. Use another encoder, or embed with `predict`."
            )
        rename_whole(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(shape=shape, features=widths[0], projections=widths[1], difference=difference)


def shown_shape_of(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Say what shape (channel, Z, Y, X) of patches the network was trained on.

    Raises
    ------
    CheckpointError
        Of several shapes.
    """
    shapes = sorted(map(tuple, checkpoint.seen.shown))
    if len(shapes) != 1:
        raise CheckpointError(
            f"{checkpoint.path}: was trained on patches of the shapes {shapes or 'none'}; one shape can be exported."
        )
    return shapes[0]


def _export(network: nn.Module, shape: tuple[int, ...], path: Path, checkpoint: Checkpoint) -> None:
    example = torch.randn(_BATCHES[0], *shape, generator=torch.Generator().manual_seed(0))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of torchvision, which isn't needed
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch's exporter about itself
            program = torch.onnx.export(
                network,
                (example,),
                input_names=["patches"],
                output_names=["features", "projections"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{checkpoint.path}: torch can't export its encoder ({first:.200}). --debug shows where. "
            "Embed with `predict`."
        ) from error
    if program is None:
        raise CheckpointError(f"{checkpoint.path}: torch exported nothing. Embed with `predict`.")
    model = program.model_proto
    for key, value in _describe(checkpoint).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    path.write_bytes(model.SerializeToString())


def _describe(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Say what must be done before and what the file was made of."""
    return {
        "checkpoint_sha256": checkpoint.sha256,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "encoder": checkpoint.module.get("encoder"),
        "channels": [list(names) for names in checkpoint.seen.channels],
        "normalizations": checkpoint.data.get("normalizations") or [],
        "final_yx_patch_size": checkpoint.data.get("final_yx_patch_size"),
        "final_z": checkpoint.data.get("final_z"),
        "z_reduction": checkpoint.data.get("z_reduction"),
    }


def compare(network: nn.Module, shape: tuple[int, ...], path: Path) -> tuple[tuple[int, int], float]:
    """Run the file and the network on the same patches.

    Returns
    -------
    Widths of features and projections, and the largest difference as a share of the largest value.
    """
    runtime = import_optional("onnxruntime", "export", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    widths, worst = (0, 0), 0.0
    for count in _BATCHES:
        x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            expected = [part.numpy() for part in network(x)]
        found = session.run(["features", "projections"], {"patches": x.numpy()})
        widths = expected[0].shape[1], expected[1].shape[1]
        for one, other in zip(expected, found, strict=True):
            scale = max(float(np.abs(one).max()), 1e-12)
            worst = max(worst, float(np.abs(one - other).max()) / scale if one.shape == other.shape else np.inf)
    return widths, worst
