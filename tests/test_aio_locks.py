"""The lock objects of dlock.aio, one promise a test, against a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from aio_tools import connected, run, stop_at, until

from dlock import aio
from dlock.aio import _attempt
from dlock.errors import (
    Deadlock,
    DlockError,
    KindMismatch,
    LeaseTooLong,
    LockLost,
    NotHeld,
    OutcomeUnknown,
)
from dlock.server import Server, ServerConfig


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0, max_lease_ms=60_000))
    yield one
    one.stop()


async def elsewhere(wait: Coroutine[Any, Any, bool]) -> bool:
    """In another task: one that waits for what it holds itself is refused with Deadlock."""
    return await asyncio.create_task(wait)


# ---- One holder at a time ------------------------------------------------------------------------


@pytest.mark.data_plane
def test_tasks_exclude_each_other_through_one_object_and_through_many(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as one, connected(server) as two:
            shared = one.lock("exclude")
            inside = most = 0

            async def work(lock: aio.Lock) -> None:
                nonlocal inside, most
                for _ in range(20):
                    async with lock:
                        inside += 1
                        most = max(most, inside)
                        await asyncio.sleep(0)
                        inside -= 1

            locks = [shared] * 5 + [client.lock("exclude") for client in (one, two) * 3]
            await asyncio.gather(*map(work, locks))
            assert most == 1

    run(program())


@pytest.mark.data_plane
def test_signatures_of_threading(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            lock, other = client.lock("signatures"), client.lock(b"signatures")
            assert await lock.acquire()
            assert await lock.acquire(False) is False
            assert await other.acquire(blocking=False) is False
            assert await elsewhere(other.acquire(timeout=0.01)) is False
            assert await other.acquire(True, 0) is False
            with pytest.raises(ValueError, match="non-blocking"):
                await other.acquire(False, 1)
            with pytest.raises(ValueError, match="non-negative"):
                await other.acquire(timeout=-2)
            await lock.release()
            assert await other.acquire(timeout=None)
            await other.release()
            with pytest.raises(NotHeld):
                await lock.release()

    run(program())


def test_what_an_object_says_of_its_hold(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            lock = client.lock("says")
            assert (lock.name, lock.held, lock.remaining) == ("says", False, 0.0)
            assert "not held" in repr(lock)
            for refused in (lambda: lock.token, lock.ensure_held):
                with pytest.raises(NotHeld):
                    refused()
            assert not await lock.locked()
            async with lock:
                first = lock.token
                assert first > 0
                assert lock.held
                assert 0 < lock.remaining <= 10
                lock.ensure_held(1)
                with pytest.raises(LockLost):
                    lock.ensure_held(1000)
                assert await client.lock("says").locked()
                holder = await client.lock("says").holder()
                assert holder is not None
                assert holder.token == first
            async with lock:
                assert lock.token > first

    run(program())


def test_any_task_may_release(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            lock = client.lock("any")
            await lock.acquire()
            await asyncio.create_task(_release(lock))
            assert not lock.held

    run(program())


async def _release(lock: aio.Lock) -> None:
    await lock.release()


def test_decorated_functions(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            lock = client.lock("decorated", reentrant=True)
            plain = client.lock("plain")
            inside = 0

            @lock
            async def again(depth: int) -> int:
                """Doc."""
                assert lock.held
                return depth if depth == 3 else await again(depth + 1)

            @plain
            async def alone() -> None:
                nonlocal inside
                inside += 1
                assert inside == 1
                await asyncio.sleep(0)
                inside -= 1

            assert await again(0) == 3
            assert again.__doc__ == "Doc."
            await asyncio.gather(*(alone() for _ in range(10)))
            with pytest.raises(TypeError, match="coroutine functions"):
                plain(lambda: None)  # type: ignore[type-var]

    run(program())


@pytest.mark.data_plane
def test_reentrancy_follows_the_task(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            for lock in (client.lock("again", reentrant=True),
                         client.fair_lock("again fair", reentrant=True),
                         client.rwlock("again rw", reentrant=True).write()):
                async with lock, lock, lock:
                    other = asyncio.create_task(lock.acquire(timeout=0.02))
                    assert await other is False
                    with pytest.raises(NotHeld):
                        await asyncio.create_task(_release(lock))
                    assert lock.held
                assert not lock.held
                with pytest.raises(NotHeld):
                    await lock.release()

    run(program())


# ---- Kinds ---------------------------------------------------------------------------------------


@pytest.mark.data_plane
def test_readers_and_a_writer(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            lock, other = client.rwlock("rw"), client.rwlock("rw")
            async with lock.read(), other.read():
                assert not await elsewhere(other.write().acquire(timeout=0.02))
                assert not lock.read().exclusive
            async with lock.write():
                assert lock.write().exclusive
                assert not await other.read().acquire(blocking=False)
            with pytest.raises(ValueError, match="no leases"):
                await lock.write().acquire(lease=5)

    run(program())


@pytest.mark.data_plane
def test_fair_locks_serve_in_order(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            order: list[int] = []

            async def work(number: int) -> None:
                async with client.fair_lock("fair", shared=number % 3 == 0):
                    order.append(number)

            async with client.fair_lock("fair"):
                tasks = []
                for number in range(9):
                    tasks.append(asyncio.create_task(work(number)))
                    await until(lambda number=number: (  # type: ignore[misc]
                        client._connection.collector.waits == number + 1))
                assert not await client.fair_lock("fair").acquire(blocking=False)
            await asyncio.gather(*tasks)
            assert order == list(range(9))
            assert await client.fair_lock("fair").acquire(blocking=False), "no ticket is left"

    run(program())


@pytest.mark.filterwarnings("ignore:.*dropped while it was held:ResourceWarning")
@pytest.mark.data_plane
def test_semaphores(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            slots = client.semaphore("slots", 3)
            assert [await slots.acquire(blocking=False) for _ in range(4)] == [True] * 3 + [False]
            assert len(slots.tokens) == 3
            with pytest.raises(NotHeld):
                await slots.release(4)
            await slots.release(2)
            assert await client.semaphore("slots", 3).acquire(blocking=False)
            with pytest.raises(KindMismatch):
                await client.semaphore("slots", 4).acquire()
            await slots.release()
            with pytest.raises(ValueError, match="one or more"):
                slots.release(0)
            with pytest.raises(NotHeld):
                slots.release()

    run(program())


# ---- Leases --------------------------------------------------------------------------------------


@pytest.mark.data_plane
def test_a_lease_ends_unless_it_is_extended(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            lost: list[aio.Lock] = []
            lock = client.lock("lease", lease=20, renew=False, on_suspended=lost.append)
            await lock.acquire()
            assert 0 < lock.remaining <= 20
            assert await lock.extend(50) > 30
            assert lock.remaining > 30
            await lock.release()
            await lock.acquire(lease=0.2)
            await until(lambda: not lock.held)
            await until(lambda: lost == [lock])
            other = client.lock("lease")
            assert await other.acquire(timeout=20)
            with pytest.raises(LockLost, match="lease"):
                await lock.release()
            await other.release()

    run(program())


@pytest.mark.data_plane
def test_a_lease_renews_itself(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            lock = client.lock("renewed", lease=6)
            async with lock:
                token = lock.token
                await until(lambda: lock.remaining < 5)
                await until(lambda: lock.remaining > 5)
                assert not await client.lock("renewed").acquire(blocking=False)
                assert lock.token == token

    run(program())


def test_leases_that_nobody_allows(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            lock = client.lock("long", lease=1e5)
            with pytest.raises(LeaseTooLong):
                await lock.acquire()
            assert await client.lock("long").acquire(blocking=False), "nothing was left behind"
            async with client.lock("unleased") as plain:
                with pytest.raises(ValueError, match="without a lease"):
                    await plain.extend(5)

    run(program())


# ---- Deadlocks -----------------------------------------------------------------------------------


@pytest.mark.data_plane
def test_a_cycle_of_waits_between_tasks_is_refused(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            a, b = client.lock("cycle a"), client.lock("cycle b")
            both = asyncio.Event()
            holding = 0

            async def work(first: aio.Lock, second: aio.Lock) -> str:
                nonlocal holding
                async with first:
                    holding += 1
                    if holding == 2:
                        both.set()
                    await both.wait()
                    try:
                        async with second:
                            return "had both"
                    except Deadlock as refusal:
                        return f"refused: {refusal}"

            outcomes = await asyncio.wait_for(asyncio.gather(work(a, b), work(b, a)), 20)
            granted, refused = sorted(outcomes)
            assert granted == "had both"
            assert refused.startswith("refused")
            assert "cycle a" in refused
            assert "cycle b" in refused

    run(program())


def test_a_task_that_waits_for_itself_is_refused(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            lock = client.lock("self")
            async with lock:
                with pytest.raises(Deadlock):
                    await lock.acquire()
                assert not await client.lock("self", deadlock=False).acquire(timeout=0.05)

    run(program())


# ---- Several at once -----------------------------------------------------------------------------


@pytest.mark.data_plane
def test_all_or_none(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            locks = [client.lock(f"multi {number}") for number in range(40)]
            multi = client.multi(reversed(locks))
            async with multi:
                assert multi.held
                assert all(lock.held for lock in locks)
                assert [one.name for one in multi.locks] == sorted(
                    str(lock.name) for lock in locks)
            assert not any(lock.held for lock in locks)
            async with client.lock("multi 17"):
                assert not await multi.acquire(blocking=False)
                assert not await elsewhere(multi.acquire(timeout=0.05))
                for number in (0, 16, 18, 39):
                    other = client.lock(f"multi {number}")
                    assert await other.acquire(blocking=False)
                    await other.release()
            with pytest.raises(NotHeld):
                await multi.release()
            with pytest.raises(ValueError, match="twice"):
                client.multi([locks[0], client.lock("multi 0")])

    run(program())


@pytest.mark.parametrize("step", ["persist", "extend"])
def test_several_look_for_a_server_as_long_as_the_call_may_wait(
    server: Server, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """And not as long as one answer may take: the server may be gone for a while."""
    takes, deadlines = getattr(_attempt, step), []

    async def noted(*arguments: Any) -> Any:
        deadlines.append(arguments[-1] - time.monotonic())
        return await takes(*arguments)

    async def program() -> None:
        async with connected(server) as client:
            multi = client.multi([client.lock(f"leased {number}", lease=30) for number in (1, 2)])
            assert await multi.acquire(timeout=1000)
            await multi.release()

    monkeypatch.setattr(_attempt, step, noted)
    run(program())
    assert len(deadlines) == 2
    assert min(deadlines) > 900


@pytest.mark.data_plane
def test_those_who_take_several_in_any_order_do_not_block_each_other(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            done = 0

            async def work(first: int, second: int) -> None:
                nonlocal done
                names = (f"order {first}", f"order {second}", "order 9")
                for _ in range(10):
                    async with client.multi([client.lock(name, lease=30) for name in names]):
                        await asyncio.sleep(0)
                done += 1

            pairs = [(first, second) for first in range(4) for second in range(4)
                     if first != second]
            await asyncio.gather(*(work(*pair) for pair in pairs))
            assert done == len(pairs)

    run(program())


@pytest.mark.parametrize("when", ["before", "cancelled", "after"])
def test_a_multi_struck_at_every_await_point(server: Server, when: str) -> None:
    async def program() -> None:
        async with connected(server) as client:
            for wait in range(100):
                names = [f"struck {when} {wait} {number}" for number in range(5)]
                locks = [client.lock(name, lease=30) for name in names]
                busy = client.lock(names[2], deadlock=False)  # the loop gives it back
                await busy.acquire()
                freed = asyncio.get_running_loop().call_later(
                    0.01, lambda busy=busy: busy.release().close())
                how, _ = await stop_at(
                    client.multi(locks).acquire(), wait, when, asyncio.CancelledError())
                if how == "ended":
                    return
                await until(lambda freed=freed: freed.when() < freed._loop.time())  # type: ignore[misc]
                assert not any(lock.held for lock in locks)
                for name in names:
                    other = client.lock(name)
                    assert await other.acquire(timeout=20), "something was left behind"
                    await other.release()
            raise AssertionError("it waits for ever")

    run(program())


# ---- Numbers -------------------------------------------------------------------------------------


@pytest.mark.data_plane
def test_atomic_numbers(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client, connected(server) as other:
            number, same = client.atomic("number", 5), other.atomic("number", 99)
            assert await number.get() == 5
            assert await same.get() == 5
            assert await number.add(-7) == -2
            assert await same.fetch_add(1) == -2
            assert await number.compare_exchange(0, 1) == (False, -1)
            assert await number.compare_exchange(-1, 10) == (True, -1)
            assert await same.set(20) == 10
            assert await same.update(lambda value: value * 2) == 40
            assert [await anext_of(number) for _ in range(3)] == [40, 41, 42]
            assert await number.add(2**63 - 1) == -(2**63) + 42
            with pytest.raises(OverflowError):
                await number.add(2**63)
            await asyncio.gather(*(number.add(1) for _ in range(100)))
            assert await same.get() == -(2**63) + 142
            with pytest.raises(DlockError):
                await same.destroy()

    run(program())


async def anext_of(number: aio.AtomicInt64) -> int:
    return await number.__anext__()


def test_a_change_whose_answer_is_lost_is_said_to_be_unknown(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            number = client.atomic("unknown")
            await number.get()
            changing = asyncio.create_task(number.add(1))
            await asyncio.sleep(0)
            client._connection.collector._send()
            from dlock._core import lib

            lib.dlk_client_detach(client._connection.session.client)
            with pytest.raises(OutcomeUnknown):
                await changing
            assert await number.get() in (0, 1)

    run(program())
