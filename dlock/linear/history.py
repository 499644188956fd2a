"""What was seen of a lock or a number: operations, each with an interval in which it took effect.

Pure: no file is opened, no clock is read. Times are ns of one clock that all processes of the
history share (CLOCK_BOOTTIME of one machine, or a simulated one). `dlock/linear/models.py` says
what an operation means, `dlock/linear/lines.py` how it is written down.

An operation takes effect at one moment between its begin and its end. One whose end is None, since
its process was killed, its answer was lost or its wait was struck, takes effect at some moment
after its begin, or never. That is not a failure: it is what is known. (An acquire with an unknown
outcome may have an end all the same: by then nothing is left of it.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

# Kinds. Re-entrant rw and fair locks are of their kind: holds that are entered again have one name.
MUTEX: Final = "mutex"
REENTRANT: Final = "reentrant"
RW: Final = "rw"
FAIR: Final = "fair"
SEMAPHORE: Final = "semaphore"
CELL: Final = "cell"

# Actions on locks.
ACQUIRE: Final = "acquire"
RELEASE: Final = "release"
HELD: Final = "held"  # its client, by its own clock, called it HELD; or an extension succeeded
END: Final = "end"  # the hold ended without a release: by its lease, its session, an operator

# Actions on numbers.
ADD: Final = "add"
SWAP: Final = "swap"
GET: Final = "get"
GONE: Final = "gone"  # ObjectLost: the number of a former primary is no more

# Outcomes.
DONE: Final = "done"
REFUSED: Final = "refused"  # of an acquire: taken, and the wait is over
UNKNOWN: Final = "unknown"


class Operation(NamedTuple):
    """One operation on one name. `who`: the thread or task, for people; `hold`: which hold an
    operation on a lock is about (several that are entered again have one name), "": that of `who`.

    Locks. `token`: of what was granted, 0: not known. `shared`: for readers. `size`: of a
    semaphore. `waits`: an acquire that may stand in line, and does not only try. `queued_ns`: by
    then it certainly stood in line; `waiting_ns`: then it still did; None: nobody looked.
    `again`: it may have been asked more than once, over a lost link, so that one of its attempts
    can have held the lock unheard of while it lasted.

    Numbers. `argument`: the addend, or what a swap expects; `desired`: what it makes of it;
    `result`: what was found. `life`: the epoch of the primary whose number it was, 0: not known.
    `size`: what a life begins with, None: not known."""

    name: str
    kind: str
    action: str
    who: str
    begin_ns: int
    end_ns: int | None
    outcome: str = DONE
    hold: str = ""
    token: int = 0
    shared: bool = False
    size: int | None = 1
    waits: bool = True
    queued_ns: int | None = None
    waiting_ns: int | None = None
    again: bool = False
    argument: int = 0
    desired: int = 0
    result: int | None = None
    life: int = 0

    @property
    def key(self) -> str:
        """Which hold it is about."""
        return self.hold or self.who


def by_name(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """The operations of each name, in the order of their begin."""
    found: dict[str, list[Operation]] = {}
    for operation in operations:
        found.setdefault(operation.name, []).append(operation)
    return {name: sorted(some, key=lambda one: one.begin_ns) for name, some in found.items()}


def of_hold(
    name: str, kind: str, who: str, *, asked_ns: int, begin_ns: int, end_ns: int, token: int = 0,
    shared: bool = False, size: int = 1, hold: str = "", released_ns: int | None = None,
) -> list[Operation]:
    """What a program knows that has only kept account of when it held a lock: it asked at
    `asked_ns`, its client called the lock HELD at `begin_ns` and, for the last time, at `end_ns`.
    `released_ns`: when the server had certainly taken it back; None: nobody knows."""
    hold = hold or f"{who} {token or begin_ns}"
    seen = Operation(
        name, kind, HELD, who, begin_ns, begin_ns, hold=hold, token=token, shared=shared, size=size)
    return [
        seen._replace(action=ACQUIRE, begin_ns=asked_ns, end_ns=begin_ns),
        seen,
        seen._replace(begin_ns=end_ns, end_ns=end_ns),
        seen._replace(action=RELEASE, begin_ns=end_ns, end_ns=released_ns),
    ]


_ACTIONS: Final = {
    (ACQUIRE, DONE): "acquires", (ACQUIRE, REFUSED): "is refused",
    (ACQUIRE, UNKNOWN): "asks, outcome unknown", (RELEASE, DONE): "releases",
    (RELEASE, UNKNOWN): "begins to release", (HELD, DONE): "calls it held",
    (END, UNKNOWN): "lost it from here on", (END, DONE): "has lost it",
    (GONE, DONE): "is told that the number is gone",
}


def describe(operation: Operation, zero_ns: int = 0) -> str:
    """One operation in words, with seconds since `zero_ns`."""
    begin = (operation.begin_ns - zero_ns) / 1e9
    end = "..." if operation.end_ns is None else f"{(operation.end_ns - zero_ns) / 1e9:.6f}"
    return f"{begin:.6f} - {end}  {operation.who}  {_what(operation)}"


def _what(one: Operation) -> str:
    result = "unknown" if one.result is None else str(one.result)
    if one.action == ADD:
        return f"adds {one.argument}, found {result}"
    if one.action == SWAP:
        return f"swaps {one.argument} for {one.desired}, found {result}"
    if one.action == GET:
        return f"reads {result}"
    words = _ACTIONS.get((one.action, one.outcome), f"{one.action} {one.outcome}")
    shared = " (shared)" if one.shared else ""
    return f"{words}{shared}" + (f", token {one.token}" if one.token else "")
