"""A drill finds what must not be: an operator breaks a promise that dlock cannot keep for him. And
a clock that was set wrong is set right again, whatever happens."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from dlock.drill import records, run
from dlock.drill.clients import Client
from dlock.drill.fault import Fault
from dlock.drill.faults_clocks import WallClock
from dlock.drill.judge import judge
from dlock.drill.primary import recovery_of
from dlock.drill.records import Hold
from dlock.drill.scene import Scene
from dlock.drill.violations import EXCLUSION

TTL_S = 20.0  # a client that is stopped for a moment believes in its holds all the same
PATIENCE_S = 150.0

pytestmark = pytest.mark.timeout(1000)


def wanted(client: Client) -> Hold | None:
    """What it holds alone, for as long as its session lasts, and others want."""
    for hold in client.board.holds():
        if hold.exclusive and not hold.lease_ms and hold.name.count("/") == 2:
            return hold
    return None


class EvictsTheLiving(Fault):
    """An operator says of a client that lives that it is dead."""

    name = "evicts-the-living"
    summary = done = must = "exclusion is broken"

    def inject(self, scene: Scene, chance: random.Random) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:  # one that stands still while it holds a lock that others want
            client = chance.choice(scene.clients.running)
            if wanted(client):
                scene.clients.stop(client)
                held = wanted(client)
                if held:
                    break
                scene.clients.go_on(client)
            assert time.monotonic() < deadline
        scene.begun("primary", "killed, and a living client is evicted")
        scene.primaries.kill()
        scene.primaries.start()
        status = recovery_of(scene.primaries)
        while status is None or status.back < len(scene.clients.running) - 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            status = recovery_of(scene.primaries)
        scene.primaries.asked(lambda admin: admin.evict())
        others = [one for one in scene.clients.running if one is not client]
        while not any(hold.name == held.name and hold.token > held.token
                      for one in others for hold in one.board.holds()):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        scene.clients.go_on(client)
        scene.ended("it goes on")


def test_a_client_that_was_evicted_and_lives_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = EvictsTheLiving()
    monkeypatch.setattr(run, "MENU", (fault,))
    monkeypatch.setattr(run, "SESSION_TTL_S", TTL_S)
    run.drill(run.Plan(3, clients=4), tmp_path, lambda _line: None)
    verdict = judge(records.read(tmp_path))
    assert verdict.status == 1
    assert verdict.counts[EXCLUSION]
    assert verdict.found[0].fault == fault.name


class BreaksWhatIsHeld(Fault):
    """Holds are taken away from those who have done nothing wrong."""

    name = "breaks-what-is-held"
    summary = done = must = "a hold is lost although its authority runs"

    def inject(self, scene: Scene, chance: random.Random) -> None:
        scene.begun("primary", "holds are broken")
        for client in scene.clients.running:
            for hold in client.board.holds():
                scene.primaries.asked(lambda admin, name=hold.name: admin.break_lock(name))
        scene.ended("enough")


def test_a_hold_that_is_taken_away_for_no_reason_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = BreaksWhatIsHeld()
    monkeypatch.setattr(run, "MENU", (fault,))
    run.drill(run.Plan(3, rounds=3, clients=3), tmp_path, lambda _line: None)
    verdict = judge(records.read(tmp_path))
    assert verdict.status == 1
    assert any("had called it HELD, and its session" in one.violation.text
               for one in verdict.found)


def test_the_wall_clock_is_set_right_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the machine that runs tests is not the tests' to set, so what would be set is
    looked at."""
    set_to: list[float] = []
    true_ns = time.time_ns()

    class Interrupted(BaseException):
        pass

    def sleep(_seconds: float) -> None:
        if len(set_to) == 2:
            raise Interrupted

    class SceneOfNothing:
        session_ttl_s = 1.0

        def begun(self, fails: str, detail: str) -> None:
            assert (fails, bool(detail)) == ("clock", True)

    monkeypatch.setattr(
        time, "clock_settime_ns",
        lambda clock, t_ns: set_to.append(round((t_ns - true_ns) / 3.6e12, 1)))
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(Interrupted):
        WallClock().inject(SceneOfNothing(), random.Random(1))  # type: ignore[arg-type]
    assert set_to == [1.0, -1.0, 0.0]
