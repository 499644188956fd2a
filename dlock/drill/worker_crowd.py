"""A client process that does one thing at a time, when it is told: many sessions, or many requests
at once.

Orders come on standard input, a line each, and are answered with a line.

    name    gets every name that it will use                  named
    take    asks for all of its locks, and does not wait      asked
    serve   has every session served once, on another lock    served

When standard input ends, everything is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
import threading
from typing import Any, Final

import dlock.aio
from dlock.drill import records
from dlock.drill.holds import Actor, Following, Process, watch_of
from dlock.drill.load import Turn
from dlock.drill.records import now_ns
from dlock.drill.worker import CONNECT_S, Orders, say_working
from dlock.errors import DlockError

LOOK_S: Final = 0.02
FOR_EVER_NS: Final = 1 << 62
SERVE_S: Final = 120.0
DESCRIPTORS_PER_SESSION: Final = 8


class Crowd:
    """All sessions, with so many locks each."""

    def __init__(self, orders: Orders, process: Process, clients: list[dlock.aio.Client]) -> None:
        self._orders, self._clients = orders, clients
        self._actors = [
            Actor(process, session, number, (session - 1) * orders.actors + number)
            for session in range(1, len(clients) + 1) for number in range(orders.actors)]
        self._locks = [
            clients[actor.session - 1].lock(self._name(actor)) for actor in self._actors]
        self._followed: dict[int, Following] = {}
        self._asking: list[asyncio.Task[None]] = []

    def _name(self, actor: Actor) -> str:
        orders = self._orders
        return f"{orders.prefix}crowd/{orders.client}/{actor.session}/{actor.actor}"

    async def name(self) -> None:
        """Gets the names."""
        async def get(lock: Any) -> None:
            async with lock:
                pass

        await asyncio.gather(*map(get, self._locks))

    async def take(self) -> None:
        """Asks for all locks; they are held later."""
        self._asking = [
            asyncio.create_task(self._take(number)) for number in range(len(self._locks))]
        await asyncio.sleep(0)  # every task has asked
        await asyncio.sleep(0)  # and what was asked has been sent

    async def _take(self, number: int) -> None:
        actor, lock, asked_ns = self._actors[number], self._locks[number], now_ns()
        await lock.acquire()
        turn = Turn(self._name(actor), "atomic", False, None, True, 0.0, FOR_EVER_NS, None, True)
        following = self._followed[number] = Following(actor, turn, lock.token, asked_ns)
        self._look(number, following)  # what is over already is ended by `look`

    async def serve(self) -> None:
        """Has every session served once."""
        async def once(number: int, client: dlock.aio.Client) -> None:
            lock = client.lock(f"{self._orders.prefix}served/{self._orders.client}/{number}")
            if not await lock.acquire(timeout=SERVE_S):
                raise TimeoutError(f"session {number} was not served within {SERVE_S:g} s")
            await lock.release()

        await asyncio.gather(*(once(number, one) for number, one in enumerate(self._clients, 1)))

    async def look(self) -> None:
        """For ever: what became of the holds?"""
        while True:
            for number, following in list(self._followed.items()):
                if not self._look(number, following):
                    await self._end(number)
            await asyncio.sleep(LOOK_S)

    def _look(self, number: int, following: Following) -> bool:
        """False: it is over."""
        lock, client = self._locks[number], self._clients[self._actors[number].session - 1]
        moment_ns, lost = now_ns(), lock.lost.is_set()
        return following.more(lock.remaining, client.session_left, lost, moment_ns)

    async def _end(self, number: int) -> None:
        following = self._followed.pop(number)
        said: DlockError | None = None
        try:
            await self._locks[number].release()
        except DlockError as error:
            said = error
        following.end(said)

    async def give(self) -> None:
        """Gives everything back."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        await asyncio.gather(*map(self._end, list(self._followed)))
        await asyncio.gather(*(client.close() for client in self._clients))


def _allow_descriptors(sessions: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_PER_SESSION * sessions + 256
    if soft != resource.RLIM_INFINITY and wanted > soft:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _run(orders: Orders, process: Process) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(told.put_nowait, line.strip())
        loop.call_soon_threadsafe(told.put_nowait, "")

    clients = await asyncio.gather(*(
        dlock.aio.connect(
            orders.address, timeout=CONNECT_S, name="dlock-drill",
            on_lost=watch_of(process, number, records.TOLD_LOST, "on_lost"),
            on_suspended=watch_of(process, number, records.TOLD_SUSPENDED, "on_suspended"))
        for number in range(1, orders.sessions + 1)))
    crowd = Crowd(orders, process, clients)
    looking = asyncio.create_task(crowd.look())
    threading.Thread(target=read, daemon=True).start()
    say_working()
    answers = {"name": (crowd.name, "named"), "take": (crowd.take, "asked"),
               "serve": (crowd.serve, "served")}
    while order := await told.get():
        act, answer = answers[order]
        await act()
        print(answer, flush=True)
    looking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await looking
    await crowd.give()


def run(orders: Orders, process: Process, ended: threading.Event) -> int:
    """Works until standard input ends."""
    del ended
    _allow_descriptors(orders.sessions)
    asyncio.run(_run(orders, process))
    return 0
