"""What all owners of one client share (dlock/aio/owner.py): the holds of which somebody waits to
hear whether they are confirmed or lost.

The notices of the server say so at once. They may be dropped (OVERFLOW), and the end of a session
is none: so each hold is looked at again a few times a second, for as long as it is in doubt.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

LOOK_S: Final = 0.25


class Doubtful(Protocol):
    """A hold whose authority could have ended."""

    def look_again(self) -> bool:
        """Is it confirmed or lost by now, and those who wait for that told?"""
        ...


class Doubts:
    """The holds in doubt of one client."""

    __slots__ = ("_holds", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._holds: set[Doubtful] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, hold: Doubtful) -> None:
        """From now on it is looked at."""
        self._holds.add(hold)
        if self._timer is None and not self._loop.is_closed():
            self._timer = self._loop.call_later(LOOK_S, self._again)

    def discard(self, hold: Doubtful) -> None:
        """It is settled."""
        self._holds.discard(hold)

    def _again(self) -> None:
        self._timer = None
        self.look()
        if self._holds and self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._again)

    def look(self) -> None:
        """Looks at each of them."""
        for hold in list(self._holds):
            if hold.look_again():
                self._holds.discard(hold)

    def end(self) -> None:
        """The client is closed: every hold is lost."""
        if not self._loop.is_closed():
            self.look()
            if self._timer is not None:
                self._timer.cancel()
        self._timer = None
        self._holds.clear()
