"""One websocket of the glockd door: bytes in, messages out, and the bytes to be sent for them.

wsproto does the handshake and reads the frames. Replies are text frames, whatever the message was;
since the name in a reply may be any bytes, they are put into frames here. Pure: no sockets.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final, NamedTuple

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from dlock.doors.glockd.protocol import LINE_MAX

HEAD_MAX: Final = 64 * 1024  # bytes of a request that asks for a websocket
_HEAD_END: Final = b"\r\n\r\n"
_FIN_TEXT: Final = 0x81
_NOT_WEBSOCKET: Final = b"not websocket protocol"
_BAD_METHOD: Final = b"bad method"
_BAD_VERSION: Final = b"missing or bad WebSocket Version"


class Heard(NamedTuple):
    """What came of some bytes. `opened`: the handshake is done with them; `messages`: those that
    are whole now; `send`: to be sent at once; `farewell`: not None: the connection ends with these
    bytes, after the replies to the messages; `problem`: why, if the peer broke the protocol: a
    counter's name."""

    opened: bool = False
    messages: tuple[bytes, ...] = ()
    send: bytes = b""
    farewell: bytes | None = None
    problem: str | None = None


def reply_frame(reply: bytes, command: bytes) -> bytes:
    """The reply to a command, as a text frame. Text must be UTF-8, and a client gives its
    connection up where it is not. So the bytes of other people's names are replaced where they are
    no text; who has asked with such bytes gets them back as they are."""
    if not reply.isascii() and _is_text(command) and not _is_text(reply):
        reply = reply.decode("utf-8", "replace").encode()
    size = len(reply)
    if size < 126:
        return bytes((_FIN_TEXT, size)) + reply
    if size < 1 << 16:
        return bytes((_FIN_TEXT, 126)) + size.to_bytes(2, "big") + reply
    return bytes((_FIN_TEXT, 127)) + size.to_bytes(8, "big") + reply


def _is_text(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _refusal(status: HTTPStatus, words: bytes) -> bytes:
    """The answer to a request that is no good handshake; the connection ends with it."""
    version = b"Sec-WebSocket-Version: 13\r\n" if words is _BAD_VERSION else b""
    return (
        b"HTTP/1.1 %d %b\r\n%bContent-Type: text/plain\r\nContent-Length: %d\r\n"
        b"Connection: close\r\n\r\n%b"
        % (status, status.phrase.encode(), version, len(words), words)
    )


class Websocket:
    """The server's side of one connection, from its first byte."""

    __slots__ = ("_connection", "_head", "_message", "_over")

    def __init__(self) -> None:
        self._connection = WSConnection(ConnectionType.SERVER)
        self._head: bytearray | None = bytearray()  # of the request; None: the handshake is done
        self._message = bytearray()
        self._over = False

    def feed(self, data: bytes) -> Heard:
        """What came of these bytes. Those after the end are dropped."""
        if self._over:
            return Heard()
        if self._head is None:
            return self._read(data, Heard())
        self._head += data
        head, end, frames = bytes(self._head).partition(_HEAD_END)
        if not end:
            return self._refused(head, None) if len(head) > HEAD_MAX else Heard()
        self._head = None
        try:
            self._connection.receive_data(head + end)
        except (RemoteProtocolError, UnicodeError) as problem:
            return self._refused(head, getattr(problem, "event_hint", None))
        # wsproto takes no frames before it has accepted.
        heard = self._read(b"", Heard(opened=True))
        return self._read(frames, heard) if frames else heard

    def _refused(self, head: bytes, hint: object) -> Heard:
        self._over = True
        words, status = _NOT_WEBSOCKET, HTTPStatus.BAD_REQUEST
        if getattr(hint, "status_code", None) == HTTPStatus.UPGRADE_REQUIRED:
            words = _BAD_VERSION
        elif re.match(rb"(?!GET )[A-Z]+ ", head):
            words, status = _BAD_METHOD, HTTPStatus.METHOD_NOT_ALLOWED
        return Heard(farewell=_refusal(status, words), problem="websocket_refused")

    def _read(self, data: bytes, heard: Heard) -> Heard:
        if data:
            self._connection.receive_data(data)
        for event in self._connection.events():
            heard = self._on(event, heard)
            if heard.farewell is not None:
                self._over = True
                break
        return heard

    def _on(self, event: object, heard: Heard) -> Heard:
        if isinstance(event, (TextMessage, BytesMessage)):
            return self._piece(event, heard)
        if isinstance(event, Ping):
            return heard._replace(send=heard.send + self._send(event.response()))
        if isinstance(event, CloseConnection):
            return self._closed(event, heard)
        if isinstance(event, Request):
            # A browser that offers protocols wants one of them named.
            offered = event.subprotocols[0] if event.subprotocols else None
            return heard._replace(send=self._send(AcceptConnection(subprotocol=offered)))
        return heard

    def _send(self, event: object) -> bytes:
        return bytes(self._connection.send(event))  # type: ignore[arg-type]

    def _piece(self, event: TextMessage | BytesMessage, heard: Heard) -> Heard:
        piece = event.data
        self._message += piece.encode() if isinstance(piece, str) else piece
        if len(self._message) > LINE_MAX:
            close = CloseConnection(CloseReason.MESSAGE_TOO_BIG, "a command is too long")
            return heard._replace(farewell=self._send(close), problem="long_lines")
        if not event.message_finished:
            return heard
        whole = bytes(self._message)
        self._message.clear()
        return heard._replace(messages=(*heard.messages, whole))

    def _closed(self, event: CloseConnection, heard: Heard) -> Heard:
        # wsproto says so too when it met a frame that is none: then the peer did not close.
        broken = self._connection.state is ConnectionState.OPEN
        answer = CloseConnection(event.code, "not a websocket frame") if broken else (
            event.response())
        try:
            return heard._replace(farewell=self._send(answer),
                                  problem="websocket_errors" if broken else None)
        except LocalProtocolError:
            return heard._replace(farewell=b"")
