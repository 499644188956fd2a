"""The asyncio control link: answers by id, a cancelled task takes nothing with it, what is odd
closes it for all."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from control_client import TIMEOUT

from dlock.aio import link as aio_link
from dlock.aio.link import AsyncLink
from dlock.control import messages as m
from dlock.control.codec import Decoder, encode
from dlock.control.link import LinkError
from dlock.server import Server, ServerConfig, listen
from dlock.types import DlockStatus as S

T = TypeVar("T")


def run(program: Coroutine[Any, Any, T]) -> T:
    async def limited() -> T:
        return await asyncio.wait_for(program, TIMEOUT)

    return asyncio.run(limited())


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0))
    yield one
    one.stop()


class Peer:
    """The server's end of one connection, in the same loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()

    async def take(self) -> tuple[int, m.Message]:
        while (taken := self._decoder.take()) is None:
            data = await self._reader.read(65536)
            if not data:
                raise ConnectionError("closed")
            self._decoder.feed(data)
        return taken

    def send(self, request_id: int, message: m.Message) -> None:
        self.send_bytes(encode(request_id, message))

    def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    async def closed(self) -> bool:
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65536):
                pass
        return True


Script = Callable[[Peer], Awaitable[None]]


@contextlib.asynccontextmanager
async def scripted(script: Script) -> Any:
    """A link to a peer that does what the script says, and then closes."""
    played: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(Peer(reader, writer))
        finally:
            writer.close()
            played.set_result(None)

    listening = await asyncio.start_server(play, "127.0.0.1", 0)
    host, port = listening.sockets[0].getsockname()
    link = await AsyncLink.connect(host, port, TIMEOUT)
    try:
        yield link
    finally:
        link.close()
        await played
        listening.close()


def test_many_tasks_share_a_link(server: Server) -> None:
    async def program() -> None:
        link = await AsyncLink.connect(server.host, server.port, TIMEOUT)
        assert (await link.request(m.ClientInit(1, 1, {}), TIMEOUT)).status is S.SUCCESS

        async def work(number: int) -> list[m.LockResult]:
            found = []
            for _ in range(20):
                answer = await link.request(
                    m.GetLocks((m.LockSpec(b"%d" % number, 0),)), TIMEOUT)
                found.append(answer.results[0])
            return found

        got = await asyncio.gather(*map(work, range(50)))
        # Each task's own lock: first SUCCESS, then ERROR with the same id.
        assert [[one.status for one in results] for results in got] == [
            [S.SUCCESS] + [S.ERROR] * 19] * 50
        assert len({one.lock_id for results in got for one in results}) == 50
        assert link.peer == "127.0.0.1"
        link.close()
        assert link.closed
        with pytest.raises(LinkError, match="closed"):
            await link.request(m.Heartbeat(), TIMEOUT)

    run(program())


def test_several_requests_travel_together() -> None:
    async def backwards(peer: Peer) -> None:
        taken = [await peer.take() for _ in range(3)]
        assert [type(message) for _, message in taken] == [m.Heartbeat, m.Stats, m.Heartbeat]
        (first, _), (second, _), (third, _) = taken
        peer.send(third, m.Status(S.ERROR))
        peer.send(second, m.StatsReply({"clients": 7}))
        peer.send(first, m.Status(S.SUCCESS))
        await peer.closed()

    async def program() -> None:
        async with scripted(backwards) as link:
            replies = await link.exchange((m.Heartbeat(), m.Stats(), m.Heartbeat()), TIMEOUT)
            assert replies == [
                m.Status(S.SUCCESS), m.StatsReply({"clients": 7}), m.Status(S.ERROR)]

    run(program())


def test_a_cancelled_task_leaves_the_link_to_the_others() -> None:
    async def program() -> None:
        asked, may_answer = asyncio.Event(), asyncio.Event()

        async def slow(peer: Peer) -> None:
            first, _ = await peer.take()
            second, _ = await peer.take()
            asked.set()
            await may_answer.wait()
            peer.send(first, m.Status(S.ERROR))
            peer.send(second, m.Status(S.SUCCESS))
            third, _ = await peer.take()
            peer.send(third, m.Status(S.NOT_READY))
            await peer.closed()

        async with scripted(slow) as link:
            given_up = asyncio.create_task(link.request(m.Heartbeat(), TIMEOUT))
            kept = asyncio.create_task(link.request(m.Heartbeat(), TIMEOUT))
            await asked.wait()
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            may_answer.set()
            assert (await kept).status is S.SUCCESS
            assert (await link.request(m.Heartbeat(), TIMEOUT)).status is S.NOT_READY
            assert not link._unanswered, "the answer that nobody wanted was taken off"

    run(program())


def test_nobody_there() -> None:
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(LinkError, match=f"no server answers at 127.0.0.1:{port}"):
        run(AsyncLink.connect("127.0.0.1", port, 5))
    with pytest.raises(LinkError, match="no server answers"):
        run(AsyncLink.connect("x" * 300, 1, 5))


