"""The REST gateway of the LDLM door in the loop of the test, where what takes time can be held up:
one request of a session at a time, ends while something is under way, lost locks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")

from aio_tools import connected, run, turns, until
from ldlm_service_tools import Paper, free, granted, service_of
from lock_tools import Service, serving

from dlock.doors import listen
from dlock.doors.http import HttpServer
from dlock.doors.ldlm.rest import Gateway
from dlock.doors.ldlm.service import LdlmService, Rules


@pytest.fixture(scope="module")
def server() -> Iterator[Service]:
    with serving() as started:
        yield started


class House:
    """A gateway that listens. What it writes down goes to `paper`."""

    def __init__(self, service: LdlmService, gateway: Gateway, paper: Paper, port: int) -> None:
        self.service = service
        self.gateway = gateway
        self.paper = paper
        self.port = port

    async def link(self, cookie: str = "") -> Link:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        return Link(reader, writer, cookie)

    async def client(self) -> Link:
        """With a session of its own."""
        link = await self.link()
        status, said = await link.ask("POST", "/session")
        assert status == 201
        link.cookie = said["session_id"]
        return link


class Link:
    """One connection of a client."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cookie: str
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.cookie = cookie

    def send(self, method: str, path: str, body: bytes = b"") -> None:
        head = (f"{method} {path} HTTP/1.1\r\nHost: a\r\nCookie: ldlm-session={self.cookie}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n")
        if not self.cookie:
            head = head.replace("Cookie: ldlm-session=\r\n", "")
        self.writer.write(head.encode() + body)

    async def receive(self) -> tuple[int, Any]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        body = await self.reader.readexactly(length)
        return int(head.split()[1]), json.loads(body) if body.startswith((b"{", b"[")) else body

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        self.send(method, path, body)
        return await self.receive()

    async def lock(self, name: str) -> Any:
        status, said = await self.ask("POST", "/v1/lock", json.dumps({"name": name}).encode())
        assert status == 200
        return said

    def leave(self) -> None:
        """At once, so that the other side is told that nobody reads any more."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def house(server: Service, *, durable: bool = True) -> AsyncIterator[House]:
    async with connected(server) as client:
        paper = Paper()
        service = service_of(client, Rules(), records=paper if durable else None)
        gateway = Gateway(service, idle_s=600, password="", counters=service.counters)
        http = HttpServer(gateway.handle, counters=service.counters)
        bound = listen.tcp_socket("127.0.0.1", 0)
        port = bound.getsockname()[1]
        listener = await listen.accept(bound, http.protocol)
        try:
            yield House(service, gateway, paper, port)
        finally:
            paper.gate.set()
            listener.close()
            await service.stop()
            await http.close()
            gateway.close()


def test_a_request_waits_for_the_one_before_it(server: Service) -> None:
    async def program() -> None:
        async with house(server) as place:
            one = await place.client()
            two = await place.link(one.cookie)
            other = await place.client()
            place.paper.gate.clear()
            one.send("POST", "/v1/lock", b'{"name": "first"}')
            await until(lambda: place.paper.calls == 1)
            two.send("POST", "/v1/lock", b'{"name": "second"}')
            two.send("POST", "/v1/unlock", b'{"name": "second", "key": "x"}')
            assert (await other.ask("POST", "/v1/unlock", b'{"name": "q"}'))[0] == 200
            rest = place.gateway._sessions[one.cookie]
            await until(lambda: len(rest.turns) == 1)  # the second waits in its connection
            assert [name for name, _, _ in place.service.list()] == ["first"]
            place.paper.gate.set()
            assert (await one.receive())[1]["locked"]
            assert (await two.receive())[1]["locked"]
            assert (await two.receive())[1]["error"]["code"] == "InvalidLockKey"
            place.gateway.close()

    run(program())


def test_the_end_of_a_session_waits_for_what_is_under_way(server: Service) -> None:
    async def program() -> None:
        async with house(server) as place:
            one = await place.client()
            two = await place.link(one.cookie)
            late = await place.link(one.cookie)
            place.paper.gate.clear()
            one.send("POST", "/v1/lock", b'{"name": "e"}')
            await until(lambda: place.paper.calls == 1)
            two.send("DELETE", "/session")
            await until(lambda: not place.gateway._sessions)
            assert (await late.ask("POST", "/v1/lock"))[0] == 401
            place.paper.gate.set()
            assert (await one.receive())[1]["locked"]
            assert await two.receive() == (200, {"session_id": ""})
            assert place.service.list() == []
            await until(lambda: place.paper.written == {})

    run(program())


def test_whose_connection_breaks_before_the_answer_does_not_get_the_lock(
    server: Service,
) -> None:
    async def program() -> None:
        async with house(server) as place:
            one = await place.client()
            waits = await place.link(one.cookie)
            place.paper.gate.clear()
            one.send("POST", "/v1/lock", b'{"name": "h"}')
            await until(lambda: place.paper.calls == 1)
            waits.send("POST", "/v1/lock", b'{"name": "never"}')
            (rest,) = place.gateway._sessions.values()
            await until(lambda: len(rest.turns) == 1)
            waits.leave()
            one.leave()
            await until(lambda: place.service.counters["http_gone"] == 2)
            place.paper.gate.set()
            await until(lambda: not place.service.list() and not place.paper.written)
            two = await place.client()
            for name in ("h", "never"):
                assert (await two.lock(name))["locked"]
            assert place.paper.calls == 4  # "never" was not asked for
            place.gateway.close()

    run(program())


def test_a_session_that_is_over_by_the_clock_is_over(server: Service) -> None:
    async def program() -> None:
        async with house(server, durable=False) as place:
            one = await place.client()
            assert (await one.lock("c"))["locked"]
            (rest,) = place.gateway._sessions.values()
            assert rest.timer is not None
            rest.timer.cancel()  # as if the loop were late
            rest.deadline_s = place.service.loop.time()
            assert (await one.ask("POST", "/v1/lock"))[0] == 401
            assert place.service.list() == []
            assert place.service.counters["rest_sessions_expired"] == 1

    run(program())


def test_a_session_that_loses_a_lock_is_gone(server: Service) -> None:
    async def program() -> None:
        async with house(server, durable=False) as place:
            one = await place.client()
            for name in ("lost", "with it"):
                assert (await one.lock(name))["locked"]
            server.admin.break_lock("ldlm:lost")
            await until(lambda: not place.gateway._sessions)
            assert (await one.ask("POST", "/v1/lock"))[0] == 401
            assert place.service.list() == []
            assert place.service.counters["lost_holds"] == 1

    run(program())


def test_a_door_that_stops_says_so(server: Service) -> None:
    async def program() -> None:
        async with house(server) as place:
            one = await place.client()
            place.paper.gate.clear()
            one.send("POST", "/v1/lock", b'{"name": "s"}')
            await until(lambda: place.paper.calls == 1)
            stopping = asyncio.ensure_future(place.service.stop())
            await turns()
            place.paper.gate.set()
            status, said = await one.receive()
            assert (status, said["code"]) == (503, 14)
            await stopping

    run(program())


def test_whatever_a_body_says_is_answered(server: Service) -> None:
    """Bodies that are nearly right, from a seed; the service goes on."""

    def spoiled(chance: random.Random) -> bytes:
        said = {chance.choice(["name", "size", "lock_timeout_seconds", "lockTimeoutSeconds", "key",
                               "x"]): chance.choice(["f", 1, -1, 2**31, 1.5, None, True, [], {},
                                                     "7", "\ud800", "é\x00"])
                for _ in range(chance.randint(0, 3))}
        body = bytearray(json.dumps(said).encode())
        for _ in range(chance.choice([0, 0, 1, 3])):
            at = chance.randrange(len(body) + 1)
            body[at:at + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 3))
        return bytes(body)

    async def program() -> None:
        async with house(server, durable=False) as place:
            chance = random.Random(2)
            one = await place.client()
            for _ in range(3000):
                path = chance.choice(["/v1/lock", "/v1/unlock", "/v1/renew"])
                status, said = await one.ask("POST", path, spoiled(chance))
                assert status in (200, 400)
                assert isinstance(said, dict)
                assert ("name" in said) == (status == 200)
            assert (await one.lock("after all"))["locked"]
            session = place.service.open("other")
            place.gateway.close()
            await free(session, "after all")
            granted(await session.try_lock("after all", None, None), "after all")
            session.close()

    run(program())
