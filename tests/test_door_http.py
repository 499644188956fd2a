"""dlock/doors/http.py: what clients get on real connections, also the slow, the half-closed and
the vanished."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")
pytest.importorskip("uvloop", reason="pip install 'dlock[doors]'")

import uvloop
from aio_tools import until

from dlock.doors.http import HttpServer, Request, Response
from dlock.doors.http_parse import Limits

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handle = Callable[[Request], "Response | Awaitable[Response] | None"]
WAIT_S = 20.0
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = []  # what `run` makes, set by `each_loop`


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"],
                autouse=True)
def each_loop(request: pytest.FixtureRequest) -> None:
    LOOPS[:] = [request.param]


def run(program: Coroutine[Any, Any, None]) -> None:
    loop = LOOPS[0]()
    try:
        loop.run_until_complete(asyncio.wait_for(program, 3 * WAIT_S))
    finally:
        loop.close()


def echo(request: Request) -> Response:
    return Response(200, f"{request.method} {request.target} ".encode() + request.body)


@contextlib.asynccontextmanager
async def serving(
    handle: Handle = echo, limits: Limits | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[HttpServer, int]]:
    server = HttpServer(handle, limits=limits, server_name="test")
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(server.protocol, "127.0.0.1", 0, ssl=tls)
    try:
        yield server, listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await server.close()
        assert server.connections == 0


async def opened(port: int, tls: ssl.SSLContext | None = None) -> Streams:
    return await asyncio.open_connection("127.0.0.1", port, ssl=tls)


async def answer(reader: asyncio.StreamReader, head_only: bool = False) -> tuple[int, str, bytes]:
    """Status, head and body of the next answer."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)).decode()
    status = int(head.split()[1])
    length = head.partition("Content-Length: ")[2].partition("\r\n")[0]
    body = b"" if head_only or not length else await reader.readexactly(int(length))
    return status, head, body


async def all_of(port: int, text: bytes, half_close: bool = False) -> bytes:
    """Everything that the server says to these bytes until it closes."""
    reader, writer = await opened(port)
    writer.write(text)
    if half_close:
        writer.write_eof()
    said = await asyncio.wait_for(reader.read(), WAIT_S)
    writer.close()
    return said


