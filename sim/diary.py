"""What the users of one client were given, what they were told, and what they gave back.

People write it, laws read it. A `Hold` is one acquisition, from the moment in which `acquire` has
returned until its user gives it back or is told that it is lost. What the client believes of it is
asked from the client, by its own clock, each time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from dlock import _core
from dlock._calls import EXCLUSIVE, SEMAPHORE, look
from dlock._core import ffi, lib
from dlock._handle import Handle, Key
from dlock.aio.locks import BaseLock
from sim.scene import ClientNode

KIND_NAMES: Final = {
    _core.DLK_KIND_ATOMIC: "lock",
    _core.DLK_KIND_RW: "rwlock",
    _core.DLK_KIND_FAIR: "fair lock",
    _core.DLK_KIND_SEMAPHORE: "semaphore",
}


class Hold:
    """See the file. `suspended`, `lost`: that is what its user was told last; `over`: its user has
    given it back, or knows that it is lost.

    The laws keep: `until_ns`: the time, by its client's clock, up to which it is certainly
    believed, 0: not any more; `was_suspended`: it was not believed when it was looked at last;
    `amiss_since`, `amiss_turns`: since when something about it should have been told; `taken_ms`:
    for how long it was believed yet when it went, which only an operator may do."""

    __slots__ = ("_call", "_client", "amiss_since", "amiss_turns", "diary", "handle",
                 "key", "leased", "lock", "lost", "mode", "over", "serial", "suspended",
                 "taken_ms", "token", "until_ns", "was_suspended")

    def __init__(self, diary: Diary, lock: BaseLock, handle: Handle) -> None:
        self.diary = diary
        self.lock = lock
        self.handle = handle
        self.key: Key = handle.name.key
        self.mode = lock.mode
        self.serial = handle.serial
        self.token = int(handle.acquire.token)
        self.leased = bool(handle.acquire.lease_ms)
        self.until_ns = 0
        self.suspended = self.lost = self.over = self.was_suspended = False
        self.amiss_since = self.amiss_turns = self.taken_ms = 0
        self._client = handle.client
        self._call = ffi.new("struct dlk_call *")
        self._call.verb = _core.DLK_VERB_LOOK
        self._call.lock_id = handle.name.lock_id
        self._call.owner = handle.owner

    def look(self) -> tuple[int, int]:
        """(token, ms left) as its client says now; token 0: it is not held any more."""
        if self.handle.name.table.ended:
            return 0, 0
        call = self._call
        if lib.dlk_client_call(self._client, call):
            return 0, 0
        return call.token, call.left_ms

    @property
    def exclusive(self) -> bool:
        """Does it keep out everybody else? (A slot of a semaphore does not.)"""
        return self.mode == EXCLUSIVE and self.key[1] != SEMAPHORE

    @property
    def told(self) -> bool:
        """Has its user been told that it is lost, in any of the ways that there are?"""
        watch = self.lock._watch
        return self.over or self.lost or (watch is not None and watch.lost.is_set())

    @property
    def watched(self) -> bool:
        """Is anybody told by notices? Others learn of a loss when they use or release the hold."""
        return self.lock._watch is not None

    def excludes(self, other: Hold) -> bool:
        """May these two never be held at the same time? (Semaphores are counted.)"""
        return self.excludes_mode(other.mode)

    def excludes_mode(self, mode: int) -> bool:
        """The same of a hold of this lock in this mode."""
        return self.key[1] != SEMAPHORE and EXCLUSIVE in (self.mode, mode)

    def __str__(self) -> str:
        mode = "" if self.exclusive else " shared" if self.mode != EXCLUSIVE else " slot"
        return (f"{self.diary.node.name}: {KIND_NAMES[self.key[1]]} {self.key[0].decode()!r}{mode} "
                f"token {token_text(self.token)}")


def token_text(token: int) -> str:
    """A token or stamp, as epoch:counter."""
    return (f"{token >> _core.DLK_COUNTER_BITS}:"
            f"{token & ((1 << _core.DLK_COUNTER_BITS) - 1)}")


@dataclass(eq=False)
class Wait:
    """A call that is under way. `limit_ns`: it has promised to end within so long by its client's
    clock; None: it may wait for others for ever."""

    what: str
    begun_ns: int
    limit_ns: int | None
    late_turns: int = 0


@dataclass(eq=False)
class Diary:
    """Of one process. `holds`: what its users have in their hands; `seen`: how often what was
    met."""

    node: ClientNode
    seen: Counter[str] = field(default_factory=Counter)
    holds: dict[int, Hold] = field(default_factory=dict)
    waits: dict[int, Wait] = field(default_factory=dict)
    fresh: list[Hold] = field(default_factory=list)  # taken since the laws have looked last
    given: list[Hold] = field(default_factory=list)  # given up since then
    _early: dict[int, int] = field(default_factory=dict)  # SUSPENDED before `acquire` returned
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    # ---- Holds -----------------------------------------------------------------------------------

    def took(self, lock: BaseLock) -> Hold:
        """An acquisition through this object has just returned True."""
        hold = Hold(self, lock, lock._held[-1])
        hold.suspended = self._early.pop(hold.serial, 0) == hold.token
        self.holds[hold.serial] = hold
        self.fresh.append(hold)
        self.seen[f"{KIND_NAMES[hold.key[1]]} granted"] += 1
        return hold

    def gives_back(self, hold: Hold) -> None:
        """Its release has been called: from now on it is not believed."""
        hold.over = True
        hold.until_ns = 0
        self.holds.pop(hold.serial, None)
        self.given.append(hold)

    def told_lost(self, lock: BaseLock) -> None:
        """The callback `on_lost` of the lock objects."""
        self.seen["on_lost"] += 1
        for hold in self._of(lock):
            if not hold.look()[0]:
                hold.lost = True

    def told_suspended(self, lock: BaseLock) -> None:
        """The callback `on_suspended` of the lock objects."""
        self.seen["on_suspended"] += 1
        for hold in self._of(lock):
            if not hold.look()[1]:
                hold.suspended = True
        for handle in lock._held:
            if handle.serial not in self.holds and not look(handle).left_ms:
                self._early[handle.serial] = int(handle.acquire.token)

    def _of(self, lock: BaseLock) -> list[Hold]:
        return [self.holds[one.serial] for one in lock._held if one.serial in self.holds]

    # ---- Waits -----------------------------------------------------------------------------------

    def begins(self, what: str, limit_ns: int | None) -> int:
        """A call; the number by which it `ends`."""
        number: int = next(self._numbers)
        self.waits[number] = Wait(what, self.node.now_ns(), limit_ns)
        return number

    def ends(self, number: int) -> None:
        """It has returned or raised."""
        del self.waits[number]
