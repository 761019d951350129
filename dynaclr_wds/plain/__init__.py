"""Shard URLs to triplets with plain WebDataset, without an index."""
