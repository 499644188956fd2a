"""The messages of the control plane, each declared once: number, fields, limits, reply.

The table DECLARATIONS at the end is the protocol; docs/protocol.md prints it and a test keeps the
two equal. Everything that arrives is checked here, at the edge, so that nothing behind it meets a
value of the wrong type or out of range. This file knows no sockets and no state.
"""

from collections.abc import Mapping
from typing import Annotated, Final

from dlock._frozen import Frozen
from dlock.control.fields import U32_MAX, FlatRecord, Integer, Many, Record, StatusCode
from dlock.control.fields import ProtocolError as ProtocolError
from dlock.control.messages_base import BATCH_MAX as BATCH_MAX
from dlock.control.messages_base import DESCRIPTOR_BYTES_MAX as DESCRIPTOR_BYTES_MAX
from dlock.control.messages_base import EPOCH_MAX as EPOCH_MAX
from dlock.control.messages_base import ID_MAX as ID_MAX
from dlock.control.messages_base import NONE as NONE
from dlock.control.messages_base import SECRET_BYTES as SECRET_BYTES
from dlock.control.messages_base import STATS_ITEMS_MAX as STATS_ITEMS_MAX
from dlock.control.messages_base import (
    U16,
    U32,
    U64,
    AnyStatus,
    Bit,
    Counters,
    Descriptor,
    Epoch,
    Id,
    IdOrMinusOne,
    IdOrZero,
    Info,
    LockKind,
    Role,
    Secret,
)
from dlock.control.messages_base import Message as Message
from dlock.control.messages_base import Reply as Reply
from dlock.control.messages_base import Request as Request
from dlock.control.messages_base import Status as Status
from dlock.control.messages_describe import Describe as Describe
from dlock.control.messages_describe import LabelLine as LabelLine
from dlock.control.messages_describe import TextLine as TextLine
from dlock.control.messages_durable import DssAnswer as DssAnswer
from dlock.control.messages_durable import DssCall as DssCall
from dlock.control.messages_durable import DssForget as DssForget
from dlock.control.messages_durable import Durable as Durable
from dlock.control.messages_durable import RecordAnswer as RecordAnswer
from dlock.control.messages_durable import RecordDelete as RecordDelete
from dlock.control.messages_durable import RecordGet as RecordGet
from dlock.control.messages_durable import RecordLine as RecordLine
from dlock.control.messages_durable import RecordLines as RecordLines
from dlock.control.messages_durable import RecordList as RecordList
from dlock.control.messages_durable import RecordPiece as RecordPiece
from dlock.control.messages_durable import RecordPut as RecordPut
from dlock.control.messages_operate import BreakLock as BreakLock
from dlock.control.messages_operate import BrokenLock as BrokenLock
from dlock.control.messages_operate import ClientLine as ClientLine
from dlock.control.messages_operate import ClientList as ClientList
from dlock.control.messages_operate import Cycle as Cycle
from dlock.control.messages_operate import CycleEdge as CycleEdge
from dlock.control.messages_operate import EntryLine as EntryLine
from dlock.control.messages_operate import GetCycle as GetCycle
from dlock.control.messages_operate import ListClients as ListClients
from dlock.control.messages_operate import ListLocks as ListLocks
from dlock.control.messages_operate import LockLine as LockLine
from dlock.control.messages_operate import LockList as LockList
from dlock.control.messages_operate import LockShown as LockShown
from dlock.control.messages_operate import ShowLock as ShowLock
from dlock.control.messages_operate import WhoLine as WhoLine
from dlock.control.messages_recover import AbsentLine as AbsentLine
from dlock.control.messages_recover import AwaitReady as AwaitReady
from dlock.control.messages_recover import LockClaim as LockClaim
from dlock.control.messages_recover import Recover as Recover
from dlock.control.messages_recover import RecoveryShown as RecoveryShown
from dlock.control.messages_verbs import OpenQueuePair as OpenQueuePair
from dlock.control.messages_verbs import QueuePair as QueuePair
from dlock.types import DlockStatus

# ---- Parts of messages ---------------------------------------------------------------------------

class LockSpec(Frozen):
    """A lock to get. `size` counts for semaphores only: how many may hold one at a time."""

    descriptor: Descriptor
    kind: LockKind
    size: U32 = 1


class LockResult(Frozen):
    """What became of one LockSpec; lock_id -1 and slot NONE if there is no lock to use."""

    status: AnyStatus
    lock_id: IdOrMinusOne = -1
    slot: U32 = NONE


# ---- Replies -------------------------------------------------------------------------------------

class Welcome(Message, hidden=("secret",)):
    """A session, and what a data connection needs; meaningful only with SUCCESS. `verbs`: it may be
    a queue pair (OpenQueuePair)."""

    status: AnyStatus
    version: U16 = 0
    client_id: IdOrZero = 0
    session_slot: U32 = NONE
    secret: Secret = bytes(SECRET_BYTES)
    attach: U32 = 0
    data_port: U16 = 0
    epoch: Epoch = 0
    incarnation: U64 = 0
    session_ttl_ms: U32 = 0
    max_lease_ms: U32 = 0
    declared_lease_ms: U32 = 0
    verbs: Bit = 0


