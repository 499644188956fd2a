"""The mirror's use of the C client library: one C call an operation, buffers that are used again.

This file knows how a `struct dlk_call` is filled and read, how a wait is carried on, and how one
that was interrupted is undone. It knows neither statuses of arguments nor the control plane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from dlock import _core
from dlock._core import ffi, lib
from dlock._owned import own_client
from dlock._pairing import OwnEnd, data_link, handed_over
from dlock.control.messages import Welcome
from dlock.types import AtomicState, FairState, RwState, State

PENDING: Final = _core.DLK_STATUS_PENDING
FORKED: Final = _core.DLK_STATUS_FORKED
BATCH_MAX: Final = _core.DLK_BATCH_MAX
CALL_BYTES: Final = int(ffi.sizeof("struct dlk_call"))
FORKED_TEXT: Final = (
    "this dlock client belongs to the parent process; after fork the child must call "
    "dclient_lib_init and client_init itself"
)

# What a caller fills in, in the order of `struct dlk_call`. The last is UNTOUCHED: if the caller is
# interrupted before C sees the call, there is nothing to undo.
IN_FIELDS: Final = (
    "verb",
    "lock_id",
    "owner",
    "mode",
    "lease_ms",
    "wait_ms",
    "flags",
    "operand",
    "swap",
    "status",
)
UNTOUCHED: Final = _core.DLK_STATUS_ERROR
pack_call: Final = _core.layout("dlk_call", IN_FIELDS, whole=False).pack_into

_ATOMIC_FIELDS: Final = _core.layout("dlk_call", ("token", "time_out", "holder"))
_RW_FIELDS: Final = _core.layout("dlk_call", ("token", "time_out", "holder", "readers"))
_FAIR_FIELDS: Final = _core.layout(
    "dlk_call",
    (
        "token",
        "time_out",
        "holder",
        "count",
        "held_mode",
        "n_exclusive",
        "n_shared",
        "m_exclusive",
        "m_shared",
    ),
)
# The status of a call in an array of them, at an offset in bytes: `(status,)`.
status_at: Final = _core.layout("dlk_call", ("status",)).unpack_from
_unpack_atomic: Final = _ATOMIC_FIELDS.unpack_from
_unpack_rw: Final = _RW_FIELDS.unpack_from
_unpack_fair: Final = _FAIR_FIELDS.unpack_from

# ---- Reading the state of a lock -----------------------------------------------------------------


def read_atomic(buffer: Any, offset: int = 0) -> AtomicState:
    """The state that C left in a call on an atomic lock."""
    token, time_out, holder = _unpack_atomic(buffer, offset)
    return AtomicState(holder, time_out, token)


def read_rw(buffer: Any, offset: int = 0) -> RwState:
    """The state that C left in a call on a rw lock."""
    token, time_out, holder, readers = _unpack_rw(buffer, offset)
    return RwState(time_out, holder, readers, token)


def read_fair(buffer: Any, offset: int = 0) -> FairState:
    """The state that C left in a call on a fair lock."""
    token, time_out, holder, count, mode, n_ex, n_sh, m_ex, m_sh = _unpack_fair(buffer, offset)
    held = 1 if holder else 0
    return FairState(n_ex, n_sh, m_ex, m_sh, time_out, mode if held else 0, held, count, token)


READERS: Final[dict[int, Callable[..., State]]] = {
    _core.DLK_KIND_ATOMIC: read_atomic,
    _core.DLK_KIND_RW: read_rw,
    _core.DLK_KIND_FAIR: read_fair,
}


# ---- Calls ---------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A `struct dlk_call` and its bytes. C reads and writes it until the operation has ended."""

    pointer: Any
    buffer: Any


# Calls that nobody uses now; append and pop of a list need no lock.
_free_calls: Final[list[Call]] = []
_free_batches: Final[list[Call]] = []
give_back: Final = _free_calls.append
give_back_batch: Final = _free_batches.append


def take_call() -> Call:
    """A call to fill; hand it to `give_back` when its operation has ended."""
    try:
        return _free_calls.pop()
    except IndexError:
        pointer = ffi.new("struct dlk_call *")
        return Call(pointer, ffi.buffer(pointer))


def take_batch() -> Call:
    """An array of BATCH_MAX calls to fill; hand it to `give_back_batch`."""
    try:
        return _free_batches.pop()
    except IndexError:
        pointer = ffi.new("struct dlk_call[]", BATCH_MAX)
        return Call(pointer, ffi.buffer(pointer))


def finish(client: Any, call: Any, status: int) -> int:
    """Carries a wait on until it has ended: every 50 ms, and after each signal, C comes back so
    that Python's signal handlers run."""
    while status == PENDING:
        status = lib.dlk_client_wait(client, call)
    if status == FORKED:
        raise RuntimeError(FORKED_TEXT)
    return status


