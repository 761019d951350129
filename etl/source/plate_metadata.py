"""Checks the metadata documents of OME-Zarr plates: against the models of their version, and VisCy's statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ome_zarr_models.v04.multiscales import Multiscale as MultiscaleV04
from ome_zarr_models.v04.plate import Plate as PlateV04
from ome_zarr_models.v04.well_types import WellMeta as WellV04
from ome_zarr_models.v05.multiscales import Multiscale as MultiscaleV05
from ome_zarr_models.v05.plate import Plate as PlateV05
from ome_zarr_models.v05.well_types import WellMeta as WellV05
from pydantic import ValidationError

from dynaclr_wds.errors import PlateError
from etl.source.image_axes import find_axes, sort_axes

Normalization = Mapping[str, Mapping[str, Any]]
"""Channel → level (`fov_statistics`, `dataset_statistics`, `timepoint_statistics`) → statistics."""

_MODELS = {
    "plate": (PlateV04, PlateV05),
    "well": (WellV04, WellV05),
    "multiscales": (MultiscaleV04, MultiscaleV05),
}
_TRANSFORMS = "coordinateTransformations"
_NAMED = 3
"""Faults of a document that an error names."""
_LEVELS = ("fov_statistics", "dataset_statistics", "timepoint_statistics")


def as_mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping as it is, and an empty one in place of anything else."""
    return value if isinstance(value, Mapping) else {}


def ome_of(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the OME metadata: OME-Zarr 0.5 has them under `ome`, 0.4 at the top."""
    return as_mapping(attributes.get("ome", attributes))


def parse_model(attributes: Mapping[str, Any], key: str, where: str) -> Any:
    """Check the metadata under `key` against the model of its OME-Zarr version."""
    raw = ome_of(attributes).get(key)
    if key == "multiscales" and isinstance(raw, list) and raw:
        raw = raw[0]
    if not isinstance(raw, Mapping):
        raise PlateError(
            f"{where}: has no OME-Zarr `{key}` metadata. Give the folder of an HCS plate, OME-Zarr 0.4 or 0.5."
        )
    new = "ome" in attributes
    if new and key == "plate":
        raw = {"version": ome_of(attributes).get("version", "0.5"), **raw}
    try:
        return _MODELS[key][new].model_validate(raw)
    except ValidationError as error:
        version = "0.5" if new else "0.4"
        what = _list_faults(error, key)
        raise PlateError(f"{where}: `{key}` is not OME-Zarr {version} ({what}). Correct the plate.") from error


def _list_faults(error: ValidationError, key: str) -> str:
    """Name the first places that are wrong, each once; what holds a wrong part is wrong only for that."""
    faults: dict[str, str] = {}
    for fault in error.errors():
        steps = [step for step in fault["loc"] if isinstance(step, int) or (step.isidentifier() and step[0].islower())]
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".") or key
        simple = isinstance(fault["input"], str | int | float)
        message = " ".join(fault["msg"].split())
        faults.setdefault(place, f"{place}={fault['input']!r}: {message}" if simple else f"{place}: {message}")
    innermost = [
        said for place, said in faults.items() if not any(p.startswith((f"{place}.", f"{place}[")) for p in faults)
    ]
    named = "; ".join(innermost[:_NAMED])
    return named if len(innermost) <= _NAMED else f"{named}; and {len(innermost) - _NAMED} more"


def parse_multiscale(attributes: Mapping[str, Any], where: str) -> tuple[Any, str]:
    """Check the metadata of an image; return them with their axes sorted, and the axes of its arrays in their order.

    Raises
    ------
    PlateError
        They are not OME-Zarr, or axes have no names that are known.
    """
    ome = ome_of(attributes)
    found = ome.get("multiscales")
    if not (isinstance(found, list) and found and isinstance(found[0], Mapping)):
        return parse_model(attributes, "multiscales", where), ""
    axes = find_axes(found[0].get("axes"), where)
    said = {"multiscales": [sort_axes(_write_out_identity(found[0], len(axes)), axes)]}
    return parse_model({"ome": said} if "ome" in attributes else said, "multiscales", where), axes


def _write_out_identity(multiscale: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Put scales of 1 where an image names the identity, which OME-Zarr has no room for and iohub writes."""

    def kept(transforms: object) -> object:
        if not isinstance(transforms, list):
            return transforms
        others = [t for t in transforms if as_mapping(t).get("type") != "identity"]
        scaled = any(as_mapping(t).get("type") == "scale" for t in others)
        if scaled or len(others) == len(transforms):
            return others
        return [{"type": "scale", "scale": [1.0] * count}, *others]

    written, datasets = dict(multiscale), multiscale.get("datasets")
    if isinstance(datasets, list):
        written["datasets"] = [{**d, _TRANSFORMS: kept(d.get(_TRANSFORMS))} if as_mapping(d) else d for d in datasets]
    if multiscale.get(_TRANSFORMS) is not None:
        written[_TRANSFORMS] = kept(multiscale[_TRANSFORMS])
    return written


def parse_normalization(raw: object, where: str) -> Normalization | None:
    """Check VisCy's `normalization` attribute down to its levels; statistics are checked where they are used."""
    if raw is None:
        return None
    good = isinstance(raw, Mapping) and all(
        isinstance(levels, Mapping) and all(isinstance(levels.get(level, {}), Mapping) for level in _LEVELS)
        for levels in raw.values()
    )
    if not good:
        raise PlateError(
            f"{where}: `normalization`={raw!r} must be {{channel: {{level: {{statistic: value}}}}}} with levels "
            f"{list(_LEVELS)}. Remove it or compute it again."
        )
    return raw  # type: ignore[return-value]
