"""The people of a world: tasks that use dlock.aio as its users do, and believe what it tells them.

`live` is the program of one client process. It connects, and some people live in it, each a task
that takes locks of every kind, works under them, and gives them back; that changes its mind in the
middle of a wait; that counts; all of whom may find their client closed under them (sim/deeds.py).
Who is told SUSPENDED stops working until the hold is HELD again, or lost. When the world heals they
finish what they began and give everything back; then each process takes every lock once more, and
leaves.

They run in any event loop: tests/test_sim_people.py has them in an ordinary one, against a server
in a process of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from dlock import FenceGuard, errors
from dlock.aio import Client
from sim import ways
from sim.deeds import Person
from sim.laws import Laws
from sim.scene import ClientNode, LawBroken, Scene, chance_of
from sim.ways import LOCKS, Ways

CONNECT_S: Final = 5.0
STEP_S: Final = 0.1
REST_S: Final = 30.0  # how long it may take until nothing is left, after everybody gave back


class People:
    """What the people of a world share: how they live, and the storage that they write under their
    locks."""

    def __init__(self, world: Scene, laws: Laws) -> None:
        self.world = world
        self.laws = laws
        self.ways = Ways.of(chance_of(world.seed, "ways"), world.session_ttl_ms)
        self.storage = {name: FenceGuard() for name in LOCKS}
        self.lives: dict[str, _Life] = {}
        laws.numbers.bases.update(ways.BASES)

    @property
    def busy(self) -> bool:
        """Has anybody something in his hands yet?"""
        return any(life.node.alive and not life.gave_back for life in self.lives.values())

    @property
    def unfinished(self) -> bool:
        """Has anybody not taken every lock once more?"""
        return any(life.node.alive and not life.served for life in self.lives.values())


async def live(node: ClientNode, people: People) -> None:
    """The program of a client process, until the world has healed and everybody has left."""
    life = people.lives[node.name] = _Life(node, people)
    try:
        await life.live()
    except Exception as problem:
        people.laws.broken_by(problem)
        raise


class _Life:
    """One process, from its start to its end."""

    def __init__(self, node: ClientNode, people: People) -> None:
        self.node = node
        self.people = people
        self.world = people.world
        self.diary = people.laws.diary(node)
        self.rng = chance_of(self.world.seed, f"life of {node.name}")
        self.gave_back = self.served = False

    async def live(self) -> None:
        """See `live`."""
        client = await self._connect()
        while not self.world.healing:
            await self._stay(client)
            if not self.world.healing:
                await asyncio.sleep(self.rng.uniform(0, 1))
                client = await self._connect()
        if client.closed:
            client = await self._connect()
        self.gave_back = True
        await self._until(lambda: not self.people.busy, "somebody does not give back what he has")
        await self._be_served(client)
        await self._until(lambda: not self.people.unfinished, "somebody is not served")
        await self._until(lambda: self.people.laws.at_rest() is None, None)
        await self._leave(client)

    async def _connect(self) -> Client:
        told: dict[str, Any] = {
            "on_lost": self.diary.told_lost, "on_suspended": self.diary.told_suspended}
        while True:
            number = self.diary.begins("connect", int(CONNECT_S * 1e9))
            try:
                client = await self.node.connect(CONNECT_S, **told)
            except errors.ConnectError:
                self.diary.seen["no server in time"] += 1
            else:
                self.world.say(self.node.name, "is connected")
                return client
            finally:
                self.diary.ends(number)

    async def _stay(self, client: Client) -> None:
        """People live here, until the world heals or the client is closed under them."""
        loop = asyncio.get_running_loop()
        count = self.rng.randint(1, self.people.ways.people)
        here = [Person(self.people, self.diary, client, self._chance()) for _ in range(count)]
        for one in here:
            one.company = here
        tasks = [loop.create_task(one.live()) for one in here]
        leaves = self.rng.random() < self.people.ways.leave_share
        until_s = loop.time() + self.rng.expovariate(1 / self.people.ways.stay_s)
        while not all(task.done() for task in tasks):
            if leaves and loop.time() > until_s and not self.world.healing and not client.closed:
                self.diary.seen["left with people inside"] += 1
                await self._leave(client)
            await asyncio.wait(tasks, timeout=STEP_S)
            for task in tasks:
                if task.done():
                    task.result()

    def _chance(self) -> Any:
        return chance_of(self.world.seed, f"{self.node.name}, {self.rng.random()}")

    async def _leave(self, client: Client) -> None:
        """Whatever is held is given up with it."""
        for hold in list(self.diary.holds.values()):
            self.diary.gives_back(hold)
        number = self.diary.begins("close", int(CONNECT_S * 1e9))
        await client.close()
        self.diary.ends(number)
        self.world.say(self.node.name, "has left")

    # ---- When the world has healed ---------------------------------------------------------------

    async def _be_served(self, client: Client) -> None:
        """Everything can be had again, by everybody."""
        for name in LOCKS:
            lock = ways.made(client, name, self.rng)
            number = self.diary.begins(f"the last acquire of {lock!r}", None)
            async with lock:
                self.diary.seen["served in the end"] += 1
            self.diary.ends(number)
        self.served = True

    async def _until(self, condition: Any, otherwise: str | None) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + REST_S + 20 * self.world.session_ttl_ms / 1000
        while not condition():
            if loop.time() > until_s:
                raise LawBroken(f"{self.node.name}: all is well for long, but "
                                f"{otherwise or self.people.laws.at_rest()}")
            await asyncio.sleep(STEP_S)
