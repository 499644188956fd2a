"""Who watches a lock is told of a hold that was SUSPENDED before `acquire` returned: the answer lay
there while its process was stopped, and the notice came when the lock object knew of no hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from aio_tools import connected, run

import dlock
from dlock import _core, _watch
from dlock._calls import HoldView
from dlock.aio import _watch as aio_watch
from dlock.server import Server, ServerConfig


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0))
    yield one
    one.stop()


def lapsed(handle: Any) -> HoldView:
    """What the client says when it has been stopped for longer than its session lives."""
    return HoldView(int(handle.acquire.token), 0)


def notices_after(watch: Any, token: int) -> None:
    """The notice that was under way says nothing new; one that follows a CONFIRMED does."""
    watch(_core.DLK_NOTICE_SUSPENDED, token)
    watch(_core.DLK_NOTICE_CONFIRMED, token)
    watch(_core.DLK_NOTICE_SUSPENDED, token)


def test_a_task_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        told: list[object] = []
        async with connected(server) as client:
            lock = client.lock("a", on_suspended=told.append)
            monkeypatch.setattr(aio_watch, "look", lapsed)
            assert await lock.acquire(timeout=20)
            assert told == [lock]
            notices_after(lock._watch, lock.token)
            assert told == [lock, lock]

    run(scenario())


def test_a_thread_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    with dlock.connect(server.address) as client:
        lock = client.lock("a", on_suspended=told.append)
        monkeypatch.setattr(_watch, "look", lapsed)
        assert lock.acquire(timeout=20)
        assert told == [lock]
        notices_after(lock._watch, lock.token)
        assert told == [lock, lock]


def test_who_holds_it_for_certain_is_told_nothing(server: Server) -> None:
    told: list[object] = []
    with dlock.connect(server.address) as client:
        lock = client.lock("a", on_suspended=told.append, on_lost=told.append)
        assert lock.acquire(timeout=20)
        lock.release()
    assert told == []
