"""The data path over pyverbs, at a real device, against itself and against the C core's: each kind
of lock, waits, floods, numbers, ends of all sorts. Who is at which end is the parameter."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_tools import finish, start
from failover_tools import Primary
from rdma_tools import connect, serving, until

import dlock
import dlock.aio
from dlock import _pairing, _verbs, rdma
from dlock._core import lib
from dlock.rdma import binding
from dlock.rdma.client import ClientPair
from dlock.rdma.instead import ENVIRONMENT
from dlock.rdma.ports import choose_port
from dlock.rdma.server import PairServer, ServerLane
from dlock.server import Server

pytestmark = pytest.mark.rdma

PAIRS = [("pyverbs", "pyverbs"), ("pyverbs", "core"), ("core", "pyverbs")]


class Ends(NamedTuple):
    """A server, and how to get a client of it; `server_by`, `client_by`: "core" or "pyverbs"."""

    server: Server
    server_by: str
    client_by: str
    connect: Callable[..., dlock.Client]


def demand_pyverbs() -> None:
    """Skips where it cannot be loaded; with the reason."""
    try:
        binding.load()
    except binding.PyverbsError as problem:
        pytest.skip(f"pyverbs: {problem}")


@pytest.fixture(autouse=True)
def nothing_is_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    demand_pyverbs()
    for name in ("DLOCK_TRANSPORT", "DLOCK_DEVICE", "DLOCK_GID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_pairing, "avoided", _pairing.Avoided())


@contextlib.contextmanager
def by(way: str) -> Iterator[None]:
    """Queue pairs are made by the C core, or by pyverbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, way)
        yield


@pytest.fixture(scope="module", params=PAIRS, ids=lambda one: f"{one[1]}-client-{one[0]}-server")
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    demand_pyverbs()
    server_by, client_by = request.param

    def connected(**options: object) -> dlock.Client:
        with by(client_by):
            return connect(server, **options)

    with by(server_by), serving() as server:
        yield Ends(server, server_by, client_by, connected)


def lanes_of(server: Server) -> int:
    """How many queue pairs a server over pyverbs has."""
    pairs = server._primary.plane._pairs
    assert isinstance(pairs, PairServer)
    return pairs._pump.lanes


# ---- What there is -------------------------------------------------------------------------------


def test_both_choose_the_same_port() -> None:
    chosen, other = _verbs.choose(_verbs.Wish()), choose_port(_verbs.Wish())
    for name in ("name", "gid", "port", "gid_index", "gid_type", "ethernet", "soft", "mtu", "lid",
                 "atomicity", "completions_max"):
        assert getattr(chosen, name) == getattr(other, name), name


def test_what_is_there_is_told() -> None:
    report = rdma.look()
    chosen = _verbs.choose(_verbs.Wish())
    assert report.usable, report.why_not
    assert report.use is not None
    assert (report.use.device, report.use.port) == (chosen.name, chosen.port)
    assert report.use.gid == _verbs.gid_text(chosen.gid)
    assert report.use.by == "core"
    assert report.use.one_sided == (chosen.atomicity != 0 and chosen.windows_max != 0)
    (used,) = [(device.name, gid.index) for device in report.machine.devices
               for port in device.ports for gid in port.gids if gid.used]
    assert used == (chosen.name, chosen.gid_index)
    done = finish(start("rdma"))
    assert done.code == 0
    assert done.out.startswith(f"RDMA can be used: {chosen.name} port {chosen.port}")
    assert "MISSING" not in done.out


# ---- Locks ---------------------------------------------------------------------------------------


def test_each_kind_of_lock(ends: Ends) -> None:
    with ends.connect() as client, ends.connect() as other:
        for one, same in ((client.lock("a"), other.lock("a")),
                          (client.fair_lock("f"), other.fair_lock("f"))):
            with one:
                assert not same.acquire(blocking=False)
            assert same.acquire(blocking=False)
            same.release()
        readers, writer = (client.rwlock("r"), other.rwlock("r")), other.rwlock("r").write()
        with readers[0].read(), readers[1].read():
            assert not writer.acquire(blocking=False)
        with writer:
            assert not readers[0].read().acquire(blocking=False)
        slots = [client.semaphore("s", 2), other.semaphore("s", 2)]
        assert all(one.acquire(blocking=False) for one in slots)
        assert not client.semaphore("s", 2).acquire(blocking=False)
        for one in slots:
            one.release()


