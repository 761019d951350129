"""Looks for data that a build accepts but that are probably wrong, and says so in words."""
