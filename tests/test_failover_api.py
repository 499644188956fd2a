"""The Python API through a failover: the primary is killed and started again, and what was held and
waited for goes on. Every primary is a process of its own, killed with SIGKILL.

Nothing here depends on how fast the machine is: sessions last so long that nobody is evicted for
being slow, where that is not what is tested.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from failover_tools import Primary, back_at, epoch_of, until

import dlock
from dlock import errors
from dlock._drive import REPLY_S
from dlock.locks import BaseLock

TTL_S = 30.0
Background = Callable[..., Future[Any]]
Connect = Callable[..., dlock.Client]


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    started = Primary(tmp_path, ttl_s=TTL_S)
    yield started
    started.kill()


@pytest.fixture
def connect(primary: Primary) -> Iterator[Connect]:
    """Clients that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def one(**options: Any) -> dlock.Client:
            return stack.enter_context(dlock.connect(primary.address, timeout=30, **options))

        yield one


def fail_over(primary: Primary, *clients: dlock.Client) -> None:
    """Kills the primary and starts another; returns when these clients are back at it."""
    epoch = epoch_of(clients[0])
    primary.restart()
    for client in clients:
        back_at(client, epoch + 1)


def taken(client: dlock.Client, lock: BaseLock) -> bool:
    """Is it refused to another client?"""
    other = type(lock)(client, lock._key)
    if not other.acquire(blocking=False):
        return True
    other.release()
    return False


