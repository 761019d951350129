"""HTML pages of reports: one file each, without scripts, that asks for nothing over a network.

`markup.py` makes text, lists and notes; `tables.py` tables; `pictures.py` pictures that lie inside the page; `shell.py`
puts them into sections and writes the file. Everything that comes from data is escaped where it becomes markup.
Imports neither torch nor a library that reads plates, so both halves may use it.
"""
