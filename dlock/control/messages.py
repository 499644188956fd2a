"""The messages of the control plane, each declared once: number, fields, limits, reply.

The table DECLARATIONS at the end is the protocol; docs/protocol.md prints it and a test keeps the
two equal. Everything that arrives is checked here, at the edge, so that nothing behind it meets a
value of the wrong type or out of range. This file knows no sockets and no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Generic,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from dlock import _core
from dlock.types import DlockStatus

BATCH_MAX: Final = _core.DLK_BATCH_MAX
DESCRIPTOR_BYTES_MAX: Final = _core.DLK_DESCRIPTOR_BYTES_MAX
SECRET_BYTES: Final = _core.DLK_SECRET_BYTES
ID_MAX: Final = _core.DLK_CLIENT_ID_MAX
NONE: Final = _core.DLK_NONE
U16_MAX: Final = 2**16 - 1
U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1
EPOCH_MAX: Final = 2**_core.DLK_EPOCH_BITS - 1
INFO_ITEMS_MAX: Final = 16
INFO_KEY_BYTES_MAX: Final = 32
INFO_TEXT_BYTES_MAX: Final = 256
INFO_INTEGER_MAX: Final = 2**63 - 1
STATS_ITEMS_MAX: Final = 256
STATS_KEY_BYTES_MAX: Final = 64


class ProtocolError(Exception):
    """The peer (or, when encoding, the caller) broke the protocol; the text says how."""


# ---- Field kinds: each validates in both directions ----------------------------------------------

class Kind(Protocol):
    """How one field travels."""

    @property
    def text(self) -> str:
        """As docs/protocol.md shows it."""

    def load(self, wire: object) -> Any:
        """The checked value of what msgpack decoded."""

    def dump(self, value: Any) -> object:
        """The checked form that msgpack encodes."""


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer from low to high; a bool is none."""

    low: int
    high: int

    @property
    def text(self) -> str:
        named = {U16_MAX: "u16", U32_MAX: "u32", U64_MAX: "u64"}
        if self.low == 0 and self.high in named:
            return named[self.high]
        return f"{self.low}..{self.high}"

    def load(self, wire: object) -> int:
        if type(wire) is not int:
            raise ProtocolError(f"{type(wire).__name__} where an integer belongs")
        if not self.low <= wire <= self.high:
            raise ProtocolError(f"{wire} is not in {self.low}..{self.high}")
        return wire

    def dump(self, value: int) -> int:
        return self.load(int(value))


@dataclass(frozen=True, slots=True)
class Binary:
    """Bytes, from low to high many."""

    low: int
    high: int

    @property
    def text(self) -> str:
        many = str(self.low) if self.low == self.high else f"{self.low}..{self.high}"
        return f"{many} bytes"

    def load(self, wire: object) -> bytes:
        if type(wire) is not bytes:
            raise ProtocolError(f"{type(wire).__name__} where bytes belong")
        if not self.low <= len(wire) <= self.high:
            raise ProtocolError(f"{len(wire)} bytes, not {self.low}..{self.high}")
        return wire

    dump = load


@dataclass(frozen=True, slots=True)
class StatusCode:
    """A number of DlockStatus."""

    text: ClassVar[str] = "status"

    def load(self, wire: object) -> DlockStatus:
        if type(wire) is not int:
            raise ProtocolError(f"{type(wire).__name__} where a status belongs")
        try:
            return DlockStatus(wire)
        except ValueError:
            raise ProtocolError(f"{wire} is no status") from None

    def dump(self, value: DlockStatus) -> int:
        return int(DlockStatus(value))


