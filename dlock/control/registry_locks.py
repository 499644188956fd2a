"""Which name is which lock: ids, slots, who counts on it, and the closing of what nobody has got.

A lock is OPENING until the plane has confirmed it, OPEN while somebody has got it, CLOSING until
the plane has answered LOCK_CLOSE, then gone, or LINGERING while a hold of an ended session keeps
it. A lock that is got while it closes is opened again under the same slot and id. Events of the
plane that were under way then speak of the past; they are told apart so: a DONE counts only if it
is the lock's latest command's, LOCK_CLOSED counts only in LINGERING, which only such a DONE brings.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import islice
from typing import Final

from dlock import _core
from dlock._core import Command, Event
from dlock.control.messages import ID_MAX, LockClaim, LockResult, LockSpec
from dlock.control.messages_recover import CLAIMED_LOCK_ID_MAX
from dlock.control.registry_effects import Note, Outbox, Slots, carried_out
from dlock.types import DlockStatus

# How many locks of clients that are gone are released between two looks at the sockets: about
# 15 ms. A client may have got a million.
RELEASES_PER_TICK: Final = 1000


# What a CLAIM says of locks that are open then.
CLAIM_OPENED: Final = frozenset({
    _core.DLK_RESULT_GRANTED, _core.DLK_RESULT_QUEUED, _core.DLK_RESULT_TICKETED,
    _core.DLK_RESULT_DONE, _core.DLK_RESULT_NOT_HELD})


class LockPhase(Enum):
    """See the head of this file; FAILED: there is no such lock in the plane: it refused to open it,
    or (in a recovery) a newer one has its name or its slot."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    LINGERING = "lingering"
    FAILED = "failed"


@dataclass(slots=True, eq=False)
class Lock:
    """One lock. `cookie`: its latest command; `refs`: how many clients have got it."""

    id: int
    slot: int
    descriptor: bytes
    kind: int
    size: int
    refs: int
    phase: LockPhase
    cookie: int


Got = dict[int, Lock]  # a client's locks by id


