"""A real server over real sockets: life, bad input, bounds, ends."""

from __future__ import annotations

import logging
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from control_client import (
    TIMEOUT,
    Client,
    answers,
    closed_by_peer,
    encode,
    eventually,
    frame,
    raw,
)
from test_control_fuzz import BOMBS

from dlock import _core, _plane
from dlock.control import messages as m
from dlock.control.link import LinkError
from dlock.control.loop import ControlLoop
from dlock.control.registry import Registry
from dlock.control.registry_sessions import RegistryConfig
from dlock.server import (
    AddressError,
    CpuSetError,
    Server,
    ServerConfig,
    ServerError,
    StateError,
    listen,
    parse_cpus,
)
from dlock.types import DlockStatus as S


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0, session_ttl_ms=60_000))
    yield one
    one.stop()


def reinit(welcome: m.Welcome) -> m.ClientReinit:
    return m.ClientReinit(1, 1, welcome.client_id, welcome.secret, welcome.epoch,
                          welcome.incarnation, 0, {})


def client(server: Server) -> Client:
    return Client(server.host, server.port)


# ---- Life ----------------------------------------------------------------------------------------


def test_a_whole_life(server: Server) -> None:
    with client(server) as one, client(server) as two:
        assert one.welcome is not None
        assert one.welcome.data_port == server.data_port
        (lock,) = one.get(b"name")
        assert two.get(b"name", b"other")[0] == lock
        assert one.ask(m.Heartbeat()).status is S.SUCCESS
        assert one.ask(m.ReleaseLocks((lock.lock_id,))).statuses == (S.SUCCESS,)
        made = one.ask(m.ObjectCreate(b"o", 7, 60))
        assert two.ask(m.ObjectGet(b"o", 0)) == made
        assert server.stats()["locks"] == 2
        assert one.ask(m.ClientDeinit()).status is S.SUCCESS
        assert two.ask(m.ClientDeinit()).status is S.SUCCESS
        assert two.stats()["locks"] == two.stats()["clients"] == 0


def test_requests_may_be_sent_ahead(server: Server) -> None:
    """Many requests in one write; each is answered once, with its id."""
    with raw(server.host, server.port) as connection:
        connection.sendall(encode(1, m.ClientInit(1, 1, {})))
        answers(connection, 1)
        requests = b"".join(
            encode(number, m.GetLocks((m.LockSpec(b"%d" % number, 0),)))
            for number in range(2, 2002))
        connection.sendall(requests)
        got = answers(connection, 2000)
    assert [number for number, _ in got] == list(range(2, 2002))
    assert {one.results[0].status for _, one in got} == {S.SUCCESS}  # type: ignore[attr-defined]


def test_a_session_survives_its_connection_and_is_superseded(server: Server) -> None:
    with client(server) as one:
        welcome = one.welcome
        assert welcome is not None
        one.get(b"a")
        with Client(server.host, server.port, init=False) as two:
            again = two.ask(reinit(welcome))
            assert (again.status, again.attach) == (S.SUCCESS, 2)
            assert two.ask(m.ReinitDone()).status is S.SUCCESS
            assert two.get(b"a")[0].status is S.ERROR
            with pytest.raises(LinkError):
                one.ask(m.Heartbeat())


def test_a_silent_session_ends() -> None:
    server = Server(ServerConfig(port=0, session_ttl_ms=1000))
    try:
        with client(server) as one:
            welcome = one.welcome
            assert welcome is not None
            one.get(b"a")
            assert eventually(lambda: server.stats()["clients"] == 0)
            assert eventually(lambda: server.stats()["connections"] == 0)
            with pytest.raises(LinkError):
                one.ask(m.Heartbeat())
        with Client(server.host, server.port, init=False) as two:
            again = two.ask(reinit(welcome))
            assert again.status is S.CLIENT_REMOVED_BY_SERVER
            assert two.stats()["locks"] == 0
    finally:
        server.stop()


def test_200_connections(server: Server) -> None:
    clients = [client(server) for _ in range(200)]
    locks = {one.get(b"shared")[0].lock_id for one in clients}
    assert len(locks) == 1
    assert server.stats()["clients"] == server.stats()["connections"] == 200
    assert len({one.welcome.client_id for one in clients if one.welcome}) == 200
    for one in clients:
        assert one.ask(m.ClientDeinit()).status is S.SUCCESS
        one.link.close()
    assert eventually(lambda: server.stats()["connections"] == 0)


