"""Patches to tars, index files and the manifest."""
