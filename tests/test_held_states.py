"""HELD, SUSPENDED, LOST: by the client's own clock a hold is suspended before the server can give
the lock to anybody else, whatever is stopped, delayed or stepped.

Both ends of each belief are taken from CLOCK_BOOTTIME, which all processes of a machine share, so
that nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from aio_tools import run
from failover_tools import PATIENCE_S, Primary, back_at, until
from far_process import FarProcess, clock_shim
from proxy import Proxy

import dlock
from dlock import aio
from dlock._core import now_ns
from dlock.server import Server, ServerConfig

TTL_S = 2.0
Background = Callable[..., Future[Any]]
Proxied = Callable[..., tuple[Server, Proxy]]
# Until when the hold of `lock` in the other program may be believed at the latest.
BELIEVED_UNTIL = "now_ns() + int(lock.remaining * 1e9)"


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    started = Primary(tmp_path, ttl_s=TTL_S)
    yield started
    started.go_on()
    started.kill()


@pytest.fixture
def proxied() -> Iterator[Proxied]:
    """A server in this process, and a network to it."""
    with contextlib.ExitStack() as stack:

        def one(ttl_s: float = TTL_S) -> tuple[Server, Proxy]:
            server = Server(ServerConfig(
                port=0, wait_mode="block", session_ttl_ms=round(ttl_s * 1000)))
            stack.callback(server.stop)
            proxy = Proxy(server)
            stack.callback(proxy.close)
            return server, proxy

        yield one


@pytest.fixture
def far() -> Iterator[Callable[..., FarProcess]]:
    started: list[FarProcess] = []

    def one(address: str, environment: dict[str, str] | None = None) -> FarProcess:
        started.append(FarProcess(address, environment))
        return started[-1]

    yield one
    for process in started:
        process.close()


class Told:
    """What a lock object was told, in order."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.suspended = threading.Event()
        self.lost = threading.Event()

    def on_suspended(self, _lock: object) -> None:
        self.words.append("suspended")
        self.suspended.set()

    def on_lost(self, _lock: object) -> None:
        self.words.append("lost")
        self.lost.set()

    def of(self, client: dlock.Client, name: str, **options: Any) -> dlock.Lock:
        return client.lock(name, on_suspended=self.on_suspended, on_lost=self.on_lost, **options)


# ---- Stopped processes ---------------------------------------------------------------------------


def test_a_stopped_client_is_told_both_when_it_goes_on(primary: Primary, far: Any) -> None:
    holder = far(primary.address)
    holder.let("told", "[]")
    holder.let("lock", "client.lock('a', on_suspended=lambda _: told.append('suspended'), "
                       "on_lost=lambda _: told.append('lost'))")
    assert holder.ask("lock.acquire()")
    believed_until = holder.ask(BELIEVED_UNTIL)
    holder.signal(signal.SIGSTOP)
    with dlock.connect(primary.address, timeout=60) as client, client.lock("a"):
        assert now_ns() >= believed_until
        holder.signal(signal.SIGCONT)
        assert holder.ask("lock.held") is False
        until(lambda: "lost" in holder.ask("told"))
        assert holder.ask("told") in (["suspended", "lost"], ["lost"])


@pytest.mark.data_plane
def test_a_stopped_server_suspends_and_confirms(primary: Primary, background: Background) -> None:
    """Nobody can have had it in between: a server that was stopped handles what has arrived before
    it ends any session."""
    told = Told()
    with (dlock.connect(primary.address, timeout=60) as client,
          dlock.connect(primary.address, timeout=60) as other):
        lock, session = told.of(client, "a"), client._session
        lock.acquire()
        token = lock.token
        wait = background(other.lock("a").acquire)
        with primary.admin() as admin:
            until(lambda: admin.show("a").waiters)
        primary.stop()
        assert told.suspended.wait(PATIENCE_S)
        assert not lock.held
        primary.go_on()
        until(lambda: lock.held or told.lost.is_set())
        if not told.lost.is_set():
            assert not wait.done()
            assert lock.token == token
            assert client._session is session
            lock.release()
        assert wait.result(60) is True


