"""RDMA: queue pairs as links. Who is served over which, what is lost and what comes back when a
peer dies, a link goes down or packets are lost."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import rdma_tools
from failover_tools import Primary, back_at, epoch_of
from far_process import FarProcess
from rdma_tools import connect, devices, serving, until

import dlock
from dlock import errors
from dlock.admin import Admin

pytestmark = pytest.mark.rdma

RDMA = {"DLOCK_TRANSPORT": "verbs"}


@pytest.fixture
def far() -> Iterator[Callable[..., FarProcess]]:
    """Programs of their own that use RDMA."""
    started: list[FarProcess] = []

    def one(address: str, **environment: str) -> FarProcess:
        started.append(FarProcess(address, {**RDMA, **environment}))
        return started[-1]

    yield one
    for process in started:
        process.close()


def place_of(server: Any) -> str:
    return f"{server.host}:{server.port}"


class Work:
    """Threads that take the same lock in turn and count, by the lock's protection and by a number
    at the server. `unknown`: how many additions have lost their answer, if that may be."""

    def __init__(self, clients: list[dlock.Client], times: int, lossy: bool = False) -> None:
        self.clients = clients
        self.times = times
        self.guarded = 0
        self.lossy = lossy
        self.unknown = 0

    def _one(self, client: dlock.Client) -> list[int]:
        lock, number = client.lock("the lock"), client.atomic("the number")
        got = []
        for _ in range(self.times):
            with lock:
                seen = self.guarded
                try:
                    got.append(number.fetch_add(1))
                except errors.OutcomeUnknown:
                    assert self.lossy
                    self.unknown += 1
                self.guarded = seen + 1
        return got

    def check(self) -> None:
        """Does it, and looks at what came of it."""
        with ThreadPoolExecutor(len(self.clients)) as pool:
            got = list(pool.map(self._one, self.clients))
        count = self.times * len(self.clients)
        assert self.guarded == count
        numbers = [number for each in got for number in each]
        assert len(set(numbers)) == len(numbers) == count - self.unknown, numbers
        last = self.clients[0].atomic("the number").get()
        assert count - self.unknown <= last <= count
        assert max(numbers) < last


# ---- Who is served over what ---------------------------------------------------------------------


def test_64_clients_each_with_a_queue_pair() -> None:
    with serving(max_clients=64) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(64)]
        assert rdma_tools.at_server(place_of(server)) == ["verbs"] * 64
        Work(clients, 4).check()
        assert {client.transport.kind for client in clients} == {"verbs"}


def test_one_server_serves_tcp_and_rdma_at_once() -> None:
    with serving() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server, transport=transport))
                   for transport in ("verbs", "tcp", "auto", "tcp", "verbs")]
        kinds = ["verbs", "tcp", "verbs", "tcp", "verbs"]
        assert [client.transport.kind for client in clients] == kinds
        assert sorted(rdma_tools.at_server(place_of(server))) == sorted(kinds)
        Work(clients, 20).check()


@contextlib.contextmanager
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What the client logs of what it is reached over, in this block."""
    found: list[str] = []
    with caplog.at_level(logging.INFO, "dlock"):
        caplog.clear()
        yield found
        found += [one.getMessage() for one in caplog.records if "reached over" in one.getMessage()]


def test_at_a_server_without_rdma_a_client_takes_tcp_and_says_so_once(
    caplog: pytest.LogCaptureFixture
) -> None:
    with serving(transport="tcp") as server, lines(caplog) as said, \
            connect(server, transport="auto") as client:
        assert client.transport.kind == "tcp"
        with client.lock("a lock"):
            pass
    (line,) = said
    assert "reached over TCP: the server has no RDMA" in line


