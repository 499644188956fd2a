"""A client of HTTP/2 in memory, beside the door's end of a connection: h2 on one side, on the other
what is tested. No sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings

from dlock.doors.ldlm.http2 import Call, Happened, Http2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = b"\0\0\0\4\0\0\0\0\0"


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """One frame, right or wrong."""
    return (len(content).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
            + content)


def framed(message: bytes) -> bytes:
    """A message as gRPC puts it into a body."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def headers(method: str = "Lock", *more: tuple[str, str]) -> list[tuple[str, str]]:
    """Those of a call."""
    return [(":method", "POST"), (":scheme", "http"), (":path", f"/ldlm.LDLM/{method}"),
            (":authority", "localhost"), ("te", "trailers"), ("content-type", "application/grpc"),
            *more]


@dataclass
class Seen:
    """What came back on a stream."""

    http: str = ""
    status: str = ""
    text: str = ""
    body: bytes = b""
    ended: bool = False
    reset: int | None = None


def echo(call: Call) -> bytes:
    """The answer that is given where nothing else is said."""
    return b"<" + call.route.method.encode() + b" " + call.message + b">"


@dataclass
class Pair:
    """Both ends. `answers`: what the door's end says to a call; None: nothing yet."""

    fast: bool = True
    answers: Callable[[Call], bytes | None] = echo
    chunk_bytes: int = 1 << 30
    acknowledges: bool = True
    settings: dict[int, int] = field(default_factory=dict)
    seen: dict[int, Seen] = field(default_factory=dict)
    happened: list[Happened] = field(default_factory=list)
    pongs: int = 0
    goaway: Any = None

    def __post_init__(self) -> None:
        self.server = Http2(self.fast)
        self.client = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.client.local_settings = h2.settings.Settings(
            client=True, initial_values=self.settings)  # type: ignore[arg-type]
        self.client.initiate_connection()
        self.exchange()

    def exchange(self) -> None:
        """Carries bytes until both are silent."""
        while True:
            out, back = self.client.data_to_send(), self.server.take_output()
            if not out and not back:
                return
            for at in range(0, len(out), self.chunk_bytes):
                self._serve(self.server.receive(out[at:at + self.chunk_bytes]))
            for event in self.client.receive_data(back):
                self._see(event)

    def _serve(self, happened: Iterable[Happened]) -> None:
        for one in happened:
            self.happened.append(one)
            if isinstance(one, Call):
                answer = self.answers(one)
                if answer is not None:
                    self.server.answer(one.stream, answer)

    def _see(self, event: Any) -> None:
        seen = self.seen.setdefault(getattr(event, "stream_id", None) or 0, Seen())
        if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
            found = dict(event.headers)
            seen.http = found.get(":status", seen.http)
            seen.status = found.get("grpc-status", seen.status)
            seen.text = found.get("grpc-message", seen.text)
        elif isinstance(event, h2.events.DataReceived):
            seen.body += bytes(event.data)
            if self.acknowledges and event.flow_controlled_length:
                self.client.acknowledge_received_data(event.flow_controlled_length,
                                                      event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            seen.ended = True
        elif isinstance(event, h2.events.StreamReset):
            seen.reset = int(event.error_code)
        elif isinstance(event, h2.events.PingAckReceived):
            self.pongs += 1
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = event

    def begin(self, message: bytes, method: str = "Lock", *more: tuple[str, str]) -> int:
        """Asks, without carrying the bytes; for messages that fit into one frame."""
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, headers(method, *more))
        self.client.send_data(stream, framed(message), end_stream=True)
        return stream

    def call(self, message: bytes, method: str = "Lock", *more: tuple[str, str]) -> Seen:
        """Asks, and what came back."""
        stream = self.begin(message, method, *more)
        self.exchange()
        return self.seen.get(stream, Seen())

    def upload(self, body: bytes, method: str = "Lock") -> Seen:
        """Asks with a large body, as the windows let it."""
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, headers(method))
        at = 0
        while at < len(body) and not self.seen.get(stream, Seen()).ended:
            room = min(self.client.local_flow_control_window(stream), 16_384, len(body) - at)
            assert room > 0, "the door gives room again"
            self.client.send_data(stream, body[at:at + room], end_stream=at + room == len(body))
            at += room
            self.exchange()
        return self.seen[stream]
