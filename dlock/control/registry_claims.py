"""Claims: what clients of a former primary say they have got and hold, made into locks again.

Names, ids and slots survive: a claim enters its lock under the id and slot that it says. Two claims
can contradict each other, when one comes of a client that has not heard for long: at the former
primary an id is never used again, but a name, and a slot, went over to a lock with a higher id. So
of all locks that were claimed for one name, or for one slot, that with the highest id counts, in
whatever order the claims come, refused ones too.

Who held what is for the engine to say: all claims of a message that are good go to it as one
command, and its answer is theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from dlock import _core
from dlock._core import Command, Event
from dlock.control import messages as m
from dlock.control.messages_recover import CLAIMED_LOCK_ID_MAX
from dlock.control.registry_effects import Call, Outbox, carried_out
from dlock.control.registry_locks import Got, Lock, LockPhase, LockTable
from dlock.control.registry_sessions import Client
from dlock.types import DlockStatus

_SUCCESS: Final = DlockStatus.SUCCESS
STATUS_OF_RESULT: Final = {
    _core.DLK_RESULT_GRANTED: DlockStatus.SUCCESS,
    _core.DLK_RESULT_QUEUED: DlockStatus.SUCCESS,
    _core.DLK_RESULT_TICKETED: DlockStatus.SUCCESS,
    _core.DLK_RESULT_DONE: DlockStatus.SUCCESS,
    _core.DLK_RESULT_NOT_HELD: DlockStatus.FAIL,
    _core.DLK_RESULT_NO_LOCK: DlockStatus.LOCK_NOT_GET,
    _core.DLK_RESULT_NO_RESOURCE: DlockStatus.SERVER_NO_RESOURCE,
    _core.DLK_RESULT_INVALID: DlockStatus.EINVAL,
}


class Claims:
    """Takes claims while a server recovers."""

    def __init__(self, outbox: Outbox, locks: LockTable) -> None:
        self._out = outbox
        self._locks = locks
        self._by_id: dict[int, Lock] = {}
        # Ids that were claimed for a slot (by number) or a name, where no such lock is left.
        self._floors: dict[int | bytes, int] = {}
        locks.begin_claims()

    def update(
        self, client: Client, call: Call, *, lapsed_believed: bool, lease_limit_ms: int
    ) -> None:
        """UpdateLocks of a client that has re-initialised here, and cannot have been granted leases
        above the limit."""
        claims: Sequence[m.LockClaim] = call.message.claims
        self._locks.heard_of(max(
            (claim.lock_id for claim in claims if claim.lock_id <= CLAIMED_LOCK_ID_MAX), default=0))
        outcomes = [self._enter(client.locks, claim) for claim in claims]
        sent: list[m.LockClaim] = []
        locks: list[Lock] = []
        for claim, outcome in zip(claims, outcomes, strict=True):
            # One of the same message could have been displaced by a later one.
            if isinstance(outcome, Lock) and outcome.phase is not LockPhase.FAILED:
                sent.append(_within(claim, lease_limit_ms))
                locks.append(outcome)
        if not sent:
            self._answer(call, [_status_of(outcome) for outcome in outcomes])
            return
        cookie = self._out.claim(
            Command(_core.DLK_COMMAND_CLAIM, slot=client.slot, id=client.id,
                    kind=int(lapsed_believed), size=len(sent)),
            sent, partial(self._claimed, call, outcomes, locks))
        for lock in locks:
            if lock.phase is LockPhase.OPENING and not lock.cookie:
                lock.cookie = cookie

    def _claimed(
        self, call: Call, outcomes: list[Lock | DlockStatus], locks: list[Lock], event: Event,
        results: Sequence[int], _now_ns: int,
    ) -> None:
        """The engine has taken them, or has not. Claims of a session that has ended meanwhile are
        its client's no more; if there was no memory for any, they are to be made again. The locks
        are opened all the same: others may have claimed them by now."""
        done = carried_out(event)
        if not done:
            results = [event.result] * len(locks)
        for lock, result in zip(locks, results, strict=True):
            if lock.phase is LockPhase.OPENING:
                self._locks.claim_answered(lock, event, result)
        if not done:
            removed = event.result == _core.DLK_RESULT_REMOVED
            self._out.refuse(
                call, DlockStatus.CLIENT_REMOVED_BY_SERVER if removed else DlockStatus.NOT_READY)
            return
        answers: Iterator[tuple[Lock | None, int]] = zip(locks, results, strict=True)
        awaited, result = next(answers)
        statuses = []
        for outcome in outcomes:
            if outcome is awaited:
                statuses.append(STATUS_OF_RESULT[result])
                awaited, result = next(answers, (None, 0))
            else:
                statuses.append(_status_of(outcome))
        self._answer(call, statuses)

    def _answer(self, call: Call, statuses: list[DlockStatus]) -> None:
        for status in statuses:
            if status is not _SUCCESS:
                self._out.count(status)
        self._out.answer(call, m.Statuses(_SUCCESS, tuple(statuses)))

    # ---- Locks -----------------------------------------------------------------------------------

    def _enter(self, got: Got, claim: m.LockClaim) -> Lock | DlockStatus:
        """The lock that is claimed, which this client has got from now on; or why not."""
        lock_id = claim.lock_id
        lock = self._locks.in_slot(claim.slot)
        if lock is None or lock.id != lock_id:
            outcome = self._enter_new(claim, lock)
            if not isinstance(outcome, Lock):
                return outcome
            lock = outcome
        elif (lock.descriptor, lock.kind, lock.size) != (
                claim.descriptor, claim.kind, _size(claim)):
            return DlockStatus.EINVAL
        if lock_id not in got:
            got[lock_id] = lock
            lock.refs += 1
        return lock

    def _enter_new(self, claim: m.LockClaim, in_slot: Lock | None) -> Lock | DlockStatus:
        lock_id, name = claim.lock_id, claim.descriptor
        if lock_id > CLAIMED_LOCK_ID_MAX:
            return DlockStatus.EINVAL
        if claim.slot >= self._locks.size:
            return DlockStatus.SERVER_NO_RESOURCE
        size = _size(claim)
        known = self._by_id.get(lock_id)
        if size == 0 or (known is not None and known.phase is not LockPhase.FAILED):
            return DlockStatus.EINVAL  # One id is one lock, in one slot, of one name.
        named = self._locks.find(name)
        if in_slot is not None or named is not None or self._floors:
            newest = self._contest(claim, [one for one in (in_slot, named) if one is not None])
            if lock_id < newest:
                return DlockStatus.LOCK_NOT_GET
        lock = self._by_id[lock_id] = self._locks.claimed(claim, size)
        return lock

    def _contest(self, claim: m.LockClaim, others: list[Lock]) -> int:
        """Another lock was claimed for this slot or this name: the older ones are over. Returns the
        id of the newest other one."""
        lock_id, slot, name = claim.lock_id, claim.slot, claim.descriptor
        newest = max([self._floors.get(slot, 0), self._floors.get(name, 0),
                      *(other.id for other in others)])
        for other in set(others):
            if other.id < lock_id:
                self._raise_floors(other.id, other.slot, other.descriptor)
                self._locks.displace(other)
        if lock_id < newest:
            self._raise_floors(lock_id, slot, name)
        return newest

    def _raise_floors(self, lock_id: int, slot: int, name: bytes) -> None:
        for key in (slot, name):
            self._floors[key] = max(self._floors.get(key, 0), lock_id)

    def end(self) -> None:
        """No more claims are taken."""
        self._locks.end_claims()


def _within(claim: m.LockClaim, lease_limit_ms: int) -> m.LockClaim:
    """A hold with a lease that nobody has granted is as good as one whose lease has ended: the
    engine refuses it, and knows its token."""
    if claim.leased and claim.remaining_ms > lease_limit_ms:
        return claim._replace(lapsed=1)
    return claim


def _size(claim: m.LockClaim) -> int:
    """How many may hold it: said for semaphores only."""
    return claim.size if claim.kind == _core.DLK_KIND_SEMAPHORE else 1


def _status_of(outcome: Lock | DlockStatus) -> DlockStatus:
    """Of a claim that was not sent: a Lock was displaced."""
    return DlockStatus.LOCK_NOT_GET if isinstance(outcome, Lock) else outcome