def test_a_client_without_a_device_takes_tcp_and_says_so_once(
    caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as server, lines(caplog) as said, \
            connect(server, transport="auto", device="none_of_ours") as client:
        assert client.transport.kind == "tcp"
        with client.lock("a lock"):
            pass
    (line,) = said
    assert "reached over TCP" in line
    assert "none_of_ours" in line


def test_where_rdma_alone_is_wanted_its_absence_is_an_error() -> None:
    with serving(transport="tcp") as server, pytest.raises(
            dlock.errors.ConnectError, match="RDMA is asked for"):
        connect(server, timeout=3)
    with serving() as server, pytest.raises(dlock.errors.ConnectError, match="none_of_ours"):
        connect(server, device="none_of_ours")


# A server with this much memory to lock, and without the privilege to lock more.
LIMITED = """
import json, logging, sys
from dlock.server import Server, ServerConfig
logging.basicConfig(stream=sys.stderr, level=logging.INFO)
server = Server(ServerConfig(
    port=0, wait_mode="block", transport="verbs", max_clients=64, session_ttl_ms=120_000,
    max_objects=64))
print(f"{server.host}:{server.port}", flush=True)
sys.stdin.read()
server.stop()
"""


@contextlib.contextmanager
def limited_server(kib: int) -> Iterator[str]:
    rdma_tools.demand_guest()
    limit = str(kib * 1024)
    with subprocess.Popen(
        ["setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock", "prlimit",
         f"--memlock={limit}:{limit}", sys.executable, "-c", LIMITED],
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def test_clients_for_whom_there_is_no_queue_pair_are_served_over_tcp() -> None:
    """The server may lock so little memory that it has room for some clients only."""
    with limited_server(192) as address, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(address, transport="auto")) for _ in range(40)]
        kinds = [client.transport.kind for client in clients]
        assert set(kinds) == {"verbs", "tcp"}
        assert sorted(rdma_tools.at_server(address)) == sorted(kinds)
        Work(clients, 4).check()
        clients[kinds.index("verbs")].close()
        until(lambda: has_room(address))


def has_room(address: str) -> bool:
    """Does one more client get a queue pair?"""
    with connect(address, transport="auto") as client:
        return client.transport.kind == "verbs"


# ---- Peers that die ------------------------------------------------------------------------------


def test_a_client_that_is_killed_frees_what_it_held_and_hurts_nobody(far: Any) -> None:
    with serving(session_ttl_ms=5_000) as server, connect(server) as client:
        peer = far(place_of(server))
        assert peer.ask("client.transport.kind") == "verbs"
        peer.let("lock", "client.lock('held')")
        peer.let("number", "client.atomic('number')")
        assert peer.ask("lock.acquire()")
        # In the midst of its work, whatever that is at the moment.
        peer.tell("=any(number.add(1) < 0 for _ in range(10**9))")
        number = client.atomic("number")
        until(lambda: number.get() > 20)
        peer.signal(signal.SIGKILL)
        with client.lock("held"):  # when its session is over
            seen = number.get()
            assert number.fetch_add(1) == seen
        assert client.transport.kind == "verbs"
        Work([client, client], 20).check()


def test_a_server_that_is_killed_gives_its_place_to_another_and_holds_are_kept(
    tmp_path: Path
) -> None:
    primary = Primary(tmp_path, ttl_s=60.0, flags=("--transport", "verbs"))
    try:
        with connect(primary.address) as client, connect(primary.address) as other:
            locks = {"lock": client.lock("lock"), "leased": client.lock("leased", lease=600),
                     "fair": client.fair_lock("fair"), "reader": client.rwlock("reader").read(),
                     "writer": client.rwlock("writer").write(),
                     "slot": client.semaphore("slot", 2)}
            for lock in locks.values():
                assert lock.acquire(timeout=60)
            tokens = {name: lock.token for name, lock in locks.items()}
            with ThreadPoolExecutor(1) as pool:
                wait = pool.submit(other.lock("lock").acquire)
                with primary.admin() as admin:
                    until(lambda: (shown := admin.show("lock")) and shown.waiters)
                epoch = epoch_of(client)
                primary.restart()
                for one in (client, other):
                    back_at(one, epoch + 1)
                until(lambda: all(lock.held for lock in locks.values()))
                assert {name: lock.token for name, lock in locks.items()} == tokens
                assert not wait.done()
                locks["lock"].release()
                assert wait.result(60) is True
            assert {client.transport.kind, other.transport.kind} == {"verbs"}
            assert rdma_tools.at_server(primary.place) == ["verbs", "verbs"]
    finally:
        primary.kill()


