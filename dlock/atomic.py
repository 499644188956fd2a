"""`AtomicInt64`: a signed 64-bit number at the server that everybody changes in one step.

An addition or exchange whose answer is lost may have been made or not. It is never repeated: the
caller is told with OutcomeUnknown, and decides. A number is gone with its server: the caller is
told with ObjectLost, or has said beforehand what it shall be then.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dlock import _attempt, _calls, _core, _objects
from dlock._calls import Outcome, from_word, shown, to_word
from dlock._objects import TIMEOUT_S, OnRecover
from dlock._retry import Backoff
from dlock._session import Session
from dlock.errors import DlockError, LockLost, OutcomeUnknown
from dlock.locks import Lock
from dlock.types import DlockStatus

if TYPE_CHECKING:
    from dlock.client import Client

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

    __slots__ = ("_address", "_client", "_epoch", "_initial", "_name", "_on_recover")
    _address: str

    def __init__(
        self, client: Client, name: bytes, initial: int = 0, on_recover: OnRecover | None = None
    ) -> None:
        to_word(initial)  # OverflowError, TypeError
        self._client = client
        self._name = name
        self._initial = initial
        self._on_recover = _objects.checked(on_recover)
        self._epoch = client._session.epoch  # of the primary whose number it is

    # ---- Operations ------------------------------------------------------------------------------

    def get(self) -> int:
        """The number."""
        _, word = self._operate(_READ, 0, 0)
        return from_word(word)

    def add(self, value: int) -> int:
        """Adds, and returns what the number is then."""
        return from_word((to_word(self.fetch_add(value)) + to_word(value)) & (2**64 - 1))

    def fetch_add(self, value: int) -> int:
        """Adds, and returns what the number was before."""
        _, word = self._operate(_FETCH_ADD, to_word(value), 0)
        return from_word(word)

    def next(self) -> int:
        """Counts: returns the number and adds 1, so that everybody gets another one."""
        return self.fetch_add(1)

    def __next__(self) -> int:
        return self.next()

    def __iter__(self) -> AtomicInt64:
        return self

    def compare_exchange(self, expected: int, desired: int) -> tuple[bool, int]:
        """Makes the number `desired` if it is `expected`. Whether it did, and what it found."""
        done, word = self._operate(_COMPARE_SWAP, to_word(expected), to_word(desired))
        return done, expected if done else from_word(word)

    def set(self, value: int) -> int:
        """Makes the number `value`, whatever it was; returns what it was. Several messages while
        others change it at the same time."""
        found = self.get()
        while True:
            done, found = self.compare_exchange(found, value)
            if done:
                return found

    def update(self, function: Callable[[int], int]) -> int:
        """Makes the number what `function` makes of it, which may be called several times; returns
        what it is then."""
        found = self.get()
        while True:
            wanted = function(found)
            done, found = self.compare_exchange(found, wanted)
            if done:
                return wanted

    def destroy(self) -> None:
        """Ends the number for everybody, when nobody uses it any more. Only the client that named
        it first may: DlockError for others."""

        until = time.monotonic() + TIMEOUT_S
        self._recover(self._client._session, until)
        status = self._client._run(
            functools.partial(_objects.destroying, name=self._name), until)
        if status is not DlockStatus.SUCCESS:
            raise DlockError(f"{self!r}: {_core.status_text(status)}")

    # ---- One operation ---------------------------------------------------------------------------

    def _operate(self, verb: int, operand: int, swap: int) -> tuple[bool, int]:
        """Whether it was done, and the word that the server answered."""
        client = self._client
        until = time.monotonic() + TIMEOUT_S
        while True:
            session = client._session
            if session.epoch != self._epoch:
                self._recover(session, until)
                until = time.monotonic() + TIMEOUT_S
            call = _objects.new_call(session, self._name, verb, operand, swap)
            if call is None:
                self._get(self._initial, until)
                continue
            status = _attempt.run(session.client, call)
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
            elif outcome is Outcome.REMOVED:
                client._session_removed(session)
            elif outcome is Outcome.NOT_READY:
                client._not_ready(session)
            pause_s = 0.0 if outcome is Outcome.STALE else Backoff().pause_s()
            client._regain(session, pause_s, until)

    def _get(self, initial: int | None, until: float) -> bool:
        """Gets the number; see `_objects.getting`."""
        ask = functools.partial(_objects.getting, name=self._name, initial=initial)
        return self._client._run(ask, until)

    # ---- After a failover ------------------------------------------------------------------------

    def _recover(self, session: Session, until: float) -> None:
        """If the primary is another one, the number that this object stood for is gone. ObjectLost,
        unless it is known what it shall be now."""
        epoch = session.epoch
        if epoch == self._epoch:
            return
        if self._on_recover is None:
            self._epoch = epoch
            raise _objects.lost(self._name, self._initial)
        if callable(self._on_recover):
            self._ask_what_it_shall_be(self._on_recover, until)
        else:
            self._get(self._on_recover, until)  # one of those who create it is the first
        self._epoch = epoch

    def _ask_what_it_shall_be(self, on_recover: Callable[[], object], until: float) -> None:
        """One client at a time: the first finds no number, and makes it."""
        guard = Lock(self._client, _objects.guard_key(self._name))
        while not guard.acquire(timeout=max(until - time.monotonic(), 0.01)):
            until = time.monotonic() + TIMEOUT_S  # somebody is at it
        try:
            if not self._get(None, time.monotonic() + TIMEOUT_S):
                value = _objects.value_of(on_recover(), self._name)
                self._get(value, time.monotonic() + TIMEOUT_S)
        finally:
            with contextlib.suppress(LockLost):  # another failover; who creates it is the first
                guard.release()

    # ---- As an object ----------------------------------------------------------------------------

    @property
    def name(self) -> str | bytes:
        """The name; bytes where it is no UTF-8."""
        try:
            return self._name.decode()
        except UnicodeDecodeError:
            return self._name

    def __repr__(self) -> str:
        return f"<dlock.AtomicInt64 {shown(self._name)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """By address and name: who unpickles it connects, at its first use."""
        return _unpickle, (self._client.address, self._name, self._initial, self._on_recover)

    def __getattr__(self, name: str) -> Any:
        """Only for what is missing: the client of an unpickled object, until its first use."""
        if name == "_client":
            from dlock.client import shared  # which imports this module

            self._client = shared(self._address)
            self._epoch = self._client._session.epoch
            return self._client
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _unpickle(
    address: str, name: bytes, initial: int, on_recover: OnRecover | None
) -> AtomicInt64:
    one = AtomicInt64.__new__(AtomicInt64)
    one._address, one._name, one._initial, one._on_recover = address, name, initial, on_recover
    return one
