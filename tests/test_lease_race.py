"""A lease that is longer than what the server has written down for a session is told to it first.
When several ask for one at once, a refusal can come after another of them has told it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aio_tools import connected, run

import dlock
from dlock import _attempt, _core
from dlock.aio import _attempt as aio_attempt
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
