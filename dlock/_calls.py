"""One operation of the Python API: what it asks of the C core, and what the answer means.

Shared by the synchronous API and by dlock.aio. It never waits, sends nothing and keeps nothing:
who waits, and how, is for `dlock.locks` and `dlock.aio` to say. Times come in as seconds, as users
write them, and leave as whole milliseconds, as the wire carries them.
"""

from __future__ import annotations

import enum
import math
from _thread import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dlock import _core
from dlock._core import ffi, lib
from dlock.errors import DlockError, ForkedError, LeaseTooLong, ServerFull

if TYPE_CHECKING:
    from dlock._handle import Handle

ATOMIC: Final = _core.DLK_KIND_ATOMIC
RW: Final = _core.DLK_KIND_RW
FAIR: Final = _core.DLK_KIND_FAIR
SEMAPHORE: Final = _core.DLK_KIND_SEMAPHORE
EXCLUSIVE: Final = _core.DLK_MODE_EXCLUSIVE
SHARED: Final = _core.DLK_MODE_SHARED
FOREVER: Final = _core.DLK_WAIT_FOREVER
PENDING: Final = _core.DLK_STATUS_PENDING

# After a refused wait, when the cycle may go through a lease of the asker's own that has ended here
# and not yet at the server: how long until it is asked again.
FADING_S: Final = 0.01
LEASE_MS_MAX: Final = 0xFFFFFFFE
_U32_MAX: Final = 0xFFFFFFFF
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1


# ---- What users write, checked -------------------------------------------------------------------


def descriptor(name: str | bytes) -> bytes:
    """The name of a lock or object as the server knows it: UTF-8, 1..512 bytes."""
    if isinstance(name, str):
        encoded = name.encode()
    elif isinstance(name, bytes):
        encoded = name
    else:
        raise TypeError(f"the name of a lock is str or bytes, not {type(name).__name__}")
    if not 1 <= len(encoded) <= _core.DLK_DESCRIPTOR_BYTES_MAX:
        raise ValueError(
            f"the name of a lock has 1..{_core.DLK_DESCRIPTOR_BYTES_MAX} bytes, "
            f"this one has {len(encoded)}"
        )
    return encoded


def shown(name: bytes) -> str:
    """A name for people, in quotes."""
    try:
        return repr(name.decode())
    except UnicodeDecodeError:
        return repr(name)


def wait_ms_of(blocking: bool, timeout: float | None) -> int:
    """What `acquire(blocking, timeout)` has the server wait: 0 only tries, FOREVER. The errors are
    those of `threading.Lock.acquire`; None means for ever, as for `threading.Semaphore`."""
    if timeout is None or timeout == -1:
        return FOREVER if blocking else 0
    if not blocking:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if not timeout >= 0:  # refuses nan too
        raise ValueError("timeout value must be a non-negative number")
    if timeout > TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")
    return min(math.ceil(timeout * 1000), FOREVER - 1)


def lease_ms_of(lease: float | None) -> int:
    """A lease in ms, rounded up; 0: none, the hold ends with its session."""
    if lease is None:
        return 0
    if not (0 < lease < math.inf):
        raise ValueError(f"a lease is a positive number of seconds, or None, not {lease!r}")
    lease_ms = math.ceil(lease * 1000)
    if lease_ms > LEASE_MS_MAX:
        raise LeaseTooLong(f"a lease of {lease} s is longer than any server allows")
    return lease_ms


def semaphore_size(size: int) -> int:
    """How many may hold a semaphore at once."""
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"the size of a semaphore is an int, not {type(size).__name__}")
    if not 1 <= size <= _U32_MAX:
        raise ValueError(f"the size of a semaphore is 1..{_U32_MAX}, not {size}")
    return size


# ---- What is asked -------------------------------------------------------------------------------


class Asked(NamedTuple):
    """One way to ask for a hold. A handle remembers the last one that its call was filled with, so
    that asking the same again, by identity, fills nothing."""

    mode: int = EXCLUSIVE
    lease_ms: int = 0
    wait_ms: int = FOREVER
    flags: int = 0
    renew: int = 1


