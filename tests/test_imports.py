"""Dependencies point one way: the halves share light modules only."""

import subprocess
import sys
from pathlib import Path

import pytest

import dynaclr_wds
import dynaclr_wds.train

ROOT = Path(__file__).parent.parent

SHOW = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def modules_of(package: str) -> list[str]:
    """Every module of a package but commands that run when imported."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def loaded_by(*statements: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after the statements."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*statements, SHOW])], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.slow
def test_online_half_imports_no_duckdb_no_zarr_and_no_etl():
    loaded = loaded_by(*(f"import {name}" for name in modules_of("dynaclr_wds")))
    assert {"torch", "lightning", "kornia"} <= loaded
    assert loaded.isdisjoint({"duckdb", "zarr", "etl", "tensorstore"})


def test_offline_half_imports_no_torch():
    names = modules_of("etl")
    assert "etl.layout.clips" in names
    loaded = loaded_by(*(f"import {name}" for name in names))
    assert loaded.isdisjoint({"torch", "lightning", "kornia", "monai"})


def test_contract_errors_and_tau_need_numpy_only():
    loaded = loaded_by("import dynaclr_wds.contract, dynaclr_wds.errors, dynaclr_wds.tau")
    assert "numpy" in loaded
    assert loaded.isdisjoint({"torch", "pyarrow", "lightning", "kornia", "webdataset", "jaxtyping"})


def test_object_storage_needs_no_torch_and_is_loaded_when_a_url_is_used():
    loaded = loaded_by(*(f"import {name}" for name in modules_of("dynaclr_wds/storage")))
    assert "obstore" in loaded
    assert loaded.isdisjoint({"torch", "lightning", "duckdb", "zarr", "pyarrow", "etl"})
    assert "obstore" not in loaded_by("import etl.build_shards, etl.verify")


def test_plan_needs_no_torch():
    loaded = loaded_by(*(f"import {name}" for name in modules_of("dynaclr_wds/plan")))
    assert loaded.isdisjoint({"torch", "pyarrow", "webdataset"})


def test_public_names_are_loaded_when_they_are_used_and_not_before():
    loaded = loaded_by("import dynaclr_wds, dynaclr_wds.train", "dir(dynaclr_wds), dir(dynaclr_wds.train)")
    assert loaded.isdisjoint({"numpy", "torch", "lightning"})


@pytest.mark.parametrize("package", [dynaclr_wds, dynaclr_wds.train], ids=lambda package: package.__name__)
def test_every_public_name_is_there_and_listed(package):
    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)


def test_unknown_public_name_lists_those_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'Sampler'; it has ChannelDropout, ContrastiveModule"):
        _ = dynaclr_wds.Sampler
    with pytest.raises(AttributeError, match=r"no attribute 'Encoder'; it has BACKBONES, ChannelImages"):
        _ = dynaclr_wds.train.Encoder
