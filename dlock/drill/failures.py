"""What each failure of a drill meant for those who used the service: how long until somebody was
granted something again, and what became of that which was held. A function of the records.

A failure is one FaultBegun. What follows it is looked at until the round is over; a hold counts for
each failure during which it was under way. A fault with primaries and clients of its own is about
these alone.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from dlock.drill.records import (
    KILLED,
    LAPSED,
    LOST,
    UNTOLD,
    ClientKilled,
    ClientStopped,
    FaultBegun,
    FaultEnded,
    Hold,
    PrimaryKilled,
    PrimaryListening,
    PrimaryReady,
    PrimaryStarted,
    PrimaryStopped,
    Record,
    RoundBegun,
    RoundEnded,
    epoch_of,
)
from dlock.drill.violations import service_of

PRIMARY: Final = "primary"
NS: Final = 1e9


@dataclass(frozen=True)
class Failure:
    """One failure, and what came of it. Times in seconds after it; None: that never came.

    `grant_s`: until the first grant. After the failure of a primary that is one by its successor;
    after any other, one that was asked for after the failure. `ready_s`: until a primary said that
    its recovery was over. `over_s`: until the drill had put everything back in its place; what took
    longer is dlock's. `served_s`: until every client had been served again.

    Holds: `held` were under way when it happened. Of these, in this round, `lost` were lost and
    their clients told so, `untold` were lost in silence, `killed` went with their process; `kept`
    were still held when a primary was there again or the fault was over, the `released` had been
    given back or had lapsed before."""

    round: int
    fault: str
    fails: str
    detail: str
    t_ns: int
    grant_s: float | None
    ready_s: float | None
    over_s: float | None
    served_s: float | None
    held: int
    kept: int
    released: int
    lost: int
    untold: int
    killed: int


class _Drill:
    """When things happened, by round and service."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.begun: list[FaultBegun] = []
        self.faults_ended: dict[int, int] = {}
        self.rounds_ended: dict[int, RoundEnded] = {}
        self.ready_ns: dict[str, list[int]] = defaultdict(list)
        self.listening_ns: dict[str, list[int]] = defaultdict(list)
        self.struck: list[tuple[int, str, bool]] = []  # who was killed or stopped; a primary?
        self.rounds_begun: dict[int, int] = {}
        self.started: list[tuple[int, str]] = []
        for one in sorted(records, key=attrgetter("t_ns")):
            if isinstance(one, FaultBegun):
                self.begun.append(one)
            elif isinstance(one, FaultEnded):
                self.faults_ended[one.round] = one.t_ns
            elif isinstance(one, RoundBegun):
                self.rounds_begun[one.round] = one.t_ns
            elif isinstance(one, RoundEnded):
                self.rounds_ended[one.round] = one
            else:
                self._of_a_process(one)

    def _of_a_process(self, one: Record) -> None:
        if isinstance(one, PrimaryReady):
            self.ready_ns[service_of(one.primary)].append(one.t_ns)
        elif isinstance(one, PrimaryListening):
            self.listening_ns[service_of(one.primary)].append(one.t_ns)
        elif isinstance(one, PrimaryStarted):
            self.started.append((one.t_ns, service_of(one.primary)))
        elif isinstance(one, PrimaryKilled | PrimaryStopped):
            self.struck.append((one.t_ns, service_of(one.primary), True))
        elif isinstance(one, ClientKilled | ClientStopped):
            self.struck.append((one.t_ns, service_of(one.client), False))

    def end_of(self, failure: FaultBegun) -> int:
        """Until when what follows is its consequence: the end of its round, else the next round."""
        ended = self.rounds_ended.get(failure.round)
        if ended is not None:
            return ended.t_ns
        return min((one.t_ns for one in self.begun
                    if one.t_ns > failure.t_ns and one.round != failure.round), default=1 << 63)

    def struck_by(self, failure: FaultBegun, end_ns: int) -> tuple[str, bool]:
        """Which service it was about, and whether its primary went: a process that was killed or
        stopped then says it; else a primary that was started for this round alone."""
        at = bisect_left(self.struck, (failure.t_ns, "", False))
        if at < len(self.struck) and self.struck[at][0] <= end_ns:
            _, service, is_primary = self.struck[at]
            return service, is_primary or failure.fails == PRIMARY
        first = bisect_left(self.started, (self.rounds_begun.get(failure.round, 0), ""))
        own = [service for t_ns, service in self.started[first:bisect_right(
            self.started, (failure.t_ns, "~"))] if service]
        return own[-1] if own else "", failure.fails == PRIMARY


