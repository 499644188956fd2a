"""The batch calls of the mirror (specification, section 5): 1..31 items, carried out in order as
single calls would be, one result an item.

What is wrong with one item is that item's result; the size, the client and a running asynchronous
operation are the batch's. All the items that are left go to C in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from dlock import _mirror_data
from dlock._mirror_check import (
    bad_extend_request,
    bad_id,
    bad_list,
    bad_lock_desc,
    bad_lock_request,
)
from dlock._mirror_client import STATUSES, LockEntry, MirrorClient
from dlock._mirror_enter import Refusal, enter_client, refuse
from dlock._mirror_locks import ASKED, EXCLUSIVE, EXTEND, LOOK, SHARED, TRYLOCK, UNLOCK, conclude
from dlock._mirror_locks import lease_ms as lease_of
from dlock.control.messages import GetLocks, LockResult, LockSpec, ReleaseLocks
from dlock.types import DlockStatus, LockDesc, LockOp, LockOpResult, LockRequest

_CALL_BYTES: Final = _mirror_data.CALL_BYTES
_UNTOUCHED: Final = _mirror_data.UNTOUCHED
_pack_call: Final = _mirror_data.pack_call
_status_at: Final = _mirror_data.status_at
_EINVAL: Final = DlockStatus.EINVAL
_LOCK_EXCLUSIVE: Final = LockOp.LOCK_EXCLUSIVE
_LOCK_SHARED: Final = LockOp.LOCK_SHARED

Results = tuple[DlockStatus, list[LockOpResult] | None]


# ---- Lock operations -----------------------------------------------------------------------------


def batch_trylock(client_id: int, reqs: Sequence[LockRequest] | None) -> Results:
    """`trylock` for each item; `(SUCCESS, [LockOpResult, ...])`, or EINVAL for the size."""
    try:
        client = _enter_batch(client_id, reqs)
    except Refusal as refusal:
        return refusal.status, None
    assert reqs is not None
    batch = _Batch(client)
    locks, free_lease_s = client.locks, client.free_lease_s
    buffer, ready = batch.call.buffer, batch.ready
    for req in reqs:
        entry = locks.get(req.lock_id) if req.__class__ is LockRequest else None
        op = req.lock_op if entry is not None else None
        if (
            entry is not None
            and (op is _LOCK_EXCLUSIVE or op is _LOCK_SHARED)
            and req.expire_time.__class__ is int
            and 0 < req.expire_time <= free_lease_s
        ):
            mode = EXCLUSIVE if op is _LOCK_EXCLUSIVE else SHARED
            at = len(ready) * _CALL_BYTES
            lease_ms, flags = req.expire_time * 1000, entry.flags
            _pack_call(buffer, at, TRYLOCK, entry.id, 0, mode, lease_ms, 0, flags, 0, 0, _UNTOUCHED)
            ready.append(entry)
        else:
            batch.add_request(req, TRYLOCK)
    return DlockStatus.SUCCESS, batch.run()


def batch_lock_extend(client_id: int, reqs: Sequence[LockRequest] | None) -> Results:
    """`lock_extend` for each item; `(SUCCESS, [LockOpResult, ...])`, or EINVAL for the size."""
    try:
        client = _enter_batch(client_id, reqs)
    except Refusal as refusal:
        return refusal.status, None
    assert reqs is not None
    batch = _Batch(client)
    for req in reqs:
        batch.add_request(req, EXTEND)
    return DlockStatus.SUCCESS, batch.run()


def batch_unlock(client_id: int, lock_ids: Sequence[int] | None) -> Results:
    """`unlock` for each item; `(SUCCESS, [LockOpResult, ...])`, or EINVAL for the size."""
    try:
        client = _enter_batch(client_id, lock_ids)
    except Refusal as refusal:
        return refusal.status, None
    assert lock_ids is not None
    batch = _Batch(client)
    locks = client.locks
    buffer, ready = batch.call.buffer, batch.ready
    for lock_id in lock_ids:
        entry = locks.get(lock_id) if lock_id.__class__ is int else None
        if entry is not None:
            at = len(ready) * _CALL_BYTES
            _pack_call(buffer, at, UNLOCK, entry.id, 0, EXCLUSIVE, 0, 0, 0, 0, 0, _UNTOUCHED)
            ready.append(entry)
        elif bad_id(lock_id, "lock_id"):
            batch.refuse(_EINVAL, None)
        else:
            batch.refuse(DlockStatus.LOCK_NOT_GET, None)
    return DlockStatus.SUCCESS, batch.run()


class _Batch:
    """The items of one batch: some refused here, the rest ready for C, in the order given."""

    __slots__ = ("call", "client", "ready", "refused")

    def __init__(self, client: MirrorClient) -> None:
        self.client = client
        self.call = _mirror_data.take_batch()
        self.ready: list[LockEntry] = []
        self.refused: list[tuple[int, LockOpResult]] = []

    def refuse(self, status: DlockStatus, entry: LockEntry | None) -> None:
        """The next item ends here."""
        self.client.count_lock(status)
        state = None if entry is None else self.client.state_of(entry)
        self.refused.append((len(self.ready) + len(self.refused), LockOpResult(state, status)))

    def add_request(self, req: LockRequest | None, verb: int) -> None:
        """The next item, with every check of a single call."""
        bad = bad_extend_request if verb == EXTEND else bad_lock_request
        if bad(req):
            entry = self.client.locks.get(req.lock_id) if isinstance(req, LockRequest) else None
            return self.refuse(_EINVAL, entry)
        assert req is not None
        entry = self.client.locks.get(req.lock_id)
        if entry is None:
            return self.refuse(DlockStatus.LOCK_NOT_GET, None)
        refusal = self.client.lease_refusal(entry, req.expire_time)
        if refusal is not None:
            return self.refuse(refusal, entry)
        if verb == TRYLOCK and req.expire_time == 0:
            verb = LOOK
        at, mode, flags = len(self.ready) * _CALL_BYTES, ASKED[req.lock_op][1], entry.flags
        asked = (verb, entry.id, 0, mode, lease_of(req), 0, flags, 0, 0, _UNTOUCHED)
        _pack_call(self.call.buffer, at, *asked)
        self.ready.append(entry)
        return None

    def run(self) -> list[LockOpResult]:
        """Has C carry out what is ready, and puts all results together."""
        ready, (pointer, buffer) = self.ready, self.call
        results: list[LockOpResult] = []
        if ready:
            _mirror_data.run_batch(self.client.pointer, pointer, len(ready))
            at = 0
            for entry in ready:
                (status,) = _status_at(buffer, at)
                results.append(LockOpResult(entry.read(buffer, at), STATUSES[status]))
                if status:
                    conclude(self.client, entry, status, pointer[at // _CALL_BYTES].result)
                at += _CALL_BYTES
        _mirror_data.give_back_batch(self.call)
        for index, result in self.refused:
            results.insert(index, result)
        return results


def _enter_batch(client_id: int, items: Sequence[Any] | None) -> MirrorClient:
    client = enter_client(client_id, lambda: bad_list(items))
    if client.running is not None:
        raise refuse(client, DlockStatus.EASYNC)
    return client


# ---- Getting and releasing -----------------------------------------------------------------------


def get_lock(client_id: int, desc: LockDesc | None) -> tuple[DlockStatus, int | None]:
    """Creates or joins the lock of this descriptor; `(SUCCESS, lock_id)`, the same id for every
    client. ERROR (this client has it, or it is of another type); SERVER_NO_RESOURCE; NOT_READY;
    BAD_RESPONSE. Section 5."""
    try:
        client = enter_client(client_id, lambda: bad_lock_desc(desc))
    except Refusal as refusal:
        return refusal.status, None
    assert desc is not None
    result = _get(client, [desc])[0]
    client.count_lock(result.status)
    return result.status, result.lock_id if result.status is DlockStatus.SUCCESS else None


def batch_get_lock(
    client_id: int, descs: Sequence[LockDesc] | None
) -> tuple[DlockStatus, list[int] | None]:
    """`get_lock` for each item; `(SUCCESS, [lock_id, ...])`. A failed item has -1; one that this
    client had already got keeps its id. Section 5."""
    try:
        client = enter_client(client_id, lambda: bad_list(descs))
    except Refusal as refusal:
        return refusal.status, None
    assert descs is not None
    refused = {index for index, desc in enumerate(descs) if bad_lock_desc(desc)}
    sound = [desc for index, desc in enumerate(descs) if index not in refused]
    answers = iter(_get(client, sound) if sound else ())
    lock_ids = []
    for index in range(len(descs)):
        result = LockResult(_EINVAL) if index in refused else next(answers)
        client.count_lock(result.status)
        lock_ids.append(result.lock_id)
    return DlockStatus.SUCCESS, lock_ids


def _get(client: MirrorClient, descs: Sequence[LockDesc]) -> Sequence[LockResult]:
    """Asks the server and enters what it gave out; one result an item, whatever happens."""
    locks = tuple(LockSpec(desc.p_desc or b"", int(desc.lock_type)) for desc in descs)
    with client.naming:
        reply = client.ask(GetLocks(locks))
        if reply is not None and reply.status is not DlockStatus.SUCCESS:
            return [LockResult(client.said(reply.status))] * len(descs)
        if reply is None or len(reply.results) != len(descs):
            return [LockResult(DlockStatus.BAD_RESPONSE)] * len(descs)
        return [_enter(client, *one) for one in zip(locks, reply.results, strict=True)]


def _enter(client: MirrorClient, spec: LockSpec, result: LockResult) -> LockResult:
    # An ERROR with an id: this client has got it already. If it does not know of that, the answer
    # to its first request was lost, and this is the repetition.
    if result.lock_id == -1:
        fine = result.status is not DlockStatus.SUCCESS
        return result if fine else LockResult(DlockStatus.BAD_RESPONSE)
    repeated = result.status is DlockStatus.ERROR and result.lock_id not in client.locks
    if result.status is DlockStatus.SUCCESS or repeated:
        stale = client.locks.get(result.lock_id)
        if stale is not None:  # of a former primary, or released with an answer that was lost
            client.drop_lock(stale)
        entry = LockEntry(result.lock_id, result.slot, spec.kind, spec.descriptor)
        status = client.add_lock(entry)
        return LockResult(status, result.lock_id if status is DlockStatus.SUCCESS else -1)
    return result


def release_lock(client_id: int, lock_id: int | None) -> DlockStatus:
    """Drops a lock that this client has got.

    SUCCESS; ERROR (held: unlock first); TICKET_TO_UNLOCK; EASYNC (an asynchronous operation runs
    on it); LOCK_NOT_GET; NOT_READY; BAD_RESPONSE. Section 5.
    """
    try:
        client = enter_client(client_id, lambda: bad_id(lock_id, "lock_id"))
    except Refusal as refusal:
        return refusal.status
    return _release(client, [lock_id])[0]


def batch_release_lock(
    client_id: int, lock_ids: Sequence[int] | None
) -> tuple[DlockStatus, list[DlockStatus] | None]:
    """`release_lock` for each item; `(SUCCESS, [DlockStatus, ...])`. Section 5."""
    try:
        client = enter_client(client_id, lambda: bad_list(lock_ids))
    except Refusal as refusal:
        return refusal.status, None
    assert lock_ids is not None
    return DlockStatus.SUCCESS, _release(client, lock_ids)


def _release(client: MirrorClient, lock_ids: Sequence[int | None]) -> list[DlockStatus]:
    with client.naming:
        # Set aside before the server is told: no other thread can lock it meanwhile.
        dropped = [_set_aside(client, lock_id) for lock_id in lock_ids]
        entries = [one for one in dropped if isinstance(one, LockEntry)]
        answers = iter(_tell_released(client, entries) if entries else ())
        statuses = [next(answers) if isinstance(one, LockEntry) else one for one in dropped]
    for status in statuses:
        client.count_lock(status)
    return statuses


def _tell_released(client: MirrorClient, entries: Sequence[LockEntry]) -> Sequence[DlockStatus]:
    """What the server says of each; what it did not let go is entered again, as it was."""
    reply = client.ask(ReleaseLocks(tuple(entry.id for entry in entries)))
    statuses: Sequence[DlockStatus] = [DlockStatus.BAD_RESPONSE] * len(entries)
    if reply is not None and reply.status is not DlockStatus.SUCCESS:
        statuses = [client.said(reply.status)] * len(entries)
    elif reply is not None and len(reply.statuses) == len(entries):
        statuses = reply.statuses
    for entry, status in zip(entries, statuses, strict=True):
        if status in (DlockStatus.SUCCESS, DlockStatus.LOCK_NOT_GET):
            client.drop_lock(entry)
        else:
            client.add_lock(entry)
    return statuses


def _set_aside(client: MirrorClient, lock_id: int | None) -> LockEntry | DlockStatus:
    """Takes one lock out of the tables; the status that refuses it instead."""
    if bad_id(lock_id, "lock_id"):
        return _EINVAL
    entry = client.locks.get(-1 if lock_id is None else lock_id)
    if entry is None:
        return DlockStatus.LOCK_NOT_GET
    running = client.running
    if running is not None and running.lock is entry:
        return DlockStatus.EASYNC
    status = client.set_lock_aside(entry)
    return entry if status is DlockStatus.SUCCESS else status
