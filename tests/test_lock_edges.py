"""Lock objects where two rules meet: threads that hand locks over, signal handlers and the locks of
the library, a session that ends in the midst, use after the end."""

from __future__ import annotations

import asyncio
import gc
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from aio_tools import run
from aio_tools import until as aio_until
from lock_tools import Service, fresh_name, serving, until
from mirror_tools import free_port
from proxy import Proxy

import dlock
from dlock import aio
from dlock._attempt import me
from dlock.client import Client
from dlock.errors import Broken, ClientClosed, Deadlock, DlockError, LockLost, NotHeld
from dlock.server import Server, ServerConfig

Background = Callable[..., Future[Any]]


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as one:
        yield one


@pytest.fixture
def client(service: Service) -> Client:
    return service.client()


# ---- Hand-overs ----------------------------------------------------------------------------------


def test_a_lock_used_as_a_signal_closes_no_cycle(
    service: Service, client: Client, background: Background
) -> None:
    """It is released by whoever, so that its taker is not who stands in the way."""
    name = fresh_name()
    signalled, other = client.lock(name, deadlock=False), client.lock(fresh_name())
    signalled.acquire()

    def waits_for_the_signal() -> None:
        with other, signalled:
            pass

    waiting = background(waits_for_the_signal)
    until(lambda: service.waiters(name) == 1)
    background(lambda: (time.sleep(0.2), signalled.release()))
    with other:  # this thread took the signal, and now waits for who waits for it
        pass
    waiting.result(20)


def test_the_same_in_asyncio(service: Service) -> None:
    name, second = fresh_name(), fresh_name()

    async def program() -> None:
        async with aio.connect(service.address) as client:
            signalled, other = client.lock(name, deadlock=False), client.lock(second)
            await signalled.acquire()

            async def waits_for_the_signal() -> None:
                async with other, signalled:
                    pass

            waiting = asyncio.ensure_future(waits_for_the_signal())
            await aio_until(lambda: service.waiters(name) == 1)
            asyncio.get_running_loop().call_later(0.2, lambda: asyncio.ensure_future(
                signalled.release()))
            async with other:
                pass
            await waiting

    run(program())


def test_a_refusal_says_how_to_signal(client: Client) -> None:
    lock = client.lock(fresh_name())
    with lock, pytest.raises(Deadlock, match="deadlock=False"):
        lock.acquire(timeout=5)


def test_a_lock_apart_is_still_the_threads_own(client: Client, background: Background) -> None:
    lock = client.lock(fresh_name(), reentrant=True, deadlock=False)
    with lock, lock, pytest.raises(NotHeld):
        background(lock.release).result(20)
    slots = client.semaphore(fresh_name(), 2, deadlock=False)
    slots.acquire()
    mine = slots.token
    background(slots.acquire).result(20)
    assert slots.token == mine
    slots.release()
    assert mine not in slots.tokens
    slots.release()


def test_who_releases_for_another_thread_leaves_no_trace_there(
    client: Client, background: Background
) -> None:
    before = set(me.actor.holds)
    for _ in range(3):
        lock = client.lock(fresh_name())
        lock.acquire()
        assert me.actor.holds != before
        background(lock.release).result(20)
    assert me.actor.holds == before


def test_holds_at_two_servers_are_told_apart(service: Service, client: Client) -> None:
    """Else a release at one of them would hide that the thread holds something at the other."""
    before = len(me.actor.holds)
    first, second = client.lock(fresh_name()), service.client().lock(fresh_name())
    with first:
        with second:
            assert len(me.actor.holds) == before + 2
        assert len(me.actor.holds) == before + 1


def test_upgrade_and_downgrade_are_named(client: Client) -> None:
    lock = client.rwlock(fresh_name())
    with lock.read(), pytest.raises(Deadlock, match="which you yourself hold"):
        lock.write().acquire(timeout=5)
    with lock.write(), pytest.raises(Deadlock, match="which you yourself hold"):
        lock.read().acquire(timeout=5)


# ---- extend against release ----------------------------------------------------------------------


