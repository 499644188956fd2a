"""What every control message is made of: the kinds of its fields, and what a message is.

`messages` declares the messages with these; this file knows none of them, no sockets and no state.
Modules that declare messages do without `from __future__ import annotations`: the annotation of a
field is its kind, not the text of it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Generic, TypeVar

from dlock import _core
from dlock._frozen import Frozen
from dlock.control.fields import (
    U16_MAX,
    U32_MAX,
    U64_MAX,
    Binary,
    Boolean,
    Integer,
    StatusCode,
    Table,
    Text,
)
from dlock.control.roster import ROLE_BYTES_MAX
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

Bit = Annotated[int, Integer(0, 1)]
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
Role = Annotated[str, Text(ROLE_BYTES_MAX)]
Flag = Annotated[bool, Boolean()]
AnyStatus = Annotated[DlockStatus, StatusCode()]
Info = Annotated[
    Mapping[str, Any],
    Table(INFO_ITEMS_MAX, INFO_KEY_BYTES_MAX, INFO_TEXT_BYTES_MAX, Integer(0, INFO_INTEGER_MAX)),
]
Counters = Annotated[
    Mapping[str, int],
    Table(STATS_ITEMS_MAX, STATS_KEY_BYTES_MAX, 0, Integer(0, U64_MAX)),
]


# ---- What travels ------------------------------------------------------------------------------

class Message(Frozen):
    """Whatever travels."""


Reply = TypeVar("Reply", bound=Message)


class Request(Message, Generic[Reply]):
    """A message of a client; its parameter is the one type that answers it."""


class Status(Message):
    """The outcome alone."""

    status: AnyStatus
