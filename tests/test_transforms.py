"""Laws of the transforms: what is drawn for whom, what is left alone, and that nothing waits for the device."""

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.transforms import (
    Augment,
    BatchTransform,
    CenterCrop,
    ChannelDropout,
    NormalizeSampled,
    RandomAdjustContrast,
    RandomAdjustIntensity,
    RandomAffineStack,
    RandomBlur,
    RandomCrop,
    RandomElasticStack,
    RandomInvert,
    RandomNoise,
    RandomSharpness,
    RandomShiftZ,
    apply_center_crop,
    describe_channel_dropout,
)
from dynaclr_wds.transforms.augment import UNBOUNDED, UNBOUNDED_WITHOUT_CLIP

B, C, Z, Y, X = 6, 2, 3, 32, 32


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def same_planes() -> torch.Tensor:
    """A batch whose samples, channels and planes all show one random image: whatever differs later was drawn."""
    return torch.rand(Y, X).expand(B, C, Z, Y, X).contiguous()


def statistics(**values: float) -> torch.Tensor:
    """(B, C, 8) with the given values in channel 0 and twice that in channel 1."""
    row = torch.tensor([values.get(name, 0.0) for name in STATISTICS])
    return torch.stack([row, 2 * row]).expand(B, C, len(STATISTICS)).clone()


def make_batch(device: str = "cpu", dtype: torch.dtype = torch.uint16) -> dict[str, object]:
    norm = {"fov": statistics(mean=100.0, std=10.0).to(device)}
    batch: dict[str, object] = {"anchor_meta": ["kept"], "positive_meta": ["kept"]}
    for key in ("anchor", "positive", "negative"):
        batch[key] = torch.randint(0, 1000, (B, C, Z, Y, X)).to(dtype).to(device)
        batch[f"{key}_norm_meta"] = norm
    return batch


AUGMENTATIONS = [
    K.RandomAffine(180.0, (0.1, 0.1), (0.8, 1.2), shear=(0.0, 10.0), p=0.8),
    K.RandomHorizontalFlip(),
    K.RandomRotation90((0, 3)),
    K.RandomPerspective(),
    K.RandomElasticTransform(),
    K.RandomResizedCrop((Y, X)),
    K.RandomGaussianBlur((5, 5), (0.1, 2.0)),
    K.RandomGaussianNoise(0.0, 0.1),
    K.RandomErasing(),
    K.RandomBrightness((0.5, 1.5), clip_output=False),
    K.RandomContrast((0.5, 1.5), clip_output=False),
    K.RandomMotionBlur(3, 35.0, 0.5),
    K.RandomAffine3D(10.0),
    K.RandomRotation3D(10.0),
    K.RandomDepthicalFlip3D(),
    K.RandomMotionBlur3D(3, 35.0, 0.5),
    RandomAdjustIntensity(),
    RandomAdjustContrast(),
    RandomNoise(),
    RandomAffineStack(tilt=(-10.0, 10.0), scale=(0.8, 1.2), translate=0.1),
    RandomAffineStack(shear=(-5.0, 5.0), scale=((0.8, 1.2), (0.9, 1.1), (0.9, 1.1)), border="reflection"),
    RandomInvert(),
    RandomSharpness(),
    RandomBlur(sigma_z=(0.0, 0.2)),
    RandomShiftZ(),
    RandomElasticStack(p=0.8),
    RandomElasticStack(z_magnitude=(0.1, 0.5), border="border", p=0.8),
    RandomCrop((2, None, 30)),
    CenterCrop((None, 24, 24)),
]


# channel dropout


def test_dropout_zeroes_only_the_listed_channels_in_training():
    x = torch.ones(B, C, Z, Y, X)
    dropped = ChannelDropout([1], p=1.0)(x)
    assert torch.equal(dropped[:, 0], x[:, 0])
    assert torch.equal(dropped[:, 1], torch.zeros(B, Z, Y, X))
    assert torch.equal(x, torch.ones(B, C, Z, Y, X)), "the input is left as it was"


def test_dropout_is_identity_in_evaluation_and_at_p_0():
    x = torch.rand(B, C, Z, Y, X)
    assert torch.equal(ChannelDropout([0, 1], p=1.0).eval()(x), x)
    assert torch.equal(ChannelDropout([0, 1], p=0.0)(x), x)
    assert torch.equal(ChannelDropout([], p=1.0)(x), x)


