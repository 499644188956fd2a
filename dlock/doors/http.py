"""The HTTP server of the doors: connections, the order of answers, and what slow, half-closed and
vanished clients get. It knows no door; what a request means is for the `handle` that it is given.

A handler answers at once with a Response; or returns None and calls `request.answer` later; or
returns an awaitable, for which a task is made; the first two cost neither task nor future. One
request of a connection is handled at a time, so answers are in order.

A client that closes its side, or is gone, while its request waits: `request.on_gone` is called, a
task is cancelled. Whoever waits for a lock must give it up then: nobody is there to get it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, cast

from dlock.doors.http_answer import CONTINUE_BYTES, Response, Writer, plain
from dlock.doors.http_parse import Continue, Limits, Message, Reader, RequestError

_log = logging.getLogger(__name__)
_TICK_S: Final = 0.5  # how often is looked for slow clients
_TICKS_A_LIMIT: Final = 4  # the shortest limit is kept as exactly as this
_KEEPALIVE_S: Final = 30  # a machine that is gone is noticed within four of these
_LINGER_BYTES: Final = 4 * 1024 * 1024


class Request(Message):
    """A request, and the way back to who sent it: besides what `Message` has

    `gone`: nobody waits for the answer, as far as can be known. `on_gone`: called once when that
    is found before the answer. `brief`: set by a handler that will answer soon, with or without
    the client; then one that has closed only its sending side still gets the answer.
    """

    __slots__ = ("brief", "connection", "gone", "on_gone")

    def __init__(self, head: bytes, keep_alive: bool) -> None:
        super().__init__(head, keep_alive)
        self.connection = cast(Connection, None)
        self.gone = False
        self.brief = False
        self.on_gone: Callable[[], None] | None = None

    @property
    def peer(self) -> str:
        """"HOST:PORT" of the client."""
        return self.connection.peer

    def answer(self, response: Response) -> None:
        """The answer, once; nothing happens if the connection is gone."""
        self.connection.answer(self, response)


Handler: TypeAlias = Callable[[Request], "Response | Awaitable[Response] | None"]


class HttpServer:
    """Give `protocol` to `listen.accept` (or `loop.create_server`), for any number of listeners."""

    def __init__(
        self, handle: Handler, *, limits: Limits | None = None,
        counters: Counter[str] | None = None, server_name: str | None = None,
        on_closed: Callable[[Connection], object] | None = None,
    ) -> None:
        """`on_closed`: told of every connection that has ended."""
        self.handle = handle
        self.on_closed = on_closed
        self.limits = limits or Limits()
        self.counters: Counter[str] = Counter() if counters is None else counters
        self.writer = Writer(server_name)
        self.tick = 0  # counts the looks for slow clients
        shortest_s = min(self.limits.head_s, self.limits.body_s, self.limits.idle_s,
                         self.limits.ahead_s, self.limits.write_s,
                         self.limits.linger_s)
        self._tick_s = min(_TICK_S, shortest_s / _TICKS_A_LIMIT)
        self._timer: asyncio.TimerHandle | None = None
        self._connections: set[Connection] = set()
        self.closing = False

    def protocol(self) -> asyncio.Protocol:
        """Of a new connection."""
        return Connection(self)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def ticks(self, seconds: float) -> int:
        return max(1, round(seconds / self._tick_s))

    async def close(self, within_s: float = 1.0) -> None:
        """Ends all connections: idle ones at once, others with the answer that is due, if that
        comes in time. Listeners are closed before, by whoever made them."""
        self.closing = True
        for connection in list(self._connections):
            connection.close_soon()
        end_s = time.monotonic() + within_s
        while self._connections and time.monotonic() < end_s:
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)  # the loop tells them
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self.counters["connections"] += 1
        self.counters["connections_open"] += 1  # a door may have other listeners besides
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._look)

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.counters["connections_open"] -= 1
        if self.on_closed is not None:
            self.on_closed(connection)

    def _look(self) -> None:
        self._timer = None
        self.tick += 1
        for connection in list(self._connections):
            connection.look(self.tick)
        if self._connections:
            self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._look)


# Where a connection stands, for those who look how long it has.
_IDLE, _HEAD, _BODY, _BUSY, _LINGERS, _CLOSES = range(6)


class Connection(asyncio.Protocol):
    """One connection of a client, the same for all its requests. `peer`: "HOST:PORT" of the client;
    `kept`: whatever a handler wants to find again with the next request."""

    __slots__ = ("_advancing", "_ended", "_full_since", "_lingered", "_reader", "_request",
                 "_server", "_since", "_stage", "_task", "_transport", "_unread_since", "kept",
                 "peer")

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._reader = Reader(server.limits, Request)
        self._transport = cast(asyncio.Transport, None)
        self._request: Request | None = None  # the one that is not answered yet
        self._task: asyncio.Future[Response] | None = None
        self._stage = _IDLE
        self._since = server.tick  # of this stage
        self._full_since = -1  # the client does not read its answers; -1: it does
        self._unread_since = -1  # the client has sent far ahead; -1: all is read as it comes
        self._advancing = False
        self._ended = False  # the client has closed its sending side
        self._lingered = 0
        self.peer = ""
        self.kept: Any = None

    # ---- What the loop calls ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.peer = _shown(transport.get_extra_info("peername"))
        _watch_peer(transport.get_extra_info("socket"))
        self._server.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._stage >= _LINGERS:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:
                self.abort()
            return
        self._reader.feed(data)
        if self._request is None:
            self._advance()
        if (self._request is not None or self._full_since >= 0) and self._unread_since < 0:
            self._read_no_more_than_allowed()

    def eof_received(self) -> bool:
        """True: what is still to be written will be. With TLS a connection ends at both sides."""
        self._ended = True
        if self._stage >= _LINGERS:
            return False
        request = self._request
        if request is not None:
            if not request.brief:
                self._tell_gone(request)
        elif self._full_since < 0:
            self._end_of_requests()
        return self._transport.can_write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = True
        self._stage = _CLOSES
        request, self._request = self._request, None
        if request is not None:
            self._tell_gone(request)
        self._server.closed(self)

    def pause_writing(self) -> None:
        self._full_since = self._server.tick

    def resume_writing(self) -> None:
        self._full_since = -1
        if self._request is None and self._stage < _LINGERS:
            self._advance()

    # ---- Requests --------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Handles what has come, until an answer is not there yet or the client does not read."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._request is None and self._full_since < 0 and self._stage < _LINGERS:
                found = self._reader.next()
                if found is None:
                    break
                if isinstance(found, Continue):
                    self._send(CONTINUE_BYTES)
                else:
                    self._handle(found)
        except RequestError as refusal:
            self._refuse(refusal)
        finally:
            self._advancing = False
        if self._request is None and self._stage < _LINGERS:
            self._settle()

    def _settle(self) -> None:
        """Nothing more can be done before something else comes."""
        if self._full_since >= 0:
            return
        if self._ended:
            self._end_of_requests()
            return
        reader = self._reader
        stage = _BODY if reader.in_body else _HEAD if reader.ahead_bytes else _IDLE
        if stage != self._stage:
            self._stage = stage
            self._since = self._server.tick
        if self._unread_since >= 0:
            self._read_again()

    def _end_of_requests(self) -> None:
        """The client had closed its sending side, and has got all its answers."""
        if self._reader.ahead_bytes or self._reader.in_body:
            self._refuse(RequestError(400, "http_truncated"))
        else:
            self._close()

    def _handle(self, request: Request) -> None:
        server = self._server
        server.counters["http_requests"] += 1
        request.connection = self
        request.gone = self._ended
        self._request = request
        self._stage = _BUSY
        try:
            result = server.handle(request)
        except Exception:
            _log.exception("http handler failed path=%s", request.path)
            result = self._failed()
        if type(result) is Response:
            if self._request is request:
                self._write(request, result)
        elif result is not None:
            task = self._task = asyncio.ensure_future(cast("Awaitable[Response]", result))
            task.add_done_callback(lambda done: self._task_done(request, done))

    def _failed(self) -> Response:
        self._server.counters["http_failed"] += 1
        return plain(500)

    def _task_done(self, request: Request, task: asyncio.Future[Response]) -> None:
        self._task = None
        if task.cancelled():
            response = plain(503, close=True)
        elif (error := task.exception()) is not None:
            _log.error("http handler failed path=%s", request.path, exc_info=error)
            response = self._failed()
        else:
            response = task.result()
        self.answer(request, response)

    def answer(self, request: Request, response: Response) -> None:
        """As `Request.answer`."""
        if request is self._request:
            self._write(request, response)
            self._advance()

    def _write(self, request: Request, response: Response) -> None:
        self._request = None
        server = self._server
        connection = ""
        if response.close or not request.keep_alive or server.closing:
            connection = "close"
        elif request.version == b"HTTP/1.0":
            connection = "keep-alive"
        try:
            data = server.writer.encode(response, connection, request.method != "HEAD", time.time())
        except ValueError:
            _log.exception("http handler failed path=%s", request.path)
            connection = "close"
            data = server.writer.encode(self._failed(), connection, True, time.time())
        self._send(data)
        if connection == "close":
            self._close()

    def _send(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def _read_no_more_than_allowed(self) -> None:
        if self._reader.ahead_bytes > self._server.limits.ahead_bytes:
            self._unread_since = self._server.tick
            self._transport.pause_reading()

    def _read_again(self) -> None:
        self._unread_since = -1
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # ---- The end ---------------------------------------------------------------------------------

    def _tell_gone(self, request: Request) -> None:
        if not request.gone:
            self._server.counters["http_gone"] += 1
            request.gone = True
        told, request.on_gone = request.on_gone, None
        if told is not None:
            told()
        if self._task is not None:
            self._task.cancel()

    def _refuse(self, refusal: RequestError) -> None:
        """Answers, and closes so that the answer arrives: what the client still sends is read and
        dropped for a while, since closing over unread bytes would reset the connection."""
        server = self._server
        server.counters[refusal.counter] += 1
        self._send(server.writer.encode(plain(refusal.status), "close", True, time.time()))
        transport = self._transport
        if self._ended or transport.is_closing() or not transport.can_write_eof():
            self._close()
            return
        transport.write_eof()
        self._stage = _LINGERS
        self._since = server.tick
        if self._unread_since >= 0:
            self._read_again()

    def _close(self) -> None:
        self._stage = _CLOSES
        self._since = self._server.tick
        self._transport.close()

    def close_soon(self) -> None:
        """The server ends: at once if no answer is due, else with it."""
        if self._request is None:
            self._close()

    def abort(self) -> None:
        """At once."""
        self._stage = _CLOSES
        self._transport.abort()

    def look(self, tick: int) -> None:
        """Is the client too slow? Called once a tick."""
        server, limits = self._server, self._server.limits
        if self._full_since >= 0 and tick - self._full_since > server.ticks(limits.write_s):
            server.counters["http_not_read"] += 1
            self.abort()
            return
        waited = tick - self._since
        stage = self._stage
        if stage == _BUSY:
            # Whether this client is still there cannot be seen behind all that it has sent.
            if 0 <= self._unread_since < tick - server.ticks(limits.ahead_s):
                server.counters["http_too_far_ahead"] += 1
                self.abort()
            return
        if self._full_since >= 0:
            return
        if stage == _IDLE:
            if waited > server.ticks(limits.idle_s):
                server.counters["http_idle"] += 1
                self._close()
        elif stage in (_HEAD, _BODY):
            if waited > server.ticks(limits.head_s if stage == _HEAD else limits.body_s):
                self._refuse(RequestError(408, "http_slow"))
        elif waited > server.ticks(limits.linger_s if stage == _LINGERS else limits.write_s):
            self.abort()


def _shown(peer: Any) -> str:
    """`HOST:PORT`; a unix socket's client has no address."""
    if isinstance(peer, tuple) and len(peer) >= 2:
        host, port = peer[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "unix"


def _watch_peer(sock: Any) -> None:
    """So that a client whose machine is gone is noticed while its request waits."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
