"""What the processes of a storm believed, and what in it cannot be.

A belief is an interval of CLOCK_BOOTTIME, which all processes of a machine share: from when the
lock was granted to the last moment in which its holder called it held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Belief(NamedTuple):
    start: int
    end: int
    token: int
    exclusive: bool


def read(files: Iterable[Path], names: Sequence[str]) -> dict[str, list[Belief]]:
    """Lines `name exclusive token start end` of these files, by name, in order of their start."""
    found: dict[str, list[Belief]] = {name: [] for name in names}
    for path in files:
        for line in path.read_text().splitlines():
            name, exclusive, token, start, end = line.split()
            found[name].append(Belief(int(start), int(end), int(token), exclusive == "1"))
    return {name: sorted(some) for name, some in found.items()}


def faults(beliefs: list[Belief], slots: int) -> list[Any]:
    """Pairs that exclude each other and overlap, or whose tokens run backwards; and moments with
    more beliefs in a semaphore than it has slots. In order of their start."""
    found: list[Any] = []
    last_exclusive = last_any = None
    running: list[Belief] = []
    newest = 0
    for one in beliefs:
        running = [other for other in running if other.end >= one.start]
        if slots and len(running) >= slots:
            found.append((*running, one))
        before = last_any if one.exclusive else last_exclusive
        if not slots and before is not None and before.end >= one.start:
            found.append((before, one))
        if not slots and one.token <= newest:  # of an exclusive hold before it
            found.append(("token", newest, one))
        newest = max(newest, one.token if one.exclusive else 0)
        running.append(one)
        if last_any is None or one.end > last_any.end:
            last_any = one
        if one.exclusive and (last_exclusive is None or one.end > last_exclusive.end):
            last_exclusive = one
    return found
