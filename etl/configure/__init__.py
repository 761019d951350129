"""Writes the files that a new user starts from: configs for experiments.yaml, experiments.yaml for plates."""
