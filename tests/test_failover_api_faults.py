"""Failovers that do not go smoothly, seen through the Python API: clients that stay away, claims
that are refused, a primary that dies while it recovers, another address, another epoch."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from failover_tools import Primary, back_at, epoch_of, until
from far_process import FarProcess, Raised
from mirror_tools import free_port

import dlock
from dlock import errors

LONG_S = 30.0  # nobody is evicted for being slow
SHORT_S = 1.0
Background = Callable[..., Future[Any]]
Start = Callable[..., Primary]
Connect = Callable[..., dlock.Client]
Far = Callable[..., FarProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts primaries in the test's folder."""
    started: list[Primary] = []

    def one(**settings: Any) -> Primary:
        started.append(Primary(tmp_path, **settings))
        return started[-1]

    yield one
    for primary in started:
        primary.kill()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Clients that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def one(address: str, **options: Any) -> dlock.Client:
            return stack.enter_context(dlock.connect(address, timeout=60, **options))

        yield one


@pytest.fixture
def far() -> Iterator[Far]:
    """Clients in processes of their own."""
    started: list[FarProcess] = []

    def one(primary: Primary) -> FarProcess:
        started.append(FarProcess(primary.address))
        return started[-1]

    yield one
    for process in started:
        process.close()


def half_way(primary: Primary, waited_for: int = 1) -> None:
    """Waits until the primary awaits nobody but so many."""
    with primary.admin() as admin:
        until(lambda: (shown := admin.recovery()).absent_total == waited_for
              and shown.back == shown.expected - waited_for)


def evict(primary: Primary) -> None:
    """Nobody who is absent is awaited any more."""
    with primary.admin() as admin:
        admin.evict(None)


# ---- Who stays away ------------------------------------------------------------------------------


def test_who_stays_away_is_evicted_and_told(start: Start, connect: Connect, far: Far) -> None:
    primary = start(ttl_s=SHORT_S)
    client, away = connect(primary.address), far(primary)
    away.let("told", "[]")
    away.let("lock", "client.lock('a', on_lost=told.append)")
    away.let("leased", "client.lock('b', lease=2, on_lost=told.append)")
    assert away.ask("lock.acquire() and leased.acquire()")
    tokens = {name: away.ask(f"{name}.token") for name in ("lock", "leased")}
    away.signal(signal.SIGSTOP)
    primary.restart()
    for name, lock in (("lock", client.lock("a")), ("leased", client.lock("b"))):
        assert lock.acquire(timeout=60)
        assert lock.token > tokens[name]
    away.signal(signal.SIGCONT)
    assert away.ask("lock.held or leased.held") is False
    until(lambda: away.ask("len(told)") == 2)
    assert away.ask("lock.lost.is_set() and leased.lost.is_set()") is True
    for name in ("lock", "leased"):
        with pytest.raises(Raised) as caught:
            away.ask(f"{name}.release()")
        assert caught.value.kind == "LockLost"
    client.close()
    assert away.ask("lock.acquire(timeout=60)") is True


def test_a_lease_that_ended_in_the_outage_is_lost_and_said_to_be(
    start: Start, connect: Connect
) -> None:
    primary = start(ttl_s=LONG_S)
    client = connect(primary.address)
    lost = threading.Event()
    lock = client.lock("a", renew=False, on_lost=lambda _lock: lost.set())
    kept = client.lock("b")
    lock.acquire(lease=0.5)
    kept.acquire()
    primary.kill()
    until(lambda: lock.remaining == 0)
    assert not lost.is_set()  # it could come back
    primary.start()
    assert lost.wait(60)
    assert not lock.held
    with pytest.raises(errors.LockLost):
        lock.release()
    back_at(client, 2)
    assert kept.held
    assert lock.acquire(timeout=30)


