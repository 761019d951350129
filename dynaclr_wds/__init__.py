"""Shards to training: plan, read, transform, train. Imports no duckdb and no zarr."""
