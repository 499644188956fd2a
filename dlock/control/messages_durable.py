"""The messages of what is durable: the locks of `dlock.dss`, and records of bytes.

None of it is in the engine: it lies in the store of the state directory (durable_store), and an
answer says what is on the disk. The locks need no session; records need one, so that what a lost
connection of the same client still carries is dropped before the next one is answered. The rows of
the protocol's table stand in `messages`.
"""

from typing import Annotated, Final

from dlock._frozen import Frozen
from dlock.control.fields import U32_MAX, Binary, Integer, Many, Record
from dlock.control.messages_base import U32, U64, Bit, Epoch, Flag, Message, Request

LOCK_ID_CHARACTERS_MAX: Final = 2048
LOCK_OWNER_CHARACTERS_MAX: Final = 256
UTF8_BYTES_MAX: Final = 4  # a character
LANE_BYTES: Final = 16
SPACE_BYTES_MAX: Final = 64
KEY_BYTES_MAX: Final = 1024
VALUE_BYTES_MAX: Final = 8 << 20
PIECE_BYTES: Final = 48 << 10  # of a value that travels in several messages
LINES_BYTES_MAX: Final = 56 << 10  # of what one answer lists
LINES_MAX: Final = 512
LINE_BYTES: Final = 32  # what a line costs besides its key and its head

# What a DssCall asks. HELLO only asks whether a server answers.
HELLO, LOCK, REFRESH, UNLOCK, FORCE, STATUS = range(6)

Errno = Annotated[int, Integer(0, 4095)]
LockId = Annotated[bytes, Binary(0, UTF8_BYTES_MAX * LOCK_ID_CHARACTERS_MAX)]
LockOwner = Annotated[bytes, Binary(0, UTF8_BYTES_MAX * LOCK_OWNER_CHARACTERS_MAX)]
Lane = Annotated[bytes, Binary(LANE_BYTES, LANE_BYTES)]
Number = Annotated[int, Integer(0, 2**63 - 1)]
Space = Annotated[bytes, Binary(1, SPACE_BYTES_MAX)]
Key = Annotated[bytes, Binary(0, KEY_BYTES_MAX)]
Piece = Annotated[bytes, Binary(0, PIECE_BYTES)]
ValueBytes = Annotated[int, Integer(0, VALUE_BYTES_MAX)]


# ---- Parts of messages ---------------------------------------------------------------------------

class RecordLine(Frozen):
    """A record: how long it is, which write it is from, and its begin as far as there was room."""

    key: Key
    version: Number
    size: ValueBytes
    head: Piece


# ---- Replies -------------------------------------------------------------------------------------

class DssAnswer(Message):
    """`error`: 0, or a number of Linux's errno. Of a STATUS that found a lock: who owns it, and
    when it was taken or last refreshed, in Unix time. `epoch`, `incarnation`: of
    the server."""

    error: Errno
    epoch: Epoch
    incarnation: U64 = 0
    owner: LockOwner = b""
    seconds: U64 = 0
    microseconds: Annotated[int, Integer(0, 999_999)] = 0


class RecordAnswer(Message):
    """`error`: 0, or a number of Linux's errno."""

    error: Errno


class RecordLines(Message):
    """Records in the order of their keys. `more`: others follow the last one's key."""

    error: Errno
    lines: Annotated[tuple[RecordLine, ...], Many(Record(RecordLine), 0, LINES_MAX)] = ()
    more: Flag = False


class RecordPiece(Message):
    """A piece of a value; ESTALE: the record was written again since, or is gone."""

    error: Errno
    piece: Piece = b""


# ---- Requests ------------------------------------------------------------------------------------

class DssCall(Request[DssAnswer]):
    """One call of `dlock.dss`. `lane`: who asks, one call after the other; `number` grows with each
    of its calls that may change something, and the same number is the same call, carried out once.
    0: a STATUS that settles nothing. `seen_epoch`, `seen_incarnation`: those of the last
    answer, 0: none has come yet. `again`: it may have been sent before."""

    lane: Lane
    number: Number
    again: Bit
    seen_epoch: Epoch
    seen_incarnation: U64
    operation: Annotated[int, Integer(HELLO, STATUS)]
    lock_id: LockId
    owner: LockOwner


class DssForget(Request[DssAnswer]):
    """This lane asks nothing any more."""

    lane: Lane


class RecordPut(Request[RecordAnswer]):
    """A piece of a value of `size` bytes, the pieces in order. With the last one the record is
    written whole; `upload` tells values apart that travel at the same time."""

    space: Space
    key: Key
    upload: U32
    size: ValueBytes
    offset: ValueBytes
    piece: Piece


class RecordDelete(Request[RecordAnswer]):
    """Removes a record; one that is not there is gone already."""

    space: Space
    key: Key


class RecordList(Request[RecordLines]):
    """Asks for the records of a space; `onward`: only for those after this key."""

    space: Space
    onward: Flag
    after: Key


class RecordGet(Request[RecordPiece]):
    """Asks for a piece of the value of this version, from `offset` on."""

    space: Space
    key: Key
    version: Number
    offset: ValueBytes


Durable = DssCall | DssForget | RecordPut | RecordDelete | RecordList | RecordGet

assert U32_MAX >= VALUE_BYTES_MAX