class Waiting:
    """A handler whose answers are given by hand."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.gone: list[Request] = []

    def __call__(self, request: Request) -> None:
        self.requests.append(request)
        request.on_gone = lambda: self.gone.append(request)


# ---- Requests and answers ------------------------------------------------------------------------


def test_a_connection_is_kept_and_answers_come_in_order() -> None:
    async def later(request: Request) -> Response:
        await asyncio.sleep(0.01)
        return echo(request)

    def handle(request: Request) -> Any:
        if request.path == "/later":
            return later(request)
        if request.path == "/posted":
            asyncio.get_running_loop().call_soon(request.answer, echo(request))
            return None
        return echo(request)

    async def program() -> None:
        async with serving(handle) as (server, port):
            reader, writer = await opened(port)
            paths = ["/later", "/now", "/posted", "/now", "/later"] * 4
            writer.write(b"".join(b"GET %b HTTP/1.1\r\n\r\n" % one.encode() for one in paths))
            for path in paths:
                status, head, body = await answer(reader)
                assert (status, body) == (200, f"GET {path} ".encode())
                assert "Server: test\r\n" in head
                assert "Connection" not in head
            assert server.counters["connections"] == 1
            assert server.counters["http_requests"] == len(paths)
            writer.close()

    run(program())


def test_head_has_the_length_and_no_body() -> None:
    async def program() -> None:
        async with serving() as (_, port):
            reader, writer = await opened(port)
            writer.write(b"HEAD /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
            assert "Content-Length: 8\r\n" in (await answer(reader, head_only=True))[1]
            assert (await answer(reader))[2] == b"GET /b "
            writer.close()

    run(program())


def test_when_the_server_closes() -> None:
    async def program() -> None:
        async with serving() as (_, port):
            said = await all_of(port, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\nGET /not")
            assert b"Connection: close\r\n" in said
            assert said.count(b"HTTP/1.1 200 OK") == 1
            said = await all_of(port, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
                                      b"GET / HTTP/1.0\r\n\r\n")
            assert said.count(b"Connection: keep-alive\r\n") == 1
            assert said.count(b"Connection: close\r\n") == 1

    run(program())


def test_a_body_is_asked_for_where_the_client_waits_to_be_asked() -> None:
    async def program() -> None:
        async with serving() as (_, port):
            reader, writer = await opened(port)
            writer.write(b"PUT / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            assert (await answer(reader))[0] == 100
            writer.write(b"abc")
            assert (await answer(reader))[2] == b"PUT / abc"
            writer.write(b"PUT / HTTP/1.1\r\nContent-Length: 9999999\r\n"
                         b"Expect: 100-continue\r\n\r\n")
            assert (await answer(reader))[0] == 413
            writer.close()

    run(program())


@pytest.mark.parametrize(("text", "status", "counter"), [
    (b"\x00\x01\x02", 400, "http_malformed"),
    (b"GET /" + b"a" * 70_000, 414, "http_head_too_long"),
    (b"GET / HTTP/1.1\r\nA: " + b"a" * 70_000, 431, "http_head_too_long"),
    (b"PUT / HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n" + b"a" * 2_000_000, 413,
     "http_body_too_long"),
])
def test_what_is_too_much_is_refused_and_counted(text: bytes, status: int, counter: str) -> None:
    async def program() -> None:
        async with serving() as (server, port):
            reader, writer = await opened(port)
            writer.write(b"GET /good HTTP/1.1\r\n\r\n" + text)
            assert (await answer(reader))[2] == b"GET /good "
            said = await answer(reader)
            assert said[0] == status
            assert "Connection: close\r\n" in said[1]
            assert await reader.read() == b""
            assert server.counters[counter] == 1
            writer.close()
            assert b"200 OK" in await all_of(port, b"GET / HTTP/1.0\r\n\r\n")

    run(program())


def test_a_handler_that_fails_costs_its_request_only(caplog: pytest.LogCaptureFixture) -> None:
    async def late(_request: Request) -> Response:
        raise RuntimeError("on purpose")

    def handle(request: Request) -> Any:
        if request.path == "/late":
            return late(request)
        if request.path == "/line":
            return Response(200, headers=(("A", "b\r\nc"),))
        raise RuntimeError("on purpose")

    async def program() -> None:
        async with serving(handle) as (server, port):
            reader, writer = await opened(port)
            writer.write(b"GET /late HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n"
                         b"GET /line HTTP/1.1\r\n\r\n")
            for _ in range(3):
                status, _, body = await answer(reader)
                assert (status, body) == (500, b"500 Internal Server Error\n")
            assert server.counters["http_failed"] == 3
            writer.close()

    run(program())
    assert caplog.text.count("RuntimeError: on purpose") == 2


# ---- Slow clients --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"GET", b"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab"])
def test_slow_requests_are_given_up(text: bytes) -> None:
    async def program() -> None:
        async with serving(limits=Limits(head_s=0.2, body_s=0.2)) as (server, port):
            said = await all_of(port, text)
            assert said.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            assert server.counters["http_slow"] == 1

    run(program())


def test_a_head_that_drips_is_given_up_too() -> None:
    async def program() -> None:
        async with serving(limits=Limits(head_s=0.3)) as (server, port):
            reader, writer = await opened(port)
            writer.write(b"GET / HTTP/1.1\r\nA: ")

            async def drip() -> None:
                while not server.counters["http_slow"]:
                    writer.write(b"a")
                    await asyncio.sleep(0.02)

            await asyncio.wait_for(drip(), WAIT_S)
            assert (await answer(reader))[0] == 408
            writer.close()

    run(program())


def test_idle_connections_end_and_waiting_ones_do_not() -> None:
    async def program() -> None:
        waiting = Waiting()
        async with serving(waiting, Limits(idle_s=0.1, head_s=0.1, body_s=0.1)) as (server, port):
            asks = await opened(port)
            asks[1].write(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: len(waiting.requests) == 1)
            assert await all_of(port, b"") == b""
            assert await all_of(port, b"") == b""
            assert server.counters["http_idle"] == 2
            waiting.requests[0].answer(Response(200, b"late"))
            assert (await answer(asks[0]))[2] == b"late"
            asks[1].close()

    run(program())


def test_who_does_not_read_is_cut_off_and_output_is_bounded() -> None:
    handled = 0

    def big(_request: Request) -> Response:
        nonlocal handled
        handled += 1
        return Response(200, b"x" * 1_000_000)

    async def program() -> None:
        async with serving(big, Limits(write_s=0.3)) as (server, port):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET / HTTP/1.1\r\n\r\n" * 1000)
                await until(lambda: server.counters["http_not_read"] == 1)
            assert handled < 100
            await until(lambda: server.connections == 0)

    run(program())


def test_what_is_sent_ahead_of_an_answer_is_bounded() -> None:
    async def program() -> None:
        waiting = Waiting()
        async with serving(waiting, Limits(ahead_bytes=1000)) as (_, port):
            reader, writer = await opened(port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: len(waiting.requests) == 1)
            total = 0
            with contextlib.suppress(asyncio.TimeoutError):
                while total < 64 << 20:
                    writer.write(b"GET / HTTP/1.1\r\n\r\n" * 5000)
                    total += 90_000
                    await asyncio.wait_for(writer.drain(), 0.5)
            assert total < 64 << 20
            for number in range(3):
                await until(lambda number=number: len(waiting.requests) > number)
                waiting.requests[number].answer(Response(200, b"%d" % number))
                assert (await answer(reader))[2] == b"%d" % number
            writer.transport.abort()

    run(program())


def test_who_waits_behind_more_than_is_read_is_not_believed_to_be_there_for_ever() -> None:
    async def program() -> None:
        waiting = Waiting()
        limits = Limits(ahead_bytes=1000, ahead_s=0.2)
        async with serving(waiting, limits) as (server, port):
            _, writer = await opened(port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
            await until(lambda: len(waiting.gone) == 1)
            assert server.counters["http_too_far_ahead"] == 1
            await until(lambda: server.connections == 0)
            writer.close()

    run(program())


# ---- Clients that go -----------------------------------------------------------------------------


def test_a_client_that_shuts_its_side_gets_what_can_be_answered() -> None:
    def brief(request: Request) -> None:
        request.brief = True
        asyncio.get_running_loop().call_later(0.05, request.answer, echo(request))

    async def program() -> None:
        async with serving(brief) as (server, port):
            said = await all_of(port, b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n", True)
            assert said.count(b"200 OK") == 2
            said = await all_of(port, b"GET /a HTTP/1.1\r\n\r\nGET /b HT", True)
            assert said.count(b"200 OK") == 1
            assert said.count(b"HTTP/1.1 400 Bad Request") == 1
            assert server.counters["http_truncated"] == 1
            assert server.counters["http_gone"] == 0

    run(program())


@pytest.mark.parametrize("how", ["shut", "close", "reset"])
def test_a_client_that_hangs_up_while_it_waits_is_told_to_the_handler(how: str) -> None:
    async def program() -> None:
        waiting = Waiting()
        async with serving(waiting) as (server, port):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: len(waiting.requests) == 1)
            assert not waiting.requests[0].gone
            if how == "shut":
                client.shutdown(socket.SHUT_WR)
            else:
                if how == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            await until(lambda: waiting.gone == waiting.requests)
            assert waiting.requests[0].gone
            assert server.counters["http_gone"] == 1
            waiting.requests[0].answer(Response(200, b"too late"))
            await until(lambda: server.connections == 0)
            client.close()

    run(program())


def test_the_task_of_a_client_that_hangs_up_is_cancelled() -> None:
    async def program() -> None:
        ended: list[bool] = []

        async def wait(_request: Request) -> Response:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append(True)
                raise
            return Response(200)

        async with serving(wait) as (server, port):
            _, writer = await opened(port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: server.counters["http_requests"] == 1)
            writer.close()
            await until(lambda: ended == [True])

    run(program())


def test_the_end_of_the_server_waits_for_answers_that_come() -> None:
    async def program() -> None:
        waiting = Waiting()
        async with serving(waiting) as (server, port):
            idle = await opened(port)
            asks = await opened(port)
            asks[1].write(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: len(waiting.requests) == 1)
            closing = asyncio.create_task(server.close(WAIT_S))
            assert await idle[0].read() == b""
            waiting.requests[0].answer(Response(200, b"last"))
            assert (await answer(asks[0]))[2] == b"last"
            await closing
            for _, writer in (idle, asks):
                writer.close()

    run(program())


# ---- Anything ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_server_goes_on_whatever_it_is_sent(seed: int) -> None:
    random_ = random.Random(seed)
    words = [b"GET / HTTP/1.1\r\n", b"\r\n", b"PUT /x HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd",
             b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n", b"Connection: close\r\n",
             b"a" * 9, b"\xff"]

    async def one(port: int) -> None:
        reader, writer = await opened(port)
        with contextlib.suppress(ConnectionError):
            for _ in range(random_.randrange(1, 9)):
                writer.write(random_.choice(words) + random_.randbytes(random_.randrange(3)))
                await asyncio.sleep(0)
            if random_.random() < 0.7:
                writer.write_eof()
                await asyncio.wait_for(reader.read(), WAIT_S)
        writer.transport.abort()

    async def program() -> None:
        async with serving(limits=Limits(linger_s=0.2)) as (server, port):
            for _ in range(20):
                await asyncio.gather(*(one(port) for _ in range(10)))
            assert b"200 OK" in await all_of(port, b"GET / HTTP/1.0\r\n\r\n")
            await until(lambda: server.connections == 0)

    run(program())


def test_the_same_over_tls(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    serving_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving_tls.load_cert_chain(certificate, key)
    asking = ssl.create_default_context(cafile=certificate)
    asking.check_hostname = False

    async def program() -> None:
        async with serving(tls=serving_tls) as (server, port):
            reader, writer = await opened(port, asking)
            writer.write(b"GET /a HTTP/1.1\r\n\r\nPUT /b HTTP/1.1\r\nContent-Length: 100000\r\n\r\n"
                         + b"x" * 100_000)
            assert (await answer(reader))[2] == b"GET /a "
            assert len((await answer(reader))[2]) == 100_007
            writer.write(b"nonsense\r\n\r\n")
            assert (await answer(reader))[0] == 400
            assert await reader.read() == b""
            writer.close()
            plain_reader, plain_writer = await opened(port)
            plain_writer.write(b"GET / HTTP/1.1\r\n\r\n")
            assert b"200" not in await asyncio.wait_for(plain_reader.read(), WAIT_S)
            plain_writer.close()
            await until(lambda: server.connections == 0)

    run(program())


def self_signed(folder: Path) -> tuple[str, str]:
    certificate, key = str(folder / "certificate.crt"), str(folder / "privateKey.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out",
         certificate, "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )
    return certificate, key
