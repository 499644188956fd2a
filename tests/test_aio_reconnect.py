"""The task that brings the links of an asyncio client back, at the edges of its life."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aio_tools import connected, run, until

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
