"""The messages of a recovery: what a client claims at a new primary, waiting until it is ready, and
what operators see of it. The rows of the protocol's table stand in `messages`.
"""

from typing import Annotated, Final, NamedTuple

from dlock._frozen import Frozen
from dlock.control.fields import Integer, Many, Record, Text
from dlock.control.messages_base import (
    ID_MAX,
    U32,
    U64,
    AnyStatus,
    Bit,
    Descriptor,
    EntryState,
    Id,
    LockKind,
    Message,
    Mode,
    Request,
    Status,
)
from dlock.control.roster import WHO_CHARACTERS_MAX

# Lock ids grow by one a name, from 1. Those that are claimed stay in the lower half of all ids, so
# that a client that makes one up cannot leave none for new names.
CLAIMED_LOCK_ID_MAX: Final = ID_MAX // 2
AWAIT_MS_MAX: Final = 60_000
ABSENT_LINES_MAX: Final = 64
EVICT_IDS_MAX: Final = 1024
EVICT_NONE: Final = 0
EVICT_ALL: Final = 1
EVICT_THESE: Final = 2
# In UTF-8, and what is shown in the place of a character that was cut.
WHO_BYTES_MAX: Final = 4 * WHO_CHARACTERS_MAX

Who = Annotated[str, Text(WHO_BYTES_MAX)]


# ---- Parts of messages ---------------------------------------------------------------------------

class LockClaim(NamedTuple):
    """What a client says of one lock and owner of its: fields as in struct dlk_claim. A tuple,
    since a recovering server reads very many of them."""

    descriptor: Descriptor
    size: U32
    lock_id: Id
    slot: U32
    kind: LockKind
    owner: U64
    token: U64
    stamp: U64
    state: EntryState
    mode: Mode
    count: U32  # type: ignore[assignment]  # the field name of C, not tuple.count
    remaining_ms: U32
    lapsed: Bit
    leased: Bit
    request_id: U32
    wait_ms: U32
    flags: U32


class AbsentLine(Frozen):
    """A session that is waited for. `lease_ms`: the longest lease that it declared; `left_ms`: for
    how long it is still waited for; `came`: it has begun to re-initialise; `who`: host and pid."""

    client_id: Id
    lease_ms: U32
    left_ms: U32
    came: Bit
    who: Who


# ---- Replies -------------------------------------------------------------------------------------

class RecoveryShown(Message):
    """How far a recovery is. `ready`: it is over; `left_ms`: it ends at the latest then;
    `absent_total`: how many are waited for, of whom `absent` shows the first."""

    status: AnyStatus
    ready: Bit = 0
    expected: U32 = 0
    back: U32 = 0
    evicted: U32 = 0
    left_ms: U32 = 0
    absent_total: U32 = 0
    absent: Annotated[
        tuple[AbsentLine, ...], Many(Record(AbsentLine), 0, ABSENT_LINES_MAX)] = ()


# ---- Requests ------------------------------------------------------------------------------------

class AwaitReady(Request[Status]):
    """Is answered when the server is ready, or after wait_ms; needs no session."""

    wait_ms: Annotated[int, Integer(0, AWAIT_MS_MAX)]


class Recover(Request[RecoveryShown]):
    """Asks how far the recovery is; `evict`: 0: only that, 1: nobody who is absent is waited for
    any more, 2: these are not waited for any more."""

    evict: Annotated[int, Integer(EVICT_NONE, EVICT_THESE)]
    client_ids: Annotated[tuple[int, ...], Many(Integer(1, ID_MAX), 0, EVICT_IDS_MAX)] = ()
