"""The judge of a drill over very many records: 1000 rounds in which a primary is killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from benchmarks.plan import Plan
from benchmarks.report import Figures, at_least
from dlock.drill.judge import judge
from dlock.drill.records import (
    EPOCH_SHIFT,
    RELEASED,
    DrillBegun,
    DrillEnded,
    FaultBegun,
    Hold,
    PrimaryKilled,
    PrimaryListening,
    Record,
    RoundBegun,
    RoundEnded,
    from_line,
    to_line,
)

ROUNDS: Final = 1000
HOLDS: Final = 500_000
QUICK: Final = 20_000
NAMES, CLIENTS = 50, 6
SECOND_NS: Final = 1_000_000_000
FAILS_NS, LISTENS_NS = SECOND_NS // 2, SECOND_NS * 6 // 10  # in each round
GOAL: Final = 100_000  # records a second


def measure(plan: Plan, figures: Figures) -> None:
    """Judging what is in memory, and reading it from lines."""
    count = QUICK if plan.quick else HOLDS
    records = list(a_long_drill(count))
    lines = [to_line(one) for one in records]
    for _ in range(plan.runs):
        begin_s = time.process_time()
        verdict = judge(records)
        judged_s = time.process_time() - begin_s
        assert verdict.status == 0, verdict.counts
        begin_s = time.process_time()
        for line in lines:
            from_line(line)
        read_s = time.process_time() - begin_s
        figures.row(f"judge {len(records):,} records", "records a CPU second",
                    at_least(GOAL)).add(len(records) / judged_s)
        figures.row(f"read {len(records):,} records", "records a CPU second").add(
            len(records) / read_s)


def a_long_drill(count: int) -> Iterator[Record]:
    """So many holds in 1000 rounds, of 50 names at most, one after the other in each."""
    yield DrillBegun(0, 1, "dlock drill --seed 1", "", [], ROUNDS, 0.0, CLIENTS, 1, 1.0, "")
    each = count // ROUNDS
    names = min(NAMES, each)
    for number in range(1, ROUNDS + 1):
        begin_ns = number * SECOND_NS
        failed_ns, listens_ns = begin_ns + FAILS_NS, begin_ns + LISTENS_NS
        yield RoundBegun(begin_ns, number, "kill-primary")
        yield FaultBegun(failed_ns, number, "kill-primary", "primary", "kill -9")
        yield PrimaryKilled(failed_ns + 1, f"p{number}")
        yield PrimaryListening(listens_ns, f"p{number + 1}", number + 1)
        for at in range(each):
            held_ns = begin_ns + at * SECOND_NS // each
            end_ns = held_ns + (names - 1) * SECOND_NS // each
            epoch = number + (held_ns >= listens_ns)
            yield Hold(
                end_ns + 5, f"c{at % CLIENTS}", 1, 0, f"n{at % names}", "atomic", 0, True,
                epoch << EPOCH_SHIFT | (number * each + at), 0, True, held_ns - 10, held_ns,
                end_ns, 0, RELEASED)
        yield RoundEnded(begin_ns + SECOND_NS - 1, number, "kill-primary", True, 0.1)
    yield DrillEnded((ROUNDS + 2) * SECOND_NS, False, "")
