"""Lets one build at a time write to a place in object storage: a small object says who, until it is not renewed.

Where the server honours conditions, nobody can take a lease that another build holds, or overwrite its manifest. A
lease that a killed build left is taken over at once by a build with the same staging folder, else when it is no longer
valid. Times are those of the server's clock. Where the server ignores conditions, there is a warning, and the lease
depends on time only: it is written, and read again a moment later.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dynaclr_wds.errors import BuildError, DynaCLRError, StorageError
from dynaclr_wds.storage.client import DeniedError, Storage
from dynaclr_wds.storage.versions import ObjectInfo
from dynaclr_wds.storage.writing import ConflictError, create, honours_conditions, remove, replace, write

LEASE = "build.lock.json"
"""Name of the object, beside the manifest."""
_PROBE = "build.probe"

VALID_SECONDS = 120.0
"""A lease that was not renewed for so long may be taken over."""
_RENEW_SECONDS = 30.0
_LOOK_SECONDS = 5.0
"""How often one who waits looks whether another build has ended."""
_SETTLE_SECONDS = 2.0
"""Without conditions: how long a lease must stand before it is believed."""
_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease."""

    owner: str
    """Name of the staging folder: the same when a build goes on."""
    run: str
    """Name of the process."""
    host: str
    pid: int
    begun: str
    renewed: int = 0
    """How often; makes every renewal another object."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, begun {self.begun}"

    def to_json(self) -> bytes:
        """Write what the object holds."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True).encode()


def _parse_holder(data: bytes) -> Holder | None:
    """Read what the object holds; None where that is something else."""
    try:
        raw = json.loads(data)
        owner, run, host, begun = (str(raw[name])[:200] for name in ("owner", "run", "host", "begun"))
        return Holder(owner, run, host, int(raw["pid"]), begun, int(raw["renewed"]))
    except (ValueError, KeyError, TypeError):
        return None


class Lease:
    """A lease that this process holds."""

    def __init__(self, storage: Storage, holder: Holder, *, strict: bool) -> None:
        self._storage, self._holder, self.strict = storage, holder, strict
        self._version: ObjectInfo | None = None
        self._begun = datetime.now(UTC)
        self._ended = threading.Event()
        self._lost = False

    def check(self) -> None:
        """Check that the lease is still ours; cheap.

        Raises
        ------
        BuildError
            Another build took it.
        """
        if self._lost:
            raise BuildError(
                f"{self._storage.root}: another build took over, because this one could not renew its lease for "
                f"{VALID_SECONDS:.0f} s. The manifest was not changed. Give the same command again when it has ended."
            )

    def list_left_over(self, listed: Mapping[str, ObjectInfo]) -> set[str]:
        """Return the names of what killed builds left of their first try to write."""
        least = self._begun - timedelta(seconds=VALID_SECONDS)
        probes = {name: info.changed for name, info in listed.items() if name.startswith(f"{_PROBE}-")}
        return {name for name, changed in probes.items() if changed is not None and changed < least}

    def take(self, now: datetime, say: Callable[[str], None], *, patient: bool) -> None:
        """Take the lease; `now` is the server's time. A patient one waits until another build has ended."""
        self._begun, begun, told = now, time.monotonic(), False
        while True:
            try:
                self._try(now + timedelta(seconds=time.monotonic() - begun), say)
                break
            except _HeldError as error:
                if not patient:
                    raise
                if not told:
                    say(f"{error.what}; waiting for it to end.")
                told = True
                time.sleep(_LOOK_SECONDS)
        threading.Thread(target=self._keep, name="dynaclr-lease", daemon=True).start()

    def _try(self, now: datetime, say: Callable[[str], None]) -> None:
        found = self._look()
        if found is not None:
            self._refuse_if_held(*found, now, say)
        try:
            self._version = self._write(None if found is None else found[1])
        except ConflictError:
            raise _HeldError(self._storage, self._look()) from None
        if not self.strict:
            time.sleep(_SETTLE_SECONDS)
            if (found := self._look()) is None or found[0] is None or found[0].run != self._holder.run:
                raise _HeldError(self._storage, found)

    def _refuse_if_held(
        self, other: Holder | None, version: ObjectInfo, now: datetime, say: Callable[[str], None]
    ) -> None:
        if other is not None and other.owner == self._holder.owner:
            return  # an earlier run with this staging folder, which is locked: it is dead
        age = (now - version.changed).total_seconds() if version.changed is not None else 0.0
        if age < VALID_SECONDS:
            raise _HeldError(self._storage, (other, version), VALID_SECONDS - age)
        say(f"{self._storage.root}: the lease of {other or 'another build'} is {age:,.0f} s old; it is taken over.")

    def release(self) -> None:
        """Give the lease up; whatever fails, it ends by itself later."""
        self._ended.set()
        with suppress(DynaCLRError, OSError):
            found = None if self._lost else self._look()
            if found is not None and found[0] is not None and found[0].run == self._holder.run:
                remove(self._storage, [LEASE])

    def _keep(self) -> None:
        """Renew the lease until it is given up; a failed try is repeated at the next one's time."""
        while not self._ended.wait(_RENEW_SECONDS):
            try:
                found = None if self.strict else self._look()
                if not self.strict and (found is None or found[0] is None or found[0].run != self._holder.run):
                    raise ConflictError("another build wrote the lease")
                self._holder = dataclasses.replace(self._holder, renewed=self._holder.renewed + 1)
                self._version = self._write(self._version)
            except ConflictError:
                self._lost = True
                return
            except (DynaCLRError, OSError):
                continue

    def _write(self, over: ObjectInfo | None) -> ObjectInfo | None:
        data = self._holder.to_json()
        if not self.strict:
            write(self._storage, LEASE, data)
            return None
        return create(self._storage, LEASE, data) if over is None else replace(self._storage, LEASE, data, over)

    def _look(self) -> tuple[Holder | None, ObjectInfo] | None:
        """Return who holds the lease, and the version of the object; None where there is none."""
        try:
            version = self._storage.info(LEASE)
            return _parse_holder(self._storage.read(LEASE, _MOST_BYTES)), version
        except FileNotFoundError:
            return None


