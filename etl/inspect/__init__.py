"""Shows what there is: counts, pictures and warnings of experiments before a build, and of shards after it.

`collection.py` is what both have in common; `plates.py` and `shards.py` are the two. `tally.py` counts cells run by
run, so that memory doesn't grow with them; `choices.py` chooses what is looked at, `pixels.py` looks at it;
`frame_cuts.py` and `build_size.py` say what a build would take, `findings.py` what is odd. `looking.py` does all of it;
`tables.py`, `as_json.py` and `page.py` show it.
"""
