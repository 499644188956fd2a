"""A simulated client process: an event loop with the users of dlock.aio in it, and what the library
has threads for, the keeper and the notices, each as turns of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import dlock.aio
from dlock import _notices
from dlock._core import lib
from dlock.aio._connection import Connection
from sim.kernel import NEVER_NS, SECOND_NS, Actor, NodeClock
from sim.loop import SimLoop
from sim.node import Node

if TYPE_CHECKING:
    from sim.world import World


class _Loop(Actor):
    """The event loop."""

    __slots__ = ("_node",)

    def __init__(self, node: ClientNode) -> None:
        super().__init__(f"{node.name}: loop", node, node.loop.fd)
        self._node = node

    def turn(self) -> int:
        """One iteration."""
        node = self._node
        own_ns = node.loop.run_once()
        node.keeper.poke()
        return NEVER_NS if own_ns == NEVER_NS else node.clock.true_ns(own_ns)


class _Keeper(Actor):
    """What dlk_keeper_run does in its thread."""

    __slots__ = ("_node",)

    def __init__(self, node: ClientNode) -> None:
        super().__init__(f"{node.name}: keeper", node)
        self._node = node

    def turn(self) -> int:
        """Once round all C clients of the process."""
        node = self._node
        again_ns = NEVER_NS
        for connection in node.connections():
            kept = lib.dlk_client_keep(connection.session.client, 0)
            again_ns = min(again_ns, kept.again_ns)
        node.world.kernel.wake_soon(node.notices)
        return NEVER_NS if again_ns >= NEVER_NS else node.clock.true_ns(again_ns)

    def poke(self) -> None:
        """Something may be due sooner than it knew."""
        node = self._node
        kernel = node.world.kernel
        for connection in node.connections():
            at_ns = lib.dlk_client_keep_at_ns(connection.session.client)
            if at_ns < NEVER_NS:
                true_ns = node.clock.true_ns(at_ns)
                if true_ns < self.due_ns:
                    kernel.wake(self, max(true_ns, kernel.now_ns + kernel.latency_ns()))


class _Notices(Actor):
    """What the thread of the notices does."""

    __slots__ = ("_node", "_pulse_ns")

    def __init__(self, node: ClientNode) -> None:
        super().__init__(f"{node.name}: notices", node)
        self._node = node
        self._pulse_ns = 0

    def turn(self) -> int:
        """Brings what there is, and the pulse when it is time."""
        node = self._node
        _notices.deliver()
        connections = node.connections()
        if not connections:
            return NEVER_NS
        now_ns = node.now_ns()
        if now_ns >= self._pulse_ns:
            pulse_s = min(one.session.pulse_s for one in connections)
            self._pulse_ns = now_ns + int(pulse_s * SECOND_NS)
            for connection in connections:
                connection._pulse()
        return node.clock.true_ns(self._pulse_ns)


class ClientNode(Node):
    """See the file. `client`: what its users have opened, for whoever looks at it; `address`: the
    servers, as this node is told them."""

    def __init__(self, world: World, name: str, place: str, clock: NodeClock, address: str) -> None:
        super().__init__(world, name, place, clock)
        self.address = address
        self.client: dlock.aio.Client | None = None
        self.loop = SimLoop(self, world.machine, world.network)
        self.loop.failed = self._failed  # type: ignore[method-assign]
        self._runner = _Loop(self)
        self.loop.waker = self._runner
        self.keeper = _Keeper(self)
        self.notices = _Notices(self)
        self.actors = [self._runner, self.keeper, self.notices]
        self.main: asyncio.Task[None] | None = None

    def start(self, main: Coroutine[Any, Any, None]) -> None:
        """Begins to run this."""
        self.world.enter(self)
        self.main = self.loop.create_task(main)
        self.main.add_done_callback(self._ended)
        self.world.kernel.watch_actor(self._runner)
        self.world.kernel.wake_soon(self._runner)

    def _ended(self, main: asyncio.Task[None]) -> None:
        self.client = None
        if main.cancelled():  # or everybody would wait for it, and wonder at the end
            self.world.blame(f"{self.name}: its program was cancelled, and nobody had asked for it")
            return
        problem = main.exception()
        if problem is not None:
            self.world.blame(f"{self.name}: {problem!r}", problem)
        else:
            self.world.say(self.name, "has come to its end")

    @property
    def done(self) -> bool:
        """Its program has come to its end, or it is dead."""
        return not self.alive or (self.main is not None and self.main.done())

    async def connect(self, timeout: float, **options: Any) -> dlock.aio.Client:
        """dlock.aio.connect, for the users of this process."""
        self.client = await dlock.aio.connect(
            self.address, timeout=timeout, name=self.name, **options)
        return self.client

    def connections(self) -> list[Connection]:
        """What dlock has open in this process."""
        loop = self.loop
        found = (reference() for reference in _notices._notices.listeners.values())
        return [one for one in found if isinstance(one, Connection) and one.loop is loop]

    def _failed(self, context: dict[str, Any]) -> None:
        problem = context.get("exception")
        said = f"{self.name}: {context.get('message')}: {problem!r} {context.get('task', '')}"
        self.world.blame(said, problem)

    def end(self) -> None:
        """Nothing of it runs any more, and nobody is told what concerns it."""
        connections = self.connections()
        super().end()
        for connection in connections:
            _notices.forget(connection.session.number)

    def tear_down(self) -> None:
        """Gives back what it has of the real machine; nothing of it counts any more."""
        for connection in self.connections():
            connection.abandon()
        self.loop.close()
