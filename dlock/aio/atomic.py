"""`AtomicInt64` for asyncio: a signed 64-bit number at the server that everybody changes in one
step.

An addition or exchange whose answer is lost may have been made or not. It is never repeated: the
caller is told with OutcomeUnknown, and decides. The same is so for one that is cancelled: what was
asked may be carried out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dlock import _calls, _core
from dlock._calls import Outcome, from_word, shown, to_word
from dlock._core import ffi, lib
from dlock._retry import Backoff
from dlock._session import Refusal, Session, Steps
from dlock.aio import _attempt
from dlock.control.messages import ObjectCreate, ObjectDestroy, ObjectGet
from dlock.errors import DlockError, OutcomeUnknown, ServerFull
from dlock.types import DlockStatus

if TYPE_CHECKING:
    from dlock.aio._connection import Connection

_FETCH_ADD: Final[int] = _core.DLK_VERB_FETCH_ADD
_COMPARE_SWAP: Final[int] = _core.DLK_VERB_COMPARE_SWAP
_READ: Final[int] = _core.DLK_VERB_READ

# An object nobody uses goes when this has passed since somebody got it last: a day.
LEASE_S: Final = 86400
TIMEOUT_S: Final = 10.0

_KNOWN: Final = (
    DlockStatus.SUCCESS,
    DlockStatus.OBJECT_ALREADY_CREATED,
    DlockStatus.OBJECT_ALREADY_EXISTED,
)


class AtomicInt64:
    """A number of -2**63 .. 2**63-1 at the server; additions beyond that wrap around. Made by
    `Client.atomic`; the first to name it gives it its initial value.

    It lives in the server's memory: not longer than the server, and for a day after the last client
    got it. Every operation raises ConnectionLost if no server answers in time; one that may have
    changed the number raises OutcomeUnknown where that cannot be told any more.
    """

    __slots__ = ("_client", "_initial", "_name")

    def __init__(self, client: Connection, name: bytes, initial: int) -> None:
        self._client = client
        self._name = name
        self._initial = to_word(initial)  # OverflowError, TypeError

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

        def ask(session: Session) -> Steps[DlockStatus]:
            object_id = session.objects.get(self._name)
            if object_id is None:
                (got,) = yield [ObjectGet(self._name, 0)]
                if got.status is not DlockStatus.SUCCESS:
                    return DlockStatus(got.status)
                object_id = got.object_id
            (done,) = yield [ObjectDestroy(object_id)]
            session.objects.pop(self._name, None)
            lib.dlk_client_drop_object(session.client, object_id)
            return DlockStatus(done.status)

        self._client.enter()
        status = await self._client.run(ask, time.monotonic() + TIMEOUT_S)
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
            object_id = session.objects.get(self._name)
            if object_id is None:
                await client.run(self._get, deadline)
                continue
            call = ffi.new("struct dlk_call *")
            call.verb, call.lock_id, call.operand, call.swap = verb, object_id, operand, swap
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
            await client.regain(session, backoff, deadline)

    def _get(self, session: Session) -> Steps[None]:
        """Gets the object, which is created if nobody has."""
        created, got = yield [
            ObjectCreate(self._name, self._initial, LEASE_S),
            ObjectGet(self._name, LEASE_S),
        ]
        if got.status is DlockStatus.SUCCESS:
            session.objects[self._name] = got.object_id
            lib.dlk_client_add_object(session.client, got.object_id, got.slot)
            return
        status = got.status if created.status in _KNOWN else created.status
        if status is DlockStatus.OBJECT_TOO_MANY:
            raise ServerFull(f"no object {shown(self._name)}: the server has as many as it may; "
                             f"its limit is --max-objects")
        if status is DlockStatus.OBJECT_ALREADY_DESTROYED:
            raise DlockError(f"{self!r} was destroyed, and others still use it")
        raise Refusal(status)

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
