"""The LDLM door and LDLM's own Python client, as it comes from PyPI: py-ldlm, sync and async."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("h2", reason="the extra doors is not installed")
pytest.importorskip("ldlm", reason="py-ldlm is not installed")

import ldlm
from door_tools import Door, beside, free_port
from failover_tools import PATIENCE_S, until
from ldlm import exceptions
from ldlm_tools import ldlm_door, make_certificates, stub


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with beside(tmp_path_factory.mktemp("door")) as place:
        yield ldlm_door(place)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def target(door: Door) -> str:
    return "{}:{}".format(*door.address)


@pytest.fixture
def client(door: Door) -> Iterator[Any]:
    made = ldlm.Client(target(door), retries=0)
    yield made
    made.close()


def run(program: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(program, 4 * PATIENCE_S))


# ---- The client ----------------------------------------------------------------------------------


def test_lock_and_unlock(client: Any, name: str) -> None:
    held = client.lock(name)
    assert held
    assert not client.try_lock(name)
    assert not client.lock(name, wait_timeout_seconds=1)
    held.unlock()
    with client.lock_context(name) as inside:
        assert inside.locked
        with client.try_lock_context(name) as refused:
            assert not refused.locked
    assert client.try_lock(name)


def test_each_refusal_is_its_exception(client: Any, name: str) -> None:
    with pytest.raises(exceptions.LockDoesNotExistError, match="a lock by that name does not"):
        client.unlock(name, "key")
    held = client.lock(name, size=2)
    with pytest.raises(exceptions.InvalidLockKeyError, match="invalid lock key"):
        client.unlock(name, "key")
    with pytest.raises(exceptions.LockSizeMismatchError, match="lock size mismatch"):
        client.try_lock(name, size=3)
    with pytest.raises(exceptions.LockDoesNotExistOrInvalidKeyError):
        client.renew(name, held.key, 10)
    with pytest.raises(exceptions.LDLMError, match="lock name cannot be empty"):
        client.lock("")
    with pytest.raises(exceptions.LDLMError, match="lock timeout must be greater than 0"):
        client.renew(name, held.key, 0)


def test_locks_are_renewed_by_themselves(
    door: Door, client: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ldlm.Client, "min_renew_interval_seconds", 0.3)
    held = client.lock(name, lock_timeout_seconds=8)
    other = ldlm.Client(target(door), auto_renew_locks=False)
    assert not other.lock(name, wait_timeout_seconds=9)
    held.unlock()
    assert other.lock(name, lock_timeout_seconds=1), "and this one is not renewed"
    assert client.lock(name)
    other.close()


def test_two_clients_of_one_process_are_one_session(door: Door, name: str) -> None:
    before = door.counters().get("sessions", 0)
    one, two = ldlm.Client(target(door)), ldlm.Client(target(door))
    assert one.lock(name)
    assert not two.try_lock(name), "but each call is a party of its own"
    assert door.counters()["sessions"] == before + 1
    one.close()
    assert not two.try_lock(name), "the connection is still there"
    two.close()
    with stub(door) as other:
        assert other.lock(name).locked


def test_a_program_that_is_killed_lets_go(door: Door, client: Any, name: str) -> None:
    program = ("import sys, time, ldlm\n"
               "held = ldlm.Client(sys.argv[1]).lock(sys.argv[2])\n"
               "print(held.locked, flush=True)\n"
               "time.sleep(300)\n")
    process = subprocess.Popen([sys.executable, "-c", program, target(door), name],
                               stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert not client.try_lock(name)
        process.kill()
        assert client.lock(name)
    finally:
        process.kill()
        process.wait()


def test_a_resource_of_three_for_ten_workers(door: Door, client: Any, name: str) -> None:
    inside, most, mutex = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with client.lock_context(name, size=3):
                with mutex:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.002)
                with mutex:
                    inside -= 1

    together([work] * 10)
    assert 1 <= most <= 3


def together(works: list[Callable[[], None]]) -> None:
    """Runs them at the same time; the first failure is the test's."""
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as problem:
            failures.append(problem)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * PATIENCE_S)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


# ---- Its asyncio sister --------------------------------------------------------------------------


def test_the_same_with_asyncio(door: Door, name: str) -> None:
    async def program() -> None:
        client = ldlm.AsyncClient(target(door), retries=0)
        held = await client.lock(name)
        assert held
        assert not await client.try_lock(name)
        assert not await client.lock(name, wait_timeout_seconds=1)
        waiting = asyncio.ensure_future(client.lock(name))
        await client.try_lock("a round trip later")
        await held.unlock()
        second = await waiting
        assert second.locked
        given_up = asyncio.ensure_future(client.lock(name))
        await client.try_lock("a round trip later")
        given_up.cancel()
        await second.unlock()
        async with client.lock_context(name, lock_timeout_seconds=300) as inside:
            assert inside.locked
        with pytest.raises(exceptions.InvalidLockKeyError):
            await client.unlock(name, "key")
        await client.aclose()

    run(program())


def test_three_hundred_tasks_on_one_connection(door: Door, name: str) -> None:
    async def program() -> None:
        client = ldlm.AsyncClient(target(door), retries=0)
        inside = 0

        async def work() -> None:
            nonlocal inside
            async with client.lock_context(name):
                inside += 1
                await asyncio.sleep(0)
                assert inside == 1
                inside -= 1

        await asyncio.gather(*(work() for _ in range(300)))
        await client.aclose()

    run(program())


# ---- Password, TLS, restarts ---------------------------------------------------------------------


def test_password_and_tls_together(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    with beside(tmp_path) as place:
        door = ldlm_door(
            place, "--password", "sesame", "--tls_cert", made.path("server.pem"), "--tls_key",
            made.path("server.key"), "--client_ca", made.path("ca.pem"))
        tls = ldlm.TLSConfig(cert_file=made.path("client.pem"), key_file=made.path("client.key"),
                             ca_file=made.path("ca.pem"))
        client = ldlm.Client(target(door), password="sesame", tls=tls, retries=0)
        held = client.lock("x")
        assert held
        held.unlock()
        client.close()
        wrong = ldlm.Client(target(door), password="Sesame", tls=tls, retries=0)
        with pytest.raises(Exception, match="invalid credentials"):
            wrong.lock("x")
        wrong.close()


def test_a_client_that_tries_again_goes_on_when_the_door_comes_back(tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        door = ldlm_door(place, port=free_port())
        client = ldlm.Client(target(door), retries=-1, retry_delay_seconds=1)
        assert client.lock("x")
        waited: list[Any] = []
        waiter = threading.Thread(target=lambda: waited.append(client.lock("x")), daemon=True)
        waiter.start()
        until(lambda: door.counters().get("grpc_calls", 0) == 2)
        door.restart()
        waiter.join(4 * PATIENCE_S)
        assert waited
        assert waited[0].locked, "the lock went with its connection, and is there to be had"
        client.close()


def test_locks_are_there_after_a_restart_with_a_state_file(tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        door = ldlm_door(place, "-s", "locks", port=free_port())
        client = ldlm.Client(target(door), retries=-1, retry_delay_seconds=1)
        held = client.lock("x", size=2)
        door.restart()
        assert client.lock("x", size=2)
        assert not client.try_lock("x", size=2), "the first one is still held, by its old key"
        held.unlock()
        assert client.try_lock("x", size=2)
        client.close()
