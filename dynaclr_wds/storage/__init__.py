"""Object storage: the one seam through which anything that lies in a bucket, or behind https, is reached.

| module | what it is |
| --- | --- |
| `location.py` | Text → a local `Path`, or a `Location`: where something is, without any secret. |
| `options.py` | `storage_options` of a config, checked; and the part of them that may be kept in a checkpoint. |
| `credentials.py` | Which keys to sign requests with, from options and the usual environment. |
| `failures.py` | What a failed request says → a short cause without secrets, and whether to try again. |
| `versions.py` | What a server says of an object: size, ETag, MD5. |
| `client.py` | `Storage`: requests below one location, each bounded in time, tried again, and pinned to an ETag. |
| `writing.py` | Small objects on a condition; copies and removals. |
| `sending.py` | Files to objects: large ones in parts, each with its checksum, visible when it is whole. |
| `index_cache.py` | Index files of a set, downloaded once per node. |

Requests are made by obstore, through its blocking calls, which release the GIL.
"""
