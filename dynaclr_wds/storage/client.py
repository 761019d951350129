"""Requests below one location: each bounded in time, tried again while that may help, and pinned to an ETag.

obstore makes single requests and is told not to repeat them; this module does, because it knows what a failure means.
A server that is busy or gone is asked again, with growing pauses, inside `retry_timeout`. Where the credentials are
refused, new ones are asked for once. What remains is one error of ours, which names the object, the range and the
cause and holds no secret. All methods may be called from several threads.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NoReturn, TypeAlias, TypeVar

import obstore

from dynaclr_wds.errors import DynaCLRError, FormatError, StorageError
from dynaclr_wds.storage.failures import NO_BUCKET, Failure, Kind, TryAgain, classify
from dynaclr_wds.storage.location import Location
from dynaclr_wds.storage.options import StorageOptions
from dynaclr_wds.storage.redirects import object_url, refuse_redirect, would_go_along
from dynaclr_wds.storage.stores import find_endpoint, is_plain, make_store
from dynaclr_wds.storage.versions import ObjectInfo, to_info
from dynaclr_wds.words import count_of

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_ASK_AGAIN = 10.0
"""Keys that were refused from the beginning are asked for again after so many seconds."""
_T = TypeVar("_T")

Sleep: TypeAlias = Callable[[float], bool]


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


class Storage:
    """What lies below one location.

    Parameters
    ----------
    root
        The location; names are relative to it.
    options
        How requests are made.
    retries
        How often obstore repeats each request of a call that makes many, such as the upload of a large object.

    Raises
    ------
    ConfigError
        There are no credentials, or an option that the kind of storage doesn't know.
    """

    def __init__(self, root: Location, options: StorageOptions, *, retries: int = 0) -> None:
        self.root = root
        self.options = options
        self.plain = is_plain(root, options)
        """Whether bytes come without TLS."""
        self._retries = retries
        self._lock = threading.Lock()
        self._asked = -_ASK_AGAIN
        check_process()
        self._secret = would_go_along(root, options)
        self._stays: set[str] = set()
        self._keys = _Keys(make_store(self.root, self.options, self._retries))

    def __repr__(self) -> str:
        return f"Storage({str(self.root)!r})"

    def info(self, name: str, sleep: Sleep = _sleep) -> ObjectInfo:
        """Ask for size and ETag of an object; waits between tries with `sleep`.

        Raises
        ------
        FileNotFoundError
            It is not there.
        StorageError
            The request failed.
        """
        key = (self.root / name).key
        return to_info(self.request(name, "", lambda store: obstore.head(store, key), sleep))

    def list(self, folder: str = "", *, nested: bool = True) -> dict[str, ObjectInfo] | None:
        """List a folder: name below it → size and ETag; None where there is no listing, or none for this key.

        Parameters
        ----------
        folder
            Below the root; empty: the root.
        nested
            List what is in folders of it, too.

        Raises
        ------
        StorageError
            The request failed.
        """
        if self.root.scheme in ("http", "https"):
            return None
        prefix = (self.root / folder).key if folder else self.root.key
        begin = len(prefix) + 1 if prefix else 0

        def collect(store: Any) -> dict[str, ObjectInfo]:
            under = prefix or None
            if nested:
                found = obstore.list(store, under).collect()
            else:
                found = obstore.list_with_delimiter(store, under)["objects"]
            return {entry["path"][begin:]: to_info(entry) for entry in found}

        try:
            return self.request(folder, "the listing", collect)
        except DeniedError:
            return None

    def read(self, name: str, most_bytes: int) -> bytes:
        """Read a whole object.

        Raises
        ------
        FileNotFoundError
            It is not there.
        FormatError
            It is larger than `most_bytes`, or was replaced while it was read.
        StorageError
            The request failed.
        """
        whole = self.info(name)
        if whole.size > most_bytes:
            raise FormatError(f"{self.root / name}: has {whole.size:,} bytes; more than {most_bytes:,} are not read.")
        step = self.options.request_bytes
        ranges = [(begin, min(begin + step, whole.size)) for begin in range(0, whole.size, step)]
        return b"".join(self.read_range(name, begin, end, whole)[0] for begin, end in ranges)

    def read_range(
        self, name: str, begin: int, end: int, pinned: ObjectInfo | None = None, sleep: Sleep = _sleep
    ) -> tuple[memoryview, ObjectInfo]:
        """Read a range of an object with one request.

        Parameters
        ----------
        pinned
            The version to read; None = whichever is there.
        sleep
            Waits so many seconds before another try; False = the bytes are not wanted any more.

        Returns
        -------
        The bytes, and the version that they are of.

        Raises
        ------
        FormatError
            The object is gone, or is another version than `pinned`.
        StorageError
            The request failed.
        """
        key = _find_key(self.root, name)
        asked: dict[str, Any] = {"range": (begin, end)}
        if pinned is not None and pinned.condition is not None:
            asked["if_match"] = pinned.condition

        def get(store: Any) -> tuple[memoryview, ObjectInfo]:
            answer = obstore.get(store, key, options=asked)  # type: ignore[arg-type]
            found = to_info(answer.meta)
            if pinned is not None and not pinned.is_same(found):
                raise _Replaced
            if answer.range != (begin, end):
                raise _Short(f"bytes {answer.range[0]:,} to {answer.range[1]:,} of {found.size:,} came")
            data = memoryview(answer.bytes())
            if len(data) != end - begin:
                raise _Short(f"{len(data):,} of {end - begin:,} bytes came")
            return data, found

        try:
            return self.request(name, f"bytes {begin:,} to {end:,}", get, sleep)
        except FileNotFoundError as error:
            raise FormatError(str(error)) from None

    def request(self, name: str, part: str, call: Callable[[Any], _T], sleep: Sleep = _sleep) -> _T:
        """Make a request, again while that may help.

        Parameters
        ----------
        name, part
            What it is about, for errors: an object, and a part of it.
        call
            Makes the request with obstore's store. Errors of ours that it raises are passed on.
        sleep
            Waits before another try.

        Raises
        ------
        FileNotFoundError, FormatError, StorageError
            As the methods say.
        """
        self._refuse_redirect(name)
        begun, pause, renewed = time.monotonic(), _FIRST_PAUSE, False
        for tries in itertools.count(1):
            check_process()
            keys = self._keys
            try:
                found = call(keys.store)
                keys.worked = True
                return found
            except (KeyboardInterrupt, SystemExit, DynaCLRError):
                raise
            except BaseException as error:  # obstore's panics derive from BaseException
                failure = _explain(error)
            spent = time.monotonic() - begun
            if failure.kind is Kind.DENIED and not renewed:
                renewed = True
                self._renew(keys)
            elif (
                failure.kind is Kind.TRANSIENT
                and spent < self.options.retry_timeout
                and sleep(min(pause * random.uniform(0.5, 1.5), self.options.retry_timeout - spent))
            ):
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._fail(name, part, failure, f"{count_of(tries, 'try', 'tries')} in {spent:.0f} s")
        raise AssertionError("never reached")

    def _refuse_redirect(self, name: str) -> None:
        """Before the first request for an object, see that no redirect takes a secret to another host."""
        if self._secret is None or name in self._stays:
            return
        where, account = self.root / name, self.options.store.get("account_name")
        url = object_url(
            where,
            find_endpoint(self.root.scheme, self.options),
            str(account or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")),
        )
        refuse_redirect(where, url, self._secret, self.options)
        self._stays.add(name)

    def _fail(self, name: str, part: str, failure: Failure, effort: str) -> NoReturn:
        what = str(self.root / name if name else self.root) + (f", {part}" if part else "")
        if failure.kind is Kind.ABSENT:
            raise FileNotFoundError(f"{what}: is not there ({failure.cause}). Check the URL, or copy it there again.")
        if failure.kind is Kind.REPLACED:
            raise FormatError(
                f"{what}: was replaced since the set was opened: it is not the object of that size and ETag any more. "
                "Put the old one back, or open the new set and train from there."
            )
        if failure.kind is Kind.DENIED:
            denied = DeniedError(
                f"{what}: the server refused the credentials ({failure.cause}), new ones too. Check that the key is "
                "right, not expired, and may read this bucket, or write where it is asked to."
            )
            denied.cause = failure.cause
            raise denied
        advice = "Check server and network; storage_options has the time limits."
        if failure.cause.startswith("status 301"):
            advice = "The bucket is in another region: set region in storage_options, or AWS_REGION."
        elif failure.cause.endswith(NO_BUCKET):
            advice = "There is no such bucket: check the URL, and endpoint in storage_options."
        raise StorageError(f"{what}: the request failed ({failure.cause}; {effort}). {advice}")

    def _renew(self, refused: _Keys) -> None:
        """Make the store anew, which asks for credentials again: once for all threads that were refused together.

        Where they were asked for just now, and no request with them succeeded, nobody is asked again.
        """
        with self._lock:
            if self._keys is refused and (refused.worked or time.monotonic() - self._asked > _ASK_AGAIN):
                self._keys = _Keys(make_store(self.root, self.options, self._retries))
                self._asked = time.monotonic()


class _Keys:
    """A store, which holds the keys that it asked for, and whether a request with them succeeded."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.worked = False


