"""What no gRPC library does on purpose, at the LDLM door: frames by hand, slow and vanished peers,
too many pings, TLS without a certificate."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("h2", reason="the extra doors is not installed")
pytest.importorskip("grpc", reason="grpcio is not installed")
pytest.importorskip("ldlm", reason="py-ldlm is not installed")

import grpc
from door_tools import Door, beside
from failover_tools import until
from hpack import Decoder
from http2_peer import EMPTY_SETTINGS, PREFACE, frame
from ldlm.protos import ldlm_pb2 as pb
from ldlm_tools import Bare, goaway_of, ldlm_door, make_certificates, refused, stub

CANCEL = b"\0\0\0\x08"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with beside(tmp_path_factory.mktemp("door")) as place:
        yield ldlm_door(place)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def locked(bare: Bare, name: str) -> Any:
    """TryLock by hand; its answer."""
    return pb.LockResponse.FromString(bare.answered("TryLock", pb.TryLockRequest(name=name)))


# ---- Ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fin", "half", "reset"])
def test_however_a_connection_ends_its_locks_are_free(door: Door, name: str, how: str) -> None:
    with stub(door) as other, Bare(door) as leaving:
        assert locked(leaving, name).locked
        waiting = other.lock_soon(name)
        if how == "reset":
            leaving.reset()
        elif how == "half":
            leaving.socket.shutdown(socket.SHUT_WR)
        else:
            leaving.socket.close()
        assert waiting.result().locked


def test_a_request_and_its_cancellation_in_one_piece(door: Door, name: str) -> None:
    with stub(door) as other, Bare(door) as bare:
        for method, asked in (("Lock", pb.LockRequest(name=name)),
                              ("TryLock", pb.TryLockRequest(name=name))):
            request = bare.ask(method, asked)
            bare.send(request + frame(3, 0, bare.stream, CANCEL))
        assert not locked(bare, "a round trip later").HasField("error")
        assert other.lock(name).locked


def test_a_lock_whose_answer_was_not_seen_is_given_back(door: Door, name: str) -> None:
    with stub(door) as other, Bare(door) as bare:
        assert locked(bare, name).locked
        waiting = other.lock_soon(name)
        other.try_lock("a round trip later")
        assert not waiting.done()
        # The client says that it gave up before it had seen that answer.
        bare.send(frame(3, 0, bare.stream, CANCEL))
        assert waiting.result().locked
    assert door.counters()["grpc_grants_not_seen"] >= 1


def test_a_client_that_is_done_with_a_stream_keeps_its_lock(door: Door, name: str) -> None:
    with stub(door) as other, Bare(door) as bare:
        assert locked(bare, name).locked
        bare.send(frame(3, 0, bare.stream, bytes(4)))  # NO_ERROR
        assert not locked(bare, name).locked
        assert not other.try_lock(name).locked


def test_a_door_that_stops_says_so_to_whom_it_keeps_waiting(tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        door = ldlm_door(place)
        with Bare(door) as bare:
            assert locked(bare, "x").locked
            bare.send(bare.ask("Lock", pb.LockRequest(name="x")))
            waiting = bare.stream
            assert not locked(bare, "x").locked, "a round trip later"
            door.process.terminate()
            seen = list(bare.frames())
            assert door.process.wait(60) == 0
        (block,) = [content for kind, _, stream, content in seen if stream == waiting]
        trailers = dict(Decoder().decode(block.removeprefix(b"\x20")))
        assert trailers["grpc-status"] == "14"
        ends = [content for kind, _, _, content in seen if kind == 7]
        assert [(content[4:8], content[8:]) for content in ends] == [
            (bytes(4), b"the server is shutting down")]


# ---- Keepalive -----------------------------------------------------------------------------------


def test_a_silent_client_is_pinged_and_its_locks_are_freed(tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        door = ldlm_door(place, "-k", "1s", "-t", "8s")
        with stub(door) as other, Bare(door) as frozen:
            assert locked(frozen, "x").locked
            assert other.lock("x").locked
            assert any(kind == 6 and not flags & 1 for kind, flags, _, _ in frozen.frames())
            # It was an ordinary client that answered all pings meanwhile.
            assert other.try_lock("y").locked
        assert door.counters()["grpc_keepalive_ends"] == 1


def test_the_third_ping_too_soon_ends_the_connection(door: Door, name: str) -> None:
    with stub(door) as other, Bare(door) as bare:
        assert locked(bare, name).locked
        # The first clears what the answer leaves, the next three are strikes.
        bare.send(frame(6, 0, 0, bytes(8)) * 3)
        assert [bare.read() for _ in range(3)] == [(6, 1, 0, bytes(8))] * 3
        assert other.try_lock(f"{name} still").locked
        assert not other.try_lock(name).locked
        bare.send(frame(6, 0, 0, bytes(8)))
        assert goaway_of(bare) == (11, b"too_many_pings")
        assert other.lock(name).locked
    assert door.counters()["grpc_too_many_pings"] >= 1


def test_pings_between_answers_are_never_too_many(door: Door, name: str) -> None:
    with Bare(door) as bare:
        for number in range(20):
            bare.send(frame(6, 0, 0, bytes(8)) * 3)
            assert locked(bare, f"{name} {number}").locked


# ---- What is no HTTP/2 ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "code"),
    [(frame(4, 0, 0, b"12345"), 6), (frame(0, 0, 1, bytes(16_385)), 6),
     (frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff\xff"), 9), (frame(6, 0, 1, bytes(8)), 1)])
def test_a_fault_ends_one_connection_and_is_counted(
    door: Door, name: str, sent: bytes, code: int
) -> None:
    before = door.counters().get("grpc_protocol_errors", 0)
    with stub(door) as other, Bare(door) as bare:
        assert other.try_lock(name).locked
        bare.send(sent)
        assert goaway_of(bare)[0] in (code, 1)
        assert not other.try_lock(name).locked
    assert door.counters()["grpc_protocol_errors"] == before + 1


def test_what_speaks_no_http2_at_all(door: Door, name: str) -> None:
    with socket.create_connection(door.address, 20) as web:
        web.settimeout(60)
        web.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while web.recv(1000):
            pass
    with stub(door) as other:
        assert other.try_lock(name).locked


def test_a_client_that_reads_nothing_delays_nobody(door: Door, name: str) -> None:
    with stub(door) as other, Bare(door) as deaf:
        with pytest.raises(TimeoutError):
            flood(deaf)
        until(lambda: door.counters().get("grpc_slow_peers", 0) >= 1)
        assert other.try_lock(name).locked
        waiting = other.lock_soon("n" * 4000)
        deaf.socket.close()
        assert waiting.result().locked


def flood(bare: Bare) -> None:
    """Asks, and reads nothing. TimeoutError: the door does not read either any more."""
    bare.socket.settimeout(3)
    for _ in range(100_000):
        bare.send(bare.ask("TryLock", pb.TryLockRequest(name="n" * 4000)))


def test_a_hundred_connections_that_begin_and_stop(door: Door, name: str) -> None:
    half = [socket.create_connection(door.address, 20) for _ in range(100)]
    for number, one in enumerate(half):
        one.sendall((PREFACE + EMPTY_SETTINGS + frame(1, 0, 1, b"\x82"))[:number])
    with stub(door) as other:
        assert other.try_lock(name).locked
        for one in half:
            one.close()
        until(lambda: door.counters()["connections_open"] <= 1)


# ---- TLS -----------------------------------------------------------------------------------------


def test_tls(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    words = ("--tls_cert", made.path("server.pem"), "--tls_key", made.path("server.key"))
    trusting = grpc.ssl_channel_credentials(made.read("ca.pem"))
    with beside(tmp_path) as place:
        door = ldlm_door(place, *words)
        with stub(door, trusting) as one, stub(door, trusting) as two:
            held = one.lock("x")
            assert held.locked
            assert not two.try_lock("x").locked
            assert two.unlock("x", held.key).unlocked
        with stub(door) as plain, stub(door, grpc.ssl_channel_credentials()) as distrusting:
            assert refused(plain.try_lock, "x")[0] is grpc.StatusCode.UNAVAILABLE
            assert refused(distrusting.try_lock, "x")[0] is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("flags", [("--client_ca", "ca.pem"), ("--client_cert_verify",)])
def test_client_certificates(tmp_path: Path, flags: tuple[str, ...]) -> None:
    made = make_certificates(tmp_path)
    words = ("--tls_cert", made.path("server.pem"), "--tls_key", made.path("server.key"),
             *(made.path(flag) if flag.endswith(".pem") else flag for flag in flags))
    showing = grpc.ssl_channel_credentials(
        made.read("ca.pem"), made.read("client.key"), made.read("client.pem"))
    with beside(tmp_path) as place:
        # Where OpenSSL looks for the system's authorities.
        door = ldlm_door(place, *words, SSL_CERT_FILE=made.path("ca.pem"))
        with stub(door, grpc.ssl_channel_credentials(made.read("ca.pem"))) as unknown:
            assert refused(unknown.try_lock, "x")[0] is grpc.StatusCode.UNAVAILABLE
        with stub(door, showing) as known:
            assert known.try_lock("x").locked


def test_client_certificates_need_tls(tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        for flags in (("--client_cert_verify",), ("--client_ca", "ca.pem")):
            door = ldlm_door(place, *flags, wait=False, name=flags[0])
            assert door.process.wait(60) == 1
            assert ("net.Run() error starting server: client TLS certificate verification "
                    "requires server TLS to be configured") in door.said()
