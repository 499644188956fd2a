"""A 64-bit object as a session gets it, for the blocking and the asyncio API: the steps, and what
becomes of it when its primary ends.

Objects live in the memory of a primary and are gone with it. Their ids begin anew at the next one,
so that an id is worth something only together with the epoch in which it was given out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

from dlock import _core
from dlock._calls import ATOMIC, from_word, shown, to_word
from dlock._core import ffi, lib
from dlock._handle import Key
from dlock._retry import Backoff
from dlock._session import Pause, Refusal, Session, Steps
from dlock.control.messages import ObjectCreate, ObjectDestroy, ObjectGet
from dlock.errors import DlockError, ObjectLost, ServerFull
from dlock.types import DlockStatus

# An object nobody uses goes when this has passed since somebody got it last: a day.
LEASE_S: Final = 86400
TIMEOUT_S: Final = 10.0  # of one operation

_KNOWN: Final = (
    DlockStatus.SUCCESS,
    DlockStatus.OBJECT_ALREADY_CREATED,
    DlockStatus.OBJECT_ALREADY_EXISTED,
)
_PENDING: Final[int] = _core.DLK_STATUS_PENDING
_GUARD: Final = b"dlock:on_recover:"

# What a number is to be at a new primary: itself, or who says it.
OnRecover = int | Callable[[], object]


def checked(on_recover: OnRecover | None) -> OnRecover | None:
    """The same; TypeError or OverflowError if it can give no number."""
    if on_recover is not None and not callable(on_recover):
        to_word(on_recover)
    return on_recover


def guard_key(name: bytes) -> Key:
    """The lock under which one client finds out what this object is to be at a new primary."""
    guard = _GUARD + name
    if len(guard) > _core.DLK_DESCRIPTOR_BYTES_MAX:
        guard = _GUARD + hashlib.sha256(name).hexdigest().encode()
    return guard, ATOMIC, 1


def getting(session: Session, name: bytes, initial: int | None) -> Steps[bool]:
    """Gets the object, which is created with this value if there is none (None: it is not, and
    the outcome is False). ServerFull; DlockError: it was destroyed; Refusal."""
    epoch = session.epoch
    created_status = DlockStatus.SUCCESS
    if initial is None:
        (got,) = yield [ObjectGet(name, LEASE_S)]
        if got.status is DlockStatus.OBJECT_NOT_CREATE:
            return False
    else:
        created, got = yield [
            ObjectCreate(name, to_word(initial), LEASE_S), ObjectGet(name, LEASE_S)]
        created_status = created.status
    if got.status is DlockStatus.SUCCESS:
        session.objects[name] = (epoch, got.object_id)
        lib.dlk_client_add_object(session.client, got.object_id, got.slot)
        # For as long as this primary lives: over whatever connection comes that can make use of it.
        lib.dlk_client_object_key(session.client, got.object_id, got.key)
        return True
    status = got.status if created_status in _KNOWN else created_status
    if status is DlockStatus.OBJECT_TOO_MANY:
        raise ServerFull(f"no object {shown(name)}: the server has as many as it may; its limit is "
                         f"--max-objects")
    if status is DlockStatus.OBJECT_ALREADY_DESTROYED:
        raise DlockError(f"the object {shown(name)} was destroyed, and others still use it")
    raise Refusal(status)


def destroying(session: Session, name: bytes) -> Steps[DlockStatus]:
    """Ends it for everybody; what the server says of that."""
    _epoch, object_id = session.objects.get(name, (0, 0))
    if not object_id:
        (got,) = yield [ObjectGet(name, 0)]
        if got.status is not DlockStatus.SUCCESS:
            return DlockStatus(got.status)
        object_id = got.object_id
    yield from _without_key(session, object_id)
    (done,) = yield [ObjectDestroy(object_id)]
    session.objects.pop(name, None)
    lib.dlk_client_drop_object(session.client, object_id)
    return DlockStatus(done.status)


def _without_key(session: Session, object_id: int) -> Steps[None]:
    """From now on this client asks the server for what it wants of the object. Returns when nothing
    is under way any more that it operates by itself: such an operation would meet an object that is
    gone, which ends the connection. Others' calls are waited for no longer than one may take."""
    pauses = Backoff()
    waited_s = 0.0
    while waited_s < TIMEOUT_S:
        if lib.dlk_client_object_key(session.client, object_id, 0) != _PENDING:
            return
        pause_s = pauses.pause_s()
        yield Pause(pause_s)
        waited_s += pause_s


def new_call(session: Session, name: bytes, verb: int, operand: int, swap: int) -> Any:
    """A filled call of an operation; None: the session has not got the object."""
    epoch, object_id = session.objects.get(name, (0, 0))
    if not object_id:
        return None
    call = ffi.new("struct dlk_call *")
    call.verb, call.lock_id, call.operand, call.swap = verb, object_id, operand, swap
    call.epoch = epoch
    return call


def lost(name: bytes, initial: int) -> ObjectLost:
    """The exception for the first use after the primary has ended."""
    return ObjectLost(
        f"the number {shown(name)} was in the memory of a server that has ended, and is gone. From "
        f"now on it is what others have made of it since, or {initial}; on_recover=... of "
        f"client.atomic says what else it shall be then")


def value_of(found: object, name: bytes) -> int:
    """What an `on_recover` has returned, as the number that it must be."""
    if not isinstance(found, int):
        raise TypeError(f"on_recover of the number {shown(name)} returned {found!r}, which is none")
    return from_word(to_word(found))