def test_dropout_draws_per_sample_with_probability_p():
    dropped = ChannelDropout([1], p=0.25)(torch.ones(4000, 2, 1, 1, 1))
    share = (dropped[:, 1] == 0).float().mean().item()
    assert 0.22 < share < 0.28  # 0.25 ± 4 standard deviations


def test_dropout_zeroes_nan_too():
    dropped = ChannelDropout([0], p=1.0)(torch.full((1, 1, 1, 2, 2), float("nan")))
    assert torch.equal(dropped, torch.zeros(1, 1, 1, 2, 2))


def test_dropout_names_a_channel_that_is_not_there():
    with pytest.raises(ValueError, match=r"channels=\[1\], but the data have 1 \(allowed: 0 to 0\)"):
        ChannelDropout([1])(torch.ones(2, 1, 1, 4, 4))


@pytest.mark.parametrize(
    ("channels", "p", "message"), [([0], 1.5, r"p=1.5"), ([-1], 0.5, r"\[-1\]"), ([1, 1], 0.5, r"\[1, 1\]")]
)
def test_dropout_refuses_bad_settings(channels, p, message):
    with pytest.raises(ValueError, match=message):
        ChannelDropout(channels, p)


def test_channel_dropout_is_told_unless_it_does_nothing():
    text = describe_channel_dropout([1], 0.5)
    assert text is not None
    assert "channels [1] of anchor and positive become 0 with probability 0.5" in text
    assert "channel_dropout_prob: 0.0" in text
    assert describe_channel_dropout([], 0.5) is None
    assert describe_channel_dropout([1], 0.0) is None


# normalize


def test_normalize_uses_each_channels_own_statistics():
    x = torch.full((B, C, Z, Y, X), 300.0)
    result = NormalizeSampled("fov")(x, {"fov": statistics(mean=100.0, std=10.0)})
    torch.testing.assert_close(result[:, 0], torch.full((B, Z, Y, X), 20.0))
    torch.testing.assert_close(result[:, 1], torch.full((B, Z, Y, X), 5.0))  # (300 - 200) / 20


def test_normalize_by_median_and_iqr_of_one_channel():
    x = torch.full((B, C, Z, Y, X), 300.0)
    module = NormalizeSampled("timepoint", "median", "iqr", channels=[1])
    result = module(x, {"timepoint": statistics(median=50.0, iqr=4.0)})
    torch.testing.assert_close(result[:, 0], torch.full((B, Z, Y, X), 300.0))
    torch.testing.assert_close(result[:, 1], torch.full((B, Z, Y, X), 25.0))  # (300 - 100) / 8


def test_normalize_uses_each_samples_own_statistics():
    norm = statistics(mean=0.0, std=1.0)
    norm[3, 0, STATISTICS.index("mean")] = 7.0
    result = NormalizeSampled("dataset")(torch.full((B, C, 1, 1, 1), 10.0), {"dataset": norm})
    torch.testing.assert_close(result[:, 0].flatten(), torch.tensor([10.0, 10.0, 10.0, 3.0, 10.0, 10.0]))


def test_normalize_keeps_a_constant_image_finite():
    result = NormalizeSampled("fov")(torch.full((B, C, 1, 1, 1), 0.0), {"fov": statistics(mean=0.0, std=0.0)})
    assert torch.equal(result, torch.zeros(B, C, 1, 1, 1))


def sparse(count: int = B) -> torch.Tensor:
    """Statistics of a sparse channel 0, whose IQR is 0, and of a constant channel 1, whose std is 0 too."""
    names = ("mean", "std", "median", "iqr", "min", "max")
    rows = [dict(zip(names, row, strict=True)) for row in ((20.0, 50.0, 10.0, 0.0, 10.0, 3000.0), (7.0,) * 6)]
    rows[1] |= {"std": 0.0, "iqr": 0.0}
    table = torch.tensor([[row.get(name, 0.0) for name in STATISTICS] for row in rows])
    return table.expand(count, C, len(STATISTICS)).clone()


