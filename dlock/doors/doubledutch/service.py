"""What DoubleDutch's locks mean, on owners of a dlock client. It knows no HTTP.

A lock is held for its lifetime: the clock of this door says when that is over, and every question
is answered by the clock, whether a timer has run or not. A wait ends by the same clock, and where a
lease and a wait end together, the lease does first (dlock/doors/doubledutch/attempt.py). Nothing
but a wait is tied to a connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable
from functools import lru_cache
from typing import Final, NamedTuple

from dlock.aio import Client, Hold, Owner, keys
from dlock.aio.keys import Key
from dlock.doors.doubledutch.attempt import Attempt, Done
from dlock.doors.doubledutch.tokens import Tokens
from dlock.doors.names import Names
from dlock.errors import ClientClosed, DlockError, KindMismatch

TIMER_S_MAX: Final = 86_400.0  # a timer is set again, so that any number of seconds is allowed
KEYS_KEPT: Final = 65_536  # names whose key need not be made again
NAMES_IDLE_S: Final = 60.0  # names not used for so long are given up at the server


class Shown(NamedTuple):
    """A lock as /status has it. `remaining_s`: of its lifetime, more than 0."""

    name: str
    token: str
    remaining_s: float


class Party:
    """Who asks: a connection. Each acquisition has an owner at the server for itself; one that is
    free again is kept for the next."""

    __slots__ = ("_client", "_spare", "label", "open")

    def __init__(self, client: Client, label: str) -> None:
        self._client = client
        self._spare: Owner | None = None
        self.label = label
        self.open = True

    def take_owner(self) -> Owner:
        """One that neither holds nor asks. ClientClosed."""
        owner, self._spare = self._spare, None
        return self._client.owner(self.label) if owner is None else owner

    def give_back(self, owner: Owner) -> None:
        """It holds and asks nothing any more."""
        if self.open and self._spare is None:
            self._spare = owner
        else:
            owner.close()

    def close(self) -> None:
        """It asks no more. What it has acquired stays."""
        self.open = False
        owner, self._spare = self._spare, None
        if owner is not None:
            owner.close()


class Held:
    """A lock in somebody's hands."""

    __slots__ = ("_service", "_timer", "end_s", "hold", "name", "party", "token")

    def __init__(self, service: Service, name: str, hold: Hold, party: Party, token: str,
                 end_s: float) -> None:
        self._service = service
        self.name = name
        self.hold = hold
        self.party = party
        self.token = token
        self.end_s = end_s
        self._timer: asyncio.TimerHandle | None = None

    def set_timer(self, now_s: float) -> None:
        """For its end, or for a look before it."""
        delay_s = min(self.end_s - now_s, TIMER_S_MAX)
        self._timer = self._service.loop.call_later(delay_s, self._look)

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s < self.end_s:
            self.set_timer(now_s)
        else:
            self._service.expire(self)

    def lost(self, _hold: Hold) -> None:
        """The server says that it is not held any more."""
        self._service.lost(self)


