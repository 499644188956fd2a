"""Readers and one writer: `RWLock`, and its two faces, each a lock object of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dlock._calls import SHARED, shown
from dlock._reentrant import Reentrant
from dlock.locks import SHARED_WAYS, BaseLock, Options

if TYPE_CHECKING:
    from dlock._handle import Key
    from dlock.client import Client


class ReadLock(BaseLock):
    """Any number hold it together, while nobody writes. A writer that waits goes first."""

    __slots__ = ()
    mode = SHARED
    _plain = SHARED_WAYS
    leases = False


class WriteLock(BaseLock):
    """Held by one alone: no reader, no other writer."""

    __slots__ = ()
    leases = False


class ReentrantReadLock(Reentrant, ReadLock):
    """A `ReadLock` that a thread may acquire again while it holds it."""

    __slots__ = ()


class ReentrantWriteLock(Reentrant, WriteLock):
    """A `WriteLock` that a thread may acquire again while it holds it."""

    __slots__ = ()


class RWLock:
    """A lock with two faces: `with lock.read():` and `with lock.write():`.

    Each face is a lock object like `dlock.Lock`. They have no leases: a hold ends with the session.
    Who reads and then asks to write waits for itself, which is refused with Deadlock: give the read
    lock back first.
    """

    __slots__ = ("_key", "_read", "_write")

    def __init__(
        self, client: Client, key: Key, options: Options, *, reentrant: bool = False
    ) -> None:
        self._key = key
        self._read: Final = (ReentrantReadLock if reentrant else ReadLock)(client, key, options)
        self._write: Final = (ReentrantWriteLock if reentrant else WriteLock)(client, key, options)

    def read(self) -> ReadLock:
        """To hold it together with other readers. The same object each time."""
        return self._read

    def write(self) -> WriteLock:
        """To hold it alone. The same object each time."""
        return self._write

    def locked(self) -> bool:
        """Does anybody read or write? Asks the server."""
        return self._read.locked()

    def __repr__(self) -> str:
        return f"<dlock.RWLock {shown(self._key[0])}>"
