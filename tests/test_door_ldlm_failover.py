"""The LDLM door while its primary is killed and comes back: calls wait, what is held stays held,
and no lock is held twice. And what a client sees when a lock was lost all the same."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("h2", reason="the extra doors is not installed")
pytest.importorskip("grpc", reason="grpcio is not installed")
pytest.importorskip("ldlm", reason="py-ldlm is not installed")

import grpc
from door_tools import Door, beside
from failover_tools import PATIENCE_S, until
from ldlm_tools import Stub, ldlm_door, refused, stub

from dlock.admin import Admin

TTL_S = 30.0


def test_what_is_held_stays_held_and_what_waits_goes_on(tmp_path: Path) -> None:
    with beside(tmp_path, ttl_s=TTL_S) as place:
        door = ldlm_door(place)
        with stub(door) as one, stub(door) as two:
            plain = one.lock("plain")
            sized = [one.lock("sized", size=2) for _ in range(2)]
            waiting = [two.lock_soon("plain"), two.lock_soon("sized", size=2)]
            two.try_lock("a round trip later")
            place.primary.restart()
            assert one.lock("another", wait_timeout_seconds=0).locked
            assert not two.try_lock("plain").locked
            assert not any(each.done() for each in waiting)
            assert one.unlock("plain", plain.key).unlocked
            assert one.unlock("sized", sized[1].key).unlocked
            assert all(each.result().locked for each in waiting)
            assert not one.try_lock("sized", size=2).locked


def test_calls_wait_while_there_is_no_primary(tmp_path: Path) -> None:
    with beside(tmp_path, ttl_s=TTL_S) as place:
        door = ldlm_door(place)
        with stub(door) as one, stub(door) as two:
            held = one.lock("x")
            place.primary.kill()
            waiting = [one.lock_soon("y"), two.lock_soon("x")]
            over = two.lock_soon("z", wait_timeout_seconds=1)
            assert over.result().error.code == 3, "its own time ends all the same"
            given_up = one.lock_soon("y", timeout=0.5)
            assert refused(given_up.result)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
            assert not any(each.done() for each in waiting)
            place.primary.start()
            assert waiting[0].result().locked
            assert not waiting[1].done()
            assert one.unlock("x", held.key).unlocked
            assert waiting[1].result().locked


def test_no_lock_is_held_twice_through_three_failovers(tmp_path: Path) -> None:
    with beside(tmp_path, ttl_s=TTL_S) as place:
        door = ldlm_door(place)
        crowd = Crowd(door)
        threads = [threading.Thread(target=crowd.work, daemon=True) for _ in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            crowd.wait()
            place.primary.restart()
        crowd.wait()
        crowd.over = True
        for thread in threads:
            thread.join(4 * PATIENCE_S)
            assert not thread.is_alive()
        assert crowd.problems == []


class Crowd:
    """Threads with a connection each that take turns with one lock, and see whether they are
    alone."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.turns = 0
        self.over = False
        self.problems: list[Any] = []
        self._alone = threading.Lock()

    def wait(self) -> None:
        """Until they have taken some more turns."""
        seen = self.turns
        until(lambda: self.problems or self.turns > seen + 20, 4 * PATIENCE_S)

    def work(self) -> None:
        try:
            with stub(self.door) as mine:
                while not self.over and not self.problems:
                    self._turn(mine)
        except Exception as problem:
            self.problems.append(problem)

    def _turn(self, mine: Stub) -> None:
        answer = mine.lock("turns")
        if not answer.locked:
            self.problems.append(answer)
        if not self._alone.acquire(blocking=False):
            self.problems.append("two hold it")
            return
        self.turns += 1
        time.sleep(0.001)
        self._alone.release()
        freed = mine.unlock("turns", answer.key)
        if not freed.unlocked:
            self.problems.append(freed)


def test_a_lock_that_was_lost_ends_its_connection_and_no_other(tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        door = ldlm_door(place)
        with stub(door) as one, stub(door) as two:
            assert one.lock("x").locked
            assert one.lock("y").locked
            assert two.lock("z").locked
            waiting = one.lock_soon("z")
            one.try_lock("a round trip later")
            with Admin(place.primary.place) as admin:
                admin.break_lock("ldlm:x")
            assert refused(waiting.result)[0] is grpc.StatusCode.UNAVAILABLE
            assert two.lock("y").locked, "everything that it held is free"
            assert two.lock("x").locked
            assert one.try_lock("another").locked, "it has connected anew"
        counted = door.counters()
        assert (counted["lost_holds"], counted["grpc_ended_lost_hold"]) == (1, 1)
        assert "Lock lost" in door.said()


def test_a_primary_that_stays_away_for_too_long(tmp_path: Path) -> None:
    """Its session is over, so its holds are lost: the client hears of it by the end of its
    connection, and goes on with another one."""
    with beside(tmp_path, ttl_s=2.0) as place:
        door = ldlm_door(place)
        with stub(door) as one:
            held = one.lock("x")
            door.process.send_signal(signal.SIGSTOP)  # the door sends no heartbeats
            with Admin(place.primary.place) as admin:
                until(lambda: not list(admin.clients()))
            door.process.send_signal(signal.SIGCONT)
            until(lambda: door.counters().get("lost_holds", 0) == 1)
            again = one.try_lock("x")
            assert again.locked
            assert again.key != held.key
            assert one.unlock("x", held.key).error.code == 2
