"""What every task of a worker process does: says where it is, repeats something for a while and
measures it, and looks at every answer. See benchmarks/worker.py for the words that it exchanges
with whoever started it."""

from __future__ import annotations

import os
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

LEASE_S: Final = 30
WARM_UP_SHARE: Final = 0.15
# What is measured in turn is measured for so long before it is the next one's turn.
BLOCK_S: Final = 0.01
SETTLE_CALLS: Final = 10  # at the beginning of a turn, not measured


class WrongAnswerError(RuntimeError):
    """A server did not do what was asked."""


def expect(answer: object, wanted: object) -> None:
    """WrongAnswerError unless they are equal."""
    if answer != wanted:
        raise WrongAnswerError(f"{answer!r}, not {wanted!r}")


def say(text: str) -> None:
    """One line to whoever started this process."""
    print(text, flush=True)


def wait_for_go(state: str) -> None:
    """Says where we are, and waits until the parent says to go on; if it has gone, so do we."""
    say(state)
    if not sys.stdin.readline():
        raise SystemExit(1)


def quantile(ordered: Sequence[int], share: float) -> int:
    """Of values in order."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def repeat(once: Callable[[], None], pairs: int, seconds: float) -> dict[str, Any]:
    """Runs `once`, which does so many pairs, until the time is over, warm-up excluded."""
    clock = time.perf_counter_ns
    durations = array("Q")
    wait_for_go("ready")
    begin = clock()
    warm = begin + int(seconds * WARM_UP_SHARE * 1e9)
    while clock() < warm:
        once()
    say("warm")
    cpu = time.process_time()
    start = before = clock()
    end = start + int(seconds * 1e9)
    while before < end:
        once()
        after = clock()
        durations.append(after - before)
        before = after
    cpu = time.process_time() - cpu
    wait_for_go("done")
    ordered = sorted(durations)
    return {
        "count": len(ordered) * pairs,
        "elapsed_s": (before - start) / 1e9,
        "cpu_s": cpu,
        "p50_us": quantile(ordered, 0.5) / 1e3 / pairs,
        "p99_us": quantile(ordered, 0.99) / 1e3 / pairs,
    }


# ---- Several things in turn ----------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One of several things that are measured against each other. `around`: what holds during its
    turn, and is not measured."""

    name: str
    once: Callable[[], object]
    around: Callable[[], AbstractContextManager[object]] = nullcontext


def turn(once: Callable[[], object]) -> list[int]:
    """One turn: how long each call took, in ns."""
    clock = time.perf_counter_ns
    for _ in range(SETTLE_CALLS):
        once()
    durations = []
    before = clock()
    end = before + int(BLOCK_S * 1e9)
    while before < end:
        once()
        after = clock()
        durations.append(after - before)
        before = after
    return durations


def in_turn(variants: Sequence[Variant], seconds: float) -> dict[str, Any]:
    """Measures them in turn, in short blocks, until each has had so many seconds. The machine
    changes its pace all the time; so `more_us` is the median over the rounds of what a variant's
    median took more than the first one's of the same round."""
    wait_for_go("ready")
    for one in variants:
        with one.around():
            one.once()
    say("warm")
    start, cpu = time.perf_counter(), time.process_time()
    durations: dict[str, list[int]] = {one.name: [] for one in variants}
    more: dict[str, list[float]] = {one.name: [] for one in variants}
    for _ in range(max(round(seconds / BLOCK_S), 1)):
        base = None
        for one in variants:
            with one.around():
                found = turn(one.once)
            durations[one.name] += found
            middle = median(found)
            base = middle if base is None else base
            more[one.name].append(middle - base)
    cpu, elapsed = time.process_time() - cpu, time.perf_counter() - start
    wait_for_go("done")
    return {"elapsed_s": elapsed, "cpu_s": cpu, "variants": {
        name: {**quantiles(found), "more_us": median(more[name]) / 1e3}
        for name, found in durations.items()}}


def quantiles(durations_ns: Sequence[int]) -> dict[str, float]:
    """Median, 99th percentile, how many."""
    ordered = sorted(durations_ns)
    return {"count": len(ordered), "p50_us": quantile(ordered, 0.5) / 1e3,
            "p99_us": quantile(ordered, 0.99) / 1e3}


# ---- Memory --------------------------------------------------------------------------------------


def resident_bytes(pid: int | str = "self") -> int:
    """What a process of this user has in memory now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