_fill_call: Final = _core.layout(
    "dlk_call",
    ("verb", "lock_id", "owner", "mode", "lease_ms", "wait_ms", "flags", "cookie", "renew"),
    whole=False,
).pack_into
_LOCK: Final = _core.DLK_VERB_LOCK
_EXTEND: Final = _core.DLK_VERB_EXTEND
_LOOK: Final = _core.DLK_VERB_LOOK
DEADLOCK_FLAG: Final[int] = _core.DLK_FLAG_DEADLOCK


def fill_acquire(handle: Handle, asked: Asked) -> None:
    """Has the next call of `handle.acquire` ask for this. A `lock` that does not wait is a
    trylock; it can close no cycle of waits. No TICKET flag: a try that failed leaves nothing."""
    mode, lease_ms, wait_ms, flags, renew = asked
    handle.asked = None  # until it is filled to the end
    _fill_call(
        ffi.buffer(handle.calls), 0, _LOCK, handle.name.lock_id, handle.owner, mode, lease_ms,
        wait_ms, flags if wait_ms else flags & ~DEADLOCK_FLAG, 0, renew,
    )
    handle.asked = asked


def new_extend(handle: Handle, token: int, mode: int, lease_ms: int) -> Any:
    """A call that extends the handle's hold with this token; lease_ms 0 only asks whether it is
    still held. A thread that releases it meanwhile makes way for another hold of the handle, which
    is not extended."""
    call = ffi.new("struct dlk_call *")
    lock_id = handle.name.lock_id
    _fill_call(ffi.buffer(call), 0, _EXTEND, lock_id, handle.owner, mode, lease_ms, 0, 0, 0, 0)
    call.operand = token  # after the packing, which fills gaps with zeros
    return call


class HoldView(NamedTuple):
    """What the client knows of one hold at this moment: `token` 0: it is not held; `left_ms`: how
    long it may still be believed, 0: not any more (suspended)."""

    token: int
    left_ms: int


def look(handle: Handle) -> HoldView:
    """The state of the handle's hold by the client's own clock; asks nobody."""
    if handle.name.table.ended:
        return HoldView(0, 0)  # the book was not told
    call = ffi.new("struct dlk_call *")
    call.verb = _LOOK
    call.lock_id = handle.name.lock_id
    call.owner = handle.owner
    if lib.dlk_client_call(handle.client, call):
        return HoldView(0, 0)  # the book does not know it, or the client is the parent's
    return HoldView(call.token, call.left_ms)


def left_ms(handle: Handle) -> int:
    """As `look(handle).left_ms`, in a sixth of the time; only where no other thread looks in this
    way: in the event loop of its client."""
    glance = handle.glance
    if handle.name.table.ended or lib.dlk_client_call(handle.client, glance):
        return 0
    left: int = glance.left_ms
    return left


def gone(handle: Handle) -> bool:
    """Is the hold, once granted, known to be lost? A suspended one is not."""
    return look(handle).token == 0


# ---- What the answer means -----------------------------------------------------------------------


class Outcome(enum.Enum):
    """What became of one call."""

    DONE = "it was carried out"
    REFUSED = "the lock is taken, or the wait is over; nothing was left behind"
    LOST = "the hold had been lost before"
    UNANSWERED = "no answer: the link is down, or the server is; what was asked is undone"
    NOT_READY = "the server did nothing yet: it recovers"
    STALE = "the server does not know the lock any more: get it again, ask again"
    REMOVED = "the session has ended: the client needs a new one"
    DEADLOCK = "the wait would close a cycle; call.value is its number"


AGAIN: Final = frozenset(
    (Outcome.UNANSWERED, Outcome.NOT_READY, Outcome.STALE, Outcome.REMOVED)
)

