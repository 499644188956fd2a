"""Who asks, as the server's search for deadlocks knows it: a number for each task, for its life,
and for each owner (dlock/aio/owner.py).
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from typing import Any, Final

_numbers: Final = itertools.count(1)
_refs: Final[dict[int, weakref.ref[asyncio.Task[Any]]]] = {}

# The number of each task that has asked for something, by its id(); look here first.
actors: Final[dict[int, int]] = {}


def new_actor(task: asyncio.Task[Any] | None) -> int:
    """A number for a task that has none yet; 0, nobody known, for a callback."""
    if task is None:
        return 0
    key = id(task)

    def forget(_dead: object) -> None:
        actors.pop(key, None)
        _refs.pop(key, None)

    try:
        reference = weakref.ref(task, forget)
    except TypeError:  # a task of a foreign make
        return 0
    _refs[key] = reference
    actors[key] = number = new_number()
    return number


def new_number() -> int:
    """A number that no task and no owner of this process has."""
    return next(_numbers) & 0xFFFFFFFF
