"""One getlock on its way: asked, waiting, at its end. It knows no HTTP.

Where a lease and a wait end together, the lease ends first. So a wait that is over is not simply
refused. A lease that is over too is given back; then a last try is made, with another owner. The
server carries out what one client sends in the order of sending, so when it answers that try, it
has handed the lock to the wait if the wait was to have it: only then the wait is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dlock.aio import FOREVER, Asking, Hold, Owner
from dlock.aio.keys import Key
from dlock.errors import DlockError

if TYPE_CHECKING:
    from dlock.doors.doubledutch.service import Party, Service

LAST_TRY_S: Final = 1.0  # for its answer, which a primary that is away does not give
TIMER_S_MAX: Final = 86_400.0

Done = Callable[[str | None], object]


class Attempt:
    """It ends with its callback, or by `cancel`."""

    __slots__ = ("_asking", "_done", "_end_s", "_key", "_last", "_lifetime_s", "_name", "_owner",
                 "_party", "_service", "_timer", "_waits")

    def __init__(self, service: Service, name: str, key: Key, lifetime_s: float, party: Party,
                 done: Done) -> None:
        self._service = service
        self._name = name
        self._key = key
        self._lifetime_s = lifetime_s
        self._party = party
        self._done: Done | None = done
        self._owner = party.take_owner()
        self._asking: Asking | None = None
        self._last: tuple[Owner, Asking] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._end_s = 0.0
        self._waits = False

    def begin(self, timeout_s: float) -> None:
        """Asks. Nothing is called back before this returns."""
        if timeout_s <= 0:
            self._asking = self._owner.ask(self._key, self._answered, 0)
            return
        self._waits = True
        self._service.began_to_wait(self)
        self._end_s = time.monotonic() + timeout_s + self._service.precision_s
        self._asking = self._owner.ask(self._key, self._answered, FOREVER)
        self._set_timer(self._end_s - time.monotonic())

    def cancel(self) -> None:
        """Nobody waits for it any more: it gets no lock, also not one that is on its way."""
        if self._done is not None:
            self._end()
            self._withdraw()

    def refuse(self) -> None:
        """Ends it now, without the lock."""
        self._withdraw()
        self._finish(None)

    # ---- Answers ---------------------------------------------------------------------------------

    def _answered(self, outcome: Hold | DlockError | None) -> None:
        self._asking = None
        if isinstance(outcome, Hold):
            self._drop_last()
            self._hold(outcome)
            return
        self._withdraw()
        self._finish(outcome)

    def _hold(self, hold: Hold) -> None:
        done = self._end()
        token = self._service.acquired(self._name, hold, self._lifetime_s, self._party)
        if done is not None:
            done(token)

    def _finish(self, problem: DlockError | None) -> None:
        done = self._end()
        if done is not None:
            self._service.refused(self._name, problem)
            done(None)

    def _end(self) -> Done | None:
        done, self._done = self._done, None
        if self._waits:
            self._waits = False
            self._service.ended_to_wait(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return done

    def _withdraw(self) -> None:
        """Nothing of it is left at the server."""
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
            self._owner.close()
        else:
            self._party.give_back(self._owner)
        self._drop_last()

    def _drop_last(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            owner, asking = last
            asking.cancel()
            owner.close()

    # ---- The end of a wait -----------------------------------------------------------------------

    def _set_timer(self, delay_s: float) -> None:
        self._timer = self._service.loop.call_later(min(delay_s, TIMER_S_MAX), self._time)

    def _time(self) -> None:
        left_s = self._end_s - time.monotonic()
        if left_s > 0:
            self._set_timer(left_s)
        elif self._last is not None or self._service.is_busy(self._name):
            self.refuse()
        else:
            owner = self._party.take_owner()
            self._last = owner, owner.ask(self._key, self._tried, 0)
            self._end_s = time.monotonic() + LAST_TRY_S
            self._set_timer(LAST_TRY_S)

    def _tried(self, outcome: Hold | DlockError | None) -> None:
        """What the last try has come to; the wait has not got the lock before it."""
        last, self._last = self._last, None
        self._withdraw()
        if isinstance(outcome, Hold):
            self._hold(outcome)
            return
        if last is not None:
            self._party.give_back(last[0])
        self._finish(None)
