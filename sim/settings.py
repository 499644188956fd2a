"""What differs from world to world: drawn from the seed, so that thousands of seeds are thousands
of different clusters, and said at the head of each transcript.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from random import Random
from typing import Final

from sim.kernel import MS_NS, SECOND_NS
from sim.network import Weather

CLIENT_NAMES: Final = ("alice", "bob", "carol", "dave", "erin")
PLACES: Final = ("north", "south")
# Two clocks of a world differ by less than 0.1 % in rate, which is what clients allow for.
RATE_PPM_MAX: Final = 499


@dataclass(frozen=True)
class Settings:
    """`faults`: which kinds befall this world; `fault_gap_ns`: the mean time between two of them;
    `busy_ns`: for how long clients work and faults happen; `two_places`: a new primary may start
    on another machine than the last one."""

    clients: int = 3
    session_ttl_ms: int = 2000
    max_lease_ms: int = 20_000
    busy_ns: int = 20 * SECOND_NS
    fault_gap_ns: int = 2 * SECOND_NS
    two_places: bool = False
    drift: bool = False
    slow_disk: bool = False
    weather: Weather = field(default_factory=Weather)
    faults: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(f"{one.name}={getattr(self, one.name)}" for one in fields(self))


def draw(rng: Random, menu: tuple[str, ...]) -> Settings:
    """The settings of a seed; every fifth world has no fault at all, so that what is wrong without
    one is found without one."""
    faults = tuple(name for name in menu if rng.random() < 0.5) if rng.random() < 0.8 else ()
    session_ttl_ms = rng.choice((1000, 2000, 3000, 10_000))
    return Settings(
        clients=rng.choice((1, 2, 3, 3, 4, 5)),
        session_ttl_ms=session_ttl_ms,
        max_lease_ms=rng.choice((4, 6)) * session_ttl_ms,
        busy_ns=rng.randrange(5, 40) * SECOND_NS,
        fault_gap_ns=rng.choice((300, 1000, 3000)) * MS_NS,
        two_places=rng.random() < 0.5,
        drift=rng.random() < 0.7,
        slow_disk=rng.random() < 0.3,
        weather=Weather(
            delay_us=rng.choice((20, 100, 100, 2000, 20_000)),
            slow=rng.choice((0.0, 0.02, 0.1)),
            slow_ms=rng.choice((5, 50, 400)),
            split=rng.choice((0.0, 0.1, 0.5)),
            window_bytes=rng.choice((2048, 65536, 1 << 18)),
        ),
        faults=faults,
    )
