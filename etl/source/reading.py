"""Names the file in every error that comes up while a file is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from dynaclr_wds.errors import ConfigError, DynaCLRError, StorageError
from dynaclr_wds.storage.location import Place


@contextmanager
def naming_file(path: str | Place, kind: str) -> Iterator[None]:
    """Turn what goes wrong inside into an error that names the file.

    Parameters
    ----------
    path
        The file that is read inside the `with`.
    kind
        What the file should be, e.g. "CSV".

    Raises
    ------
    ConfigError
        The content is not what it should be.
    StorageError
        The disk or the network fails.
    """
    try:
        yield
    except DynaCLRError:
        raise
    except UnicodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({_line(error)}). Save it as UTF-8.") from error
    except OSError as error:
        if error.errno is None:  # pyarrow says so of damaged content
            raise ConfigError(f"{path}: is not a whole {kind} file ({_line(error)}). Write it again.") from error
        raise StorageError(
            f"{path}: could not be read ({error}). Look at the disk, the network and the permissions, then run again."
        ) from error
    except (pa.ArrowException, ValueError) as error:
        raise ConfigError(f"{path}: is not a {kind} table ({_line(error)}). Write it again.") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
