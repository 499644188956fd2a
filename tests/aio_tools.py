"""What the tests of dlock.aio share: a loop with a limit, coroutines that are struck in a wait."""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar

from control_client import TIMEOUT

from dlock import aio

T = TypeVar("T")


class Addressed(Protocol):
    """A server, here or in another process."""

    @property
    def address(self) -> str: ...


def run(program: Coroutine[Any, Any, T], limit_s: float = 3 * TIMEOUT) -> T:
    """Runs a program in a loop of its own; it must end."""

    async def limited() -> T:
        return await asyncio.wait_for(program, limit_s)

    return asyncio.run(limited())


@contextlib.asynccontextmanager
async def connected(server: Addressed) -> AsyncIterator[aio.Client]:
    """A client of this server."""
    client = await aio.connect(server.address)
    try:
        yield client
    finally:
        await client.close()


async def turns(count: int = 3) -> None:
    """Lets the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
    """Waits for what must come true; how soon is not asserted."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not come true in time"
        await asyncio.sleep(0.005)


@types.coroutine
def stop_at(
    coroutine: Coroutine[Any, Any, T], wait: int, when: str, error: BaseException
) -> Generator[Any, Any, tuple[str, T | BaseException | None]]:
    """Drives a coroutine by hand and throws `error` into its `wait`-th wait (from 0):
    "before": at once, what it waits for goes on;
    "cancelled": what it waits for is cancelled first, as a task's cancel() does;
    "after": when what it waits for has ended, but before the coroutine has seen that.
    Returns ("thrown", what came out) or ("ended", its value) when it had fewer waits."""
    reached = 0
    try:
        future = coroutine.send(None)
        while reached < wait:
            yield future
            reached += 1
            future = coroutine.send(None)
    except StopIteration as end:
        return "ended", end.value
    if when == "after":
        yield future
    elif future is not None:
        future._asyncio_future_blocking = False
        if when == "cancelled":
            future.cancel()
    try:
        waits_again = coroutine.throw(error)
        while True:
            yield waits_again
            waits_again = coroutine.send(None)
    except StopIteration as end:
        return "thrown", end.value
    except BaseException as problem:
        return "thrown", problem
