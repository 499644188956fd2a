"""The only importer of the C extension: thin typed access to the engine, the plane and the client.

What is here owns the buffers that C looks at: nothing that C still holds is freed early, and the
destructors do nothing in a forked child. It decides nothing: rules live in C, statuses in the
mirror. Every constant of native/dlock_abi.h is an attribute of this module under its C name, so
that no number is written down twice.
"""

from __future__ import annotations

import errno
import os
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


_REQUEST = layout("dlk_request", Request._fields)
_REPLY = layout("dlk_reply", Reply._fields)
_COMMAND = layout("dlk_command", Command._fields)
_EVENT = layout("dlk_event", Event._fields)
_VIEW = layout("dlk_entry_view", EntryView._fields)
_CLAIM = layout("dlk_claim", Claim._fields)


class Limits(NamedTuple):
    """struct dlk_limits: the sizes of the engine's tables."""

    max_locks: int = lib.DLK_MAX_LOCKS_DEFAULT
    max_sessions: int = 2 * lib.DLK_MAX_CLIENTS_DEFAULT
    max_entries: int = 2 * lib.DLK_MAX_LOCKS_DEFAULT
    max_cells: int = lib.DLK_MAX_OBJECTS_DEFAULT
    max_lease_ms: int = lib.DLK_MAX_LEASE_MS_DEFAULT
    ticket_claim_ms: int = lib.DLK_TICKET_CLAIM_MS


def _command_struct(command: Command) -> Any:
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


# ---- Engine: for tests, tools and measurements; the plane owns its own ---------------------------


