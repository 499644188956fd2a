"""How connections of the glockd door end: clients that leave, vanish, stop listening, or are many;
and what a crowd finds."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from failover_tools import until
from glockd_tools import LIMIT_S, Glockd, Wire, glockd, leave_alone, stopped

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


@pytest.fixture(scope="module")
def shared_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glockd]:
    # The time to live of the session is long on purpose: no end may wait for it.
    with glockd(tmp_path_factory.mktemp("ends"), ttl_s=120.0) as door:
        yield door


@pytest.fixture
def door(shared_door: Glockd) -> Iterator[Glockd]:
    yield shared_door
    leave_alone(shared_door)


def leave(wire: Wire) -> None:
    wire.close()


def reset(wire: Wire) -> None:
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    wire.close()


def half_close(wire: Wire) -> None:
    wire.socket.shutdown(socket.SHUT_WR)


ENDS = [leave, reset, half_close]


@pytest.mark.parametrize("end", ENDS)
def test_whatever_way_it_ends_its_locks_are_free(
    door: Glockd, end: Callable[[Wire], None]
) -> None:
    one, other = door.tcp(), door.tcp()
    before = other.statistics()
    for command in (b"g a", b"g b", b"sg a", b"sg b", b"sg c"):
        one.ask(command)
    other.ask(b"sg c")
    one.ask(b"iam gone soon")
    end(one)
    until(lambda: other.statistics()["connections"] == before["connections"] - 1)
    after = other.statistics()
    assert after["orphans"] - before["orphans"] == 2
    assert after["shared_orphans"] - before["shared_orphans"] == 3
    assert (after["locks"], after["shared_locks"]) == (before["locks"], before["shared_locks"] + 1)
    assert other.all(b"who") == b""
    assert other.ask(b"si c") == b"1 Shared Lock Is Locked: c\r\n"
    assert other.ask(b"i a") == b"0 Lock Not Locked: a\r\n"
    for command in (b"g a", b"g b", b"sg a"):
        assert other.ask(command).startswith(b"1 ")


def test_a_vanished_client_of_the_unix_socket_holds_nothing(door: Glockd) -> None:
    one, other = door.unix(), door.unix()
    one.ask(b"g a")
    one.close()
    until(lambda: other.ask(b"g a").startswith(b"1 "))


def test_the_last_line_needs_no_end(door: Glockd) -> None:
    one, other = door.tcp(), door.tcp()
    before = other.statistics()
    one.send(b"g a\nsg a\ng last")
    one.socket.shutdown(socket.SHUT_WR)
    assert one.rest() == (b"1 Lock Get Success: a\r\n1 Shared Lock Get Success: a\r\n"
                          b"1 Lock Get Success: last\r\n")  # and the door has closed its end
    until(lambda: other.statistics()["locks"] == before["locks"])
    after = other.statistics()
    assert after["orphans"] - before["orphans"] == 2
    assert after["shared_orphans"] - before["shared_orphans"] == 1


def test_a_client_that_asks_and_is_gone_leaves_nothing(door: Glockd) -> None:
    watch = door.tcp()
    for number in range(50):
        one = door.tcp()
        one.send(b"g a\nsg b\ng c\n"[: 3 + number % 12])
        (leave, reset)[number % 2](one)
    until(lambda: watch.statistics()["connections"] == 1)
    assert watch.statistics()["locks"] == watch.statistics()["shared_locks"] == 0
    for name in (b"a", b"c"):
        assert watch.ask(b"g " + name) == b"1 Lock Get Success: %b\r\n" % name


def test_a_client_that_takes_no_replies_holds_nobody_up(door: Glockd) -> None:
    one, other = door.tcp(), door.tcp()
    for number in range(200):
        one.ask(b"g %d %b" % (number, b"x" * 1000))
    one.socket.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 64 << 20:  # each of these lines asks for 200 KB
            sent += one.socket.send(b"d\n" * 4096)
    assert sent < 64 << 20, "the door reads and reads"
    assert other.ask(b"g free") == b"1 Lock Get Success: free\r\n"
    resident = Path(f"/proc/{door.door.process.pid}/statm").read_text().split()[1]
    assert int(resident) * 4096 < 400 << 20
    one.socket.settimeout(20)  # what is owed to it comes, when it takes it after all
    assert len(one.read(4 << 20)) == 4 << 20


def test_replies_that_nobody_could_keep_end_the_connection(door: Glockd) -> None:
    one, other = door.tcp(), door.tcp()
    before = door.door.counters().get("outputs_over", 0)
    for number in range(40):
        one.ask(b"g %d %b" % (number, b"x" * (200 << 10)))
    assert len(other.all(b"d")) > 8_000_000  # that is not too much
    for number in range(40, 200):
        one.ask(b"g %d %b" % (number, b"x" * (200 << 10)))
    third = door.tcp()
    third.ask(b"g mine")
    third.send(b"d\n")  # 40 MB, of which nothing is taken
    until(lambda: door.door.counters().get("outputs_over", 0) == before + 1)
    until(lambda: one.ask(b"g mine").startswith(b"1 "))


def test_a_command_that_waits_holds_back_its_own_connection_only(door: Glockd) -> None:
    one, other = door.tcp(), door.tcp()
    with stopped(door.place.primary):
        before = other.statistics()["command_g"]
        one.send(b"g a\nme\nr a\nme\n")
        assert other.ask(b"me") == b"1 %b %b\n" % (other.called, other.called)
        until(lambda: other.statistics()["command_g"] > before)
        assert other.statistics()["locks"] == 0
        one.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            one.socket.recv(1)
    one.socket.settimeout(LIMIT_S)
    me = b"1 %b %b\n" % (one.called, one.called)
    expected = b"1 Lock Get Success: a\r\n" + me + b"1 Lock Release Success: a\n" + me
    assert one.read(len(expected)) == expected


def test_a_client_that_leaves_while_it_waits_gets_nothing(door: Glockd) -> None:
    one, other = door.tcp(), door.tcp()
    one.ask(b"g before")
    with stopped(door.place.primary):
        before = other.statistics()["command_g"]
        one.send(b"g a\n")
        until(lambda: other.statistics()["command_g"] > before)
        reset(one)
        until(lambda: other.statistics()["connections"] == 1)
    until(lambda: other.ask(b"g a").startswith(b"1 "))
    until(lambda: other.ask(b"g before").startswith(b"1 "))


def test_a_crowd_is_served(door: Glockd) -> None:
    count = 400  # descriptors of this process; the benchmark has 10,000
    crowd = [door.tcp() for _ in range(count)]
    until(lambda: crowd[0].statistics()["connections"] == count)
    for number, wire in enumerate(crowd):
        wire.send(b"g crowd %d\nsg crowd\n" % number)
    seen = set()
    for number, wire in enumerate(crowd):
        assert wire.line() == b"1 Lock Get Success: crowd %d\r\n" % number
        seen.add(int(wire.line().split()[0]))
    assert seen == set(range(1, count + 1))
    assert crowd[0].statistics()["locks"] == count
    assert len(crowd[1].all(b"sd").splitlines()) == count


def test_of_a_crowd_that_wants_one_lock_one_gets_it(door: Glockd) -> None:
    crowd = [door.tcp() if number % 2 else door.unix() for number in range(100)]
    for _ in range(3):
        for wire in crowd:
            wire.send(b"g prize\n")
        won = [wire for wire in crowd if wire.line().startswith(b"1 ")]
        assert len(won) == 1
        assert won[0].ask(b"r prize") == b"1 Lock Release Success: prize\n"


def test_who_is_served_goes_on_when_there_are_too_many(tmp_path: Path) -> None:
    """The door has no descriptor left: those who came in time are served, and others when some of
    them have gone."""
    with glockd(tmp_path) as door:
        first = door.tcp()
        assert first.ask(b"g a").startswith(b"1 ")
        resource.prlimit(door.door.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        crowd = [door.tcp() for _ in range(100)]
        until(lambda: first.statistics()["connections"] > 20)
        assert first.statistics()["connections"] < 64
        assert first.ask(b"g b").startswith(b"1 ")
        for wire in crowd:
            wire.close()
        until(lambda: first.statistics()["connections"] == 1)
        assert door.tcp().ask(b"g c") == b"1 Lock Get Success: c\r\n"
        assert first.ask(b"r a") == b"1 Lock Release Success: a\n"


def test_connections_come_and_go(door: Glockd) -> None:
    """Descriptors and memory do not grow."""
    watch = door.tcp()

    def descriptors() -> int:
        return len(list(Path(f"/proc/{door.door.process.pid}/fd").iterdir()))

    watch.ask(b"me")
    before = descriptors()
    for _ in range(300):
        one = door.tcp()
        assert one.ask(b"g same").startswith(b"1 ")
        one.close()
        until(lambda: watch.statistics()["locks"] == 0)
    until(lambda: watch.statistics()["connections"] == 1)
    assert descriptors() <= before + 1
    assert watch.statistics()["orphans"] >= 300
