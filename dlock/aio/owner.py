"""Many parties behind one client: an `Owner` is a party with locks of its own, which asks by
callbacks. For a program that speaks for others, such as a server with a connection for each of
them.

An acquisition that the server answers at once costs no task and no future: the collector calls
straight back (dlock/aio/_collect.py). What takes longer, a name that was not got yet, a lost link,
a new primary, is carried on by a task (dlock/aio/_attempt.py).

A handle is in one place at a time: an `Asking` has it until it is answered or cancelled, its task
while that runs, then the `Hold`, and after the release the collector. Whoever has it answers for
it: what is cancelled is given back, also a grant that is under way.

Used in the loop of its client only. It may not decide what a status means (dlock/_calls.py).
"""

from __future__ import annotations

import asyncio
import time
from asyncio import _get_running_loop
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from dlock import _core
from dlock._calls import FOREVER, Asked, left_ms, look, shown
from dlock._handle import Handle, NameTable
from dlock.aio import _attempt
from dlock.aio._actors import new_number
from dlock.aio._watch import CONFIRMED, LOST
from dlock.aio.keys import Key
from dlock.aio.locks import ask as way_to_ask
from dlock.errors import ClientClosed, ConnectionLost, DlockError

if TYPE_CHECKING:
    from dlock.aio._connection import Connection

_PENDING: Final[int] = _core.DLK_STATUS_PENDING
_SUCCESS: Final[int] = _core.DLK_STATUS_SUCCESS
_UNANSWERED: Final[int] = _core.DLK_STATUS_BAD_RESPONSE
_REFUSED: Final = (_core.DLK_STATUS_FAIL, _core.DLK_STATUS_EAGAIN)
_FOREVER_S: Final = 1e9  # thirty years
LATE_S: Final = 0.25  # a wait that the server has not ended by then is ended here

_give_back: Final = NameTable.give_back

# Called once with what became of an `ask`: the hold; None: the lock is taken, or the wait is over;
# or why it could not be had.
Done = Callable[["Hold | DlockError | None"], object]


