"""Who watches a lock is told of a hold that was SUSPENDED before `acquire` returned: the answer lay
there while its process was stopped, and the notice came when the lock object knew of no hold. And
of one whose session the server has ended, however long it takes to open another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aio_tools import connected, run

import dlock
from dlock import _core, _notices, _watch
from dlock._calls import HoldView
from dlock._notices import Notice
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


def removed(session: Any) -> None:
    """The server has answered that the session has ended, before its end was told."""
    _notices._bring(Notice(session.number, 0, 0, 0, _notices.REMOVED))


def test_a_task_whose_session_was_removed_is_told(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        told: list[object] = []
        async with connected(server) as client:
            plain = client.lock("a", on_suspended=told.append)
            leased = client.lock("b", lease=20, on_suspended=told.append)
            assert await plain.acquire(timeout=20)
            assert await leased.acquire(timeout=20)
            heard = asyncio.Event()
            plain._watch.on_suspended = lambda lock: (told.append(lock), heard.set())
            monkeypatch.setattr(_notices, "look", lapsed)
            removed(client._connection.session)
            await asyncio.wait_for(heard.wait(), 20)
            assert told == [plain]

    run(scenario())


def test_a_thread_whose_session_was_removed_is_told(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    with dlock.connect(server.address) as client:
        plain = client.lock("a", on_suspended=told.append)
        leased = client.lock("b", lease=20, on_suspended=told.append)
        assert plain.acquire(timeout=20)
        assert leased.acquire(timeout=20)
        monkeypatch.setattr(_notices, "look", lapsed)
        removed(client._session)
        assert told == [plain]


def test_what_the_removed_session_does_not_speak_for_is_good_yet(server: Server) -> None:
    """A hold that a new primary has not confirmed stands on the session as it was before."""
    told: list[object] = []
    with dlock.connect(server.address) as client:
        lock = client.lock("a", on_suspended=told.append)
        assert lock.acquire(timeout=20)
        removed(client._session)
        assert told == []


def test_who_holds_it_for_certain_is_told_nothing(server: Server) -> None:
    told: list[object] = []
    with dlock.connect(server.address) as client:
        lock = client.lock("a", on_suspended=told.append, on_lost=told.append)
        assert lock.acquire(timeout=20)
        lock.release()
    assert told == []
