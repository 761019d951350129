"""Transforms batches on the device: normalise, augment, crop, reduce, drop channels."""

from dynaclr_wds.transforms.affine import RandomAffineStack
from dynaclr_wds.transforms.augment import Augment
from dynaclr_wds.transforms.batch import BatchTransform
from dynaclr_wds.transforms.channel_dropout import ChannelDropout, describe_channel_dropout
from dynaclr_wds.transforms.crop import CenterCrop, RandomCrop, apply_center_crop
from dynaclr_wds.transforms.deform import RandomElasticStack, RandomShiftZ
from dynaclr_wds.transforms.dictionary import DictTransform
from dynaclr_wds.transforms.filters import RandomBlur, RandomSharpness
from dynaclr_wds.transforms.intensity import RandomAdjustContrast, RandomAdjustIntensity, RandomInvert, RandomNoise
from dynaclr_wds.transforms.normalize import NormalizeSampled
from dynaclr_wds.transforms.percentiles import NormalizePercentiles
from dynaclr_wds.transforms.statistics import ZeroDivisor
from dynaclr_wds.transforms.z_reduction import apply_z_reduction, plan_z_reduction

__all__ = [
    "Augment",
    "BatchTransform",
    "CenterCrop",
    "ChannelDropout",
    "DictTransform",
    "NormalizePercentiles",
    "NormalizeSampled",
    "RandomAdjustContrast",
    "RandomAdjustIntensity",
    "RandomAffineStack",
    "RandomBlur",
    "RandomCrop",
    "RandomElasticStack",
    "RandomInvert",
    "RandomNoise",
    "RandomSharpness",
    "RandomShiftZ",
    "ZeroDivisor",
    "apply_center_crop",
    "apply_z_reduction",
    "describe_channel_dropout",
    "plan_z_reduction",
]