def test_the_data_plane_knows_the_session(server: Server) -> None:
    """The secret and attach number of the welcome open a data connection; others do not."""
    with client(server) as one:
        assert one.welcome is not None
        for secret, allowed in ((b"x" * 16, False), (one.welcome.secret, True)):
            with socket.create_connection((server.host, server.data_port), TIMEOUT) as data:
                attach = _core.ffi.new("struct dlk_attach *", {
                    "request_id": 1, "op": _core.DLK_OP_ATTACH, "version": 1,
                    "client_id": one.welcome.client_id, "attach": one.welcome.attach,
                    "session_slot": one.welcome.session_slot, "magic": _core.DLK_ATTACH_MAGIC,
                    "secret": secret})
                data.sendall(bytes(_core.ffi.buffer(attach)))
                reply = data.recv(_core.DLK_FRAME_BYTES)
                answer = _core.ffi.from_buffer("struct dlk_reply *", reply)
                assert (answer.result == _core.DLK_RESULT_DONE) is allowed


# ---- Bad input and bounds ------------------------------------------------------------------------


def test_hostile_bytes(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    source = random.Random(1)
    hostile = [
        b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 4, b"\xff" * 64, frame(b"\xc1"),
        encode(1, m.Status(S.SUCCESS)), encode(1, m.Heartbeat()) + b"\x00\x00\x00\x00",
        *(frame(bomb[:65536]) for bomb in BOMBS),
        *(frame(source.randbytes(source.randrange(1, 200))) for _ in range(30)),
    ]
    with client(server) as good, caplog.at_level(logging.WARNING, "dlock.control"):
        for data in hostile:
            with raw(server.host, server.port) as connection:
                connection.sendall(data)
                assert closed_by_peer(connection), data[:20]
        assert good.ask(m.Heartbeat()).status is S.SUCCESS
    assert server.stats()["BAD_REQUEST"] == len(hostile)
    events = [record for record in caplog.records if record.getMessage().startswith("bad request")]
    assert len(events) == len(hostile)
    assert set(events[0].fields) == {"peer", "reason"}  # type: ignore[attr-defined]


def test_half_a_message_and_sudden_ends(server: Server) -> None:
    whole = encode(1, m.ClientInit(1, 1, {}))
    for length in range(1, len(whole)):
        with raw(server.host, server.port) as connection:
            connection.sendall(whole[:length])
    with raw(server.host, server.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.sendall(whole)  # and a reset
    with client(server) as good:
        # A session whose welcome was perhaps read may come back, so it may be there still.
        assert eventually(lambda: server.stats()["connections"] == 1)
        assert good.stats()["clients"] in (1, 2)
        assert good.stats()["BAD_REQUEST"] == 0


def test_a_slow_reader_is_closed(server: Server) -> None:
    with raw(server.host, server.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(TIMEOUT)
        request = b"".join(encode(number, m.Stats()) for number in range(1000))
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(request * 1000)
    assert server.stats()["SEND_FAIL"] == 1
    with client(server) as good:
        assert good.ask(m.Heartbeat()).status is S.SUCCESS


def test_idle_connections_make_room_for_clients() -> None:
    server = Server(ServerConfig(port=0, max_clients=2))
    idle = []
    try:
        with client(server) as first:
            idle = [raw(server.host, server.port) for _ in range(300)]
            with client(server) as second:
                for one in (first, second):
                    assert one.ask(m.Heartbeat()).status is S.SUCCESS
                assert server.stats()["connections"] <= 2 * 2 + 256
                assert closed_by_peer(idle[0])
    finally:
        for one in idle:
            one.close()
        server.stop()


def test_tables_that_are_full(server: Server) -> None:
    small = Server(ServerConfig(port=0, max_locks=2, max_clients=1, max_objects=1))
    try:
        with client(small) as one:
            assert [lock.status for lock in one.get(b"a", b"b", b"c")] == [
                S.SUCCESS, S.SUCCESS, S.SERVER_NO_RESOURCE]
            assert one.ask(m.ObjectCreate(b"o", 0, 1)).status is S.SUCCESS
            assert one.ask(m.ObjectCreate(b"p", 0, 1)).status is S.OBJECT_TOO_MANY
            with client(small) as two:
                assert two.welcome == m.Welcome(S.SERVER_NO_RESOURCE)
            assert one.ask(m.Heartbeat()).status is S.SUCCESS
    finally:
        small.stop()


class NarrowRing:
    """A real plane whose command ring is full when the test says so."""

    def __init__(self, plane: _plane.Plane) -> None:
        self.plane = plane
        self.is_full: Callable[[], bool] = lambda: False

    def __getattr__(self, name: str) -> object:
        return getattr(self.plane, name)

    def send_command(self, command: _core.Command) -> bool:
        return not self.is_full() and self.plane.send_command(command)


@dataclass
class NarrowServer:
    ring: NarrowRing
    loop: ControlLoop
    registry: Registry
    connections: list[socket.socket]


@pytest.fixture
def narrow() -> Iterator[NarrowServer]:
    """A server with a NarrowRing and two connections with sessions."""
    plane = _plane.Plane(_plane.PlaneConfig(_core.Limits(), epoch=1))
    ring = NarrowRing(plane)
    listener = listen("127.0.0.1", 0)
    registry = Registry(RegistryConfig(os.urandom, plane.port, epoch=1, incarnation=1))
    loop = ControlLoop(listener, ring, registry, None, 4_000, 100)  # type: ignore[arg-type]
    threads = [threading.Thread(target=body, daemon=True) for body in (loop.run, plane.run)]
    for thread in threads:
        thread.start()
    connections = [raw(*listener.getsockname()) for _ in range(2)]
    for connection in connections:
        connection.sendall(encode(1, m.ClientInit(1, 1, {})))
        assert answers(connection, 1)[0][1].status is S.SUCCESS  # type: ignore[attr-defined]
    yield NarrowServer(ring, loop, registry, connections)
    for connection in connections:
        connection.close()
    loop.stop()
    plane.stop()
    for thread in threads:
        thread.join(TIMEOUT)
    plane.free()


def test_a_full_command_ring_stops_the_reading_only(narrow: NarrowServer) -> None:
    narrow.ring.is_full = lambda: True
    for connection in narrow.connections:
        connection.sendall(b"".join(encode(one, m.Heartbeat()) for one in range(2, 3002)))
    assert eventually(lambda: not narrow.loop._gate_open)
    under_way = narrow.registry.stats(0)["commands_under_way"]
    assert 1 <= under_way <= 2, "the first command without room was the last that was read"
    narrow.connections[0].sendall(encode(3002, m.Heartbeat()))
    narrow.ring.is_full = lambda: False
    for connection, last in zip(narrow.connections, (3002, 3001), strict=True):
        got = answers(connection, last - 1)
        assert [number for number, _ in got] == list(range(2, last + 1))
        assert {one.status for _, one in got} == {S.SUCCESS}  # type: ignore[attr-defined]


def test_commands_keep_their_order_in_a_ring_that_is_full_at_times(narrow: NarrowServer) -> None:
    source = random.Random(3)
    narrow.ring.is_full = lambda: source.random() < 0.1
    specs = tuple(m.LockSpec(b"%d" % number, 0) for number in range(31))
    for connection in narrow.connections:
        connection.sendall(b"".join(
            encode(2 * one, m.GetLocks(specs)) + encode(2 * one + 1, m.ReleaseLocks((
                *range(31 * one + 1, 31 * one + 32),))) for one in range(1, 10)))
    for connection in narrow.connections:
        got = answers(connection, 18)
        assert sorted(number for number, _ in got) == list(range(2, 20))


# ---- Ends ----------------------------------------------------------------------------------------


def test_stop_ends_everything_and_frees_the_ports() -> None:
    server = Server(ServerConfig(port=0))
    port, data_port = server.port, server.data_port
    with client(server) as one, client(server) as two:
        one.get(b"a")
        server.stop()
        assert server.wait(0)
        for left in (one, two):
            with pytest.raises(LinkError):
                left.ask(m.Heartbeat())
        again = Server(ServerConfig(port=port, data_port=data_port))
        with client(again) as three:
            assert three.get(b"a")[0].lock_id == 1
        again.stop()
    server.stop()
    assert server.stats()["connections"] == 0


NO_THREAD = """
import os, sys, threading
from dlock.server import Server, ServerConfig, ServerError

def descriptors():
    return len(os.listdir("/proc/self/fd"))

real, threads = threading.Thread.start, []

def start(thread):
    if len(threads) == int(sys.argv[1]):
        raise RuntimeError("can't start new thread")
    threads.append(thread)
    real(thread)

before = descriptors()
threading.Thread.start = start
try:
    Server(ServerConfig(port=0))
except ServerError as problem:
    print(problem)
for thread in threads:
    thread.join(60)
print(descriptors() - before)
"""


@pytest.mark.parametrize("started", [0, 1])
def test_a_server_that_gets_no_thread_keeps_nothing(started: int) -> None:
    """In a process of its own, whose descriptors nobody else opens."""
    done = subprocess.run([sys.executable, "-c", NO_THREAD, str(started)], timeout=120,
                          stdout=subprocess.PIPE, text=True, check=True)
    problem, more = done.stdout.splitlines()
    assert "can't start new" in problem
    assert more == "0"


def test_starting_and_stopping_leaks_nothing() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    Server(ServerConfig(port=0)).stop()
    before = descriptors()
    for _ in range(5):
        server = Server(ServerConfig(port=0))
        with client(server) as one:
            one.get(b"a")
            server.stop()
        with pytest.raises(AddressError):
            Server(ServerConfig(host="127.0.0.1", port=listening(), data_port=0))
    assert eventually(lambda: descriptors() == before + len(_taken))


_taken: list[socket.socket] = []


def listening() -> int:
    """A port that is taken."""
    if not _taken:
        _taken.append(listen("127.0.0.1", 0))
    return int(_taken[0].getsockname()[1])


def test_what_cannot_be_had_is_said(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match=r"cannot listen on 127\.0\.0\.1:.*Choose another port"):
        Server(ServerConfig(port=listening()))
    with pytest.raises(AddressError, match="for data"):
        Server(ServerConfig(port=0, data_port=listening()))
    with pytest.raises(AddressError, match="no address"):
        Server(ServerConfig(host="no.such.host.invalid", port=0))
    with pytest.raises(ServerError, match=r"1000 ms; it must not be under .* 10120 ms"):
        Server(ServerConfig(port=0, recovery_deadline_ms=1000))
    for bad in ({"max_locks": 0}, {"recovery_client_num": 2, "max_clients": 1},
                {"session_ttl_ms": 999}, {"max_clients": 10**9}, {"port": 70000},
                {"wait_mode": "hope"}):
        with pytest.raises(ServerError, match=r"must be in|not one of"):
            Server(ServerConfig(**{"port": 0, **bad}))  # type: ignore[arg-type]
    first = Server(ServerConfig(port=0, state_dir=tmp_path))
    with pytest.raises(StateError, match="in use"):
        Server(ServerConfig(port=0, state_dir=tmp_path))
    first.stop()
    Server(ServerConfig(port=0, state_dir=tmp_path)).stop()


def test_cpu_sets() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    assert parse_cpus(f"{allowed[0]}") == {allowed[0]}
    assert parse_cpus(f"{allowed[0]}-{allowed[0]}, {allowed[-1]}") == {allowed[0], allowed[-1]}
    for bad in ("", "a", "0-", "-1", "1-0", "0,,1", "0x1", "1-99999999999"):
        with pytest.raises(CpuSetError, match="no list of CPUs"):
            parse_cpus(bad)
    with pytest.raises(CpuSetError, match=r"CPU 4000 .* cannot be used"):
        parse_cpus("4000")
    server = Server(ServerConfig(
        port=0, control_cpus=str(allowed[0]), data_cpus=str(allowed[-1])))
    try:
        with client(server):
            pins = [os.sched_getaffinity(thread.native_id or 0) for thread in server._threads]
            assert pins == [{allowed[0]}, {allowed[-1]}]
        assert os.sched_getaffinity(0) == set(allowed)
    finally:
        server.stop()


# ---- Processes -----------------------------------------------------------------------------------

PROGRAM = """
import os, sys
from dlock.server import Server, ServerConfig
from dlock.control.link import ControlLink
from dlock.control import messages as m
server = Server(ServerConfig(port=0))
link = ControlLink.connect(server.host, server.port, 20)
assert link.request(m.ClientInit(1, 1, {}), 20).client_id
"""


def run_program(tail: str) -> subprocess.CompletedProcess[str]:
    # From 3.12 on Python warns of any fork beside threads, which is what is tested here.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM + tail]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_program_that_forgets_to_stop_ends() -> None:
    done = run_program("print('end')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_a_forked_child_leaves_the_server_alone() -> None:
    done = run_program("""
child = os.fork()
if child == 0:
    server.stop()
    try:
        link.request(m.Heartbeat(), 1)
    except Exception as problem:
        print(problem, flush=True)
    link.close()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(link.request(m.Heartbeat(), 20).status.name)
""")
    assert done.stdout.splitlines() == ["the link belongs to the parent process", "SUCCESS"]
    assert (done.returncode, done.stderr) == (0, "")