def test_an_extension_that_comes_late_extends_nobody_elses_hold(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of a hold is used again by the next one, so the token says which is meant."""
    from dlock import _attempt

    name = fresh_name()
    lock, next_lock = client.lock(name, lease=60, renew=False), client.lock(name)
    lock.acquire()
    extend = _attempt.extend

    def overtaken(*arguments: Any) -> int:
        lock.release()
        next_lock.acquire()
        return extend(*arguments)

    monkeypatch.setattr(_attempt, "extend", overtaken)
    with pytest.raises(LockLost):
        lock.extend(1)
    view = service.view(name)
    assert view is not None
    assert view.holders[0].lease_left_s is None
    assert next_lock.held
    next_lock.release()


def test_what_a_future_got_can_be_extended(client: Client) -> None:
    lock = client.lock(fresh_name())
    assert lock.acquire_future(lease=20).result(20)
    assert lock.extend(60) > 40
    lock.release()


# ---- Several holds, one of which is lost ---------------------------------------------------------


def test_a_semaphore_gives_the_rest_back_when_one_slot_was_lost(
    service: Service, client: Client
) -> None:
    name = fresh_name()
    slots = client.semaphore(name, 3)
    for _ in range(3):
        slots.acquire()
    service.admin.break_lock(name, token=slots.token)
    until(lambda: service.holders(name) == 2)
    with pytest.raises(Broken):
        slots.release(3)
    assert service.holders(name) == 0
    assert not slots.tokens


@pytest.fixture
def far() -> Iterator[tuple[Service, Proxy]]:
    """A server whose sessions end after 3 s, and a network to it."""
    with serving(session_ttl_ms=3000) as one:
        proxy = Proxy(one.server)
        yield one, proxy
        proxy.close()


def test_a_multi_that_lost_one_while_it_waited_begins_again(
    far: tuple[Service, Proxy], background: Background
) -> None:
    service, proxy = far
    first, second = sorted((fresh_name(), fresh_name()))
    blocker = service.client().lock(second)
    blocker.acquire()
    with dlock.connect(proxy.address) as client:
        session = client._session
        multi = client.multi([client.lock(first), client.lock(second)])
        waiting = background(multi.acquire)
        until(lambda: service.waiters(second) == 1)
        proxy.silence()
        proxy.cut()
        until(lambda: service.holders(first) == 0)  # its session has ended there
        proxy.mend()
        until(lambda: client._session is not session)
        blocker.release()
        assert waiting.result(20)
        assert multi.held
        assert service.holders(first) == service.holders(second) == 1
        multi.release()


def test_an_asyncio_multi_that_lost_one_while_it_waited_begins_again(
    far: tuple[Service, Proxy]
) -> None:
    service, proxy = far
    first, second = sorted((fresh_name(), fresh_name()))
    blocker = service.client().lock(second)
    blocker.acquire()

    async def program() -> None:
        async with aio.connect(proxy.address) as client:
            session = client._connection.session
            multi = client.multi([client.lock(first), client.lock(second)])
            waiting = asyncio.ensure_future(multi.acquire())
            await aio_until(lambda: service.waiters(second) == 1)
            proxy.silence()
            proxy.cut()
            await aio_until(lambda: service.holders(first) == 0)
            proxy.mend()
            await aio_until(lambda: client._connection.session is not session)
            blocker.release()
            assert await waiting
            assert multi.held
            await multi.release()

    run(program())


def test_an_asyncio_multi_whose_time_is_over_gives_all_back_though_one_was_lost(
    service: Service
) -> None:
    names = sorted(fresh_name() for _ in range(3))
    blocker = service.client().lock(names[2])
    blocker.acquire()

    async def program() -> None:
        async with aio.connect(service.address) as client:
            locks = [client.lock(name) for name in names]
            waiting = asyncio.ensure_future(client.multi(locks).acquire(timeout=3))
            await aio_until(lambda: service.waiters(names[2]) == 1)
            service.admin.break_lock(names[0])
            assert not await waiting
            await aio_until(lambda: service.holders(names[1]) == 0)
            assert not any(lock.tokens for lock in locks)

    run(program())


# ---- Callbacks of a client -----------------------------------------------------------------------


def test_a_clients_callbacks_are_for_every_lock_without_its_own(service: Service) -> None:
    told: list[tuple[str, object]] = []
    names = [fresh_name() for _ in range(4)]
    with dlock.connect(service.address, on_lost=lambda lock: told.append(("all", lock))) as client:
        locks: list[Any] = [
            client.lock(names[0]),
            client.fair_lock(names[1]),
            client.rwlock(names[2]).read(),
            client.lock(names[3], on_lost=lambda lock: told.append(("own", lock))),
        ]
        for lock, name in zip(locks, names, strict=True):
            lock.acquire()
            service.admin.break_lock(name)
        until(lambda: len(told) == 4)
        assert {lock.name: whose for whose, lock in told} == dict(
            zip(names, ["all", "all", "all", "own"], strict=True))


def test_a_clients_callbacks_stay_out_of_pickles(service: Service) -> None:
    with dlock.connect(service.address, on_suspended=lambda _lock: None) as client:
        assert "lambda" not in repr(pickle.dumps(client.lock("a")))


def test_an_asyncio_clients_callbacks(service: Service) -> None:
    name, told = fresh_name(), []

    async def program() -> None:
        async with aio.connect(service.address, on_lost=told.append) as client:
            lock = client.lock(name)
            await lock.acquire()
            service.admin.break_lock(name)
            await aio_until(lambda: told == [lock])

    run(program())


# ---- After the end -------------------------------------------------------------------------------


def test_locks_of_a_closed_client_ask_nobody(client: Client) -> None:
    lock = client.lock(fresh_name())
    assert not lock.locked()
    client.close()
    for use in (lock.locked, lock.holder, lock.acquire, lock.acquire_future, client.stats,
                lambda: client.admin):
        with pytest.raises(ClientClosed):
            use()


def test_what_is_not_pickled_says_so(client: Client) -> None:
    for one in (client, client.multi([client.lock("a")])):
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(one)


def test_a_future_has_no_thread_to_enter_again(client: Client) -> None:
    with pytest.raises(TypeError, match="re-entrant"):
        client.lock(fresh_name(), reentrant=True).acquire_future()


def test_a_try_at_a_new_primary_that_forgot_the_name_is_made(tmp_path: Path) -> None:
    """Asking again for the name is no wait for the link."""
    settings: dict[str, Any] = {
        "host": "127.0.0.1", "port": free_port(), "state_dir": tmp_path, "session_ttl_ms": 1000,
        "wait_mode": "block",
    }
    former = Server(ServerConfig(**settings))
    name = fresh_name()
    with dlock.connect(former.address) as client:
        with client.lock(name):
            epoch = client._session.epoch
        former.stop()
        successor = Server(ServerConfig(**settings))
        until(lambda: client._session.epoch > epoch and client._recovering is None)
        with client.lock(fresh_name()):  # it grants again
            pass
        lock = client.lock(name)
        assert lock.acquire(blocking=False)
        lock.release()
    successor.stop()


# ---- Signal handlers, garbage --------------------------------------------------------------------


class _Alarm:
    """Runs something in a signal handler of the main thread, as soon as `when` holds."""

    def __init__(self, work: Callable[[], object], when: Callable[[], bool]) -> None:
        self.outcome: object = None
        self._work = work
        self._sender = threading.Thread(target=self._send, args=(when, threading.get_ident()))
        self._former = signal.signal(signal.SIGALRM, self._handle)

    def _handle(self, _number: int, _frame: object) -> None:
        try:
            self.outcome = self._work()
        except DlockError as problem:
            self.outcome = problem

    @staticmethod
    def _send(when: Callable[[], bool], receiver: int) -> None:
        until(when)
        signal.pthread_kill(receiver, signal.SIGALRM)

    def __enter__(self) -> _Alarm:
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.join()
        signal.signal(signal.SIGALRM, self._former)


def test_a_signal_handler_may_use_locks_while_its_thread_waits_for_one(
    service: Service, client: Client
) -> None:
    name = fresh_name()
    blocker = service.client().lock(name)
    blocker.acquire()

    def handler() -> bool:
        with client.lock(fresh_name()):  # a name that is new, and a lock at once
            blocker.release()
        return True

    with _Alarm(handler, lambda: service.waiters(name) == 1) as alarm, client.lock(name):
        assert alarm.outcome is True


def test_a_signal_handler_that_interrupts_the_asking_for_a_name_is_refused_not_hung(
    far: tuple[Service, Proxy],
) -> None:
    _service, proxy = far
    with dlock.connect(proxy.address) as client:

        def handler() -> object:
            proxy.mend()
            return client.lock(fresh_name()).acquire()

        proxy.silence()
        asking = client._naming.locked
        with _Alarm(handler, asking) as alarm, client.lock(fresh_name()):
            assert isinstance(alarm.outcome, DlockError), alarm.outcome
            assert "signal handler" in str(alarm.outcome)
        with client.lock(fresh_name()):  # and nothing of that stays
            pass


def test_a_signal_handler_and_the_collector_may_come_inside_the_table_of_names(
    service: Service, client: Client, background: Background
) -> None:
    held, other = fresh_name(), dlock.connect(service.address)

    def inside() -> bool:
        garbage: list[object] = [client.lock(held), other]
        garbage[0].acquire()  # type: ignore[attr-defined]
        garbage.append(garbage)
        with client._names._mutex:
            del garbage
            gc.collect()
            with client.lock(fresh_name()):
                return True

    del service
    with pytest.warns(ResourceWarning, match="dropped while it was held"):
        assert background(inside).result(20)
    other.close()
