"""Runs a build: stages, executors, files that are whole or absent, progress."""