class LockIds(Message):
    """One result an item, in order; empty unless the status is SUCCESS."""

    status: AnyStatus
    results: Annotated[
        tuple[LockResult, ...], Many(Record(LockResult), 0, BATCH_MAX)] = ()


class Statuses(Message):
    """One status an item, in order; empty unless the status is SUCCESS."""

    status: AnyStatus
    statuses: Annotated[tuple[DlockStatus, ...], Many(StatusCode(), 0, BATCH_MAX)] = ()


class ObjectId(Message):
    """An object and where it is; object_id -1 and slot NONE unless the status is SUCCESS. `key`:
    with it the client operates on the object by itself, over a queue pair; 0: it cannot."""

    status: AnyStatus
    object_id: IdOrMinusOne = -1
    slot: U32 = NONE
    key: U32 = 0


class StatsReply(Message):
    """Counters and gauges by name."""

    stats: Counters


# ---- Requests ------------------------------------------------------------------------------------

class ClientInit(Request[Welcome]):
    """Opens a session. `info` (host, pid, user, program, job) is for people to read."""

    version_min: U16
    version_max: U16
    info: Info


class ClientReinit(Request[Welcome], hidden=("secret",)):
    """Takes a session up again on this connection; its older connections are closed. `seen_...`:
    the newest primary that the client has heard of; `early`: it can make use of a server that
    recovers, for locks whose state is known already; `info`: as in ClientInit."""

    version_min: U16
    version_max: U16
    client_id: Id
    secret: Secret
    seen_epoch: Epoch
    seen_incarnation: U64
    early: Bit
    info: Info


class EnterRole(Request[Welcome]):
    """Opens a session that has this role, which at most one session has. `take` 1: whoever has it
    has no session from now on, nor anything that it held, also if this is answered NOT_READY; 0:
    only if nobody has it. `info`: as in ClientInit."""

    version_min: U16
    version_max: U16
    role: Role
    take: Bit
    info: Info


class ReinitDone(Request[Status]):
    """Ends a re-initialisation."""


class ClientDeinit(Request[Status]):
    """Ends the session and frees everything of it at once."""


class Heartbeat(Request[Status]):
    """Renews the session; answered after the data plane has confirmed it."""


class GetLocks(Request[LockIds]):
    """Creates or joins locks."""

    locks: Annotated[tuple[LockSpec, ...], Many(Record(LockSpec), 1, BATCH_MAX)]


class ReleaseLocks(Request[Statuses]):
    """Lets locks go; the client has made sure that it holds none of them."""

    lock_ids: Annotated[tuple[int, ...], Many(Integer(1, ID_MAX), 1, BATCH_MAX)]


class DeclareLease(Request[Status]):
    """Asks to be allowed leases of this length (rounded up to a power of two)."""

    lease_ms: Annotated[int, Integer(1, U32_MAX - 1)]


class UpdateLocks(Request[Statuses]):
    """What the client has got and holds, one status a claim."""

    claims: Annotated[tuple[LockClaim, ...], Many(FlatRecord(LockClaim), 1, BATCH_MAX)]


class ObjectCreate(Request[ObjectId]):
    """Creates a 64-bit object; the creator owns it, but has not got it."""

    descriptor: Descriptor
    value: U64
    lease_s: U32


class ObjectGet(Request[ObjectId]):
    """Gets an object; lease_s 0 renews nothing."""

    descriptor: Descriptor
    lease_s: U32


class ObjectRelease(Request[Status]):
    """Gives the reference to an object back."""

    object_id: Id


class ObjectDestroy(Request[Status]):
    """Destroys an object, or marks it while there are references."""

    object_id: Id


class Stats(Request[StatsReply]):
    """Asks for counters and gauges; needs no session."""


# ---- The table -----------------------------------------------------------------------------------

class Declaration(Frozen):
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
        (15, GetCycle, Cycle),
        (16, ListLocks, LockList),
        (17, ShowLock, LockShown),
        (18, BreakLock, BrokenLock),
        (19, ListClients, ClientList),
        (20, AwaitReady, Status),
        (21, Recover, RecoveryShown),
        (22, OpenQueuePair, QueuePair),
        (23, EnterRole, Welcome),
        (24, Describe, Status),
        (40, DssCall, DssAnswer),
        (41, DssForget, DssAnswer),
        (42, RecordPut, RecordAnswer),
        (43, RecordDelete, RecordAnswer),
        (44, RecordList, RecordLines),
        (45, RecordGet, RecordPiece),
        (128, Status, None),
        (129, Welcome, None),
        (130, LockIds, None),
        (131, Statuses, None),
        (132, ObjectId, None),
        (133, StatsReply, None),
        (134, Cycle, None),
        (135, LockList, None),
        (136, LockShown, None),
        (137, BrokenLock, None),
        (138, ClientList, None),
        (139, RecoveryShown, None),
        (140, QueuePair, None),
        (160, DssAnswer, None),
        (161, RecordAnswer, None),
        (162, RecordLines, None),
        (163, RecordPiece, None),
    )
)
BY_NUMBER: Final[Mapping[int, Declaration]] = {one.number: one for one in DECLARATIONS}
BY_MESSAGE: Final[Mapping[type[Message], Declaration]] = {one.message: one for one in DECLARATIONS}
