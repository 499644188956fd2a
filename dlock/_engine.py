"""The engine of the C core by itself, driven by hand: for tests, tools and measurements. A server's
plane owns its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from dlock._core import (
    Command,
    EntryView,
    Event,
    Limits,
    Reply,
    Request,
    command_struct,
    ffi,
    layout,
    lib,
)

_REQUEST: Final = layout("dlk_request", Request._fields)
_REPLY: Final = layout("dlk_reply", Reply._fields)
_EVENT: Final = layout("dlk_event", Event._fields)
_VIEW: Final = layout("dlk_entry_view", EntryView._fields)


class Engine:
    """One lock table, driven by hand. Every call takes now and returns what came out of it."""

    def __init__(self, limits: Limits | None = None, epoch: int = 1, *, ready: bool = True) -> None:
        self._pid = os.getpid()
        self._pointer: Any = None
        pointer = lib.dlk_engine_new(
            ffi.new("struct dlk_limits *", (limits or Limits())._asdict()), epoch
        )
        if pointer == ffi.NULL:
            raise MemoryError("no memory for an engine of these limits")
        self._pointer = pointer
        self._reply_list = ffi.new("struct dlk_reply **")
        self._event_list = ffi.new("struct dlk_event **")
        if ready:
            self.command(Command(lib.DLK_COMMAND_READY, value=1), 0)

    def __del__(self) -> None:
        if getattr(self, "_pointer", None) is not None:
            self.free()

    def free(self) -> None:
        """Gives the tables back; the engine must not be used afterwards."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None and self._pid == os.getpid():
            lib.dlk_engine_free(pointer)

    def _take(self) -> tuple[list[Reply], list[Event]]:
        count = lib.dlk_engine_replies(self._pointer, self._reply_list)
        data = ffi.buffer(self._reply_list[0], count * _REPLY.size) if count else b""
        replies = [Reply(*fields) for fields in _REPLY.iter_unpack(data)]
        count = lib.dlk_engine_events(self._pointer, self._event_list)
        data = ffi.buffer(self._event_list[0], count * _EVENT.size) if count else b""
        events = [Event(*fields) for fields in _EVENT.iter_unpack(data)]
        lib.dlk_engine_clear(self._pointer)
        return replies, events

    def step(
        self, requests: Sequence[tuple[int, ...]], now: int
    ) -> tuple[list[Reply], list[Event]]:
        """Carries out a batch, in order; each request a tuple in the order of `Request`."""
        data = b"".join(_REQUEST.pack(*request) for request in requests)
        array = ffi.from_buffer("struct dlk_request[]", data)
        lib.dlk_engine_step(self._pointer, array, len(requests), now)
        return self._take()

    def command(self, command: Command, now: int) -> tuple[list[Reply], list[Event]]:
        """Carries out one command of the control plane."""
        lib.dlk_engine_command(self._pointer, command_struct(command), now)
        return self._take()

    def tick(self, now: int, sessions_now: int | None = None) -> tuple[list[Reply], list[Event]]:
        """Ends what is due at `now`; sessions by `sessions_now` (the same by default; 0: none)."""
        lib.dlk_engine_tick(self._pointer, now, now if sessions_now is None else sessions_now)
        return self._take()

    def stop(self) -> tuple[list[Reply], list[Event]]:
        """Wakes every waiter with STOPPING."""
        lib.dlk_engine_stop(self._pointer)
        return self._take()

    def next_deadline(self) -> int:
        """When `tick` is due next, in ns; 2**64-1: never. May be early, never late."""
        return int(lib.dlk_engine_next_deadline(self._pointer))

    def view(self, slot: int) -> list[EntryView]:
        """Holders, then the queue, of the lock in this slot."""
        room = 16
        while True:
            array = ffi.new("struct dlk_entry_view[]", room)
            count = lib.dlk_engine_view(self._pointer, slot, array, room)
            if count <= room:
                data = ffi.buffer(array, count * _VIEW.size)
                return [EntryView(*fields) for fields in _VIEW.iter_unpack(data)]
            room = count

    def check(self) -> int:
        """0, or the number of the invariant that is broken."""
        return int(lib.dlk_engine_check(self._pointer))

    def entries_in_use(self) -> int:
        """Holds, waiters and tickets of all locks together."""
        return int(lib.dlk_engine_entries_in_use(self._pointer))

    def counters(self) -> list[int]:
        """In the order of `counter_names`."""
        return list(lib.dlk_engine_counters(self._pointer)[0 : lib.DLK_COUNT_MAX])
