"""The actors of a client process as tasks of `dlock.aio`."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import dlock.aio
from dlock.drill import records
from dlock.drill.holds import LOOK_S, Actor, Following, Process, watch_of
from dlock.drill.load import Load, Turn
from dlock.drill.records import now_ns
from dlock.drill.worker import CONNECT_S, Orders, say_working
from dlock.drill.worker_threads import COUNT, lock_for
from dlock.errors import DlockError


class Session:
    """One client, and its tasks."""

    def __init__(self, orders: Orders, process: Process, number: int,
                 ended: threading.Event, client: dlock.aio.Client) -> None:
        self._orders, self._process, self._ended = orders, process, ended
        self._number, self._client = number, client
        self._count = client.atomic(orders.prefix + COUNT)

    async def run(self) -> None:
        """All of them, until it is ended."""
        await asyncio.gather(*(self._work(one) for one in range(self._orders.actors)))
        await self._client.close()

    async def _work(self, number: int) -> None:
        orders, session = self._orders, self._number
        actor = Actor(self._process, session, number, (session - 1) * orders.actors + number)
        load = Load(orders.seed, orders.prefix, f"{orders.client}/{session}", number)
        try:
            while not self._ended.is_set():
                if load.adds:
                    await self._add(actor)
                await self._turn(actor, load.next())
                await asyncio.sleep(load.pause_s)
        except BaseException as problem:
            actor.problem(f"it ended with {problem!r}")
            raise

    async def _add(self, actor: Actor) -> None:
        asked_ns = now_ns()
        try:
            outcome: int | DlockError = await self._count.fetch_add(1)
        except DlockError as problem:
            outcome = problem
        actor.added(self._orders.prefix + COUNT, asked_ns, outcome)

    async def _turn(self, actor: Actor, turn: Turn) -> None:
        lock = lock_for(self._client, turn)
        lost = lock.lost
        asked_ns = now_ns()
        try:
            if not await self._taken(lock, turn):
                return
        except DlockError as problem:
            actor.failed("acquire", turn.name, problem, asked_ns)
            return
        following = Following(actor, turn, lock.token, asked_ns)
        try:
            while True:
                moment_ns, was_lost = now_ns(), lost.is_set()
                left_s, session_left_s = lock.remaining, self._client.session_left
                if not following.more(left_s, session_left_s, was_lost, moment_ns) \
                        or self._ended.is_set():
                    break
                await asyncio.sleep(LOOK_S)
        finally:
            said: DlockError | None = None
            try:
                await lock.release()
            except DlockError as error:
                said = error
            following.end(said)

    async def _taken(self, lock: Any, turn: Turn) -> bool:
        if turn.cancelled_s is None:
            return bool(await lock.acquire(timeout=turn.timeout_s))
        try:
            return bool(await asyncio.wait_for(
                lock.acquire(timeout=turn.timeout_s), turn.cancelled_s))
        except asyncio.TimeoutError:
            return False


async def _run(orders: Orders, process: Process, ended: threading.Event) -> None:
    clients = await asyncio.gather(*(
        dlock.aio.connect(
            orders.address, timeout=CONNECT_S, name="dlock-drill",
            on_lost=watch_of(process, number, records.TOLD_LOST, "on_lost"),
            on_suspended=watch_of(process, number, records.TOLD_SUSPENDED, "on_suspended"))
        for number in range(1, orders.sessions + 1)))
    sessions = [
        Session(orders, process, number, ended, client)
        for number, client in enumerate(clients, 1)]
    say_working()
    await asyncio.gather(*(session.run() for session in sessions))


def run(orders: Orders, process: Process, ended: threading.Event) -> int:
    """Works until `ended`."""
    asyncio.run(_run(orders, process, ended))
    return 0
