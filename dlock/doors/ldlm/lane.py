"""The short way of a call through HTTP/2: requests that are known by sight, and prepared answers.

A client that asks often sends the same header block each time, a few bytes that name entries of
the header table. When such a block has been decoded once, and decoding it has left the table as it
was, it means the same until the table changes: then a HEADERS frame with it, followed at once by
the one DATA frame of the request, is a call, and nothing needs to be decoded. h2 is not shown such
a stream; it is told its number, so that it takes it for one that has ended, and how many bytes were
sent on it.

Windows are looked after here too, since clients give room with every call.

What is sent must fit into the peer's windows without waiting, so room for the answer is set aside
when a call is taken, at most half of what there is: where it is not there, the call is h2's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from h2.connection import H2Connection

from dlock.doors.ldlm import calls
from dlock.doors.ldlm.calls import PREFIX_BYTES, Refusal, Route

HEAD_BYTES: Final = 9
DATA, HEADERS, RST_STREAM, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 7, 8
END_STREAM, END_HEADERS = 1, 4
FRAME_BYTES_MAX: Final = 16_384  # of a frame's content, in both directions

KNOWN_MAX: Final = 64  # header blocks known by sight
MESSAGE_BYTES_MAX: Final = 8192  # larger ones are h2's
ANSWER_BYTES_MORE: Final = 128  # what an answer can have more than its request: key and error
PEER_WINDOW_BYTES_MIN: Final = 65_535  # of a stream; the peer may make it smaller, and is h2's then
WINDOW_BYTES_MAX: Final = 0x7FFFFFFF
ROOM_BYTES_MAX: Final = 0x10000  # what a client may give besides; one that gives more is h2's
CREDIT_BYTES: Final = 64 * 1024  # so much is taken before the peer is told that there is room again

_SIZE_UPDATE: Final = 0x20  # a block that begins so (three bits) changes the table's size


def number(data: bytes | bytearray, at: int) -> int:
    """Four bytes of a frame, as lengths and stream numbers are written."""
    return int.from_bytes(data[at:at + 4], "big")


def head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes that a frame begins with."""
    return (length << 48 | kind << 40 | flags << 32 | stream).to_bytes(HEAD_BYTES, "big")


def _opening(length: int, kind: int, flags: int) -> bytes:
    """The same without the stream."""
    return head(length, kind, flags, 0)[:5]


_HEADERS: Final = _opening(len(calls.ANSWER_HEADERS), HEADERS, END_HEADERS)
_TRAILERS: Final = _opening(len(calls.ANSWER_TRAILERS), HEADERS, END_HEADERS | END_STREAM)
_DATA_MEANT: Final = bytes((DATA, END_STREAM))
_ROOM: Final = _opening(4, WINDOW_UPDATE, 0)


