"""Batches on the device: normalise, augment, crop, drop channels."""
