"""The life of an asyncio client: broken links, sessions that end, loops, threads, forks, exits."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from aio_tools import connected, run, turns, until
from proxy import Proxy

from dlock import aio
from dlock.admin import Admin
from dlock.aio._drive import Driver
from dlock.errors import (
    Broken,
    ClientClosed,
    ConnectError,
    ConnectionLost,
    ForkedError,
    LockLost,
    WrongLoop,
)
from dlock.server import Server, ServerConfig


@pytest.fixture
def server() -> Iterator[Server]:
    """A server whose sessions outlive what waits for the end of one that has left."""
    one = Server(ServerConfig(port=0, session_ttl_ms=60_000))
    yield one
    one.stop()


@pytest.fixture
def short_lived() -> Iterator[Server]:
    """A server whose sessions end after 3 s."""
    one = Server(ServerConfig(port=0, session_ttl_ms=3000))
    yield one
    one.stop()


@pytest.fixture
def proxied(server: Server) -> Iterator[Proxy]:
    one = Proxy(server)
    yield one
    one.close()


@pytest.fixture
def short_proxied(short_lived: Server) -> Iterator[Proxy]:
    one = Proxy(short_lived)
    yield one
    one.close()


# ---- Links that break ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["both", "control", "data"])
def test_holds_and_waits_survive_a_cut(server: Server, proxied: Proxy, which: str) -> None:
    async def program() -> None:
        async with aio.connect(proxied.address) as client, connected(server) as other:
            session = client._connection.session
            lock = client.lock("held")
            await lock.acquire()
            token = lock.token
            far = other.lock("far")
            await far.acquire()
            waiting = asyncio.create_task(client.lock("far").acquire())
            await until(lambda: client._connection.collector.waits == 1)
            accepted = proxied.accepted
            ports = {"both": (), "control": (server.port,), "data": (server.data_port,)}
            proxied.cut(*ports[which])
            await until(lambda: proxied.accepted >= accepted + 2 and client._connection.whole)
            assert client._connection.session is session
            assert lock.held
            assert lock.token == token
            assert not await other.lock("held").acquire(blocking=False)
            assert not waiting.done()
            await far.release()
            assert await waiting, "it asked again"
            await lock.release()

    run(program())


def test_a_release_without_a_link_is_made_later(server: Server, proxied: Proxy) -> None:
    async def program() -> None:
        async with aio.connect(proxied.address) as client, connected(server) as other:
            lock = client.lock("owed")
            await lock.acquire()
            proxied.cut()
            await lock.release()  # the session was good until now
            assert await other.lock("owed").acquire(timeout=20)

    run(program())


def test_what_is_asked_meanwhile_waits_for_the_link(server: Server, proxied: Proxy) -> None:
    async def program() -> None:
        async with aio.connect(proxied.address) as client:
            proxied.cut()
            locks = [client.lock(f"new {number}") for number in range(5)]
            assert all(await asyncio.gather(*(lock.acquire(timeout=20) for lock in locks)))
            assert (await client.stats())["locks"] == 5

    run(program())


def test_no_server_in_the_time_of_the_call() -> None:
    server = Server(ServerConfig(port=0))

    async def program() -> None:
        async with aio.connect(server.address) as client:
            lock = client.lock("known")
            async with lock:
                pass
            server.stop()
            for one in (lock, client.lock("new")):
                with pytest.raises(ConnectionLost, match=server.address):
                    await one.acquire(timeout=0.2)
            waiting = asyncio.create_task(lock.acquire())
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    run(program())


# ---- Sessions that end ---------------------------------------------------------------------------


def test_a_session_that_ended_loses_its_holds(short_lived: Server, short_proxied: Proxy) -> None:
    async def program() -> None:
        told: list[tuple[str, object]] = []
        async with aio.connect(short_proxied.address) as client, connected(short_lived) as other:
            loop = asyncio.get_running_loop()

            def lost(lock: aio.Lock) -> None:
                assert asyncio.get_running_loop() is loop
                told.append(("lost", lock))

            lock = client.lock("gone", on_lost=lost,
                               on_suspended=lambda lock: told.append(("suspended", lock)))
            unwatched = client.lock("gone too")
            await lock.acquire()
            await unwatched.acquire()
            short_proxied.silence()
            await until(lambda: not lock.held)
            assert lock.remaining == 0.0
            assert await other.lock("gone").acquire(timeout=20)
            short_proxied.mend()
            await lock.lost.wait()
            assert told == [("suspended", lock), ("lost", lock)]
            with pytest.raises(LockLost, match="gone"):
                await lock.release()
            with pytest.raises(LockLost):
                unwatched.ensure_held()
            with pytest.raises(LockLost):
                await unwatched.release()
            assert await client.lock("new").acquire(timeout=20), "there is another session"
            assert not lock.held

    run(program())


def test_a_broken_block_says_more_than_a_lost_lock(short_lived: Server) -> None:
    async def program() -> None:
        async with connected(short_lived) as client:
            async def fail() -> None:
                async with client.lock("x"):
                    client._connection.session_removed(client._connection.session)
                    assert await client.lock("y").acquire(timeout=20)
                    raise LookupError

            with pytest.raises(LookupError):
                await fail()

    run(program())


# ---- Opening -------------------------------------------------------------------------------------


def test_nobody_there() -> None:
    with pytest.raises(ConnectError, match=r"127\.0\.0\.1:1"):
        run(aio.connect("127.0.0.1:1", timeout=0.2)._open())
    with pytest.raises(ValueError, match="no HOST:PORT"):
        aio.connect("a b")


@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.parametrize("after_turns", [*range(12), 50])
def test_a_cancelled_connect_leaves_no_session(server: Server, after_turns: int) -> None:
    async def program() -> None:
        task = asyncio.create_task(aio.connect(server.address)._open())
        await turns(after_turns)
        task.cancel()
        outcome, = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, aio.Client):
            await outcome.close()
        async with connected(server) as client:
            while (await client.stats())["clients"] > 1:
                await asyncio.sleep(0.01)

    run(program())
    gc.collect()


def test_awaited_or_entered(server: Server) -> None:
    async def program() -> None:
        client = await aio.connect(server.address, name="mine")
        assert "connected" in repr(client)
        assert client.address == server.address
        assert client.session_left > 0
        async with client as same:
            assert same is client
        assert client.closed
        await client.close()
        for use in (client.lock("x").acquire(), client.stats()):
            with pytest.raises(ClientClosed):
                await use

    run(program())


def test_closing_ends_what_waits(server: Server) -> None:
    async def program() -> None:
        client = await aio.connect(server.address)
        lock = client.lock("x")
        await lock.acquire()
        waiting = [asyncio.create_task(client.lock("x").acquire()) for _ in range(3)]
        await until(lambda: client._connection.collector.waits == 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            await client.close()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(one) for one in outcomes} == {ClientClosed}
        async with connected(server) as other:
            assert await other.lock("x").acquire(blocking=False), "free at once"

    run(program())


def test_closing_ends_the_belief_before_the_hold(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server is about to free, nobody in the program believes to hold any more."""
    async def program() -> None:
        client = await aio.connect(server.address)
        lock = client.lock("x")
        await lock.acquire()
        beliefs, real = [], Driver.exchange

        async def exchange(driver: Driver, *arguments: Any) -> list[Any]:
            beliefs.append(lock.held)
            return await real(driver, *arguments)

        monkeypatch.setattr(Driver, "exchange", exchange)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            await client.close()
        assert beliefs == [False]

    run(program())


