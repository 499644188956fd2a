"""Faults of the primary: killed at any moment, in the middle of its work or of its recovery,
stopped and replaced."""

from __future__ import annotations

import random
import time
from typing import Final

from dlock.drill.fault import Fault
from dlock.drill.ground import Ground
from dlock.drill.primary import DrillError, await_ready, recovery_of
from dlock.drill.records import epoch_of, now_ns
from dlock.drill.scene import Scene
from dlock.drill.worker import CROWD

LATE_S: Final = 0.5  # the longest that nobody starts another one
BURST: Final = 2000  # requests that lie in the socket of a primary when it dies
BURST_S: Final = 60.0
MOMENT_S: Final = (1e-6, 3e-4, 0.1)  # how long it works them off: least, first guess, most
IN_RECOVERY_S: Final = 30.0
LOOK_S: Final = 0.002


class KillPrimary(Fault):
    """See `summary`."""

    name = "kill-primary"
    summary = "kill -9 of the primary, at any moment; another one is started"
    done = """The primary is killed with SIGKILL at a random moment under load, and another one is
        started on the same state directory, at once or up to half a second later."""
    must = """Every client comes back by itself; holds whose lease or session still ran are held
        as before; no two believe in what excludes each other."""
    needs = "with --address: --kill-command and --start-command"

    def missing(self, ground: Ground) -> str:
        """See `Fault`."""
        return ground.kills()

    def inject(self, scene: Scene, chance: random.Random) -> None:
        """See `summary`."""
        later_s = chance.choice((0.0, 0.0, 0.0, 0.1, LATE_S)) * chance.random()
        scene.begun("primary", f"kill -9 of {scene.primaries.newest}")
        scene.primaries.kill()
        time.sleep(later_s)
        scene.primaries.start()
        scene.ended(f"{scene.primaries.newest} was started {later_s:.2f} s later")


class KillInBatch(Fault):
    """See `summary`."""

    name = "kill-in-batch"
    summary = f"kill -9 while {BURST} requests lie in the primary's socket"
    done = f"""The primary is stopped for a moment, a client asks for {BURST} locks, which lie in
        its socket then; it is continued, and killed a moment later, in the middle of working them
        off. How long that moment is is learned from how many answers came the time before. Another
        one is started."""
    must = """Those locks that had been granted are held; those whose answer was lost are asked for
        again and granted once; none is held by nobody."""
    needs = "a primary that the drill starts itself"

    def __init__(self) -> None:
        self._moment_s = MOMENT_S[1]

    def missing(self, ground: Ground) -> str:
        """See `Fault`."""
        return ground.owns()

    def inject(self, scene: Scene, chance: random.Random) -> None:
        """See `summary`."""
        crowd = scene.clients.begin(CROWD, *scene.direct, sessions=1, actors=BURST)
        scene.clients.working(crowd)
        crowd.tell("name")
        crowd.hear("named", BURST_S)
        scene.primaries.stop()
        crowd.tell("take")
        crowd.hear("asked", BURST_S)
        wait_s = self._moment_s * chance.uniform(0.7, 1.4)
        scene.begun("primary", f"kill -9 of {scene.primaries.newest} {wait_s * 1e6:.0f} us after "
                               f"it was continued with {BURST} requests before it")
        scene.primaries.go_on()
        _spin(wait_s)
        scene.primaries.kill()
        epoch = scene.own.epoch
        scene.primaries.start()
        healed_ns = now_ns()
        await_ready(scene.primaries, scene.writer)  # when it is, is seen now; if it is not, later
        if not crowd.all_held(BURST_S):
            scene.violated(f"only {crowd.held} of {BURST} locks that a client had asked for when "
                           f"the primary died were granted within {BURST_S:g} s")
        answered = sum(epoch_of(hold.token) == epoch for hold in crowd.board.holds())
        scene.ended(f"the dead primary had granted {answered} of {BURST}", healed_ns)
        self._learn(answered)
        scene.clients.leave(crowd)

    def _learn(self, answered: int) -> None:
        """None: later the next time; all: sooner."""
        if answered == 0:
            self._moment_s = min(self._moment_s * 2, MOMENT_S[2])
        elif answered == BURST:
            self._moment_s = max(self._moment_s / 2, MOMENT_S[0])


class KillInRecovery(Fault):
    """See `summary`."""

    name = "kill-in-recovery"
    summary = "kill -9, and again while the next primary recovers"
    done = """The primary is killed. While the next one waits for the clients of the first (one of
        them is stopped, so that it has to wait), it is killed too, and a third one is started."""
    must = """The third recovers everything that the first had granted, as if there had been no
        second."""
    needs = "a primary that the drill starts itself"

    def missing(self, ground: Ground) -> str:
        """See `Fault`."""
        return ground.owns()

    def inject(self, scene: Scene, chance: random.Random) -> None:
        """See `summary`."""
        kept_out = chance.choice(scene.clients.running)
        scene.clients.stop(kept_out)
        scene.begun("primary", f"kill -9 of {scene.primaries.newest}")
        scene.primaries.kill()
        scene.primaries.start()
        back = _in_recovery(scene)
        time.sleep(chance.random() * 0.05)
        scene.begun("primary", f"kill -9 of {scene.primaries.newest} in its recovery, with {back}")
        scene.primaries.kill()
        scene.primaries.start()
        scene.clients.go_on(kept_out)
        scene.ended(f"{scene.primaries.newest} was started, and {kept_out.name} goes on")


class StopPrimary(Fault):
    """See `summary`."""

    name = "stop-primary"
    summary = "SIGSTOP of the primary past its authority; another one takes over"
    done = """The primary is stopped. Another one takes over its state directory, at another
        address; then the first is continued. With --address, and in every fourth round, nobody
        takes over: it is stopped for longer than a session lasts, and continued."""
    must = """The one that was replaced answers nobody and ends by itself; clients go over to the
        next one with all that they hold. Where nobody takes over, holds are suspended until the
        primary is heard of again."""
    needs = "with --address: --stop-command and --continue-command"

    def missing(self, ground: Ground) -> str:
        """See `Fault`."""
        return ground.stops()

    def inject(self, scene: Scene, chance: random.Random) -> None:
        """See `summary`."""
        stopped = scene.primaries.newest
        alone = not scene.owned or chance.random() < 0.25
        scene.begun("primary", f"SIGSTOP of {stopped}")
        scene.primaries.stop()
        ttl_s = scene.session_ttl_s
        if alone:
            seconds = ttl_s * chance.uniform(1.1, 1.6)
            time.sleep(seconds)
            scene.primaries.go_on()
            scene.ended(f"{stopped} goes on after {seconds:.1f} s")
            return
        time.sleep(chance.choice((0.0, 0.3, 1.3)) * ttl_s)
        scene.own.replace()
        scene.ended(f"{scene.own.newest} has taken over")
        time.sleep(chance.random() * ttl_s)
        scene.own.former_goes_on()


def _in_recovery(scene: Scene) -> str:
    """Until some clients have come back to a primary that recovers, in words."""
    deadline = time.monotonic() + IN_RECOVERY_S
    while time.monotonic() < deadline:
        status = recovery_of(scene.primaries)
        if status is not None and (status.ready or status.back):
            return f"{status.back} of {status.expected} clients back" + (
                ", too late: it was ready" if status.ready else "")
        time.sleep(LOOK_S)
    raise DrillError("no client came back to a primary that recovers")


def _spin(seconds: float) -> None:
    """Waits for less than a sleep can."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
