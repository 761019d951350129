"""Embeddings to measures: how smooth, how informative, how mixed and how alive an embedding is.

`reading.py` reads tables of embeddings and `annotations.py` labels; `smoothness.py`, `probes.py`, `mmd.py`, `rank.py`
and `retrieval.py` hold one measure each, with its source; `resampling.py` the intervals, which are over lineages;
`pixels.py` makes the baseline of raw pixels. `judge.py` runs them all, `tables.py`, `page.py` and `strips.py` show what
came of it. docs/EVALUATION.md says how to read it.
"""
