"""Calls that no thread waits for: posted in any number, collected in bulk by one poller.

A posted `struct dlk_call` names itself by its `cookie`; whoever posts it keeps it in place until it
was collected or cancelled. One Collector a client: its buffer is filled again by each collect, and
what it returns is complete: a call that is in the list is its caller's again.
"""

from __future__ import annotations

import os
from typing import Any, Final

from dlock import _core
from dlock._core import ffi, lib

PENDING: Final = _core.DLK_STATUS_PENDING
# Enough for all that one look at the socket can bring.
ROOM: Final = 1024

# Starts a filled call: PENDING (it will be collected), or its status when that is already known.
post: Final = lib.dlk_client_post
# Sends what was posted: SUCCESS, or PENDING (the rest goes out when there is room).
flush: Final = lib.dlk_client_flush
# Undoes a posted call, whatever became of it; it is never collected afterwards.
cancel: Final = lib.dlk_client_cancel

_ENDED: Final = _core.layout("dlk_ended", ("cookie", "status", "result"))
_iter_ended: Final = _ENDED.iter_unpack
Ended = tuple[int, int, int]


def collect_fd(client: Any) -> int:
    """The descriptor for an event loop, readable while there is something to collect; the same for
    the client's life. OSError if there can be none."""
    descriptor: int = lib.dlk_client_collect_fd(client)
    if descriptor < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno), "the descriptor of a dlock client")
    return descriptor


class Collector:
    """Takes what has ended, as tuples (cookie, status, result)."""

    __slots__ = ("_client", "_collect", "_out", "_view", "_wait")

    def __init__(self, client: Any) -> None:
        self._client = client
        self._collect = lib.dlk_client_collect
        self._wait = lib.dlk_client_collect_wait
        self._out = ffi.new("struct dlk_ended[]", ROOM)
        self._view = memoryview(ffi.buffer(self._out))

    def collect(self) -> list[Ended]:
        """All that has ended; never waits. Call it when the descriptor is readable, and every half
        second: calls without an answer end here."""
        count: int = self._collect(self._client, self._out, ROOM)
        ended: list[Ended] = list(_iter_ended(self._view[: count * _ENDED.size]))
        while count == ROOM:
            count = self._collect(self._client, self._out, ROOM)
            ended += _iter_ended(self._view[: count * _ENDED.size])
        return ended

    def collect_wait(self, timeout_ms: int) -> list[Ended]:
        """The same, but waits for the first in C, at most `timeout_ms` and at most 50 ms."""
        count: int = self._wait(self._client, self._out, ROOM, timeout_ms)
        if count == ROOM:
            return [*_iter_ended(self._view), *self.collect()]
        return list(_iter_ended(self._view[: count * _ENDED.size]))
