"""One HTTP/2 connection of a gRPC server: bytes in, calls and what becomes of them out; answers in,
bytes out. Pure of sockets and clocks. HTTP/2 itself is the package h2.

h2 takes about 100 microseconds a call, several times what everything else takes. So the calls that
a busy client makes over and over, alike but for their number and their message, are not shown to
h2: dlock/doors/ldlm/lane.py knows them by sight, and answers with prepared frames. What belongs to
such a stream is kept from h2, everything else is h2's. To a client both are one server; the tests
compare them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Union

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    PingReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from dlock.doors.ldlm import calls
from dlock.doors.ldlm.calls import PREFIX_BYTES, Refusal, Route
from dlock.doors.ldlm.lane import (
    END_HEADERS,
    FRAME_BYTES_MAX,
    GOAWAY,
    HEAD_BYTES,
    HEADERS,
    RST_STREAM,
    WINDOW_UPDATE,
    Lane,
    number,
)

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAMS_MAX: Final = 10_000  # calls under way on one connection
STREAM_WINDOW_BYTES: Final = 1024 * 1024
CONNECTION_WINDOW_BYTES: Final = 4 * 1024 * 1024
HEADER_LIST_BYTES_MAX: Final = 64 * 1024
KEPT_BYTES_MAX: Final = 64 * 1024 * 1024  # of messages that are not complete, or not sent yet
CANCEL: Final = int(ErrorCodes.CANCEL)


class Call(NamedTuple):
    """A request is complete: `message` without its prefix."""

    stream: int
    route: Route
    message: bytes


class Refused(NamedTuple):
    """A request was refused here already; for those who count."""

    refusal: Refusal


class Gone(NamedTuple):
    """The client does not want this stream any more. It may be one that was answered: then the two
    crossed, and a client that `cancelled` has not seen the answer."""

    stream: int
    cancelled: bool


class Ping(NamedTuple):
    """The client has pinged; it was answered."""


Happened = Union[Call, Refused, Gone, Ping]  # noqa: UP007 - as an alias at run time


class Broken(Exception):  # noqa: N818 - what happened
    """The peer does not keep to HTTP/2: what is to be sent says so (GOAWAY), then it is over."""


class Incoming:
    """A request that h2 knows, until it is answered."""

    __slots__ = ("body", "route")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.body = bytearray()


class Http2:
    """`fast`: with the lane; without it everything goes through h2."""

    def __init__(self, fast: bool = True) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._h2.local_settings = Settings(client=False, initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS_MAX,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            SettingCodes.MAX_HEADER_LIST_SIZE: HEADER_LIST_BYTES_MAX,
        })
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - 65_535)
        self._out: list[bytes] = [self._h2.data_to_send()]
        self._lane = Lane(self._h2, self._out, STREAMS_MAX, fast)
        self._rest = b""  # the begin of a frame
        self._greeted_bytes = 0  # of the preface
        self._in_headers = False  # the next frame continues a header block
        self._open: dict[int, Incoming] = {}
        self._unsent: dict[int, memoryview] = {}  # answers that wait for room in the peer's windows
        self._kept_bytes = 0
        self._happened: list[Happened] = []
        self.ended = False
        self.spoke = False  # HEADERS or DATA were sent; whoever looks sets it back

    # ---- Bytes in --------------------------------------------------------------------------------

    @property
    def greeted(self) -> bool:
        """Has the peer begun as a client of HTTP/2 does?"""
        return self._greeted_bytes == len(PREFACE)

    def receive(self, data: bytes) -> list[Happened]:
        """What these bytes, together with those before them, say. Broken: nothing more may be
        received, and what came in the same piece is not told."""
        self._happened = []
        if not self.greeted:
            wanted = PREFACE[self._greeted_bytes:self._greeted_bytes + len(data)]
            if not data.startswith(wanted):
                raise self._broken(ErrorCodes.PROTOCOL_ERROR, "no client of HTTP/2")
            self._greeted_bytes += len(wanted)
            if not self.greeted:
                return self._happened
            self._give_to_h2(PREFACE)
            data = data[len(wanted):]
        self._frames(self._rest + data if self._rest else data)
        return self._happened

    def _frames(self, data: bytes) -> None:
        """Goes through the frames that are complete; what h2 gets, it gets in whole frames."""
        at = first = 0
        end = len(data)
        while end - at >= HEAD_BYTES:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            after = at + HEAD_BYTES + length
            if length > FRAME_BYTES_MAX:
                raise self._broken(ErrorCodes.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            if after > end:
                break
            kind = data[at + 3]
            if self._in_headers:
                self._in_headers = not data[at + 4] & END_HEADERS
            elif kind in (HEADERS, WINDOW_UPDATE, RST_STREAM, GOAWAY):
                if first < at:
                    self._give_to_h2(data[first:at])
                first = after = self._special(kind, data, at, after)
            at = after
        if first < at:
            self._give_to_h2(data[first:at])
        self._rest = data[at:]

    def _special(self, kind: int, data: bytes, at: int, after: int) -> int:
        """A frame that may be none of h2's; where the next one begins."""
        if kind == HEADERS:
            taken = self._lane.take(data, at, after, len(data), len(self._open))
            if taken is not None:
                after, stream, route, message = taken
                self._happened.append(Call(stream, route, message))
                return after
            frame = data[at:after]
            self._in_headers = not frame[4] & END_HEADERS
            self._lane.learn(frame, lambda: self._give_to_h2(frame))
        elif not self._kept_from_h2(kind, number(data, at + 5), data[at + HEAD_BYTES:after]):
            self._give_to_h2(data[at:after])
        return after

    def _kept_from_h2(self, kind: int, stream: int, content: bytes) -> bool:
        """RST_STREAM and WINDOW_UPDATE of a stream that h2 does not have; and the client's GOAWAY,
        after which its calls go on as before, though not for h2."""
        if kind == GOAWAY:
            return len(content) >= 8 and stream == 0
        if stream in self._open or stream in self._unsent or len(content) != 4:
            return False
        if kind == WINDOW_UPDATE:
            kept = self._lane.room(stream, content)
            if kept and self._unsent and not stream:
                self._send_more(0)
                self._collect()
            return kept
        if not self._lane.was_opened(stream):
            return False
        self._lane.forget(stream)
        self._happened.append(Gone(stream, number(content, 0) == CANCEL))
        return True

    def _give_to_h2(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except H2Error as problem:
            self.ended = True
            self._collect()
            raise Broken(str(problem) or type(problem).__name__) from None
        for event in events:
            self._take_in(event)
        self._collect()

    def _broken(self, code: ErrorCodes, why: str) -> Broken:
        self.go_away(int(code), why)
        return Broken(why)

    def _take_in(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._request(_stream(event), event.headers or ())
        elif isinstance(event, DataReceived):
            self._data(_stream(event), bytes(event.data or b""), event.flow_controlled_length or 0)
        elif isinstance(event, StreamEnded):
            self._complete(_stream(event))
        elif isinstance(event, StreamReset):
            stream = _stream(event)
            self._forget(stream)
            self._happened.append(Gone(stream, event.error_code == CANCEL))
        elif isinstance(event, PingReceived):
            self._happened.append(Ping())
        elif isinstance(event, WindowUpdated):
            self._send_more(_stream(event))
        elif isinstance(event, RemoteSettingsChanged):
            if SettingCodes.HEADER_TABLE_SIZE in event.changed_settings:
                self._use_no_table()
            self._send_more(0)

    def _use_no_table(self) -> None:
        """The peer has spoken of its header table, which is to be answered in the next block. Ours
        use none, and to say so is right whatever it has asked for, and however often; h2 would
        repeat each number, also those that do not hold any more."""
        encoder: Any = self._h2.encoder
        encoder.header_table_size = 0
        encoder.table_size_changes = [0]
        encoder.header_table.resized = True

    # ---- Requests that h2 knows ------------------------------------------------------------------

    def _request(self, stream: int, headers: Iterable[Any]) -> None:
        found = calls.route(headers)
        self._lane.learned = found
        self._open[stream] = Incoming(found)
        if found.refusal is not None:
            self._refuse_here(stream, found.refusal)

    def _data(self, stream: int, data: bytes, length: int) -> None:
        if length:
            self._h2.acknowledge_received_data(length, stream)
        incoming = self._open.get(stream)
        if incoming is None:  # refused already
            return
        body = incoming.body
        body += data
        self._kept_bytes += len(data)
        wanted = number(body, 1) if len(body) >= PREFIX_BYTES else 0
        refusal = calls.oversized(max(wanted, len(body) - PREFIX_BYTES))
        if refusal is None and self._kept_bytes > KEPT_BYTES_MAX:
            refusal = Refusal(calls.RESOURCE_EXHAUSTED, "too many large messages at a time")
        if refusal is not None:
            self._refuse_here(stream, refusal)

    def _complete(self, stream: int) -> None:
        incoming = self._open.get(stream)
        if incoming is None:
            return
        message = calls.unpacked(incoming.body, incoming.route.encoding)
        self._kept_bytes -= len(incoming.body)
        incoming.body = bytearray()
        if isinstance(message, Refusal):
            self._refuse_here(stream, message)
        else:
            self._happened.append(Call(stream, incoming.route, message))

    def _refuse_here(self, stream: int, refusal: Refusal) -> None:
        self.refuse(stream, refusal)
        self._happened.append(Refused(refusal))

    def _forget(self, stream: int) -> bool:
        """Neither its request nor its answer is of interest; False: it had none."""
        incoming = self._open.pop(stream, None)
        unsent = self._unsent.pop(stream, None)
        self._kept_bytes -= len(incoming.body) if incoming is not None else 0
        self._kept_bytes -= len(unsent) if unsent is not None else 0
        return incoming is not None

    # ---- Bytes out -------------------------------------------------------------------------------

    def take_output(self) -> bytes:
        """What is to be sent."""
        out = self._out
        joined = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return joined

    def _collect(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._out.append(data)

    def answer(self, stream: int, message: bytes) -> None:
        """Answers a call. Nothing is sent on a stream that is gone."""
        self.spoke = True
        if self.ended or self._lane.answer(stream, message) or not self._forget(stream):
            return
        self._h2.send_headers(stream, calls.ANSWER_FIELDS)
        framed = b"\0" + len(message).to_bytes(4, "big") + message
        self._kept_bytes += len(framed)
        self._unsent[stream] = memoryview(framed)
        self._send_more(stream)
        self._collect()

    def refuse(self, stream: int, refusal: Refusal) -> None:
        """Ends a call with a status. Nothing is sent on a stream that is gone."""
        self.spoke = True
        if self.ended or self._lane.refuse(stream, refusal) or not self._forget(stream):
            return
        self._h2.send_headers(stream, calls.refusal_fields(refusal), end_stream=True)
        if not self._h2.streams[stream].closed:  # it is still sending, in vain
            self._h2.reset_stream(stream, ErrorCodes.NO_ERROR)
        self._collect()

    def _send_more(self, stream: int) -> None:
        """Sends what there is room for; 0: of all streams."""
        for one in [stream] if stream else list(self._unsent):
            if self._room() <= 0:
                return
            if one in self._unsent:
                self._send_some(one)

    def _room(self) -> int:
        """In the connection's window, without what is set aside."""
        return self._h2.outbound_flow_control_window - self._lane.reserved_bytes

    def _send_some(self, stream: int) -> None:
        h2 = self._h2
        left = self._unsent[stream]
        while left:
            size = min(h2.local_flow_control_window(stream), self._room(), FRAME_BYTES_MAX)
            if size <= 0:
                self._unsent[stream] = left
                return
            h2.send_data(stream, bytes(left[:size]))
            self.spoke = True
            self._kept_bytes -= min(size, len(left))
            left = left[size:]
        del self._unsent[stream]
        h2.send_headers(stream, calls.ANSWER_TRAILER_FIELDS, end_stream=True)

    def ping(self) -> None:
        """Asks the peer for a sign of life."""
        if not self.ended:
            self._h2.ping(b"dlockldl")
            self._collect()

    def go_away(self, code: int, why: str) -> None:
        """Says that this is the end; nothing is sent after it."""
        if not self.ended:
            self.ended = True
            self._h2.close_connection(code, why.encode(), self._h2.highest_inbound_stream_id)
            self._collect()


def _stream(event: Any) -> int:
    stream: int = event.stream_id
    return stream
