"""What a build reads: experiments.yaml, plates and track tables, checked before any work."""
