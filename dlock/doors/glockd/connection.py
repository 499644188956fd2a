"""The connections of the glockd door: what arrives is cut into commands, each is answered in order,
over TCP and unix sockets by lines, over websockets by messages.

A command that waits for the server holds back what stands behind it on the same connection, and
nothing else. A client that does not take its replies is not read from any more, and is hung up on
if it goes on so; one that has said all it will say gets its last replies, and what it holds is free
before they are out.

It knows no lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from dlock.doors.glockd.protocol import Lines
from dlock.doors.glockd.service import Service, Session
from dlock.doors.glockd.websocket import Websocket, reply_frame

OUTPUT_PAUSE: Final = 64 * 1024  # bytes of replies not taken: no further command is carried out
OUTPUT_MAX: Final = 32 * 1024 * 1024  # more than that is not kept for anybody
INPUT_PAUSE: Final = 64 * 1024  # bytes of commands that wait: no more is read
SLOW_S: Final = 60.0  # in which a client must have taken some of its replies
HANDSHAKE_S: Final = 30.0  # for a websocket

_LF: Final = 10

# How a peer is called: its address as the protocol shows it, and a label for operators.
Called = Callable[[asyncio.Transport], "tuple[bytes, str] | None"]


class Talk(asyncio.Protocol):
    """What both kinds of connection do: commands in order, replies in order, an end."""

    __slots__ = ("_asked", "_busy", "_called", "_clear", "_commands", "_done", "_full", "_open",
                 "_over", "_paused", "_service", "_session", "_timer", "_transport", "_waiting",
                 "_write")

    def __init__(self, service: Service, called: Called, talks: set[Talk]) -> None:
        """`talks`: where it is noted while it is open."""
        self._service = service
        self._called = called
        self._open = talks
        self._session: Session | None = None
        self._transport: asyncio.Transport
        self._write: Callable[[bytes], None]
        self._commands: deque[bytes] | None = None  # that nobody could carry out yet
        self._waiting = 0  # their bytes, about
        self._busy = False  # the last command has no reply yet ...
        self._asked = b""  # ... and was this one
        self._full = False  # the client takes no replies
        self._over = False  # no command will come any more
        self._done = False  # the connection ends
        self._paused = False  # nothing is read
        self._clear = True  # the next command can be carried out at once
        self._timer: asyncio.TimerHandle | None = None

    # ---- The transport's calls -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = made = cast(asyncio.Transport, transport)
        self._write = made.write
        made.set_write_buffer_limits(OUTPUT_PAUSE)
        self._open.add(self)
        self._service.counters["connections"] += 1
        self._service.counters["connections_open"] += 1

    def connection_lost(self, problem: Exception | None) -> None:
        """The client is gone."""
        self._finish()
        self._session = None  # which knows this connection
        self._stop_timer()
        self._open.discard(self)
        self._service.counters["connections_open"] -= 1

    def pause_writing(self) -> None:
        """More than OUTPUT_PAUSE bytes wait for the client."""
        self._full = True
        self._clear = False
        waiting = self._transport.get_write_buffer_size()
        if waiting > OUTPUT_MAX:
            self._abort("outputs_over")
        else:
            self._start_timer(SLOW_S, self._look_at_output, waiting)

    def resume_writing(self) -> None:
        """It takes them again."""
        self._full = False
        if self._done:
            return
        self._stop_timer()
        if not self._busy:
            self._go_on(b"")

    def _look_at_output(self, before: int) -> None:
        waiting = self._transport.get_write_buffer_size()
        if waiting >= before:
            self._abort("slow_readers")
        else:
            self._start_timer(SLOW_S, self._look_at_output, waiting)

    # ---- Commands and replies --------------------------------------------------------------------

    def _begin(self) -> None:
        """From now on it is a client."""
        called = self._called(self._transport)
        if called is None:  # it is gone already
            self._finish()
            self._transport.abort()
            return
        address, label = called
        self._session = Session(self._service, address, self._answered, self.hang_up, label)

    def _take(self, commands: list[bytes], size: int) -> None:
        """These came, in `size` bytes; they are carried out in turn."""
        if self._commands is None:
            self._commands = deque()
        self._commands += commands
        self._waiting += size
        if not self._busy and not self._full:
            self._go_on(b"")
        elif self._waiting > INPUT_PAUSE and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _answered(self, reply: bytes) -> None:
        """The reply that was waited for."""
        self._busy = False
        reply = self._framed(reply, self._asked)
        if self._commands or self._over or self._full or self._paused:
            self._go_on(reply)
            return
        self._clear = self._is_clear()
        if reply:
            self._write(reply)

    def _go_on(self, first: bytes) -> None:
        """Carries out what waits, as far as that goes; `first`: to be written before the replies
        to it. All of them go out together."""
        session, commands = self._session, self._commands
        replies, size = [first], len(first)
        while commands and session is not None and not self._full:
            command = commands.popleft()
            reply = session.execute(command)
            if reply is None:
                self._busy = True
                self._asked = command
                break
            reply = self._framed(reply, command)
            replies.append(reply)
            size += len(reply)
            if size > OUTPUT_PAUSE:
                self._write(b"".join(replies))
                replies, size = [], 0
        if size:
            self._write(b"".join(replies))
        if self._done or self._transport.is_closing():
            return
        if not commands:
            self._waiting = 0
            if self._over and not self._busy:
                self._say_farewell()
                return
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
        self._clear = self._is_clear() and not (self._busy or self._full or commands)

    def _is_clear(self) -> bool:
        """Does the next command begin with the next byte?"""
        return False

    def _framed(self, reply: bytes, command: bytes) -> bytes:
        """The bytes that carry a reply to this command."""
        return reply

    # ---- The end ---------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Ends the connection, whatever waits."""
        if not self._done:
            self._say_farewell()

    def _say_farewell(self) -> None:
        """Everything is said: what it holds is free, then the last replies go out."""
        self._finish()
        if not self._transport.is_closing():
            self._transport.close()
            self._start_timer(SLOW_S, self._look_at_output, self._transport.get_write_buffer_size())

    def _abort(self, counter: str) -> None:
        self._service.counters[counter] += 1
        self._finish()
        self._transport.abort()

    def _finish(self) -> None:
        self._done = True
        self._clear = False
        self._commands = None
        if self._session is not None:
            self._session.end()

    def _start_timer(
        self, after_s: float, then: Callable[..., None], argument: int | str
    ) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(after_s, then, argument)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class LineTalk(Talk):
    """Commands by lines: TCP and unix sockets."""

    __slots__ = ("_known", "_lines")

    def __init__(self, service: Service, called: Called, talks: set[Talk]) -> None:
        super().__init__(service, called, talks)
        self._lines = Lines()
        self._known = service.commands

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        """Some bytes; most often they are one line."""
        if self._clear and data.find(_LF) == len(data) - 1:
            session = self._session
            assert session is not None
            command = self._known.get(data)
            reply = session.execute(data) if command is None else command.run(session, command)
            if reply is None:
                self._busy = True
                self._clear = False
            elif reply:
                self._write(reply)
        elif not self._done:
            lines = self._lines.feed(data)
            if self._lines.overlong:
                self._service.counters["long_lines"] += 1
                self._over = True
            self._clear = False
            self._take(lines, len(data))

    def eof_received(self) -> bool:
        """The client has said all; True: it still gets its replies."""
        if not self._done and not self._over:
            self._over = True
            self._clear = False
            self._take(self._lines.end(), 0)
        return True

    def _is_clear(self) -> bool:
        return not self._lines.within


