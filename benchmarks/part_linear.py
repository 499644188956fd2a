"""The checker of histories over 100,000 operations: by CPU time, one core, in memory."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.plan import Plan
from benchmarks.report import Figures, at_least
from dlock import linear
from dlock.linear import history
from dlock.linear.history import Operation

OPERATIONS: Final = 100_000
QUICK: Final = 2_000
CLIENTS: Final = 8
SLOTS: Final = 4
STEP, REACH = 10, 60  # of an operation's moment, and of its interval around it
GOAL: Final = 20_000  # operations a second


def measure(plan: Plan, figures: Figures) -> None:
    """Each kind by itself, all on one name, which is the hardest."""
    count = QUICK if plan.quick else OPERATIONS
    for _ in range(plan.runs):
        for kind in (history.MUTEX, history.RW, history.SEMAPHORE, history.CELL):
            operations = list(a_long_history(kind, count))
            begin_s = time.process_time()
            verdict = linear.check(operations)
            taken_s = time.process_time() - begin_s
            assert verdict.ok, str(verdict)
            figures.row(f"{kind}, {count:,} operations of {CLIENTS} clients",
                        "operations a CPU second", at_least(GOAL)).add(count / taken_s)


def a_long_history(kind: str, count: int) -> Iterator[Operation]:
    """So many operations on one name, several under way at a time."""
    chance = random.Random(kind)
    made = _numbers(chance) if kind == history.CELL else _holds(kind, chance)
    for _ in range(count):
        yield next(made)


def _holds(kind: str, chance: random.Random) -> Iterator[Operation]:
    """Rounds of holds at the same time: of one, or of as many as may be; each is looked at, and
    somebody else is refused meanwhile. Every hundredth release is not confirmed."""
    token, now = 0, 1000
    while True:
        shared = kind == history.RW and chance.random() < 0.7
        together = SLOTS if shared or kind == history.SEMAPHORE else 1
        for _ in range(together):
            token += 1
            now += STEP
            yield _at(now, chance, kind, history.ACQUIRE, token, shared)
        opened = now + REACH + 1
        for at in range(token - together + 1, token + 1):
            yield _at(opened, chance, kind, history.HELD, at, shared, reach=1)
        yield _at(opened, chance, kind, history.ACQUIRE, 0, False, reach=1)
        now = opened + REACH
        for at in range(token - together + 1, token + 1):
            now += STEP
            released = _at(now, chance, kind, history.RELEASE, at, shared)
            yield released._replace(end_ns=None) if chance.random() < 0.01 else released


def _at(
    now: int, chance: random.Random, kind: str, action: str, token: int, shared: bool,
    reach: int = REACH,
) -> Operation:
    """Token 0: of one who is refused."""
    begin, end = now - chance.randrange(reach), now + chance.randrange(reach)
    if action == history.RELEASE:
        begin = now
    return Operation(
        "a", kind, action, f"c{(token or now) % CLIENTS}", begin, end,
        history.DONE if token else history.REFUSED, f"h{token or -now}", token, shared, SLOTS,
        waits=token != 0)


def _numbers(chance: random.Random) -> Iterator[Operation]:
    value, now = 0, 1000
    while True:
        now += STEP
        begin, end = now - chance.randrange(REACH), now + chance.randrange(REACH)
        action = chance.choice([history.ADD, history.ADD, history.GET])
        yield Operation("n", history.CELL, action, f"c{now % CLIENTS}", begin, end, size=0,
                        argument=1, result=value)
        value += action == history.ADD
