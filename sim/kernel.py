"""Virtual time: who has a turn next, and what clock a node believes in.

Everything that happens in a world is a turn of an actor: one iteration of a client's event loop,
one turn of a plane, one delivery of the network. The kernel takes the one that is due first, gives
it the clock of its node, and looks afterwards which descriptors the turn has made readable. Ties
are broken by the order in which turns were asked for, so a seed plays the same world each time.

It knows nothing of locks, and decides nothing by the real clock.
"""

from __future__ import annotations

import heapq
import select
from collections.abc import Callable
from random import Random
from typing import Final, Protocol

NEVER_NS: Final = 1 << 62
US_NS: Final = 1_000
MS_NS: Final = 1_000_000
SECOND_NS: Final = 1_000_000_000
PPM: Final = 1_000_000
ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT


class NodeClock:
    """The clock of a node: it began somewhere, and goes a little faster or slower than true time.
    `rate_ppm`: by how much, in millionths."""

    def __init__(self, offset_ns: int, rate_ppm: int) -> None:
        self._offset_ns = offset_ns
        self._rate_ppm = rate_ppm

    def read_ns(self, true_ns: int) -> int:
        """What it shows at this true time."""
        return self._offset_ns + true_ns + true_ns * self._rate_ppm // PPM

    def true_ns(self, own_ns: int) -> int:
        """The first true time at which it shows this much."""
        true_ns = (own_ns - self._offset_ns) * PPM // (PPM + self._rate_ppm)
        while self.read_ns(true_ns) < own_ns:
            true_ns += 1
        return true_ns

    def change_rate(self, true_ns: int, rate_ppm: int) -> None:
        """From now on it goes at this rate; what it shows does not jump."""
        shown_ns = self.read_ns(true_ns)
        self._rate_ppm = rate_ppm
        self._offset_ns += shown_ns - self.read_ns(true_ns)


class Host(Protocol):
    """What an actor belongs to: something with a clock that can stand still (SIGSTOP) and end.
    `place`: the machine that it is on, as the network names it."""

    name: str
    place: str
    clock: NodeClock
    paused: bool
    alive: bool

    def now_ns(self) -> int: ...


class Actor:
    """Who has turns. `due_ns`: when the next one is, in true time; `host`: None for the network and
    for what befalls a world; `fd`: a descriptor that is readable when it has something to do, or
    -1."""

    __slots__ = ("due_ns", "fd", "held", "host", "name")

    def __init__(self, name: str, host: Host | None = None, fd: int = -1) -> None:
        self.name = name
        self.host = host
        self.fd = fd
        self.due_ns = NEVER_NS
        self.held = False  # a turn was due while the host was stopped

    def turn(self) -> int:
        """One turn, by the clock of the host. When the next one is due at the latest, in true time;
        NEVER_NS: when something wakes it."""
        raise NotImplementedError


class Kernel:
    """See the file. `now_ns`: true time; `steps`: turns so far."""

    def __init__(self, rng: Random, enter: Callable[[Host | None], None]) -> None:
        """`enter` makes a host's clock the one that is read."""
        self.now_ns = 0
        self.steps = 0
        self.running: Actor | None = None
        self._rng = rng
        self._enter = enter
        self._heap: list[tuple[int, int, Actor]] = []
        self._order = 0
        self._poll = select.epoll()
        self._watched: dict[int, tuple[int, Callable[[], None]]] = {}
        self._watches = 0

    # ---- Whose turn it is ------------------------------------------------------------------------

    def wake(self, actor: Actor, at_ns: int) -> None:
        """Its next turn is then, if not sooner."""
        if at_ns < actor.due_ns:
            actor.due_ns = at_ns
            self._order += 1
            heapq.heappush(self._heap, (at_ns, self._order, actor))

    def wake_soon(self, actor: Actor) -> None:
        """Its next turn is as soon as its machine gets to it."""
        self.wake(actor, self.now_ns + self.latency_ns())

    def latency_ns(self) -> int:
        """How long a thread that could run waits for a core: mostly microseconds, now and then
        milliseconds."""
        chance = self._rng.random()
        if chance < 0.85:
            return 1 * US_NS + int(chance * 40 * US_NS)
        if chance < 0.98:
            return int((chance - 0.84) * 2 * MS_NS)
        return int((chance - 0.97) * 500 * MS_NS)

    def step(self) -> Actor | None:
        """The next turn of anybody; None: nothing is to come any more."""
        heap = self._heap
        while heap:
            at_ns, _order, actor = heapq.heappop(heap)
            if at_ns != actor.due_ns:
                continue  # it was woken sooner, and had that turn
            actor.due_ns = NEVER_NS
            host = actor.host
            if host is not None and (host.paused or not host.alive):
                actor.held = host.alive
                continue
            if at_ns > self.now_ns:
                self.now_ns = at_ns
            self.steps += 1
            self.running = actor
            self._enter(host)
            next_ns = actor.turn()
            self.running = None
            if actor.fd >= 0 and actor.fd in self._watched:
                self._poll.modify(actor.fd, ONCE)
            if next_ns < NEVER_NS:
                self.wake(actor, max(next_ns, self.now_ns + 1))
            self.look()
            return actor
        return None

    def spend(self, ns: int) -> None:
        """Time passes in the middle of a turn, for everybody."""
        self.now_ns += ns
        self._enter(self.running.host if self.running is not None else None)

    def go_on(self, actor: Actor) -> None:
        """Its host runs again."""
        if actor.held:
            actor.held = False
            self.wake_soon(actor)

    # ---- Descriptors -----------------------------------------------------------------------------

    def watch(self, fd: int, found: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Calls `found` after a turn that has left this descriptor ready."""
        self._watches += 1
        self._watched[fd] = (self._watches, found)
        self._poll.register(fd, events)

    def watch_actor(self, actor: Actor) -> None:
        """Wakes it when its descriptor is readable: once, and again after its turn."""
        self.watch(actor.fd, lambda: self.wake_soon(actor), ONCE)

    def forget(self, fd: int) -> None:
        """Before it is closed."""
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def look(self) -> None:
        """Who has something to read, in the order in which the descriptors were told."""
        ready = self._poll.poll(0)
        if not ready:
            return
        watched = self._watched
        found = sorted(watched[fd] for fd, _events in ready if fd in watched)
        for _number, call in found:
            call()

    def close(self) -> None:
        """It is over."""
        self._poll.close()
        self._heap.clear()
