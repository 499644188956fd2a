"""What each failure of a drill meant for those who used the service: how long until somebody was
granted something again, and what became of that which was held. A function of the records.

A failure is one FaultBegun. What follows it is looked at until the round is over; a hold counts for
each failure during which it was under way.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from dlock.drill.records import (
    KILLED,
    LAPSED,
    LOST,
    UNTOLD,
    FaultBegun,
    FaultEnded,
    Hold,
    PrimaryListening,
    PrimaryReady,
    Record,
    RoundEnded,
    epoch_of,
)

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


class _Round:
    """When things were over, by round."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.begun: list[FaultBegun] = []
        self.faults_ended: dict[int, int] = {}
        self.rounds_ended: dict[int, RoundEnded] = {}
        self.ready_ns: list[int] = []
        self.listening_ns: list[int] = []
        for one in records:
            if isinstance(one, FaultBegun):
                self.begun.append(one)
            elif isinstance(one, FaultEnded):
                self.faults_ended[one.round] = max(one.t_ns, self.faults_ended.get(one.round, 0))
            elif isinstance(one, RoundEnded):
                self.rounds_ended[one.round] = one
            elif isinstance(one, PrimaryReady):
                self.ready_ns.append(one.t_ns)
            elif isinstance(one, PrimaryListening):
                self.listening_ns.append(one.t_ns)
        self.begun.sort(key=attrgetter("t_ns"))
        self.ready_ns.sort()
        self.listening_ns.sort()


def failures(records: Iterable[Record], holds: Sequence[Hold]) -> list[Failure]:
    """All of them, in the order of time. `records`: at least all but the holds."""
    known = _Round(records)
    by_begin = sorted(holds, key=attrgetter("begin_ns"))
    by_asked = sorted(holds, key=attrgetter("asked_ns"))
    begins = [one.begin_ns for one in by_begin]
    asked = [one.asked_ns for one in by_asked]
    found = []
    under_way: list[tuple[int, int, Hold]] = []  # by when they were over
    epoch, seen = 0, 0  # the highest epoch of all holds that began before
    for one in known.begun:
        at = bisect_right(begins, one.t_ns)
        for number in range(seen, at):
            hold = by_begin[number]
            epoch = max(epoch, epoch_of(hold.token))
            heapq.heappush(under_way, (hold.t_ns, number, hold))
        seen = at
        while under_way and under_way[0][0] <= one.t_ns:
            heapq.heappop(under_way)
        end_ns = _end_of(one, known)
        if one.fails == PRIMARY:
            later = by_begin[at:bisect_right(begins, end_ns)]
            grants = [hold.begin_ns for hold in later if epoch_of(hold.token) > epoch]
        else:
            first = bisect_left(asked, one.t_ns)
            grants = [hold.begin_ns for hold in by_asked[first:bisect_right(asked, end_ns)]]
        found.append(_failure(one, known, end_ns, min(grants, default=None),
                              [hold for _, _, hold in under_way]))
    return found


def _end_of(failure: FaultBegun, known: _Round) -> int:
    """Until when what follows is its consequence: the end of its round, else the next round."""
    ended = known.rounds_ended.get(failure.round)
    if ended is not None:
        return ended.t_ns
    return min((one.t_ns for one in known.begun
                if one.t_ns > failure.t_ns and one.round != failure.round), default=1 << 63)


def _failure(one: FaultBegun, known: _Round, end_ns: int, grant_ns: int | None,
             under_way: Sequence[Hold]) -> Failure:
    """Counts what became of the holds that were under way."""
    fault_ended_ns = known.faults_ended.get(one.round)
    over_ns = fault_ended_ns if fault_ended_ns is not None else end_ns
    if one.fails == PRIMARY:  # its successor listens; until then nothing can have been confirmed
        over_ns = _first(known.listening_ns, one.t_ns, end_ns) or over_ns
    counts = {LOST: 0, UNTOLD: 0, KILLED: 0}
    kept = released = 0
    for hold in under_way:
        if hold.ended in counts and hold.t_ns <= end_ns:
            counts[hold.ended] += 1
        elif hold.end_ns >= over_ns:
            kept += 1
        else:
            released += 1
    ended = known.rounds_ended.get(one.round)

    def after_s(t_ns: int | None) -> float | None:
        return None if t_ns is None else (t_ns - one.t_ns) / NS

    return Failure(
        one.round, one.fault, one.fails, one.detail, one.t_ns, after_s(grant_ns),
        after_s(_first(known.ready_ns, one.t_ns, end_ns)) if one.fails == PRIMARY else None,
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
