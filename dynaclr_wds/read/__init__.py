"""Shards to batches: the executor of a plan, which decides nothing."""
