"""Posted calls from Python: one loop, one descriptor, any number of waits, no thread."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest
from session_tools import ByHand, key

from dlock import _core, _posted
from dlock._core import ffi, lib
from dlock._handle import Handle
from dlock.server import Server, ServerConfig
from dlock.types import DlockStatus as S

TASKS = 2000


@pytest.fixture
def session() -> Iterator[ByHand]:
    server = Server(ServerConfig(port=0))
    one = ByHand(server)
    yield one
    one.close()
    server.stop()


def post(handle: Handle, cookie: int, *, acquire: bool) -> None:
    call = handle.acquire if acquire else handle.release
    call.cookie = cookie
    if acquire:
        call.wait_ms = 60_000
    assert _posted.post(handle.client, call) == _posted.PENDING


def test_thousands_wait_for_one_lock_and_each_gets_it(session: ByHand) -> None:
    """All wait in one process without a thread, and hand the lock on from one to the next."""
    handles = [session.take(key("one")) for _ in range(TASKS)]
    client = handles[0].client
    collector = _posted.Collector(client)
    descriptor = _posted.collect_fd(client)
    assert descriptor == _posted.collect_fd(client)
    for cookie, handle in enumerate(handles):
        post(handle, cookie, acquire=True)
    held, released = [], 0
    while released < TASKS:
        _posted.flush(client)
        assert select.select([descriptor], [], [], 30)[0]
        for cookie, status, _ in collector.collect():
            assert status == S.SUCCESS
            if cookie >= TASKS:
                released += 1
            else:
                held.append(cookie)
                post(handles[cookie], TASKS + cookie, acquire=False)
    assert held == list(range(TASKS))


def test_more_end_at_once_than_the_buffer_takes(session: ByHand) -> None:
    handles = [session.take(key(f"of many {index}")) for index in range(2 * _posted.ROOM)]
    client = handles[0].client
    collector = _posted.Collector(client)
    for cookie, handle in enumerate(handles):
        post(handle, cookie, acquire=True)
    last = session.take(key("read after all of them"))
    assert session.lock(last) == S.SUCCESS
    assert sorted(collector.collect()) == [
        (cookie, S.SUCCESS, _core.DLK_RESULT_GRANTED) for cookie in range(len(handles))
    ]
    assert collector.collect() == []


def test_a_thread_for_futures_waits_in_c(session: ByHand) -> None:
    handle = session.take(key("for a future"))
    collector = _posted.Collector(handle.client)
    assert collector.collect_wait(5) == []
    post(handle, 7, acquire=True)
    while not (ended := collector.collect_wait(1000)):
        pass
    assert ended == [(7, S.SUCCESS, _core.DLK_RESULT_GRANTED)]
    assert session.unlock(handle) == S.SUCCESS


def test_a_cancelled_wait_is_not_collected(session: ByHand) -> None:
    holder, waiter = session.take(key("busy")), session.take(key("busy"))
    collector = _posted.Collector(holder.client)
    assert session.lock(holder) == S.SUCCESS
    post(waiter, 1, acquire=True)
    _posted.flush(holder.client)
    _posted.cancel(holder.client, waiter.acquire)
    assert session.unlock(holder) == S.SUCCESS
    assert session.lock(holder) == S.SUCCESS
    assert collector.collect() == []
    assert session.unlock(holder) == S.SUCCESS


def test_the_child_has_no_descriptor(session: ByHand) -> None:
    handle = session.take(key("of the parent"))
    collector = _posted.Collector(handle.client)
    child = os.fork()
    if child == 0:
        try:
            refused = lib.dlk_client_collect_fd(handle.client) == -1 and ffi.errno != 0
            posted = _posted.post(handle.client, handle.acquire) == _core.DLK_STATUS_FORKED
            os._exit(0 if refused and posted and collector.collect() == [] else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