def test_a_wait_is_handed_over(ends: Ends) -> None:
    with ends.connect() as client, ends.connect() as other:
        holder, waiter = client.lock("w"), other.lock("w")
        got = threading.Event()

        def wait() -> None:
            with waiter:
                got.set()

        with holder:
            thread = threading.Thread(target=wait)
            thread.start()
            until(lambda: client.lock("w").locked())
            assert not got.is_set()
        thread.join(60)
        assert got.is_set()


def test_a_wait_may_run_out_and_leaves_nothing(ends: Ends) -> None:
    with ends.connect() as client, ends.connect() as other:
        with client.lock("t"):
            assert not other.lock("t").acquire(timeout=0.05)
        assert client.lock("t").acquire(blocking=False)


def test_a_flood_goes_through_the_window(ends: Ends) -> None:
    """Many times the window is under way at once, in both directions."""

    async def flood() -> None:
        with by(ends.client_by):
            client = await dlock.aio.connect(
                f"{ends.server.host}:{ends.server.port}", transport="verbs", timeout=60)
        async with client:
            assert client.transport.kind == "verbs"
            locks = [client.lock(f"flood/{k}") for k in range(150)]
            assert all(await asyncio.gather(*(one.acquire() for one in locks)))
            await asyncio.gather(*(one.release() for one in locks))

    asyncio.run(flood())


# ---- Numbers -------------------------------------------------------------------------------------


def add(client: dlock.Client, name: str, times: int, failed: list[BaseException]) -> None:
    try:
        number = client.atomic(name)
        for _ in range(times):
            number.add(1)
            while True:
                found = number.get()
                if number.compare_exchange(found, found + 1)[0]:
                    break
    except BaseException as problem:
        failed.append(problem)


