"""The lock calls of the mirror that concern one lock (specification, section 5).

`trylock` and `unlock` first try the shortest way: everything is as it should be, and one C call
does the work. Otherwise, and in the other calls, every check is made in the order of the
specification (`_mirror_enter`). What a lock operation means is decided in C.
"""

from __future__ import annotations

from typing import Final

from dlock import _core, _mirror_check, _mirror_data, _mirror_table
from dlock._mirror_check import bad_async_request, bad_extend_request, bad_id, bad_lock_request
from dlock._mirror_client import STATUSES, LockEntry, MirrorClient
from dlock._mirror_enter import Refusal, enter_client, enter_lock, enter_request, refuse
from dlock.types import DlockStatus, LockOp, LockRequest, State

TRYLOCK: Final = _core.DLK_VERB_TRYLOCK
LOCK: Final = _core.DLK_VERB_LOCK
UNLOCK: Final = _core.DLK_VERB_UNLOCK
EXTEND: Final = _core.DLK_VERB_EXTEND
LOOK: Final = _core.DLK_VERB_LOOK
EXCLUSIVE: Final = _core.DLK_MODE_EXCLUSIVE
SHARED: Final = _core.DLK_MODE_SHARED
LEASE_MS_MAX: Final = _mirror_check.U32_MAX

_NO_LOCK: Final = _core.DLK_RESULT_NO_LOCK
_NOT_HELD: Final = _core.DLK_RESULT_NOT_HELD
_LOCK_NOT_GET: Final = _core.DLK_STATUS_LOCK_NOT_GET
_FAIL: Final = _core.DLK_STATUS_FAIL
_REMOVED: Final = _core.DLK_STATUS_CLIENT_REMOVED_BY_SERVER
_PENDING: Final = _mirror_data.PENDING
_UNTOUCHED: Final = _mirror_data.UNTOUCHED
_LOCK_EXCLUSIVE: Final = LockOp.LOCK_EXCLUSIVE
_LOCK_SHARED: Final = LockOp.LOCK_SHARED

# What each operation of a request asks of C: verb and mode.
ASKED: Final[dict[int, tuple[int, int]]] = {
    LockOp.LOCK_EXCLUSIVE: (TRYLOCK, EXCLUSIVE),
    LockOp.LOCK_SHARED: (TRYLOCK, SHARED),
    LockOp.UNLOCK: (UNLOCK, EXCLUSIVE),
    LockOp.EXTEND_LOCK_EXCLUSIVE: (EXTEND, EXCLUSIVE),
    LockOp.EXTEND_LOCK_SHARED: (EXTEND, SHARED),
}

_clients: Final = _mirror_table.clients
_take_call: Final = _mirror_data.take_call
_give_back: Final = _mirror_data.give_back
_pack_call: Final = _mirror_data.pack_call
_run: Final = _mirror_data.run

Result = tuple[DlockStatus, State | None]


# ---- Synchronous calls ---------------------------------------------------------------------------


def trylock(client_id: int, req: LockRequest | None) -> Result:
    """Takes a lock, or a ticket of a fair lock, without waiting.

    SUCCESS; FAIL (taken; atomic, rw); EAGAIN (fair: a ticket is held); ALREADY_LOCKED (re-entry);
    ETICKET, EINVAL, LOCK_NOT_GET, EASYNC, NOT_READY, BAD_RESPONSE. `req.expire_time` is the lease
    in seconds; 0 only reports the state. Section 5.
    """
    return _acquire(client_id, req, TRYLOCK)


def lock(client_id: int, req: LockRequest | None) -> Result:
    """Takes a lock, waiting for it at the server for `ClientCfg.lock_wait` seconds.

    What `trylock` would return then: FAIL, or on a fair lock EAGAIN with the ticket kept.
    Interrupted by a signal handler that raises (Ctrl-C), it leaves nothing behind. Section 5.
    """
    return _acquire(client_id, req, LOCK)


def _acquire(client_id: int, req: LockRequest | None, verb: int) -> Result:
    try:
        client = _clients[client_id]
        lock_id, expire_s = req.lock_id, req.expire_time  # type: ignore[union-attr]
        entry = client.open_locks[lock_id]
        op = req.lock_op  # type: ignore[union-attr]
        easy = (
            expire_s.__class__ is lock_id.__class__ is client_id.__class__ is int
            and 0 < expire_s <= client.free_lease_s
        )
    except (KeyError, AttributeError, TypeError):
        easy = False
    if easy:
        if op is _LOCK_EXCLUSIVE:
            return _operate(client, entry, verb, EXCLUSIVE, expire_s * 1000)
        if op is _LOCK_SHARED:
            return _operate(client, entry, verb, SHARED, expire_s * 1000)
    try:
        client, entry, req = enter_request(client_id, req, bad_lock_request)
    except Refusal as refusal:
        return refusal.result
    if req.expire_time == 0:
        verb = LOOK
    return _operate(client, entry, verb, ASKED[req.lock_op][1], lease_ms(req))


