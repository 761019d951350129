"""Plates and tracks to shards: index, cut, pack. Imports no torch."""