class Hold:
    """A lock that an owner holds. `token`: the fencing token; `key`: of what; `owner`: whose.
    `on_lost`, if it is set, is called once in the event loop, with the hold, when the hold is lost
    before it was released."""

    __slots__ = ("_handle", "_outcome", "_parting", "_waiting", "key", "on_lost", "owner", "token")

    def __init__(self, owner: Owner, key: Key, handle: Handle) -> None:
        """Made by an `Asking` that was granted."""
        self._handle: Handle | None = handle
        self._parting = False  # released while it was suspended
        self._outcome: bool | None = None  # True: it was good until it was released
        self._waiting: list[asyncio.Future[bool]] | None = None
        self.key = key
        self.owner = owner
        self.on_lost: Callable[[Hold], object] | None = None
        self.token = int(handle.acquire.token)
        handle.watcher = self._told

    def __repr__(self) -> str:
        state = "held" if self.held else "not held" if self._handle is None else "suspended"
        return f"<dlock.aio.Hold of {shown(self.key.descriptor)}, token {self.token}, {state}>"

    @property
    def held(self) -> bool:
        """Is it held, now, by the client's own clock? False too while it is SUSPENDED: act as if it
        were gone; `settled` says what came of it."""
        handle = self._handle
        return handle is not None and not self._parting and left_ms(handle) > 0

    def release(self) -> bool:
        """Gives it back, at once and without waiting. True: it was certainly good until then, so
        that nobody else can have had the lock meanwhile. False: it was not, or is not held any
        more; `settled` says what came of it."""
        handle = self._handle
        if handle is None or self._parting:
            return False
        if left_ms(handle):
            self._let_go(handle)
            return True
        token, _ = look(handle)
        self._parting = True
        self.owner._holds.discard(self)
        if token:
            # Only who still claims it can hear that it was good, so it is given back afterwards.
            self.owner._connection.doubts.add(self)
        else:
            self._lose()
        return False

    async def settled(self) -> bool:
        """Waits while it is SUSPENDED: True when it is confirmed, False when it is lost. After a
        `release` that said False: was it good until it was given back?"""
        if self._outcome is not None:
            return self._outcome
        if self.held:
            return True
        connection = self.owner._connection
        waiting = connection.loop.create_future()
        if self._waiting is None:
            self._waiting = []
        self._waiting.append(waiting)
        if self.look_again():
            connection.doubts.discard(self)
        else:
            connection.doubts.add(self)
        settled: bool = await waiting
        return settled

    # ---- What becomes of it ----------------------------------------------------------------------

    def _let_go(self, handle: Handle) -> None:
        self._handle = handle.watcher = None
        self._outcome = True
        owner = self.owner
        owner._holds.discard(self)
        owner._connection.collector.let_go(handle)

    def look_again(self) -> bool:
        """Is it confirmed or lost? Then whoever waits for that is told."""
        handle = self._handle
        if handle is None:
            return True
        token, left = look(handle)
        if left:
            if self._parting:
                self._let_go(handle)
            self._tell(True)
        elif not token:
            self._lose()
        return left > 0 or not token

    def _told(self, kind: int, token: int) -> None:
        """A notice about the hold with this token; notices about earlier holds are stale."""
        if token != self.token:
            return
        if kind in LOST:
            self._lose()
        elif kind == CONFIRMED and (self._parting or self._waiting):
            self.look_again()

    def _lose(self) -> None:
        handle, self._handle = self._handle, None
        if handle is None:
            return
        handle.watcher = None
        owner = self.owner
        owner._holds.discard(self)
        self._outcome = False
        _attempt.withdraw(owner._connection, handle)
        self._tell(False)
        told = self.on_lost
        connection = owner._connection
        left = connection.closed and connection.superseded is None
        if told is not None and not self._parting and not left:
            try:
                told(self)
            except Exception as problem:
                connection.failed("what was to be told of a lost hold failed", problem)

    def _tell(self, outcome: bool) -> None:
        waiting, self._waiting = self._waiting, None
        for one in waiting or ():
            if not one.done():
                one.set_result(outcome)


