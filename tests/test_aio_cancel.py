"""A wait that is cancelled leaves nothing behind, wherever it is struck, nor does a cancelled
release: the table in dlock/aio/locks.py, line by line, and every await point by hand.

"Nothing" is asked of the server: whoever only tries must get the lock at once.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from aio_tools import connected, run, stop_at, turns, until

from dlock import aio
from dlock.errors import NotHeld
from dlock.server import Server, ServerConfig

Make = Callable[[aio.Client, str], Any]

KINDS: dict[str, Make] = {
    "lock": lambda client, name: client.lock(name),
    "leased": lambda client, name: client.lock(name, lease=30),
    "reentrant": lambda client, name: client.lock(name, reentrant=True),
    "fair": lambda client, name: client.fair_lock(name),
    "write": lambda client, name: client.rwlock(name).write(),
    "semaphore": lambda client, name: client.semaphore(name, 1),
}

_names = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0))
    yield one
    one.stop()


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Make:
    return KINDS[request.param]


def fresh() -> str:
    return f"cancel {next(_names)}"


async def assert_free(client: aio.Client, make: Make, name: str) -> None:
    """Nobody holds it and nobody waits for it: who only tries gets it."""
    other = make(client, name)
    assert await other.acquire(blocking=False), "something was left behind"
    await other.release()
    pending = client._connection.collector
    assert not pending.waits, "somebody still waits in the collector"
    assert not pending._releases


# ---- Every await point, by hand ------------------------------------------------------------------


async def strike_everywhere(
    client: aio.Client, make: Make, when: str, warm: bool, operation: str
) -> int:
    """Strikes an operation at its first wait, its second, and so on. Returns how many it had."""
    for wait in range(100):
        name = fresh()
        if warm:
            lock = make(client, name)
            await lock.acquire()
            await lock.release()
        lock = make(client, name)
        if operation == "release":
            await lock.acquire()
            how, came = await stop_at(lock.release(), wait, when, asyncio.CancelledError())
        elif operation == "with":
            how, came = await stop_at(enter_and_leave(lock), wait, when, asyncio.CancelledError())
        else:
            how, came = await stop_at(lock.acquire(), wait, when, asyncio.CancelledError())
        if how == "ended":
            if operation == "acquire":
                await lock.release()
            await assert_free(client, make, name)
            return wait
        assert isinstance(came, asyncio.CancelledError)
        with pytest.raises(NotHeld):
            lock.release()
        assert not lock.held
        await assert_free(client, make, name)
        # The object is as good as new.
        async with lock:
            assert lock.held
    raise AssertionError("it waits for ever")


async def enter_and_leave(lock: Any) -> None:
    async with lock:
        await asyncio.sleep(0)


@pytest.mark.parametrize("operation", ["acquire", "release", "with"])
@pytest.mark.parametrize("when", ["before", "cancelled", "after"])
@pytest.mark.parametrize("warm", [False, True], ids=["new name", "known name"])
def test_struck_at_every_await_point(
    server: Server, make: Make, when: str, warm: bool, operation: str
) -> None:
    async def program() -> None:
        async with connected(server) as client:
            waits = await strike_everywhere(client, make, when, warm, operation)
            assert waits >= 1

    run(program())


# ---- Tasks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_turns", range(6))
def test_a_task_cancelled_after_any_number_of_turns(
    server: Server, make: Make, after_turns: int
) -> None:
    async def program() -> None:
        async with connected(server) as client:
            for known in (False, True):
                name = fresh()
                if known:
                    async with make(client, name):
                        pass
                lock = make(client, name)
                task = asyncio.create_task(enter_and_leave(lock))
                await turns(after_turns)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert not lock.held
                await assert_free(client, make, name)

    run(program())


@pytest.mark.data_plane
def test_a_place_in_the_queue_goes_with_its_task(server: Server, make: Make) -> None:
    async def program() -> None:
        async with connected(server) as client:
            name = fresh()
            holder, waiter, behind = (make(client, name) for _ in range(3))
            await holder.acquire()
            waiting = asyncio.create_task(waiter.acquire())
            await until(lambda: client._connection.collector.waits == 1)
            following = asyncio.create_task(enter_and_leave(behind))
            await until(lambda: client._connection.collector.waits == 2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await holder.release()
            await following  # the one behind it has moved up
            await assert_free(client, make, name)

    run(program())


@pytest.mark.data_plane
def test_a_grant_that_nobody_took_is_given_back(server: Server, make: Make) -> None:
    """Cancelled in the moment between the grant and the task's next step."""

    async def program() -> None:
        async with connected(server) as client:
            name = fresh()
            holder, waiter = make(client, name), make(client, name)
            await holder.acquire()
            waiting = asyncio.create_task(waiter.acquire())
            collector = client._connection.collector
            await until(lambda: collector.waits == 1)
            (future,) = collector._awaited.values()
            struck = []

            def strike(_future: object) -> None:
                struck.append(waiting.cancel())

            # Called before the task's own wake-up, since asyncio calls in the order of adding.
            callbacks = [entry[0] for entry in future._callbacks]
            for callback in callbacks:
                future.remove_done_callback(callback)
            future.add_done_callback(strike)
            for callback in callbacks:
                future.add_done_callback(callback)
            await holder.release()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert struck == [True]
            assert not waiter.held
            await assert_free(client, make, name)

    run(program())


