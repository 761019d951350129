"""Whatever goes wrong on the way, what is read or written is equal in every byte, or one error names the object."""

from __future__ import annotations

import pytest

from tests.conftest import make_matrix_set
from tests.matrix.objects import OBJECTS, Scene
from tests.matrix.outcomes import EITHER, EQUAL, run_trials
from tests.matrix.page import BUCKET, PAGE, make_column, read_tables, write_tables
from tests.matrix.trials import HARMLESS, ONCE, TRIALS
from tests.servers.faults import KINDS
from tests.servers.seaweedfs import SeaweedFS
from tests.shared_build import make_once


@pytest.fixture(scope="module")
def scene(seaweedfs: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A small set in a bucket whose name is the same in every run, so that seeds give the same faults."""
    local = make_once(tmp_path_factory, "matrix", make_matrix_set) / "shards"
    return Scene.make(local, seaweedfs.bucket(BUCKET), tmp_path_factory.mktemp("matrix_cache"))


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTS)
def test_every_fault_ends_in_equal_bytes_or_one_error_in_time_as_the_page_says(scene: Scene, name: str):
    outcomes = run_trials(name, scene)
    harmless = [trial for trial in TRIALS if trial.length == ONCE or trial.kind in HARMLESS]
    assert {outcomes[trial].words for trial in harmless} <= {EQUAL, EITHER}
    assert make_column(outcomes) == read_tables(PAGE.read_text())[name]


def test_the_page_shows_at_least_300_schedules_for_every_object_and_fault():
    text = PAGE.read_text()
    columns = read_tables(text)
    assert list(columns) == list(OBJECTS)
    assert all(list(column) == list(KINDS) for column in columns.values())
    assert write_tables(columns) in text
    assert len(columns) * len(TRIALS) >= 300