# ---- Loops, threads, forks -----------------------------------------------------------------------


def test_another_loop_or_thread(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            lock = client.lock("x")
            caught: list[BaseException] = []

            async def use() -> None:
                for attempt in (lock.acquire, lock.release, client.stats, client.close):
                    try:
                        await attempt()
                    except WrongLoop as problem:
                        caught.append(problem)

            thread = threading.Thread(target=lambda: asyncio.run(use()))
            thread.start()
            thread.join()
            assert ["in another event loop" in str(one) for one in caught] == [True] * 4
            outside = threading.Thread(target=lambda: caught.append(_raised(lock.release)))
            outside.start()
            outside.join()
            assert "outside of any event loop" in str(caught[-1])
            async with lock:
                pass

    run(program())


def _raised(call: object) -> BaseException:
    try:
        call()  # type: ignore[operator]
    except BaseException as problem:
        return problem
    raise AssertionError


def test_the_child_of_a_fork_may_not_use_it_and_harms_nothing(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            lock = client.lock("x")
            await lock.acquire()
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    for attempt in (lock.release, lambda: lock.acquire().send(None),
                                    lambda: client.stats().send(None)):
                        if not isinstance(_raised(attempt), ForkedError):
                            os._exit(2)
                    client.close().close()
                    del lock, attempt
                    gc.collect()
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert lock.held
            async with connected(server) as other:
                assert not await other.lock("x").acquire(blocking=False)
            await lock.release()

    run(program())


# ---- Ends that nobody prepared -------------------------------------------------------------------


def _drop(last: list[Any]) -> None:
    last.clear()
    gc.collect()


def test_a_dropped_client_warns_and_leaves(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as other:
            client = await aio.connect(server.address)
            await client.lock("x").acquire()
            clients = [client]
            del client
            with pytest.warns(ResourceWarning, match="unclosed"):
                _drop(clients)
            assert await other.lock("x").acquire(timeout=20), "free at once"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the lock, which was dropped held
        run(program())


def test_a_dropped_lock_warns_and_is_given_back(server: Server) -> None:
    async def program() -> None:
        async with connected(server) as client:
            lock = client.lock("x")
            await lock.acquire()
            locks = [lock]
            del lock
            with pytest.warns(ResourceWarning, match="dropped while it was held"):
                _drop(locks)
            assert await client.lock("x").acquire(timeout=20)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        run(program())


PROGRAMS = {
    "the loop is closed under an open client": """
        loop = asyncio.new_event_loop()
        client = loop.run_until_complete(connect())
        lock = client.lock("x")
        loop.run_until_complete(lock.acquire())
        loop.close()
        del lock, client
        gc.collect()
    """,
    "asyncio.run ends under an open client, with tasks that wait": """
        async def main():
            global client, lock
            client = await connect()
            lock = client.lock("x")
            await lock.acquire()
            for _ in range(3):
                asyncio.create_task(client.lock("x").acquire())
            await asyncio.sleep(0.05)
        asyncio.run(main())
    """,
    "the interpreter ends inside of the loop": """
        async def main():
            global client, lock
            client = await connect()
            lock = client.lock("x")
            await lock.acquire()
            sys.exit(0)
        asyncio.run(main())
    """,
    "a loop is thrown away with tasks that wait": """
        loop = asyncio.new_event_loop()
        client = loop.run_until_complete(connect())
        lock = client.lock("x")
        loop.run_until_complete(lock.acquire())
        async def want():
            await client.lock("x").acquire()
        tasks = [loop.create_task(want()) for _ in range(3)]
        for task in tasks:
            task._log_destroy_pending = False  # the program's own fault
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()
        del loop, tasks, task
        gc.collect()
    """,
    "Ctrl-C": """
        async def main():
            async with dlock.aio.connect(sys.argv[1]) as client:
                async with client.lock("x"):
                    tasks = [asyncio.create_task(client.lock("x").acquire()) for _ in range(3)]
                    await asyncio.sleep(0.05)
                    signal.raise_signal(signal.SIGINT)
                    await asyncio.gather(*tasks)
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            pass
    """,
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_end_of_a_program(server: Server, program: str) -> None:
    """It ends by itself, says nothing on standard error but ResourceWarning, and what it held is
    free at once."""
    text = "import asyncio, gc, signal, sys, textwrap\nimport dlock.aio\n"
    text += "async def connect():\n    return await dlock.aio.connect(sys.argv[1])\n"
    text += "exec(textwrap.dedent(sys.argv[2]))\n"
    ended = subprocess.run(
        [sys.executable, "-W", "default", "-c", text, server.address, PROGRAMS[program]],
        capture_output=True, text=True, timeout=60, check=False)
    odd = [line for line in ended.stderr.splitlines()
           if "ResourceWarning" not in line and not line.startswith(" ")]
    assert (ended.returncode, odd) == (0, []), ended.stderr

    async def look() -> None:
        async with connected(server) as client:
            assert await client.lock("x").acquire(timeout=20)

    run(look())


# ---- Operators -----------------------------------------------------------------------------------


def test_a_lock_that_an_operator_breaks(server: Server) -> None:
    """Told by the event, and by the class of what the release raises, whichever comes first."""

    async def program() -> None:
        async with connected(server) as client:
            told, quick = client.lock("told"), client.lock("quick")
            assert await told.acquire()
            assert await quick.acquire()
            with Admin(server.address) as admin:
                admin.break_lock("told")
                await asyncio.wait_for(told.lost.wait(), 20)
                with pytest.raises(Broken):
                    await told.release()
                admin.break_lock("quick", now=True)
                with pytest.raises(LockLost):
                    await quick.release()
                assert not admin.show("told").holders

    run(program())