class DeniedError(StorageError):
    """A request that the key at hand may not make."""

    cause = ""
    """The server's word."""


class _Short(TryAgain):
    """An answer with other bytes than were asked for."""


class _Replaced(Exception):
    """An answer from another version of the object."""


def _explain(error: BaseException) -> Failure:
    if isinstance(error, TryAgain):
        return Failure(Kind.TRANSIENT, str(error))
    if isinstance(error, _Replaced):
        return Failure(Kind.REPLACED, "another ETag")
    return classify(error)


@lru_cache(maxsize=1 << 16)
def _find_key(root: Location, name: str) -> str:
    """Return the key of an object; shards are asked for thousands of times a second."""
    return (root / name).key


_used_by: int | None = None
"""The process in which obstore was first used."""


def check_process() -> None:
    """Refuse to go on in a process that was forked after obstore's threads were started: it would wait for ever."""
    global _used_by
    if _used_by is None:
        _used_by = os.getpid()
    elif _used_by != os.getpid():
        raise StorageError(
            "This process was forked after its parent had read from object storage, and can't do so itself. Start it "
            'in another way: multiprocessing_context="spawn" or "forkserver" for a DataLoader, '
            'mp_context=get_context("spawn") for a ProcessPoolExecutor, and strategy="ddp" in place of ddp_fork or '
            "ddp_notebook."
        )