@dataclass(frozen=True, slots=True)
class Table:
    """A map of short texts to integers and, if text_bytes is not 0, to texts of at most as many."""

    items: int
    key_bytes: int
    text_bytes: int
    integer: Integer

    @property
    def text(self) -> str:
        texts = f"text of at most {self.text_bytes} bytes, or " if self.text_bytes else ""
        return (f"map of at most {self.items}: key of at most {self.key_bytes} bytes -> "
                f"{texts}{self.integer.text}")

    def load(self, wire: object) -> dict[str, Any]:
        if not isinstance(wire, dict):
            raise ProtocolError(f"{type(wire).__name__} where a map belongs")
        if len(wire) > self.items:
            raise ProtocolError(f"a map of {len(wire)} items, at most {self.items}")
        for key, value in wire.items():
            self._check_text(key, self.key_bytes)
            if isinstance(value, str) and self.text_bytes:
                self._check_text(value, self.text_bytes)
            else:
                self.integer.load(value)
        return wire

    def dump(self, value: Mapping[str, Any]) -> object:
        return self.load(dict(value))

    @staticmethod
    def _check_text(value: object, most: int) -> None:
        if not isinstance(value, str):
            raise ProtocolError(f"{type(value).__name__} where text belongs")
        if len(value.encode("utf-8", "surrogatepass")) > most:
            raise ProtocolError(f"a text of more than {most} bytes")


@dataclass(frozen=True, slots=True)
class Many:
    """An array of low to high values of one kind; a tuple in Python."""

    item: Kind
    low: int
    high: int

    @property
    def text(self) -> str:
        return f"array of {self.low}..{self.high}: {self.item.text}"

    def load(self, wire: object) -> tuple[Any, ...]:
        if not isinstance(wire, list):
            raise ProtocolError(f"{type(wire).__name__} where an array belongs")
        self._check_count(len(wire))
        return tuple(map(self.item.load, wire))

    def dump(self, value: tuple[Any, ...]) -> object:
        self._check_count(len(value))
        return list(map(self.item.dump, value))

    def _check_count(self, count: int) -> None:
        if not self.low <= count <= self.high:
            raise ProtocolError(f"an array of {count}, not {self.low}..{self.high}")


class Record:
    """A dataclass whose annotated fields travel as one array, in their order."""

    __slots__ = ("fields", "kind")

    def __init__(self, kind: type[Any]) -> None:
        hints = get_type_hints(kind, include_extras=True)
        self.kind = kind
        self.fields: tuple[tuple[str, Kind], ...] = tuple(
            (one.name, _kind_of(hints[one.name])) for one in fields(kind)
        )

    @property
    def text(self) -> str:
        return "[" + ", ".join(f"{name}: {kind.text}" for name, kind in self.fields) + "]"

    def load(self, wire: object) -> Any:
        if not isinstance(wire, list):
            raise ProtocolError(f"{type(wire).__name__} where an array belongs")
        if len(wire) != len(self.fields):
            raise ProtocolError(
                f"{self.kind.__name__} of {len(wire)} fields, not {len(self.fields)}")
        values = []
        for (name, kind), value in zip(self.fields, wire, strict=True):
            try:
                values.append(kind.load(value))
            except ProtocolError as problem:
                raise ProtocolError(f"{self.kind.__name__}.{name}: {problem}") from None
        return self.kind(*values)

    def dump(self, value: Any) -> list[object]:
        wire = []
        for name, kind in self.fields:
            try:
                wire.append(kind.dump(getattr(value, name)))
            except ProtocolError as problem:
                raise ProtocolError(f"{self.kind.__name__}.{name}: {problem}") from None
        return wire


def _kind_of(hint: Any) -> Kind:
    """The kind that stands in an Annotated hint."""
    if get_origin(hint) is not Annotated:
        raise TypeError(f"{hint} is not annotated with a kind")
    kind: Kind = get_args(hint)[1]
    return kind


# ---- The kinds in use ----------------------------------------------------------------------------