class LockTable:
    """All locks of a server."""

    def __init__(self, max_locks: int, outbox: Outbox) -> None:
        self._slots = Slots(max_locks)
        self._outbox = outbox
        self._by_descriptor: dict[bytes, Lock] = {}
        self._by_slot: dict[int, Lock] = {}
        self._last_id = 0
        self._idle: list[Lock] | None = None  # while claims come: what nobody has got (yet)
        self._leaving: deque[Got] = deque()  # of clients that are gone, not yet released
        self._closable: deque[Lock] = deque()  # claimed, got by nobody, and not closed yet
        self._releases_left = RELEASES_PER_TICK

    @property
    def gauges(self) -> dict[str, int]:
        """For Stats."""
        return {"locks": len(self._by_descriptor)}

    def find(self, descriptor: bytes) -> Lock | None:
        """The lock of this name."""
        return self._by_descriptor.get(descriptor)

    def at(self, slot: int, lock_id: int) -> Lock | None:
        """The lock that the plane means."""
        lock = self._by_slot.get(slot)
        return lock if lock is not None and lock.id == lock_id else None

    def get(self, got: Got, spec: LockSpec) -> LockResult | Lock:
        """Joins or creates a lock; a Lock is good once its latest command is done, if it has not
        FAILED then."""
        size = spec.size if spec.kind == _core.DLK_KIND_SEMAPHORE else 1
        if size == 0:
            return LockResult(DlockStatus.EINVAL)
        lock = self._by_descriptor.get(spec.descriptor)
        if lock is None:
            return self._create(got, spec, size)
        if (lock.kind, lock.size) != (spec.kind, size):
            self._outbox.counters["EINVAL_LOCK_TYPE"] += 1
            return LockResult(DlockStatus.ERROR)
        if lock.id in got:
            return LockResult(DlockStatus.ERROR, lock.id, lock.slot)
        if lock.phase in (LockPhase.CLOSING, LockPhase.LINGERING):
            self._open(lock)
        lock.refs += 1
        got[lock.id] = lock
        return lock

    def _create(self, got: Got, spec: LockSpec, size: int) -> LockResult | Lock:
        slot = self._slots.take() if self._last_id < ID_MAX else None
        if slot is None:
            return LockResult(DlockStatus.SERVER_NO_RESOURCE)
        if self._last_id == CLAIMED_LOCK_ID_MAX:
            self._outbox.add(Note("new locks cannot be claimed after a restart", {
                "ids_used": self._last_id, "ids_left": ID_MAX - self._last_id}, logging.ERROR))
        self._last_id += 1
        lock = Lock(
            self._last_id, slot, spec.descriptor, spec.kind, size, 1, LockPhase.OPENING, 0)
        self._by_descriptor[lock.descriptor] = self._by_slot[slot] = got[lock.id] = lock
        self._open(lock)
        return lock

    def _open(self, lock: Lock) -> None:
        lock.phase = LockPhase.OPENING
        lock.cookie = self._outbox.command(
            Command(_core.DLK_COMMAND_LOCK_OPEN, slot=lock.slot, id=lock.id, kind=lock.kind,
                    size=lock.size),
            partial(self._opened, lock))

    def _opened(self, lock: Lock, event: Event) -> None:
        if event.cookie != lock.cookie:
            return
        if carried_out(event):
            lock.phase = LockPhase.OPEN
        else:
            lock.phase = LockPhase.FAILED
            self._forget(lock)

    @staticmethod
    def result(got: Got, lock: Lock) -> LockResult:
        """What to answer for a Lock that `get` returned, once its command is done."""
        if lock.phase is LockPhase.FAILED:
            got.pop(lock.id, None)
            return LockResult(DlockStatus.SERVER_NO_RESOURCE)
        return LockResult(DlockStatus.SUCCESS, lock.id, lock.slot)

    def release(self, got: Got, lock_id: int) -> DlockStatus:
        """One client lets a lock go."""
        lock = got.pop(lock_id, None)
        if lock is None:
            return DlockStatus.LOCK_NOT_GET
        lock.refs -= 1
        if lock.refs == 0 and lock.phase is not LockPhase.FAILED:
            if self._idle is None:
                self._close(lock)
            else:  # Others may claim it yet.
                self._idle.append(lock)
        return DlockStatus.SUCCESS

    def release_all(self, got: Got) -> None:
        """A client is gone. Few locks are released at once, many by the next ticks."""
        if got:
            self._leaving.append(got)
            self._release_leaving()

    def _release_leaving(self) -> None:
        while self._leaving and self._releases_left:
            got = self._leaving[0]
            for lock_id in list(islice(got, self._releases_left)):
                self._releases_left -= 1
                self.release(got, lock_id)
            if not got:
                self._leaving.popleft()
        while self._closable and self._releases_left:
            self._releases_left -= 1
            lock = self._closable.popleft()
            if not lock.refs and lock.phase in (LockPhase.OPENING, LockPhase.OPEN):
                self._close(lock)

    def tick(self) -> None:
        """Goes on releasing what clients that are gone had got."""
        self._releases_left = RELEASES_PER_TICK
        self._release_leaving()

    @property
    def leaving(self) -> tuple[Got, ...]:
        """What is still to be released."""
        return tuple(self._leaving)

    @property
    def busy(self) -> bool:
        """Is `tick` due?"""
        return bool(self._leaving or self._closable)

    def _close(self, lock: Lock) -> None:
        lock.phase = LockPhase.CLOSING
        lock.cookie = self._outbox.command(
            Command(_core.DLK_COMMAND_LOCK_CLOSE, slot=lock.slot, id=lock.id),
            partial(self._close_answered, lock))

    def _close_answered(self, lock: Lock, event: Event) -> None:
        if event.cookie != lock.cookie:
            return
        if event.value == 1 or not carried_out(event):
            self._forget(lock)
        else:
            lock.phase = LockPhase.LINGERING

    def closed(self, event: Event) -> None:
        """LOCK_CLOSED of the plane."""
        lock = self._by_slot.get(event.slot)
        if lock is not None and lock.id == event.id and lock.phase is LockPhase.LINGERING:
            self._forget(lock)

    def _forget(self, lock: Lock) -> None:
        del self._by_descriptor[lock.descriptor]
        del self._by_slot[lock.slot]
        self._slots.give(lock.slot)

    # ---- While claims come -----------------------------------------------------------------------

    def begin_claims(self) -> None:
        """From now on locks are claimed, and none is closed because nobody has got it."""
        self._idle = []

    def end_claims(self) -> None:
        """From now on locks are made, and closed; what nobody has got any more goes, bit by bit."""
        self._closable.extend(self._idle or ())
        self._idle = None

    def in_slot(self, slot: int) -> Lock | None:
        """The lock in this slot."""
        return self._by_slot.get(slot)

    @property
    def size(self) -> int:
        """How many slots there are."""
        return self._slots.size

    def heard_of(self, lock_id: int) -> None:
        """Ids that are handed out from now on are above this one."""
        self._last_id = max(self._last_id, lock_id)

    def claimed(self, claim: LockClaim, size: int) -> Lock:
        """Enters a lock as it was at the former primary; a CLAIM that is sent now opens it."""
        lock = Lock(claim.lock_id, claim.slot, claim.descriptor, claim.kind, size, 0,
                    LockPhase.OPENING, 0)
        self._slots.claim(lock.slot)
        self._by_descriptor[lock.descriptor] = self._by_slot[lock.slot] = lock
        return lock

    def claim_answered(self, lock: Lock, event: Event, result: int) -> None:
        """The CLAIM that was to open this lock is done, with this for one claim of it."""
        if event.cookie != lock.cookie or lock.phase is not LockPhase.OPENING:
            return
        if result in CLAIM_OPENED:
            lock.phase = LockPhase.OPEN
        else:  # Refused, and perhaps before the lock was looked at.
            self._open(lock)

    def displace(self, lock: Lock) -> None:
        """A newer lock has its name or its slot: this one is over, whoever holds it. What still
        answers an earlier command speaks of the past."""
        lock.cookie = self._outbox.command(Command(
            _core.DLK_COMMAND_LOCK_CLOSE, slot=lock.slot, id=lock.id, size=1))
        lock.phase = LockPhase.FAILED
        self._forget(lock)

    @staticmethod
    def check_claim(got: Got, claim: LockClaim) -> DlockStatus:
        """Against a server that knows: has this client got what it says?"""
        lock = got.get(claim.lock_id)
        if (lock is None or lock.phase is LockPhase.FAILED
                or (lock.descriptor, lock.kind) != (claim.descriptor, claim.kind)):
            return DlockStatus.LOCK_NOT_GET
        return DlockStatus.SUCCESS

    def check(self) -> None:
        """Asserts what must hold between any two inputs; for tests."""
        assert self._slots.in_use == len(self._by_slot) == len(self._by_descriptor)
        for slot, lock in self._by_slot.items():
            assert lock.slot == slot
            assert self._by_descriptor[lock.descriptor] is lock
            assert 1 <= lock.id <= self._last_id
            in_use = lock.phase in (LockPhase.OPENING, LockPhase.OPEN)
            assert in_use if lock.refs else not in_use or lock in (self._idle or self._closable)
