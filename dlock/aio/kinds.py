"""The other kinds of locks for asyncio: re-entrant ones, readers and one writer, semaphores."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dlock._calls import SHARED, Asked, look, shown
from dlock._handle import Handle, Key
from dlock.aio import _attempt
from dlock.aio.locks import BaseLock, FairLock, Lock, Options
from dlock.errors import NotHeld

if TYPE_CHECKING:
    from dlock.aio._connection import Connection

_R = TypeVar("_R", bound="Reentrant")


class Reentrant(BaseLock):
    """What re-entrant locks add, like `threading.RLock`: the task that holds one may acquire it
    again, which costs no message; another task waits, and may not release. LockLost, where the hold
    that is to be entered again can no longer be believed."""

    __slots__ = ("_entries",)

    def __init__(self, client: Connection, key: Key, options: Options) -> None:
        super().__init__(client, key, options)
        self._entries: dict[int, int] = {}  # by actor, where it is more than one

    def _own(self, actor: int) -> Handle | None:
        for handle in self._held:
            if handle.actor == actor | self._apart:
                return handle
        return None

    async def _acquire(self, asked: Asked, actor: int) -> bool:
        handle = self._own(actor)
        if handle is None:
            return await super()._acquire(asked, actor)
        if look(handle).left_ms == 0:
            raise _attempt.lost(handle, self.name)
        self._entries[actor] = self._entries.get(actor, 1) + 1
        return True

    def release(self) -> Coroutine[Any, Any, None]:
        """Undoes one acquisition of the running task; the last one gives the lock back. NotHeld:
        this task does not hold it."""
        actor = self._client.enter()
        if self._own(actor) is None:
            raise NotHeld(f"{self!r} is not held by this task")
        count = self._entries.pop(actor, 1)
        if count == 1:
            return super().release()
        if count > 2:
            self._entries[actor] = count - 1
        return _nothing()

    def _for_a_call(self: _R) -> _R:
        return self  # a decorated function may call itself


async def _nothing() -> None:
    """What there is to wait for when an inner acquisition has been undone."""


class SharedFairLock(FairLock):
    """A `FairLock` for those who only read: they hold it together."""

    __slots__ = ()
    mode = SHARED


class ReadLock(BaseLock):
    """Any number hold it together, while nobody writes. A writer that waits goes first."""

    __slots__ = ()
    mode = SHARED
    leases = False


class WriteLock(BaseLock):
    """Held by one alone: no reader, no other writer."""

    __slots__ = ()
    leases = False


class ReentrantLock(Reentrant, Lock):
    """A `Lock` that a task may acquire again while it holds it."""

    __slots__ = ()


class ReentrantFairLock(Reentrant, FairLock):
    """A `FairLock` that a task may acquire again while it holds it."""

    __slots__ = ()


class ReentrantSharedFairLock(Reentrant, SharedFairLock):
    """A `SharedFairLock` that a task may acquire again while it holds it."""

    __slots__ = ()


class ReentrantReadLock(Reentrant, ReadLock):
    """A `ReadLock` that a task may acquire again while it holds it."""

    __slots__ = ()


class ReentrantWriteLock(Reentrant, WriteLock):
    """A `WriteLock` that a task may acquire again while it holds it."""

    __slots__ = ()


class RWLock:
    """A lock with two faces: `async with lock.read():` and `async with lock.write():`.

    Each face is a lock object like `dlock.aio.Lock`. They have no leases: a hold ends with the
    session. Who reads and then asks to write waits for itself, which is refused with Deadlock: give
    the read lock back first.
    """

    __slots__ = ("_key", "_read", "_write")

    def __init__(
        self, client: Connection, key: Key, options: Options, *, reentrant: bool = False
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

    async def locked(self) -> bool:
        """Does anybody read or write? Asks the server."""
        return await self._read.locked()

    def __repr__(self) -> str:
        return f"<dlock.aio.RWLock {shown(self._key[0])}>"


class Semaphore(BaseLock):
    """At most `size` hold it at a time. Everybody must name the same size; the first decides. Each
    acquisition takes a slot of its own, also by the same task or through the same object."""

    __slots__ = ()

    @property
    def size(self) -> int:
        """How many may hold it at a time."""
        return self._key[2]

    @property
    def exclusive(self) -> bool:
        """Only a semaphore of size 1 keeps everybody else out."""
        return self.size == 1

    def release(self, n: int = 1) -> Coroutine[Any, Any, None]:
        """Gives `n` slots back, at once. ValueError: n is below 1. NotHeld: this object holds
        fewer; then none is given back."""
        if n < 1:
            raise ValueError("n must be one or more")
        if n > max(len(self._held), 1):
            raise NotHeld(f"{self!r} holds {len(self._held)} slots, not {n}")
        if n == 1:
            return super().release()
        return _all([super(Semaphore, self).release() for _ in range(n)])


async def _all(releases: list[Coroutine[Any, Any, None]]) -> None:
    """Waits for all; the first of their errors."""
    problem: Exception | None = None
    for release in releases:
        try:
            await release
        except Exception as error:
            problem = problem or error
    if problem is not None:
        raise problem
