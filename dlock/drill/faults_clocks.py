"""Faults of clocks: another machine's, and the wall clock of this one."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Final

from dlock.drill.fault import Fault
from dlock.drill.ground import Ground
from dlock.drill.scene import Scene

HOUR_S: Final = 3600
UPTIME: Final = Path("/proc/uptime")


class ClockStep(Fault):
    """See `summary`."""

    name = "clock-step"
    summary = "the next primary's clocks stand an hour ahead or behind"
    done = """The primary is killed, and the next one is started in a time namespace in which the
        clocks that count from boot stand an hour ahead, or behind, as they do on another
        machine."""
    must = """Nothing but durations counts: what was held is held, for as long as it would have been
        held."""
    needs = "root, and a kernel with time namespaces; a primary that the drill starts itself"

    def missing(self, ground: Ground) -> str:
        """See `Fault`."""
        return ground.owns() or ground.times()

    def inject(self, scene: Scene, chance: random.Random) -> None:
        """See `summary`."""
        behind = float(UPTIME.read_text().split()[0]) > 2 * HOUR_S  # no clock stands before boot
        hours = chance.choice((1, -1)) if behind else 1
        scene.begun("clock", f"kill -9 of {scene.primaries.newest}")
        scene.primaries.kill()
        scene.own.start(hours=hours)
        scene.ended(f"{scene.primaries.newest} was started, its clocks an hour "
                    f"{'ahead' if hours > 0 else 'behind'}")


class WallClock(Fault):
    """See `summary`."""

    name = "wall-clock"
    summary = "the wall clock of this machine is stepped by an hour, and back"
    done = """The wall clock of the machine is set an hour ahead, an hour behind, and right again.
        No namespace has a wall clock of its own, so everything else on this machine sees it too:
        it happens only with --set-clock."""
    must = "Nothing: nobody looks at the wall clock."
    needs = "--set-clock, and the right to set the clock (CAP_SYS_TIME)"

    def missing(self, ground: Ground) -> str:
        """See `Fault`."""
        return ground.wall_clock()

    def inject(self, scene: Scene, chance: random.Random) -> None:
        """See `summary`."""
        scene.begun("clock", "the wall clock is stepped by an hour, and back")
        offset_ns = _wall_ns() - _boot_ns()
        try:
            for hours in (1, -1):
                time.clock_settime_ns(
                    time.CLOCK_REALTIME, _boot_ns() + offset_ns + hours * HOUR_S * 10**9)
                time.sleep(chance.uniform(0.2, 1.2) * scene.session_ttl_s)
        finally:
            time.clock_settime_ns(time.CLOCK_REALTIME, _boot_ns() + offset_ns)
        scene.ended("the wall clock is right again")


def _wall_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_REALTIME)


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
