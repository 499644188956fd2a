"""The durable store behind the control loop: a full queue, records in pieces, askers that are
forgotten, and that nothing of it keeps the rest of the server waiting."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from control_client import Client, answers, encode, eventually, raw
from dss_tools import LIMIT_S, start

from dlock.control import durable, loop_durable
from dlock.control import messages as m
from dlock.control import messages_durable as d
from dlock.control.durable import Durable
from dlock.control.durable_files import Home, prepare
from dlock.control.durable_store import Store
from dlock.control.loop_durable import Desk
from dlock.server import Server

LANE = b"l" * 16


def lock(number: int, lane: bytes = LANE, operation: int = d.LOCK) -> m.DssCall:
    return m.DssCall(lane, number, 0, 0, 0, operation, b"id %d" % number, b"o")


class Wires:
    """A loop that writes down what it is told."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, int, Any]] = []
        self.told: list[str] = []

    def bound(self, connection: int) -> bool:
        return connection > 0

    def answer(self, connection: int, request_id: int, message: m.Message) -> None:
        self.answers.append((connection, request_id, message))

    def pause(self, connection: int) -> None:
        self.told.append(f"pause {connection}")

    def go_on(self, connection: int) -> None:
        self.told.append(f"go on {connection}")

    def errors(self) -> list[int]:
        found = [one[2].error for one in self.answers]
        self.answers.clear()
        return found


def no_log(_level: int, _event: str, _fields: Mapping[str, object]) -> None:
    """Nobody reads it here."""


