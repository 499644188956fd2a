"""A wait outlives its connection: it keeps its place in the server's queue, gets the grant that was
on its way, ends with its own time, and never waits for somebody who does not come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import aio_tools
import pytest
from proxy import Proxy
from session_tools import until

import dlock
from dlock import aio, errors
from dlock.server import Server, ServerConfig

Far = Callable[..., tuple[Server, Proxy]]


@pytest.fixture
def far() -> Iterator[Far]:
    """A server, and a network to it."""
    ends: list[Callable[[], None]] = []

    def one(ttl_ms: int = 20_000) -> tuple[Server, Proxy]:
        server = Server(ServerConfig(port=0, wait_mode="block", session_ttl_ms=ttl_ms))
        ends.append(server.stop)
        proxy = Proxy(server)
        ends.append(proxy.close)
        return server, proxy

    yield one
    for end in reversed(ends):
        end()


def waits(server: Server, count: int) -> None:
    """Until so many have been queued, all in all."""
    until(lambda: server.stats()["WAITS"] >= count)


def cut(proxy: Proxy, client: dlock.Client) -> None:
    """Every connection breaks; both links are there again."""
    accepted = proxy.accepted
    proxy.cut()
    until(lambda: proxy.accepted >= accepted + 2 and client._whole())


def unplug(proxy: Proxy) -> None:
    """Every connection breaks, and there are no others until `mend`."""
    proxy.silence()
    proxy.cut()


def takes(order: list[str], name: str, lock: Any) -> None:
    with lock:
        order.append(name)


def test_a_thread_keeps_its_place_when_the_link_breaks(far: Far, background: Any) -> None:
    server, proxy = far()
    order: list[str] = []
    with dlock.connect(proxy.address) as client, dlock.connect(server.address) as other:
        held = other.lock("a")
        held.acquire()
        first = background(takes, order, "first", client.lock("a"))
        waits(server, 1)
        second = background(takes, order, "second", other.lock("a"))
        waits(server, 2)
        for _ in range(3):
            cut(proxy, client)
        held.release()
        first.result(timeout=20)
        second.result(timeout=20)
        assert order == ["first", "second"]
        assert server.stats()["WAITS"] == 2


def test_who_comes_while_the_link_is_down_stands_behind(far: Far, background: Any) -> None:
    server, proxy = far()
    order: list[str] = []
    with dlock.connect(proxy.address) as client, dlock.connect(server.address) as other:
        held = other.lock("a")
        held.acquire()
        away = background(takes, order, "away", client.lock("a"))
        waits(server, 1)
        unplug(proxy)
        behind = background(takes, order, "behind", other.lock("a"))
        waits(server, 2)
        held.release()  # granted to the one that is away, and kept for it
        assert not behind.done()
        proxy.mend()
        away.result(timeout=20)
        behind.result(timeout=20)
        assert order == ["away", "behind"]


def test_a_grant_that_was_on_its_way_is_had_over_the_next_connection(
    far: Far, background: Any
) -> None:
    server, proxy = far()
    with dlock.connect(proxy.address) as client, dlock.connect(server.address) as other:
        held, lock = other.lock("a"), client.lock("a")
        held.acquire()
        token = held.token
        waiting = background(lock.acquire)
        waits(server, 1)
        proxy.silence()
        held.release()  # the grant is sent, and goes no further than the network
        grants = server.stats()["GRANTS"]
        assert grants == 2
        proxy.cut()
        assert not waiting.done()
        proxy.mend()
        assert waiting.result(timeout=20)
        assert lock.token > token
        assert server.stats()["GRANTS"] == grants
        lock.release()  # right after: the hold is the client's, with its token
        assert other.lock("a").acquire(timeout=20)


@pytest.mark.parametrize("kind", ["lock", "fair", "read", "semaphore"])
def test_every_kind_keeps_its_place(far: Far, background: Any, kind: str) -> None:
    def of(client: dlock.Client) -> Any:
        return {"lock": lambda: client.lock("a"), "fair": lambda: client.fair_lock("a"),
                "read": lambda: client.rwlock("a").read(),
                "semaphore": lambda: client.semaphore("a", 1)}[kind]()

    server, proxy = far()
    order: list[str] = []
    with dlock.connect(proxy.address) as client, dlock.connect(server.address) as other:
        held = other.rwlock("a").write() if kind == "read" else of(other)
        held.acquire()
        first = background(takes, order, "first", of(client))
        waits(server, 1)
        behind = other.rwlock("a").write() if kind == "read" else of(other)
        second = background(takes, order, "second", behind)
        waits(server, 2)
        cut(proxy, client)
        held.release()
        first.result(timeout=20)
        second.result(timeout=20)
        assert order == ["first", "second"]


def test_a_wait_with_a_lease_is_good_for_its_lease(far: Far, background: Any) -> None:
    server, proxy = far()
    with dlock.connect(proxy.address) as client, dlock.connect(server.address) as other:
        held, lock = other.lock("a"), client.lock("a", renew=False)
        held.acquire()
        waiting = background(lock.acquire, lease=30.0)
        waits(server, 1)
        cut(proxy, client)
        held.release()
        assert waiting.result(timeout=20)
        assert 0 < lock.remaining <= 30
        lock.release()


def test_a_future_keeps_its_place(far: Far) -> None:
    server, proxy = far()
    with dlock.connect(proxy.address) as client, dlock.connect(server.address) as other:
        held, first, second = other.lock("a"), client.lock("a"), other.lock("a")
        held.acquire()
        waiting = first.acquire_future()
        waits(server, 1)
        behind = second.acquire_future()
        waits(server, 2)
        cut(proxy, client)
        held.release()
        assert waiting.result(timeout=20)
        assert not behind.done()
        first.release()
        assert behind.result(timeout=20)
        assert server.stats()["WAITS"] == 2


def test_a_task_keeps_its_place(far: Far) -> None:
    server, proxy = far()

    async def program() -> None:
        order: list[str] = []

        async def takes(name: str, lock: aio.Lock) -> None:
            async with lock:
                order.append(name)

        async with aio.connect(proxy.address) as client, aio.connect(server.address) as other:
            held = other.lock("a")
            await held.acquire()
            first = asyncio.create_task(takes("first", client.lock("a")))
            await aio_tools.until(lambda: server.stats()["WAITS"] == 1)
            second = asyncio.create_task(takes("second", other.lock("a")))
            await aio_tools.until(lambda: server.stats()["WAITS"] == 2)
            accepted = proxy.accepted
            proxy.cut()
            await aio_tools.until(
                lambda: proxy.accepted >= accepted + 2 and client._connection.whole)
            await held.release()
            await asyncio.gather(first, second)
            assert order == ["first", "second"]
            assert server.stats()["WAITS"] == 2

    aio_tools.run(program())


def test_a_multi_keeps_its_place_and_what_it_has(far: Far, background: Any) -> None:
    server, proxy = far()
    order: list[str] = []
    with dlock.connect(proxy.address) as client, dlock.connect(server.address) as other:
        held = other.lock("b")
        held.acquire()
        multi = client.multi([client.lock("a"), client.lock("b"), client.lock("c")])
        first = background(takes, order, "multi", multi)
        waits(server, 1)
        second = background(takes, order, "second", other.lock("b"))
        waits(server, 2)
        cut(proxy, client)
        held.release()
        first.result(timeout=20)
        second.result(timeout=20)
        assert order == ["multi", "second"]


def test_a_batch_that_waits_goes_on(far: Far, background: Any) -> None:
    """Waits of one batch call in C, not all of which are granted at once."""
    from session_tools import key

    from dlock import _calls, multi
    from dlock._calls import Asked
    from dlock._core import ffi
    from dlock.types import DlockStatus

    server, proxy = far()
    with dlock.connect(proxy.address) as client, dlock.connect(server.address) as other:
        held = [other.lock(name) for name in "ab"]
        for one in held:
            one.acquire()
        handles = [client._take(key(name), 0, float("inf")) for name in "ab"]
        calls = ffi.new("struct dlk_call[]", 2)
        for index, handle in enumerate(handles):
            _calls.fill_acquire(handle, Asked())
            ffi.memmove(calls + index, handle.acquire, ffi.sizeof("struct dlk_call"))
        waiting = background(multi.run_batch, handles, calls)
        waits(server, 2)
        held[0].release()
        cut(proxy, client)
        assert not waiting.done()
        held[1].release()
        waiting.result(timeout=20)
        assert [call.status for call in calls] == [DlockStatus.SUCCESS] * 2
        assert server.stats()["WAITS"] == 2
        for handle in handles:
            handle.abandon()


def test_a_wait_ends_with_its_time_while_the_link_is_down(far: Far, background: Any) -> None:
    server, proxy = far()
    with dlock.connect(proxy.address) as client, dlock.connect(server.address) as other:
        held = other.lock("a")
        held.acquire()
        waiting = background(client.lock("a").acquire, timeout=1.0)
        waits(server, 1)
        unplug(proxy)
        with pytest.raises(errors.ConnectionLost):
            waiting.result(timeout=20)
        proxy.mend()
        until(client._whole)
        held.release()
        assert other.lock("a").acquire(timeout=20)  # nothing of it is left at the server


def test_a_wait_ends_with_its_time_after_the_link_is_back(far: Far, background: Any) -> None:
    server, proxy = far()
    with dlock.connect(proxy.address) as client, dlock.connect(server.address) as other:
        held = other.lock("a")
        held.acquire()
        waiting = background(client.lock("a").acquire, timeout=2.0)
        waits(server, 1)
        cut(proxy, client)
        assert waiting.result(timeout=20) is False
        held.release()
        assert other.lock("a").acquire(timeout=20)


def test_a_task_that_is_struck_while_the_link_is_down_leaves_nothing(far: Far) -> None:
    server, proxy = far()

    async def program() -> None:
        async with aio.connect(proxy.address) as client, aio.connect(server.address) as other:
            held = other.lock("a")
            await held.acquire()
            struck = asyncio.create_task(client.lock("a").acquire())
            timed = asyncio.create_task(client.lock("a").acquire(timeout=1.0))
            await aio_tools.until(lambda: server.stats()["WAITS"] == 2)
            unplug(proxy)
            await aio_tools.until(lambda: not client._connection.session.attached)
            struck.cancel()
            with pytest.raises(asyncio.CancelledError):
                await struck
            with pytest.raises(errors.ConnectionLost):
                await timed
            proxy.mend()
            await held.release()
            assert await other.lock("a").acquire(timeout=20)

    aio_tools.run(program())


def test_a_future_that_is_cancelled_while_the_link_is_down_leaves_nothing(far: Far) -> None:
    server, proxy = far()
    with dlock.connect(proxy.address) as client, dlock.connect(server.address) as other:
        held = other.lock("a")
        held.acquire()
        waiting = client.lock("a").acquire_future()
        waits(server, 1)
        unplug(proxy)
        until(lambda: not client._session.attached)
        assert waiting.cancel()
        proxy.mend()
        held.release()
        assert other.lock("a").acquire(timeout=20)


@pytest.mark.parametrize("down", [True, False])
def test_a_client_that_is_closed_leaves_nobody_waiting(
    far: Far, background: Any, down: bool
) -> None:
    server, proxy = far()
    with dlock.connect(server.address) as other:
        held = other.lock("a")
        held.acquire()
        client = dlock.connect(proxy.address)
        waiting = background(client.lock("a").acquire)
        posted = client.lock("a").acquire_future()
        waits(server, 2)
        if down:
            unplug(proxy)
            until(lambda: not client._session.attached)
        client.close()
        for one in (waiting, posted):
            with pytest.raises(errors.ClientClosed):
                one.result(timeout=20)
        proxy.mend()


def test_an_asyncio_client_that_is_closed_leaves_nobody_waiting(far: Far) -> None:
    server, proxy = far()

    async def program() -> None:
        async with aio.connect(server.address) as other:
            held = other.lock("a")
            await held.acquire()
            client = await aio.connect(proxy.address)
            waiting = asyncio.create_task(client.lock("a").acquire())
            await aio_tools.until(lambda: server.stats()["WAITS"] == 1)
            unplug(proxy)
            await aio_tools.until(lambda: not client._connection.session.attached)
            await client.close()
            with pytest.raises(errors.ClientClosed):
                await waiting
            proxy.mend()

    aio_tools.run(program())


def test_who_waits_when_the_session_ends_asks_again_in_the_next(
    far: Far, background: Any
) -> None:
    server, proxy = far(ttl_ms=1000)
    with dlock.connect(proxy.address) as client, dlock.connect(server.address) as other:
        held, session = other.lock("a"), client._session
        held.acquire()
        waiting = background(client.lock("a").acquire)
        posted = client.lock("b").acquire_future()
        assert posted.result(timeout=20)
        waits(server, 1)
        unplug(proxy)
        until(lambda: server.stats()["SESSIONS_EXPIRED"] == 1)
        proxy.mend()
        until(lambda: client._session is not session)
        waits(server, 2)
        held.release()
        assert waiting.result(timeout=20)
