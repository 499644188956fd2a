"""What the registry's parts share: its effects, the commands under way, the slots of a table.

An effect is what the registry wants done; the loop does it, in order. Pure like the registry.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from dlock import _core
from dlock._core import Command, EntryView, Event, LockView
from dlock._frozen import Frozen
from dlock._verbs import Address
from dlock.control import messages as m
from dlock.control.roster import RosterEntry
from dlock.types import DlockStatus


class Answer(Frozen):
    """Send this; of no effect if the connection is gone."""

    connection: int
    request_id: int
    message: m.Message


class AnswerStats(Frozen):
    """Send counters and gauges: these, and those of the loop and of the plane."""

    connection: int
    request_id: int
    stats: dict[str, int]


class CloseConnection(Frozen):
    """Close it after what has been answered on it was sent."""

    connection: int
    reason: str


class PersistSession(Frozen):
    """Have this session on disk (before it is answered for)."""

    entry: RosterEntry


class PersistLease(Frozen):
    """Have it on disk that this session may ask for leases of this length (before it may)."""

    client_id: int
    lease_ms: int


class PersistEnded(Frozen):
    """Have it on disk that this session is over but for leased holds (before anything of it is
    freed)."""

    client_id: int


class PersistStruck(Frozen):
    """Have it on disk that nothing of this session is left (before anything of it is freed)."""

    client_id: int


class PersistEpoch(Frozen):
    """Have it on disk that this epoch is in use (before it is)."""

    epoch: int


class TakeHigherEpoch(Frozen):
    """Stop serving, and start anew above this epoch, on the same control socket: a client has seen
    a newer primary than this one, and there is nothing on disk that would have told."""

    epoch_above: int


class EpochShown(Frozen):
    """A client has seen this primary, which was later than ours: our state directory is not that of
    the last one."""

    epoch: int
    incarnation: int


class ReadFormerRoster(Frozen):
    """Read what the former primary has written once more, and hand it to `Registry.roster_read`:
    from now on it writes nothing any more."""


class ForgetFormer(Frozen):
    """The recovery is over: what former primaries have written may go."""


class OpenPair(Frozen):
    """Make the server's end of a queue pair to this one, and hand what became of it to
    `Registry.pair_made`."""

    number: int
    peer: Address


class FreePair(Frozen):
    """Give this queue pair back, which the plane has not taken and will not take."""

    pair: int


class Note(Frozen):
    """Something for the log: an event, its fields, and a level of the logging module."""

    event: str
    fields: Mapping[str, object] = MappingProxyType({})
    level: int = logging.INFO


class Look(Frozen):
    """Send this command (VIEW, SURVEY) with the address of an array of its size, and hand what was
    written there back with its DONE event. One is under way at a time."""

    command: Command


class Claims(Frozen):
    """Send this command (CLAIM) with the address of an array of these, and hand back what became of
    each (a list of enum dlk_result) with its DONE event. Any number may be under way."""

    command: Command
    claims: list[m.LockClaim]


Persist = PersistEnded | PersistEpoch | PersistLease | PersistSession | PersistStruck
Effect = (Answer | AnswerStats | Claims | CloseConnection | Command | EpochShown | ForgetFormer
          | FreePair | Look | Note | OpenPair | Persist | ReadFormerRoster | TakeHigherEpoch)

Views = Sequence[EntryView | LockView]  # what a look has shown
Shown = Views | Sequence[int]  # the same, or what became of claims


Counters = Counter[str]


class Call(NamedTuple):
    """A request under way."""

    connection: int
    request_id: int
    message: Any
    now_ns: int


def items_of(message: Any) -> int:
    """How many items a batch request has; 1 for every other."""
    if isinstance(message, m.GetLocks):
        return len(message.locks)
    if isinstance(message, m.ReleaseLocks):
        return len(message.lock_ids)
    return len(message.claims) if isinstance(message, m.UpdateLocks) else 1


class Outbox:
    """The effects of the current input, and who waits for which command.

    The plane carries commands out in the order in which they were sent and tells DONE in the same
    order. So whoever waits for several commands waits for the last one, and one number, the last
    cookie that is done, says of every command whether it has been carried out.
    """

    def __init__(self) -> None:
        self.counters: Counters = Counter()
        self._effects: list[Effect] = []
        self._waiting: dict[int, list[Callable[[Event], None]]] = {}
        self._lent: dict[int, Callable[[Event, Any, int], None]] = {}
        self._last_done = 0
        self.last_cookie = 0

    def add(self, effect: Effect) -> None:
        """One more effect."""
        self._effects.append(effect)

    def answer(self, call: Call, message: m.Message) -> None:
        """Answers a request."""
        self._effects.append(Answer(call.connection, call.request_id, message))

    def refuse(self, call: Call, status: DlockStatus) -> None:
        """Answers with a status alone, in the type that the request is answered with."""
        self.count(status, items_of(call.message))
        reply: Any = m.BY_MESSAGE[type(call.message)].reply
        self.answer(call, reply(status))

    def status(self, call: Call, status: DlockStatus) -> None:
        """Answers a request whose answer is a Status."""
        self.count(status)
        self.answer(call, m.Status(status))

    def status_after_all(self, call: Call, status: DlockStatus) -> None:
        """The same after every command that was sent so far."""
        self.when_done(self.last_cookie, partial(self.status, call, status))

    def count(self, status: DlockStatus, items: int = 1) -> None:
        """Counts what a client was refused."""
        if status is not DlockStatus.SUCCESS:
            self.counters[status.name] += items

    def drain(self) -> list[Effect]:
        """All effects since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def command(self, command: Command, then: Callable[[Event], None] | None = None) -> int:
        """Sends a command; `then` gets its DONE event. Returns its cookie."""
        self.last_cookie += 1
        self._effects.append(command._replace(cookie=self.last_cookie))
        if then is not None:
            self._waiting[self.last_cookie] = [then]
        return self.last_cookie

    def look(self, command: Command, then: Callable[[Event, Views, int], None]) -> None:
        """Sends a VIEW or SURVEY; `then` gets its DONE event, what it has shown, and the time."""
        self.last_cookie += 1
        self._lent[self.last_cookie] = then
        self._effects.append(Look(command._replace(cookie=self.last_cookie)))

    def claim(
        self, command: Command, claims: list[m.LockClaim],
        then: Callable[[Event, Sequence[int], int], None],
    ) -> int:
        """Sends a CLAIM; `then` gets its DONE event, what became of each, and the time. Returns its
        cookie."""
        self.last_cookie += 1
        self._lent[self.last_cookie] = then
        self._effects.append(Claims(command._replace(cookie=self.last_cookie), claims))
        return self.last_cookie

    def when_done(self, cookie: int, then: Callable[[], None]) -> None:
        """Calls `then` once that command and all before it are done; at once if they are."""
        if cookie <= self._last_done:
            then()
        else:
            self._waiting.setdefault(cookie, []).append(lambda _event: then())

    def done(self, event: Event, shown: Shown, now_ns: int) -> None:
        """A DONE event of the plane, and what it has written if it was lent an array."""
        assert event.cookie == self._last_done + 1, "the plane answers commands in their order"
        self._last_done = event.cookie
        lent = self._lent.pop(event.cookie, None)
        if lent is not None:
            lent(event, shown, now_ns)
        for then in self._waiting.pop(event.cookie, ()):
            then(event)

    @property
    def under_way(self) -> int:
        """How many commands have been sent and not been answered."""
        return self.last_cookie - self._last_done