class Asking:
    """One acquisition under way, made by `Owner.ask`. It ends with its callback, or by `cancel`."""

    __slots__ = ("_asked", "_deadline", "_done", "_handle", "_late", "_notices", "_owner",
                 "_struck", "_task", "key")

    def __init__(self, owner: Owner, key: Key, done: Done, asked: Asked) -> None:
        self._owner = owner
        self.key = key
        self._done: Done | None = done
        self._asked = asked
        self._handle: Handle | None = None
        self._task: asyncio.Task[None] | None = None
        self._notices = owner._connection.notices
        self._struck: asyncio.Future[Hold | DlockError | None] | None = None  # of a coroutine
        self._late: asyncio.TimerHandle | None = None
        self._deadline: float | None = None
        wait_ms = asked.wait_ms
        if wait_ms != FOREVER and (wait_ms or owner.patience is not None):
            self._limit(wait_ms / 1000)

    def _limit(self, wait_s: float) -> None:
        """The server may not answer in time. One that waits has its answer from the server, if
        there is one, a moment before this."""
        owner = self._owner
        limit_s = wait_s or owner.patience or 0.0
        self._deadline = time.monotonic() + limit_s
        self._late = owner._connection.loop.call_later(
            limit_s + LATE_S if wait_s else limit_s, self._is_late)

    def _is_late(self) -> None:
        done, connection = self._done, self._owner._connection
        self.cancel()
        self._done = done
        self._end(None if self._asked.wait_ms else ConnectionLost(connection.no_answer()))

    def cancel(self) -> None:
        """Ends it: the callback is not called any more, and nothing is left behind; a grant that
        is under way is given back. Does nothing when it has ended."""
        if self._done is None:
            return
        self._done = None
        self._owner._asks.discard(self)
        if self._late is not None:
            self._late.cancel()
        if self._task is not None:
            self._task.cancel()
        handle, self._handle = self._handle, None
        if handle is not None:
            _attempt.withdraw(self._owner._connection, handle)

    # ---- Answered at once ------------------------------------------------------------------------

    def answered(self, status: int) -> None:
        """The posted call has ended; called by the collector."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        if status == _SUCCESS and self._is_good(handle):
            self._granted(handle)
        elif status in _REFUSED:
            _give_back(handle)
            self._end(None)
        else:
            self._handle = handle
            self.carry_on(status)

    def _is_good(self, handle: Handle) -> bool:
        """A grant that was collected may be lost already: its session has ended, or a notice was
        there before anybody watched the hold."""
        if handle.name.table.ended:
            return False
        return self._notices == self._owner._connection.notices or look(handle).token != 0

    def _granted(self, handle: Handle) -> None:
        owner = self._owner
        hold = Hold(owner, self.key, handle)
        owner._holds.add(hold)
        self._end(hold)

    def _end(self, outcome: Hold | DlockError | None) -> None:
        """Calls back."""
        done, self._done = self._done, None
        self._owner._asks.discard(self)
        if self._late is not None:
            self._late.cancel()
        if done is not None:
            try:
                done(outcome)
            except Exception as problem:
                self._owner._connection.failed("what was to be told of a lock failed", problem)

    def fail_soon(self, problem: DlockError) -> None:
        """Calls back in the next turn of the loop."""
        self._owner._connection.loop.call_soon(self._end, problem)

    # ---- Carried on by a task --------------------------------------------------------------------

    def carry_on(self, status: int) -> None:
        """What it takes when the first answer was none of the usual ones, or nothing could be asked
        yet, since the name was not got: then it has no handle."""
        self._task = self._owner._connection.loop.create_task(self._carried_on(status))

    async def _carried_on(self, status: int) -> None:
        handle, self._handle = self._handle, None
        outcome: DlockError | None = None
        try:
            handle = await self._persist(handle, status)
        except asyncio.CancelledError:
            # By somebody else than `cancel`: the loop ends.
            self._end(ClientClosed("the event loop of this dlock client ends"))
            raise
        except ConnectionLost as problem:
            outcome = None if self._asked.wait_ms else problem
        except DlockError as problem:
            outcome = problem
        except Exception as problem:
            self._owner._connection.failed("a lock could not be asked for", problem)
            outcome = DlockError(f"lock {shown(self.key.descriptor)}: {problem!r}")
        else:
            if handle is not None:
                self._granted(handle)
                return
        self._end(outcome)

    async def _persist(self, handle: Handle | None, status: int) -> Handle | None:
        """The handle that holds the lock; None: it is taken, or the wait is over. Whatever it
        raises, nothing is left behind."""
        connection, asked = self._owner._connection, self._asked
        deadline = self._deadline
        if deadline is None:
            deadline = time.monotonic() + _FOREVER_S
        while True:
            if handle is None:
                handle = await connection.take(self.key.lock, self._owner.number, deadline)
                status = await self._first(handle, deadline)
            granted = status == _SUCCESS
            if not granted or handle.name.table.ended:
                handle, granted = await _attempt.persist(
                    connection, handle, asked, _UNANSWERED if granted else status, None, deadline)
            if not granted:
                _give_back(handle)
                return None
            if look(handle).token:
                return handle
            handle.abandon()
            handle = None

    async def _first(self, handle: Handle, deadline: float) -> int:
        """Asks with a handle that was got late."""
        connection, asked = self._owner._connection, self._asked
        try:
            if asked.wait_ms not in (0, FOREVER):
                left_ms = max(int((deadline - time.monotonic()) * 1000), 1)
                asked = asked._replace(wait_ms=left_ms)
            _attempt.fill(handle, asked)
            return await _attempt.answer(connection.collector.acquire(handle))
        except BaseException:
            _attempt.withdraw(connection, handle)
            raise

    def strike(self) -> None:
        """Cancels it because its owner is closed; a coroutine that waits for it is told."""
        struck = self._struck
        self.cancel()
        if struck is not None and not struck.done():
            struck.set_result(ClientClosed("this owner was closed"))


class Owner:
    """A party with locks of its own: made by `client.owner()`. Owners of one client exclude each
    other like clients do. `number`: how the server knows it; `label`: for operators; `patience`:
    for how many seconds an `ask` that does not wait for its lock waits for an answer of the server,
    None: for ever."""

    __slots__ = ("__weakref__", "_asks", "_connection", "_holds", "closed", "label", "number",
                 "patience")

    def __init__(self, connection: Connection, label: str, patience: float | None) -> None:
        """Use `client.owner()`."""
        self._connection = connection
        self.label = label
        self.closed = False
        self.patience = patience
        self.number = new_number()
        if label:
            connection.descriptions.label(self.number, label)
        self._asks: set[Asking] = set()
        self._holds: set[Hold] = set()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._holds)} held, {len(self._asks)} asked"
        return f"<dlock.aio.Owner {self.number} {self.label!r}, {state}>"

    def __del__(self) -> None:
        if self.label and not self.closed:
            self._connection.descriptions.forget(self.number)

    @property
    def holds(self) -> frozenset[Hold]:
        """What it holds at this moment."""
        return frozenset(self._holds)

    def ask(self, key: Key, done: Done, wait_ms: int = 0) -> Asking:
        """Asks for a lock, and returns at once. `done` is called once, later and by the event loop,
        with the hold; with None: it is taken, or the wait is over; or with an error: KindMismatch,
        ServerFull, ClientClosed, ConnectionLost (patience is over).

        `wait_ms`: how long to wait for it; 0 only tries, `FOREVER` waits for ever. A lost link is
        ridden out: it is asked again when there is a server, and one that waits keeps its place.
        An owner that asks for a lock that it has got waits for itself. WrongLoop."""
        connection = self._connection
        if _get_running_loop() is not connection.loop:
            connection.check()
        asked = way_to_ask(key.mode, 0, wait_ms, 0, 1)
        asking = Asking(self, key, done, asked)
        self._asks.add(asking)
        if self.closed or connection.closed:
            asking.fail_soon(ClientClosed("this owner was closed") if self.closed else
                             connection.why_closed())
            return asking
        handle = connection.names.take(key.lock, self.number)
        if handle is None:
            asking.carry_on(_UNANSWERED)
            return asking
        if handle.asked is not asked:
            _attempt.fill(handle, asked)
        asking._handle = handle
        status = connection.collector.ask(handle, asking)
        if status != _PENDING:
            asking.carry_on(status)
        return asking

    async def take(self, key: Key, wait_ms: int = FOREVER) -> Hold | None:
        """The same for a coroutine: the hold, or None. A cancellation leaves nothing behind.
        KindMismatch; ServerFull; ClientClosed; ConnectionLost."""
        struck: asyncio.Future[Hold | DlockError | None]
        struck = self._connection.loop.create_future()
        asking = self.ask(key, partial(_bring, struck), wait_ms)
        asking._struck = struck
        try:
            outcome = await struck
        except BaseException:
            asking.cancel()
            if struck.done() and not struck.cancelled():
                _bring(struck, struck.result())
            raise
        if isinstance(outcome, DlockError):
            raise outcome
        return outcome

    def close(self) -> None:
        """Cancels what it asks for and releases what it holds."""
        self.closed = True
        if self.label:
            self._connection.descriptions.forget(self.number)
        for asking in list(self._asks):
            asking.strike()
        for hold in list(self._holds):
            hold.release()


def _bring(
    struck: asyncio.Future[Hold | DlockError | None], outcome: Hold | DlockError | None
) -> None:
    """To the coroutine that waits; one that was cancelled in this moment gives it back."""
    if not struck.done():
        struck.set_result(outcome)
    elif isinstance(outcome, Hold):
        outcome.release()