def run(client: Any, call: Any) -> int:
    """Carries out a filled call to its end and returns its status."""
    try:
        status: int = lib.dlk_client_call(client, call)
        if status >= PENDING:
            status = finish(client, call, status)
        return status
    except BaseException:
        # Whatever became of it: nothing is left behind, a grant is given back.
        lib.dlk_client_cancel(client, call)
        raise


def start(client: Any, call: Any) -> int:
    """Sends a filled call off; PENDING, or its status when that is already known."""
    status: int = lib.dlk_client_start(client, call)
    if status == FORKED:
        raise RuntimeError(FORKED_TEXT)
    return status


def poll(client: Any, call: Any) -> int:
    """How a call that was sent off stands; never waits."""
    status: int = lib.dlk_client_poll(client, call)
    if status == FORKED:
        raise RuntimeError(FORKED_TEXT)
    return status


def run_batch(client: Any, calls: Any, count: int) -> None:
    """Carries out the first `count` calls of an array, each of which then has its status."""
    try:
        status: int = lib.dlk_client_batch(client, calls, count)
        while status == PENDING:
            status = lib.dlk_client_batch_wait(client, calls, count)
        if status == FORKED:
            raise RuntimeError(FORKED_TEXT)
    except BaseException:
        for index in range(count):
            lib.dlk_client_cancel(client, calls + index)
        raise


# ---- The client ----------------------------------------------------------------------------------


def new_client(wait_mode: int, reply_timeout_ms: int) -> Any:
    """A `struct dlk_client` that is freed with its last reference, which a running call also is;
    never in a forked child."""
    pointer = lib.dlk_client_new(
        ffi.new(
            "struct dlk_client_config *",
            {"wait_mode": wait_mode, "reply_timeout_ms": reply_timeout_ms},
        )
    )
    if pointer == ffi.NULL:
        raise MemoryError("no memory for a dlock client")
    return own_client(pointer)


def attach(
    client: Any, host: str, timeout_ms: int, welcome: Welcome, end: OwnEnd | None = None
) -> int:
    """Opens the data connection that a Welcome of the control plane speaks of, over this end of a
    queue pair, which the client takes, or over TCP; a status."""
    link = data_link(host, welcome, timeout_ms / 1000, end)
    try:
        status: int = lib.dlk_client_attach(client, link)
        handed_over(link)
        while status == PENDING:
            status = lib.dlk_client_attach(client, link)
    except BaseException:
        lib.dlk_client_detach(client)
        raise
    if status == FORKED:
        raise RuntimeError(FORKED_TEXT)
    return status


def ping(client: Any) -> int:
    """Asks for nothing but an answer of the data plane; a status."""
    call = take_call()
    pack_call(call.buffer, 0, _core.DLK_VERB_PING, 0, 0, 0, 0, 0, 0, 0, 0, UNTOUCHED)
    status = run(client, call.pointer)
    give_back(call)
    return status


def settle(client: Any, timeout_ms: int) -> int:
    """Has every unlock and cancel without an answer answered; a status, ETIMEOUT if that takes
    longer than `timeout_ms`."""
    deadline_ns = lib.dlk_now_ns() + timeout_ms * 1_000_000
    status: int = lib.dlk_client_settle(client, timeout_ms)
    while status == PENDING:
        left_ms = (deadline_ns - lib.dlk_now_ns()) // 1_000_000
        if left_ms <= 0:
            return _core.DLK_STATUS_ETIMEOUT
        status = lib.dlk_client_settle(client, left_ms)
    return status


class Claims(NamedTuple):
    """What a client reports of its locks: C's array, and the same for Python to read."""

    array: Any
    items: list[_core.Claim]


def claims(client: Any) -> Claims:
    """What this client has got and holds now, as `update_all_locks` reports it."""
    room = lib.dlk_client_claims(client, ffi.NULL, 0)
    while True:
        array = ffi.new("struct dlk_claim[]", room)
        count = lib.dlk_client_claims(client, array, room)
        if count <= room:
            return Claims(array, _core.claims_from(ffi.buffer(array), count))
        room = count


def select(claims: Claims, indices: Sequence[int]) -> Any:
    """An array of these claims only."""
    array = ffi.new("struct dlk_claim[]", len(indices))
    for at, index in enumerate(indices):
        array[at] = claims.array[index]
    return array


def claimed(client: Any, array: Any, statuses: Sequence[int]) -> None:
    """Tells the book what the server said of the first claims of an array."""
    lib.dlk_client_claimed(client, array, ffi.new("int32_t[]", list(statuses)), len(statuses))


def seal(client: Any) -> None:
    """From now on what was not claimed in this epoch is not got any more."""
    lib.dlk_client_seal(client)