class _HeldError(BuildError):
    """Another build holds the lease."""

    def __init__(
        self, storage: Storage, found: tuple[Holder | None, ObjectInfo] | None, left: float = VALID_SECONDS
    ) -> None:
        other = (found[0] if found is not None else None) or "a process that is not known"
        self.what = f"{storage.root}: another build is writing there ({other})"
        super().__init__(
            f"{self.what}. One build at a time may. Wait for it to end; if it was killed, give the command again in "
            f"{max(left, 1):.0f} s, or with the same --staging on the same machine."
        )


@contextmanager
def hold_lease(storage: Storage, owner: str, say: Callable[[str], None], *, patient: bool = False) -> Iterator[Lease]:
    """Hold the lease of a place while the block runs.

    Parameters
    ----------
    storage
        The place.
    owner
        Name of the staging folder.
    say
        Called with warnings.
    patient
        Wait for another build to end, or for two minutes where it was killed.

    Raises
    ------
    BuildError
        Another build holds it.
    StorageError
        The key may not write, or a request failed.
    """
    with _explaining(storage):  # finds out early whether the key may write, and the server honours conditions
        strict, seen = honours_conditions(storage, f"{_PROBE}-{owner}")
    if not strict:
        say(
            f"warning: {storage.root}: the server ignores conditions (If-Match, If-None-Match), so two builds can "
            "only be kept apart by time. See to it that one build at a time writes there."
        )
    begun = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    lease = Lease(storage, Holder(owner, uuid.uuid4().hex, socket.gethostname(), os.getpid(), begun), strict=strict)
    lease.take(seen.changed or datetime.now(UTC), say, patient=patient)
    try:
        yield lease
    finally:
        lease.release()


def try_writing(storage: Storage, name: str) -> None:
    """Find out early whether the key may write; `name` is that of the writer, the same when it is started again.

    Raises
    ------
    StorageError
        The key may not write, there is no such bucket, or a request failed.
    """
    with _explaining(storage):
        write(storage, f"{_PROBE}-{name}", b"")
        remove(storage, [f"{_PROBE}-{name}"])


@contextmanager
def _explaining(storage: Storage) -> Iterator[None]:
    """Turn errors of the first object that is written into ones that say what to do."""
    try:
        yield
    except DeniedError as error:
        raise StorageError(
            f"{storage.root}: the key may read there, but not write ({error.cause}). Give a key that "
            "may, or another --out."
        ) from None
    except FileNotFoundError:
        raise StorageError(f"{storage.root}: there is no bucket {storage.root.bucket!r}. Make it first.") from None