class Bench:
    """A store whose turns are taken by hand, and its desk."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder, 1, 77)
        prepare(self.home)
        self.durable = Durable(self.home, lambda: None, no_log)
        self.wires = Wires()
        self.desk = Desk(self.durable, 1, self.wires, no_log)

    def turn(self) -> None:
        self.durable.turn()
        assert self.desk.deliver()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    one = Bench(tmp_path)
    yield one
    one.durable.close()


# ---- A full queue --------------------------------------------------------------------------------


def test_a_full_queue_pauses_the_connection_that_fills_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "QUEUE_MAX", 4)
    for number in range(1, 5):
        assert bench.desk.ask(1, number, lock(number))
    assert not bench.desk.ask(2, 5, lock(5))
    assert not bench.desk.ask(3, 6, lock(6))
    assert bench.wires.told == ["pause 2", "pause 3"]
    assert bench.wires.answers == []
    bench.turn()
    assert bench.wires.told[2:] == ["go on 2", "go on 3"]
    assert len(bench.wires.answers) == 4
    bench.turn()
    assert [one[:2] for one in bench.wires.answers] == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 5),
                                                        (3, 6)]
    assert bench.wires.errors() == [0] * 6
    assert bench.desk.stats()["DURABLE_PAUSES"] == 2


def test_what_a_closed_connection_waited_with_is_dropped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "QUEUE_MAX", 1)
    assert bench.desk.ask(1, 1, lock(1))
    assert not bench.desk.ask(2, 2, lock(2))
    bench.desk.gone(2)
    bench.turn()
    bench.turn()
    assert [one[:2] for one in bench.wires.answers] == [(1, 1)]
    assert "go on 2" not in bench.wires.told


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Any]]:
    """A server whose disk stands still until the event is set."""
    monkeypatch.setattr(durable, "QUEUE_MAX", 8)
    disk = threading.Event()
    real = Store.transact

    def transact(self: Store, *arguments: Any) -> Any:
        assert disk.wait(LIMIT_S)
        return real(self, *arguments)

    monkeypatch.setattr(Store, "transact", transact)
    server = start(tmp_path)
    yield server, disk
    disk.set()
    server.stop()


def test_a_disk_that_stands_still_keeps_nobody_else_waiting(
    slow: tuple[Server, threading.Event]
) -> None:
    server, disk = slow
    with raw(server.host, server.port) as connection, Client(server.host, server.port) as other:
        count = 200
        sent = [lock(number) for number in range(1, count + 1)]
        connection.sendall(b"".join(encode(one.number, one) for one in sent))
        assert eventually(lambda: other.stats()["DURABLE_PAUSES"] > 0)
        for number in range(20):  # the control loop and the engine go on
            assert other.get(b"name %d" % number)[0].lock_id > 0
        assert other.stats()["durable_waiting"] <= 8
        disk.set()
        told = answers(connection, count)
        assert [request_id for request_id, _ in told] == list(range(1, count + 1))
        assert {one.error for _, one in told} == {0}  # type: ignore[attr-defined]


def test_a_server_ends_while_its_disk_stands_still(
    slow: tuple[Server, threading.Event]
) -> None:
    server, disk = slow
    with raw(server.host, server.port) as connection:
        connection.sendall(encode(1, lock(1)))
        assert eventually(lambda: server.stats()["DURABLE_REQUESTS"] > 0)
        threading.Timer(0.2, disk.set).start()
        server.stop()
        assert server.wait(LIMIT_S)
        assert server.failure is None


# ---- Records in pieces ---------------------------------------------------------------------------


def put(offset: int, piece: bytes, size: int, **changes: Any) -> m.RecordPut:
    fields = {"space": b"s", "key": b"k", "upload": 1, **changes}
    return m.RecordPut(size=size, offset=offset, piece=piece, **fields)


def test_pieces_that_do_not_follow_each_other_are_refused(bench: Bench) -> None:
    wrong = {
        "a gap": [put(0, b"ab", 6), put(3, b"cd", 6)],
        "not from the begin": [put(2, b"cd", 6)],
        "twice": [put(0, b"ab", 6), put(0, b"ab", 6)],
        "too much": [put(0, b"ab", 3), put(2, b"cd", 3)],
        "another size": [put(0, b"ab", 6), put(2, b"cd", 4)],
        "another key": [put(0, b"ab", 6), put(2, b"cd", 6, key=b"x")],
        "nothing": [put(0, b"ab", 6), put(2, b"", 6)],
    }
    for pieces in wrong.values():
        for one in pieces:
            assert bench.desk.ask(1, 1, one)
        assert bench.wires.errors() == [0] * (len(pieces) - 1) + [errno.EINVAL]
    for at, one in enumerate([put(0, b"abc", 5), put(3, b"de", 5)]):
        assert bench.desk.ask(1, at, one)
    bench.turn()
    bench.desk.ask(1, 3, m.RecordList(b"s", False, b""))
    bench.turn()
    found = bench.wires.answers[-1][2]
    assert [(one.key, one.head) for one in found.lines] == [(b"k", b"abcde")]


def test_what_is_under_way_in_pieces_is_bounded_and_goes_with_its_connection(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_durable, "UPLOADS_BYTES_MAX", 10)
    for connection in (1, 2):
        bench.desk.ask(connection, 1, put(0, b"abcde", 6))
    bench.desk.ask(3, 1, put(0, b"x", 6))
    assert bench.wires.errors() == [0, 0, errno.ENOMEM]
    bench.desk.gone(1)
    bench.desk.ask(3, 1, put(0, b"x", 6))
    bench.desk.ask(2, 2, put(5, b"f", 6))
    bench.turn()
    assert bench.wires.errors() == [0, 0]


def test_two_uploads_do_not_mix(bench: Bench) -> None:
    for offset in (0, 1):
        for upload in (1, 2):
            bench.desk.ask(1, upload, put(offset, b"%d" % upload, 2, upload=upload,
                                          key=b"%d" % upload))
    bench.turn()
    bench.desk.ask(1, 9, m.RecordList(b"s", False, b""))
    bench.turn()
    found = bench.wires.answers[-1][2]
    assert [(one.key, one.head) for one in found.lines] == [(b"1", b"11"), (b"2", b"22")]


def test_records_need_a_session(bench: Bench) -> None:
    for request in (put(0, b"", 0), m.RecordDelete(b"s", b"k"), m.RecordList(b"s", False, b""),
                    m.RecordGet(b"s", b"k", 1, 0)):
        assert bench.desk.ask(0, 1, request)
    assert bench.wires.errors() == [errno.ENOTCONN] * 4


# ---- Askers --------------------------------------------------------------------------------------


def rows(bench: Bench) -> int:
    store = bench.durable._store
    assert store is not None
    return len(store.tables.lanes())


def test_an_asker_that_leaves_is_forgotten(bench: Bench) -> None:
    bench.desk.ask(1, 1, lock(1))
    bench.turn()
    assert rows(bench) == 1
    bench.desk.ask(1, 2, m.DssForget(LANE))
    bench.turn()
    assert rows(bench) == 0


def test_an_asker_that_ended_without_a_word_is_forgotten_in_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 11):
        bench.desk.ask(1, number, lock(number, b"%016d" % number))
    bench.turn()
    assert rows(bench) == 10
    monkeypatch.setattr(durable, "LANE_IDLE_S", -1.0)
    bench.durable._sweep_at_s = 0.0
    bench.desk.ask(1, 11, lock(11, operation=d.STATUS))
    bench.turn()
    assert rows(bench) == 0


def test_numbers_of_the_past_are_refused(bench: Bench) -> None:
    for number in (5, 5, 4, 6):
        bench.desk.ask(1, number, lock(number))
    bench.turn()
    assert bench.wires.errors() == [0, 0, errno.ECOMM, 0]
    bench.desk.ask(1, 1, lock(0))
    bench.turn()
    assert bench.wires.errors() == [errno.EINVAL]
