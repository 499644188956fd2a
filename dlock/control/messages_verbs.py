"""The messages that set up a queue pair: what each end tells the other before they are connected.
The rows of the protocol's table stand in `messages`.
"""

from typing import Annotated, Final

from dlock import _core
from dlock.control.fields import U16_MAX, Binary, Integer
from dlock.control.messages_base import U16, U64, AnyStatus, Bit, Message, Request

PACKET_MAX: Final = 2**_core.DLK_VERBS_PACKET_BITS - 1
QUEUE_PAIR_MAX: Final = 2**24 - 1
MTU_MAX: Final = 5  # as verbs number it: 4096 bytes
# The last place of a window is for messages without frames, so that nobody waits for ever; and how
# many messages were taken is told modulo 65536.
WINDOW_MIN: Final = 2
WINDOW_MAX: Final = 2**15 - 1
FRAME_BYTES: Final = 64
READS_MAX: Final = 255

QueuePairNumber = Annotated[int, Integer(1, QUEUE_PAIR_MAX)]
Packet = Annotated[int, Integer(0, PACKET_MAX)]
Gid = Annotated[bytes, Binary(_core.DLK_GID_BYTES, _core.DLK_GID_BYTES)]
Mtu = Annotated[int, Integer(1, MTU_MAX)]
Window = Annotated[int, Integer(WINDOW_MIN, WINDOW_MAX)]
MessageBytes = Annotated[int, Integer(FRAME_BYTES, U16_MAX)]
Reads = Annotated[int, Integer(0, READS_MAX)]


class QueuePair(Message):
    """The server's end: fields as in struct dlk_verbs_address; meaningful only with SUCCESS."""

    status: AnyStatus
    queue_pair: QueuePairNumber = 1
    packet: Packet = 0
    gid: Gid = bytes(_core.DLK_GID_BYTES)
    lid: U16 = 0
    mtu: Mtu = 1
    ethernet: Bit = 0
    window: Window = WINDOW_MIN
    message_bytes: MessageBytes = FRAME_BYTES
    reads: Reads = 0
    cells: U64 = 0


class OpenQueuePair(Request[QueuePair]):
    """Asks for the server's end of a queue pair, for the data connection that the newest Welcome of
    this connection stands for; the fields are those of the client's end."""

    queue_pair: QueuePairNumber
    packet: Packet
    gid: Gid
    lid: U16
    mtu: Mtu
    ethernet: Bit
    window: Window
    message_bytes: MessageBytes
    reads: Reads
