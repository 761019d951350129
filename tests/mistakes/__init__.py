"""Mistakes that people make. What the program says of each stands in docs/MISTAKES.md, which a test compares."""