# ---- Stepped clocks ------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [86_400, -86_400])
def test_a_wall_clock_that_steps_during_a_failover(
    tmp_path: Path, far: Any, step_s: int
) -> None:
    library, steps = clock_shim(tmp_path)
    shimmed = {"LD_PRELOAD": str(library), "CLOCK_STEPS": str(steps)}
    primary = Primary(tmp_path, ttl_s=30.0, environment=shimmed)
    try:
        holder, other = far(primary.address, shimmed), far(primary.address, shimmed)
        for process, name in ((holder, "a"), (other, "b")):
            process.let("lock", f"client.lock('{name}', lease=60)")
            assert process.ask("lock.acquire()")
        tokens = holder.ask("lock.token"), other.ask("lock.token")
        primary.kill()
        steps.write_text(str(step_s))
        primary.start()
        for process in (holder, other):
            until(lambda one=process: one.ask("client._session.home[0]") == 2)
            until(lambda one=process: one.ask("lock.held"))
        assert (holder.ask("lock.token"), other.ask("lock.token")) == tokens
        other.let("rival", "client.lock('a')")
        assert other.ask("rival.acquire(timeout=0.2)") is False
    finally:
        primary.kill()


# ---- The control plane keeps the session ---------------------------------------------------------


@pytest.mark.parametrize("down", [False, True])
def test_without_a_data_plane_the_control_plane_keeps_the_session(
    proxied: Proxied, down: bool
) -> None:
    server, proxy = proxied(6.0)
    told = Told()
    with dlock.connect(proxy.address) as client:
        lock, session = told.of(client, "a"), client._session
        lock.acquire()
        token = lock.token
        proxy.silence(server.data_port)
        if down:
            proxy.cut(server.data_port)
        ends = time.monotonic() + 8
        while time.monotonic() < ends:
            assert "lost" not in told.words
            time.sleep(0.05)
        until(lambda: lock.held)
        assert server.stats()["SESSIONS_EXPIRED"] == 0
        proxy.mend()
        until(lambda: client._whole())
        until(lambda: lock.held)
        assert client._session is session
        assert lock.token == token
        lock.release()


def test_a_wait_on_a_data_link_that_fell_silent_goes_on(
    proxied: Proxied, background: Background
) -> None:
    server, proxy = proxied(6.0)
    with (dlock.connect(proxy.address) as client, dlock.connect(server.address) as other):
        lock = other.lock("a")
        lock.acquire()
        wait = background(client.lock("a").acquire)
        until(lambda: server.stats()["WAITS"] == 1)
        proxy.silence(server.data_port)
        until(lambda: not client.session_left > 3.5)
        until(lambda: client.session_left > 3.5)  # the control plane has been asked
        lock.release()
        proxy.mend()
        assert wait.result(60) is True
        assert server.stats()["SESSIONS_EXPIRED"] == 0


def test_the_same_for_asyncio(proxied: Proxied) -> None:
    server, proxy = proxied(6.0)

    async def program() -> None:
        async with aio.connect(proxy.address) as client:
            lock, session = client.lock("a"), client._connection.session
            await lock.acquire()
            proxy.silence(server.data_port)
            await asyncio.sleep(8)
            deadline = time.monotonic() + PATIENCE_S
            while not lock.held:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            assert server.stats()["SESSIONS_EXPIRED"] == 0
            proxy.mend()
            while not client._connection.whole:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            assert client._connection.session is session
            await lock.release()

    run(program(), 120)


def test_a_session_that_is_heard_of_asks_nothing_of_the_control_plane(primary: Primary) -> None:
    with dlock.connect(primary.address, timeout=60) as client:
        link, asked = client._session.link, []
        exchange = link.exchange
        link.exchange = lambda *arguments: asked.append(arguments) or exchange(*arguments)
        lock = client.lock("a")
        lock.acquire()
        names = len(asked)
        assert names == 1
        ends = time.monotonic() + 2 * TTL_S
        while time.monotonic() < ends:
            time.sleep(0.05)
        if client._session.link is link and lock.held:  # else the machine was too slow
            assert len(asked) <= names + 1
        back_at(client, 1)
