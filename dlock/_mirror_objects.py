"""The calls of the mirror on 64-bit atomic objects (specification, section 6).

An object is created and got through the control plane; its value is read and changed through the
data plane, each time by one request. A reply to an addition or a swap that got lost is an unknown
outcome (BAD_RESPONSE): nothing here repeats one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from dlock import _core, _mirror_data, _mirror_table
from dlock._core import lib
from dlock._mirror_check import U64_MAX, bad_atomic_desc, bad_id, bad_number
from dlock._mirror_client import STATUSES, MirrorClient
from dlock._mirror_enter import Refusal, enter_client
from dlock.control.messages import (
    ObjectCreate,
    ObjectDestroy,
    ObjectGet,
    ObjectId,
    ObjectRelease,
    Request,
)
from dlock.types import AtomicDesc, DlockStatus

_FETCH_ADD: Final = _core.DLK_VERB_FETCH_ADD
_COMPARE_SWAP: Final = _core.DLK_VERB_COMPARE_SWAP
_READ: Final = _core.DLK_VERB_READ
_NOT_GET: Final = DlockStatus.OBJECT_NOT_GET
_CAS_FAILED: Final = DlockStatus.OBJECT_CAS_FAILED
_REMOVED: Final = DlockStatus.CLIENT_REMOVED_BY_SERVER
_LOOK_S: Final = 0.001  # so often it is looked whether a client's own operations have ended
_UNTOUCHED: Final = _mirror_data.UNTOUCHED

_clients: Final = _mirror_table.clients
_take_call: Final = _mirror_data.take_call
_give_back: Final = _mirror_data.give_back
_pack_call: Final = _mirror_data.pack_call
_run: Final = _mirror_data.run

Value = tuple[DlockStatus, int | None]


def umo_atomic64_create(client_id: int, desc: AtomicDesc | None, init_val: int | None) -> Value:
    """Creates an object with an initial value of 0..2**64-1; `(SUCCESS, obj_id)`. The creator owns
    it; creating is not getting. `desc.lease_time`: seconds, not 0. Section 6."""

    def bad() -> bool:
        return (
            bad_atomic_desc(desc) | bad_number(init_val, "init_val", 0, U64_MAX)
            or desc is None
            or desc.lease_time == 0
        )

    try:
        client = _enter(client_id, bad)
    except Refusal as refusal:
        return refusal.status, None
    assert desc is not None
    assert init_val is not None
    request = ObjectCreate(desc.p_desc or b"", int(init_val), int(desc.lease_time))
    status, reply = _ask(client, request)
    return _end(client, status), None if reply is None else reply.object_id


def umo_atomic64_get(client_id: int, desc: AtomicDesc | None) -> Value:
    """Gets an object; `(SUCCESS, obj_id)`, the same id for every client. OBJECT_NOT_CREATE,
    OBJECT_ALREADY_DESTROYED. `desc.lease_time` 0 renews nothing. Section 6."""
    try:
        client = _enter(client_id, lambda: bad_atomic_desc(desc))
    except Refusal as refusal:
        return refusal.status, None
    assert desc is not None
    status, reply = _ask(client, ObjectGet(desc.p_desc or b"", int(desc.lease_time)))
    if reply is None:
        return _end(client, status), None
    status = client.add_object(reply.object_id, reply.slot, reply.key)
    return _end(client, status), reply.object_id if status is DlockStatus.SUCCESS else None


def _ask(
    client: MirrorClient, request: Request[ObjectId]
) -> tuple[DlockStatus, ObjectId | None]:
    """The status, and with success the object."""
    reply = client.ask(request)
    if reply is None or (reply.status is DlockStatus.SUCCESS and reply.object_id == -1):
        return DlockStatus.BAD_RESPONSE, None
    status = client.said(reply.status)
    return status, reply if status is DlockStatus.SUCCESS else None


def umo_atomic64_release(client_id: int, obj_id: int | None) -> DlockStatus:
    """Gives the reference back; OBJECT_NOT_GET. Section 6."""
    try:
        client = _enter(client_id, lambda: bad_id(obj_id, "obj_id"))
    except Refusal as refusal:
        return refusal.status
    if obj_id is None or obj_id not in client.objects:
        return _end(client, _NOT_GET)
    _without_key(client, obj_id)
    reply = client.ask(ObjectRelease(obj_id))
    status = DlockStatus.BAD_RESPONSE if reply is None else client.said(reply.status)
    if status in (DlockStatus.SUCCESS, _NOT_GET):
        client.drop_object(obj_id)
    return _end(client, status)


def umo_atomic64_destroy(client_id: int, obj_id: int | None) -> DlockStatus:
    """Destroys an object of this client's, or marks it while there are references.
    OBJECT_NOT_CREATE, OBJECT_INVALID_OWNER, OBJECT_ALREADY_DESTROYED. Section 6."""
    try:
        client = _enter(client_id, lambda: bad_id(obj_id, "obj_id"))
    except Refusal as refusal:
        return refusal.status
    if not obj_id:
        return _end(client, DlockStatus.OBJECT_NOT_CREATE)
    _without_key(client, obj_id)
    reply = client.ask(ObjectDestroy(int(obj_id)))
    status = DlockStatus.BAD_RESPONSE if reply is None else client.said(reply.status)
    if status is not DlockStatus.SUCCESS and obj_id in client.objects:
        lib.dlk_client_object_key(client.pointer, obj_id, client.objects[obj_id])
    return _end(client, status)


def _without_key(client: MirrorClient, obj_id: int) -> None:
    """From now on the server is asked for what is wanted of this object. Returns when nothing is
    under way any more that the client operates by itself: such an operation would meet an object
    that is gone, which ends the connection. Waits no longer than for an answer."""
    deadline = time.monotonic() + client.settings.reply_timeout_s
    while (lib.dlk_client_object_key(client.pointer, obj_id, 0) == _mirror_data.PENDING
           and time.monotonic() < deadline):
        time.sleep(_LOOK_S)


def umo_atomic64_faa(client_id: int, obj_id: int | None, add_val: int | None) -> Value:
    """Adds 0..2**64-1, modulo 2**64; `(SUCCESS, the value before)`. Section 6."""
    return _operate(client_id, obj_id, _FETCH_ADD, add_val, 0)


def umo_atomic64_cas(
    client_id: int, obj_id: int | None, cmp_val: int | None, swap_val: int | None
) -> Value:
    """Writes `swap_val` where `cmp_val` stands; `(SUCCESS, the value after)`, or
    `(OBJECT_CAS_FAILED, the value found)`. Section 6."""
    status, value = _operate(client_id, obj_id, _COMPARE_SWAP, cmp_val, swap_val)
    return status, swap_val if status is DlockStatus.SUCCESS else value


def umo_atomic64_get_snapshot(client_id: int, obj_id: int | None) -> Value:
    """`(SUCCESS, the value)`. Section 6."""
    return _operate(client_id, obj_id, _READ, 0, 0)


def _operate(
    client_id: int, obj_id: int | None, verb: int, operand: int | None, swap: int | None
) -> Value:
    try:
        client = _clients[client_id]
        known = obj_id in client.open_objects
        easy = (
            known
            and client_id.__class__
            is obj_id.__class__
            is operand.__class__
            is swap.__class__
            is int
            and 0 <= operand <= U64_MAX
            and 0 <= swap <= U64_MAX
        )
    except (KeyError, TypeError):
        easy = False
    if not easy:
        try:
            client = _enter_object(client_id, obj_id, operand, swap)
        except Refusal as refusal:
            return refusal.status, None
    call = _take_call()
    pointer, buffer = call
    _pack_call(buffer, 0, verb, obj_id, 0, 0, 0, 0, 0, operand, swap, _UNTOUCHED)
    status = _run(client.pointer, pointer)
    value = pointer.value
    _give_back(call)
    if status:
        client.count(status)
        if status == _REMOVED:
            client.mark_removed()
        elif status == _NOT_GET:
            client.drop_object(obj_id)
        if status != _CAS_FAILED:
            value = None
    return STATUSES[status], value


def _enter_object(
    client_id: int, obj_id: int | None, operand: int | None, swap: int | None
) -> MirrorClient:
    client = _enter(
        client_id,
        lambda: (
            bad_id(obj_id, "obj_id")
            | bad_number(operand, "the operand", 0, U64_MAX)
            | bad_number(swap, "swap_val", 0, U64_MAX)
        ),
    )
    if client.running is not None:
        client.count(DlockStatus.EASYNC)
        raise Refusal(DlockStatus.EASYNC)
    if obj_id not in client.objects:
        client.count(_NOT_GET)
        raise Refusal(_NOT_GET)
    return client


def _enter(client_id: int, bad: Callable[[], bool]) -> MirrorClient:
    """The checks of an object call; its EINVAL has no counter."""
    return enter_client(client_id, bad, counts_invalid=False)


def _end(client: MirrorClient, status: DlockStatus) -> DlockStatus:
    client.count(status)
    return status
