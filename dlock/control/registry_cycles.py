"""The cycles of waits that were refused, for who wants to know more than a number.

The plane tells a cycle edge by edge before it sends the refusal. A client that asks for it may
still be faster than the control thread, which has not taken the events yet; so a question sends the
plane a command that changes nothing, and is answered when that is done: events come in their order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Final

from dlock import _core
from dlock._core import Command, Event
from dlock.control import messages as m
from dlock.control.registry_effects import Call, Outbox
from dlock.control.registry_locks import LockTable
from dlock.control.registry_sessions import Sessions
from dlock.control.registry_view import info_bytes
from dlock.types import DlockStatus

CYCLES_MAX: Final = 1024  # the last ones
INFO_BYTES_MAX: Final = 40_000  # of an answer; its descriptors take at most 17,000
_U32_MAX: Final = 2**32 - 1


@dataclass(slots=True)
class _Cycle:
    """What is known of one; `length`: how many edges it has."""

    length: int
    edges: list[m.CycleEdge] = field(default_factory=list)
    info_bytes_left: int = INFO_BYTES_MAX


class Cycles:
    """`tell` takes the plane's events, `ask` a client's question."""

    def __init__(self, outbox: Outbox, locks: LockTable, sessions: Sessions) -> None:
        self._out = outbox
        self._locks = locks
        self._sessions = sessions
        self._known: dict[int, _Cycle] = {}  # by number, the oldest first

    def tell(self, event: Event) -> None:
        """One edge. Names are looked up now: the lock and the client may be gone later."""
        cycle = self._known.get(event.cookie)
        if cycle is None:
            cycle = self._known[event.cookie] = _Cycle(event.value >> 32)
            if len(self._known) > CYCLES_MAX:
                del self._known[next(iter(self._known))]
        lock = self._locks.at(event.slot, event.id)
        info = self._sessions.info_of(event.result)
        size = info_bytes(info)
        if size > cycle.info_bytes_left:
            info, size = {}, 0
        cycle.info_bytes_left -= size
        cycle.edges.append(m.CycleEdge(
            lock.descriptor if lock is not None else b"", event.result, event.value & _U32_MAX,
            info))

    def ask(self, call: Call) -> None:
        """Answered when all that the plane has told so far has come."""
        nothing = Command(_core.DLK_COMMAND_TOKEN_FLOOR, value=0)
        self._out.command(nothing, partial(self._answer, call))

    def _answer(self, call: Call, _event: Event) -> None:
        """A cycle of which the plane had no room to tell every edge is as good as unknown."""
        cycle = self._known.get(call.message.number)
        if cycle is None or len(cycle.edges) != min(cycle.length, _core.DLK_CYCLE_EDGES_MAX):
            self._out.refuse(call, DlockStatus.FAIL)
        else:
            self._out.answer(
                call, m.Cycle(DlockStatus.SUCCESS, tuple(cycle.edges), cycle.length))
