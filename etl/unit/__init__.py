"""Groups of fields of view to shards: the unit of a build, which needs no other unit.

| module | what it is |
| --- | --- |
| `job.py` | All that a unit is given, and the digest that says whether its result is there already. |
| `build.py` | The unit: cut, judge, lay out, pack, note. |
| `left.py` | What is left when the pixels are known, with its statistics. |
| `memory.py` | How much memory a unit needs, and what it is for. |
| `part.py` | What a finished unit notes for the index, beside its shards. |
"""