@pytest.mark.data_plane
def test_many_waits_cancelled_at_once(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            name = fresh()
            async with client.lock(name):
                tasks = [asyncio.create_task(client.lock(name).acquire()) for _ in range(500)]
                await until(lambda: client._connection.collector.waits == 500)
                for task in tasks:
                    task.cancel()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                assert {type(one) for one in outcomes} == {asyncio.CancelledError}
            await assert_free(client, KINDS["lock"], name)

    run(program())


def test_one_of_many_that_want_the_same_new_name_is_cancelled(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            name = fresh()
            locks = [client.semaphore(name, 8) for _ in range(5)]
            tasks = [asyncio.create_task(lock.acquire()) for lock in locks]
            await turns(1)
            tasks[0].cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(outcomes[0], asyncio.CancelledError)
            assert outcomes[1:] == [True] * 4
            for lock in locks[1:]:
                await lock.release()

    run(program())


def test_all_who_wanted_a_new_name_are_cancelled(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            name = fresh()
            tasks = [asyncio.create_task(client.lock(name).acquire()) for _ in range(3)]
            await turns(1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await assert_free(client, KINDS["lock"], name)
            assert not client._connection._wanted._wishes

    run(program())


# ---- Releases ------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_turns", range(5))
def test_a_cancelled_release_releases(server: Server, make: Make, after_turns: int) -> None:
    """Also one whose task is cancelled before its first step (0 turns)."""

    async def program() -> None:
        async with connected(server) as client, connected(server) as other:
            name = fresh()
            lock = make(client, name)
            await lock.acquire()
            task = asyncio.create_task(lock.release())
            await turns(after_turns)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert not lock.held
            waiting = make(other, name)
            assert await waiting.acquire(timeout=20)
            await waiting.release()
            await until(lambda: not client._connection.collector._releases)
            await assert_free(client, make, name)

    run(program())


@pytest.mark.data_plane
def test_a_release_that_nobody_awaits_releases(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client, connected(server) as other:
            name = fresh()
            lock = client.lock(name)
            await lock.acquire()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                lock.release()
                gc.collect()
            assert not lock.held
            assert await other.lock(name).acquire(timeout=20)

    run(program())


def test_cancelled_inside_the_block(server: Server, make: Make) -> None:
    async def program() -> None:
        async with connected(server) as client:
            name = fresh()
            inside = asyncio.Event()

            async def work() -> None:
                async with make(client, name):
                    inside.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(work())
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await assert_free(client, make, name)

    run(program())


# ---- Time limits, groups -------------------------------------------------------------------------


@pytest.mark.data_plane
def test_wait_for(server: Server, make: Make) -> None:
    async def program() -> None:
        async with connected(server) as client:
            name = fresh()
            async with make(client, name):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(make(client, name).acquire(), 0.05)
            await assert_free(client, make, name)

    run(program())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout came with 3.11")
@pytest.mark.data_plane
def test_asyncio_timeout(server: Server, make: Make) -> None:
    async def program() -> None:
        async with connected(server) as client:
            name = fresh()
            lock = make(client, name)

            async def want() -> None:
                async with asyncio.timeout(0.05), lock:
                    raise AssertionError("it cannot be had")

            async with make(client, name):
                with pytest.raises(TimeoutError):
                    await asyncio.create_task(want())
                assert not lock.held
            await assert_free(client, make, name)

    run(program())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="task groups came with 3.11")
@pytest.mark.data_plane
def test_a_task_group_that_fails(server: Server, make: Make) -> None:
    async def program() -> None:
        async with connected(server) as client:
            name = fresh()
            holder = make(client, name)
            await holder.acquire()

            async def want() -> None:
                async with make(client, name):
                    raise AssertionError("it cannot be had")

            async def fail() -> None:
                await until(lambda: client._connection.collector.waits == 3)
                raise LookupError

            async def group_of_them() -> None:
                async with asyncio.TaskGroup() as group:
                    for _ in range(3):
                        group.create_task(want())
                    group.create_task(fail())

            with pytest.raises(BaseExceptionGroup) as caught:  # noqa: F821 - 3.11
                await group_of_them()
            assert [type(one) for one in caught.value.exceptions] == [LookupError]
            await holder.release()
            await assert_free(client, make, name)

    run(program())


def test_a_wait_that_is_closed(server: Server) -> None:
    """GeneratorExit, as when a loop is thrown away with its tasks."""

    async def program() -> None:
        async with connected(server) as client:
            name = fresh()
            async with client.lock(name):
                pass
            waiting: Coroutine[Any, Any, bool] = client.lock(name).acquire()
            waiting.send(None)
            waiting.close()
            await assert_free(client, KINDS["lock"], name)

    run(program())
