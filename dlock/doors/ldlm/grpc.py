"""LDLM over gRPC: connections, their calls, and the listener. What the calls mean is for
dlock/doors/ldlm/service.py to say, how they travel for dlock/doors/ldlm/http2.py.

A connection is a session: its end, however it comes, ends what it waits for and releases what it
holds. A call costs no task: the service gives a future of its answer, which is mostly there at
once. What is written in one turn of the loop goes out together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from h2.errors import ErrorCodes

from dlock.doors import listen
from dlock.doors.ldlm import calls, wire
from dlock.doors.ldlm.calls import Refusal, Route
from dlock.doors.ldlm.http2 import Broken, Call, Gone, Http2, Ping
from dlock.doors.ldlm.keepalive import Keepalive, Look, Strikes
from dlock.doors.ldlm.problems import Answer
from dlock.doors.ldlm.request import ShutDown

if TYPE_CHECKING:
    import socket

    from dlock.doors.ldlm.service import LdlmService, Session

GREETING_S: Final = 120.0  # a connection that has not begun by then is none
LINGER_S: Final = 0.5  # for the client to read why its connection ends
LAST_WORDS_S: Final = 1.0  # for what is still to be sent when the door stops
GIVEN_MAX: Final = 1024  # grants of which a late cancellation is looked for
SHUTTING_DOWN: Final = Refusal(calls.UNAVAILABLE, "lock manager is shutdown")
OVERDUE: Final = Refusal(calls.DEADLINE_EXCEEDED, "context deadline exceeded")
FAILED: Final = Refusal(calls.INTERNAL, "the server failed; its log says why")

_log: Final = logging.getLogger("dlock.doors.ldlm")


class Settings(NamedTuple):
    """What the operator has said."""

    password: str | None = None
    keepalive_interval_s: float = 60.0
    keepalive_timeout_s: float = 10.0


# ---- The four calls ------------------------------------------------------------------------------


def _lock(session: Session, asked: wire.Lock) -> asyncio.Future[Answer]:
    return session.lock(*asked)


def _try_lock(session: Session, asked: wire.TryLock) -> asyncio.Future[Answer]:
    return session.try_lock(*asked)


def _unlock(session: Session, asked: wire.Unlock) -> asyncio.Future[Answer]:
    return session.unlock(*asked)


def _renew(session: Session, asked: wire.Renew) -> asyncio.Future[Answer]:
    return session.renew(*asked)


class Method(NamedTuple):
    """From bytes to what is asked, from there to an answer, from there to bytes. `grants`: an
    answer that is `ok` has given out a key."""

    parse: Callable[[bytes], Any]
    ask: Callable[[Session, Any], asyncio.Future[Answer]]
    encode: Callable[[Answer], bytes]
    grants: bool


METHODS: Final = {
    "Lock": Method(wire.lock, _lock, wire.lock_response, True),
    "TryLock": Method(wire.try_lock, _try_lock, wire.lock_response, True),
    "Unlock": Method(wire.unlock, _unlock, wire.unlock_response, False),
    "Renew": Method(wire.renew, _renew, wire.lock_response, False),
}
assert METHODS.keys() == calls.METHODS


class Waiting:
    """A call whose answer is not there yet."""

    __slots__ = ("deadline", "future", "method")

    def __init__(self, method: Method, future: asyncio.Future[Answer]) -> None:
        self.method = method
        self.future = future
        self.deadline: asyncio.TimerHandle | None = None


class Connection(asyncio.Protocol):
    """One connection and its session."""

    def __init__(self, server: GrpcServer) -> None:
        self._server = server
        self._loop = server.loop
        self._http2 = Http2(server.fast)
        self._transport: asyncio.Transport | None = None
        self._session: Session | None = None
        self._waiting: dict[int, Waiting] = {}
        self._given: OrderedDict[int, Answer] = OrderedDict()
        self._strikes = Strikes()
        settings = server.settings
        self._keepalive = Keepalive(settings.keepalive_interval_s, settings.keepalive_timeout_s,
                                    self._loop.time())
        self._timer: asyncio.TimerHandle | None = None
        self._reading = False  # answers are gathered until all is read
        self._parted = False

    # ---- Its life --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)
        server = self._server
        server.opened(self)
        peer = transport.get_extra_info("peername")
        label = listen.host_port(*peer[:2]) if isinstance(peer, tuple) else "unix"
        self._session = server.service.open(label)
        self._session.on_lost = self._lost
        self._timer = self._loop.call_later(GREETING_S, self._greeting_missed)
        transport.write(self._http2.take_output())

    def connection_lost(self, problem: Exception | None) -> None:
        self._http2.ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._end_session()
        self._server.closed(self)

    def _end_session(self) -> None:
        """What it waits for ends, what it holds is released."""
        session, self._session = self._session, None
        waiting, self._waiting = self._waiting, {}
        for call in waiting.values():
            if call.deadline is not None:
                call.deadline.cancel()
            call.future.cancel()
        self._given.clear()
        if session is not None:
            session.close()

    def eof_received(self) -> bool:
        """Who has ended his side has ended the connection."""
        return False

    def pause_writing(self) -> None:
        """The peer does not read: then it is not read from either."""
        if self._transport is not None and not self._parted:
            self._server.counters["grpc_slow_peers"] += 1
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def end(self, code: ErrorCodes, why: str) -> None:
        """Says so to the client, and closes."""
        self._http2.go_away(int(code), why)
        self._flush()
        self._part()

    def _part(self) -> None:
        """The last word is said: the session is over now, the connection when the client has had
        a moment to read. A socket that is closed with something unread in it takes back what was
        sent last."""
        transport = self._transport
        if transport is None or self._parted:
            return
        self._parted = True
        self._end_session()
        if transport.can_write_eof():
            transport.write_eof()
        transport.resume_reading()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LINGER_S, transport.abort)

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()

    def _lost(self) -> None:
        """A hold of this session was lost. Its end is how a client of LDLM hears of that."""
        self._server.counters["grpc_ended_lost_hold"] += 1
        self.end(ErrorCodes.NO_ERROR, "a lock of this session was lost")

    def shut_down(self) -> None:
        """The door stops."""
        waiting, self._waiting = self._waiting, {}
        for stream, call in waiting.items():
            self._drop(call)
            self._http2.refuse(stream, SHUTTING_DOWN)
        self.end(ErrorCodes.NO_ERROR, "the server is shutting down")

    # ---- Keepalive -------------------------------------------------------------------------------

    def _greeting_missed(self) -> None:
        self._server.counters["grpc_silent_connections"] += 1
        self.abort()

    def _look(self) -> None:
        """Is the client still there?"""
        look, next_s = self._keepalive.look(self._loop.time())
        if look is Look.END:
            self._server.counters["grpc_keepalive_ends"] += 1
            _log.info("Connection timed out", extra={"peer": self._label()})
            self.abort()
            return
        if look is Look.PING:
            self._http2.ping()
            self._flush()
        self._timer = self._loop.call_at(next_s, self._look)

    def _label(self) -> str:
        return self._session.label if self._session is not None else ""

    def _greeted(self) -> None:
        """The client has begun; from now on it is asked for signs of life."""
        if self._timer is not None:
            self._timer.cancel()
        self._look()

    # ---- What comes ------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        http2 = self._http2
        if http2.ended or self._session is None:
            return
        self._keepalive.heard_s = self._loop.time()
        begun = http2.greeted
        self._reading = True
        try:
            for happened in http2.receive(data):
                self._take(happened)
            if not begun and http2.greeted:
                self._greeted()
        except Broken as problem:
            self._server.counters["grpc_protocol_errors"] += 1
            _log.info("Connection broken: %s", problem, extra={"peer": self._label()})
        except Exception:
            self._server.counters["grpc_failures"] += 1
            _log.exception("Connection failed", extra={"peer": self._label()})
            http2.go_away(int(ErrorCodes.INTERNAL_ERROR), "the server failed")
        finally:
            self._reading = False
        self._flush()
        if http2.ended:
            self._part()

    def _take(self, happened: Any) -> None:
        if type(happened) is Call:
            self._call(*happened)
        elif type(happened) is Gone:
            self._gone(happened)
        elif type(happened) is Ping:
            self._pinged()
        else:
            self._server.counters["grpc_refused"] += 1

    def _pinged(self) -> None:
        if self._http2.spoke:
            self._http2.spoke = False
            self._strikes.sent()
        if self._strikes.ping(self._loop.time()):
            self._server.counters["grpc_too_many_pings"] += 1
            self._http2.go_away(int(ErrorCodes.ENHANCE_YOUR_CALM), "too_many_pings")

    def _flush(self) -> None:
        """Sends what there is, unless more will be there in a moment."""
        if not self._reading and self._transport is not None:
            output = self._http2.take_output()
            if output:
                self._transport.write(output)

    # ---- Calls -----------------------------------------------------------------------------------

    def _call(self, stream: int, route: Route, message: bytes) -> None:
        server, session = self._server, self._session
        assert session is not None
        server.counters["grpc_calls"] += 1
        method = METHODS[route.method]
        try:
            asked = method.parse(message)
        except wire.Undecodable as problem:
            self._refuse(stream, calls.undecodable(str(problem)))
            return
        refusal = calls.credentials(route.authorization, server.password)
        if refusal is not None:
            server.counters["grpc_bad_credentials"] += 1
            self._refuse(stream, refusal)
            return
        try:
            future = method.ask(session, asked)
        except Exception as problem:
            future = self._loop.create_future()
            future.set_exception(problem)
        call = Waiting(method, future)
        if future.done():
            self._answer(stream, call)
            return
        self._waiting[stream] = call
        future.add_done_callback(partial(self._answered, stream))
        if route.timeout_s is not None:
            call.deadline = self._loop.call_later(route.timeout_s, self._overdue, stream)

    def _answered(self, stream: int, future: asyncio.Future[Answer]) -> None:
        """What was waited for is there."""
        call = self._waiting.get(stream)
        if call is not None and call.future is future:
            del self._waiting[stream]
            if call.deadline is not None:
                call.deadline.cancel()
            self._answer(stream, call)
            self._flush()

    def _answer(self, stream: int, call: Waiting) -> None:
        try:
            answer = call.future.result()
        except (ShutDown, asyncio.CancelledError):
            self._refuse(stream, SHUTTING_DOWN)
            return
        except Exception:
            _log.exception("Call failed", extra={"peer": self._label()})
            self._server.counters["grpc_failures"] += 1
            self._refuse(stream, FAILED)
            return
        if answer.ok and call.method.grants:
            self._given[stream] = answer
            if len(self._given) > GIVEN_MAX:
                self._given.popitem(last=False)
        self._http2.answer(stream, call.method.encode(answer))

    def _refuse(self, stream: int, refusal: Refusal) -> None:
        self._server.counters["grpc_refused"] += 1
        self._http2.refuse(stream, refusal)

    def _overdue(self, stream: int) -> None:
        """The client's own time for this call is over."""
        call = self._waiting.pop(stream, None)
        if call is not None:
            self._drop(call)
            self._refuse(stream, OVERDUE)
            self._flush()

    def _gone(self, gone: Gone) -> None:
        """The client has given this call up. A key that it was sent meanwhile it has not seen."""
        call = self._waiting.pop(gone.stream, None)
        if call is not None:
            self._server.counters["grpc_cancelled"] += 1
            self._drop(call)
        given = self._given.pop(gone.stream, None)
        if given is not None and gone.cancelled:
            self._give_back(given)

    def _drop(self, call: Waiting) -> None:
        """Nobody waits for its answer any more; a key that lies in it is given back."""
        if call.deadline is not None:
            call.deadline.cancel()
        future = call.future
        if future.cancel() or future.cancelled() or future.exception() is not None:
            return
        answer = future.result()
        if answer.ok and call.method.grants:
            self._give_back(answer)

    def _give_back(self, answer: Answer) -> None:
        self._server.counters["grpc_grants_not_seen"] += 1
        if self._session is not None:
            self._session.unlock(answer.name, answer.key)


