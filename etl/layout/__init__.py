"""Index rows to clips, blocks and shards: which patch goes where. Pure."""
