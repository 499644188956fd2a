"""Names that tasks of one client want, at the moment in which the asking for others ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from aio_tools import run

from dlock.aio._connection import Connection
from dlock.aio._names import Wanted
from dlock.errors import ClientClosed


class Answering:
    """A connection whose server gives out every name, when it is told to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.asked: list[asyncio.Future[None]] = []

    async def run(self, ask: Callable[..., Any], deadline: float) -> list[None]:
        self.asked.append(self._loop.create_future())
        await self.asked[-1]
        return [None] * len(cast(Any, ask).keywords["keys"])

    def why_unanswered(self) -> ClientClosed:
        return ClientClosed("closed")


def test_who_comes_when_the_asking_ends_is_asked_for_too() -> None:
    """The task that asks has ended, and what is done at its end has not run yet."""

    async def program() -> None:
        loop = asyncio.get_running_loop()
        connection = Answering(loop)
        wanted = Wanted(cast(Connection, connection), loop)
        gap = loop.create_future()

        async def comes_in_the_gap() -> None:
            await gap
            await wanted.get((b"second", 0, 1), float("inf"))

        first = loop.create_task(wanted.get((b"first", 0, 1), float("inf")))
        second = loop.create_task(comes_in_the_gap())
        await asyncio.sleep(0.01)
        connection.asked[0].set_result(None)  # the task that asks goes on in the next turn,
        gap.set_result(None)  # and behind it, in the same one, who wants another name
        await first
        while len(connection.asked) < 2 and not second.done():
            await asyncio.sleep(0)
        if len(connection.asked) == 2:
            connection.asked[1].set_result(None)
        await second

    run(program())


def test_who_waits_for_a_name_hears_that_the_client_was_closed() -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        connection = Answering(loop)
        wanted = Wanted(cast(Connection, connection), loop)
        waits = loop.create_task(wanted.get((b"name", 0, 1), float("inf")))
        await asyncio.sleep(0.01)
        wanted.close()
        with pytest.raises(ClientClosed):
            await waits

    run(program())
