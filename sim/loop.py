"""The event loop of a simulated client: asyncio's own, under virtual time, one iteration a turn.

What the loop runs is unchanged; only who waits is different. It never waits itself: it looks at its
descriptors, runs what is ready, and says when it wants to be called again. Connections come from
the network of the world.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
from asyncio import events
from collections.abc import Callable
from typing import Any, Final, cast

from sim.kernel import NEVER_NS, SECOND_NS, Actor, Host
from sim.machine import Machine
from sim.network import NamedSocket, Network

AT_ONCE_NS: Final = 20_000  # a loop with something ready comes again after this
ROUNDING_NS: Final = 1_000  # more than a float loses of a time


class _Selector(selectors.EpollSelector):
    """Looks and never waits."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now."""
        return super().select(0)


class SimLoop(asyncio.SelectorEventLoop):
    """See the file. `failed` is told of what no task has caught."""

    def __init__(self, host: Host, machine: Machine, network: Network) -> None:
        selector = _Selector()
        super().__init__(selector)
        self._host = host
        self._machine = machine
        self._network = network
        self.fd = selector.fileno()
        self.waker: Actor
        self.set_exception_handler(lambda _loop, context: self.failed(context))

    def failed(self, context: dict[str, Any]) -> None:
        """What asyncio would have logged."""
        raise AssertionError(f"nobody handles {context}")

    def time(self) -> float:
        """By the clock of the node."""
        return self._machine.own_ns / 1e9

    def run_once(self) -> int:
        """One iteration. When it wants the next one, by the clock of its node."""
        former = events._get_running_loop()
        events._set_running_loop(self)
        self._thread_id = 1  # it is running
        try:
            self._run_once()  # type: ignore[attr-defined]
        finally:
            self._thread_id = None  # type: ignore[assignment]
            events._set_running_loop(former)
        return self.next_ns()

    def next_ns(self) -> int:
        """When its next iteration is due, by the clock of its node."""
        if self._ready:  # type: ignore[attr-defined]
            return self._machine.own_ns + AT_ONCE_NS
        scheduled = self._scheduled  # type: ignore[attr-defined]
        if not scheduled:
            return NEVER_NS
        return int(scheduled[0].when() * SECOND_NS) + ROUNDING_NS

    def _write_to_self(self) -> None:
        """Somebody outside has added a call."""
        self._network.kernel.wake_soon(self.waker)

    # ---- Connections -----------------------------------------------------------------------------

    async def _connected(self, host: str, port: int) -> NamedSocket:
        wish: asyncio.Future[NamedSocket] = self.create_future()
        place, _, _asker = host.partition(".")  # each process knows it by another name
        self._network.connect(self._host, (place, port), wish, self.waker)
        return await wish

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: str | None = None,
        port: int | None = None, **options: Any,
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """A connection to a server of the world."""
        if options:
            raise AssertionError(f"a simulated connection has no options {options}")
        connected = await self._connected(cast(str, host), cast(int, port))
        try:
            return await super().create_connection(protocol_factory, sock=connected)
        except BaseException:
            connected.close()
            raise

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """The socket becomes one that is connected to a server of the world."""
        connected = await self._connected(address[0], address[1])
        os.dup2(connected.fileno(), sock.fileno(), inheritable=False)
        connected.close()

    async def getaddrinfo(self, host: Any, port: Any, **_options: Any) -> list[Any]:
        """Names are addresses here."""
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
