"""What the actors of a client process do next: a function of a seed.

Three roles share the actors of a session. The *quick* one takes and gives back a lock of its own,
so that it is seen at once when a service is back. The *keeper* holds locks of its own for a long
time: what a failover must bring back. The others *contend* with everybody for a few names of every
kind, with and without leases, and write to the storage that the exclusive ones protect.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

SLOTS: Final = 2  # of the semaphore
QUICK, KEEPER, CONTENDER = range(3)
_TIMEOUTS_S: Final = (0.0, 0.01, 0.3, 1.0, 2.0)
_LEASES_S: Final = (None, None, 0.3, 1.0, 1.0, 2.0)
_CONTENDED: Final = (
    ("atomic", False), ("atomic", False), ("atomic", False), ("fair", False), ("fair", True),
    ("rw", False), ("rw", True), ("rw", True), ("semaphore", False))


class Turn(NamedTuple):
    """One acquisition. `lease_s` None: the session speaks for it. `renew`: by the library.
    `timeout_s`: how long to wait. `hold_ns`: how long to hold it. `cancelled_s`: give the wait up
    after this time, None: not before `timeout_s`. `writes`: to the storage."""

    name: str
    kind: str
    shared: bool
    lease_s: float | None
    renew: bool
    timeout_s: float
    hold_ns: int
    cancelled_s: float | None
    writes: bool

    @property
    def exclusive(self) -> bool:
        """Does a hold keep everybody else out?"""
        return not self.shared and self.kind != "semaphore"

    @property
    def told(self) -> bool:
        """Must it be told when it is lost? A lease that nobody renews ends as was agreed."""
        return self.lease_s is None or self.renew


def role_of(actor: int) -> int:
    """What this actor of a session does, from 0."""
    return min(actor, CONTENDER)


class Load:
    """The turns of one actor."""

    def __init__(self, seed: str, prefix: str, own: str, actor: int) -> None:
        """`prefix`: of all names of this drill; `own`: of names that no other session uses."""
        self._chance = random.Random(f"{seed} {own} {actor}")
        self._prefix, self._own, self._role = prefix, f"{own}/{actor}", role_of(actor)

    def next(self) -> Turn:
        """What to do now."""
        chance = self._chance
        if self._role == QUICK:
            return self._turn("own", "atomic", hold_ns=int(chance.random() * 5e6), timeout_s=2.0)
        if self._role == KEEPER:
            return self._turn(
                "kept", "atomic", hold_ns=int(chance.uniform(0.5, 3) * 1e9), timeout_s=2.0,
                writes=True)
        kind, shared = chance.choice(_CONTENDED)
        lease_s = None if kind == "rw" else chance.choice(_LEASES_S)
        return Turn(
            f"{self._prefix}{kind}", kind, shared, lease_s, chance.random() < 0.6,
            chance.choice(_TIMEOUTS_S), self._hold_ns(),
            chance.random() * 0.1 if chance.random() < 0.1 else None, True)

    def _turn(self, which: str, kind: str, *, hold_ns: int, timeout_s: float,
              writes: bool = False) -> Turn:
        """One on a name that nobody else has."""
        return Turn(f"{self._prefix}{which}/{self._own}", kind, False, None, True, timeout_s,
                    hold_ns, None, writes)

    def _hold_ns(self) -> int:
        """Mostly a moment, now and then longer than a session of a drill lasts."""
        chance = self._chance
        return int(chance.random() * 20e6 * chance.choice((1, 1, 1, 1, 1, 1, 1, 20, 100)))

    @property
    def adds(self) -> bool:
        """Is it time to add to the number that all share?"""
        return self._role == CONTENDER and self._chance.random() < 0.1

    @property
    def pause_s(self) -> float:
        """Between two turns."""
        return self._chance.random() * (0.02 if self._role == QUICK else 0.01)