class GrpcServer:
    """The listener. `fast`: see dlock/doors/ldlm/http2.py. `stop` comes after the service's own, so
    that what is written down of the locks stays."""

    def __init__(self, service: LdlmService, settings: Settings, counters: Counter[str],
                 fast: bool = True) -> None:
        self.service = service
        self.settings = settings
        self.counters = counters
        self.fast = fast
        self.loop = asyncio.get_running_loop()
        self.password = settings.password.encode() if settings.password else None
        self._connections: set[Connection] = set()
        self._listener: asyncio.AbstractServer | None = None
        self._empty = asyncio.Event()

    async def start(self, bound: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accepts from now on, at a socket that listens."""
        wire.classes()
        self._listener = await listen.accept(bound, lambda: Connection(self), tls)

    async def stop(self) -> None:
        """Calls that wait end with UNAVAILABLE, then the connections are closed."""
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.shut_down()
        if self._connections:
            self._empty.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._empty.wait(), LAST_WORDS_S)
        for connection in list(self._connections):
            connection.abort()

    def opened(self, connection: Connection) -> None:
        """A connection was accepted."""
        self._connections.add(connection)
        self.counters["connections"] += 1
        self.counters["connections_open"] += 1

    def closed(self, connection: Connection) -> None:
        """It has ended."""
        self._connections.discard(connection)
        self.counters["connections_open"] -= 1
        if not self._connections:
            self._empty.set()
