"""The network of a world: connections between nodes, carried by hand.

A node has real sockets (AF_UNIX, so that what is written is there at once). The other end of each
is the network's, which takes out what a node has written and puts it, later, into the socket of
the peer. In between it does what networks do: it delays, cuts streams into pieces anywhere, lets
one connection overtake another, falls silent in one direction or in both, and loses the tail of a
connection that breaks. Requests are repeated and reordered because clients come back over new
connections while the bytes of old ones are still under way.

It looks at no byte that it carries.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from sim.kernel import MS_NS, NEVER_NS, SECOND_NS, US_NS, Actor, Host, Kernel
from sim.pipe import RESET, Connection, End

KNOCK_NS: Final = SECOND_NS  # the first repetition of a request for a connection; later ones double
KNOCK_MAX_NS: Final = 4 * SECOND_NS
HEAL_NS: Final = 500 * MS_NS  # after a silence, until everything that waited has been sent again


@dataclass(frozen=True)
class Weather:
    """How the network of a world is. `delay_us`: the usual one-way delay; `slow`: how often a piece
    takes up to `slow_ms` more; `split`: how often a write arrives in pieces; `window_bytes`: how
    much one direction of a connection takes in before its sender has to wait."""

    delay_us: int = 50
    slow: float = 0.02
    slow_ms: int = 30
    split: float = 0.1
    window_bytes: int = 1 << 18


class NamedSocket(socket.socket):
    """A socket that says of its peer what a TCP one would."""

    peer: tuple[str, int] = ("", 0)

    def getpeername(self) -> tuple[str, int]:
        """Host and port of the server."""
        return self.peer


Wish = asyncio.Future[NamedSocket]


@dataclass(frozen=True)
class Listener:
    """A server's listening socket, as the network knows it. `wake`: the actor that accepts, where
    no descriptor tells it."""

    host: Host
    address: str | bytes
    kind: str
    wake: Actor | None


class Dial(Actor):
    """A client's request for a connection: on its way to the server, then the answer on its way
    back."""

    __slots__ = ("_answer", "_attempt_ns", "_caller", "_network", "_peer", "_waker", "_wish")

    def __init__(self, network: Network, caller: Host, peer: tuple[str, int], wish: Wish,
                 waker: Actor) -> None:
        super().__init__(f"{caller.name} connects")
        self._network = network
        self._caller = caller
        self._peer = peer
        self._wish = wish
        self._waker = waker
        self._attempt_ns = KNOCK_NS
        self._answer: Connection | OSError | None = None

    def turn(self) -> int:
        """One way of it. When it is to be tried again."""
        network = self._network
        places = (self._caller.place, self._peer[0])
        back = self._answer is not None
        silent = network.silent(*reversed(places)) if back else network.silent(*places)
        if silent or (not back and not self._knock()):
            attempt_ns = self._attempt_ns
            self._attempt_ns = min(2 * attempt_ns, KNOCK_MAX_NS)
            given_up = self._wish.done() and not back
            return NEVER_NS if given_up else network.kernel.now_ns + attempt_ns
        if not back:
            return network.kernel.now_ns + network.delay_ns()
        self._arrive()
        return NEVER_NS

    def _knock(self) -> bool:
        """At the server. False: nobody answers at all."""
        network = self._network
        listener = network.listener_at(self._peer)
        if listener is None:
            if network.is_down(self._peer[0]):
                return False
            self._answer = ConnectionRefusedError(f"nobody listens at {self._peer}")
            return True
        arrived = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            arrived.connect(listener.address)
        except OSError:
            arrived.close()
            return False
        self._answer = network.join(self._caller, listener, arrived)
        return True

    def _arrive(self) -> None:
        """At the client, which may have given up by now."""
        answer = self._answer
        if isinstance(answer, Connection):
            handed, answer.handed = answer.handed, None
            if handed is None:  # the server has reset it before the client heard of it
                if not self._wish.done():
                    self._wish.set_exception(ConnectionResetError(f"reset by {self._peer}"))
            elif self._wish.done() or not self._caller.alive:
                handed.close()
            else:
                own = NamedSocket(fileno=handed.detach())
                own.peer = self._peer
                self._wish.set_result(own)
        elif answer is not None and not self._wish.done():
            self._wish.set_exception(answer)
        self._network.kernel.wake_soon(self._waker)


class Network:
    """See the file. `connections`: those of which somebody has an end."""

    def __init__(self, kernel: Kernel, rng: Random, weather: Weather) -> None:
        self.kernel = kernel
        self.rng = rng
        self.weather = weather
        self.connections: dict[Connection, None] = {}
        self._listeners: dict[tuple[str, int], Listener] = {}
        self._silences: dict[tuple[str, str], None] = {}
        self._down: dict[str, None] = {}
        self._count = 0

    def delay_ns(self) -> int:
        """How long the next piece is under way."""
        weather, chance = self.weather, self.rng.random()
        delay_ns = int(weather.delay_us * (0.5 + chance) * US_NS)
        if chance < weather.slow:
            delay_ns += self.rng.randrange(weather.slow_ms * MS_NS)
        return delay_ns

    # ---- Servers ---------------------------------------------------------------------------------

    def listen(self, host: Host, port: int, listening: socket.socket, kind: str,
               wake: Actor | None = None) -> None:
        """Who connects to this port at the place of this host gets to this socket."""
        address = listening.getsockname()
        self._listeners[host.place, port] = Listener(host, address, kind, wake)

    def listener_at(self, peer: tuple[str, int]) -> Listener | None:
        """Who listens there now."""
        listener = self._listeners.get(peer)
        return listener if listener is not None and listener.host.alive else None

    # ---- Connections -----------------------------------------------------------------------------

    def connect(self, caller: Host, peer: tuple[str, int], wish: Wish, waker: Actor) -> None:
        """Asks for a connection; the wish gets a connected socket, or OSError."""
        dial = Dial(self, caller, peer, wish, waker)
        self.kernel.wake(dial, self.kernel.now_ns + self.delay_ns())

    def join(self, caller: Host, listener: Listener, arrived: socket.socket) -> Connection:
        """A connection that the server has, and the client will."""
        self._count += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        theirs.setblocking(False)
        connection = Connection(self, self._count, listener.kind, End(caller, ours, None),
                                End(listener.host, arrived, listener.wake))
        connection.handed = theirs
        self.connections[connection] = None
        for end in connection.ends:
            end.out.read()
        if listener.wake is not None:
            self.kernel.wake_soon(listener.wake)
        return connection

    def close_end(self, connection: Connection, end: End) -> None:
        """The connection ends for this node, which sees it when it reads."""
        if end.open:
            end.out.stop_reading()
            end.open = False
            end.socket.close()
            if end.wake is not None:
                self.kernel.wake_soon(end.wake)
        if connection.over:
            if connection.handed is not None:
                connection.handed.close()
                connection.handed = None
            self.connections.pop(connection, None)

    def reset_later(self, end: End) -> None:
        """The peer says that it knows no such connection."""
        back = end.out.target.out
        back.put(RESET)

    # ---- What befalls it -------------------------------------------------------------------------

    def silent(self, origin: str, target: str) -> bool:
        """Nothing gets from here to there, for now."""
        return (origin, target) in self._silences

    def is_down(self, place: str) -> bool:
        """There is no machine."""
        return place in self._down

    def set_down(self, place: str, down: bool) -> None:
        """A machine stops answering, or is there again."""
        if down:
            self._down[place] = None
        else:
            self._down.pop(place, None)

    def silence(self, origin: str, target: str) -> None:
        """From now on nothing gets from here to there."""
        self._silences[origin, target] = None

    def heal(self) -> None:
        """Everything gets everywhere again; what waited is sent again soon."""
        self._silences.clear()
        for connection in self.connections:
            for end in connection.ends:
                if end.out.queue:
                    self.kernel.wake(end.out, self.kernel.now_ns + self.rng.randrange(HEAL_NS))

    def of(self, host: Host) -> Iterator[Connection]:
        """The connections of a node."""
        for connection in list(self.connections):
            if any(end.host is host for end in connection.ends):
                yield connection

    def cut(self, connection: Connection, told: tuple[bool, bool], answered: bool) -> None:
        """It breaks: the tail of what is under way is lost. `told`: does its client, its server
        hear so soon? `answered`: is one that was not told, when it sends next?"""
        connection.cut = True
        connection.answered = answered
        for end, hears in zip(connection.ends, told, strict=True):
            end.out.lose_tail(self.rng)
            if hears:
                self.reset_later(end)

    def stall(self, connection: Connection, until_ns: int) -> None:
        """Nothing of it arrives before that, in one direction or in both."""
        for end in self.rng.choice((connection.ends, connection.ends[:1], connection.ends[1:])):
            end.out.stall(until_ns)

    def process_died(self, host: Host, silently: bool) -> None:
        """The sockets of a node are closed by its machine; `silently`: the machine is gone too.
        What it wrote last may be lost: then it died before it had written it."""
        for connection in self.of(host):
            for end in connection.ends:
                if end.host is host:
                    end.out.lose_tail(self.rng)
                    if silently:
                        connection.cut = True
                        connection.answered = self.rng.random() < 0.5
                        self.close_end(connection, end)
                    else:
                        self._closed_by_machine(connection, end)

    def _closed_by_machine(self, connection: Connection, end: End) -> None:
        """The peer is told, and what it still sends finds nobody."""
        end.out.stop_reading()
        end.out.put(self.rng.choice((b"", RESET)))
        end.out.target.out.lose_tail(self.rng)
        self.close_end(connection, end)

    def close(self) -> None:
        """It is over."""
        for connection in list(self.connections):
            for end in connection.ends:
                self.close_end(connection, end)
