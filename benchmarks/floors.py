"""Bare servers of the doors' protocols, with no lock behind them: what it costs in Python to read a
request and to send an answer, whatever a door does. `python -m benchmarks.floors PROTOCOL` serves
until it is ended, and prints where it listens.

They answer as a door does that grants everything, so that the same conversation is measured.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

from benchmarks.task import say

KEY: Final = b"0123456789abcdef0123456789abcdef"
GRPC_KEY: Final = b"01234567-89ab-cdef-0123-456789abcdef"


class Lines(asyncio.Protocol):
    """Every line comes back as it came."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class Http(asyncio.Protocol):
    """Every request of HTTP/1.1 is parsed and answered with the same bytes."""

    BODY: Final = (b'{"lockname":"n","lockacquired":true,"lockreleased":true,"sessiontoken":"%b",'
                   b'"locked":true,"unlocked":true,"name":"n","key":"%b","session_id":"%b"}'
                   % (KEY, GRPC_KEY, KEY))
    ANSWER: Final = (b"HTTP/1.1 200 OK\r\nServer: floor\r\nContent-Type: application/json\r\n"
                     b"Set-Cookie: ldlm-session=%b; Path=/\r\nContent-Length: %d\r\n\r\n%b"
                     % (KEY, len(BODY), BODY))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        import httptools

        self._transport: Any = transport
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_message_complete(self) -> None:
        self._target = b""
        self._transport.write(self.ANSWER)


class Grpc(asyncio.Protocol):
    """Every unary call is answered with the same message, by way of the library h2."""

    MESSAGE: Final = b"\x08\x01\x12\x01n\x1a\x24" + GRPC_KEY
    DATA: Final = struct.pack(">BI", 0, len(MESSAGE)) + MESSAGE

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        from h2.config import H2Configuration
        from h2.connection import H2Connection

        self._transport: Any = transport
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=False,
                                                validate_inbound_headers=False,
                                                validate_outbound_headers=False))
        self._h2.initiate_connection()
        transport.write(self._h2.data_to_send())  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        from h2.events import DataReceived, StreamEnded

        for event in self._h2.receive_data(data):
            if isinstance(event, DataReceived) and event.flow_controlled_length:
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self._answer(event.stream_id)
        self._transport.write(self._h2.data_to_send())

    def _answer(self, stream: int) -> None:
        self._h2.send_headers(stream, [(b":status", b"200"),
                                       (b"content-type", b"application/grpc")])
        self._h2.send_data(stream, self.DATA)
        self._h2.send_headers(stream, [(b"grpc-status", b"0"), (b"grpc-message", b"")],
                              end_stream=True)


PROTOCOLS: Final[dict[str, Callable[[], asyncio.Protocol]]] = {
    "lines": Lines, "http": Http, "http2": Grpc}


async def serve(protocol: str) -> None:
    """For ever."""
    server = await asyncio.get_running_loop().create_server(PROTOCOLS[protocol], "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    say(f"{host}:{port}")
    await server.serve_forever()


def main() -> None:
    """Serves the protocol that the command line names."""
    import uvloop

    uvloop.run(serve(sys.argv[1]))


if __name__ == "__main__":
    main()
