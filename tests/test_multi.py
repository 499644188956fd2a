"""Multi: all of its locks or none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from lock_tools import Service, fresh_name, serving, until

import dlock
from dlock.client import Client


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as one:
        yield one


@pytest.fixture
def client(service: Service) -> Client:
    return service.client()


@pytest.mark.data_plane
def test_all_are_held_and_all_are_given_back(service: Service, client: Client) -> None:
    names = [fresh_name() for _ in range(40)]
    multi = client.multi([client.lock(name) for name in names])
    with multi:
        assert multi.held
        assert multi.remaining > 0
        multi.ensure_held()
        for one in multi.locks:
            assert service.tokens(one.name) == {one.token}
    assert not multi.held
    assert not any(service.holders(name) for name in names)


def test_they_are_ordered_by_kind_and_name(client: Client) -> None:
    locks = [
        client.semaphore("a", 2),
        client.fair_lock("b"),
        client.rwlock("c").write(),
        client.lock("z"),
        client.lock("d"),
    ]
    ordered = [one.name for one in client.multi(locks).locks]
    assert ordered == ["d", "z", "c", "b", "a"]


def test_duplicates_strangers_and_reentrant_ones_are_refused(
    service: Service, client: Client
) -> None:
    name = fresh_name()
    with pytest.raises(ValueError, match="twice"):
        client.multi([client.lock(name), client.lock(name)])
    with pytest.raises(ValueError, match="another client"):
        client.multi([service.client().lock(name)])
    with pytest.raises(ValueError, match="re-entrant"):
        client.multi([client.lock(name, reentrant=True)])
    with pytest.raises(ValueError, match="1"):
        client.multi([])


@pytest.mark.parametrize("busy", [0, 1, 2])
def test_none_is_held_when_one_is_taken(service: Service, client: Client, busy: int) -> None:
    names = sorted(fresh_name() for _ in range(3))
    multi = client.multi([client.lock(name) for name in names])
    with service.client().lock(names[busy]):
        assert multi.acquire(blocking=False) is False
        started = time.monotonic()
        assert multi.acquire(timeout=0.05) is False
        assert time.monotonic() - started >= 0.05
        assert [service.holders(name) for name in names].count(1) == 1
        assert not any(service.waiters(name) for name in names)
    assert multi.acquire(timeout=20)
    multi.release()


def test_while_it_waits_it_holds_only_what_comes_before(service: Service, client: Client) -> None:
    first, second, third = names = sorted(fresh_name() for _ in range(3))
    multi = client.multi([client.lock(name) for name in names])
    with service.client().lock(second):
        thread = threading.Thread(target=multi.acquire)
        thread.start()
        until(lambda: service.waiters(second) == 1)
        assert service.holders(first) == 1
        assert service.holders(third) == 0
    thread.join()
    assert multi.held
    multi.release()


def test_leases_run_from_the_moment_when_all_are_held(service: Service, client: Client) -> None:
    first, second = sorted(fresh_name() for _ in range(2))
    locks = [client.lock(name, lease=60, renew=False) for name in (first, second)]
    multi = client.multi(locks)
    other = service.client().lock(second)
    other.acquire()
    timer = threading.Timer(0.6, other.release)
    timer.start()
    with multi:
        # The first was taken 0.6 s before the second: that much more of it would have gone.
        assert locks[0].remaining > locks[1].remaining - 0.3
    timer.join()


def test_release_of_what_is_not_held_changes_nothing(service: Service, client: Client) -> None:
    locks = [client.lock(fresh_name()), client.lock(fresh_name())]
    multi = client.multi(locks)
    with pytest.raises(dlock.NotHeld):
        multi.release()
    with locks[0]:
        with pytest.raises(dlock.NotHeld):
            multi.release()
        assert locks[0].held


def test_a_loss_is_told_and_the_rest_is_given_back(service: Service, client: Client) -> None:
    names = [fresh_name() for _ in range(3)]
    multi = client.multi([client.lock(name) for name in names])
    multi.acquire()
    service.admin.break_lock(names[1])
    until(lambda: not multi.held)
    with pytest.raises(dlock.LockLost):
        multi.release()
    assert not any(service.holders(name) for name in names)


@pytest.mark.data_plane
def test_crossing_multis_never_wait_for_each_other(service: Service) -> None:
    names = [fresh_name() for _ in range(4)]
    turns: list[int] = []

    def work(number: int) -> None:
        client = service.client()
        order = names if number % 2 else names[::-1]
        multi = client.multi([client.lock(name) for name in order])
        for _ in range(25):
            assert multi.acquire(timeout=60)
            turns.append(number)
            multi.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(turns) == 100


def test_as_a_decorator_each_call_takes_all(service: Service, client: Client) -> None:
    names = [fresh_name(), fresh_name()]

    @client.multi([client.lock(name) for name in names])
    def count() -> int:
        return sum(service.holders(name) for name in names)

    assert count() == 2
    assert count() == 2
    assert sum(service.holders(name) for name in names) == 0
