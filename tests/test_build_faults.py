"""Each fault of disks and files around a build is found, named and mended, as the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.build_faults import BEGIN, END, FAULTS, PAGE, Fault, Scene, run_fault, write_table

pytestmark = pytest.mark.usefixtures("without_fsync")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene.make(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.name}, {fault.at}")
def test_a_fault_is_found_named_and_mended_to_the_same_bytes(scene: Scene, fault: Fault, tmp_path: Path):
    outcome, name = run_fault(fault, scene, tmp_path)
    assert (outcome.found, outcome.mended) == (fault.found, fault.mended), outcome.said
    assert name in outcome.said
    for word, said in {"line": "line ", "frames": "frame"}.items():
        assert word not in fault.names.split(", ") or said in outcome.said


def test_the_page_has_the_table_of_these_faults():
    assert PAGE.read_text().split(BEGIN)[1].split(END)[0] == write_table()
