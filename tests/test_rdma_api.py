"""The Python API and the mirror over RDMA, at a real device: locks, numbers, futures, asyncio.

Nothing here depends on how fast the machine is, which may be an emulated one: sessions last long
where their end is not what is tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aio_tools import run, stop_at
from failover_tools import Primary, until
from mirror_tools import HOST, S, client_cfg, ex, free_port, start_server

import dlock
import dlock.aio
from dlock import _pairing, _verbs, dclient, dserver
from dlock.server import Server, ServerConfig
from dlock.types import AtomicDesc, LockDesc

pytestmark = pytest.mark.rdma

TTL_S = 60.0
PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch) -> None:
    for name in ("DLOCK_TRANSPORT", "DLOCK_DEVICE", "DLOCK_GID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_pairing, "avoided", _pairing.Avoided())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server(ServerConfig(
        port=0, wait_mode="block", transport="verbs", session_ttl_ms=int(TTL_S * 1000)))
    yield one
    one.stop()


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    started = Primary(tmp_path, ttl_s=TTL_S, flags=("--transport", "verbs"))
    yield started
    started.kill()


def device() -> str:
    """The one that is taken if nobody asks for another."""
    return _verbs.choose(_verbs.Wish()).name


def channels() -> int:
    """How many completion channels this process has open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += "infinibandevent" in os.readlink(f"/proc/self/fd/{name}")
    return count


def said(caplog, words: str) -> list[str]:
    return [one.getMessage() for one in caplog.records if words in one.getMessage()]


# ---- The blocking client -------------------------------------------------------------------------


def test_a_client_takes_rdma_and_says_so(server: Server, caplog) -> None:
    caplog.set_level(logging.INFO)
    with dlock.connect(server.address) as client:
        assert client.transport.kind == "verbs"
        assert client.transport.device == device()
        (line,) = said(caplog, "the data plane of")
        assert f"over RDMA, device {device()}" in line
        (peer,) = (one for one in client.admin.clients() if one.connected)
        assert peer.transport == "verbs"
    with dlock.connect(server.address, transport="verbs", device=device()) as client:
        assert client.transport.kind == "verbs"


def test_every_kind_of_lock(server: Server, background) -> None:
    with dlock.connect(server.address) as one, dlock.connect(server.address) as other:
        for make in (lambda c: c.lock("plain"), lambda c: c.fair_lock("fair"),
                     lambda c: c.rwlock("rw").write(), lambda c: c.semaphore("one", 1)):
            mine, theirs = make(one), make(other)
            assert mine.acquire(timeout=PATIENCE_S)
            assert not theirs.acquire(blocking=False)
            waits = server.stats()["WAITS"]
            waiting = background(theirs.acquire)
            until(lambda waits=waits: server.stats()["WAITS"] > waits)
            token = mine.token
            mine.release()
            assert waiting.result(PATIENCE_S)
            assert theirs.token > token
            theirs.release()
        readers = [client.rwlock("rw").read() for client in (one, other)]
        for reader in readers:
            assert reader.acquire(timeout=PATIENCE_S)
        for reader in readers:
            reader.release()


def test_threads_exclude_each_other(server: Server, background) -> None:
    inside = []

    def work(client: dlock.Client) -> None:
        lock = client.lock("crowd")
        for _ in range(20):
            with lock:
                inside.append(1)
                assert len(inside) == 1
                inside.pop()

    with dlock.connect(server.address) as one, dlock.connect(server.address) as other:
        for done in [background(work, client) for client in (one, other) for _ in range(3)]:
            done.result(PATIENCE_S)


def test_futures(server: Server) -> None:
    with dlock.connect(server.address) as one, dlock.connect(server.address) as other:
        mine, theirs = one.lock("future"), other.lock("future")
        assert mine.acquire()
        first, second = theirs.acquire_future(), theirs.acquire_future()
        assert second.cancel()
        mine.release()
        assert first.result(PATIENCE_S)
        theirs.release()
        assert mine.acquire(timeout=PATIENCE_S)
        mine.release()