def test_a_divisor_of_zero_is_replaced_by_std_and_a_constant_channel_becomes_0():
    x = torch.full((B, C, Z, Y, X), 3010.0)
    result = NormalizeSampled("fov", "median", "iqr")(x, {"fov": sparse()})
    torch.testing.assert_close(result[:, 0], torch.full((B, Z, Y, X), 60.0))  # (3010 - 10) / 50
    assert torch.equal(result[:, 1], torch.zeros(B, Z, Y, X))
    by_std = NormalizeSampled("fov", "mean", "std")(x, {"fov": sparse()})
    torch.testing.assert_close(by_std[:, 0], torch.full((B, Z, Y, X), 59.8))  # (3010 - 20) / 50
    assert torch.equal(by_std[:, 1], torch.zeros(B, Z, Y, X))


def test_rounding_errors_of_a_constant_channel_are_no_divisor():
    norm = sparse()
    norm[:, 0, STATISTICS.index("iqr")] = 1e-6  # of a channel that reaches 3000
    result = NormalizeSampled("fov", "median", "iqr")(torch.full((B, C, 1, 1, 1), 3010.0), {"fov": norm})
    torch.testing.assert_close(result[:, 0].flatten(), torch.full((B,), 60.0))


def test_a_statistic_that_is_not_a_number_is_not_hidden_by_the_fallback():
    norm = sparse()
    norm[:, 0, STATISTICS.index("iqr")] = float("nan")
    result = NormalizeSampled("fov", "median", "iqr")(torch.ones(B, C, 1, 1, 1), {"fov": norm})
    assert result[:, 0].isnan().all()


def test_divisors_of_zero_are_found_without_a_batch():
    table = sparse(3).numpy()
    table[1, 0, STATISTICS.index("iqr")] = 4.0
    table[2] = np.nan  # a frame that was not read
    assert NormalizeSampled("fov", "median", "iqr").find_zero_divisors({"fov": table}) == [
        (0, 0, False),
        (0, 1, True),
        (1, 1, True),
    ]
    assert NormalizeSampled("fov", "median", "iqr", channels=[0]).find_zero_divisors({"fov": table}) == [(0, 0, False)]
    assert NormalizeSampled("fov", channels=[0]).find_zero_divisors({"fov": table}) == []


def test_divisors_of_zero_are_described_by_experiment_and_channel():
    module = NormalizeSampled("fov", "median", "iqr")
    statistics = {"fov": sparse(3).numpy()}
    names = {"a": ["Phase", "GFP"], "b": ["BF", "RFP"]}
    text = module.describe_zero_divisors(statistics, {"fov": ["a", "a", "b"]}, names)
    assert text == (
        "NormalizeSampled: divisor 'iqr' is 0 in channel 'Phase' of experiment 'a' (2 of level 'fov': divided by std); "
        "channel 'GFP' of experiment 'a' (2 of level 'fov': becomes 0, as std is 0 too); "
        "channel 'BF' of experiment 'b' (1 of level 'fov': divided by std); "
        "channel 'RFP' of experiment 'b' (1 of level 'fov': becomes 0, as std is 0 too). "
        "Choose divisor: std, or another level, to treat all alike."
    )
    module = NormalizeSampled("fov", channels=[0])
    assert module.describe_zero_divisors(statistics, {"fov": ["a", "a", "b"]}, names) is None


def test_normalize_errors_name_what_is_there():
    x = torch.zeros(B, C, 1, 1, 1)
    with pytest.raises(ValueError, match=r"level='timepoint' is not among the statistics of the batch \(fov\)"):
        NormalizeSampled("timepoint")(x, {"fov": statistics()})
    with pytest.raises(ValueError, match=r"channels=\[2\], but the data have 2"):
        NormalizeSampled("fov", channels=[2])(x, {"fov": statistics()})
    with pytest.raises(ValueError, match=r"shape \(6, 1, 8\), but must have \(6, 2, 8\)"):
        NormalizeSampled("fov")(x, {"fov": statistics()[:, :1]})


# crop