class _Holds:
    """The holds of one service, in the orders in which they are looked for. Failures are asked for
    in the order of time."""

    def __init__(self, holds: Iterable[Hold]) -> None:
        self._by_begin = sorted(holds, key=attrgetter("begin_ns"))
        self._by_asked = sorted(self._by_begin, key=attrgetter("asked_ns"))
        self._begins = [one.begin_ns for one in self._by_begin]
        self._asked = [one.asked_ns for one in self._by_asked]
        self._going: list[tuple[int, int, Hold]] = []  # by when they were over
        self._epoch = self._seen = 0  # the highest epoch of all that began before

    def under_way(self, t_ns: int) -> list[Hold]:
        """Those that had begun and were not over."""
        at = bisect_right(self._begins, t_ns)
        for number in range(self._seen, at):
            hold = self._by_begin[number]
            self._epoch = max(self._epoch, epoch_of(hold.token))
            heapq.heappush(self._going, (hold.t_ns, number, hold))
        self._seen = at
        while self._going and self._going[0][0] <= t_ns:
            heapq.heappop(self._going)
        return [hold for _, _, hold in self._going]

    def granted(self, t_ns: int, end_ns: int, by_successor: bool) -> int | None:
        """When somebody was granted something first, after `under_way` was asked for that time."""
        if by_successor:
            later = self._by_begin[self._seen:bisect_right(self._begins, end_ns)]
            return next((one.begin_ns for one in later if epoch_of(one.token) > self._epoch), None)
        first = bisect_left(self._asked, t_ns)
        return min((one.begin_ns for one in
                    self._by_asked[first:bisect_right(self._asked, end_ns)]), default=None)


def failures(records: Iterable[Record], holds: Iterable[Hold]) -> list[Failure]:
    """All of them, in the order of time. `records`: all but the holds."""
    drill = _Drill(records)
    by_service: dict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        by_service[service_of(hold.client)].append(hold)
    sorted_holds = {service: _Holds(of_one) for service, of_one in by_service.items()}
    nothing = _Holds(())
    return [_failure(one, drill, sorted_holds, nothing) for one in drill.begun]


def _failure(one: FaultBegun, drill: _Drill, holds: Mapping[str, _Holds],
             nothing: _Holds) -> Failure:
    """Counts what became of the holds that were under way."""
    end_ns = drill.end_of(one)
    service, is_primary = drill.struck_by(one, end_ns)
    of_service = holds.get(service, nothing)
    fault_ended_ns = drill.faults_ended.get(one.round)
    over_ns = fault_ended_ns if fault_ended_ns is not None else end_ns
    if is_primary:  # its successor listens; until then nothing can have been confirmed
        over_ns = _first(drill.listening_ns[service], one.t_ns, end_ns) or over_ns
    counts = {LOST: 0, UNTOLD: 0, KILLED: 0}
    kept = released = 0
    under_way = of_service.under_way(one.t_ns)
    for hold in under_way:
        if hold.ended in counts and hold.t_ns <= end_ns:
            counts[hold.ended] += 1
        elif hold.end_ns >= over_ns:
            kept += 1
        else:
            released += 1
    ended = drill.rounds_ended.get(one.round)

    def after_s(t_ns: int | None) -> float | None:
        return None if t_ns is None else (t_ns - one.t_ns) / NS

    return Failure(
        one.round, one.fault, one.fails, one.detail, one.t_ns,
        after_s(of_service.granted(one.t_ns, end_ns, is_primary)),
        after_s(_first(drill.ready_ns[service], one.t_ns, end_ns)) if is_primary else None,
        after_s(fault_ended_ns), after_s(ended.t_ns) if ended and ended.recovered else None,
        len(under_way), kept, released, counts[LOST], counts[UNTOLD], counts[KILLED])


def _first(sorted_ns: Sequence[int], after_ns: int, until_ns: int) -> int | None:
    at = bisect_right(sorted_ns, after_ns)
    return sorted_ns[at] if at < len(sorted_ns) and sorted_ns[at] <= until_ns else None


def ended_counts(holds: Iterable[Hold]) -> dict[str, int]:
    """How holds ended, over the whole drill; every way is named."""
    counts = dict.fromkeys(("released", LAPSED, LOST, UNTOLD, KILLED), 0)
    for hold in holds:
        counts[hold.ended] = counts.get(hold.ended, 0) + 1
    return counts
