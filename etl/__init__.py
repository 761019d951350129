"""Plates and tracks to shards: index, cut, pack. Imports no torch."""

from dynaclr_wds import __version__  # also refuses to run where the project does not

__all__ = ["__version__"]
