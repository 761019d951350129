"""Shards and a config to a look at the batches: what the network will be shown, and who shares a batch.

`configured.py` makes the DataModule that a training would make, `look.py` reads batches through its hooks, as a Trainer
does, `company.py` says who is in a batch beside what was asked, `findings.py` says in words what is wrong with the
pixels, and `page.py` shows all of it.
"""