def lock_extend(client_id: int, req: LockRequest | None) -> Result:
    """Extends the lease of a held atomic or fair lock to `req.expire_time` seconds from now.

    `req.lock_op` is the EXTEND_* operation of the mode held. A lease only grows; 0 checks without
    extending. SUCCESS; FAIL (lost; the local state is reset); EINVAL (rw, not held, other mode).
    Section 5.
    """
    try:
        client, entry, req = enter_request(client_id, req, bad_extend_request)
    except Refusal as refusal:
        return refusal.result
    return _operate(client, entry, EXTEND, ASKED[req.lock_op][1], lease_ms(req))


def unlock(client_id: int, lock_id: int | None) -> Result:
    """Gives a lock, or one re-entry, or a ticket back.

    SUCCESS; ALREADY_LOCKED (a re-entry was undone, nothing was sent); ALREADY_UNLOCKED (not held);
    FAIL (lost meanwhile); BAD_RESPONSE (no answer: not held any more here). Section 5.
    """
    try:
        client = _clients[client_id]
        entry = client.open_locks[lock_id]  # type: ignore[index]
        easy = lock_id.__class__ is client_id.__class__ is int
    except (KeyError, TypeError):
        easy = False
    if easy:
        return _operate(client, entry, UNLOCK, EXCLUSIVE, 0)
    try:
        client, entry = enter_lock(client_id, lock_id, lambda: bad_id(lock_id, "lock_id"))
    except Refusal as refusal:
        return refusal.result
    return _operate(client, entry, UNLOCK, EXCLUSIVE, 0)


def _operate(client: MirrorClient, entry: LockEntry, verb: int, mode: int, lease_ms: int) -> Result:
    """One C call, then what it says as a status and a state."""
    call = _take_call()
    pointer, buffer = call
    wait_ms, flags = client.lock_wait_ms, entry.flags  # C heeds the wait of LOCK only
    _pack_call(buffer, 0, verb, entry.id, 0, mode, lease_ms, wait_ms, flags, 0, 0, _UNTOUCHED)
    status = _run(client.pointer, pointer)
    state = entry.read(buffer)
    if status:
        conclude(client, entry, status, pointer.result)
    _give_back(call)
    return STATUSES[status], state


def lease_ms(request: LockRequest) -> int:
    """The lease that a request asks for; for display (rw) it may be longer than C can count."""
    return min(request.expire_time * 1000, LEASE_MS_MAX)


def conclude(client: MirrorClient, entry: LockEntry, status: int, result: int) -> None:
    """Counts a status that is no success, and draws the conclusions from it."""
    client.count_lock(status)
    if status == _LOCK_NOT_GET or (status == _FAIL and result == _NO_LOCK):
        client.drop_lock(entry)
    elif status == _FAIL and result == _NOT_HELD and not client.knows(entry):
        client.drop_lock(entry)  # not reported to this primary: that was to be said
    elif status == _REMOVED:
        client.mark_removed()


# ---- Asynchronous calls --------------------------------------------------------------------------


def lock_request_async(client_id: int, req: LockRequest | None) -> DlockStatus:
    """Sends any lock operation and returns; `lock_result_check` tells what came of it.

    SUCCESS: it runs, the only one of this client (EASYNC). What the client decides alone is
    returned at once, and then nothing runs. A LOCK_* never waits at the server; with `expire_time`
    0 it is EINVAL. Section 5.
    """
    try:
        client, entry, req = enter_request(client_id, req, bad_async_request)
        verb, mode = ASKED[req.lock_op]
        asked_ms = 0 if verb == UNLOCK else lease_ms(req)
        call = _take_call()
        buffer = call.buffer
        flags = entry.flags
        _pack_call(buffer, 0, verb, entry.id, 0, mode, asked_ms, 0, flags, 0, 0, _UNTOUCHED)
    except Refusal as refusal:
        return refusal.status
    status, result = client.start_async(entry, call)
    if status == _PENDING:
        return DlockStatus.SUCCESS
    _give_back(call)
    conclude(client, entry, status, result)
    return STATUSES[status]


def lock_result_check(client_id: int) -> Result:
    """What became of the asynchronous operation.

    ASYNC_AGAIN until its answer is there; ETIMEOUT after 5 s; NO_ASYNC if nothing runs; else what
    the synchronous call would have returned. Section 5.
    """
    try:
        client = enter_client(client_id, lambda: False)
        ended = client.poll_async()
        if ended is None:
            raise refuse(client, DlockStatus.NO_ASYNC)
    except Refusal as refusal:
        return refusal.result
    entry, status, result, state = ended
    if status:
        conclude(client, entry, status, result)
    return STATUSES[status], state
