"""Every fault of `tests/servers/faults.py`, given to every kind of object that is read or written.

| module | what it is |
| --- | --- |
| `trials.py` | Which faults, how often each, and within which time limits. |
| `objects.py` | What is read or written, and what must come of it. |
| `outcomes.py` | Carries out a trial: equal, or one error that names the object; anything else fails. |
| `page.py` | Outcomes as the tables of docs/RELIABILITY.md; `python -m tests.matrix.page` writes them anew. |
"""