class WebsocketTalk(Talk):
    """Commands by messages; each gets one, maybe empty."""

    __slots__ = ("_farewell", "_websocket")

    def __init__(self, service: Service, called: Called, talks: set[Talk]) -> None:
        super().__init__(service, called, talks)
        self._websocket = Websocket()
        self._farewell = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._start_timer(HANDSHAKE_S, self._abort, "handshakes_late")

    def data_received(self, data: bytes) -> None:
        """Some bytes of the handshake, or of frames."""
        if self._done or self._over:
            return
        heard = self._websocket.feed(data)
        if heard.send:
            self._write(heard.send)
        if heard.opened and heard.problem != "websocket_refused":
            self._stop_timer()
            self._begin()
        if heard.problem is not None:
            self._service.counters[heard.problem] += 1
        if heard.farewell is not None:
            self._farewell = heard.farewell
            self._over = True
        if heard.messages or self._over:
            self._take(list(heard.messages), len(data))

    def eof_received(self) -> bool:
        """The client has gone without a farewell."""
        if not self._done and not self._over:
            self._over = True
            self._take([], 0)
        return True

    def _framed(self, reply: bytes, command: bytes) -> bytes:
        return reply_frame(reply, command)

    def _say_farewell(self) -> None:
        if self._farewell and not self._transport.is_closing():
            self._write(self._farewell)
        super()._say_farewell()
