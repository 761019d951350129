"""Sets in object storage: builds them there by way of a local folder, and reads them back.

| module | what it is |
| --- | --- |
| `build.py` | The order of such a build: lease, local build, transfer, manifest, removal of what was replaced. |
| `staging.py` | The local folder that a set is built in before it is sent. |
| `lease.py` | Who builds there: a small object, renewed while a build runs. |
| `held.py` | What is there before a build: manifest and files, as a set that an earlier build finished. |
| `outlet.py` | Sends the shards of each unit when it ends; finds what has arrived. |
| `notes.py` | Says what is being sent, and removes what of it nobody needs. |
| `transfer.py` | Files to objects: what is there already, what the server can copy, what has to be sent. |
| `bucket_files.py` | The files of a set, read back in bounded requests. |
"""
