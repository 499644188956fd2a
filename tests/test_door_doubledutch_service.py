"""DoubleDutch's locks without HTTP: what the clock says counts, whatever timers do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
from aio_tools import connected, run, until

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")

from dlock import aio
from dlock.aio import keys
from dlock.doors.doubledutch.service import Party, Service
from dlock.doors.doubledutch.tokens import Tokens
from dlock.doors.names import Names
from dlock.server import Server, ServerConfig

LOG = logging.getLogger("test")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0))
    yield one
    one.stop()


class World:
    """A service, and those who ask it."""

    def __init__(self, client: aio.Client, namespace: str) -> None:
        self.counters: Counter[str] = Counter()
        self.client = client
        self.party = Party(client, "somebody")
        self.service = Service(client, Names(namespace), self.counters, LOG,
                               asyncio.get_running_loop(), precision_s=0)

    async def get(self, name: str, timeout: float = 0, lifetime: float = 3600) -> str | None:
        told: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.service.acquire(name, timeout, lifetime, self.party, told.set_result)
        return await asyncio.wait_for(told, 60)

    def break_timers(self) -> None:
        """Nothing is called any more when a lifetime is over."""
        for held in self.service._held.values():
            held.stop_timer()


@contextlib.asynccontextmanager
async def world(server: Server, namespace: str) -> AsyncIterator[World]:
    async with connected(server) as client:
        made = World(client, namespace)
        try:
            yield made
        finally:
            made.service.stop()


def test_a_lock_that_is_over_is_over_whether_its_timer_has_run_or_not(server: Server) -> None:
    async def program() -> None:
        async with world(server, "clock") as one:
            token = await one.get("a", lifetime=2)
            assert token is not None
            assert [lock.token for lock in one.service.locks()] == [token]
            one.break_timers()
            time.sleep(2.01)  # no timer could have run
            assert one.service.locks() == []
            assert one.service.release("a", token) is False
            assert await one.get("a") is not None
            assert one.counters["expired"] == 1

    run(program())


def test_a_loop_that_stood_still_ends_the_lease_before_the_wait(server: Server) -> None:
    async def program() -> None:
        async with world(server, "still") as one:
            for _ in range(20):
                assert await one.get("a", lifetime=0.02) is not None
                waits = asyncio.ensure_future(one.get("a", timeout=0.03, lifetime=0))
                await asyncio.sleep(0.01)
                time.sleep(0.1)  # both are over when the loop goes on
                assert await waits is not None

    run(program())


def test_what_is_cancelled_gets_no_lock_also_not_one_on_its_way(server: Server) -> None:
    async def program() -> None:
        async with world(server, "cancel") as one:
            token = await one.get("a")
            assert token is not None
            never: list[str | None] = []
            waiting = [one.service.acquire("a", 60, 3600, one.party, never.append)
                       for _ in range(10)]
            tries = [one.service.acquire(f"b{number}", 0, 3600, one.party, never.append)
                     for number in range(10)]
            await asyncio.sleep(0.05)
            tries += [one.service.acquire(f"b{number}", 0, 3600, one.party, never.append)
                      for number in range(10)]
            assert one.counters["waiting"] == 10
            assert one.service.release("a", token) is True
            for attempt in (*waiting, *tries):
                attempt.cancel()
            assert one.counters["waiting"] == 0
            assert await one.get("a", timeout=60) is not None
            told = len(never)
            await asyncio.sleep(0.05)
            assert len(never) == told <= 10

    run(program())


def test_another_kind_of_that_name_is_a_lock_that_is_not_acquired(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def program() -> None:
        async with world(server, "kinds") as one:
            hold = await one.client.owner().take(keys.slots(b"kinds:n", 2))
            assert hold is not None
            assert await one.get("n") is None
            assert await one.get("n", timeout=0.01) is None
            assert one.counters["refused_kind"] == 2

    run(program())
    assert "lock not acquired name='n'" in caplog.text


def test_each_acquisition_is_an_owner_of_its_own(server: Server) -> None:
    async def program() -> None:
        async with world(server, "owners") as one:
            assert await one.get("a") is not None
            assert await one.get("b") is not None
            owners = {held.hold.owner.number for held in one.service._held.values()}
            assert len(owners) == 2
            labels = {held.hold.owner.label for held in one.service._held.values()}
            assert labels == {"somebody"}

    run(program())


def test_what_the_closed_had_asked_for_stays_and_its_owner_goes_with_it(server: Server) -> None:
    async def program() -> None:
        async with world(server, "closed") as one:
            token = await one.get("a")
            assert token is not None
            (held,) = one.service._held.values()
            owner = held.hold.owner
            one.party.close()
            assert held.hold.held
            assert one.service.release("a", token) is True
            assert owner.closed

    run(program())


def test_a_stopped_service_refuses_who_waits(server: Server) -> None:
    async def program() -> None:
        async with world(server, "stopped") as one:
            assert await one.get("a") is not None
            waits = asyncio.ensure_future(one.get("a", timeout=60))
            await until(lambda: one.counters["waiting"] == 1)
            one.service.stop()
            assert await waits is None

    run(program())


def test_tokens_are_letters_and_digits_at_random() -> None:
    tokens = Tokens()
    made = [tokens.new() for _ in range(5000)]
    assert len(set(made)) == 5000
    assert {len(one) for one in made} == {32}
    counted = Counter("".join(made))
    assert len(counted) == 62
    assert "".join(counted).isalnum()
    assert "".join(counted).isascii()
    # 160,000 characters, 2581 of each: eight standard deviations of room
    assert all(2581 - 400 < count < 2581 + 400 for count in counted.values())
