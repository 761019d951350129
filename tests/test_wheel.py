"""A wheel, installed in a clean environment outside the repository, is all that the commands need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("dynaclr_wds", "etl", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input")


def run(*command: str | Path, folder: Path) -> str:
    """Run a command without anything of the repository in its environment; return what it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV"))}
    done = subprocess.run([str(c) for c in command], cwd=folder, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", ".*"))
        else:
            shutil.copy(ROOT / name, source / name)
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder / "dist", ".", folder=source)
    (made,) = (folder / "dist").iterdir()
    return made


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the console script is: a fresh environment with the wheel; its dependencies are those of this one."""
    root = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(root, symlinks=True)
    python = root / "bin" / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel, folder=root)
    (site,) = root.glob("lib/python*/site-packages")
    # read after this folder, and without the .pth files of the other environment, which may lead to the repository
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    yield root / "bin"
    shutil.rmtree(root)


@pytest.mark.slow
def test_the_wheel_holds_more_than_modules(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"dynaclr_wds/py.typed", "dynaclr_wds/pages/style.css", "etl/py.typed", "dynaclr_wds/read/copy.c"}
    expected |= {"etl/cut/pixels.c", "dynaclr_wds/row_checks.c", "dynaclr_wds/plan/anchors.c"}
    expected |= {f"dynaclr_wds/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    recipes = {f"dynaclr_wds/configs/recipes/{path.name}" for path in (ROOT / "configs/recipes").glob("*.yaml")}
    assert len(recipes) > 12
    expected |= recipes
    expected |= {f"etl/sql/{path.name}" for path in (ROOT / "etl/sql").glob("*.sql")}
    assert expected - names == set()
    assert {name.split("/")[0] for name in names} == {"dynaclr_wds", "etl", "dynaclr_wds-0.1.0.dist-info"}
    if shutil.which("cc"):
        for module in (
            "dynaclr_wds/_row_checks.",
            "dynaclr_wds/read/_copy.",
            "dynaclr_wds/plan/_anchors.",
            "etl/cut/_pixels.",
        ):
            assert any(name.startswith(module) and name.endswith(".so") for name in names)


@pytest.mark.slow
def test_every_command_works_from_the_wheel(bin_folder: Path, tmp_path: Path) -> None:
    program = bin_folder / "dynaclr-wds"

    def call(*argv: str) -> str:
        return run(program, *argv, folder=tmp_path)

    where = "import dynaclr_wds, etl; print(dynaclr_wds.__file__, etl.__file__)"
    for path in run(bin_folder / "python", "-c", where, folder=tmp_path).split():
        assert Path(path).is_relative_to(bin_folder.parent)
    assert call("--version") == "dynaclr-wds 0.1.0\n"
    assert call("fit", "--help").startswith("usage: dynaclr-wds fit -c CONFIG")
    small = ("--experiments=2", "--fovs=1", "--frames=8", "--size=64", "--cells=5", "--cell_radius=7.0")
    assert call("simulate", ".", *small).splitlines()[-1] == "  dynaclr-wds init experiments.yaml"
    assert call("init").splitlines()[-1] == "  dynaclr-wds fit -c configs/fit.yaml"
    assert (tmp_path / "configs/fit.yaml").is_file()
    call("build", "experiments.yaml", "--quiet")
    assert call("verify", "shards").startswith("shards: all is well: manifest, index and ")
    assert "(samples with a positive) of 1 experiment;" in call("shuffle", "-c", "configs/fit.yaml")
    as_module = run(bin_folder / "python", "-m", "etl.verify", "shards", "--quick", folder=tmp_path)
    assert as_module.startswith("shards: manifest and index are what was written, and ")
