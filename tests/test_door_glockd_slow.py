"""The clocks of the glockd door's connections, in this process and made short: clients that take no
replies, and websockets that never become one."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
from aio_tools import run, until
from glockd_tools import LIMIT_S

from dlock.doors.glockd import connection
from dlock.doors.glockd.connection import LineTalk, Talk, WebsocketTalk
from dlock.doors.glockd.door import tcp_peer
from dlock.doors.glockd.service import Service
from dlock.doors.names import Names


class Served:
    """Listens for one kind of connection. No command here needs a server of dlock."""

    def __init__(self, kind: type[Talk]) -> None:
        self.counters: Counter[str] = Counter()
        self.talks: set[Talk] = set()
        self.service = Service(cast(Any, None), Names("glockd"), self.counters,
                               logging.getLogger("test"))
        self._make: Callable[[], Talk] = lambda: kind(self.service, tcp_peer, self.talks)

    async def __aenter__(self) -> Served:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._make, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_problem: object) -> None:
        self._server.close()
        for talk in list(self.talks):
            talk.hang_up()
        await until(lambda: not self.talks, LIMIT_S)

    def connect(self) -> socket.socket:
        """A client that does nothing by itself."""
        made = socket.create_connection(self._server.sockets[0].getsockname(), LIMIT_S)
        made.setblocking(False)
        return made


async def flood(client: socket.socket, command: bytes) -> None:
    """Says this until nothing more is taken, and goes on to say it."""
    for _ in range(50):
        try:
            while True:
                client.send(command * 1000)
        except BlockingIOError:
            await asyncio.sleep(0.01)
        except OSError:
            return


def test_a_client_that_takes_nothing_for_long_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def program() -> None:
        async with Served(LineTalk) as served:
            client, other = served.connect(), served.connect()
            await flood(client, b"q\n")
            await until(lambda: served.counters["slow_readers"] == 1, LIMIT_S)
            await until(lambda: served.service.tables.parties == 1, LIMIT_S)
            other.send(b"me\n")
            assert await asyncio.get_running_loop().sock_recv(other, 100)
            client.close()
            other.close()

    monkeypatch.setattr(connection, "SLOW_S", 0.5)
    run(program(), 3 * LIMIT_S)


def test_a_client_that_has_taken_a_little_has_its_time_again() -> None:
    async def program() -> None:
        async with Served(LineTalk) as served:
            client = served.connect()
            await flood(client, b"q\n")
            (talk,) = served.talks
            waiting = talk._transport.get_write_buffer_size()
            assert waiting > connection.OUTPUT_PAUSE
            talk._look_at_output(waiting + 1)  # it has taken one byte since the last look
            assert served.counters["slow_readers"] == 0
            talk._look_at_output(waiting)
            assert served.counters["slow_readers"] == 1
            client.close()

    run(program(), 3 * LIMIT_S)


def test_a_handshake_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def program() -> None:
        async with Served(WebsocketTalk) as served:
            silent, slow = served.connect(), served.connect()
            slow.send(b"GET / HTTP/1.1\r\n")
            await until(lambda: served.counters["handshakes_late"] == 2, LIMIT_S)
            await until(lambda: not served.talks, LIMIT_S)
            assert served.counters["connections"] == 2
            assert served.counters["connections_open"] == 0
            assert served.service.tables.parties == 0  # they never were clients
            silent.close()
            slow.close()

    monkeypatch.setattr(connection, "HANDSHAKE_S", 0.3)
    run(program(), 3 * LIMIT_S)