class Engine:
    """One lock table, driven by hand. Every call takes now and returns what came out of it."""

    def __init__(self, limits: Limits | None = None, epoch: int = 1, *, ready: bool = True) -> None:
        self._pid = os.getpid()
        self._pointer: Any = None
        pointer = lib.dlk_engine_new(
            ffi.new("struct dlk_limits *", (limits or Limits())._asdict()), epoch
        )
        if pointer == ffi.NULL:
            raise MemoryError("no memory for an engine of these limits")
        self._pointer = pointer
        self._reply_list = ffi.new("struct dlk_reply **")
        self._event_list = ffi.new("struct dlk_event **")
        if ready:
            self.command(Command(lib.DLK_COMMAND_READY, value=1), 0)

    def __del__(self) -> None:
        if getattr(self, "_pointer", None) is not None:
            self.free()

    def free(self) -> None:
        """Gives the tables back; the engine must not be used afterwards."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None and self._pid == os.getpid():
            lib.dlk_engine_free(pointer)

    def _take(self) -> tuple[list[Reply], list[Event]]:
        count = lib.dlk_engine_replies(self._pointer, self._reply_list)
        data = ffi.buffer(self._reply_list[0], count * _REPLY.size) if count else b""
        replies = [Reply(*fields) for fields in _REPLY.iter_unpack(data)]
        count = lib.dlk_engine_events(self._pointer, self._event_list)
        data = ffi.buffer(self._event_list[0], count * _EVENT.size) if count else b""
        events = [Event(*fields) for fields in _EVENT.iter_unpack(data)]
        lib.dlk_engine_clear(self._pointer)
        return replies, events

    def step(
        self, requests: Sequence[tuple[int, ...]], now: int
    ) -> tuple[list[Reply], list[Event]]:
        """Carries out a batch, in order; each request a tuple in the order of `Request`."""
        data = b"".join(_REQUEST.pack(*request) for request in requests)
        array = ffi.from_buffer("struct dlk_request[]", data)
        lib.dlk_engine_step(self._pointer, array, len(requests), now)
        return self._take()

    def command(self, command: Command, now: int) -> tuple[list[Reply], list[Event]]:
        """Carries out one command of the control plane."""
        lib.dlk_engine_command(self._pointer, _command_struct(command), now)
        return self._take()

    def tick(self, now: int, sessions_now: int | None = None) -> tuple[list[Reply], list[Event]]:
        """Ends what is due at `now`; sessions by `sessions_now` (the same by default; 0: none)."""
        lib.dlk_engine_tick(self._pointer, now, now if sessions_now is None else sessions_now)
        return self._take()

    def stop(self) -> tuple[list[Reply], list[Event]]:
        """Wakes every waiter with STOPPING."""
        lib.dlk_engine_stop(self._pointer)
        return self._take()

    def next_deadline(self) -> int:
        """When `tick` is due next, in ns; 2**64-1: never. May be early, never late."""
        return int(lib.dlk_engine_next_deadline(self._pointer))

    def view(self, slot: int) -> list[EntryView]:
        """Holders, then the queue, of the lock in this slot."""
        room = 16
        while True:
            array = ffi.new("struct dlk_entry_view[]", room)
            count = lib.dlk_engine_view(self._pointer, slot, array, room)
            if count <= room:
                data = ffi.buffer(array, count * _VIEW.size)
                return [EntryView(*fields) for fields in _VIEW.iter_unpack(data)]
            room = count

    def check(self) -> int:
        """0, or the number of the invariant that is broken."""
        return int(lib.dlk_engine_check(self._pointer))

    def entries_in_use(self) -> int:
        """Holds, waiters and tickets of all locks together."""
        return int(lib.dlk_engine_entries_in_use(self._pointer))

    def counters(self) -> list[int]:
        """In the order of `counter_names`."""
        return list(lib.dlk_engine_counters(self._pointer)[0 : lib.DLK_COUNT_MAX])


# ---- Plane ---------------------------------------------------------------------------------------


class PlaneConfig(NamedTuple):
    """struct dlk_plane_config; 0 in spin_us and stall_ms means the default, 0 in confirm_ms that it
    needs no CONFIRMED, -1 in listen_fd that it listens itself."""

    limits: Limits
    epoch: int
    wait_mode: int = lib.DLK_WAIT_ADAPTIVE
    ready: int = 1
    spin_us: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    stall_ms: int = 0
    confirm_ms: int = 0
    listen_fd: int = -1


class Plane:
    """The data plane of one server. `run` belongs to a thread of its own (or instead of it `turn`,
    and `engine`, to whoever has no thread for it); `send_command`, `take_event` and the event
    descriptor to the control thread; `stop` to anybody."""

    def __init__(self, config: PlaneConfig) -> None:
        """OSError if the port cannot be had, MemoryError if the tables cannot. A `listen_fd` is the
        plane's from now on, whatever happens."""
        self._pid = os.getpid()
        self._pointer: Any = None
        fields = {
            **config._asdict(),
            "limits": config.limits._asdict(),
            "host": config.host.encode("ascii"),
        }
        error = ffi.new("int *")
        pointer = lib.dlk_plane_new(ffi.new("struct dlk_plane_config *", fields), error)
        if pointer == ffi.NULL:
            if error[0] in (0, errno.ENOMEM):
                raise MemoryError("no memory for a data plane of these limits")
            raise OSError(error[0], os.strerror(error[0]), f"{config.host}:{config.port}")
        self._pointer = pointer
        self._event = ffi.new("struct dlk_event *")
        self._event_bytes = ffi.buffer(self._event)

    def __del__(self) -> None:
        if getattr(self, "_pointer", None) is not None:
            self.free()

    def free(self) -> None:
        """Closes every connection and gives the tables back; only after `run` has returned."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None and self._pid == os.getpid():
            lib.dlk_plane_free(pointer)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(lib.dlk_plane_port(self._pointer))

    def run(self) -> int:
        """Serves until `stop`; stays in C without the interpreter lock. 0, or an errno."""
        return int(lib.dlk_plane_run(self._pointer))

    def turn(self) -> int:
        """Does what there is to do and never waits; the caller has one thread for everything.
        Returns when, by `now_ns`, it wants to be called again at the latest (0: at once), or sooner
        if there are commands or bytes for it; 2**64-1: it has ended (`error` says why)."""
        return int(lib.dlk_plane_turn(self._pointer))

    @property
    def engine(self) -> Any:
        """Its struct dlk_engine *, to be looked at between turns; not after `free`."""
        return lib.dlk_plane_engine(self._pointer)

    @property
    def error(self) -> int:
        """The errno that made it end by itself, or 0."""
        return int(lib.dlk_plane_error(self._pointer))

    def stop(self) -> None:
        """Makes `run` return soon; waiters are woken with STOPPING."""
        lib.dlk_plane_stop(self._pointer)

    def send_command(self, command: Command) -> bool:
        """False: the ring is full, try again after an event."""
        return bool(lib.dlk_plane_send_command(self._pointer, _command_struct(command)))

    def take_event(self) -> Event | None:
        """The next event, if there is one."""
        if not lib.dlk_plane_take_event(self._pointer, self._event):
            return None
        return Event(*_EVENT.unpack_from(self._event_bytes))

    @property
    def event_fd(self) -> int:
        """Readable while events wait; call `event_fd_clear` before taking them."""
        return int(lib.dlk_plane_event_fd(self._pointer))

    def event_fd_clear(self) -> None:
        """Takes the readiness away."""
        lib.dlk_plane_event_fd_clear(self._pointer)

    def counters(self) -> list[int]:
        """In the order of `counter_names`; any thread."""
        out = ffi.new("uint64_t[]", lib.DLK_COUNT_MAX)
        lib.dlk_plane_counters(self._pointer, out, lib.DLK_COUNT_MAX)
        return list(out)