def test_a_session_that_lapsed_in_the_outage_is_confirmed(
    start: Start, connect: Connect, far: Far
) -> None:
    """Nobody else can have had what it held: the roster still has it. That nobody has it who is
    absent is certain when the recovery is over."""
    primary = start(ttl_s=5.0)  # for so long and more it is waited for, also on a slow machine
    client, third = connect(primary.address), far(primary)
    told: list[str] = []
    lock = client.lock("a", on_suspended=lambda _lock: told.append("suspended"),
                       on_lost=lambda _lock: told.append("lost"))
    reader = client.rwlock("b").read()
    lock.acquire()
    reader.acquire()
    tokens = lock.token, reader.token
    third.signal(signal.SIGSTOP)
    primary.kill()
    until(lambda: told)
    assert told == ["suspended"]
    assert not lock.held
    with pytest.raises(errors.LockLost):
        lock.ensure_held()
    primary.start()
    until(lambda: lock.held and reader.held)
    assert (lock.token, reader.token) == tokens
    assert "lost" not in told
    lock.release()
    reader.release()


# ---- A recovery that takes its time --------------------------------------------------------------


def test_a_live_hold_is_served_while_others_are_awaited(
    start: Start, connect: Connect, far: Far, background: Background
) -> None:
    primary = start(ttl_s=LONG_S)
    client, other, third = connect(primary.address), connect(primary.address), far(primary)
    third.let("lock", "client.lock('of the third')")
    assert third.ask("lock.acquire()")
    plain, leased, reader = client.lock("a"), client.lock("b"), client.rwlock("c").read()
    assert plain.acquire()
    assert leased.acquire(lease=100)
    assert reader.acquire()
    waiting, new = other.lock("a"), other.lock("b")
    wait = background(waiting.acquire)
    assert not new.acquire(blocking=False)  # its name is known
    with primary.admin() as admin:
        until(lambda: admin.show("a").waiters)
    third.signal(signal.SIGSTOP)
    primary.restart()
    half_way(primary)
    until(lambda: plain.held and leased.held)
    assert leased.extend(100) > 10
    plain.release()
    assert wait.result(60) is True  # it was handed on
    asks = background(new.acquire)
    leased.release()
    assert asks.result(60) is True
    writes = background(other.rwlock("c").write().acquire)  # readers may be among the absent
    half_way(primary)
    assert not writes.done()
    third.signal(signal.SIGCONT)
    until(lambda: third.ask("lock.held"))
    back_at(client, 2)
    reader.release()
    assert writes.result(60) is True


def test_a_live_hold_stands_on_its_new_session_at_once(
    start: Start, connect: Connect, far: Far
) -> None:
    primary = start(ttl_s=10.0)
    client, third = connect(primary.address), far(primary)
    third.let("lock", "client.lock('of the third')")
    assert third.ask("lock.acquire(lease=1000)")  # so long it is waited for
    lost = threading.Event()
    lock = client.lock("a", on_lost=lambda _lock: lost.set())
    lock.acquire()
    third.signal(signal.SIGSTOP)
    primary.restart()
    over = time.monotonic() + 10.0
    half_way(primary)
    until(lambda: time.monotonic() > over)
    until(lambda: lock.held)
    half_way(primary)
    assert not lost.is_set()


def test_who_connects_meanwhile_waits_until_it_is_over(
    start: Start, connect: Connect, far: Far, background: Background
) -> None:
    primary = start(ttl_s=LONG_S)
    third = far(primary)
    third.signal(signal.SIGSTOP)
    primary.restart()
    half_way(primary)
    with pytest.raises(errors.ConnectError) as raised:
        dlock.connect(primary.address, timeout=3)
    assert "started anew" in str(raised.value)
    connecting = background(connect, primary.address)
    half_way(primary)
    assert not connecting.done()
    evict(primary)
    assert connecting.result(60).lock("a").acquire(timeout=30)


