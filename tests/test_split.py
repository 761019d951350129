"""Laws of splits: masks are those of the names, and a name that isn't there is an error that lists those that are."""

import pytest

from dynaclr_wds.contract import FovRecord
from dynaclr_wds.fov_names import check_experiments, keep_experiments, keep_fovs

FOVS = [
    FovRecord(experiment=e, fov_name=f, well=f.rsplit("/", 1)[0], frames=1, height=8, width=8)
    for e, f in (("a", "A/1/0"), ("a", "A/1/1"), ("a", "B/2/0"), ("b", "A/1/0"))
]


def test_masks_say_which_fovs_are_used():
    assert keep_experiments(FOVS, ["b"]).tolist() == [False, False, False, True]
    assert keep_fovs(FOVS, None, None).tolist() == [True] * 4
    assert keep_fovs(FOVS, ["A/1"], None).tolist() == [True, True, False, True]
    assert keep_fovs(FOVS, None, ["A/1/0"]).tolist() == [False, True, True, False]
    assert keep_fovs(FOVS, ["A/1"], ["A/1/1"]).tolist() == [True, False, False, True]
    assert keep_fovs(FOVS, [], None).tolist() == [False] * 4


def test_names_that_are_not_there_are_refused():
    check_experiments(["a"], ["b", "a"], "val_experiments")
    with pytest.raises(ValueError, match=r"val_experiments names \['c'\], .* They hold \['a', 'b'\]"):
        check_experiments(["a", "c"], ["b", "a"], "val_experiments")
    with pytest.raises(ValueError, match=r"include_wells names \['C/9'\], .* Known: \['A/1', 'B/2'\]"):
        keep_fovs(FOVS, ["C/9"], None)
    with pytest.raises(ValueError, match=r"exclude_fovs names \['A/1/7'\], .* Known: \['A/1/0', 'A/1/1', 'B/2/0'\]"):
        keep_fovs(FOVS, None, ["A/1/7"])
