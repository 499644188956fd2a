"""Which of the clients of a process that have lost the same server looks for it, or asks for all
whether it is ready.

A thousand clients that each knock ten times a second keep two cores busy, which the server that
they wait for needs to start. So one looks, often; the others rest, and all of them come as soon as
it has found somebody. Who rests looks by itself now and then, so that nobody depends on another.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from types import TracebackType
from typing import Final

REST_S: Final = 1.0  # how long one that does not look may rest

# Those who look, by process (a forked child has none yet) and address; the first one's turn it is.
# Lists are changed by single calls only, each of which is whole to all threads.
_searches: Final[dict[tuple[int, str], list[Seeker]]] = {}


class Seeker:
    """One client that looks for a server of its address: `join`, rest, look, and again, until it
    has `found` somebody or gives up (the end of `with`). `wake` ends its rest; any thread calls it.
    """

    __slots__ = ("_key", "called", "told", "wake")

    def __init__(self, address: str) -> None:
        self._key = (os.getpid(), address)
        self.called = False  # since it looked last: it is not to rest
        self.told = False  # and that since another one has found what it looks for
        self.wake: Callable[[], object] | None = None

    def __enter__(self) -> Seeker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def join(self) -> bool:
        """It has not found anybody. Is it the one that is to look again soon?"""
        everybody = _searches.setdefault(self._key, [])
        if self not in everybody:
            everybody.append(self)
        return everybody[0] is self

    def looks(self) -> None:
        """It goes to look: who calls it from now on has news."""
        self.called = self.told = False

    def found(self) -> None:
        """Somebody answers there: the others are to come too."""
        self._leave()
        for one in _searches.get(self._key, [])[:]:
            if not one.told:
                one.told = True
                one._call()

    def _leave(self) -> None:
        everybody = _searches.get(self._key, [])
        led = everybody[:1] == [self]
        with contextlib.suppress(ValueError):  # it had not joined, or has left already
            everybody.remove(self)
        if led:
            for heir in everybody[:1]:
                heir._call()
        if not everybody:  # who joins in this moment asks by himself, sooner or later
            _searches.pop(self._key, None)

    def _call(self) -> None:
        self.called = True
        if self.wake is not None:
            with contextlib.suppress(RuntimeError):  # its event loop has been closed
                self.wake()
