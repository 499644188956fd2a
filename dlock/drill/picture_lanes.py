"""Which bars stand in which lane of a drill's picture: a function of the records, which draws
nothing and needs no package."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from dlock.cli.text import safe
from dlock.drill.records import (
    KILLED,
    LAPSED,
    LOST,
    RELEASED,
    UNTOLD,
    Hold,
    PrimaryContinued,
    PrimaryExited,
    PrimaryKilled,
    PrimaryListening,
    PrimaryReady,
    PrimaryStarted,
    PrimaryStopped,
    Record,
)
from dlock.drill.violations import service_of

LANES: Final = 24  # clients at most
ROWS: Final = 300  # within a lane at most: more holds at a time stand on one another
STARTING, RECOVERING, READY, STOPPED = "starting", "recovering", "ready", "stopped"
# Colour and words of each sort of bar.
ENDS: Final = {
    RELEASED: ("#4f86b8", "held, then released"),
    LAPSED: ("#9cc3de", "held until its lease ran out"),
    LOST: ("#f0a130", "held, then lost and told"),
    UNTOLD: ("#d0021b", "lost untold"),
    KILLED: ("#5a4a6b", "held by a client that was killed"),
    STARTING: ("#d5dbe0", "a primary starts"),
    RECOVERING: ("#b9a76a", "it recovers"),
    READY: ("#22303c", "it is ready"),
    STOPPED: ("#a9b4bd", "it stands still"),
}


@dataclass(frozen=True)
class Bar:
    """From when until when; `look` is a key of ENDS, `row` stands within the lane; `wrong`: this
    hold is part of a violation."""

    begin_ns: int
    end_ns: int
    look: str
    row: int = 0
    wrong: bool = False


@dataclass(frozen=True)
class Lane:
    """`rows`: how many bars stand above one another at most."""

    name: str
    bars: tuple[Bar, ...]
    rows: int = 1


def client_lanes(records: Sequence[Record], window: tuple[int, int],
                 wrong: Collection[Record] = ()) -> list[Lane]:
    """A lane a client with a hold in this window; holds of its actors stand above one another.
    `wrong`: the records of violations."""
    by_client: dict[str, list[Hold]] = defaultdict(list)
    # A hold is written down when it is over, so what touches the window is written after its begin.
    first = bisect_left(records, window[0], key=attrgetter("t_ns"))
    for one in records[first:]:
        if isinstance(one, Hold) and one.begin_ns <= window[1] and one.end_ns >= window[0]:
            by_client[one.client].append(one)
    names = sorted(by_client, key=_by_number)
    marked = frozenset(wrong)
    lanes = [_lane_of(name, by_client[name], window, marked) for name in names[:LANES]]
    if len(names) > LANES:
        lanes.append(Lane(f"and {len(names) - LANES} more", ()))
    return lanes


def _by_number(name: str) -> tuple[str, int, str]:
    """c2 before c10."""
    digits = len(name) - len(name.rstrip("0123456789"))
    head = name[:len(name) - digits]
    return head, int(name[len(head):] or 0), name


def _lane_of(name: str, holds: Iterable[Hold], window: tuple[int, int],
             wrong: frozenset[Record]) -> Lane:
    """Each hold in the lowest row that is free."""
    bars: list[Bar] = []
    free: list[int] = []
    busy: list[tuple[int, int]] = []  # until when, row
    rows = 0
    for one in sorted(holds, key=attrgetter("begin_ns")):
        while busy and busy[0][0] < one.begin_ns:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if not free:
            heapq.heappush(free, rows)
            rows += 1
        row = heapq.heappop(free)
        heapq.heappush(busy, (one.end_ns, row))
        bars.append(Bar(max(one.begin_ns, window[0]), min(one.end_ns, window[1]), one.ended,
                        min(row, ROWS - 1), one in wrong))
    return Lane(safe(name), tuple(bars), max(min(rows, ROWS), 1))


def primary_lanes(records: Iterable[Record], window: tuple[int, int]) -> list[Lane]:
    """A lane a primary that lived in this window: what it was, and until when. The first of a
    service has nobody to recover."""
    states: dict[str, list[tuple[int, str]]] = defaultdict(list)
    services: set[str] = set()
    for one in records:
        if isinstance(one, PrimaryStarted):
            states[one.primary].append((one.t_ns, STARTING))
        elif isinstance(one, PrimaryListening):
            first = service_of(one.primary) not in services
            services.add(service_of(one.primary))
            states[one.primary].append((one.t_ns, READY if first else RECOVERING))
        elif isinstance(one, PrimaryReady):
            if not states[one.primary] or states[one.primary][-1][1] != READY:
                states[one.primary].append((one.t_ns, READY))
        elif isinstance(one, PrimaryStopped):
            states[one.primary].append((one.t_ns, STOPPED))
        elif isinstance(one, PrimaryContinued):
            states[one.primary].append((one.t_ns, _before_it_stopped(states[one.primary])))
        elif isinstance(one, PrimaryKilled | PrimaryExited):
            states[one.primary].append((one.t_ns, ""))
    lanes = []
    for name in sorted(states, key=_by_number):
        bars = tuple(_bars(states[name], window))
        if bars:
            lanes.append(Lane(safe(name), bars))
    return lanes


def _before_it_stopped(states: Sequence[tuple[int, str]]) -> str:
    return next((state for _, state in reversed(states) if state not in (STOPPED, "")), READY)


def _bars(states: Sequence[tuple[int, str]], window: tuple[int, int]) -> Iterable[Bar]:
    """What lies in the window; the last state lasts."""
    times = [t_ns for t_ns, _ in states]
    for number in range(max(bisect_right(times, window[0]) - 1, 0), len(states)):
        begin_ns, state = states[number]
        end_ns = times[number + 1] if number + 1 < len(times) else window[1]
        if state and begin_ns <= window[1] and end_ns >= window[0]:
            yield Bar(max(begin_ns, window[0]), min(end_ns, window[1]), state)
