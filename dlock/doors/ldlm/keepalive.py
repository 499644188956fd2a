"""Is the other end of a connection still there, and does it ask that too often? Pure: now is an
argument, in seconds of a monotonic clock.

The rules are those of gRPC's servers: a PING after so long without a byte, and an end if none
comes in time; and a peer that pings without need is told to be calm.
"""

from __future__ import annotations

import enum
from typing import Final

INTERVAL_MIN_S: Final = 1.0  # a shorter one is taken for this
INTERVAL_NONE_S: Final = 7200.0  # what 0 means
TIMEOUT_NONE_S: Final = 20.0  # what 0 means
LATE_S: Final = 0.5
PING_GAP_S: Final = 10.0  # a peer may ask this often at any time
STRIKES_MAX: Final = 3  # the third ends the connection


class Look(enum.Enum):
    """What is to be done now."""

    WAIT = enum.auto()
    PING = enum.auto()
    END = enum.auto()


class Keepalive:
    """Our side: when to ping, when to give up."""

    __slots__ = ("_asked_s", "_late", "heard_s", "interval_s", "timeout_s")

    def __init__(self, interval_s: float, timeout_s: float, now_s: float) -> None:
        self.interval_s = max(interval_s, INTERVAL_MIN_S) if interval_s > 0 else INTERVAL_NONE_S
        self.timeout_s = timeout_s if timeout_s > 0 else TIMEOUT_NONE_S
        self.heard_s = now_s  # when the last bytes came; set by whoever reads
        self._asked_s: float | None = None
        self._late = False

    def look(self, now_s: float) -> tuple[Look, float]:
        """What to do, and when to look again."""
        if self._asked_s is not None:
            if self.heard_s <= self._asked_s:
                return self._unanswered(now_s, self._asked_s + self.timeout_s)
            self._asked_s = None
            self._late = False
        due_s = self.heard_s + self.interval_s
        if now_s < due_s:
            return Look.WAIT, due_s
        self._asked_s = now_s
        return Look.PING, now_s + self.timeout_s

    def _unanswered(self, now_s: float, over_s: float) -> tuple[Look, float]:
        """Who looks this late has slept: what came meanwhile is read first."""
        if now_s < over_s:
            return Look.WAIT, over_s
        if now_s > over_s + LATE_S and not self._late:
            self._late = True
            return Look.WAIT, now_s + LATE_S
        return Look.END, over_s


class Strikes:
    """The peer's side: a PING within ten seconds of its last one is a strike, unless HEADERS or
    DATA were sent in between. Clients that measure the bandwidth ping several times a second while
    they are answered, which is no strike."""

    __slots__ = ("_count", "_last_s", "_sent")

    def __init__(self) -> None:
        self._count = 0
        self._last_s: float | None = None
        self._sent = False

    def sent(self) -> None:
        """HEADERS or DATA went out."""
        self._sent = True

    def ping(self, now_s: float) -> bool:
        """The peer has pinged; True: once too often."""
        last_s, self._last_s = self._last_s, now_s
        if self._sent:
            self._sent = False
            self._count = 0
        elif last_s is not None and now_s < last_s + PING_GAP_S:
            self._count += 1
        return self._count >= STRIKES_MAX