class Service:
    """The locks of one door."""

    def __init__(self, client: Client, names: Names, counters: Counter[str], log: logging.Logger,
                 loop: asyncio.AbstractEventLoop, precision_s: float) -> None:
        """`precision_s`: how much longer than its timeout a wait may last."""
        self._client = client
        self._counters = counters
        self._log = log
        self._tokens = Tokens()
        self._held: dict[str, Held] = {}  # by token, in the order of acquisition
        self._holders: dict[str, Held] = {}  # by name
        self._waiting: set[Attempt] = set()
        self.loop = loop
        self.precision_s = precision_s
        self._key = lru_cache(KEYS_KEPT)(lambda name: _key(names, name))
        self._idle_timer: asyncio.TimerHandle | None = None
        self._give_up_idle_names()

    # ---- The three calls -------------------------------------------------------------------------

    def acquire(self, name: str, timeout_s: float, lifetime_s: float, party: Party,
                done: Done) -> Attempt:
        """`done` is called once, later, with the token, or with None: it was not acquired."""
        self.is_busy(name)  # one that is over goes first
        key, text = self._key(name)
        if text:
            self._client.describe(key, text)
        attempt = Attempt(self, name, key, lifetime_s, party, done)
        attempt.begin(timeout_s)
        return attempt

    def release(self, name: str, token: str) -> bool | Awaitable[bool]:
        """Was this lock held with this token, and is it free now? Awaitable while the primary is
        away for so long that only it can say."""
        held = self._held.get(token)
        if held is None or held.name != name or time.monotonic() >= held.end_s:
            return False
        self._forget(held)
        if not held.hold.release():
            return self._settled(held)
        held.party.give_back(held.hold.owner)
        self._counters["released"] += 1
        return True

    async def _settled(self, held: Held) -> bool:
        try:
            good = await held.hold.settled()
        finally:
            held.party.give_back(held.hold.owner)
        if good:
            self._counters["released"] += 1
        else:
            self._tell_lost(held)
        return good

    def locks(self) -> list[Shown]:
        """What is held, in the order of acquisition."""
        now_s = time.monotonic()
        return [Shown(one.name, one.token, one.end_s - now_s) for one in self._held.values()
                if one.end_s > now_s]

    # ---- What attempts need ----------------------------------------------------------------------

    def began_to_wait(self, attempt: Attempt) -> None:
        self._waiting.add(attempt)
        self._counters["waiting"] = len(self._waiting)

    def ended_to_wait(self, attempt: Attempt) -> None:
        self._waiting.discard(attempt)
        self._counters["waiting"] = len(self._waiting)

    def is_busy(self, name: str) -> bool:
        """Is it held by a party of this door, by the clock? One that is over is given back now."""
        held = self._holders.get(name)
        if held is None:
            return False
        if time.monotonic() < held.end_s:
            return True
        self.expire(held)
        return False

    def acquired(self, name: str, hold: Hold, lifetime_s: float, party: Party) -> str:
        """The token of a lock that was just granted."""
        self._counters["acquired"] += 1
        token = self._tokens.new()
        if lifetime_s <= 0:  # over before it began
            hold.release()
            party.give_back(hold.owner)
            return token
        now_s = time.monotonic()
        held = Held(self, name, hold, party, token, now_s + lifetime_s)
        hold.on_lost = held.lost
        self._held[token] = self._holders[name] = held
        held.set_timer(now_s)
        return token

    def refused(self, name: str, problem: DlockError | None) -> None:
        """Not acquired; `problem`: for another reason than that it is taken."""
        self._counters["refused"] += 1
        if problem is None or isinstance(problem, ClientClosed):
            return
        self._counters["refused_kind" if isinstance(problem, KindMismatch) else "failed"] += 1
        self._log.warning("doubledutch lock not acquired name=%r: %s", name, problem)

    # ---- The ends of locks -----------------------------------------------------------------------

    def expire(self, held: Held) -> None:
        """Its lifetime is over. If the primary is away, it is given back when that is there."""
        if self._held.get(held.token) is held:
            self._forget(held)
            self._counters["expired"] += 1
            held.hold.release()
            held.party.give_back(held.hold.owner)

    def lost(self, held: Held) -> None:
        """Its token is unknown from now on."""
        if self._held.get(held.token) is held:
            self._forget(held)
            held.party.give_back(held.hold.owner)
            self._tell_lost(held)

    def _tell_lost(self, held: Held) -> None:
        self._counters["lost_holds"] += 1
        self._log.warning("doubledutch lock lost name=%r client=%s: the primary has not kept it",
                          held.name, held.party.label)

    def _forget(self, held: Held) -> None:
        held.stop_timer()
        del self._held[held.token]
        if self._holders.get(held.name) is held:
            del self._holders[held.name]

    def stop(self) -> None:
        """Whoever waits is refused. What is held ends with the client."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for attempt in list(self._waiting):
            attempt.refuse()
        for held in self._held.values():
            held.stop_timer()

    def _give_up_idle_names(self) -> None:
        self._client.let_go_idle(NAMES_IDLE_S)
        self._idle_timer = self.loop.call_later(NAMES_IDLE_S / 2, self._give_up_idle_names)


def _key(names: Names, name: str) -> tuple[Key, bytes]:
    """The key, and what to tell operators of it. `name`: bytes that are no UTF-8 are kept in it as
    surrogates, and are a name like any."""
    descriptor, text = names.exclusive(name.encode("utf-8", "surrogateescape"))
    return keys.exclusive(descriptor), text