def test_what_the_server_is_not_ready_for_is_not_hammered_at(
    start: Start, connect: Connect, far: Far, background: Background
) -> None:
    primary = start(ttl_s=LONG_S)
    client, third = connect(primary.address), far(primary)
    with client.lock("a"):
        pass
    third.signal(signal.SIGSTOP)
    primary.restart()
    half_way(primary)
    with pytest.raises(errors.ConnectionLost) as raised:
        client.lock("a").acquire(timeout=2)
    assert "recovers" in str(raised.value)
    with primary.admin() as admin:
        before, began = admin.stats()["NOT_READY"], time.monotonic()
        wait = background(client.lock("a").acquire)
        time.sleep(2)
        asked, took_s = admin.stats()["NOT_READY"] - before, time.monotonic() - began
    assert not wait.done()
    assert asked <= 2 + took_s / 0.2
    evict(primary)
    assert wait.result(60) is True


def test_a_second_kill_in_the_middle(
    start: Start, connect: Connect, far: Far, background: Background
) -> None:
    primary = start(ttl_s=LONG_S)
    client, other, third = connect(primary.address), connect(primary.address), far(primary)
    third.let("lock", "client.lock('of the third')")
    assert third.ask("lock.acquire()")
    lock, reader = client.lock("a"), client.rwlock("b").read()
    assert lock.acquire()
    assert reader.acquire()
    tokens = lock.token, reader.token
    wait = background(other.lock("a").acquire)
    with primary.admin() as admin:
        until(lambda: admin.show("a").waiters)
    third.signal(signal.SIGSTOP)
    for _ in range(3):
        primary.restart()
        half_way(primary)
    third.signal(signal.SIGCONT)
    for one in (client, other):
        back_at(one, 4)
    until(lambda: lock.held and reader.held and third.ask("lock.held"))
    assert (lock.token, reader.token) == tokens
    assert not wait.done()
    lock.release()
    assert wait.result(60) is True


def test_kills_at_any_moment(start: Start, connect: Connect) -> None:
    primary = start(ttl_s=LONG_S)
    clients = [connect(primary.address) for _ in range(3)]
    locks = [one.lock(f"of {number}") for number, one in enumerate(clients)]
    for lock in locks:
        lock.acquire()
    tokens = [lock.token for lock in locks]
    for number in range(8):
        primary.restart()
        until(lambda: primary.serving)
        time.sleep(0.03 * number)
    for one in clients:
        back_at(one, 2)
    until(lambda: all(lock.held for lock in locks))
    assert [lock.token for lock in locks] == tokens


# ---- Where it is, and which ----------------------------------------------------------------------


def test_the_address_file_says_where_the_new_one_is(start: Start, connect: Connect) -> None:
    primary = start(ttl_s=LONG_S)  # on any port
    client = connect(primary.address)
    lock = client.lock("a")
    lock.acquire()
    place = primary.place
    primary.restart()
    back_at(client, 2)
    assert primary.place != place
    until(lambda: lock.held)
    assert str(client._session.endpoint) == primary.place


def test_one_of_several_addresses_has_the_new_one(start: Start, connect: Connect) -> None:
    places = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    primary = start(ttl_s=LONG_S, listen=places[0])
    client = connect(",".join(places))
    lock = client.lock("a")
    lock.acquire()
    primary.listen = places[1]
    primary.restart()
    back_at(client, 2)
    until(lambda: lock.held)


def test_without_a_state_directory_a_higher_epoch_is_taken(start: Start, connect: Connect) -> None:
    primary = start(ttl_s=SHORT_S, state_dir="none")
    client = connect(primary.address)
    lock = client.lock("a")
    lock.acquire()
    epoch, token = epoch_of(client), lock.token
    primary.restart()
    until(lambda: epoch_of(client) > epoch)
    back_at(client, epoch + 1)
    if lock.held:
        assert lock.token == token
        lock.release()
    again = client.lock("a")
    assert again.acquire(timeout=60)
    assert again.token > token
