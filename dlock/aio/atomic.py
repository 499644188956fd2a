"""`AtomicInt64` for asyncio: a signed 64-bit number at the server that everybody changes in one
step.

An addition or exchange whose answer is lost may have been made or not. It is never repeated: the
caller is told with OutcomeUnknown, and decides. The same is so for one that is cancelled: what was
asked may be carried out. A number is gone with its server: the caller is told with ObjectLost, or
has said beforehand what it shall be then.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dlock import _calls, _core, _objects
from dlock._calls import Outcome, from_word, shown, to_word
from dlock._objects import TIMEOUT_S, OnRecover
from dlock._retry import Backoff
from dlock._session import Session
from dlock.aio import _attempt
from dlock.aio.locks import Lock, Options
from dlock.errors import DlockError, LockLost, OutcomeUnknown
from dlock.types import DlockStatus

if TYPE_CHECKING:
    from dlock.aio._connection import Connection

_FETCH_ADD: Final[int] = _core.DLK_VERB_FETCH_ADD
_COMPARE_SWAP: Final[int] = _core.DLK_VERB_COMPARE_SWAP
_READ: Final[int] = _core.DLK_VERB_READ


class AtomicInt64:
    """A number of -2**63 .. 2**63-1 at the server; additions beyond that wrap around. Made by
    `Client.atomic`; the first to name it gives it its initial value.

    It lives in the server's memory: not longer than the server, and for a day after the last client
    got it. Every operation raises ConnectionLost if no server answers in time; one that may have
    changed the number raises OutcomeUnknown where that cannot be told any more. At a new primary
    the first operation raises ObjectLost, unless `on_recover` says what the number shall be.
    """

    __slots__ = ("_client", "_epoch", "_initial", "_name", "_on_recover")

    def __init__(
        self, client: Connection, name: bytes, initial: int, on_recover: OnRecover | None = None
    ) -> None:
        to_word(initial)  # OverflowError, TypeError
        self._client = client
        self._name = name
        self._initial = initial
        self._on_recover = _objects.checked(on_recover)
        self._epoch = client.session.epoch  # of the primary whose number it is

    # ---- Operations ------------------------------------------------------------------------------

    async def get(self) -> int:
        """The number."""
        _, word = await self._operate(_READ, 0, 0)
        return from_word(word)

    async def add(self, value: int) -> int:
        """Adds, and returns what the number is then."""
        return from_word((to_word(await self.fetch_add(value)) + to_word(value)) & (2**64 - 1))

    async def fetch_add(self, value: int) -> int:
        """Adds, and returns what the number was before."""
        _, word = await self._operate(_FETCH_ADD, to_word(value), 0)
        return from_word(word)

    async def next(self) -> int:
        """Counts: returns the number and adds 1, so that everybody gets another one."""
        return await self.fetch_add(1)

    async def __anext__(self) -> int:
        return await self.next()

    def __aiter__(self) -> AtomicInt64:
        return self

    async def compare_exchange(self, expected: int, desired: int) -> tuple[bool, int]:
        """Makes the number `desired` if it is `expected`. Whether it did, and what it found."""
        done, word = await self._operate(_COMPARE_SWAP, to_word(expected), to_word(desired))
        return done, expected if done else from_word(word)

    async def set(self, value: int) -> int:
        """Makes the number `value`, whatever it was; returns what it was. Several messages while
        others change it at the same time."""
        found = await self.get()
        while True:
            done, found = await self.compare_exchange(found, value)
            if done:
                return found

    async def update(self, function: Callable[[int], int]) -> int:
        """Makes the number what `function` makes of it, which may be called several times; returns
        what it is then."""
        found = await self.get()
        while True:
            wanted = function(found)
            done, found = await self.compare_exchange(found, wanted)
            if done:
                return wanted

    async def destroy(self) -> None:
        """Ends the number for everybody, when nobody uses it any more. Only the client that named
        it first may: DlockError for others."""

        self._client.enter()
        deadline = time.monotonic() + TIMEOUT_S
        await self._recover(self._client.session, deadline)
        status = await self._client.run(
            functools.partial(_objects.destroying, name=self._name), deadline)
        if status is not DlockStatus.SUCCESS:
            raise DlockError(f"{self!r}: {_core.status_text(status)}")

    # ---- One operation ---------------------------------------------------------------------------

    async def _operate(self, verb: int, operand: int, swap: int) -> tuple[bool, int]:
        """Whether it was done, and the word that the server answered."""
        client = self._client
        client.enter()
        deadline = time.monotonic() + TIMEOUT_S
        backoff = Backoff()
        while True:
            session = client.session
            if session.epoch != self._epoch:
                await self._recover(session, deadline)
                deadline = time.monotonic() + TIMEOUT_S
            call = _objects.new_call(session, self._name, verb, operand, swap)
            if call is None:
                await self._get(self._initial, deadline)
                continue
            status = await _attempt.run(client, call)
            outcome = _calls.judge_object(status, self._name)
            if outcome is Outcome.DONE or outcome is Outcome.REFUSED:
                return outcome is Outcome.DONE, int(call.value)
            if outcome is Outcome.UNANSWERED and call.sent and verb != _READ:
                raise OutcomeUnknown(
                    f"the answer to a change of {self!r} was lost: it was made once or not at all; "
                    "read the number to find out"
                )
            if outcome is Outcome.STALE:
                session.objects.pop(self._name, None)
                continue
            if outcome is Outcome.REMOVED:
                client.session_removed(session)
            elif outcome is Outcome.NOT_READY:
                client.not_ready(session)
            await client.regain(session, backoff, deadline)

    async def _get(self, initial: int | None, deadline: float) -> bool:
        """Gets the number; see `_objects.getting`."""
        ask = functools.partial(_objects.getting, name=self._name, initial=initial)
        return await self._client.run(ask, deadline)

    # ---- After a failover ------------------------------------------------------------------------

    async def _recover(self, session: Session, deadline: float) -> None:
        """If the primary is another one, the number that this object stood for is gone. ObjectLost,
        unless it is known what it shall be now."""
        epoch = session.epoch
        if epoch == self._epoch:
            return
        if self._on_recover is None:
            self._epoch = epoch
            raise _objects.lost(self._name, self._initial)
        if callable(self._on_recover):
            await self._ask_what_it_shall_be(self._on_recover, deadline)
        else:
            await self._get(self._on_recover, deadline)  # one of those who create it is the first
        self._epoch = epoch

    async def _ask_what_it_shall_be(
        self, on_recover: Callable[[], object], deadline: float
    ) -> None:
        """One client at a time: the first finds no number, and makes it."""
        guard = Lock(self._client, _objects.guard_key(self._name), Options())
        while not await guard.acquire(timeout=max(deadline - time.monotonic(), 0.01)):
            deadline = time.monotonic() + TIMEOUT_S  # somebody is at it
        try:
            if not await self._get(None, time.monotonic() + TIMEOUT_S):
                found = on_recover()
                if inspect.isawaitable(found):
                    found = await found
                value = _objects.value_of(found, self._name)
                await self._get(value, time.monotonic() + TIMEOUT_S)
        finally:
            with contextlib.suppress(LockLost):  # another failover; who creates it is the first
                await guard.release()

    # ---- As an object ----------------------------------------------------------------------------

    @property
    def name(self) -> str | bytes:
        """The name; bytes where it is no UTF-8."""
        try:
            return self._name.decode()
        except UnicodeDecodeError:
            return self._name

    def __repr__(self) -> str:
        return f"<dlock.aio.AtomicInt64 {shown(self._name)}>"
