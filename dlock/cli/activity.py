"""What a server is busy with: two looks at it, compared. A function of what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dlock.admin import ClientSummary, LockDetails, LockSummary
from dlock.cli.changes import SERVED_MODULUS

# Rates by name, each with the counters that it is the sum of.
RATES: Final[Mapping[str, tuple[str, ...]]] = {
    "requests": ("REQUESTS",),
    "grants": ("GRANTS",),
    "waits": ("WAITS",),
    "refused": ("ATOMIC_TRYLOCK_FAIL", "RW_TRYLOCK_EX_FAIL", "RW_TRYLOCK_SH_FAIL", "EAGAIN",
                "SEMAPHORE_FAIL"),
    "expired": ("LEASES_EXPIRED", "SESSIONS_EXPIRED"),
}
GAUGES: Final = ("locks", "clients", "objects", "connections")
FAULTS: Final = (
    "STALLS", "BAD_REQUEST", "NO_RESOURCE", "DEADLOCKS", "NETWORK_FAIL", "VERBS_DEVICE_LOST",
    "VERBS_ACCESS", "VERBS_WINDOW_FULL", "VERBS_BROKEN",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. `at`: when, in seconds of any clock that only grows; `partial`: there are more
    locks than were looked at."""

    at: float
    stats: Mapping[str, int]
    locks: Mapping[bytes, LockSummary]
    clients: tuple[ClientSummary, ...]
    partial: bool = False


@dataclass(frozen=True, slots=True)
class HotLock:
    """A lock, how many holds and waits a second it served, and, if asked for, its details."""

    summary: LockSummary
    rate: float
    details: LockDetails | None = None


@dataclass(frozen=True, slots=True)
class Activity:
    """What is to be shown. Rates are a second; `faults` are counts since the start that are not 0.
    `hot` are the busiest locks first, `crowded` those with the longest lines first; of both, and of
    the clients, only the first are here, and `busy`, `lines` and `sessions` say how many there
    are. `verbs`: RDMA is served too."""

    rates: Mapping[str, float]
    gauges: Mapping[str, int]
    faults: Mapping[str, int]
    epoch: int
    ready: bool
    hot: tuple[HotLock, ...]
    crowded: tuple[HotLock, ...]
    clients: tuple[ClientSummary, ...]
    busy: int = 0
    lines: int = 0
    sessions: int = 0
    partial: bool = False
    verbs: bool = False
    history: tuple[float, ...] = field(default=())


def compare(before: Sample, now: Sample, most: int) -> Activity:
    """What happened between two looks; at most so many locks and clients of each sort."""
    span = max(now.at - before.at, 1e-3)
    locks = [HotLock(one, _served(before.locks.get(key), one) / span)
             for key, one in now.locks.items()]
    busy = [one for one in locks if one.rate or one.summary.holders or one.summary.waiters]
    hot = sorted(busy, key=lambda one: (-one.rate, -one.summary.waiters, one.summary.key))
    crowded = sorted((one for one in busy if one.summary.waiters),
                     key=lambda one: (-one.summary.waiters, one.summary.key))
    clients = sorted(now.clients, key=lambda one: (-one.locks, one.client_id))
    return Activity(
        rates={name: sum(_grown(before.stats, now.stats, counter) for counter in counters) / span
               for name, counters in RATES.items()},
        gauges={name: now.stats.get(name, 0) for name in GAUGES},
        faults={name: now.stats[name] for name in FAULTS if now.stats.get(name)},
        epoch=now.stats.get("epoch", 0),
        ready=bool(now.stats.get("ready", 0)),
        hot=tuple(hot[:most]),
        crowded=tuple(crowded[:most]),
        clients=tuple(clients[:most]),
        busy=len(busy),
        lines=len(crowded),
        sessions=len(clients),
        partial=now.partial,
        verbs=bool(now.stats.get("verbs", 0)),
    )


def _served(before: LockSummary | None, now: LockSummary) -> int:
    """A lock that was not known before is counted from its next look on."""
    if before is None or before.lock_id != now.lock_id:
        return 0
    return (now.served - before.served) % SERVED_MODULUS


def _grown(before: Mapping[str, int], now: Mapping[str, int], counter: str) -> int:
    """A counter that fell belongs to another server: it started anew."""
    grown = now.get(counter, 0) - before.get(counter, 0)
    return grown if grown >= 0 else now.get(counter, 0)
