"""Plates to patches and statistics: every source pixel is read once."""