class Rival:
    """Asks for a lock again and again, from before the failover on. `got`: when it had it, it gave
    it back at once."""

    def __init__(self, client: dlock.Client, name: str, background: Background) -> None:
        self.got = threading.Event()
        self._ended = threading.Event()
        self._lock = client.lock(name)
        self._work = background(self._ask)

    def _ask(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(errors.ConnectionLost):
                if self._lock.acquire(timeout=0.05):
                    self.got.set()
                    self._lock.release()

    def end(self) -> None:
        self._ended.set()
        self._work.result(60)


# ---- What is held --------------------------------------------------------------------------------


def all_kinds(client: dlock.Client) -> dict[str, BaseLock]:
    """A hold of every kind."""
    held: dict[str, BaseLock] = {
        "lock": client.lock("lock"),
        "leased": client.lock("leased", lease=60),
        "reentrant": client.lock("reentrant", reentrant=True),
        "fair": client.fair_lock("fair"),
        "fair, leased": client.fair_lock("fair, leased", lease=60),
        "fair, shared": client.fair_lock("fair, shared", shared=True),
        "reader": client.rwlock("reader").read(),
        "writer": client.rwlock("writer").write(),
        "slot": client.semaphore("slot", 2),
        "slot, leased": client.semaphore("slot, leased", 1, lease=60),
    }
    for lock in held.values():
        assert lock.acquire(timeout=20)
    return held


@pytest.mark.data_plane
def test_every_kind_of_hold_comes_back_with_its_token(primary: Primary, connect: Connect) -> None:
    client = connect()
    held = all_kinds(client)
    tokens = {name: lock.token for name, lock in held.items()}
    fail_over(primary, client)
    until(lambda: all(lock.held for lock in held.values()))
    assert {name: lock.token for name, lock in held.items()} == tokens
    other = connect()
    for name in ("lock", "leased", "reentrant", "fair", "fair, leased", "writer", "slot, leased"):
        assert taken(other, held[name]), name
    for name in ("fair, shared", "reader", "slot"):
        assert not taken(other, held[name]), name
    for lock in held.values():
        lock.release()
    for name, lock in held.items():
        again = type(lock)(other, lock._key)
        assert again.acquire(timeout=20), name
        assert again.token > tokens[name], name
        again.release()


def test_nobody_else_gets_it_in_between(
    primary: Primary, connect: Connect, background: Background
) -> None:
    client, other = connect(), connect()
    lock = client.lock("a")
    lock.acquire()
    rival = Rival(other, "a", background)
    try:
        for _ in range(2):
            fail_over(primary, client, other)
            until(lambda: lock.held)
        assert not rival.got.is_set()
        lock.release()
        assert rival.got.wait(30)
    finally:
        rival.end()


def test_readers_and_slots_keep_others_out(primary: Primary, connect: Connect) -> None:
    """DLock forgets the readers."""
    client, other = connect(), connect()
    readers = [one.rwlock("book").read() for one in (client, other)]
    slots = [one.semaphore("slots", 2) for one in (client, other)]
    for lock in (*readers, *slots):
        lock.acquire()
    fail_over(primary, client, other)
    until(lambda: all(lock.held for lock in (*readers, *slots)))
    third = connect()
    assert not third.rwlock("book").write().acquire(timeout=0.2)
    assert not third.semaphore("slots", 2).acquire(timeout=0.2)
    readers[0].release()
    slots[0].release()
    assert not third.rwlock("book").write().acquire(timeout=0.2)
    assert third.semaphore("slots", 2).acquire(timeout=20)
    readers[1].release()
    assert third.rwlock("book").write().acquire(timeout=20)


def test_a_lease_goes_on_renewing_itself(tmp_path: Path) -> None:
    primary = Primary(tmp_path, ttl_s=10.0)  # after a failover leases last for that at least
    try:
        with dlock.connect(primary.address, timeout=30) as client:
            lock = client.lock("a", lease=12.0)  # longer than an outage on a slow machine
            lock.acquire()
            token = lock.token
            fail_over(primary, client)
            until(lambda: lock.held)
            ends = time.monotonic() + lock.remaining
            until(lambda: time.monotonic() + lock.remaining > ends + 1)
            assert lock.token == token
            lock.release()
    finally:
        primary.kill()


def test_a_thread_that_holds_it_enters_it_again(primary: Primary, connect: Connect) -> None:
    client, other = connect(), connect()
    lock = client.lock("a", reentrant=True)
    lock.acquire()
    lock.acquire()
    fail_over(primary, client, other)
    assert lock.acquire(blocking=False)
    for _ in range(2):
        lock.release()
        assert taken(other, client.lock("a"))
    lock.release()
    assert not taken(other, client.lock("a"))


def test_several_at_once(primary: Primary, connect: Connect) -> None:
    client, other = connect(), connect()
    several = client.multi([client.lock("a"), client.rwlock("b").read(), client.fair_lock("c")])
    several.acquire()
    fail_over(primary, client, other)
    assert taken(other, client.lock("a"))
    assert taken(other, client.rwlock("b").write())
    assert taken(other, client.fair_lock("c"))
    several.release()
    with other.multi([other.lock("a"), other.rwlock("b").write(), other.fair_lock("c")]):
        pass


def test_names_without_a_hold_are_known_on(primary: Primary, connect: Connect) -> None:
    client = connect()
    locks = [client.lock(f"name {number}") for number in range(100)]
    for lock in locks:
        with lock:
            pass
    ids = {name.key: name.lock_id for name in client._names.known().values()}
    fail_over(primary, client)
    assert {name.key: name.lock_id for name in client._names.known().values()} == ids
    with primary.admin() as admin:
        asked = admin.stats()["REQUESTS"]
        for lock in locks:
            with lock:
                pass
        assert admin.stats()["REQUESTS"] - asked >= 200
    assert {name.key: name.lock_id for name in client._names.known().values()} == ids


# ---- What is waited for --------------------------------------------------------------------------


def test_waiters_keep_their_order(
    primary: Primary, connect: Connect, background: Background
) -> None:
    client, others = connect(), [connect() for _ in range(3)]
    lock = client.lock("a")
    lock.acquire()
    order: list[int] = []

    def wait(number: int) -> None:
        mine = others[number % 3].lock("a")
        assert mine.acquire(timeout=120)
        order.append(number)
        mine.release()

    waits = []
    with primary.admin() as admin:
        for number in range(9):
            waits.append(background(wait, number))
            until(lambda wanted=number + 1: len(admin.show("a").waiters) == wanted)
    fail_over(primary, client, *others)
    fail_over(primary, client, *others)
    with primary.admin() as admin:
        assert len(admin.show("a").waiters) == 9
    assert order == []
    lock.release()
    for one in waits:
        one.result(60)
    assert order == list(range(9))


@pytest.mark.parametrize("kind", ["rwlock", "fair", "semaphore"])
@pytest.mark.data_plane
def test_waiters_of_every_kind_are_granted(
    primary: Primary, connect: Connect, background: Background, kind: str
) -> None:
    def of(one: dlock.Client) -> BaseLock:
        return {
            "rwlock": lambda: one.rwlock("a").write(),
            "fair": lambda: one.fair_lock("a", lease=60),
            "semaphore": lambda: one.semaphore("a", 1),
        }[kind]()

    client, other = connect(), connect()
    lock, waiting = of(client), of(other)
    lock.acquire()
    wait = background(waiting.acquire, timeout=120)
    with primary.admin() as admin:
        until(lambda: admin.show("a").waiters)
    fail_over(primary, client, other)
    assert not wait.done()
    lock.release()
    assert wait.result(60) is True
    assert waiting.held
    waiting.release()


def test_futures_are_granted(primary: Primary, connect: Connect) -> None:
    client, other = connect(), connect()
    lock = client.lock("a")
    lock.acquire()
    locks = [other.lock("a") for _ in range(3)]
    futures = [one.acquire_future() for one in locks]
    with primary.admin() as admin:
        until(lambda: len(admin.show("a").waiters) == 3)
    fail_over(primary, client, other)
    assert not any(one.done() for one in futures)
    assert futures[1].cancel()
    lock.release()
    for number in (0, 2):
        assert futures[number].result(60) is True
        locks[number].release()
    assert client.lock("a").acquire(timeout=20)


def test_a_wait_that_was_asked_for_in_the_outage_is_granted(
    primary: Primary, connect: Connect, background: Background
) -> None:
    client, other = connect(), connect()
    with other.lock("a"):
        pass  # its name is known
    lock = client.lock("a")
    lock.acquire()
    epoch = epoch_of(client)
    primary.kill()
    until(lambda: other._recovering is not None)
    wait = background(other.lock("a").acquire)
    new = background(other.lock("a name that nobody knows").acquire)
    primary.start()
    for one in (client, other):
        back_at(one, epoch + 1)
    assert new.result(60) is True
    assert not wait.done()
    lock.release()
    assert wait.result(60) is True


def test_a_wait_that_is_over_in_the_outage_leaves_nothing_behind(
    primary: Primary, connect: Connect, background: Background
) -> None:
    client, other = connect(), connect()
    lock = client.lock("a")
    lock.acquire()
    wait = background(other.lock("a").acquire, timeout=5.0)
    with primary.admin() as admin:
        until(lambda: admin.show("a").waiters)
    epoch = epoch_of(client)
    primary.kill()
    with pytest.raises(errors.ConnectionLost):
        wait.result(60)
    primary.start()
    for one in (client, other):
        back_at(one, epoch + 1)
    with primary.admin() as admin:
        until(lambda: not admin.show("a").waiters)
    lock.release()
    assert client.lock("a").acquire(timeout=20)


# ---- What is done in the outage ------------------------------------------------------------------


@pytest.mark.data_plane
def test_a_release_in_the_outage_is_made_up_for(
    primary: Primary, connect: Connect, background: Background
) -> None:
    client, other = connect(), connect()
    locks = [client.lock("a"), client.rwlock("b").read(), client.semaphore("c", 1)]
    for lock in locks:
        lock.acquire()
    waits = [background(type(lock)(other, lock._key).acquire) for lock in locks[::2]]
    with primary.admin() as admin:
        until(lambda: admin.show("a").waiters and admin.show("c").waiters)
    primary.kill()
    until(lambda: not client._whole())
    for lock in locks:
        lock.release()
        assert not lock.held
    primary.start()
    assert [wait.result(60) for wait in waits] == [True, True]
    assert other.rwlock("b").write().acquire(timeout=30)


def test_an_acquisition_has_its_own_time(primary: Primary, connect: Connect) -> None:
    client = connect()
    lock = client.lock("a")
    with lock:
        pass
    primary.kill()
    until(lambda: not client._whole())
    for timeout in (0, 0.3):
        with pytest.raises(errors.ConnectionLost) as raised:
            lock.acquire(timeout=timeout)
        assert primary.address in str(raised.value)
        assert "no server answers" in str(raised.value)
    primary.start()
    assert lock.acquire(timeout=60)


def test_one_that_only_tries_gives_the_link_time_to_come_back(
    primary: Primary, connect: Connect, background: Background
) -> None:
    client = connect()
    lock = client.lock("a")
    with lock:
        pass
    epoch = epoch_of(client)
    primary.kill()
    until(lambda: not client._whole())
    began = time.monotonic()
    trying = background(lock.acquire, blocking=False)
    primary.start()
    try:
        assert trying.result(60) is True
    except errors.ConnectionLost:
        # A slow machine took longer to start a server than an answer may take.
        assert time.monotonic() - began >= REPLY_S
        back_at(client, epoch + 1)
        assert lock.acquire(blocking=False)


def test_closing_in_the_outage(primary: Primary, connect: Connect) -> None:
    client = connect()
    lock = client.lock("a")
    lock.acquire()
    primary.kill()
    until(lambda: not client._whole())
    client.close()
    assert not lock.held
    with pytest.raises(errors.ClientClosed):
        lock.acquire()
    primary.start()
    with primary.admin() as admin:
        until(lambda: admin.recovery().absent_total == 1)
        admin.evict(None)
    assert connect().lock("a").acquire(timeout=30)


def test_a_client_that_leaves_without_a_link_is_not_waited_for(
    primary: Primary, connect: Connect
) -> None:
    client, other = connect(), connect()
    assert client.lock("a").acquire()
    client._recovering = threading.current_thread()  # nobody brings it back
    primary.restart()
    with primary.admin() as admin:
        until(lambda: admin.recovery().absent_total == 1)
        client.close()
        until(lambda: admin.recovery().ready)
    assert other.lock("a").acquire(timeout=30)