def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose backlog is full: a further connection stays under way."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting = []
    for _ in range(4):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(listener.getsockname())
        waiting.append(one)
    return listener, waiting


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_connecting_ends_with_its_time_or_its_task() -> None:
    listener, waiting = full_listener()
    host, port = listener.getsockname()

    async def program() -> None:
        with pytest.raises(LinkError, match=r"no connection within 0\.05 s"):
            await AsyncLink.connect(host, port, 0.05)
        task = asyncio.create_task(AsyncLink.connect(host, port, TIMEOUT))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(program())
    gc.collect()
    for one in (listener, *waiting):
        one.close()


@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.parametrize("turns", range(8))
def test_a_cancelled_connect_leaves_no_connection(server: Server, turns: int) -> None:
    """Cancelled after any number of turns of the loop, also in the one that brings it."""

    async def program() -> None:
        task = asyncio.create_task(AsyncLink.connect(server.host, server.port, TIMEOUT))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            (await task).close()
        for _ in range(8):
            await asyncio.sleep(0)

    run(program())
    gc.collect()


async def late(peer: Peer) -> None:
    request_id, _ = await peer.take()
    await asyncio.sleep(0.2)
    peer.send(request_id, m.Status(S.SUCCESS))
    await peer.closed()


async def silent_end(peer: Peer) -> None:
    await peer.take()


async def half(peer: Peer) -> None:
    request_id, _ = await peer.take()
    peer.send_bytes(encode(request_id, m.Status(S.SUCCESS))[:-1])


async def rubbish(peer: Peer) -> None:
    await peer.take()
    peer.send_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await peer.closed()


async def other_id(peer: Peer) -> None:
    request_id, _ = await peer.take()
    peer.send(request_id + 100, m.Status(S.SUCCESS))
    await peer.closed()


async def other_type(peer: Peer) -> None:
    request_id, _ = await peer.take()
    peer.send(request_id, m.Statuses(S.SUCCESS))
    await peer.closed()


async def a_request(peer: Peer) -> None:
    request_id, _ = await peer.take()
    peer.send(request_id, m.Heartbeat())
    await peer.closed()


@pytest.mark.parametrize(
    "script", [late, silent_end, half, rubbish, other_id, other_type, a_request])
def test_whatever_goes_wrong_closes_the_link_for_all(script: Script) -> None:
    async def program() -> None:
        async with scripted(script) as link:
            ended = []
            link.on_end = lambda: ended.append(True)
            limits = (0.1 if script is late else TIMEOUT, TIMEOUT)
            outcomes = await asyncio.gather(
                *(link.request(m.Heartbeat(), limit) for limit in limits), return_exceptions=True)
            assert [type(one) for one in outcomes] == [LinkError, LinkError]
            assert link.closed
            assert ended == [True]
            with pytest.raises(LinkError):
                await link.request(m.Heartbeat(), TIMEOUT)

    run(program())


def test_an_answer_twice_closes_the_link() -> None:
    async def twice(peer: Peer) -> None:
        request_id, _ = await peer.take()
        peer.send_bytes(encode(request_id, m.Status(S.SUCCESS)) * 2)
        await peer.closed()

    async def program() -> None:
        async with scripted(twice) as link:
            assert (await link.request(m.Heartbeat(), TIMEOUT)).status is S.SUCCESS
            assert link.closed

    run(program())


def test_a_server_that_owes_too_many_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio_link, "UNANSWERED_MAX", 3)

    async def silent(peer: Peer) -> None:
        await peer.closed()

    async def program() -> None:
        async with scripted(silent) as link:
            for _ in range(4):
                task = asyncio.create_task(link.request(m.Heartbeat(), TIMEOUT))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            with pytest.raises(LinkError, match="answers no longer"):
                await link.request(m.Heartbeat(), TIMEOUT)
            assert link.closed

    run(program())


def test_a_message_that_cannot_be_sent_leaves_the_link_as_it_was(server: Server) -> None:
    async def program() -> None:
        link = await AsyncLink.connect(server.host, server.port, TIMEOUT)
        with pytest.raises(m.ProtocolError):
            await link.exchange((m.Stats(), m.ObjectGet(b"x" * 600, 0)), TIMEOUT)
        assert not link._unanswered
        assert (await link.request(m.Stats(), TIMEOUT)).stats
        link.close()

    run(program())


def test_close_wakes_who_waits() -> None:
    async def silent(peer: Peer) -> None:
        await peer.closed()

    async def program() -> None:
        async with scripted(silent) as link:
            waiting = asyncio.create_task(link.request(m.Heartbeat(), TIMEOUT))
            await asyncio.sleep(0)
            link.close()
            with pytest.raises(LinkError, match="the link is closed"):
                await waiting

    run(program())


def test_a_forked_child_touches_nothing(server: Server) -> None:
    async def program() -> None:
        link = await AsyncLink.connect(server.host, server.port, TIMEOUT)
        child = os.fork()
        if child == 0:
            try:
                link.exchange((m.Stats(),), TIMEOUT).send(None)
            except LinkError as problem:
                link.close()
                os._exit(0 if "parent" in str(problem) else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (await link.request(m.Stats(), TIMEOUT)).stats
        link.close()

    run(program())
