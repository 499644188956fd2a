"""The control thread: the only place at the server with control sockets.

One turn: wait; confirm the state directory if that is due; carry out what sockets, plane and time
bring. Everything is decided by the registry; this file moves bytes, commands and events, and bounds
what a connection may cost: one message in, OUTPUT_BYTES_MAX out, a number of connections.

What is to be on disk first (Persist...) holds back all that the registry wanted done after it until
the end of the turn: then one write does for all of it. Nothing is answered, here or by the plane,
when session_ttl / 4 have passed since the last look at the state directory that found it to be ours
began (`_confirm`).

A full command ring closes the gate: no socket is read until there is room. Since every command is
answered by an event, the event descriptor says when that is.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final

from dlock import _core
from dlock._core import Command
from dlock.control import messages as m
from dlock.control.codec import encode
from dlock.control.durable import Durable
from dlock.control.log import log_event as log_event
from dlock.control.loop_connection import Connection, peer_text
from dlock.control.loop_durable import Desk
from dlock.control.loop_plane import PlanePort
from dlock.control.loop_views import LentArrays
from dlock.control.registry import Registry
from dlock.control.registry_effects import (
    Answer,
    AnswerStats,
    Claims,
    CloseConnection,
    Effect,
    EpochShown,
    ForgetFormer,
    FreePair,
    Look,
    Note,
    OpenPair,
    Persist,
    ReadFormerRoster,
    TakeHigherEpoch,
)
from dlock.control.state_dir import StateDir

RECEIVE_BYTES: Final = 65536
OUTPUT_BYTES_MAX: Final = 1 << 20  # a client that reads slower than this much behind is closed
ACCEPTS_PER_TURN: Final = 64
ACCEPT_PAUSE_NS: Final = 100_000_000  # after the process ran out of descriptors
EVENTS_PER_TURN: Final = 4096
RING_PAUSE_NS: Final = 50_000_000  # how soon a full command ring is tried again
HELD_BACK_MAX: Final = 16384  # effects that wait for one write
SERVES_PER_TTL: Final = 4  # how long a confirmation lasts: a quarter of session_ttl
CONFIRMS_PER_TTL: Final = 8
NEVER_NS: Final = 1 << 64
MS_NS: Final = 1_000_000
SECOND_NS: Final = 1_000_000_000


class ControlLoop:
    """`run` is the control thread's body, made of `begin`, `turn`, `finish` and `end`; `stop` and
    `stats` are for any thread."""

    def __init__(
        self, listener: socket.socket, plane: PlanePort, registry: Registry,
        state: StateDir | None, session_ttl_ms: int, max_connections: int,
        durable: Durable | None = None,
    ) -> None:
        self._listener = listener
        self._plane, self._registry, self._state = plane, registry, state
        self._max_connections = max_connections
        self._connections: dict[int, Connection] = {}
        self._numbers = 0
        self._desk = Desk(durable, registry.epoch, self, log_event)
        self._commands: deque[Command] = deque()  # what the ring had no room for
        self._lent = LentArrays()
        self._held_back: deque[Effect] = deque()
        self._unwritten = False
        self._draining = False
        self._unfinished: deque[Connection] = deque()  # input that the closed gate cut off
        self._counters: Counter[str] = Counter()
        self._counter_names = _core.counter_names()
        self.stopping = False  # no further turn
        self._session_ttl_ns = session_ttl_ms * MS_NS
        self._confirm_due_ns = self._serve_until_ns = NEVER_NS if state is None else 0
        self.epoch_above: int | None = None  # `run` returned since this one was seen
        self.recovered = False  # the recovery is over, and it serves
        self._accept_again_ns: int | None = None
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        # The sockets of clients have a selector of their own inside the outer one, so that the
        # gate is one descriptor to wait for or not.
        self._outer = selectors.EpollSelector()
        self._clients = selectors.EpollSelector()
        self._gate_open = True
        self._events_left = False
        self._look_again = False  # what a turn has not seen was there before it, perhaps
        listener.setblocking(False)
        if durable is not None:
            durable.wake = self.wake
        for item, handle in (
            (self._wake_receiver, self._woken), (plane.event_fd, self._plane_woke),
            (listener, self._accept), (self._clients, self._serve_clients),
        ):
            self._outer.register(item, selectors.EVENT_READ, handle)

    # ---- Any thread ------------------------------------------------------------------------------

    def stop(self) -> None:
        """Makes `run` return soon."""
        self.stopping = True
        self.wake()

    def wake(self) -> None:
        """Makes a turn begin soon; any thread."""
        with contextlib.suppress(OSError):
            self._wake_sender.send(b"\0")

    def stats(self) -> dict[str, int]:
        """Counters and gauges of the registry, of this loop and of the plane, added up."""
        stats = Counter(self._registry.stats(_core.now_ns()))
        stats.update(dict(self._counters))
        stats.update(dict(zip(self._counter_names, self._plane.counters(), strict=True)))
        stats.update(self._desk.stats())
        return {**stats, "connections": len(self._connections)}

    # ---- The thread ------------------------------------------------------------------------------

    def run(self) -> None:
        """Serves until `stop`, or until a client has seen a higher epoch (`epoch_above`): then the
        listening socket stays open. StateDirError: the server must not go on."""
        try:
            self.begin()
            until_ns = 0
            while not self.stopping:
                until_ns = self.turn(until_ns)
            self.finish()
        finally:
            self.end()

    def begin(self) -> None:
        """Before the first turn. StateDirError, here and from a turn: call `end`, and no more."""
        self._confirm()

    def turn(self, until_ns: int = 0) -> int:
        """Does what there is to do; waits for it until then (0: not at all). Returns when it wants
        to be called again at the latest (0: at once; NEVER_NS: when there is something to do)."""
        ready = self._outer.select(self._timeout_s(until_ns))
        self._look_again = False
        now_ns = _core.now_ns()
        if now_ns >= self._confirm_due_ns:
            self._confirm()
        for key, _mask in ready:
            handle: Callable[[int], None] = key.data
            handle(now_ns)
        self._take_events(now_ns)
        if not self._desk.deliver():
            self._confirm()
        self._carry_out(self._registry.tick(now_ns))
        self._drain()
        self._flush_commands(now_ns)
        self._drain()
        self._accept_again(now_ns)
        return self._next_turn_ns()

    def fileno(self) -> int:
        """Readable while a turn would find something to do."""
        return self._outer.fileno()

    def finish(self) -> None:
        """After the last turn: sends what its connections still take."""
        for connection in list(self._connections.values()):
            self._send(connection)

    def end(self) -> None:
        """Closes everything."""
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
        self._clients.close()
        self._outer.close()
        if self.epoch_above is None:
            self._listener.close()
        self._wake_receiver.close()
        self._wake_sender.close()

    @staticmethod
    def _timeout_s(until_ns: int) -> float | None:
        if until_ns == 0:
            return 0
        return None if until_ns == NEVER_NS else max(0, until_ns - _core.now_ns()) / SECOND_NS

    def _next_turn_ns(self) -> int:
        if self._events_left or self._look_again:
            return 0
        # An event says sooner that there is room for commands.
        room_ns = _core.now_ns() + RING_PAUSE_NS if self._commands else None
        deadlines = (self._confirm_due_ns, self._accept_again_ns, room_ns,
                     self._registry.next_deadline_ns())
        return min(one for one in deadlines if one is not None)

    def _confirm(self) -> None:
        """Every session_ttl / 8, and before an answer when a confirmation is too old: is this still
        the primary of its state directory?"""
        if self._state is not None:
            self._confirmed(self._state.confirm())

    def _confirmed(self, began_ns: int) -> None:
        """A look at the state directory that began then has found it to be ours."""
        self._confirm_due_ns = began_ns + self._session_ttl_ns // CONFIRMS_PER_TTL
        self._serve_until_ns = began_ns + self._session_ttl_ns // SERVES_PER_TTL
        self._plane.send_command(Command(_core.DLK_COMMAND_CONFIRMED, value=began_ns))

    def _woken(self, _now_ns: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_receiver.recv(4096)

    # ---- Commands and events ---------------------------------------------------------------------

    def _plane_woke(self, _now_ns: int) -> None:
        self._plane.event_fd_clear()

    def _take_events(self, now_ns: int) -> None:
        """Every event that waits, but not so many that sockets starve."""
        for _ in range(EVENTS_PER_TURN):
            event = self._plane.take_event()
            if event is None:
                self._events_left = False
                return
            self._carry_out(self._registry.event(event, now_ns, self._lent.take(event)))
        self._events_left = True  # The descriptor will not say so again.

    def _flush_commands(self, now_ns: int) -> None:
        """Sends what the ring has room for, then opens or closes the gate, then takes up the
        input that was cut off."""
        while True:
            while self._commands and self._plane.send_command(self._commands[0]):
                self._commands.popleft()
            if self._commands or not self._unfinished:
                break
            self._take_messages(self._unfinished.popleft(), now_ns)
        if self._gate_open != (not self._commands):
            self._gate_open = not self._commands
            if self._gate_open:
                self._look_again = True
                self._outer.register(self._clients, selectors.EVENT_READ, self._serve_clients)
            else:
                self._outer.unregister(self._clients)

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        """Does it now; or at the end of the turn, if something of this turn is to be on disk
        first."""
        for effect in effects:
            if not isinstance(effect, Persist):
                self._held_back.append(effect)
            elif self._state is not None:
                self._state.apply(effect)
                self._unwritten = True
        if not self._unwritten or len(self._held_back) > HELD_BACK_MAX:
            self._drain()

    def _drain(self) -> None:
        """Writes what is to be on disk, then does the rest in its order."""
        if self._draining:
            return  # Whoever drains comes to it.
        self._draining = True
        while self._held_back or self._unwritten:
            if self._unwritten:
                self._write()
            elif self._held_back:
                self._do(self._held_back.popleft())
        self._draining = False

    def _write(self) -> None:
        self._unwritten = False
        if self._state is not None:
            self._confirmed(self._state.commit())

    def _do(self, effect: Effect) -> None:
        if isinstance(effect, Answer):
            self.answer(effect.connection, effect.request_id, effect.message)
        elif isinstance(effect, Command):
            self._send_command(effect)
        elif isinstance(effect, Look | Claims):
            self._send_command(self._lent.lend(effect))
        elif isinstance(effect, AnswerStats):
            self.answer(effect.connection, effect.request_id, m.StatsReply(self.stats()))
        elif isinstance(effect, CloseConnection):
            self._end(effect)
        elif isinstance(effect, Note):
            log_event(effect.level, effect.event, effect.fields)
        elif isinstance(effect, OpenPair):
            began_ns = _core.now_ns()
            made = self._plane.verbs_pair(effect.peer)
            self._carry_out(
                self._registry.pair_made(effect.number, made, began_ns, _core.now_ns()))
        elif isinstance(effect, FreePair):
            self._plane.verbs_pair_free(effect.pair)
        elif isinstance(effect, EpochShown):
            self._desk.epoch_shown(effect.epoch, effect.incarnation)
        elif isinstance(effect, TakeHigherEpoch):
            self.epoch_above = effect.epoch_above
            self.stopping = True
        elif isinstance(effect, ReadFormerRoster):
            entries = self._state.read_former_again() if self._state is not None else ()
            self._carry_out(self._registry.roster_read(entries, _core.now_ns()))
        elif isinstance(effect, ForgetFormer):
            self.recovered = True
            if self._state is not None:
                self._state.forget_former()

    def _send_command(self, command: Command) -> None:
        if self._commands or not self._plane.send_command(command):
            self._commands.append(command)

    # ---- Connections -----------------------------------------------------------------------------

    def _accept(self, now_ns: int) -> None:
        self._look_again = True  # Others may wait, and these may have said something.
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as problem:
                self._counters["NETWORK_FAIL"] += 1
                log_event(logging.WARNING, "cannot accept", {"problem": str(problem)})
                self._make_room()
                self._outer.unregister(self._listener)
                self._accept_again_ns = now_ns + ACCEPT_PAUSE_NS
                return
            self._welcome(accepted, peer_text(address))

    def _accept_again(self, now_ns: int) -> None:
        if self._accept_again_ns is not None and now_ns >= self._accept_again_ns:
            self._accept_again_ns = None
            self._look_again = True
            self._outer.register(self._listener, selectors.EVENT_READ, self._accept)

    def _welcome(self, accepted: socket.socket, peer: str) -> None:
        if len(self._connections) >= self._max_connections and not self._make_room():
            self._counters["SERVER_NO_RESOURCE"] += 1
            log_event(logging.WARNING, "too many connections",
                      {"peer": peer, "limit": self._max_connections})
            accepted.close()
            return
        accepted.setblocking(False)
        with contextlib.suppress(OSError):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._numbers += 1
        connection = Connection(self._numbers, accepted, peer)
        self._connections[connection.number] = connection
        self._clients.register(accepted, connection.mask, connection)

    def _make_room(self) -> bool:
        """Closes the oldest connection that has no session; False: there is none."""
        for connection in self._connections.values():
            if not self._registry.bound(connection.number):
                self._close(connection, "its place was needed")
                return True
        return False

    def _serve_clients(self, now_ns: int) -> None:
        for key, mask in self._clients.select(0):
            connection: Connection = key.data
            if mask & selectors.EVENT_WRITE and connection.number in self._connections:
                self._send(connection)
            if mask & selectors.EVENT_READ and connection.number in self._connections:
                self._receive(connection, now_ns)

    def _receive(self, connection: Connection, now_ns: int) -> None:
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._look_again |= len(data) == RECEIVE_BYTES
            connection.decoder.feed(data)
            self._take_messages(connection, now_ns)
        else:
            self._close(connection, "closed by the client")

    def _take_messages(self, connection: Connection, now_ns: int) -> None:
        while connection.takes and connection.number in self._connections:
            if self._commands:
                self._unfinished.append(connection)
                return
            try:
                taken = connection.decoder.take()
                if taken is None:
                    return
                request_id, message = taken
                if not isinstance(message, m.Request):
                    raise m.ProtocolError(f"{type(message).__name__} from a client")
            except m.ProtocolError as problem:
                self._counters["BAD_REQUEST"] += 1
                log_event(logging.WARNING, "bad request",
                          {"peer": connection.peer, "reason": str(problem)})
                self._close(connection, "bad request")
                return
            if isinstance(message, m.Durable):
                self._desk.ask(connection.number, request_id, message)
            else:
                self._carry_out(
                    self._registry.request(connection.number, request_id, message, now_ns))

    def answer(self, number: int, request_id: int, message: m.Message) -> None:
        """Sends an answer, if the connection is still there."""
        connection = self._connections.get(number)
        if connection is None:
            return
        if _core.now_ns() > self._serve_until_ns:
            self._confirm()
        connection.output += encode(request_id, message)
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        """Sends what the socket takes; closes a connection that is done for or too far behind."""
        try:
            if connection.output:
                sent = connection.socket.send(connection.output)
                del connection.output[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._close(connection, "broken")
            return
        if len(connection.output) > OUTPUT_BYTES_MAX:
            self._counters["SEND_FAIL"] += 1
            log_event(logging.WARNING, "slow reader", {"peer": connection.peer})
            self._close(connection, "slow reader")
        elif connection.ending and not connection.output:
            self._close(connection, "ended")
        else:
            self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        """Asks for the readiness that is of use now."""
        mask = selectors.EVENT_READ if connection.takes else 0
        mask |= selectors.EVENT_WRITE if connection.output else 0
        if mask != connection.mask and connection.number in self._connections:
            connection.mask = mask
            self._clients.modify(connection.socket, mask, connection)

    def bound(self, connection: int) -> bool:
        """Does this connection speak for a session?"""
        return self._registry.bound(connection)

    def pause(self, connection: int) -> None:
        """Reads nothing more of this connection until `go_on`."""
        one = self._connections[connection]
        one.paused = True
        self._watch(one)

    def go_on(self, connection: int) -> None:
        """Takes up again what this connection has brought."""
        one = self._connections[connection]
        one.paused = False
        self._watch(one)
        self._take_messages(one, _core.now_ns())

    def _end(self, effect: CloseConnection) -> None:
        connection = self._connections.get(effect.connection)
        if connection is not None:
            connection.ending = True
            self._send(connection)

    def _close(self, connection: Connection, reason: str) -> None:
        if self._connections.pop(connection.number, None) is None:
            return
        log_event(logging.DEBUG, "connection closed", {"peer": connection.peer, "reason": reason})
        self._clients.unregister(connection.socket)
        connection.socket.close()
        self._desk.gone(connection.number)
        self._carry_out(self._registry.disconnected(connection.number))