def test_a_wait_that_is_over_leaves_nothing(server: Server) -> None:
    with dlock.connect(server.address) as one, dlock.connect(server.address) as other:
        mine, theirs = one.lock("over"), other.lock("over")
        assert mine.acquire()
        assert not theirs.acquire(timeout=0.2)
        mine.release()
        assert mine.acquire(timeout=PATIENCE_S)
        mine.release()


def test_a_forked_child_leaves_its_parents_queue_pair_alone(server: Server) -> None:
    with dlock.connect(server.address) as client:
        lock = client.lock("forked")
        assert lock.acquire()
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(dlock.ForkedError):
                client.stats()
                code = 2
            client.close()
            del lock, client
            os._exit(code - 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.transport.kind == "verbs"
        lock.ensure_held()
        lock.release()
        with lock:
            pass
        assert client._whole()


def test_clients_that_come_and_go_leave_no_queue_pair(server: Server) -> None:
    dlock.connect(server.address).close()
    before = channels()
    for _ in range(5):
        with dlock.connect(server.address) as client, client.lock("come and go"):
            assert client.transport.kind == "verbs"
    until(lambda: channels() <= before)


# ---- Numbers: the server's processor has no part in it -------------------------------------------


def test_numbers_go_on_while_the_servers_process_is_stopped(primary: Primary) -> None:
    with dlock.connect(primary.address, timeout=PATIENCE_S) as client:
        number = client.atomic("n", 5)
        assert number.get() == 5
        primary.stop()
        try:
            for count in range(100):
                assert number.fetch_add(1) == 5 + count
            assert number.compare_exchange(105, 7) == (True, 105)
            assert number.compare_exchange(105, 8) == (False, 7)
            assert number.get() == 7
        finally:
            primary.go_on()
        with client.lock("after"):
            assert number.get() == 7


def test_numbers_of_asyncio_too(primary: Primary) -> None:
    async def program() -> None:
        async with dlock.aio.connect(primary.address, timeout=PATIENCE_S) as client:
            number = client.atomic("n", 5)
            assert await number.get() == 5
            primary.stop()
            try:
                for count in range(20):
                    assert await number.fetch_add(1) == 5 + count
            finally:
                primary.go_on()
            async with client.lock("after"):
                assert await number.get() == 25

    run(program(), 3 * PATIENCE_S)


def test_a_number_that_was_destroyed_ends_no_connection(server: Server) -> None:
    with dlock.connect(server.address) as client:
        number = client.atomic("gone", 5)
        assert number.add(1) == 6
        session, link = client._session, client._session.link
        number.destroy()
        with client.lock("after"):
            pass
        assert client._session is session
        assert client._session.link is link


def test_one_counter_over_rdma_and_tcp(server: Server, background) -> None:
    """One atomicity domain: the sum is exact."""

    def count(client: dlock.Client) -> None:
        number = client.atomic("sum", 0)
        for _ in range(50):
            number.add(1)

    with (dlock.connect(server.address) as rdma,
          dlock.connect(server.address, transport="tcp") as tcp):
        assert (rdma.transport.kind, tcp.transport.kind) == ("verbs", "tcp")
        for done in [background(count, client) for client in (rdma, tcp) for _ in range(2)]:
            done.result(PATIENCE_S)
        assert rdma.atomic("sum").get() == tcp.atomic("sum").get() == 200


# ---- asyncio -------------------------------------------------------------------------------------


def test_tasks_wait_in_line(server: Server) -> None:
    async def program() -> None:
        async with (dlock.aio.connect(server.address) as one,
                    dlock.aio.connect(server.address) as other):
            assert one.transport.kind == "verbs"
            inside = 0

            async def work(client: dlock.aio.Client) -> None:
                nonlocal inside
                for _ in range(3):
                    async with client.lock("tasks"):
                        inside += 1
                        assert inside == 1
                        await asyncio.sleep(0)
                        inside -= 1

            await asyncio.gather(*(work(client) for client in (one, other) for _ in range(10)))

    run(program(), 3 * PATIENCE_S)


def test_a_connect_struck_at_every_await_point_leaves_nothing(server: Server) -> None:
    async def connect() -> dlock.aio.Client:
        return await dlock.aio.connect(server.address, transport="verbs")

    async def program() -> None:
        before = channels()
        for wait in itertools.count():
            how, came = await stop_at(connect(), wait, "cancelled", asyncio.CancelledError())
            if isinstance(came, dlock.aio.Client):
                await came.close()
            if how == "ended":
                break
        assert wait >= 3  # to connect, to be welcomed, to be given a queue pair
        async with dlock.aio.connect(server.address) as client, client.lock("after"):
            assert client.transport.kind == "verbs"
        assert channels() <= before

    dlock.connect(server.address).close()
    run(program(), 3 * PATIENCE_S)
    until(lambda: server.stats()["clients"] == 0)


# ---- The mirror ----------------------------------------------------------------------------------


@pytest.fixture
def mirror() -> Iterator[Callable[..., None]]:
    """A server of the mirror at the device, and the client library set up so."""
    assert dserver.dserver_lib_init(1) is S.SUCCESS
    port = free_port()
    start_server(port, dev_name=device())

    def start(**client: Any) -> None:
        assert dclient.dclient_lib_init(client_cfg(port, **client)) is S.SUCCESS

    yield start
    dclient.dclient_lib_deinit()
    dserver.dserver_lib_deinit()


def gid_as_text() -> str:
    return _verbs.gid_text(_verbs.choose(_verbs.Wish()).gid)


@pytest.mark.parametrize("by", ["dev_name", "eid"])
def test_the_mirrors_device_or_address_is_used(
    mirror: Callable[..., None], by: str, caplog
) -> None:
    caplog.set_level(logging.INFO)
    mirror(**{by: device() if by == "dev_name" else gid_as_text()})
    status, client_id = dclient.client_init(HOST)
    assert status is S.SUCCESS
    assert f"over RDMA, device {device()}" in caplog.text
    status, lock_id = dclient.get_lock(client_id, LockDesc(b"a"))
    assert dclient.trylock(client_id, ex(lock_id))[0] is S.SUCCESS
    assert dclient.client_reinit(client_id, HOST) is S.SUCCESS
    assert dclient.client_reinit_done(client_id) is S.SUCCESS
    assert dclient.unlock(client_id, lock_id)[0] is S.SUCCESS
    desc = AtomicDesc(b"n", 60)
    status, object_id = dclient.umo_atomic64_create(client_id, desc, 5)
    assert dclient.umo_atomic64_get(client_id, desc) == (S.SUCCESS, object_id)
    assert dclient.umo_atomic64_faa(client_id, object_id, 2) == (S.SUCCESS, 5)
    assert dclient.umo_atomic64_cas(client_id, object_id, 7, 9) == (S.SUCCESS, 9)
    assert dclient.umo_atomic64_get_snapshot(client_id, object_id) == (S.SUCCESS, 9)
    assert dclient.umo_atomic64_release(client_id, object_id) is S.SUCCESS
    assert dclient.umo_atomic64_faa(client_id, object_id, 2)[0] is S.OBJECT_NOT_GET
    assert dclient.client_deinit(client_id) is S.SUCCESS


def test_a_mirror_client_without_a_device_goes_over_tcp(
    mirror: Callable[..., None], caplog
) -> None:
    caplog.set_level(logging.INFO)
    mirror()
    status, client_id = dclient.client_init(HOST)
    assert status is S.SUCCESS
    assert "over RDMA" not in caplog.text
    assert dclient.client_deinit(client_id) is S.SUCCESS


def test_a_mirror_client_with_a_device_that_is_not_there(
    mirror: Callable[..., None], caplog
) -> None:
    mirror(dev_name="none_of_ours")
    assert dclient.client_init(HOST) == (S.ERROR, None)
    assert "none_of_ours" in caplog.text


def test_interrupts_leave_no_queue_pair(server: Server) -> None:
    """A thread that connects while the server does not answer, and gives up."""
    ended = threading.Event()

    def connect() -> None:
        with contextlib.suppress(dlock.ConnectError):
            dlock.connect(server.address, transport="verbs", timeout=0.001).close()
        ended.set()

    dlock.connect(server.address).close()
    before = channels()
    for _ in range(5):
        ended.clear()
        threading.Thread(target=connect, daemon=True).start()
        assert ended.wait(PATIENCE_S)
    until(lambda: channels() <= before)