# ---- The network ---------------------------------------------------------------------------------


@contextlib.contextmanager
def across(**settings: Any) -> Iterator[tuple[Any, Callable[..., dlock.Client]]]:
    """A server on one end of a pair of interfaces; clients on the other."""
    rdma_tools.demand_guest()
    (server_device, _, _), (client_device, _, _) = devices.VETH
    with serving(device=server_device, **settings) as server, contextlib.ExitStack() as stack:
        yield server, lambda **options: stack.enter_context(
            connect(server, device=client_device, **options))


def test_packets_between_two_devices_really_cross() -> None:
    with across() as (server, one):
        client = one()
        (server_device, _, _), (client_device, interface, _) = devices.VETH
        assert (client.transport.device, server_device in str(server.rdma)) == (
            client_device, True)
        traffic = Path(f"/sys/class/net/{interface}/statistics/tx_packets")
        before = int(traffic.read_text())
        Work([client, client], 20).check()
        assert int(traffic.read_text()) >= before + 80


@contextlib.contextmanager
def losing(percent: float) -> Iterator[None]:
    """Both ends lose so many of the packets that they send."""
    interfaces = [interface for _, interface, _ in devices.VETH]
    try:
        for interface in interfaces:
            devices.run(f"tc qdisc add dev {interface} root netem loss {percent}%")
        yield
    finally:
        for interface in interfaces:
            devices.run(f"tc qdisc del dev {interface} root")


def test_where_packets_are_lost_locks_exclude_and_numbers_are_exact() -> None:
    with across() as (_, one):
        clients = [one() for _ in range(4)]
        with losing(5):
            Work(clients, 50, lossy=True).check()
            shown = subprocess.run(
                ["tc", "-s", "qdisc", "show", "dev", devices.VETH[0][1]], check=True,
                capture_output=True, text=True).stdout
        assert "dropped 0," not in shown, "nothing was lost"


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """The link between the two devices is down in this block."""
    interfaces = [interface for _, interface, _ in devices.VETH]
    try:
        for interface in interfaces:
            devices.run(f"ip link set {interface} down")
        yield
    finally:
        for interface in interfaces:
            devices.run(f"ip link set {interface} up")
        devices.route_veth()


def recovering(client: dlock.Client) -> bool:
    return "recovering" in repr(client)


def test_a_link_that_goes_down_and_up_costs_nobody_his_hold() -> None:
    with across() as (server, one), ThreadPoolExecutor(2) as pool:
        client, other = one(), one()
        held = client.lock("held")
        held.acquire()
        token = held.token
        wait = pool.submit(other.lock("held").acquire)
        with Admin(place_of(server)) as admin:
            until(lambda: (shown := admin.show("held")) and shown.waiters)
        with no_network():
            asked = pool.submit(client.lock("another").acquire)
            until(lambda: recovering(client))
            assert held.held
            assert not asked.done()
        assert asked.result(120) is True
        assert held.held
        assert held.token == token
        assert not wait.done()
        held.release()
        assert wait.result(120) is True
        assert {client.transport.kind, other.transport.kind} == {"verbs"}


def test_who_may_use_tcp_goes_on_over_it_while_the_link_is_down(
    caplog: pytest.LogCaptureFixture
) -> None:
    with across() as (_, one), lines(caplog) as said:
        client = one(transport="auto")
        held, number = client.lock("held"), client.atomic("number", 1)
        held.acquire()
        token = held.token
        with no_network():
            with client.lock("another"):
                assert number.add(1) == 2
            assert client.transport.kind == "tcp"
            assert held.held
            assert held.token == token
        held.release()
    assert ["over RDMA" in line for line in said] == [True, False]
