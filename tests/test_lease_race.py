"""A lease that is longer than what the server has written down for a session is told to it first.
When several ask for one at once, a refusal can come after another of them has told it; and another
session has to be told again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aio_tools import connected, run
from proxy import Proxy
from session_tools import until

import dlock
from dlock import _attempt, _core
from dlock.aio import _attempt as aio_attempt
from dlock.futures import Reader
from dlock.server import Server, ServerConfig

LEASE_S = 7.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """One that writes long leases down before it grants them."""
    one = Server(ServerConfig(port=0, session_ttl_ms=2000, state_dir=tmp_path / "state"))
    yield one
    one.stop()


def test_a_task_whose_refusal_comes_late_is_served(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []
    persist = aio_attempt.persist

    async def scenario() -> None:
        async with connected(server) as client:

            async def after_another(*arguments: Any) -> Any:
                monkeypatch.undo()
                refused.append(arguments[3])
                assert await client.lock("other", lease=LEASE_S).acquire(timeout=20)
                return await persist(*arguments)

            monkeypatch.setattr(aio_attempt, "persist", after_another)
            assert await client.lock("late", lease=LEASE_S).acquire(timeout=20)

    run(scenario())
    assert refused == [_core.DLK_STATUS_EINVAL]


def test_a_thread_whose_refusal_comes_late_is_served(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []
    persist = _attempt.persist
    with dlock.connect(server.address) as client:

        def after_another(one: Any, handle: Any, asked: Any, status: int, watch: Any) -> Any:
            monkeypatch.undo()
            while status == _core.DLK_STATUS_PENDING:
                status = _attempt._wait(handle.client, handle.acquire)
            refused.append(status)
            assert client.lock("other", lease=LEASE_S).acquire(timeout=20)
            return persist(one, handle, asked, status, watch)

        monkeypatch.setattr(_attempt, "persist", after_another)
        assert client.lock("late", lease=LEASE_S).acquire(timeout=20)
    assert refused == [_core.DLK_STATUS_EINVAL]


# ---- Another session, which the server knows nothing of ------------------------------------------


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """The network to it."""
    one = Proxy(server)
    yield one
    one.close()


def end_session(server: Server, proxy: Proxy, client: Any) -> None:
    """Until the server has ended the session of this client, and it has got another."""
    session = client._session
    clients = server.stats()["clients"]
    proxy.silence()
    proxy.cut()
    until(lambda: server.stats()["clients"] < clients)
    proxy.mend()
    until(lambda: client._session is not session and client._whole())


def test_a_future_tells_its_lease_to_another_session(server: Server, proxy: Proxy) -> None:
    with dlock.connect(server.address) as other, dlock.connect(proxy.address) as client:
        blocker = other.lock("a")
        assert blocker.acquire(timeout=20)
        lock = client.lock("a", lease=LEASE_S, on_lost=print)
        future = lock.acquire_future()
        until(lambda: server.stats()["WAITS"] == 1)
        end_session(server, proxy, client)
        blocker.release()
        assert future.result(20) is True
        assert lock._held[-1].watcher is lock._watch
        lock.release()


def test_a_future_whose_session_ends_when_it_is_posted_tells_it_again(
    server: Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []
    judge = Reader._end

    def judged(reader: Any, cookie: int, status: int) -> None:
        refused.append(status)
        judge(reader, cookie, status)

    with dlock.connect(proxy.address) as client:
        take = client._take

        def after_the_end(*arguments: Any) -> Any:
            monkeypatch.delattr(client, "_take")
            end_session(server, proxy, client)
            return take(*arguments)

        monkeypatch.setattr(client, "_take", after_the_end, raising=False)
        monkeypatch.setattr(Reader, "_end", judged)
        lock = client.lock("a", lease=LEASE_S)
        assert lock.acquire_future().result(20) is True
        lock.release()
    assert _core.DLK_STATUS_EINVAL in refused


def test_a_lease_is_told_until_the_present_session_knows_of_it(
    server: Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session may end when the server has just been told."""
    with dlock.connect(proxy.address) as client:
        declare = client._declare

        def before_the_end(*arguments: Any) -> None:
            monkeypatch.delattr(client, "_declare")
            declare(*arguments)
            end_session(server, proxy, client)

        monkeypatch.setattr(client, "_declare", before_the_end, raising=False)
        assert client.lock("a", lease=LEASE_S).acquire(timeout=20)


def test_a_lease_over_the_limit_is_refused_to_a_future(server: Server) -> None:
    with dlock.connect(server.address) as client:
        lock = client.lock("a", lease=LEASE_S)
        lock.acquire_future().result(20)
        lock.release()
        with pytest.raises(dlock.LeaseTooLong):
            lock.acquire_future(lease=1e6)
