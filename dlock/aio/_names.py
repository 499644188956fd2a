"""Getting names from the server for the tasks of one client: those that want the same one share one
request, and names that are wanted in the same turn of the loop travel together.

A task that leaves takes its wish back; what has been asked already is there for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import itertools
import time
from typing import TYPE_CHECKING

from dlock._handle import Key
from dlock._session import NAMES_AT_ONCE, Refusal, Session
from dlock.errors import ConnectionLost, DlockError

if TYPE_CHECKING:
    from dlock.aio._connection import Connection


class _Wish:
    __slots__ = ("asked", "outcome", "tasks")

    def __init__(self, outcome: asyncio.Future[DlockError | None]) -> None:
        self.outcome = outcome
        self.tasks = 0
        self.asked = False


class Wanted:
    """The names that tasks of a client want. One task asks for all of them, while there are any."""

    __slots__ = ("_asking", "_connection", "_loop", "_parts", "_wishes")

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._wishes: dict[Key, _Wish] = {}
        self._parts = False  # names that were let go are to be told
        self._asking: asyncio.Task[None] | None = None

    async def get(self, key: Key, deadline: float) -> None:
        """Until the name has been got. KindMismatch; ServerFull; ConnectionLost at the deadline
        (time.monotonic)."""
        wish = self._wishes.get(key)
        if wish is None:
            wish = self._wishes[key] = _Wish(self._loop.create_future())
        wish.tasks += 1
        if self._asking is None:
            self._begin()
        try:
            await asyncio.wait((wish.outcome,), timeout=max(deadline - time.monotonic(), 0))
        finally:
            wish.tasks -= 1
            if wish.tasks == 0 and not wish.asked and self._wishes.get(key) is wish:
                del self._wishes[key]
        if not wish.outcome.done():
            raise ConnectionLost(self._connection.no_answer())
        problem = wish.outcome.result()
        if problem is not None:
            raise copy.copy(problem)

    def part(self) -> None:
        """Tells the server soon of the names that were let go."""
        self._parts = True
        if self._asking is None:
            self._begin()

    def _begin(self) -> None:
        self._asking = self._loop.create_task(self._ask())
        self._asking.add_done_callback(self._ended)

    async def _ask(self) -> None:
        while self._wishes or self._parts:
            batch = dict(itertools.islice(self._wishes.items(), NAMES_AT_ONCE))
            for wish in batch.values():
                wish.asked = True
            problems: list[DlockError | None]
            try:
                problems = await self._connection.run(
                    functools.partial(Session.resolve, keys=tuple(batch)), float("inf"))
            except Refusal as refusal:
                self._parts = False  # of names let go it will hear with the next ones
                problems = [DlockError(f"the server gives out no names: {refusal}")] * len(batch)
            self._parts = self._parts and bool(self._connection.names.parting)
            for key, wish, problem in zip(batch, batch.values(), problems, strict=True):
                del self._wishes[key]
                if not wish.outcome.done():
                    wish.outcome.set_result(problem)

    def _ended(self, asking: asyncio.Task[None]) -> None:
        self._asking = None
        problem = None if asking.cancelled() else asking.exception()
        if not asking.cancelled() and not isinstance(problem, Exception):
            # It had just ended when they came; or an interrupt that was meant for the program came
            # while it ran.
            if self._wishes:
                self._begin()
            return
        wishes, self._wishes = self._wishes, {}
        if not isinstance(problem, DlockError):
            problem = self._connection.why_unanswered()
        for wish in wishes.values():
            if not wish.outcome.done():
                wish.outcome.set_result(problem)

    def close(self) -> None:
        """Ends the asking; whoever waits is told."""
        if self._asking is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):
                self._asking.cancel()
