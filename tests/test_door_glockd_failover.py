"""The glockd door and what stands behind it: a primary that dies, a hold that is lost, other
clients of the same locks. Clients of glockd see a delay or the end of their connection, and never a
lock held twice."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cli_tools import dlock as dlock_command
from door_tools import beside
from failover_tools import until
from glockd_tools import Glockd, Wire, glockd, stopped

import dlock

SHORT_TTL_S = 4.0


def beside_it(door: Glockd) -> dlock.Client:
    """A client of dlock itself, of the same primary."""
    return dlock.connect(door.place.primary.place)


# ---- Failover ------------------------------------------------------------------------------------


def test_locks_outlive_the_primary(tmp_path: Path) -> None:
    with glockd(tmp_path) as door:
        one, other = door.tcp(), door.unix()
        for command in (b"g a", b"sg s"):
            one.ask(command)
        other.ask(b"sg s")
        door.place.primary.kill()
        other.send(b"g a\ng b\nme\n")
        one.send(b"r a\ng c\nsi s\n")
        door.place.primary.start()
        replies = one.line(), one.line(), one.line()
        assert replies == (b"1 Lock Release Success: a\n", b"1 Lock Get Success: c\r\n",
                           b"2 Shared Lock Is Locked: s\r\n")
        first = other.line()
        assert first in (b"0 Lock Get Failure: a\r\n", b"1 Lock Get Success: a\r\n")
        assert other.line() == b"1 Lock Get Success: b\r\n"
        assert other.line().startswith(b"1 unix:")
        assert other.ask(b"g c") == b"0 Lock Get Failure: c\r\n"
        assert one.ask(b"r c") == b"1 Lock Release Success: c\n"
        assert other.ask(b"g c") == b"1 Lock Get Success: c\r\n"
        assert "lost_holds" not in door.door.counters()


def test_what_is_claimed_while_it_is_uncertain_waits_for_the_primary(tmp_path: Path) -> None:
    """The door was cut off for longer than its session is certain: it claims nothing until the
    primary has said what is so."""
    with glockd(tmp_path, ttl_s=SHORT_TTL_S) as door:
        holder, asker = door.tcp(), door.tcp()
        with beside_it(door) as client:
            for command in (b"g a", b"g b", b"sg s"):
                holder.ask(command)
            primary = door.place.primary
            with stopped(primary):
                # The door may have heard of its primary a little later than we did.
                until(lambda: client.session_left == 0.0)
                time.sleep(SHORT_TTL_S / 4 + 0.5)
                holder.send(b"g a\nr b\nsi s\n")
                asker.send(b"i a\n")
                for wire in (holder, asker):
                    wire.socket.settimeout(0.3)
                    with pytest.raises(TimeoutError):
                        wire.socket.recv(1)
            for wire in (holder, asker):
                wire.socket.settimeout(30)
            # A primary that stood still ends no session for it: everything is confirmed.
            assert holder.line() == b"1 Lock Get Success: a\n"
            assert holder.line() == b"1 Lock Release Success: b\n"
            assert holder.line() == b"1 Shared Lock Is Locked: s\r\n"
            assert asker.line() == b"1 Lock Is Locked: a\r\n"
            assert asker.ask(b"g b") == b"1 Lock Get Success: b\r\n"


def test_a_door_that_was_cut_off_for_too_long_closes_what_held(tmp_path: Path) -> None:
    with glockd(tmp_path, ttl_s=SHORT_TTL_S) as door:
        holder, sharer, idle = door.tcp(), door.unix(), door.tcp()
        holder.ask(b"g a")
        sharer.ask(b"sg a")
        idle.ask(b"me")
        os.kill(door.door.process.pid, signal.SIGSTOP)
        with beside_it(door) as client:
            lock = client.lock("glockd:a")
            assert lock.acquire(timeout=60)  # the primary has ended the door's session
            os.kill(door.door.process.pid, signal.SIGCONT)
            assert holder.rest() == sharer.rest() == b""  # the door has closed them
            until(lambda: door.door.counters().get("lost_holds") == 2)
            assert idle.ask(b"g a") == b"0 Lock Get Failure: a\r\n"
            assert idle.ask(b"i a") == b"1 Lock Is Locked: a\r\n"
            lock.release()
            assert idle.ask(b"g a") == b"1 Lock Get Success: a\r\n"
            counts = idle.statistics()
            assert (counts["connections"], counts["locks"], counts["orphans"]) == (1, 1, 0)


def test_a_lock_that_an_operator_breaks_closes_its_connection(tmp_path: Path) -> None:
    with glockd(tmp_path) as door:
        holder, other = door.tcp(), door.tcp()
        for command in (b"g a", b"g b", b"sg s"):
            holder.ask(command)
        with door.place.primary.admin() as admin:
            admin.break_lock("glockd:a")
        assert holder.rest() == b""
        until(lambda: other.ask(b"g a").startswith(b"1 "))
        for command in (b"g b", b"sg s"):
            assert other.ask(command).startswith(b"1 ")
        assert door.door.counters()["lost_holds"] == 1
        counts = other.statistics()
        assert (counts["orphans"], counts["shared_orphans"]) == (1, 1)  # those that it had left


def test_a_door_that_is_killed_and_comes_back_finds_its_locks_free(tmp_path: Path) -> None:
    with glockd(tmp_path, ttl_s=60.0) as door:
        one = door.tcp()
        one.ask(b"g a")
        one.ask(b"sg s")
        door.door.restart()
        assert one.rest() == b""
        again = door.tcp()
        assert again.ask(b"g a") == b"1 Lock Get Success: a\r\n"
        assert again.ask(b"sg s") == b"1 Shared Lock Get Success: s\r\n"


def test_no_lock_is_held_twice_while_primaries_die(tmp_path: Path) -> None:
    """Clients add to a file under a lock of glockd's, while the primary is killed twice."""
    total = tmp_path / "total"
    total.write_text("0")
    failures: list[str] = []
    stop = threading.Event()
    counts = [0] * 4

    def work(wire: Wire, index: int) -> None:
        wire.socket.settimeout(60)
        while not stop.is_set():
            if not wire.ask(b"g counter").startswith(b"1 "):
                continue
            value = int(total.read_text())
            time.sleep(0.001)
            total.write_text(str(value + 1))
            counts[index] += 1
            if wire.ask(b"r counter") != b"1 Lock Release Success: counter\n":
                failures.append("a release failed")
                return

    with glockd(tmp_path) as door:
        threads = [threading.Thread(target=work, args=(door.tcp(), index)) for index in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(2):
                before = sum(counts)
                until(lambda before=before: sum(counts) > before + 20)  # type: ignore[misc]
                door.place.primary.restart()
            before = sum(counts)
            until(lambda: sum(counts) > before + 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join(70)
    assert not failures
    assert int(total.read_text()) == sum(counts)


# ---- Others at the same locks --------------------------------------------------------------------


def test_a_program_of_dlock_sees_the_same_locks(tmp_path: Path) -> None:
    with glockd(tmp_path) as door, beside_it(door) as client:
        one = door.tcp()
        lock = client.lock("glockd:a")
        assert one.ask(b"g a").startswith(b"1 ")
        assert not lock.acquire(blocking=False)
        one.ask(b"r a")
        assert lock.acquire(blocking=False)
        assert one.ask(b"g a") == b"0 Lock Get Failure: a\r\n"
        assert one.ask(b"i a") == b"1 Lock Is Locked: a\r\n"
        assert one.all(b"d") == b""
        assert one.ask(b"r a") == b"0 Lock Release Failure: a\n"
        lock.release()
        assert one.ask(b"i a") == b"0 Lock Not Locked: a\r\n"


def test_operators_see_whose_locks_they_are(tmp_path: Path) -> None:
    long = b"long " * 1000
    with glockd(tmp_path) as door:
        one, other = door.tcp(), door.unix()
        other_pid = os.getpid()
        for command in (b"g a", b"g " + long, b"sg s"):
            one.ask(command)
        other.ask(b"sg s")
        owner = one.called.decode()

        def listed() -> list[dict[str, Any]]:
            lines = dlock_command("ls", "--json", "--busy", "glockd",
                                  address=door.place.primary.place).out
            return [json.loads(line) for line in lines.splitlines()]

        def told() -> bool:
            found = {line.get("text") or line["name"]: line.get("label") for line in listed()}
            shared = found.pop("glockd+shared:s")
            return found == {"glockd:a": owner, f"glockd:{long.decode().strip()}": owner} and (
                shared in (owner, f"{other.ask(b'me').split()[1].decode()} pid {other_pid}"))

        until(told)


def test_a_name_of_another_kind_is_refused(tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        door = Glockd(place, namespace="site")
        with beside_it(door) as client, client.semaphore("site:a", 3):
            one = door.tcp()
            assert one.ask(b"g a") == b"0 Lock Get Failure: a\r\n"
            assert one.ask(b"g b") == b"1 Lock Get Success: b\r\n"
            assert door.door.counters()["refused_KindMismatch"] == 1
            writer = client.rwlock("site+shared:s").write()
            writer.acquire()
            assert one.ask(b"sg s") == b"0 Shared Lock Get Failure: s\r\n"
            writer.release()
            assert one.ask(b"sg s") == b"1 Shared Lock Get Success: s\r\n"
        door.close()


def test_a_release_is_seen_by_who_asks_next(tmp_path: Path) -> None:
    """A release is answered before the primary has it; who asks the primary afterwards must not be
    told of the lock as it was."""
    with glockd(tmp_path) as door:
        one, other = door.tcp(), door.tcp()
        for _ in range(200):
            one.ask(b"g a")
            one.ask(b"r a")
            assert other.ask(b"i a") == b"0 Lock Not Locked: a\r\n"


def test_a_connection_that_only_asks_is_no_owner(tmp_path: Path) -> None:
    with glockd(tmp_path) as door, beside_it(door) as client:
        before = client.stats()["REQUESTS"]
        for wire in [door.tcp() for _ in range(20)]:
            for command in (b"me", b"r a", b"si a", b"sr a", b"dump"):
                wire.ask(command)
        assert client.stats()["REQUESTS"] == before


def test_a_lock_held_here_is_refused_without_the_primary(tmp_path: Path) -> None:
    with glockd(tmp_path) as door:
        one, other = door.tcp(), door.tcp()
        one.ask(b"g a")
        one.ask(b"sg s")
        with stopped(door.place.primary):
            assert other.ask(b"g a") == b"0 Lock Get Failure: a\r\n"
            assert other.ask(b"i a") == b"1 Lock Is Locked: a\r\n"
            assert one.ask(b"g a") == b"1 Lock Get Success: a\n"
            assert one.ask(b"sg s") == b"1 Shared Lock Get Success: s\r\n"
            assert one.ask(b"sr s") == b"1 Shared Lock Release Success: s\r\n"
            assert one.ask(b"r a") == b"1 Lock Release Success: a\n"