_SHARED_OUTCOMES: Final = {
    _core.DLK_STATUS_SUCCESS: Outcome.DONE,
    _core.DLK_STATUS_BAD_RESPONSE: Outcome.UNANSWERED,
    _core.DLK_STATUS_NOT_READY: Outcome.NOT_READY,
    _core.DLK_STATUS_CLIENT_REMOVED_BY_SERVER: Outcome.REMOVED,
}
_ACQUIRE_OUTCOMES: Final = {
    **_SHARED_OUTCOMES,
    _core.DLK_STATUS_FAIL: Outcome.REFUSED,
    _core.DLK_STATUS_EAGAIN: Outcome.REFUSED,  # fair, put off on this side until its time was over
    _core.DLK_STATUS_LOCK_NOT_GET: Outcome.STALE,
    _core.DLK_STATUS_DEADLOCK: Outcome.DEADLOCK,
}
_HOLD_OUTCOMES: Final = {
    **_SHARED_OUTCOMES,
    _core.DLK_STATUS_FAIL: Outcome.LOST,
    _core.DLK_STATUS_ALREADY_UNLOCKED: Outcome.LOST,
    _core.DLK_STATUS_LOCK_NOT_GET: Outcome.LOST,
}
_OBJECT_OUTCOMES: Final = {
    **_SHARED_OUTCOMES,
    _core.DLK_STATUS_OBJECT_CAS_FAILED: Outcome.REFUSED,
    _core.DLK_STATUS_OBJECT_NOT_GET: Outcome.STALE,
}


def refusal(status: int, what: str) -> Exception:
    """The exception for a status that is no outcome of an operation on `what`."""
    if status == _core.DLK_STATUS_FORKED:
        return ForkedError()
    if status == _core.DLK_STATUS_SERVER_NO_RESOURCE:
        return ServerFull(
            f"the server has no room for another hold or waiter of {what}: its table is full, or "
            "this client has too many requests under way; raise max_locks, or ask for less at once"
        )
    return DlockError(f"{what}: {_core.status_text(status)} (status {status:#x})")


def judge_acquire(status: int, name: bytes, lease_ms: int) -> Outcome:
    """What a call of `handle.acquire` that has ended came to."""
    outcome = _ACQUIRE_OUTCOMES.get(status)
    if outcome is not None:
        return outcome
    if status == _core.DLK_STATUS_EINVAL and lease_ms:
        raise LeaseTooLong(
            f"lock {shown(name)}: the server allows no lease of {lease_ms / 1000:g} s; ask for a "
            "shorter one, or start the server with a longer max_lease"
        )
    raise refusal(status, f"lock {shown(name)}")


def judge_release(status: int, name: bytes) -> Outcome:
    """What a call of `handle.release` that has ended came to. UNANSWERED: the client remembers the
    unlock and sends it again when the link is back. NOT_READY: it is still held."""
    outcome = _HOLD_OUTCOMES.get(status)
    if outcome is None:
        raise refusal(status, f"lock {shown(name)}")
    return outcome


def judge_extend(status: int, name: bytes, lease_ms: int) -> Outcome:
    """What an extension came to. EINVAL of a leased kind: the hold is gone, or the lease too
    long."""
    outcome = _HOLD_OUTCOMES.get(status)
    if outcome is not None:
        return outcome
    return judge_acquire(status, name, lease_ms)


def judge_object(status: int, name: bytes) -> Outcome:
    """What an operation on an atomic object came to. REFUSED: compare_exchange found another value.
    UNANSWERED: a change may have been made, or not."""
    outcome = _OBJECT_OUTCOMES.get(status)
    if outcome is None:
        raise refusal(status, f"object {shown(name)}")
    return outcome


# ---- Signed 64-bit numbers -----------------------------------------------------------------------


def to_word(value: int) -> int:
    """A signed 64-bit number as the unsigned word that the server keeps."""
    if not isinstance(value, int):
        raise TypeError(f"an atomic object holds an int, not {type(value).__name__}")
    if not _INT64_MIN <= value <= _INT64_MAX:
        raise OverflowError(f"{value} does not fit a signed 64-bit object")
    return value & 0xFFFFFFFFFFFFFFFF


def from_word(word: int) -> int:
    """The word of an object as a signed 64-bit number."""
    return word - 2**64 if word > _INT64_MAX else word
