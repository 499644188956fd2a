"""The only importer of the C extension: its constants, structs and texts. Thin typed access to the
parts of the core stands on this: `_plane`, `_verbs`, `_engine`, `_owned`.

Structs that are handed to C keep their own bytes alive. It decides nothing: rules live in C,
statuses in the mirror. Every constant of native/dlock_abi.h is an attribute of this module under
its C name, so that no number is written down twice.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

_REBUILD = "build it again: `make` in a source tree, `pip install .` elsewhere"

try:
    import dlock._native as _native
except ImportError as problem:
    raise ImportError(
        f"the C core of dlock is missing or does not load ({problem}); {_REBUILD}"
    ) from problem

# The version of native/dlock_abi.h that the Python code of this tree is written for.
ABI_VERSION: Final = 1

lib: Any = _native.lib
ffi: Any = _native.ffi

if lib.dlk_abi_version() != ABI_VERSION:
    raise ImportError(
        f"the C core of dlock is stale: it has ABI version {lib.dlk_abi_version()}, this Python "
        f"code needs {ABI_VERSION}; {_REBUILD}"
    )

globals().update({name: getattr(lib, name) for name in dir(lib) if name.startswith("DLK_")})


def __getattr__(name: str) -> int:
    """Only for names that are missing: the type checker learns that constants are ints."""
    if name.startswith("DLK_"):
        raise ImportError(f"the C core of dlock is stale: it lacks {name}; {_REBUILD}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ---- Struct layouts, taken from the compiler -----------------------------------------------------

_CODES = {
    "uint8_t": "B",
    "uint16_t": "H",
    "uint32_t": "I",
    "uint64_t": "Q",
    "int32_t": "i",
}


def _code(field_type: Any) -> str:
    if field_type.kind == "array":
        if field_type.item.cname in ("uint8_t", "char"):
            return f"{field_type.length}s"
        return f"{field_type.length}{_CODES[field_type.item.cname]}"
    return _CODES[field_type.cname]


def layout(struct_name: str, names: Sequence[str], *, whole: bool = True) -> struct.Struct:
    """A Struct that packs or unpacks the named fields, which stand in the order of memory. Bytes
    between them are skipped (zeroed when packing); `whole`: up to the end of the C struct."""
    c_type = ffi.typeof(f"struct {struct_name}")
    fields = dict(c_type.fields)
    codes, at = ["<"], 0
    for name in names:
        field = fields[name]
        codes.append(f"{field.offset - at}x{_code(field.type)}")
        at = field.offset + ffi.sizeof(field.type)
    if whole:
        codes.append(f"{ffi.sizeof(c_type) - at}x")
    return struct.Struct("".join(codes))


# ---- Small things --------------------------------------------------------------------------------


def now_ns() -> int:
    """CLOCK_BOOTTIME in nanoseconds, the only clock of the C core; or what `set_clock` has said."""
    return int(lib.dlk_now_ns())


def set_clock(now_ns: int) -> None:
    """From now on this is the time of the C core, in the whole process; 0: the real clock again.
    For simulated time, with no thread in a wait: those go on by the real clock."""
    lib.dlk_clock_set(now_ns)


def block_signals() -> None:
    """Signals are for other threads than this one. (Python's own call makes an object of each.)"""
    lib.dlk_block_signals()


def status_text(status: int) -> str:
    """What a DlockStatus means, for people."""
    return str(ffi.string(lib.dlk_status_text(status)).decode())


def result_text(result: int) -> str:
    """What a data-plane result means, for people."""
    return str(ffi.string(lib.dlk_result_text(result)).decode())


def fault_text(fault: int) -> str:
    """Why the plane closed a data connection, in words."""
    return str(ffi.string(lib.dlk_fault_text(fault)).decode())


def counter_names() -> list[str]:
    """The engine's and plane's counters in the order in which `counters` returns them."""
    prefix = "DLK_COUNT_"
    numbered = {
        getattr(lib, name): name.removeprefix(prefix)
        for name in dir(lib)
        if name.startswith(prefix) and name != "DLK_COUNT_MAX"
    }
    return [numbered[number] for number in sorted(numbered)]


# ---- What crosses the boundary, as tuples --------------------------------------------------------


class Request(NamedTuple):
    """struct dlk_request, as the engine sees it (`session` is a slot)."""

    request_id: int = 0
    op: int = 0
    mode: int = 0
    flags: int = 0
    session: int = 0
    lock_id: int = 0
    slot: int = 0
    entry: int = lib.DLK_NONE
    owner: int = 0
    token: int = 0
    value: int = 0
    lease_ms: int = 0
    wait_ms: int = 0
    reserved: int = 0


class Reply(NamedTuple):
    """struct dlk_reply."""

    request_id: int
    op: int
    mode: int
    result: int
    session: int
    epoch: int
    token: int
    value: int
    held_us: int
    lease_ms: int
    entry: int
    readers: int
    n_exclusive: int
    n_shared: int
    m_exclusive: int
    m_shared: int


class Command(NamedTuple):
    """struct dlk_command: control thread to plane thread."""

    op: int
    slot: int = 0
    id: int = 0
    kind: int = 0
    cookie: int = 0
    value: int = 0
    size: int = 0
    attach: int = 0
    secret: bytes = b""
    ttl_ms: int = 0
    lease_ms: int = 0


class Event(NamedTuple):
    """struct dlk_event: plane thread to control thread."""

    op: int
    result: int
    slot: int
    id: int
    cookie: int
    value: int


class EntryView(NamedTuple):
    """struct dlk_entry_view: one holder, waiter or ticket of a lock."""

    owner: int
    token: int
    end_ns: int
    since_ns: int
    session_end_ns: int
    session: int
    client_id: int
    request_id: int
    entry: int
    state: int
    mode: int
    flags: int


class LockView(NamedTuple):
    """struct dlk_lock_view: one open lock in short."""

    slot: int
    id: int
    n_exclusive: int
    n_shared: int
    n_queue: int
    size: int
    served: int
    kind: int
    closing: int
    session: int
    owner: int
    since_ns: int
    client_id: int


class Claim(NamedTuple):
    """struct dlk_claim: what a client says about one lock to a new primary."""

    owner: int
    token: int
    stamp: int
    lock_id: int
    slot: int
    kind: int
    size: int
    state: int
    mode: int
    count: int  # type: ignore[assignment]  # the field name of C, not tuple.count
    remaining_ms: int
    lapsed: int
    leased: int
    request_id: int
    wait_ms: int
    flags: int
    result: int


_COMMAND = layout("dlk_command", Command._fields)
_CLAIM = layout("dlk_claim", Claim._fields)


class Limits(NamedTuple):
    """struct dlk_limits: the sizes of the engine's tables."""

    max_locks: int = lib.DLK_MAX_LOCKS_DEFAULT
    max_sessions: int = 2 * lib.DLK_MAX_CLIENTS_DEFAULT
    max_entries: int = 2 * lib.DLK_MAX_LOCKS_DEFAULT
    max_cells: int = lib.DLK_MAX_OBJECTS_DEFAULT
    max_lease_ms: int = lib.DLK_MAX_LEASE_MS_DEFAULT
    ticket_claim_ms: int = lib.DLK_TICKET_CLAIM_MS


def command_struct(command: Command) -> Any:
    """The C struct, which keeps its own bytes alive."""
    return ffi.from_buffer("struct dlk_command[]", _COMMAND.pack(*command))


def claims_from(buffer: Any, count: int) -> list[Claim]:
    """The first `count` claims of an array of struct dlk_claim."""
    return [Claim(*_CLAIM.unpack_from(buffer, index * _CLAIM.size)) for index in range(count)]


def claims_of(client: Any) -> list[Claim]:
    """What this client (struct dlk_client *) has got, holds and waits for."""
    room = lib.dlk_client_claims(client, ffi.NULL, 0)
    while True:
        array = ffi.new("struct dlk_claim[]", room)
        count = lib.dlk_client_claims(client, array, room)
        if count <= room:
            return claims_from(ffi.buffer(array), count)
        room = count


def claims_array(claims: Sequence[Claim]) -> Any:
    """An array of struct dlk_claim."""
    return ffi.from_buffer("struct dlk_claim[]", b"".join(_CLAIM.pack(*one) for one in claims))
