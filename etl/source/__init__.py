"""Reads and checks what a build is given: experiments.yaml, plates and track tables."""
