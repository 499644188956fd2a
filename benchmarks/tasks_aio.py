"""Tasks of a worker with an event loop: dlock.aio, and redis.asyncio's Lock beside it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from statistics import median
from typing import Any, Final

from benchmarks.task import (
    BLOCK_S,
    LEASE_S,
    SETTLE_CALLS,
    WARM_UP_SHARE,
    quantiles,
    resident_bytes,
    say,
    turn,
    wait_for_go,
)

REDIS_CONNECTIONS: Final = 100

Held = Callable[[], AbstractAsyncContextManager[object]]


def _names(name: str, tasks: int, one_name: bool) -> list[str]:
    return [name if one_name else f"{name}/{number}" for number in range(tasks)]


async def _crowd(locks: Sequence[Held], seconds: float) -> dict[str, Any]:
    """A task for each of `locks`, which takes it and gives it back until the time is over."""
    counts = [0] * len(locks)
    running = True

    async def one(index: int, hold: Held) -> None:
        while running:
            async with hold():
                pass
            counts[index] += 1

    async def first(hold: Held) -> None:
        async with hold():
            pass

    await asyncio.gather(*map(first, locks))  # Names are got, connections made.
    wait_for_go("ready")
    tasks = [asyncio.ensure_future(one(index, hold)) for index, hold in enumerate(locks)]
    await asyncio.sleep(seconds * WARM_UP_SHARE)
    say("warm")
    before, start, cpu = sum(counts), time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    count, elapsed = sum(counts) - before, time.perf_counter() - start
    cpu = time.process_time() - cpu
    running = False
    await asyncio.gather(*tasks)
    wait_for_go("done")
    return {"count": count, "elapsed_s": elapsed, "cpu_s": cpu}


def aio_crowd(host: str, port: int, seconds: float, name: str, tasks: int,
              one_name: bool) -> dict[str, Any]:
    """So many tasks with a lock object each, of names of their own or all of one name."""

    async def run() -> dict[str, Any]:
        from dlock import aio

        async with aio.connect(f"{host}:{port}") as client:
            locks = [client.lock(one) for one in _names(name, tasks, one_name)]

            def held(index: int) -> Held:
                return lambda: locks[index]

            return await _crowd([held(index) for index in range(tasks)], seconds)

    return asyncio.run(run())


def redis_aio_crowd(host: str, port: int, seconds: float, name: str, tasks: int,
                    one_name: bool) -> dict[str, Any]:
    """The same with redis.asyncio's Lock as it comes. Tasks wait for a free connection; with fewer
    or more connections than these it is not faster."""

    async def run() -> dict[str, Any]:
        from redis import asyncio as redis

        pool = redis.BlockingConnectionPool(
            max_connections=REDIS_CONNECTIONS, timeout=None, host=host, port=port)
        async with redis.Redis.from_pool(pool) as client:
            names = _names(name, tasks, one_name)

            def held(index: int) -> Held:
                return lambda: client.lock(names[index], timeout=LEASE_S)

            return await _crowd([held(index) for index in range(tasks)], seconds)

    return asyncio.run(run())


def aio_one_task(host: str, port: int, wait: str, seconds: float, name: str) -> dict[str, Any]:
    """Pairs of one task beside those of a blocking client, in turn, in one process."""
    import dlock
    from dlock import aio

    async def turn_of_task(lock: aio.Lock) -> list[int]:
        clock = time.perf_counter_ns
        for _ in range(SETTLE_CALLS):
            async with lock:
                pass
        durations = []
        before = clock()
        end = before + int(BLOCK_S * 1e9)
        while before < end:
            async with lock:
                pass
            after = clock()
            durations.append(after - before)
            before = after
        return durations

    async def run() -> dict[str, Any]:
        async with AsyncExitStack() as stack:
            blocking = stack.enter_context(dlock.connect(f"{host}:{port}", wait=wait))
            client = await stack.enter_async_context(aio.connect(f"{host}:{port}"))
            own, other = client.lock(name), blocking.lock(f"{name}/blocking")

            def once() -> None:
                with other:
                    pass

            wait_for_go("ready")
            turn(once)
            await turn_of_task(own)
            say("warm")
            start, cpu = time.perf_counter(), time.process_time()
            of_task: list[int] = []
            of_blocking: list[int] = []
            times: list[float] = []
            for _ in range(max(round(seconds / BLOCK_S), 1)):
                sync, task = turn(once), await turn_of_task(own)
                of_blocking += sync
                of_task += task
                times.append(median(task) / median(sync))
            cpu, elapsed = time.process_time() - cpu, time.perf_counter() - start
            wait_for_go("done")
            return {"task": quantiles(of_task), "blocking": quantiles(of_blocking),
                    "times": median(times), "elapsed_s": elapsed, "cpu_s": cpu}

    return asyncio.run(run())


def aio_waiting(host: str, port: int, pid: int, tasks: int, name: str) -> dict[str, Any]:
    """So many tasks wait for one lock: what that takes of the memory of this process and of the
    server (`pid`), and how long until each of them has had it."""

    async def run() -> dict[str, Any]:
        from dlock import aio

        address = f"{host}:{port}"
        async with aio.connect(address) as holder, aio.connect(address) as client:
            lock = client.lock(name)

            async def one() -> None:
                async with lock:
                    pass

            async def stats() -> int:
                return (await holder.stats())["WAITS"]

            async with lock, holder.lock(f"{name}/held"):
                pass
            wait_for_go("ready")
            before_waits, server = await stats(), resident_bytes(pid)
            async with holder.lock(name):
                waiting, grown = await _waiting(
                    one, tasks, lambda: _reached(stats, before_waits + tasks))
                server = resident_bytes(pid) - server
                say("warm")
                start, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*waiting)
            elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
            wait_for_go("done")
            return {"bytes_a_task": grown / tasks, "server_bytes_a_task": server / tasks,
                    "elapsed_s": elapsed, "cpu_s": cpu}

    return asyncio.run(run())


def aio_bare_waiting(tasks: int) -> dict[str, Any]:
    """The same tasks, waiting for a bare future: what asyncio takes."""

    async def run() -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        futures = []

        async def one() -> None:
            future = loop.create_future()
            futures.append(future)
            await future

        async def all_wait() -> None:
            while len(futures) < tasks:
                await asyncio.sleep(0)

        wait_for_go("ready")
        waiting, grown = await _waiting(one, tasks, all_wait)
        say("warm")
        for future in futures:
            future.set_result(None)
        await asyncio.gather(*waiting)
        wait_for_go("done")
        return {"bytes_a_task": grown / tasks}

    return asyncio.run(run())


async def _waiting(one: Callable[[], Coroutine[Any, Any, None]], tasks: int,
                   until: Callable[[], Awaitable[None]]) -> tuple[list[asyncio.Task[None]], int]:
    """Starts the tasks; they, and the resident bytes by which this process has grown until they
    all wait."""
    gc.collect()
    before = resident_bytes()
    waiting = [asyncio.ensure_future(one()) for _ in range(tasks)]
    await until()
    return waiting, resident_bytes() - before


async def _reached(count: Callable[[], Awaitable[int]], wanted: int) -> None:
    while await count() < wanted:
        await asyncio.sleep(0.02)


TASKS: Final[tuple[Callable[..., dict[str, Any]], ...]] = (
    aio_crowd, redis_aio_crowd, aio_one_task, aio_waiting, aio_bare_waiting,
)
