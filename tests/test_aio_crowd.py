"""Many tasks on one client: all of them wait at the server, none of them in a thread."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Iterator

import pytest
from aio_tools import connected, run, until
from mirror_tools import line_of, run_python

from dlock import aio

TASKS = 10_000

# A process of its own, so that its threads and this one's loop do not share an interpreter.
SERVER = """
import sys
from dlock.server import Server, ServerConfig

server = Server(ServerConfig(port=0, max_locks=20000))
print(server.address, flush=True)
sys.stdin.read()
server.stop()
"""


class Far:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.address = line_of(process)


@pytest.fixture(scope="module")
def server() -> Iterator[Far]:
    process = run_python(SERVER)
    yield Far(process)
    process.kill()
    process.wait()


def test_ten_thousand_tasks_wait_for_one_lock(server: Far) -> None:
    """Each of them gets it, one at a time, in the order in which they asked."""

    async def program() -> None:
        async with connected(server) as client:
            threads = threading.active_count()
            order: list[int] = []
            inside = 0

            async def work(number: int, lock: aio.Lock) -> None:
                nonlocal inside
                async with lock:
                    inside += 1
                    assert inside == 1
                    order.append(number)
                    inside -= 1

            gate = client.lock("crowd")
            await gate.acquire()
            # One object for all, and objects of their own, are the same to the server.
            tasks = [
                asyncio.create_task(work(number, gate if number % 2 else client.lock("crowd")))
                for number in range(TASKS)
            ]
            await until(lambda: client._connection.collector.waits == TASKS)
            while (await client.stats())["WAITS"] < TASKS:  # all of them wait at the server
                await asyncio.sleep(0.01)
            assert threading.active_count() == threads, "no thread was started for a wait"
            assert not order
            await gate.release()
            await asyncio.gather(*tasks)
            assert order == list(range(TASKS))
            assert client._connection.collector.waits == 0

    run(program(), 90)


def test_ten_thousand_tasks_with_a_lock_each(server: Far) -> None:
    """Names are got many at a time, and at most so many are kept."""

    async def program() -> None:
        async with connected(server) as client:

            async def work(number: int) -> int:
                async with client.lock(f"own {number}") as lock:
                    return lock.token

            tokens = await asyncio.gather(*map(work, range(TASKS)))
            assert len(set(tokens)) == TASKS

    run(program(), 90)


def test_ten_thousand_waits_are_cancelled(server: Far) -> None:
    async def program() -> None:
        async with connected(server) as client, connected(server) as other:
            async with client.lock("dropped"):
                tasks = [asyncio.create_task(client.lock("dropped").acquire())
                         for _ in range(TASKS)]
                await until(lambda: client._connection.collector.waits == TASKS)
                for task in tasks:
                    task.cancel()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(isinstance(one, asyncio.CancelledError) for one in outcomes)
            assert await other.lock("dropped").acquire(blocking=False)

    run(program(), 90)


def test_more_wait_than_may_be_under_way(server: Far) -> None:
    """Those beyond the limit of a connection wait on this side. What needs no wait goes on: tries,
    and above all releases."""
    many = 20_000

    async def program() -> None:
        async with connected(server) as client:
            gate = client.lock("full")
            await gate.acquire()
            done = 0

            async def work() -> None:
                nonlocal done
                async with client.lock("full"):
                    done += 1

            tasks = [asyncio.create_task(work()) for _ in range(many)]
            await until(lambda: client._connection.collector.waits == many)
            another = client.lock("another")
            assert await another.acquire(blocking=False)
            await another.release()
            await gate.release()
            await asyncio.gather(*tasks)
            assert done == many

    run(program(), 90)
