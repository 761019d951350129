"""Transforms batches on the device: normalise, augment, crop, drop channels."""

from dynaclr_wds.transforms.augment import Augment
from dynaclr_wds.transforms.batch import BatchTransform
from dynaclr_wds.transforms.channel_dropout import ChannelDropout, describe_channel_dropout
from dynaclr_wds.transforms.crop import apply_center_crop
from dynaclr_wds.transforms.affine import RandomAffineStack
from dynaclr_wds.transforms.intensity import RandomAdjustContrast, RandomAdjustIntensity, RandomNoise
from dynaclr_wds.transforms.normalize import NormalizeSampled, ZeroDivisor

__all__ = [
    "Augment",
    "BatchTransform",
    "ChannelDropout",
    "NormalizeSampled",
    "RandomAdjustContrast",
    "RandomAdjustIntensity",
    "RandomNoise",
    "RandomAffineStack",
    "ZeroDivisor",
    "apply_center_crop",
    "describe_channel_dropout",
]
