"""The keeper and the notices without their threads: a program takes their turns itself."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator

import pytest
from lock_tools import until

import dlock
from dlock import _keeper, _notices
from dlock._core import lib, now_ns
from dlock.admin import Admin
from dlock.server import Server, ServerConfig

THREADS = ("dlock-keeper", "dlock-notices")


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0, session_ttl_ms=8000))
    yield one
    one.stop()


@pytest.fixture
def by_hand() -> Iterator[None]:
    _keeper.by_hand()
    _notices.by_hand()
    yield
    _keeper.by_hand(False)
    _notices.by_hand(False)


def threads() -> set[str]:
    return {one.name for one in threading.enumerate()} & set(THREADS)


class Turns:
    """Takes the keeper's turns for one client, when there is one to be taken."""

    def __init__(self, client: dlock.Client) -> None:
        self.pointer = client._session.client
        self.watch_fd = -1

    def take(self) -> bool:
        readable = self.watch_fd >= 0 and bool(select.select([self.watch_fd], (), (), 0)[0])
        if readable or lib.dlk_client_keep_at_ns(self.pointer) <= now_ns():
            self.watch_fd = lib.dlk_client_keep(self.pointer, readable).watch_fd
        return True


@pytest.mark.usefixtures("by_hand")
def test_the_turns_of_the_keeper_renew_a_session(server: Server) -> None:
    with dlock.connect(server.address) as client:
        assert not threads()
        session, turns = client._session, Turns(client)
        until(lambda: session.left_s < 7)
        until(lambda: turns.take() and session.left_s > 7)  # a PING was sent and answered


@pytest.mark.usefixtures("by_hand")
def test_notices_are_told_when_they_are_delivered(server: Server) -> None:
    told: list[object] = []
    with dlock.connect(server.address) as client, Admin(server.address) as admin:
        lock = client.lock("broken", on_lost=told.append)
        assert lock.acquire()
        admin.break_lock("broken")
        turns = Turns(client)
        until(lambda: turns.take() and not lock.held)  # it was read
        assert not told
        assert not lock.lost.is_set()
        _notices.deliver()
        assert told == [lock]
        assert lock.lost.is_set()
        _notices.deliver()
        assert told == [lock]


@pytest.mark.usefixtures("by_hand")
def test_a_pulse_is_for_one_session_or_for_all(server: Server) -> None:
    pulsed: list[int] = []

    class Listener:
        def __init__(self, number: int) -> None:
            self.number = number

        def _notice(self, notice: _notices.Notice) -> None:
            raise AssertionError(notice)

        def _pulse(self) -> None:
            pulsed.append(self.number)

    listeners = [Listener(number) for number in (-1, -2)]
    for one in listeners:
        _notices.listen(one.number, one, 1.0)
    try:
        assert not threads()
        _notices.pulse(-2)
        _notices.pulse()
        assert pulsed == [-2, -1, -2]
    finally:
        for one in listeners:
            _notices.forget(one.number)


def test_the_threads_end_and_come_back(server: Server) -> None:
    with dlock.connect(server.address):
        assert threads() == set(THREADS)
        switch(True)
        until(lambda: not threads())
        switch(False)
        assert threads() == set(THREADS)
    with dlock.connect(server.address) as client:
        lock = client.lock("as before")
        assert lock.acquire()
        with Admin(server.address) as admin:
            admin.break_lock("as before")
        assert lock.lost.wait(20)


def switch(wanted: bool) -> None:
    each: tuple[Callable[[bool], None], ...] = (_keeper.by_hand, _notices.by_hand)
    for one in each:
        one(wanted)
