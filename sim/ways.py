"""How the people of one world live: which locks they use, how long they work and think, how patient
they are, and how often they do what is rare. All of it by chance, once a world.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from dlock.aio import Client
from dlock.aio.locks import BaseLock
from sim.laws_belief import LOOSE

# The locks of every world, with their kinds. Few names make for much company.
MUTEXES: Final = ("anna", "bert")
LEASED: Final = "lent"  # a mutex that most take with a lease
RW: Final = ("book", "page")
FAIR: Final = "line"
SEMAPHORE: Final = "pool"
SLOTS: Final = 2
LOCKS: Final = (*MUTEXES, LEASED, *RW, FAIR, SEMAPHORE, LOOSE.decode())
KINDS: Final = {
    **dict.fromkeys((*MUTEXES, LEASED, LOOSE.decode()), "lock"),
    **dict.fromkeys(RW, "rwlock"),
    FAIR: "fair lock",
    SEMAPHORE: "semaphore",
}
# Numbers, and what they begin with: the first is lost with its primary and says so.
NUMBER: Final = "count"
KEPT_NUMBER: Final = "kept"
BASES: Final = {NUMBER: 0, KEPT_NUMBER: 1000}


@dataclass(frozen=True)
class Ways:
    """See the file. Times are in seconds, `..._share` are chances. `people`: at most so many in a
    process; `wait_s`: how long those wait who do not wait for ever."""

    locks: tuple[str, ...]
    people: int
    work_s: float
    think_s: float
    lease_s: float
    wait_s: float
    lease_share: float
    patient_share: float
    nested_share: float
    cancel_share: float
    count_share: float
    break_share: float
    leave_share: float
    stay_s: float

    @classmethod
    def of(cls, rng: Random, session_ttl_ms: int) -> Ways:
        """Those of one world."""
        ttl_s = session_ttl_ms / 1000
        count = rng.choice((1, 1, 2, 3, len(LOCKS)))
        return cls(
            locks=tuple(rng.sample(LOCKS, count)),
            people=rng.choice((1, 2, 2, 4)),
            work_s=rng.choice((0.001, 0.02, 0.2, ttl_s)),
            think_s=rng.choice((0.0005, 0.01, 0.1, ttl_s / 4)),
            lease_s=rng.choice((0.1, ttl_s / 2, ttl_s, 4 * ttl_s)),
            wait_s=rng.choice((0.01, 0.3, ttl_s, 5 * ttl_s)),
            lease_share=rng.choice((0, 0.3, 0.7)),
            patient_share=rng.choice((0.1, 0.5, 0.9)),
            nested_share=rng.choice((0, 0.1, 0.4)),
            cancel_share=rng.choice((0, 0.1, 0.3)),
            count_share=rng.choice((0, 0.1, 0.5)),
            break_share=rng.choice((0, 0, 0.02, 0.1)),
            leave_share=rng.choice((0, 0.3)),
            stay_s=rng.choice((0.5, 2 * ttl_s, 10 * ttl_s)),
        )


def made(
    client: Client, name: str, rng: Random, lease_s: float | None = None, *, renew: bool = True,
    reentrant: bool = False,
) -> BaseLock:
    """A lock object of this name; of those that have two faces, either."""
    kind = KINDS[name]
    if kind == "lock":
        return client.lock(name, lease=lease_s, renew=renew, reentrant=reentrant)
    if kind == "fair lock":
        return client.fair_lock(name, shared=rng.random() < 0.5, lease=lease_s, renew=renew,
                                reentrant=reentrant)
    if kind == "semaphore":
        return client.semaphore(name, SLOTS, lease=lease_s, renew=renew)
    both = client.rwlock(name, reentrant=reentrant)
    return both.read() if rng.random() < 0.6 else both.write()
