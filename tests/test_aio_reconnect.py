"""The task that brings the links of an asyncio client back, at the edges of its life; and for how
long those look for a server who are without one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from aio_tools import connected, run, until

from dlock._calls import Outcome
from dlock._handle import Handle
from dlock._retry import Backoff
from dlock.admin import Admin
from dlock.aio import _attempt
from dlock.aio._attempt import recover
from dlock.aio._connection import Connection
from dlock.server import Server, ServerConfig


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0, session_ttl_ms=60_000))
    yield one
    one.stop()


@pytest.mark.parametrize("what", ["readiness", "the control link", "the data link"])
def test_what_is_lost_while_the_task_ends_is_brought_back(server: Server, what: str) -> None:
    """Nobody asks for anything, so the client itself has to see to it."""

    async def program() -> None:
        async with connected(server) as client:
            connection = client._connection

            async def lose_it() -> object:
                """The task wakes who waits for the links in its last step. So this comes after that
                step, and before the client hears that the task has ended."""
                while not connection.settled:
                    await connection._sleep(60)
                recovering = connection._recovering
                assert recovering is not None
                assert recovering.done()
                if what == "readiness":  # an answer that is older than the readiness comes now
                    connection.not_ready(connection.session)
                elif what == "the control link":
                    connection._driver.close()
                else:
                    connection.session_removed(connection.session)
                assert not connection.settled
                return recovering

            connection.not_ready(connection.session)
            recovering = await asyncio.create_task(lose_it())
            await until(lambda: connection.settled)
            assert connection._recovering is not recovering

    run(program())


def test_who_is_asked_for_again_has_what_is_left_of_its_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout_s = 60.0
    deadlines: list[float] = []

    def looked(
        client: Connection, handle: Handle, outcome: Outcome, backoff: Backoff, deadline: float
    ) -> Coroutine[Any, Any, None]:
        deadlines.append(deadline)
        return recover(client, handle, outcome, backoff, deadline)

    monkeypatch.setattr(_attempt, "recover", looked)

    async def program() -> None:
        async with connected(server) as client, connected(server) as other:
            async with other.lock("a"):
                waiting = asyncio.create_task(client.lock("a").acquire(timeout=timeout_s))
                with Admin(server.address) as admin:
                    await until(lambda: _waiters(admin, "a") == 1)
                asked_by = time.monotonic()
                await asyncio.sleep(0.05)  # some of its time has gone by
                connection = client._connection
                connection.session_removed(connection.session)  # the wait ends, and it asks again
                await until(lambda: bool(deadlines))
            assert await waiting
            assert deadlines[0] <= asked_by + timeout_s

    run(program())


def _waiters(admin: Admin, name: str) -> int:
    view = admin.show(name)
    return 0 if view is None else len(view.waiters)
