"""Dependencies point one way: the halves share the contract only, and it is light."""

import subprocess
import sys
from pathlib import Path

import pytest

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


def test_online_half_imports_no_duckdb_no_zarr_and_no_etl():
    public_names = "assert [getattr(dynaclr_wds, name) for name in dynaclr_wds.__all__]"
    loaded = loaded_by(*(f"import {name}" for name in modules_of("dynaclr_wds")), public_names)
    assert {"torch", "lightning", "kornia"} <= loaded
    assert loaded.isdisjoint({"duckdb", "zarr", "etl", "tensorstore"})


def test_offline_half_imports_no_torch():
    names = modules_of("etl")
    assert "etl.layout.clips" in names
    loaded = loaded_by(*(f"import {name}" for name in names))
    assert loaded.isdisjoint({"torch", "lightning", "kornia", "monai"})


def test_contract_needs_numpy_only():
    loaded = loaded_by("import dynaclr_wds.contract")
    assert "numpy" in loaded
    assert loaded.isdisjoint({"torch", "pyarrow", "lightning", "kornia", "webdataset", "jaxtyping"})


def test_plan_needs_no_torch():
    loaded = loaded_by(*(f"import {name}" for name in modules_of("dynaclr_wds/plan")))
    assert loaded.isdisjoint({"torch", "pyarrow", "webdataset"})


def test_unknown_public_name_lists_those_there_are():
    import dynaclr_wds

    with pytest.raises(AttributeError, match=r"no attribute 'Sampler'; it has ChannelDropout, ContrastiveModule"):
        _ = dynaclr_wds.Sampler
    assert "NTXentHCL" in dir(dynaclr_wds)