U16 = Annotated[int, Integer(0, U16_MAX)]
U32 = Annotated[int, Integer(0, U32_MAX)]
U64 = Annotated[int, Integer(0, U64_MAX)]
Epoch = Annotated[int, Integer(0, EPOCH_MAX)]
Id = Annotated[int, Integer(1, ID_MAX)]
IdOrZero = Annotated[int, Integer(0, ID_MAX)]
IdOrMinusOne = Annotated[int, Integer(-1, ID_MAX)]
LockKind = Annotated[int, Integer(0, _core.DLK_KIND_COUNT - 1)]
Mode = Annotated[int, Integer(0, _core.DLK_MODE_COUNT - 1)]
EntryState = Annotated[int, Integer(0, _core.DLK_ENTRY_TICKET)]
Descriptor = Annotated[bytes, Binary(1, DESCRIPTOR_BYTES_MAX)]
Secret = Annotated[bytes, Binary(SECRET_BYTES, SECRET_BYTES)]
AnyStatus = Annotated[DlockStatus, StatusCode()]
Info = Annotated[
    Mapping[str, Any],
    Table(INFO_ITEMS_MAX, INFO_KEY_BYTES_MAX, INFO_TEXT_BYTES_MAX, Integer(0, INFO_INTEGER_MAX)),
]
Counters = Annotated[
    Mapping[str, int],
    Table(STATS_ITEMS_MAX, STATS_KEY_BYTES_MAX, 0, Integer(0, U64_MAX)),
]


# ---- Parts of messages ---------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class LockSpec:
    """A lock to get. `size` counts for semaphores only: how many may hold one at a time."""

    descriptor: Descriptor
    kind: LockKind
    size: U32 = 1


@dataclass(frozen=True, slots=True)
class LockResult:
    """What became of one LockSpec; lock_id -1 and slot NONE if there is no lock to use."""

    status: AnyStatus
    lock_id: IdOrMinusOne = -1
    slot: U32 = NONE


@dataclass(frozen=True, slots=True)
class LockClaim:
    """What a client says about one lock (and owner) of it; from lock_id on as struct dlk_claim."""

    descriptor: Descriptor
    size: U32
    lock_id: Id
    kind: LockKind
    owner: U64
    token: U64
    stamp: U64
    state: EntryState
    mode: Mode
    count: U32
    remaining_ms: U32


# ---- Replies -------------------------------------------------------------------------------------

class Message:
    """Whatever travels."""

    __slots__ = ()


Reply = TypeVar("Reply", bound=Message)


