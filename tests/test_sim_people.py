"""The people of the simulator in an ordinary event loop, with the laws that need no look into the
server: against `dlock serve` in a process of its own, which is killed and started again."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from failover_tools import Primary

from dlock import _core, aio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sim.diary import Hold
from sim.laws import Laws
from sim.people import People, live

TTL_S = 2.0
LOOK_S = 0.002
PATIENCE_S = 100.0
PATIENCE_NS = 30_000_000_000  # of the laws: a machine may be slow


class Clock:
    """The one of this machine is true here."""

    def true_ns(self, own_ns: int) -> int:
        return own_ns


class Process:
    """A client among others in this process."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.paused, self.alive = False, True
        self.clock = Clock()
        self.address = address
        self.clients: list[aio.Client] = []

    def now_ns(self) -> int:
        return _core.now_ns()

    @property
    def client(self) -> aio.Client | None:
        return next((one for one in self.clients if not one.closed), None)

    async def connect(self, timeout: float, **options: Any) -> aio.Client:
        client = await aio.connect(self.address, timeout=timeout, **options)
        self.clients.append(client)
        return client


def still_believed(hold: Hold) -> bool:
    token, left_ms = hold.look()
    return not hold.over and token == hold.token and left_ms > 0


class RealLaws(Laws):
    """The engine is in another process: it is asked whether anybody holds anything."""

    def __init__(self, world: RealWorld) -> None:
        super().__init__(world)
        self._primary = world.server
        # Threads of the library may have news of a hold since it was looked at.
        self.beliefs.is_believed = still_believed
        self.beliefs.tell_ns = self.late_ns = PATIENCE_NS

    def at_rest(self) -> str | None:
        left = super().at_rest()
        if left != "no primary is ready":
            return left
        with self._primary.admin() as admin:
            busy = [one.name for one in admin.locks(busy_only=True)]
        return f"the server has {busy}" if busy else None


class RealWorld:
    """A world without virtual time."""

    primary = None
    session_ttl_ms = int(TTL_S * 1000)

    def __init__(self, seed: int, server: Primary, clients: int) -> None:
        self.seed = seed
        self.server = server
        self.healing = False
        self.clients = [Process(f"client {number}", server.address) for number in range(clients)]
        self.laws = RealLaws(self)
        self.people = People(self, self.laws)
        self.told: list[str] = []

    @property
    def now_ns(self) -> int:
        return _core.now_ns()

    def say(self, actor: str, text: str) -> None:
        self.told.append(f"{time.monotonic():.6f} {actor}: {text}")

    async def run(self, seconds: float, kills: int) -> None:
        """People live, the server dies so many times, and all comes to its end."""
        loop = asyncio.get_running_loop()
        lives = [loop.create_task(live(node, self.people)) for node in self.clients]
        looking = loop.create_task(self._look())
        for _ in range(kills):
            await asyncio.sleep(seconds / (kills + 1))
            self.server.restart()
        await asyncio.sleep(seconds / (kills + 1))
        self.healing = True
        end_s = loop.time() + PATIENCE_S
        while not all(task.done() for task in lives) and loop.time() < end_s:
            await asyncio.wait([looking, *lives], return_when=asyncio.FIRST_EXCEPTION, timeout=0.1)
            if looking.done():
                looking.result()  # a law is broken
        looking.cancel()
        for task in lives:
            assert task.done(), "somebody does not come to an end"
            task.result()

    async def _look(self) -> None:
        while True:
            for node in self.clients:
                self.laws.after_step(node)
            await asyncio.sleep(LOOK_S)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Primary]:
    started = Primary(tmp_path, ttl_s=TTL_S)
    yield started
    started.kill()


@pytest.mark.parametrize("seed", range(3))
def test_people_live_in_an_ordinary_loop_and_break_no_law(server: Primary, seed: int) -> None:
    world = RealWorld(seed, server, 4)
    try:
        asyncio.run(world.run(4.0, kills=2))
    except BaseException:
        print("\n".join(world.told[-80:]))
        raise
    assert world.laws.seen["served in the end"] == len(world.clients) * 8
    assert world.laws.beliefs.all() == []
