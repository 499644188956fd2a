"""Locks that a thread may acquire again while it holds them, like `threading.RLock`.

Re-entry follows the thread that asked: another thread waits, and may not release. It costs no
message: the object counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, TypeVar

from dlock._attempt import me
from dlock._calls import Asked, look
from dlock.locks import DEFAULT, BaseLock, FairLock, Lock, Options, SharedFairLock

if TYPE_CHECKING:
    from dlock._handle import Handle, Key
    from dlock.client import Client

_R = TypeVar("_R", bound="Reentrant")


class Reentrant(BaseLock):
    """What all re-entrant locks add. `_entries`: how often a hold was entered, where that is more
    than once."""

    __slots__ = ()

    def __init__(self, client: Client, key: Key, options: Options = DEFAULT) -> None:
        super().__init__(client, key, options)
        self._entries = {}

    def _own(self) -> Handle | None:
        actor = me.actor.number | self._apart
        for handle in tuple(self._held):
            if handle.actor == actor:
                return handle
        return None

    def _acquire(self, asked: Asked | None) -> bool:
        handle = self._own()
        if handle is None:
            return super()._acquire(asked)
        if look(handle).left_ms == 0:
            raise self._client._lost(handle)
        count = self._entries.get(handle, 1)
        try:
            self._entries[handle] = count + 1
            return True
        except BaseException:
            self._entries[handle] = count
            raise

    def release(self) -> None:
        """Undoes one acquisition of the calling thread; the last one gives the lock back. NotHeld:
        this thread does not hold it."""
        handle = self._own()
        if handle is None:
            raise self._not_held()
        count = self._entries.get(handle, 1)
        if count > 1:
            self._entries[handle] = count - 1
            return
        self._entries.pop(handle, None)
        del handle  # an interrupted frame lives on in its traceback, and must not keep it alive
        super().release()

    def acquire_future(
        self, timeout: float | None = -1, *, lease: float | None = None
    ) -> NoReturn:
        """TypeError: re-entry follows the thread that acquired, and here none would have."""
        raise TypeError(f"{self!r} is re-entrant: it belongs to the thread that acquires it, and a "
                        "future has none; use a plain lock")

    def _for_a_call(self: _R) -> _R:
        return self  # a decorated function may call itself


class ReentrantLock(Reentrant, Lock):
    """A `Lock` that a thread may acquire again while it holds it."""

    __slots__ = ()


class ReentrantFairLock(Reentrant, FairLock):
    """A `FairLock` that a thread may acquire again while it holds it."""

    __slots__ = ()


class ReentrantSharedFairLock(Reentrant, SharedFairLock):
    """A `SharedFairLock` that a thread may acquire again while it holds it."""

    __slots__ = ()
