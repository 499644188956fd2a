"""How long an event loop looks again before it sleeps.

Whoever asks one thing at a time waits for little else than sleeping threads that are woken: the
server's, and this one's when the answer is there. So a loop may look again for a while after each
thing that has come, as the threads of dlock itself do. The while is learned, by the law of
native/adaptive.h: what comes while it looks, or so soon after it fell asleep that a longer look
would have caught it, raises the budget to twice the time that it took; a look in vain halves it.
Under the least budget it sleeps at once. It sleeps at once, too, while the machine has more
runnable threads than cores that this process may use.

A turn of the loop is a look: a callback that asks for the next turn keeps it from sleeping. Used in
the loop's thread only.
"""

from __future__ import annotations

import asyncio
import os
from time import perf_counter_ns
from typing import Final

BUDGET_NS_MAX: Final = 100_000
BUDGET_NS_MIN: Final = 10_000
CROWD_NS: Final = 10_000_000  # how long a look at the machine counts
CROWDED_NS: Final = 100_000_000  # the same, once it had no core to spare
LOAD: Final = "/proc/loadavg"


class Spin:
    """Keeps a loop awake for a while after each `stir`."""

    __slots__ = ("_at_ns", "_budget_ns", "_crowd", "_loop", "_stirred", "_turning")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._crowd = Crowd()
        self._budget_ns = BUDGET_NS_MAX
        self._at_ns = -BUDGET_NS_MAX  # when something came last
        self._stirred = False
        self._turning = False  # a turn is asked for

    def stir(self) -> None:
        """Something has come, or was sent."""
        self._stirred = True
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        now_ns = perf_counter_ns()
        if self._stirred:
            self._stirred = False
            gap_ns, self._at_ns = now_ns - self._at_ns, now_ns
            if gap_ns <= BUDGET_NS_MAX:
                needed_ns = max(2 * gap_ns, BUDGET_NS_MIN)
                self._budget_ns = min(max(self._budget_ns, needed_ns), BUDGET_NS_MAX)
            goes_on = self._budget_ns >= BUDGET_NS_MIN and not self._crowd.too_many(now_ns)
        else:
            goes_on = now_ns - self._at_ns <= self._budget_ns
            if not goes_on:
                self._budget_ns >>= 1
        self._turning = goes_on
        if goes_on:
            self._loop.call_soon(self._turn)


class Crowd:
    """Has the machine more runnable threads than cores that this process may use?"""

    __slots__ = ("_again_ns", "_cores", "_many")

    def __init__(self) -> None:
        self._cores = len(os.sched_getaffinity(0))
        self._again_ns = 0
        self._many = False

    def too_many(self, now_ns: int) -> bool:
        """True also where it cannot be known."""
        if now_ns >= self._again_ns:
            self._many = _runnable() > self._cores
            self._again_ns = now_ns + (CROWDED_NS if self._many else CROWD_NS)
        return self._many


def _runnable() -> float:
    """Threads that run or could run; infinite: not known."""
    try:
        with open(LOAD, "rb", buffering=0) as file:
            return int(file.read(128).split()[3].partition(b"/")[0])
    except (OSError, ValueError, IndexError):
        return float("inf")