def test_numbers_are_exact_whoever_adds(ends: Ends) -> None:
    """Clients over pyverbs, over the C core's verbs and over TCP, at once on one number."""
    times, failed = 25, []
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(ends.connect()), stack.enter_context(ends.connect()),
                   stack.enter_context(connect(ends.server, transport="tcp"))]
        with by("core" if ends.client_by == "pyverbs" else "pyverbs"):
            clients.append(stack.enter_context(connect(ends.server)))
        clients[0].atomic("sum")
        threads = [threading.Thread(target=add, args=(one, "sum", times, failed))
                   for one in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(200)
        assert not failed
        assert clients[0].atomic("sum").get() == 2 * times * len(clients)


def test_a_client_over_pyverbs_operates_while_the_servers_process_is_stopped(tmp_path: Path
                                                                            ) -> None:
    """So no instruction of the server has a part in it."""
    with by("core"):
        primary = Primary(tmp_path, ttl_s=3600, flags=("--transport", "verbs", "--wait", "block"))
    try:
        with by("pyverbs"), connect(primary.address) as client:
            number = client.atomic("number", 5)
            assert number.get() == 5
            primary.stop()
            assert [number.fetch_add(1) for _ in range(100)] == list(range(5, 105))
            assert number.compare_exchange(0, 1) == (False, 105)
            assert number.compare_exchange(105, 7) == (True, 105)
            assert number.get() == 7
            primary.go_on()
            with connect(primary.address, transport="tcp") as other:
                assert other.atomic("number").add(1) == 8
    finally:
        primary.kill()


def test_a_wrong_key_reaches_nothing_and_the_client_comes_back() -> None:
    with by("core"), serving() as server, connect(server) as other:
        same = other.atomic("number", 5)
        assert same.get() == 5
        with by("pyverbs"), connect(server) as client:
            number = client.atomic("number")
            assert number.add(1) == 6
            session = client._session
            ((_epoch, object_id),) = session.objects.values()
            assert lib.dlk_client_object_key(session.client, object_id, 0x7fffff01) == 0
            # Refused by the device, then asked of the server: by a connection that ends meanwhile,
            # and so, perhaps, without an answer.
            with contextlib.suppress(dlock.OutcomeUnknown):
                assert number.add(1) == 7
            found = number.get()
            assert found in (6, 7)
            assert number.add(1) == found + 1
        assert same.get() == found + 1


# ---- Ends ----------------------------------------------------------------------------------------


def test_who_leaves_says_so(ends: Ends) -> None:
    if ends.server_by != "pyverbs":
        pytest.skip("looks into a server over pyverbs")
    before = lanes_of(ends.server)
    with ends.connect() as client, client.lock("bye"):
        assert lanes_of(ends.server) == before + 1
    until(lambda: lanes_of(ends.server) == before)
    assert not ends.server.stats().get("VERBS_PEER_GONE")


def test_a_queue_pair_that_nobody_uses_ends() -> None:
    """After the time that a connection without an attach frame has, which is shortened here."""
    port = choose_port(_verbs.Wish())
    with by("pyverbs"), serving() as server:
        pairs = server._primary.plane._pairs
        assert isinstance(pairs, PairServer)
        client = ClientPair(port)
        made = pairs.verbs_pair(client.own)
        assert made.linked
        lane = pairs._pump.lane(made.pair)
        assert isinstance(lane, ServerLane)
        with pairs._pump.held():
            lane.deadline = 0.0
        until(lambda: lanes_of(server) == 0)
        client.free()


def test_a_server_that_stops_says_so() -> None:
    with by("pyverbs"):
        with serving() as server:
            client = connect(server, timeout=20)
            with client.lock("a"):
                pass
        until(lambda: not client._session.attached)
        client.close()


@pytest.mark.parametrize("client_by", ["pyverbs", "core"])
def test_a_server_that_is_killed_is_noticed(tmp_path: Path, client_by: str) -> None:
    """It says nothing, but the device of its client does: the client comes back to the next one."""
    with by("pyverbs"):
        primary = Primary(tmp_path, ttl_s=60, flags=("--transport", "verbs", "--wait", "block"))
    try:
        with by(client_by), connect(str(primary.address)) as client:
            held = client.lock("held")
            held.acquire()
            token = held.token
            with by("pyverbs"):
                primary.restart()
            with client.lock("other"):
                pass
            assert held.token == token
            assert client.transport.kind == "verbs"
            held.release()
    finally:
        primary.kill()


def test_a_client_that_is_killed_is_noticed() -> None:
    """By the server's device, when it has something to say, or by the end of the session."""
    program = ("import sys, time, dlock\n"
               "client = dlock.connect(sys.argv[1], transport='verbs', timeout=60)\n"
               "client.lock('k').acquire(); print('held', flush=True); time.sleep(600)\n")
    with by("pyverbs"), serving(session_ttl_ms=2000) as server:
        address = f"{server.host}:{server.port}"
        process = subprocess.Popen([sys.executable, "-c", program, address],
                                   stdout=subprocess.PIPE, text=True, env=os.environ.copy())
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            process.kill()
            with connect(server) as client, client.lock("k"):
                pass
            until(lambda: lanes_of(server) == 0)
        finally:
            process.kill()
            process.wait(60)


def test_a_child_of_a_fork_leaves_the_parents_alone() -> None:
    with by("pyverbs"), serving() as server, connect(server) as client:
        lock = client.lock("a")
        with lock:
            child = os.fork()
            if child == 0:
                status = 1
                with contextlib.suppress(dlock.ForkedError):
                    try:
                        lock.release()
                    except dlock.ForkedError:
                        status = 0
                del client, lock
                os._exit(status)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
        with client.lock("b"):
            pass


def test_a_device_has_room_for_so_many() -> None:
    port = choose_port(_verbs.Wish())
    pairs = PairServer(port, "127.0.0.1", 1, 2)
    try:
        clients = [ClientPair(port) for _ in range(3)]
        made = [pairs.verbs_pair(one.own) for one in clients]
        assert [one.status for one in made[:2]] == [0, 0]
        assert made[2].status == dlock.types.DlockStatus.SERVER_NO_RESOURCE
        assert "all 2 queue pairs" in made[2].reason
        for one in clients:
            one.free()
    finally:
        pairs.close()
