"""How an asyncio client opens its data link: in the loop, without a thread, and whatever ends that
in the middle leaves no descriptor, no reader and no task behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import socket
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from aio_tools import run, stop_at, turns, until
from proxy import HOST, Proxy

from dlock import _core, aio
from dlock._core import lib
from dlock._session import Settle
from dlock.aio._attach import PENDING, settle
from dlock.errors import ConnectError
from dlock.server import Server, ServerConfig

SUCCESS = _core.DLK_STATUS_SUCCESS


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0, session_ttl_ms=60_000))
    yield one
    one.stop()


@pytest.fixture
def proxied(server: Server) -> Iterator[Proxy]:
    one = Proxy(server)
    yield one
    one.close()


def sockets_to(port: int) -> int:
    """How many descriptors of this process are connected to this port of the proxy."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # it is closed, or not connected
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as one:
                    count += one.getpeername() == (HOST, port)
    return count


def watched() -> int:
    """How many descriptors the running loop watches."""
    loop: Any = asyncio.get_running_loop()
    return len(loop._selector.get_map())


class Nothing:
    """What there was before; `left` until it is so again."""

    def __init__(self, *ports: int) -> None:
        self.ports = ports
        self.watched = watched()
        self.tasks = len(asyncio.all_tasks())

    def left(self) -> bool:
        gc.collect()
        return (not any(map(sockets_to, self.ports)) and watched() == self.watched
                and len(asyncio.all_tasks()) == self.tasks)


async def in_the_attach(server: Server) -> None:
    """Until a client waits for the answer to its proof: its socket, and C's duplicate."""
    await until(lambda: sockets_to(server.data_port) == 2)
    await turns()


def test_no_thread_opens_a_link(server: Server, proxied: Proxy) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a thread was asked for")

    async def program() -> None:
        loop: Any = asyncio.get_running_loop()
        loop.run_in_executor = refuse
        async with aio.connect(proxied.address) as client:
            lock = client.lock("held")
            await lock.acquire()
            accepted = proxied.accepted
            proxied.cut()
            await until(lambda: proxied.accepted >= accepted + 2 and client._connection.settled)
            assert lock.held
            await lock.release()

    run(program())


@pytest.mark.parametrize("when", ["before", "cancelled", "after"])
def test_a_connect_struck_at_every_await_point(
    server: Server, proxied: Proxy, when: str
) -> None:
    async def program() -> None:
        nothing = Nothing(*proxied.ports)
        waits = 0
        for wait in itertools.count():
            how, came = await stop_at(
                connect(proxied.address), wait, when, asyncio.CancelledError())
            if how == "ended":
                assert isinstance(came, aio.Client)
                await came.close()
                break
            waits += 1
            assert isinstance(came, asyncio.CancelledError | aio.Client)
            if isinstance(came, aio.Client):
                await came.close()
            await until(nothing.left)
        assert waits >= 3  # to connect, to be welcomed, to connect; perhaps to be proven
        await until(lambda: nothing.left() and server.stats()["clients"] == 0)

    run(program())


async def connect(address: str) -> aio.Client:
    return await aio.connect(address)


def test_cancelled_while_the_server_says_nothing(server: Server, proxied: Proxy) -> None:
    async def program() -> None:
        nothing = Nothing(*proxied.ports)
        proxied.silence(server.data_port)
        connecting = asyncio.create_task(connect(proxied.address))
        await in_the_attach(server)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await until(nothing.left)

    run(program())


def test_closed_while_the_server_says_nothing(server: Server, proxied: Proxy) -> None:
    async def program() -> None:
        nothing = Nothing(*proxied.ports)
        client = await connect(proxied.address)
        lock = client.lock("held")
        await lock.acquire()
        proxied.silence(server.data_port)
        proxied.cut(server.data_port)
        await in_the_attach(server)
        await client.close()
        await until(nothing.left)

    run(program())


def test_dropped_while_the_server_says_nothing(server: Server, proxied: Proxy) -> None:
    async def program() -> None:
        nothing = Nothing(*proxied.ports)
        client = await connect(proxied.address)
        proxied.silence(server.data_port)
        proxied.cut(server.data_port)
        await in_the_attach(server)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del client
            await until(nothing.left)

    run(program())


def test_the_time_is_over_while_the_server_says_nothing(server: Server, proxied: Proxy) -> None:
    async def program() -> None:
        nothing = Nothing(*proxied.ports)
        proxied.silence(server.data_port)
        with pytest.raises(ConnectError, match=f"data port {server.data_port} does not answer"):
            await aio.connect(proxied.address, timeout=0.5)
        await until(nothing.left)

    run(program())


def test_nobody_listens_on_the_data_port(server: Server, proxied: Proxy) -> None:
    async def program() -> None:
        nothing = Nothing(*proxied.ports)
        for key in list(proxied._selector.get_map().values()):
            if key.data == server.data_port:
                proxied._selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
        with pytest.raises(ConnectError, match=f"data port {server.data_port} does not answer"):
            await aio.connect(proxied.address, timeout=0.5)
        await until(nothing.left)

    run(program())


def test_debts_are_waited_for_until_they_are_settled(server: Server, proxied: Proxy) -> None:
    async def program() -> None:
        async with aio.connect(proxied.address) as client:
            session = client._connection.session
            lock = client.lock("owed")
            async with lock:
                pass
            assert await settle(Settle(session, 5)) == SUCCESS  # nothing is owed
            proxied.hold_answers()
            acquiring = asyncio.create_task(lock.acquire())
            await turns()
            acquiring.cancel()
            with pytest.raises(asyncio.CancelledError):
                await acquiring
            assert lib.dlk_client_debts(session.client) == 1
            assert await settle(Settle(session, 0.1)) == PENDING
            proxied.mend()
            assert await settle(Settle(session, 20)) == SUCCESS

    run(program())