class Lane:
    """`out`: where frames are put; `others`: streams that are under way at h2."""

    def __init__(self, h2: H2Connection, out: list[bytes], streams_max: int, fast: bool) -> None:
        self._h2 = h2
        self._out = out
        self._streams_max = streams_max
        self._fast = fast
        self._known: dict[bytes, Route] = {}
        self._open: dict[int, int] = {}  # streams, and the bytes set aside for their answers
        self._uncredited_bytes = 0
        self.reserved_bytes = 0
        self.learned: Route | None = None  # what the block said that h2 is decoding

    # ---- Requests --------------------------------------------------------------------------------

    def take(self, data: bytes, at: int, after: int, end: int, others: int
             ) -> tuple[int, int, Route, bytes] | None:
        """The HEADERS frame in data[at:after], and what follows it: where the request ends, its
        stream, what it asks for, its message. None: it is h2's."""
        if data[at + 4] != END_HEADERS:
            return None
        route = self._known.get(data[at + HEAD_BYTES:after])
        if route is None:
            return None
        written = data[at + 5:at + HEAD_BYTES]
        if data[after:after + HEAD_BYTES] == _ROOM + written and 0 < number(
                data, after + HEAD_BYTES) <= ROOM_BYTES_MAX:
            after += HEAD_BYTES + 4  # some clients make room for the answer first
        content = after + HEAD_BYTES
        if end - content < PREFIX_BYTES:
            return None
        length = int.from_bytes(data[after:after + 3], "big")
        stop = content + length
        if (data[after + 3:content] != _DATA_MEANT + written or stop > end or data[content] != 0
                or number(data, content + 1) != length - PREFIX_BYTES):
            return None
        stream = int.from_bytes(written, "big")
        needed = length + ANSWER_BYTES_MORE
        h2 = self._h2
        if (stream <= h2.highest_inbound_stream_id or not stream & 1 or stream >> 31
                or length > MESSAGE_BYTES_MAX or len(self._open) + others >= self._streams_max
                or 2 * (self.reserved_bytes + needed) > h2.outbound_flow_control_window
                or not PEER_WINDOW_BYTES_MIN <= h2.remote_settings.initial_window_size
                <= WINDOW_BYTES_MAX - ROOM_BYTES_MAX):
            return None
        h2.highest_inbound_stream_id = stream
        self._open[stream] = needed
        self.reserved_bytes += needed
        self._credit(length)
        return stop, stream, route, data[content + PREFIX_BYTES:stop]

    def _credit(self, length: int) -> None:
        """Bytes of the connection's window were taken."""
        self._uncredited_bytes += length
        if self._uncredited_bytes >= CREDIT_BYTES:
            self._out.append(head(4, WINDOW_UPDATE, 0, 0)
                             + self._uncredited_bytes.to_bytes(4, "big"))
            self._uncredited_bytes = 0

    def room(self, stream: int, content: bytes) -> bool:
        """WINDOW_UPDATE, which clients send with most calls: more room in the connection's window,
        or on a stream that is none of h2's any more. False: h2 says what is wrong with it."""
        more = number(content, 0)
        if len(content) != 4 or not 0 < more <= WINDOW_BYTES_MAX:
            return False
        if stream:
            return self.was_opened(stream)
        wide = self._h2.outbound_flow_control_window + more
        if wide > WINDOW_BYTES_MAX:
            return False
        self._h2.outbound_flow_control_window = wide
        return True

    def learn(self, frame: bytes, give: Callable[[], None]) -> None:
        """Gives a HEADERS frame to h2, and remembers what its block says if it left no trace."""
        before = self._table()
        self.learned = None
        give()
        block = frame[HEAD_BYTES:]
        if not frame[4] & END_HEADERS or self._table() != before:
            self._known.clear()
        elif (self._fast and self.learned is not None and self.learned.refusal is None
                and frame[4] == END_HEADERS and block[0] & 0xE0 != _SIZE_UPDATE):
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[block] = self.learned

    def _table(self) -> tuple[int, int, Any]:
        """What changes whenever the table does: entries are put in at its begin, and go at its
        end."""
        table: Any = self._h2.decoder.header_table
        entries = table.dynamic_entries
        return table.maxsize, len(entries), id(entries[0]) if entries else None

    def was_opened(self, stream: int) -> bool:
        """By the client, at some time."""
        return bool(stream & 1) and stream <= self._h2.highest_inbound_stream_id

    def forget(self, stream: int) -> bool:
        """It needs no answer. False: it was none that waits here."""
        needed = self._open.pop(stream, None)
        if needed is None:
            return False
        self.reserved_bytes -= needed
        return True

    # ---- Answers ---------------------------------------------------------------------------------

    def answer(self, stream: int, message: bytes) -> bool:
        """False: it is none that waits here."""
        if not self.forget(stream):
            return False
        written = stream.to_bytes(4, "big")
        length = len(message) + PREFIX_BYTES
        self._h2.outbound_flow_control_window -= length
        self._out.append(b"".join((
            self._headers(_HEADERS, calls.ANSWER_HEADERS, written),
            length.to_bytes(3, "big"), b"\0\0", written, b"\0", len(message).to_bytes(4, "big"),
            message, _TRAILERS, written, calls.ANSWER_TRAILERS)))
        return True

    def refuse(self, stream: int, refusal: Refusal) -> bool:
        """False: it is none that waits here."""
        if not self.forget(stream):
            return False
        block = calls.refusal_block(refusal)
        opening = _opening(len(block), HEADERS, END_HEADERS | END_STREAM)
        self._out.append(self._headers(opening, block, stream.to_bytes(4, "big")))
        return True

    def _headers(self, opening: bytes, block: bytes, written: bytes) -> bytes:
        """A HEADERS frame. What h2's encoder owes the peer about the size of its table, the first
        block after the peer's word says."""
        encoder: Any = self._h2.encoder
        if encoder.header_table.resized:
            block = encoder.encode([]) + block
            opening = len(block).to_bytes(3, "big") + opening[3:]
        return opening + written + block
