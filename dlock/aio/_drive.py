"""Carries out, in an event loop, what a session must ask on the control plane: the steps of the
generators of `dlock._session`, which a blocking client shares. It decides nothing itself.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from dlock import _core
from dlock._pairing import NewEnd
from dlock._session import Attach, Connect, Pause, Settle, Steps
from dlock.aio._attach import attach, settle
from dlock.aio.link import AsyncLink
from dlock.control.link import LinkError
from dlock.control.messages import Request

T = TypeVar("T")

REPLY_TIMEOUT_S: Final = _core.DLK_REPLY_TIMEOUT_MS_DEFAULT / 1000


class Driver:
    """One control link, made anew as often as the steps say. Any number of generators may be under
    way; a link that one of them replaces is closed for all."""

    __slots__ = ("_loop", "closed", "link")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.link: AsyncLink | None = None
        self.closed = False

    async def run(self, steps: Steps[T], timeout_s: float = REPLY_TIMEOUT_S) -> T:
        """The value of these steps, each exchange of which may take so long. What ends the wait in
        the middle, a cancellation for one, ends the generator where it is."""
        try:
            step = next(steps)
            while True:
                try:
                    outcome = await self._carry_out(step, timeout_s)
                except LinkError as problem:
                    step = steps.throw(problem)
                except BaseException:
                    steps.close()
                    raise
                else:
                    step = steps.send(outcome)
        except StopIteration as end:
            value: T = end.value
            return value

    async def _carry_out(self, step: Any, timeout_s: float) -> Any:
        if isinstance(step, list):
            return await self.exchange(step, timeout_s)
        if isinstance(step, Connect):
            return await self._connect(step)
        if isinstance(step, NewEnd):
            return step.make()
        if isinstance(step, Attach):
            return await attach(self._loop, step)
        if isinstance(step, Settle):
            return await settle(step)
        assert isinstance(step, Pause)
        return await self._pause(step)

    async def _pause(self, step: Pause) -> None:
        if step.seeker is None:
            await asyncio.sleep(step.seconds)
            return
        called = self._loop.create_future()
        step.seeker.wake = partial(self._loop.call_soon_threadsafe, _end, called)
        timer = self._loop.call_later(0 if step.seeker.called else step.seconds, _end, called)
        try:
            await called
        finally:
            timer.cancel()

    async def _connect(self, step: Connect) -> str:
        former, self.link = self.link, None
        if former is not None:
            former.close()
        endpoint = step.endpoint
        link = await AsyncLink.connect(endpoint.host, endpoint.port, step.timeout_s)
        if self.closed:
            link.close()
            raise LinkError("the client was closed")
        self.link = link
        return link.peer

    async def exchange(self, requests: Sequence[Request[Any]], timeout_s: float) -> list[Any]:
        """The answers to these requests. LinkError."""
        if self.link is None:
            raise LinkError("there is no link")
        return await self.link.exchange(requests, timeout_s)

    @property
    def broken(self) -> bool:
        """There is no link that could be used."""
        return self.link is None or self.link.closed

    def watch(self, reference: weakref.ref[Callable[[], None]]) -> None:
        """Calls this, if it still lives, when the link ends."""

        def on_end() -> None:
            ended = reference()
            if ended is not None:
                ended()

        if self.link is not None:
            self.link.on_end = on_end

    def farewell(self, message: Request[Any]) -> None:
        """Sends a last request without waiting for anything, and closes."""
        if self.link is not None:
            self.link.farewell(message)
        self.closed = True

    def close(self) -> None:
        """Ends the link; whoever waits for an answer gets LinkError."""
        self.closed = True
        if self.link is not None:
            self.link.close()


def _end(wait: asyncio.Future[None]) -> None:
    if not wait.done():
        wait.set_result(None)