def test_crop_keeps_the_centre():
    x = torch.arange(6.0 * 8).reshape(1, 1, 1, 6, 8)
    assert apply_center_crop(x, (None, 2, 4)).flatten().tolist() == [18, 19, 20, 21, 26, 27, 28, 29]
    for size in range(1, 7):  # the cell is at size // 2, odd or even
        assert apply_center_crop(x, (None, size, size))[0, 0, 0, size // 2, size // 2] == x[0, 0, 0, 3, 4]


def test_crop_refuses_to_grow():
    message = r"final size=\(None, 8, 4\) must be > 0 and at most the patch's \(Z, Y, X\) = \(1, 6, 8\)"
    with pytest.raises(ValueError, match=message):
        apply_center_crop(torch.zeros(1, 1, 1, 6, 8), (None, 8, 4), "final size")


# augment: who shares a draw


@pytest.mark.parametrize(
    "module", [K.RandomAffine(180.0, p=1.0), K.RandomElasticTransform(p=1.0)], ids=lambda m: type(m).__name__
)
def test_geometry_is_alike_over_channels_and_z_and_differs_between_samples(module):
    moved = Augment(module)(same_planes())
    first = moved[:, :1, :1]
    torch.testing.assert_close(moved, first.expand_as(moved))
    assert not torch.allclose(moved[0], moved[1])


def test_geometry_3d_is_alike_over_channels_and_moves_planes():
    x = torch.rand(Z, Y, X).expand(B, C, Z, Y, X).contiguous()
    moved = Augment(K.RandomAffine3D((30.0, 30.0, 30.0), p=1.0))(x)
    torch.testing.assert_close(moved[:, 0], moved[:, 1])
    assert not torch.allclose(moved[0], moved[1])
    flipped = Augment(K.RandomDepthicalFlip3D(p=1.0))(x)
    assert torch.equal(flipped, x.flip(2))


@pytest.mark.parametrize(
    "module",
    [
        K.RandomContrast((0.5, 1.5), clip_output=False, p=1.0),
        K.RandomGaussianBlur((5, 5), (0.1, 3.0), p=1.0),
        RandomAdjustIntensity((0.5, 1.5), (-1.0, 1.0), p=1.0),
        RandomAdjustContrast((0.5, 2.0), p=1.0),
    ],
    ids=lambda m: type(m).__name__,
)
def test_intensity_is_alike_over_z_and_differs_between_channels_and_samples(module):
    altered = Augment(module)(same_planes())
    torch.testing.assert_close(altered, altered[:, :, :1].expand_as(altered))
    planes = altered[:, :, 0].reshape(B * C, -1)
    assert torch.cdist(planes, planes).fill_diagonal_(1.0).min() > 1e-3


def test_affine_stack_by_known_turns():
    x = torch.rand(2, C, 8, 8, 8)
    quarter = RandomAffineStack((90.0, 90.0), p=1.0)(x)
    torch.testing.assert_close(quarter, x.rot90(1, (3, 4)), atol=1e-5, rtol=0)
    tilted = RandomAffineStack((0.0, 0.0), (180.0, 180.0), p=1.0)(x)  # about Y, then about X: as 180° about Z
    torch.testing.assert_close(tilted, x.flip(3, 4), atol=1e-5, rtol=0)
    doubled = RandomAffineStack((0.0, 0.0), scale=(2.0, 2.0), p=1.0)(torch.ones(1, 1, 8, 8, 8))
    assert torch.equal(doubled, torch.ones(1, 1, 8, 8, 8))
    halved = RandomAffineStack((0.0, 0.0), scale=(0.5, 0.5), p=1.0)(torch.ones(1, 1, 8, 8, 8))
    assert halved.sum().item() == pytest.approx(4**3)
    assert torch.equal(RandomAffineStack(p=0.0)(x), x)


def test_affine_stack_keeps_shape_when_planes_lie_apart():
    # a rod of 4 planes along Z; the two quarter turns lay it along X, where 4 planes are 8 pixels long
    x = torch.zeros(1, 1, 8, 16, 16)
    x[..., 2:6, 6:10, 6:10] = 1
    for z_spacing, length in ((2.0, 8), (1.0, 4)):
        turned = RandomAffineStack((0.0, 0.0), (90.0, 90.0), z_spacing=z_spacing, p=1.0)(x)
        assert (turned[0, 0, 4, 8] > 0.5).sum().item() == length


def test_affine_stack_is_alike_over_channels_and_differs_between_samples():
    x = torch.rand(Z, Y, X).expand(B, C, Z, Y, X).contiguous()
    moved = RandomAffineStack((-180.0, 180.0), (-10.0, 10.0), (0.0, 5.0), (0.8, 1.2), 0.1, 3.0, p=1.0)(x)
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert not torch.allclose(moved[0], moved[1])


def test_affine_stack_refuses_bad_settings():
    with pytest.raises(ValueError, match=r"degrees=\(10.0, -10.0\) must be a range"):
        RandomAffineStack((10.0, -10.0))
    with pytest.raises(ValueError, match=r"scale=\(0.0, 1.0\) must be > 0"):
        RandomAffineStack(scale=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"shear=\(1.0, 2.0, 3.0\) must be a range \(low, high\) or six of them"):
        RandomAffineStack(shear=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"z_spacing=0.0 must be > 0"):
        RandomAffineStack(z_spacing=0.0)


def test_anchor_and_positive_are_drawn_apart():
    transform = BatchTransform((), [K.RandomAffine(180.0, p=1.0), RandomAdjustIntensity(p=1.0)])
    x = same_planes()
    result = transform({"anchor": x, "positive": x}, training=True)
    assert not torch.allclose(result["anchor"], result["positive"])


def test_draws_follow_the_torch_seed():
    transform = BatchTransform((), AUGMENTATIONS)
    batch = {"anchor": same_planes()}
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(transform(batch, training=True)["anchor"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_channels_restrict_intensity_and_not_geometry():
    x = same_planes()
    altered = Augment(RandomNoise((1.0, 1.0), p=1.0), channels=[1])(x)
    assert torch.equal(altered[:, 0], x[:, 0])
    assert not torch.allclose(altered[:, 1], x[:, 1])
    with pytest.raises(ValueError, match=r"RandomAffine, which moves pixels"):
        Augment(K.RandomAffine(10.0), channels=[1])
    with pytest.raises(ValueError, match=r"channels=\[2\], but the data have 2"):
        Augment(RandomNoise(), channels=[2])(x)


# augment: values


def test_own_intensities_do_what_they_say():
    x = torch.tensor([-2.0, 0.0, 2.0]).reshape(1, 1, 1, 1, 3)
    adjusted = RandomAdjustIntensity((3.0, 3.0), (1.0, 1.0), p=1.0)(x)
    assert adjusted.flatten().tolist() == [-5.0, 1.0, 7.0]
    gamma = RandomAdjustContrast((2.0, 2.0), p=1.0)(x)
    assert gamma.flatten().tolist() == [-2.0, -1.0, 2.0]  # the middle: 0.5² · 4 − 2
    constant = torch.full((1, 1, 1, 1, 3), 5.0)
    assert torch.equal(RandomAdjustContrast(p=1.0)(constant), constant)
    noise = RandomNoise((0.5, 0.5), p=1.0)(torch.zeros(1, 1, 1, 200, 200)).std().item()
    assert 0.49 < noise < 0.51


@pytest.mark.parametrize("module", [RandomAdjustIntensity(p=0.0), RandomAdjustContrast(p=0.0), RandomNoise(p=0.0)])
def test_own_intensities_leave_samples_that_are_not_drawn(module):
    x = torch.randn(B, C, Z, Y, X)
    assert torch.equal(module(x), x)


def test_own_intensities_refuse_bad_ranges():
    with pytest.raises(ValueError, match=r"scale=\(1.2, 0.8\) must be a range"):
        RandomAdjustIntensity((1.2, 0.8))
    with pytest.raises(ValueError, match=r"std=\(-1.0, 0.8\) must be a range \(low, high\) with low >= 0"):
        RandomNoise((-1.0, 0.8))
    with pytest.raises(ValueError, match=r"p=2.0 must be in"):
        RandomNoise(p=2.0)


KORNIA_SETTINGS = {
    "RandomBoxBlur": {},
    "RandomGaussianBlur": {"kernel_size": (3, 3), "sigma": (1.0, 1.0)},
    "RandomMedianBlur": {},
    "RandomMotionBlur": {"kernel_size": 3, "angle": 0.0, "direction": 0.0},
    "RandomMotionBlur3D": {"kernel_size": 3, "angle": 0.0, "direction": 0.0},
    "RandomGaussianNoise": {"std": 0.01},
    "RandomErasing": {"value": 0.0},
    "RandomBrightness": {"clip_output": False},
    "RandomContrast": {"clip_output": False},
}


@pytest.mark.parametrize("name", sorted(UNBOUNDED | UNBOUNDED_WITHOUT_CLIP))
def test_allowed_kornia_intensities_do_not_clamp(name):
    x = torch.cat([torch.full((8, 1, 2, 8, 8), -5.0), torch.full((8, 1, 2, 8, 8), 5.0)])
    altered = Augment(getattr(K, name)(p=1.0, **KORNIA_SETTINGS[name]))(x)
    assert (altered[:8] - altered[8:]).abs().max() > 2.0
    assert altered.isfinite().all()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (K.RandomGamma(), r"RandomGamma takes intensities to lie in \[0, 1\]"),
        (K.RandomBrightness(), r"RandomBrightness takes intensities to lie in \[0, 1\]"),
        (K.RandomMixUpV2(), r"RandomMixUpV2 mixes samples"),
        (K.AugmentationSequential(K.RandomAffine(10.0)), r"AugmentationSequential mixes samples or holds others?"),
    ],
)
def test_kornia_modules_that_cannot_work_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        BatchTransform((), [module])


# the whole


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.float32])
def test_training_batch_is_float32_cropped_dropped_and_rid_of_statistics(dtype):
    transform = BatchTransform(
        [NormalizeSampled("fov")],
        [K.RandomAffine(10.0)],
        final_size=(None, 16, 20),
        channel_dropout=ChannelDropout([1], 1.0),
    )
    batch = make_batch(dtype=dtype)
    result = transform(batch, training=True)
    assert set(result) == {"anchor", "positive", "negative", "anchor_meta", "positive_meta"}
    for key in ("anchor", "positive", "negative"):
        assert result[key].shape == (B, C, Z, 16, 20)
        assert result[key].dtype == torch.float32
    assert (result["anchor"][:, 1] == 0).all()
    assert (result["positive"][:, 1] == 0).all()
    assert not (result["negative"][:, 1] == 0).all()
    assert "anchor_norm_meta" in batch, "the given batch is left as it was"
    assert batch["anchor"].dtype == dtype


