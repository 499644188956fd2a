"""Random histories of many sessions on the LDLM service, beside a simple model of what LDLM says.

The model knows who holds and who waits, and is told of nothing but what was asked and answered. A
timer's end is set to now, so that nothing depends on how fast anything goes. A second kind of
history has no model and no order, only what must never be.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from aio_tools import run, until
from ldlm_service_tools import granted, refused, serving_ldlm
from lock_tools import Service, serving

from dlock.doors.ldlm import problems
from dlock.doors.ldlm.problems import Answer
from dlock.doors.ldlm.service import LdlmService, Rules, Session

STEPS = 600
NAMES = {"one": 1, "two": 2, "three": 3}


@pytest.fixture(scope="module")
def server() -> Iterator[Service]:
    with serving() as started:
        yield started


@dataclass
class Wait:
    """A Lock that has not been answered."""

    session: Session
    name: str
    future: asyncio.Future[Answer]


@dataclass
class World:
    """The model: keys by name in the order of their grants, waits by name in the order of their
    coming."""

    service: LdlmService
    server: Service
    chance: random.Random
    outlive: bool
    sessions: list[Session] = field(default_factory=list)
    holders: dict[str, dict[str, Session]] = field(default_factory=dict)
    waits: dict[str, list[Wait]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in NAMES:
            self.holders[name] = {}
            self.waits[name] = []

    def name(self) -> str:
        return self.chance.choice(list(NAMES))

    def session(self) -> Session:
        return self.chance.choice(self.sessions)

    def key(self, name: str) -> str | None:
        held = list(self.holders[name])
        return self.chance.choice(held) if held else None

    def free(self, name: str) -> bool:
        return len(self.holders[name]) < NAMES[name]

    # ---- What can happen -------------------------------------------------------------------------

    async def open(self) -> None:
        if len(self.sessions) < 8:
            self.sessions.append(self.service.open(f"client {len(self.sessions)}"))

    async def try_lock(self) -> None:
        name, session = self.name(), self.session()
        answer = await session.try_lock(name, None, NAMES[name])
        if self.free(name):
            self.holders[name][granted(answer, name)] = session
        else:
            refused(answer, name, None)

    async def lock(self) -> None:
        name, session = self.name(), self.session()
        future = session.lock(name, None, None, NAMES[name])
        if self.free(name):
            self.holders[name][granted(await future, name)] = session
        else:
            self.waits[name].append(Wait(session, name, future))
            await self.settled(name)

    async def unlock(self) -> None:
        name = self.name()
        key = self.key(name)
        if key is None:
            return
        assert await self.session().unlock(name, key) == Answer(True, name)
        del self.holders[name][key]
        await self.handed_over(name)

    async def wrong(self) -> None:
        name = self.name()
        answer = await self.session().unlock(name, "no key")
        assert answer.error == problems.WRONG_KEY
        answer = await self.session().try_lock(name, None, NAMES[name] + 1)
        refused(answer, name, problems.SIZE_MISMATCH)

    async def renew(self) -> None:
        name = self.name()
        key = self.key(name)
        if key is not None:  # nobody here has a timer
            answer = await self.session().renew(name, key, 100)
            assert answer == Answer(False, name, key, problems.NO_TIMER)

    async def expire(self) -> None:
        """A holder whose timer is over by now."""
        name = self.name()
        key = self.key(name)
        if key is None:
            return
        (held,) = (one for one in self.service.table.held() if one.key == key)
        held.deadline_s = self.service.loop.time()
        self.service._wind(held)
        del self.holders[name][key]
        answer = await self.session().unlock(name, key)
        assert answer.error == problems.WRONG_KEY
        await self.handed_over(name)

    async def cancel(self) -> None:
        name = self.name()
        if self.waits[name]:
            wait = self.waits[name].pop(self.chance.randrange(len(self.waits[name])))
            assert wait.future.cancel()
            await self.settled(name)

    async def close(self) -> None:
        session = self.session()
        session.close()
        self.sessions.remove(session)
        for name in NAMES:
            for wait in [one for one in self.waits[name] if one.session is session]:
                self.waits[name].remove(wait)
                assert wait.future.cancelled()
            if not self.outlive:
                self.holders[name] = {key: one for key, one in self.holders[name].items()
                                      if one is not session}
            await self.handed_over(name)
        await self.open()

    async def force(self) -> None:
        name = self.name()
        answer = await self.service.force_unlock(name)
        if self.holders[name]:
            assert answer.ok
            self.holders[name].popitem()
            await self.handed_over(name)
        else:
            assert answer.error == problems.NO_SUCH_LOCK

    # ---- What must be so -------------------------------------------------------------------------

    async def handed_over(self, name: str) -> None:
        """The first in line have what is free, in their order."""
        while self.free(name) and self.waits[name]:
            wait = self.waits[name].pop(0)
            self.holders[name][granted(await wait.future, name)] = wait.session
        await self.settled(name)

    async def settled(self, name: str) -> None:
        """The server agrees on who waits, so that the order of what comes next is known."""
        count = len(self.waits[name])
        await until(lambda: self.server.waiters(f"ldlm:{name}") == count)

    def check(self) -> None:
        assert sorted(self.service.list()) == sorted(
            (name, key, NAMES[name]) for name in NAMES for key in self.holders[name])
        for name in NAMES:
            assert not any(wait.future.done() for wait in self.waits[name])

    async def end(self) -> None:
        for session in self.sessions:
            session.close()
        if self.outlive:
            for name in NAMES:
                for key in self.holders[name]:
                    assert (await self.service.force_unlock(name, key)).ok
        assert self.service.list() == []
        for name in NAMES:
            await until(lambda name=name: self.server.holders(f"ldlm:{name}") == 0)
        assert not self.service.sessions


@pytest.mark.parametrize("outlive", [False, True], ids=["cleared", "outlive"])
@pytest.mark.parametrize("seed", range(6))
def test_a_random_history_is_what_the_model_says(
    server: Service, seed: int, outlive: bool
) -> None:
    async def program() -> None:
        async with serving_ldlm(server, Rules(outlive=outlive)) as service:
            world = World(service, server, random.Random(seed), outlive)
            for _ in range(4):
                await world.open()
            likely = [world.try_lock, world.lock, world.unlock] * 3
            rare = [world.open, world.renew, world.expire, world.cancel, world.close, world.force]
            for name, size in NAMES.items():  # the first who asks says the size
                answer = await world.session().try_lock(name, None, size)
                world.holders[name][granted(answer, name)] = world.sessions[0]
                assert (await world.session().unlock(name, answer.key)).ok
                world.holders[name].clear()
            for _ in range(STEPS):
                await world.chance.choice([*likely, *rare, world.wrong])()
                world.check()
            await world.end()

    run(program())


class Crowd:
    """Sessions that do what they like, all at once. `believed`: keys that somebody was given and
    has not shown to anybody since."""

    def __init__(self, service: LdlmService, seed: int) -> None:
        self.service = service
        self.chance = random.Random(seed)
        self.believed: dict[str, set[str]] = {name: set() for name in NAMES}
        self.grants = 0

    async def live(self, number: int) -> None:
        """One session after the other."""
        for _ in range(6):
            session = self.service.open(f"client {number}")
            mine: list[tuple[str, str]] = []
            for _ in range(self.chance.randint(1, 12)):
                await self.step(session, mine)
            for name, key in mine:  # from now on somebody else may have it
                self.believed[name].discard(key)
            session.close()
            await asyncio.sleep(0)

    async def step(self, session: Session, mine: list[tuple[str, str]]) -> None:
        name = self.chance.choice(list(NAMES))
        size = NAMES[name]
        what = self.chance.random()
        if what < 0.4 and mine:
            name, key = mine.pop(self.chance.randrange(len(mine)))
            self.believed[name].discard(key)
            assert (await session.unlock(name, key)).ok
            return
        if what < 0.7:
            future = session.try_lock(name, None, size)
        else:
            future = session.lock(name, None, None, size)
            # Who holds may wait for who holds; so nobody waits for ever.
            self.service.loop.call_later(self.chance.random() * 0.01, future.cancel)
        try:
            answer = await future
        except asyncio.CancelledError:
            return
        if answer.ok:
            self.grants += 1
            self.believed[name].add(answer.key)
            assert len(self.believed[name]) <= size, "more hold it than it has places"
            mine.append((name, answer.key))


@pytest.mark.parametrize("seed", range(4))
def test_a_crowd_never_holds_more_than_there_is_and_leaves_nothing(
    server: Service, seed: int
) -> None:
    async def program() -> None:
        async with serving_ldlm(server) as service:
            crowd = Crowd(service, seed)
            await asyncio.gather(*(crowd.live(number) for number in range(30)))
            assert crowd.grants
            assert service.list() == []
            assert not service.sessions
            last = service.open("last")
            for name, size in NAMES.items():
                for _ in range(size):
                    granted(await last.lock(name, None, None, size), name)

    run(program())
