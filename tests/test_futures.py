"""acquire_future: a concurrent.futures.Future of an acquisition."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator

import pytest
from lock_tools import Service, fresh_name, serving, until

import dlock
from dlock import _core
from dlock._core import lib
from dlock.client import Client
from dlock.futures import Reader, Request, _cookies

pytestmark = pytest.mark.data_plane


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as one:
        yield one


@pytest.fixture
def client(service: Service) -> Client:
    return service.client()


def readers() -> int:
    return sum(thread.name == "dlock-futures" for thread in threading.enumerate())


def test_a_free_lock_is_held_when_the_future_is_done(service: Service, client: Client) -> None:
    lock = client.lock(fresh_name())
    future = lock.acquire_future()
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(20) is True
    assert service.tokens(lock.name) == {lock.token}
    lock.release()


def test_many_wait_and_one_thread_reads(service: Service, client: Client) -> None:
    names = [fresh_name() for _ in range(50)]
    others = [service.client().lock(names[0])] + [client.lock(name) for name in names[1:]]
    for other in others:
        other.acquire()
    locks = [client.lock(name) for name in names]
    futures = [lock.acquire_future() for lock in locks]
    assert readers() == 1
    for other in others:
        other.release()
    done, _ = concurrent.futures.wait(futures, 20)
    assert len(done) == 50
    assert all(future.result() for future in futures)
    until(lambda: readers() == 0)
    for lock in locks:
        lock.release()


def test_the_time_of_a_future_is_its_own(service: Service, client: Client) -> None:
    name = fresh_name()
    with service.client().lock(name):
        assert client.lock(name).acquire_future(timeout=0.01).result(20) is False
        assert service.waiters(name) == 0


def test_cancel_takes_the_request_back(service: Service, client: Client) -> None:
    name = fresh_name()
    with service.client().lock(name):
        future = client.lock(name).acquire_future()
        until(lambda: service.waiters(name) == 1)
        assert future.cancel()
        assert future.cancelled()
        until(lambda: service.waiters(name) == 0)
    assert service.holders(name) == 0
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(0)


def test_what_is_done_is_not_cancelled(client: Client) -> None:
    lock = client.lock(fresh_name())
    future = lock.acquire_future()
    assert future.result(20)
    assert not future.cancel()
    lock.release()


def test_a_future_outlives_a_lost_link(service: Service, client: Client) -> None:
    name = fresh_name()
    lock = client.lock(name)
    with service.client().lock(name):
        future = lock.acquire_future()
        until(lambda: service.waiters(name) == 1)
        lib.dlk_client_detach(client._session.client)
        until(lambda: service.waiters(name) == 1)
        assert not future.done()
    assert future.result(20)
    lock.release()


def test_a_future_that_is_asked_again_has_what_is_left_of_its_time(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted: list[int] = []
    submit = Reader.submit

    def unanswered(reader: Reader, request: Request) -> bool:
        """The first is without an answer for ten seconds, and asked again."""
        posted.append(request.asked.wait_ms)
        if len(posted) > 1:
            return submit(reader, request)
        cookie = request.future._cookie = next(_cookies)
        reader.requests[cookie] = request._replace(until=request.until - 10)
        reader._end(cookie, _core.DLK_STATUS_BAD_RESPONSE)
        return True

    monkeypatch.setattr(Reader, "submit", unanswered)
    lock = client.lock(fresh_name())
    assert lock.acquire_future(timeout=60).result(20) is True
    lock.release()
    first, second = posted
    assert first == 60_000
    assert 0 < second <= 50_000


def test_a_closed_client_ends_its_futures(service: Service) -> None:
    name = fresh_name()
    client = dlock.connect(service.address)
    with service.client().lock(name):
        future = client.lock(name).acquire_future()
        until(lambda: service.waiters(name) == 1)
        client.close()
        with pytest.raises(dlock.ClientClosed):
            future.result(20)
