"""The messages of the control plane, each declared once: number, fields, limits, reply.

The table DECLARATIONS at the end is the protocol; docs/protocol.md prints it and a test keeps the
two equal. Everything that arrives is checked here, at the edge, so that nothing behind it meets a
value of the wrong type or out of range. This file knows no sockets and no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, TypeVar

from dlock import _core
from dlock.control.fields import (
    U16_MAX,
    U32_MAX,
    U64_MAX,
    Binary,
    Integer,
    Many,
    Record,
    StatusCode,
    Table,
)
from dlock.control.fields import ProtocolError as ProtocolError
from dlock.types import DlockStatus

BATCH_MAX: Final = _core.DLK_BATCH_MAX
DESCRIPTOR_BYTES_MAX: Final = _core.DLK_DESCRIPTOR_BYTES_MAX
SECRET_BYTES: Final = _core.DLK_SECRET_BYTES
ID_MAX: Final = _core.DLK_CLIENT_ID_MAX
NONE: Final = _core.DLK_NONE
EPOCH_MAX: Final = 2**_core.DLK_EPOCH_BITS - 1
INFO_ITEMS_MAX: Final = 16
INFO_KEY_BYTES_MAX: Final = 32
INFO_TEXT_BYTES_MAX: Final = 256
INFO_INTEGER_MAX: Final = 2**63 - 1
STATS_ITEMS_MAX: Final = 256
STATS_KEY_BYTES_MAX: Final = 64


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
