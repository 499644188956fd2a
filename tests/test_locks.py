"""Lock objects over a real server: signatures of threading, owners, futures, loss, pickling."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest
from lock_tools import Service, fresh_name, serving, until
from proxy import Proxy

import dlock
import dlock._core
from dlock.client import Client
from dlock.locks import BaseLock

MAKERS: dict[str, Callable[[Client, str], BaseLock]] = {
    "lock": lambda client, name: client.lock(name),
    "reentrant": lambda client, name: client.lock(name, reentrant=True),
    "fair": lambda client, name: client.fair_lock(name),
    "write": lambda client, name: client.rwlock(name).write(),
    "semaphore of 1": lambda client, name: client.semaphore(name, 1),
}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as one:
        yield one


@pytest.fixture
def client(service: Service) -> Client:
    return service.client()


def in_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


# ---- As threading has it -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.data_plane
def test_acquire_and_release_are_those_of_threading(service: Service, kind: str) -> None:
    name = fresh_name()
    lock, other = (MAKERS[kind](service.client(), name) for _ in range(2))
    assert lock.acquire() is True
    assert lock.locked() is True
    assert lock.held
    assert not other.held
    assert other.acquire(False) is False
    assert other.acquire(blocking=False) is False
    assert other.acquire(True, 0.01) is False
    assert other.acquire(timeout=0.01) is False
    lock.release()
    assert lock.locked() is False
    assert other.acquire(timeout=None) is True
    other.release()
    assert service.holders(name) == service.waiters(name) == 0


@pytest.mark.parametrize("kind", MAKERS)
def test_errors_of_acquire_are_those_of_threading(client: Client, kind: str) -> None:
    lock = MAKERS[kind](client, fresh_name())
    with pytest.raises(ValueError, match="non-blocking"):
        lock.acquire(False, 1)
    with pytest.raises(ValueError, match="non-negative"):
        lock.acquire(True, -2)
    with pytest.raises(OverflowError):
        lock.acquire(True, threading.TIMEOUT_MAX * 2)
    assert not lock.held


@pytest.mark.parametrize("kind", MAKERS)
def test_release_of_what_is_not_held_is_a_runtime_error(client: Client, kind: str) -> None:
    lock = MAKERS[kind](client, fresh_name())
    with pytest.raises(RuntimeError):
        lock.release()
    with lock:
        pass
    with pytest.raises(dlock.NotHeld, match="does not hold"):
        lock.release()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.data_plane
def test_with_gives_the_lock_and_takes_it_back(service: Service, kind: str) -> None:
    name = fresh_name()
    with MAKERS[kind](service.client(), name) as lock:
        assert service.tokens(name) == {lock.token}
    assert not lock.held
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert service.holders(name) == 0


def test_any_thread_may_release(client: Client) -> None:
    lock = client.lock(fresh_name())
    lock.acquire()
    in_thread(lock.release).join()
    assert not lock.held


@pytest.mark.data_plane
def test_a_semaphore_releases_several(service: Service, client: Client) -> None:
    name = fresh_name()
    semaphore = client.semaphore(name, 3)
    for _ in range(3):
        semaphore.acquire()
    assert not semaphore.acquire(blocking=False)
    assert service.holders(name) == 3
    with pytest.raises(ValueError, match="one or more"):
        semaphore.release(0)
    with pytest.raises(dlock.NotHeld):
        semaphore.release(4)
    semaphore.release(2)
    assert service.holders(name) == 1
    semaphore.release()


# ---- Owners --------------------------------------------------------------------------------------


def count_alone(lock: BaseLock, inside: list[int], most: list[int], times: int) -> None:
    for _ in range(times):
        with lock:
            inside.append(1)
            most.append(len(inside))
            inside.pop()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("objects", ["one object", "one each"])
@pytest.mark.data_plane
def test_threads_of_one_client_exclude_each_other(
    client: Client, kind: str, objects: str
) -> None:
    name = fresh_name()
    one = MAKERS[kind](client, name)
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        lock = one if objects == "one object" else MAKERS[kind](client, name)
        count_alone(lock, inside, most, 40)

    threads = [in_thread(work) for _ in range(8)]
    for thread in threads:
        thread.join()
    assert len(most) == 8 * 40
    assert max(most) == 1


@pytest.mark.data_plane
def test_readers_share_one_object(service: Service, client: Client) -> None:
    name = fresh_name()
    read = client.rwlock(name).read()
    gate = threading.Barrier(5)
    tokens: list[int] = []

    def work() -> None:
        with read:
            tokens.append(read.token)  # each thread sees its own hold
            gate.wait(20)
            gate.wait(20)

    threads = [in_thread(work) for _ in range(4)]
    gate.wait(20)
    assert service.tokens(name) == set(tokens)
    assert len(set(tokens)) == 4
    gate.wait(20)
    for thread in threads:
        thread.join()
    assert service.holders(name) == 0


@pytest.mark.data_plane
def test_reentrancy_follows_the_thread(service: Service, client: Client) -> None:
    name = fresh_name()
    lock = client.lock(name, reentrant=True)
    refused: list[object] = []

    def other_thread() -> None:
        refused.append(lock.acquire(blocking=False))
        with pytest.raises(dlock.NotHeld):
            lock.release()

    with lock:
        token = lock.token
        with lock:
            assert lock.token == token
            in_thread(other_thread).join()
        assert service.holders(name) == 1
        assert lock.held
    assert refused == [False]
    assert service.holders(name) == 0


def test_a_failed_try_of_a_fair_lock_leaves_no_ticket(service: Service) -> None:
    name = fresh_name()
    holder, other = service.client().fair_lock(name), service.client().fair_lock(name)
    with holder:
        assert not other.acquire(blocking=False)
        assert not other.acquire(timeout=0.01)
        view = service.view(name)
        assert view is not None
        assert view.waiters == ()


def test_decorated_functions_take_the_lock_at_each_call(service: Service, client: Client) -> None:
    name = fresh_name()

    @client.lock(name)
    def tokens() -> set[int]:
        return service.tokens(name)

    first, second = tokens(), tokens()
    assert len(first) == len(second) == 1
    assert first != second
    assert service.holders(name) == 0

    @client.lock(name, reentrant=True)
    def count_down(left: int) -> int:
        return count_down(left - 1) + 1 if left else 0

    assert count_down(3) == 3


def test_a_coroutine_is_not_decorated(client: Client) -> None:
    async def coroutine() -> None:
        pass

    with pytest.raises(TypeError, match=r"dlock\.aio"):
        client.lock(fresh_name())(coroutine)


# ---- Leases, loss --------------------------------------------------------------------------------


@pytest.mark.data_plane
def test_a_lease_renews_itself(client: Client) -> None:
    lock = client.lock(fresh_name(), lease=6)
    with lock:
        for _ in range(2):
            until(lambda: lock.remaining < 5)
            until(lambda: lock.remaining > 5)
        assert lock.remaining <= 6


@pytest.mark.data_plane
def test_a_lease_that_is_not_renewed_ends(service: Service) -> None:
    name = fresh_name()
    lock = service.client().lock(name, lease=0.1, renew=False)
    lock.acquire()
    token = lock.token
    with service.client().lock(name) as other:  # waits for the end of the lease
        assert other.token > token
        assert not lock.held
        assert lock.remaining == 0.0
        with pytest.raises(dlock.LockLost) as caught:
            lock.ensure_held()
        assert (caught.value.name, caught.value.token) == (name, token)
        with pytest.raises(dlock.LockLost):
            lock.release()
    with pytest.raises(dlock.NotHeld):
        lock.release()


def test_with_raises_lock_lost_at_its_end_unless_something_else_was_raised(
    service: Service,
) -> None:
    name = fresh_name()
    lock = service.client().lock(name, lease=0.05, renew=False)
    other = service.client().lock(name)
    with pytest.raises(dlock.LockLost), lock, other:
        pass
    with pytest.raises(KeyError), lock, other:
        raise KeyError


@pytest.mark.data_plane
def test_extend_makes_a_lease_longer(client: Client) -> None:
    lock = client.lock(fresh_name(), renew=False)
    assert lock.acquire(lease=20)
    assert 10 < lock.remaining <= 20
    assert 50 < lock.extend(60) <= 60
    assert 50 < lock.remaining <= 60
    lock.ensure_held(min_left=40)
    with pytest.raises(dlock.LockLost):
        lock.ensure_held(min_left=70)
    lock.release()
    with pytest.raises(dlock.NotHeld):
        lock.extend(1)


def test_what_has_no_lease_is_not_extended(client: Client) -> None:
    lock = client.lock(fresh_name())
    with lock, pytest.raises(ValueError, match="without a lease"):
        lock.extend(5)
    with pytest.raises(ValueError, match="no leases"):
        client.rwlock(fresh_name()).read().acquire(lease=5)


@pytest.mark.data_plane
def test_a_lease_over_the_servers_limit_is_refused(client: Client) -> None:
    with pytest.raises(dlock.LeaseTooLong):
        client.lock(fresh_name()).acquire(lease=100_000)


@pytest.mark.data_plane
def test_a_broken_lock_is_told(service: Service) -> None:
    name = fresh_name()
    told: list[object] = []
    lock = service.client().lock(name, on_lost=told.append)
    lost = lock.lost
    lock.acquire()
    assert not lost.is_set()
    service.admin.break_lock(name)
    assert lost.wait(20)
    until(lambda: told == [lock])
    assert not lock.held
    with pytest.raises(dlock.LockLost):
        lock.ensure_held()
    with pytest.raises(dlock.Broken):
        lock.release()
    with lock:
        assert not lost.is_set()  # cleared by the next acquisition


def test_lost_can_be_asked_for_afterwards(service: Service) -> None:
    name = fresh_name()
    lock = service.client().lock(name)
    lock.acquire()
    service.admin.break_lock(name)
    until(lambda: not lock.held)
    assert lock.lost.is_set()


def test_a_release_without_a_link_is_made_later(service: Service) -> None:
    name = fresh_name()
    proxy = Proxy(service.server)
    with dlock.connect(proxy.address) as client:
        session = client._session
        lock = client.lock(name)
        lock.acquire()
        proxy.cut()
        lock.release()  # its session was good: the unlock is owed
        until(lambda: service.holders(name) == 0)
        assert client._session is session  # not its end has freed it
        with lock:
            pass
    proxy.close()


@pytest.mark.data_plane
def test_an_acquire_goes_on_over_a_lost_link(service: Service) -> None:
    name = fresh_name()
    client = service.client()
    lock = client.lock(name)
    with service.client().lock(name):
        thread = in_thread(lock.acquire)
        until(lambda: service.waiters(name) == 1)
        dlock._core.lib.dlk_client_detach(client._session.client)
        until(lambda: service.waiters(name) == 1)
    thread.join()
    assert lock.held
    lock.release()


# ---- Life ----------------------------------------------------------------------------------------


def test_a_held_lock_that_is_dropped_warns_and_is_released(service: Service) -> None:
    name = fresh_name()
    client = service.client()
    held = [client.lock(name)]
    held[0].acquire()
    with pytest.warns(ResourceWarning, match="was dropped while it was held"):
        held.clear()
    until(lambda: service.holders(name) == 0)


def test_a_released_lock_is_dropped_without_a_word(client: Client) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with client.lock(fresh_name()):
            pass
        gc.collect()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_lock_is_pickled_by_name(service: Service, client: Client, kind: str) -> None:
    lock = MAKERS[kind](client, fresh_name())
    again = pickle.loads(pickle.dumps(lock))
    assert type(again) is type(lock)
    with lock:
        assert not again.acquire(blocking=False)
        with pytest.raises(TypeError, match="while held"):
            pickle.dumps(lock)
    with again:
        assert again._client is dlock.shared(service.address)


EXIT = """
import sys, dlock
lock = dlock.connect(sys.argv[1]).lock(sys.argv[2])
lock.acquire()
print("held", flush=True)
"""


def test_an_interpreter_that_ends_gives_its_locks_back(service: Service) -> None:
    name = fresh_name()
    done = subprocess.run(
        [sys.executable, "-c", EXIT, service.address, name],
        capture_output=True, text=True, timeout=60, check=True,
    )
    assert done.stdout == "held\n"
    assert service.holders(name) == 0


@pytest.mark.data_plane
def test_a_forked_child_may_not_use_its_parents_lock(service: Service, client: Client) -> None:
    name = fresh_name()
    lock = client.lock(name)
    with lock:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                lock.release()
            except dlock.ForkedError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert lock.held
        assert service.tokens(name) == {lock.token}
    assert service.holders(name) == 0


def test_holder_tells_who_has_it(client: Client) -> None:
    lock = client.lock(fresh_name())
    assert lock.holder() is None
    with lock:
        holder = lock.holder()
        assert holder is not None
        assert holder.token == lock.token
@pytest.mark.data_plane
def test_deadlock_is_refused_and_named(service: Service) -> None:
    one, two = service.client(), service.client()
    a, b = fresh_name(), fresh_name()
    with one.lock(a):
        taken = threading.Event()

        def other() -> None:
            with two.lock(b):
                taken.set()
                with two.lock(a):
                    pass

        thread = in_thread(other)
        taken.wait(20)
        until(lambda: service.waiters(a) == 1)
        with pytest.raises(dlock.Deadlock) as caught:
            one.lock(b).acquire(timeout=20)
        assert repr(a) in str(caught.value)
        assert repr(b) in str(caught.value)
        assert service.waiters(b) == 0
    thread.join()


def test_a_deadlock_with_itself_is_refused(client: Client) -> None:
    lock = client.lock(fresh_name())
    with lock, pytest.raises(dlock.Deadlock):
        lock.acquire(timeout=20)