def test_validation_batch_is_normalised_and_cropped_only():
    transform = BatchTransform(
        [NormalizeSampled("fov")], AUGMENTATIONS, final_size=(None, 16, 16), channel_dropout=ChannelDropout([1], 1.0)
    )
    batch = make_batch(dtype=torch.float32)
    result = transform(batch, training=False)
    expected = (batch["positive"][:, 1, :, 8:24, 8:24] - 200.0) / 20.0
    torch.testing.assert_close(result["positive"][:, 1], expected)


def test_prediction_batch_with_anchor_only():
    result = BatchTransform([NormalizeSampled("fov")])(
        {"anchor": torch.ones(B, C, 1, 4, 4), "anchor_norm_meta": {"fov": statistics(std=1.0)}, "index": [1, 2]}, False
    )
    assert set(result) == {"anchor", "index"}


def test_missing_statistics_are_named():
    with pytest.raises(ValueError, match="The batch has no anchor_norm_meta"):
        BatchTransform([NormalizeSampled("fov")])({"anchor": torch.ones(B, C, 1, 4, 4)}, False)


class Waits(TorchDispatchMode):
    """Notice operations that wait for the device although they return nothing to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._linalg_check_errors.default:  # of linalg.inv, linalg.solve
            self.seen.add(str(function))
        return function(*args, **(kwargs or {}))


KNOWN_TO_WAIT = {"RandomAffine3D", "RandomRotation3D"}


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda m: type(m).__name__)
def test_nothing_waits_for_the_device(augmentation):
    """Meta tensors have no values: reading one (`.item()`, `if tensor`, a boolean index, a copy to the CPU) raises."""
    transform = BatchTransform(
        [NormalizeSampled("fov", channels=[0])], [augmentation], (None, 16, 16), ChannelDropout([1])
    )
    with Waits() as waits:
        result = transform.to("meta")(make_batch("meta"), training=True)
    assert result["anchor"].shape == (B, C, 2 if isinstance(augmentation, RandomCrop) else Z, 16, 16)
    assert bool(waits.seen) == (type(augmentation).__name__ in KNOWN_TO_WAIT)


def test_moving_the_transform_leaves_kornia_on_the_cpu():
    transform = BatchTransform((), [K.RandomAffine(10.0), nn.Linear(1, 1)]).to("meta")
    affine, linear = transform.augmentations
    assert affine.module.device == torch.device("cpu")
    assert linear.weight.device == torch.device("meta")