class Request(Message, Generic[Reply]):
    """A message of a client; its parameter is the one type that answers it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Status(Message):
    """The outcome alone."""

    status: AnyStatus


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """A session, and what a data connection needs; meaningful only with SUCCESS."""

    status: AnyStatus
    version: U16 = 0
    client_id: IdOrZero = 0
    session_slot: U32 = NONE
    secret: Secret = field(default=bytes(SECRET_BYTES), repr=False)
    attach: U32 = 0
    data_port: U16 = 0
    epoch: Epoch = 0
    incarnation: U64 = 0
    session_ttl_ms: U32 = 0
    max_lease_ms: U32 = 0
    declared_lease_ms: U32 = 0


@dataclass(frozen=True, slots=True)
class LockIds(Message):
    """One result an item, in order; empty unless the status is SUCCESS."""

    status: AnyStatus
    results: Annotated[
        tuple[LockResult, ...], Many(Record(LockResult), 0, BATCH_MAX)] = ()


@dataclass(frozen=True, slots=True)
class Statuses(Message):
    """One status an item, in order; empty unless the status is SUCCESS."""

    status: AnyStatus
    statuses: Annotated[tuple[DlockStatus, ...], Many(StatusCode(), 0, BATCH_MAX)] = ()


@dataclass(frozen=True, slots=True)
class ObjectId(Message):
    """An object and where it is; object_id -1 and slot NONE unless the status is SUCCESS."""

    status: AnyStatus
    object_id: IdOrMinusOne = -1
    slot: U32 = NONE


@dataclass(frozen=True, slots=True)
class StatsReply(Message):
    """Counters and gauges by name."""

    stats: Counters


# ---- Requests ------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class ClientInit(Request[Welcome]):
    """Opens a session. `info` (host, pid, user, program, job) is for people to read."""

    version_min: U16
    version_max: U16
    info: Info


@dataclass(frozen=True, slots=True)
class ClientReinit(Request[Welcome]):
    """Takes a session up again on this connection; its older connections are closed."""

    version_min: U16
    version_max: U16
    client_id: Id
    secret: Secret = field(repr=False)
    seen_epoch: Epoch
    seen_incarnation: U64


@dataclass(frozen=True, slots=True)
class ReinitDone(Request[Status]):
    """Ends a re-initialisation."""


@dataclass(frozen=True, slots=True)
class ClientDeinit(Request[Status]):
    """Ends the session and frees everything of it at once."""


@dataclass(frozen=True, slots=True)
class Heartbeat(Request[Status]):
    """Renews the session; answered after the data plane has confirmed it."""


@dataclass(frozen=True, slots=True)
class GetLocks(Request[LockIds]):
    """Creates or joins locks."""

    locks: Annotated[tuple[LockSpec, ...], Many(Record(LockSpec), 1, BATCH_MAX)]


@dataclass(frozen=True, slots=True)
class ReleaseLocks(Request[Statuses]):
    """Lets locks go; the client has made sure that it holds none of them."""

    lock_ids: Annotated[tuple[int, ...], Many(Integer(1, ID_MAX), 1, BATCH_MAX)]


@dataclass(frozen=True, slots=True)
class DeclareLease(Request[Status]):
    """Asks to be allowed leases of this length (rounded up to a power of two)."""

    lease_ms: Annotated[int, Integer(1, U32_MAX - 1)]


@dataclass(frozen=True, slots=True)
class UpdateLocks(Request[Statuses]):
    """What the client has got and holds, one status a claim."""

    claims: Annotated[tuple[LockClaim, ...], Many(Record(LockClaim), 1, BATCH_MAX)]


@dataclass(frozen=True, slots=True)
class ObjectCreate(Request[ObjectId]):
    """Creates a 64-bit object; the creator owns it, but has not got it."""

    descriptor: Descriptor
    value: U64
    lease_s: U32


@dataclass(frozen=True, slots=True)
class ObjectGet(Request[ObjectId]):
    """Gets an object; lease_s 0 renews nothing."""

    descriptor: Descriptor
    lease_s: U32


@dataclass(frozen=True, slots=True)
class ObjectRelease(Request[Status]):
    """Gives the reference to an object back."""

    object_id: Id


@dataclass(frozen=True, slots=True)
class ObjectDestroy(Request[Status]):
    """Destroys an object, or marks it while there are references."""

    object_id: Id


@dataclass(frozen=True, slots=True)
class Stats(Request[StatsReply]):
    """Asks for counters and gauges; needs no session."""


# ---- The table -----------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Declaration:
    """One row of the protocol. `reply` is None for replies."""

    number: int
    message: type[Message]
    reply: type[Message] | None
    record: Record


DECLARATIONS: Final = tuple(
    Declaration(number, message, reply, Record(message)) for number, message, reply in (
        (1, ClientInit, Welcome),
        (2, ClientReinit, Welcome),
        (3, ReinitDone, Status),
        (4, ClientDeinit, Status),
        (5, Heartbeat, Status),
        (6, GetLocks, LockIds),
        (7, ReleaseLocks, Statuses),
        (8, DeclareLease, Status),
        (9, UpdateLocks, Statuses),
        (10, ObjectCreate, ObjectId),
        (11, ObjectGet, ObjectId),
        (12, ObjectRelease, Status),
        (13, ObjectDestroy, Status),
        (14, Stats, StatsReply),
        (128, Status, None),
        (129, Welcome, None),
        (130, LockIds, None),
        (131, Statuses, None),
        (132, ObjectId, None),
        (133, StatsReply, None),
    )
)
BY_NUMBER: Final[Mapping[int, Declaration]] = {one.number: one for one in DECLARATIONS}
BY_MESSAGE: Final[Mapping[type[Message], Declaration]] = {one.message: one for one in DECLARATIONS}
