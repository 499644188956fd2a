"""One connection of a simulated network: its two ends, and the two directions between them.

Within one direction bytes keep their order and nothing is lost but the tail, as TCP has it. What
befalls connections is decided in sim/network.py; here bytes move.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from random import Random
from typing import TYPE_CHECKING, Final

from sim.kernel import MS_NS, NEVER_NS, SECOND_NS, Actor, Host

if TYPE_CHECKING:
    from sim.network import Network

READ_BYTES: Final = 65536
RETRY_NS: Final = 2 * MS_NS  # after a receiver had no room
RESEND_NS: Final = 200 * MS_NS  # the first retransmission into a silence; later ones double
RESEND_MAX_NS: Final = 4 * SECOND_NS
PIECES_MAX: Final = 4
GAP_NS: Final = 2 * MS_NS  # between two pieces of one write, at most

FIN: Final = b""
RESET: Final = None


class End:
    """The network's end of the socket of one node. `wake`: the actor to wake when something has
    been put into the socket, where no descriptor tells."""

    __slots__ = ("host", "open", "out", "socket", "wake")

    def __init__(self, host: Host, taken: socket.socket, wake: Actor | None) -> None:
        self.host = host
        self.socket = taken
        self.wake = wake
        self.open = True
        self.out: Pipe


class Connection:
    """`cut`: it is broken, whether its ends know it or not; `answered`: an end that sends over it
    afterwards is told; `handed`: the client's socket, until the client gets it."""

    __slots__ = ("answered", "client", "cut", "ends", "handed", "kind", "name", "server")

    def __init__(self, network: Network, number: int, kind: str, client: End, server: End) -> None:
        self.name = f"{kind} connection {number} of {client.host.name}"
        self.kind = kind
        self.client = client
        self.server = server
        self.ends = (client, server)
        self.cut = False
        self.answered = True
        self.handed: socket.socket | None = None
        client.out = Pipe(network, self, client, server)
        server.out = Pipe(network, self, server, client)

    @property
    def over(self) -> bool:
        """Nobody has an end of it any more."""
        return not (self.client.open or self.server.open)


class Pipe(Actor):
    """One direction of a connection. A turn puts what has arrived into the target's socket."""

    __slots__ = ("_attempt_ns", "_network", "_reading", "bytes", "connection", "last_ns", "queue",
                 "source", "target")

    def __init__(self, network: Network, connection: Connection, source: End, target: End) -> None:
        super().__init__(f"{connection.name} to {target.host.name}")
        self._network = network
        self.connection = connection
        self.source = source
        self.target = target
        self.queue: deque[tuple[int, bytes | None]] = deque()
        self.bytes = 0  # under way
        self.last_ns = 0
        self._attempt_ns = RESEND_NS
        self._reading = False

    # ---- Taking in -------------------------------------------------------------------------------

    def pump(self) -> None:
        """The node at the source has written something, or has closed."""
        network = self._network
        try:
            data = self.source.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.stop_reading()
            if self.connection.cut:
                network.close_end(self.connection, self.source)
            else:
                self.put(FIN)
        elif self.connection.cut:
            if self.connection.answered:
                network.reset_later(self.source)
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        network, rng = self._network, self._network.rng
        self.bytes += len(data)
        if len(data) > 1 and rng.random() < network.weather.split:
            cuts = sorted(rng.randrange(1, len(data)) for _ in range(rng.randrange(1, PIECES_MAX)))
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                if start < end:
                    self.put(data[start:end])
                    self.last_ns += rng.randrange(GAP_NS)
        else:
            self.put(data)
        if self.bytes > network.weather.window_bytes:
            self.stop_reading()

    def put(self, item: bytes | None) -> None:
        """Sends it off."""
        kernel = self._network.kernel
        at_ns = kernel.now_ns + self._network.delay_ns()
        self.last_ns = at_ns = max(self.last_ns, at_ns)
        self.queue.append((at_ns, item))
        if len(self.queue) == 1:
            kernel.wake(self, at_ns)

    def read(self) -> None:
        """There is room for more."""
        if not self._reading and self.source.open:
            self._reading = True
            self._network.kernel.watch(self.source.socket.fileno(), self.pump)

    def stop_reading(self) -> None:
        """The sender has to wait, or will send no more."""
        if self._reading:
            self._reading = False
            self._network.kernel.forget(self.source.socket.fileno())

    # ---- Giving out ------------------------------------------------------------------------------

    def turn(self) -> int:
        """Delivers what is due. When the next piece is."""
        network, queue = self._network, self.queue
        now_ns = network.kernel.now_ns
        if network.silent(self.source.host.place, self.target.host.place):
            attempt_ns = self._attempt_ns
            self._attempt_ns = min(2 * attempt_ns, RESEND_MAX_NS)
            return now_ns + attempt_ns
        self._attempt_ns = RESEND_NS
        while queue and queue[0][0] <= now_ns:
            _at_ns, item = queue.popleft()
            if item:
                if not self._deliver(item, now_ns):
                    break
            else:
                self._deliver_end(item)
        return queue[0][0] if queue else NEVER_NS

    def _deliver(self, data: bytes, now_ns: int) -> bool:
        """False: the target takes no more for now."""
        network, target = self._network, self.target
        sent = len(data)
        if target.open:
            try:
                sent = target.socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:  # the node has closed its socket; the sender is told so
                network.reset_later(self.source)
        self.bytes -= sent
        if target.wake is not None:
            network.kernel.wake_soon(target.wake)
        if sent < len(data):
            self.queue.appendleft((now_ns + RETRY_NS, data[sent:]))
            return False
        if not self._reading and self.bytes <= network.weather.window_bytes // 2:
            self._go_on_reading()
        return True

    def _go_on_reading(self) -> None:
        ended = bool(self.queue) and not self.queue[-1][1]
        if not ended and not self.connection.cut:
            self.read()
            if self.source.wake is not None:
                self._network.kernel.wake_soon(self.source.wake)

    def _deliver_end(self, item: bytes | None) -> None:
        network, target = self._network, self.target
        if item is RESET:
            network.close_end(self.connection, target)
        elif target.open:
            with contextlib.suppress(OSError):
                target.socket.shutdown(socket.SHUT_WR)
            if target.wake is not None:
                network.kernel.wake_soon(target.wake)
        if self.source.open and not self.connection.cut:
            network.close_end(self.connection, self.source)  # nobody reads what would come

    # ---- What befalls it -------------------------------------------------------------------------

    def lose_tail(self, rng: Random) -> None:
        """From some piece on, perhaps from the first, nothing arrives."""
        keep = rng.randrange(len(self.queue) + 1)
        while len(self.queue) > keep:
            _at_ns, item = self.queue.pop()
            self.bytes -= len(item) if item else 0

    def stall(self, until_ns: int) -> None:
        """What is under way, and what follows, arrives then at the earliest."""
        self.queue = deque((max(at_ns, until_ns), item) for at_ns, item in self.queue)
        self.last_ns = max(self.last_ns, until_ns)
