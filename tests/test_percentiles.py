"""Percentile normalisation: two percentiles become two values, of the patch or of stored statistics."""

import numpy as np
import pytest
import torch
from monai.transforms import ScaleIntensityRangePercentiles

from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.transforms import NormalizePercentiles
from dynaclr_wds.transforms.percentiles import percentile


def statistics(*channels: dict[str, float], batch: int = 3) -> dict[str, torch.Tensor]:
    """Statistics of level `fov` for each channel; those not given are 0."""
    rows = torch.tensor([[channel.get(name, 0.0) for name in STATISTICS] for channel in channels])
    return {"fov": rows.expand(batch, *rows.shape).clone()}


CELLS = {"min": 0.0, "p1": 10.0, "median": 20.0, "p99": 110.0, "max": 210.0}


@pytest.mark.parametrize("q", [0.0, 1.0, 37.3, 50.0, 99.0, 100.0])
@pytest.mark.parametrize("deterministic", [False, True])
def test_percentile_is_numpys(q, deterministic):
    rows = torch.rand(4, 2, 333, generator=torch.Generator().manual_seed(0))
    torch.use_deterministic_algorithms(deterministic)
    try:
        found = percentile(rows, q)
    finally:
        torch.use_deterministic_algorithms(False)
    np.testing.assert_allclose(found.numpy(), np.percentile(rows.numpy(), q, axis=-1), atol=1e-6)


def test_stored_percentiles_become_b_min_and_b_max():
    x = torch.tensor([10.0, 60.0, 110.0, 210.0, -40.0]).expand(3, 2, 1, 1, 5)
    norm_meta = statistics(CELLS, {"p1": 0.0, "p99": 10.0, "max": 10.0})
    result = NormalizePercentiles("fov")(x, norm_meta)
    assert result[0, 0].flatten().tolist() == [0.0, 0.5, 1.0, 2.0, -0.5]
    torch.testing.assert_close(result[0, 1].flatten(), torch.tensor([1.0, 6.0, 11.0, 21.0, -4.0]))
    clipped = NormalizePercentiles("fov", b_min=-1.0, b_max=1.0, clip=True)(x, norm_meta)
    assert clipped[1, 0].flatten().tolist() == [-1.0, 0.0, 1.0, 1.0, -1.0]


def test_percentiles_0_and_100_are_minimum_and_maximum():
    x = torch.tensor([0.0, 105.0, 210.0]).expand(3, 1, 1, 1, 3)
    assert NormalizePercentiles("fov", 0.0, 100.0)(x, statistics(CELLS))[0].flatten().tolist() == [0.0, 0.5, 1.0]
    assert NormalizePercentiles("fov", 50.0, 100.0)(x, statistics(CELLS))[0, 0, 0, 0, 2].item() == 1.0
    assert NormalizePercentiles("patch", 0.0, 100.0)(x + 7, {})[0].flatten().tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(("lower", "upper", "clip"), [(1.0, 99.0, True), (50.0, 99.0, True), (2.5, 90.0, False)])
def test_percentiles_of_the_patch_are_what_monai_takes(lower, upper, clip):
    x = 500 * torch.rand(3, 2, 4, 9, 11, generator=torch.Generator().manual_seed(1)) ** 3
    result = NormalizePercentiles("patch", lower, upper, b_min=0.0, b_max=2.0, clip=clip)(x, {})
    monai = ScaleIntensityRangePercentiles(lower, upper, 0.0, 2.0, clip=clip)
    for sample in range(3):
        for channel in range(2):
            expected = torch.as_tensor(monai(x[sample, channel]))
            torch.testing.assert_close(result[sample, channel], expected, atol=1e-5, rtol=1e-5)


def test_only_the_channels_that_are_named_are_changed():
    x = torch.full((3, 2, 1, 2, 2), 110.0)
    result = NormalizePercentiles("fov", channels=[1], clip=True)(x, statistics(CELLS, CELLS))
    assert torch.equal(result[:, 0], x[:, 0])
    assert torch.equal(result[:, 1], torch.ones(3, 1, 2, 2))


def test_equal_percentiles_reach_to_the_maximum_and_a_constant_becomes_b_min():
    sparse = {"p1": 10.0, "p99": 10.0, "max": 60.0}
    constant = {"p1": 10.0, "p99": 10.0, "max": 10.0}
    x = torch.tensor([10.0, 35.0, 60.0]).expand(3, 2, 1, 1, 3)
    result = NormalizePercentiles("fov", b_min=-1.0)(x, statistics(sparse, constant))
    assert result[0, 0].flatten().tolist() == [-1.0, 0.0, 1.0]
    assert result[0, 1].flatten().tolist() == [-1.0, -1.0, -1.0]
    flat = torch.zeros(3, 1, 1, 10, 10)
    flat[1, ..., 0, 0] = 8.0
    result = NormalizePercentiles("patch", 1.0, 50.0, b_min=0.25)(flat, {})
    assert torch.equal(result[0], torch.full((1, 1, 10, 10), 0.25))
    assert result[1, 0, 0, 0, :2].tolist() == [1.0, 0.25]


def test_equal_percentiles_are_found_and_described_before_training():
    table = statistics({"p1": 1.0, "p99": 1.0, "max": 5.0}, {"p1": 2.0, "p99": 2.0, "max": 2.0}, batch=2)["fov"].numpy()
    table[1, 0] = [np.nan] * len(STATISTICS)  # a frame that was not read
    module = NormalizePercentiles("fov")
    assert module.find_zero_divisors({"fov": table}) == [(0, 0, False), (0, 1, True), (1, 1, True)]
    text = module.describe_zero_divisors({"fov": table}, {"fov": ["a", "a"]}, {"a": ["GFP", "RFP"]})
    assert text == (
        "NormalizePercentiles: percentiles 1 and 99 are equal in channel 'GFP' of experiment 'a' (1 of level 'fov': "
        "reaches up to the maximum instead); channel 'RFP' of experiment 'a' (2 of level 'fov': becomes 0, as the "
        "maximum is the same). Choose a larger upper percentile, or another level, to treat all alike."
    )
    assert NormalizePercentiles("fov", 1.0, 100.0, channels=[0]).describe_zero_divisors({"fov": table}, {}, {}) is None
    assert NormalizePercentiles("patch").find_zero_divisors({}) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "fov", "lower": 5.0}, r"percentile 5 of level 'fov' is not stored \(allowed: 0, 1, 50, 99, 100\)"),
        ({"lower": 99.0, "upper": 1.0}, r"lower=99.0 and upper=1.0 must be 0 <= lower < upper <= 100"),
        ({"b_min": 1.0, "b_max": 1.0}, r"b_min=1.0 must be < b_max=1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NormalizePercentiles(**settings)


def test_what_a_batch_lacks_is_named():
    x = torch.zeros(3, 1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"NormalizePercentiles: level='dataset' is not among .* \(fov\)"):
        NormalizePercentiles("dataset")(x, statistics(CELLS))
    with pytest.raises(ValueError, match=r"NormalizePercentiles: channels=\[1\], but the data have 1"):
        NormalizePercentiles("patch", channels=[1])(x, {})


def test_nothing_waits_for_the_device():
    x, norm_meta = torch.zeros(3, 1, 2, 5, 5, device="meta"), {"fov": statistics(CELLS)["fov"].to("meta")}
    for module in (NormalizePercentiles("patch", 2.5, 97.0, clip=True), NormalizePercentiles("fov", channels=[0])):
        assert module(x, norm_meta).shape == x.shape
