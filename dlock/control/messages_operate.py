"""The messages of operators: which locks there are, who holds them, taking a hold away, and which
cycle a refused wait would have closed.

None of them needs a session. Every answer fits one message: what does not is told in numbers, or
asked for again from where the answer ended. The rows of the protocol's table stand in `messages`.
"""

from typing import Annotated, Final

from dlock import _core
from dlock._frozen import Frozen
from dlock.control.fields import U32_MAX, Binary, Integer, Many, Record
from dlock.control.messages_base import (
    DESCRIPTOR_BYTES_MAX,
    NONE,
    U32,
    U64,
    AnyStatus,
    Descriptor,
    Flag,
    Id,
    IdOrZero,
    Info,
    LockKind,
    Message,
    Mode,
    Request,
)
from dlock.control.messages_describe import Label, NameText

LOCK_LINES_MAX: Final = 512
ENTRY_LINES_MAX: Final = 1024
CLIENT_LINES_MAX: Final = 512
CYCLE_EDGES_MAX: Final = _core.DLK_CYCLE_EDGES_MAX
BROKEN_MAX: Final = 4096  # tokens that one answer names
NEVER: Final = -1  # in lease_left_ms: the hold has no lease

Prefix = Annotated[bytes, Binary(0, DESCRIPTOR_BYTES_MAX)]
MaybeDescriptor = Annotated[bytes, Binary(0, DESCRIPTOR_BYTES_MAX)]
LeaseLeft = Annotated[int, Integer(NEVER, U32_MAX)]
EntryLineState = Annotated[int, Integer(_core.DLK_ENTRY_HELD, _core.DLK_ENTRY_TICKET)]


# ---- Parts of messages ---------------------------------------------------------------------------

class LockLine(Frozen):
    """A lock in short. `served` counts, modulo 65536, the requests that were granted or gave up.
    Of its newest holder, if it is held: `client_id`, `actor`, `since_ms` and what its client says
    of that actor (`label`). `text`: what the name stands for, if a client has said so."""

    descriptor: Descriptor
    kind: LockKind
    size: U32
    lock_id: Id
    holders: U32
    waiters: U32
    served: U32
    client_id: IdOrZero = 0
    actor: U32 = 0
    since_ms: U64 = 0
    label: Label = ""
    text: NameText = b""


class EntryLine(Frozen):
    """A holder, waiter or ticket. `token` is the stamp of one that does not hold; `actor` the
    thread or task of the client, 0: not known; `breaking`: its client was asked to give it up;
    `label`: what the client says of this actor."""

    state: EntryLineState
    mode: Mode
    token: U64
    client_id: IdOrZero
    actor: U32
    since_ms: U64
    lease_left_ms: LeaseLeft
    session_left_ms: U64
    breaking: Flag
    label: Label = ""


class CycleEdge(Frozen):
    """One who waits in a cycle, for the lock of this name (empty: it was gone already); the next
    edge's actor is in its way, and the first one's in the way of the last. `info` is what its
    client says of itself, empty where it would not fit or the client was gone."""

    descriptor: MaybeDescriptor
    client_id: Id
    actor: U32
    info: Info


class WhoLine(Frozen):
    """What a client says of itself."""

    client_id: Id
    info: Info


class ClientLine(Frozen):
    """A session. `ended`: only leased holds of it are left; `connected`: on the control plane;
    `locks`: how many it has got; `verbs`: its data connection is a queue pair."""

    client_id: Id
    info: Info
    connected: Flag
    ended: Flag
    locks: U32
    since_ms: U64
    verbs: Flag


# ---- Replies -------------------------------------------------------------------------------------

class LockList(Message):
    """Locks in no order that means anything. `next`: where to go on; NONE: that was all. There
    may be more although none was found so far. `clients`: who the holders are, each once."""

    status: AnyStatus
    locks: Annotated[tuple[LockLine, ...], Many(Record(LockLine), 0, LOCK_LINES_MAX)] = ()
    next: U32 = NONE
    clients: Annotated[tuple[WhoLine, ...], Many(Record(WhoLine), 0, LOCK_LINES_MAX)] = ()


class LockShown(Message):
    """One lock: its holders, the newest first, then its queue in order, as far as they fit;
    `total`: how many there are. `clients`: who they are, each once. `text`: what the name stands
    for, if a client has said so."""

    status: AnyStatus
    kind: LockKind = 0
    size: U32 = 0
    lock_id: IdOrZero = 0
    entries: Annotated[tuple[EntryLine, ...], Many(Record(EntryLine), 0, ENTRY_LINES_MAX)] = ()
    clients: Annotated[tuple[WhoLine, ...], Many(Record(WhoLine), 0, ENTRY_LINES_MAX)] = ()
    total: U32 = 0
    text: NameText = b""


class BrokenLock(Message):
    """The tokens of the holds that are broken; `met`: how many they are, if not all are named."""

    status: AnyStatus
    tokens: Annotated[tuple[int, ...], Many(Integer(1, 2**63 - 1), 0, BROKEN_MAX)] = ()
    met: U32 = 0


class ClientList(Message):
    """Sessions. `next`: where to go on; NONE: that was all."""

    status: AnyStatus
    clients: Annotated[tuple[ClientLine, ...], Many(Record(ClientLine), 0, CLIENT_LINES_MAX)] = ()
    next: U32 = NONE


class Cycle(Message):
    """A cycle of waits, from who was refused on; `length`: how many edges it has, if not all are
    told."""

    status: AnyStatus
    edges: Annotated[tuple[CycleEdge, ...], Many(Record(CycleEdge), 0, CYCLE_EDGES_MAX)] = ()
    length: U32 = 0


# ---- Requests ------------------------------------------------------------------------------------

class ListLocks(Request[LockList]):
    """Asks which locks there are, from `start` (0, or the `next` of an answer) on; busy_only:
    those that somebody holds or waits for."""

    prefix: Prefix
    start: U32
    limit: Annotated[int, Integer(1, LOCK_LINES_MAX)]
    busy_only: Flag


class ShowLock(Request[LockShown]):
    """Asks who holds a lock and who waits for it."""

    descriptor: Descriptor


class BreakLock(Request[BrokenLock]):
    """Takes the hold with this token away (0: all holds of the lock). now: at once; else its client
    is asked, and it ends with the answer, with its lease or with its session."""

    descriptor: Descriptor
    token: U64
    now: Flag


class ListClients(Request[ClientList]):
    """Asks which sessions there are, from `start` (0, or the `next` of an answer) on."""

    start: U32


class GetCycle(Request[Cycle]):
    """Asks which cycle a refused wait would have closed, by the number in the refusal."""

    number: U64
