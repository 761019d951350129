"""How a build runs: files that are whole or absent, executors, progress."""
