"""A role: at most one client of a service has it, and who connects with it ends the former one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from aio_tools import run, until
from failover_tools import Primary
from lock_tools import Service, fresh_name, serving

import dlock
from dlock import aio, errors
from dlock.aio import FOREVER, Hold, keys
from dlock.control.link import LinkError
from dlock.control.messages import ClientDeinit

ROLE = "door:test:site"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as started:
        yield started


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    started = Primary(tmp_path, ttl_s=30.0)
    yield started
    started.kill()


async def take(client: aio.Client, name: str) -> Hold:
    hold = await client.owner().take(keys.exclusive(name))
    assert hold is not None
    return hold


async def forget(*clients: aio.Client) -> None:
    """They end without a word to the server, as those of a killed process do."""
    for client in clients:
        connection = client._connection
        connection._here = None
        connection._end()


def test_the_one_that_comes_has_all_that_the_former_one_held(service: Service) -> None:
    async def program() -> None:
        told: list[object] = []
        superseded = asyncio.Event()
        former = await aio.connect(service.address, role=ROLE, on_superseded=superseded.set)
        name, waited = fresh_name(), fresh_name()
        hold, plain = await take(former, name), former.lock(fresh_name(), on_lost=told.append)
        hold.on_lost = told.append
        await plain.acquire(lease=3600)
        async with aio.connect(service.address) as other:
            in_the_way = await take(other, waited)
            former.owner().ask(keys.exclusive(waited), told.append, FOREVER)
            waiting = asyncio.ensure_future(former.lock(waited).acquire())
            await until(lambda: service.waiters(waited) == 2)
            async with aio.connect(service.address, role=ROLE) as client:
                assert (await take(client, name)).token > hold.token
                lock = client.lock(plain.name)
                assert await lock.acquire(blocking=False)
                await lock.release()
                await superseded.wait()
                assert former.superseded
                assert former.closed
                assert not client.superseded
                with pytest.raises(errors.Superseded):
                    await waiting
                await until(lambda: len(told) == 3)
                assert {type(one) for one in told} == {Hold, aio.Lock, errors.Superseded}
                assert not hold.held
                assert not plain.held
                assert await hold.settled() is False
                with pytest.raises(errors.Superseded):
                    former.owner()
                await former.close()
                assert in_the_way.held

    run(program())


def test_operators_see_the_role(service: Service) -> None:
    async def program() -> None:
        async with aio.connect(service.address, role="seen"):
            roles = [one.info.get("role") for one in service.admin.clients()]
            assert roles.count("seen") == 1

    run(program())


@pytest.mark.parametrize("role", ["x" * 129, "two\nlines"])
def test_a_role_is_a_line_of_text(role: str) -> None:
    with pytest.raises(ValueError, match="printable text"):
        aio.connect("127.0.0.1:1", role=role)


def test_an_ask_of_an_owner_that_was_superseded_says_so(service: Service) -> None:
    async def program() -> None:
        former = await aio.connect(service.address, role=ROLE)
        owner = former.owner()
        told: list[object] = []
        async with aio.connect(service.address, role=ROLE):
            await until(lambda: former.superseded)
            owner.ask(keys.exclusive("x"), told.append)
            await until(lambda: bool(told))
            assert isinstance(told[0], errors.Superseded)

    run(program())


def test_one_whose_session_has_ended_otherwise_enters_again_with_its_role(
    service: Service,
) -> None:
    async def program() -> None:
        client = await aio.connect(service.address, role=ROLE)
        hold, lost = await take(client, fresh_name()), asyncio.Event()
        hold.on_lost = lambda _hold: lost.set()
        connection = client._connection
        session = connection.session
        with contextlib.suppress(LinkError):  # the data link ends first
            await connection._driver.exchange([ClientDeinit()], 20)
        await lost.wait()
        await until(lambda: connection.session is not session and connection.settled)
        assert not client.superseded
        roles = [one.info.get("role") for one in service.admin.clients()]
        assert roles.count(ROLE) == 1
        async with aio.connect(service.address, role=ROLE):
            await until(lambda: client.superseded)

    run(program())


def test_the_predecessor_of_a_dead_process_is_not_waited_for(primary: Primary) -> None:
    async def program() -> None:
        former = await aio.connect(primary.address, role=ROLE)
        hold = await take(former, "held")
        await forget(former)
        primary.restart()
        async with aio.connect(primary.address, role=ROLE, timeout=25) as client:
            assert (await take(client, "held")).token > hold.token

    run(program(), 60)


def test_a_role_survives_the_primary(primary: Primary) -> None:
    async def program() -> None:
        former = await aio.connect(primary.address, role=ROLE)
        hold = await take(former, "held")
        primary.restart()
        connection = former._connection
        await until(lambda: connection.session.home[0] == 2 and connection.settled)
        assert hold.held
        async with aio.connect(primary.address, role=ROLE, timeout=25) as client:
            await until(lambda: former.superseded)
            assert (await take(client, "held")).token > hold.token

    run(program(), 60)


def test_one_that_is_ended_while_its_primary_recovers_does_not_come_back(
    primary: Primary,
) -> None:
    """A third client keeps the recovery from ending, so that both meet it under way."""
    async def program() -> None:
        absent = await aio.connect(primary.address)
        await take(absent, "other")
        former = await aio.connect(primary.address, role=ROLE)
        hold = await take(former, "held")
        await forget(absent)
        primary.restart()
        connection = former._connection
        await until(lambda: connection.session.epoch == 2 and connection.whole)
        entering = asyncio.ensure_future(_entered(primary))
        await until(lambda: former.superseded)
        assert not hold.held
        with primary.admin() as admin:
            admin.evict()
        client = await entering
        assert (await take(client, "held")).token > hold.token
        await client.close()

    run(program(), 60)


async def _entered(primary: Primary) -> aio.Client:
    return await aio.connect(primary.address, role=ROLE, timeout=50)


assert dlock.Superseded is errors.Superseded
