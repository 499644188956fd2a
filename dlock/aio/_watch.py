"""Who is told, in the event loop, what becomes of the holds of one lock object: its `lost` event
and its callbacks.

A watch is made only for a lock object that has callbacks, or whose `lost` was asked for; all others
pay nothing. It refers to the lock object weakly: a callback must not keep a lock alive that its
program has dropped.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dlock import _core
from dlock._calls import look

if TYPE_CHECKING:
    from dlock._handle import Handle
    from dlock.aio.locks import BaseLock

# Told with the lock object, by the event loop.
Told = Callable[[Any], object]

LOST: Final = frozenset((_core.DLK_NOTICE_LOST, _core.DLK_NOTICE_BROKEN))
SUSPENDED: Final[int] = _core.DLK_NOTICE_SUSPENDED
CONFIRMED: Final[int] = _core.DLK_NOTICE_CONFIRMED


class Watch:
    """`lost` is set when a hold of the lock object is lost, and cleared by its next
    acquisition."""

    __slots__ = ("_doubted", "_lock", "lost", "on_lost", "on_suspended")

    def __init__(
        self, lock: BaseLock, on_lost: Told | None = None, on_suspended: Told | None = None
    ) -> None:
        self._lock = weakref.ref(lock)
        self._doubted = 0  # the token of the hold of which SUSPENDED was told last
        self.lost = asyncio.Event()
        self.on_lost = on_lost
        self.on_suspended = on_suspended

    def begin(self, handle: Handle) -> None:
        """An acquisition: from now on this is told of its hold."""
        self.lost.clear()
        handle.watcher = self

    def look_again(self, handle: Handle) -> None:
        """A notice about the hold may have come before the object knew of it."""
        token, left_ms = look(handle)
        if token == 0 or left_ms == 0:
            self(SUSPENDED if token else _core.DLK_NOTICE_LOST, int(handle.acquire.token))

    def __call__(self, kind: int, token: int) -> None:
        """A notice about the hold with this token; notices about earlier holds are stale."""
        lock = self._lock()
        if lock is None or token not in lock.tokens:
            return
        if kind in LOST:
            first = not self.lost.is_set()
            self.lost.set()
            if first and self.on_lost is not None:
                self.on_lost(lock)
        elif kind == CONFIRMED:
            self._doubted = 0
        elif kind == SUSPENDED and token != self._doubted:
            self._doubted = token
            if self.on_suspended is not None:
                self.on_suspended(lock)
