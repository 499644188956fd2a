"""Hostile bytes on the data port of a real server: the connection is closed, counted and logged,
and the server goes on. The frames themselves are fuzzed in tests/native/test_codec_fuzz.c."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import pytest
from control_client import Client, closed_by_peer, eventually, raw

from dlock import _core
from dlock.control import messages as m
from dlock.server import Server, ServerConfig
from dlock.types import DlockStatus as S


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0, session_ttl_ms=60_000))
    yield one
    one.stop()


def attach_frame(client_id: int, secret: bytes) -> bytes:
    return _core.layout(
        "dlk_attach", ("op", "version", "client_id", "attach", "magic", "secret"),
    ).pack(_core.DLK_OP_ATTACH, 1, client_id, 1, _core.DLK_ATTACH_MAGIC, secret)


RANDOM = random.Random(7)


@pytest.mark.parametrize(("sent", "counter", "reason"), [
    (RANDOM.randbytes(64), "BAD_REQUEST", "attach"),
    (RANDOM.randbytes(64 * 40), "BAD_REQUEST", "attach"),
    (b"GET / HTTP/1.1\r\n\r\n" * 4, "BAD_REQUEST", "attach"),
    (bytes(64), "BAD_REQUEST", "attach"),
    (attach_frame(12345, bytes(16)), "CLIENT_ID_VERIFY_FAIL", "secret"),
])
def test_a_bad_peer_is_closed_counted_and_logged(
    server: Server, caplog: pytest.LogCaptureFixture, sent: bytes, counter: str, reason: str
) -> None:
    caplog.set_level(logging.WARNING, logger="dlock.control")
    connection = raw(server.host, server.data_port)
    connection.sendall(sent)
    assert closed_by_peer(connection)
    assert eventually(lambda: server.stats()[counter] == 1)

    def logged() -> bool:
        return any(
            record.__dict__.get("event") == "bad data connection"
            and record.__dict__["fields"]["peer"] == "127.0.0.1"
            and reason in record.__dict__["fields"]["reason"]
            for record in caplog.records
        )

    assert eventually(logged)
    with Client(server.host, server.port) as client:
        assert client.ask(m.Heartbeat()).status is S.SUCCESS


def test_half_a_frame_and_an_end_is_no_fault(server: Server) -> None:
    connection = raw(server.host, server.data_port)
    connection.sendall(bytes(10))
    connection.close()
    assert eventually(lambda: server.stats()["NETWORK_FAIL"] == 1)
