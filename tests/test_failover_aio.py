"""dlock.aio through a failover: the same as tests/test_failover_api.py has, in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aio_tools import run, until
from failover_tools import PATIENCE_S, Primary
from failover_tools import until as until_blocking
from far_process import FarProcess

from dlock import aio, errors
from dlock.aio._drive import REPLY_TIMEOUT_S
from dlock.aio.locks import BaseLock

TTL_S = 30.0


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    started = Primary(tmp_path, ttl_s=TTL_S)
    yield started
    started.kill()


@contextlib.asynccontextmanager
async def connected(primary: Primary, count: int) -> AsyncIterator[list[aio.Client]]:
    """So many clients, closed at the end."""
    clients = [await aio.connect(primary.address, timeout=60) for _ in range(count)]
    try:
        yield clients
    finally:
        for client in clients:
            await client.close()


def epoch_of(client: aio.Client) -> int:
    return int(client._connection.session.home[0])


async def back_at(client: aio.Client, epoch: int) -> None:
    connection = client._connection
    await until(lambda: epoch_of(client) >= epoch and connection.settled, PATIENCE_S)


async def fail_over(primary: Primary, *clients: aio.Client) -> None:
    epoch = epoch_of(clients[0])
    primary.restart()
    for client in clients:
        await back_at(client, epoch + 1)


async def waiters(primary: Primary, name: str, count: int) -> None:
    """Until so many wait for it."""
    with primary.admin() as admin:
        def enough() -> bool:
            view = admin.show(name)
            return view is not None and len(view.waiters) == count

        await until(enough, PATIENCE_S)


async def taken(client: aio.Client, lock: BaseLock) -> bool:
    other = type(lock)(client._connection, lock._key, lock._options)
    if not await other.acquire(blocking=False):
        return True
    await other.release()
    return False


@pytest.mark.data_plane
def test_every_kind_of_hold_comes_back_with_its_token(primary: Primary) -> None:
    async def program() -> None:
        async with connected(primary, 2) as (client, other):
            held = {
                "lock": client.lock("lock"),
                "leased": client.lock("leased", lease=60),
                "fair": client.fair_lock("fair"),
                "fair, shared": client.fair_lock("fair, shared", shared=True),
                "reader": client.rwlock("reader").read(),
                "writer": client.rwlock("writer").write(),
                "slot": client.semaphore("slot", 2),
            }
            for lock in held.values():
                await lock.acquire()
            tokens = {name: lock.token for name, lock in held.items()}
            await fail_over(primary, client, other)
            await until(lambda: all(lock.held for lock in held.values()), PATIENCE_S)
            assert {name: lock.token for name, lock in held.items()} == tokens
            for name in ("lock", "leased", "fair", "writer"):
                assert await taken(other, held[name]), name
            for name in ("fair, shared", "reader", "slot"):
                assert not await taken(other, held[name]), name
            for name, lock in held.items():
                await lock.release()
                again = type(lock)(other._connection, lock._key, lock._options)
                assert await again.acquire(timeout=30), name
                assert again.token > tokens[name]
                await again.release()

    run(program(), 120)


def test_waiters_keep_their_order(primary: Primary) -> None:
    async def program() -> None:
        async with connected(primary, 3) as clients:
            lock = clients[0].lock("a")
            await lock.acquire()
            order: list[int] = []

            async def wait(number: int) -> None:
                async with clients[number % 3].lock("a"):
                    order.append(number)

            tasks = []
            for number in range(9):
                tasks.append(asyncio.ensure_future(wait(number)))
                await waiters(primary, "a", number + 1)
            for _ in range(2):
                await fail_over(primary, *clients)
            await waiters(primary, "a", 9)
            tasks[4].cancel()
            await waiters(primary, "a", 8)
            assert order == []
            await lock.release()
            await asyncio.wait(tasks)
            assert order == [0, 1, 2, 3, 5, 6, 7, 8]

    run(program(), 120)


def test_what_is_done_in_the_outage(primary: Primary) -> None:
    async def program() -> None:
        async with connected(primary, 2) as (client, other):
            held, wanted = client.lock("a"), other.lock("b")
            await held.acquire()
            async with wanted:
                pass
            epoch = epoch_of(client)
            primary.kill()
            for one in (client, other):
                await until(lambda one=one: not one._connection.whole, PATIENCE_S)
            await held.release()
            assert not held.held
            with pytest.raises(errors.ConnectionLost):
                await wanted.acquire(timeout=0.2)
            cancelled = asyncio.ensure_future(wanted.acquire())
            waits = asyncio.ensure_future(other.lock("a").acquire())
            new = asyncio.ensure_future(other.lock("a name that nobody knows").acquire())
            await asyncio.sleep(0.1)
            cancelled.cancel()
            primary.start()
            assert await waits is True
            assert await new is True
            await back_at(client, epoch + 1)
            assert await client.lock("b").acquire(timeout=30)

    run(program(), 120)


def test_one_that_only_tries_gives_the_link_time_to_come_back(primary: Primary) -> None:
    async def program() -> None:
        async with connected(primary, 1) as (client,):
            lock = client.lock("a")
            async with lock:
                pass
            epoch = epoch_of(client)
            primary.kill()
            await until(lambda: not client._connection.whole, PATIENCE_S)
            began = time.monotonic()
            trying = asyncio.ensure_future(lock.acquire(blocking=False))
            primary.start()
            try:
                assert await trying is True
            except errors.ConnectionLost:
                # A slow machine took longer to start a server than an answer may take.
                assert time.monotonic() - began >= REPLY_TIMEOUT_S
                await back_at(client, epoch + 1)
                assert await lock.acquire(blocking=False)

    run(program(), 120)


def test_a_live_hold_is_served_while_others_are_awaited(primary: Primary) -> None:
    third = FarProcess(primary.address)

    async def program() -> None:
        async with connected(primary, 2) as (client, other):
            lock = client.lock("a", lease=60)
            await lock.acquire()
            wait = asyncio.ensure_future(other.lock("a").acquire())
            await waiters(primary, "a", 1)
            primary.restart()
            await until(lambda: min(map(epoch_of, (client, other))) == 2, PATIENCE_S)
            await until(lambda: lock.held, PATIENCE_S)
            assert await lock.extend() > 0
            await lock.release()
            assert await wait is True
            with pytest.raises(errors.ConnectionLost) as raised:
                await client.lock("new").acquire(timeout=2)
            assert "recovers" in str(raised.value)
            later = asyncio.ensure_future(client.lock("new").acquire())
            with primary.admin() as admin:
                assert admin.recovery().absent_total == 1
                assert not later.done()
                admin.evict(None)
            assert await later is True

    try:
        third.signal(signal.SIGSTOP)
        run(program(), 120)
    finally:
        third.close()


def test_who_stays_away_is_told(tmp_path: Path) -> None:
    primary = Primary(tmp_path, ttl_s=1.0)

    async def program() -> None:
        async with connected(primary, 2) as (client, other):
            told: list[str] = []
            lock = client.lock("a", on_lost=lambda one: told.append(one.name))
            lapsed = other.lock("b", renew=False, on_lost=lambda one: told.append(one.name))
            await lock.acquire()
            await lapsed.acquire(lease=0.5)
            token = lock.token
            primary.kill()
            await until(lambda: lapsed.remaining == 0, PATIENCE_S)
            primary.start()
            with primary.admin() as admin:  # the whole loop stays away until nobody waits for it
                until_blocking(lambda: admin.recovery().ready)
            await until(lambda: sorted(told) == ["a", "b"], PATIENCE_S)
            assert not lock.held
            with pytest.raises(errors.LockLost):
                await lock.release()
            assert await lock.acquire(timeout=30)
            assert lock.token > token

    try:
        run(program(), 120)
    finally:
        primary.kill()


def test_closing_in_the_outage(primary: Primary) -> None:
    async def program() -> None:
        client = await aio.connect(primary.address, timeout=60)
        lock = client.lock("a")
        await lock.acquire()
        primary.kill()
        await until(lambda: not client._connection.whole, PATIENCE_S)
        await client.close()
        assert not lock.held
        with pytest.raises(errors.ClientClosed):
            await lock.acquire()

    run(program(), 120)


def test_a_client_that_leaves_without_a_link_is_not_waited_for(primary: Primary) -> None:
    async def program() -> None:
        client = await aio.connect(primary.address, timeout=60)
        assert await client.lock("a").acquire()
        # Nobody brings it back.
        client._connection._recovering = asyncio.ensure_future(asyncio.sleep(100))
        primary.restart()
        with primary.admin() as admin:
            await until(lambda: admin.recovery().absent_total == 1, PATIENCE_S)
            await client.close()
            await until(lambda: admin.recovery().ready, PATIENCE_S)

    run(program(), 120)