def carried_out(event: Event) -> bool:
    """Did the plane do what the command said?"""
    return event.result == _core.DLK_RESULT_DONE


class Slots:
    """The free places of one of the engine's tables: lowest never used first, then reused."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._fresh = 0
        self._given_back: list[int] = []
        self._claimed: set[int] = set()  # taken out of turn, from _fresh on
        self._high = 0

    def take(self) -> int | None:
        """A free slot, or None."""
        if self._given_back:
            return self._given_back.pop()
        while self._fresh in self._claimed:
            self._claimed.remove(self._fresh)
            self._fresh += 1
        if self._fresh == self.size:
            return None
        self._fresh += 1
        return self._fresh - 1

    def claim(self, slot: int) -> None:
        """Takes this one, which is free. Only before the first `take`."""
        assert not self._fresh
        assert slot < self.size
        assert slot not in self._claimed
        self._claimed.add(slot)
        self._high = max(self._high, slot + 1)

    def give(self, slot: int) -> None:
        """The slot is free again."""
        if slot in self._claimed:
            self._claimed.remove(slot)
        else:
            self._given_back.append(slot)

    @property
    def high(self) -> int:
        """Slots from this one on were never taken."""
        return max(self._fresh, self._high)

    @property
    def in_use(self) -> int:
        """How many are taken."""
        return self._fresh - len(self._given_back) + len(self._claimed)
