"""`Semaphore`: at most so many hold it at a time."""

from __future__ import annotations

from dlock.errors import LockLost
from dlock.locks import BaseLock


class Semaphore(BaseLock):
    """At most `size` hold it at a time, used like `threading.BoundedSemaphore`. Everybody must name
    the same size; the first decides. Each acquisition takes a slot of its own, also by the same
    thread or through the same object."""

    __slots__ = ()

    @property
    def size(self) -> int:
        """How many may hold it at a time."""
        return self._key[2]

    @property
    def exclusive(self) -> bool:
        """Only a semaphore of size 1 keeps everybody else out."""
        return self.size == 1

    def release(self, n: int = 1) -> None:
        """Gives `n` slots back, those first that the calling thread took last. ValueError: n is
        below 1. NotHeld: this object holds fewer; then none is given back. LockLost: one of them
        was lost; the others are given back all the same."""
        if n < 1:
            raise ValueError("n must be one or more")
        if len(self._held) < n:
            raise self._not_held()
        problem: LockLost | None = None
        for _ in range(n):
            try:
                super().release()
            except LockLost as lost:
                problem = problem or lost
        if problem is not None:
            raise problem
