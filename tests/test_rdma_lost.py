"""RDMA is lost, at a real device: the server dies, or has none any more, or the network drops what
is sent over it. What is held stays held, over RDMA again or over TCP.

Nothing here depends on how fast the machine is, which may be an emulated one: sessions last long.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aio_tools import run
from failover_tools import Primary, back_at, epoch_of, until

import dlock
import dlock.aio
from dlock import _pairing, _verbs
from dlock.server import Server, ServerConfig

pytestmark = pytest.mark.rdma

TTL_S = 60.0
PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch) -> None:
    for name in ("DLOCK_TRANSPORT", "DLOCK_DEVICE", "DLOCK_GID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_pairing, "avoided", _pairing.Avoided())


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    started = Primary(tmp_path, ttl_s=TTL_S, flags=("--transport", "verbs"))
    yield started
    started.kill()


@pytest.fixture
def crossing() -> tuple[str, str]:
    """Two devices whose packets really cross a network interface, which can lose them."""
    names = {port.name for port in _verbs.ports()[0]}
    if not {"rxe1", "rxe2"} <= names:
        pytest.skip("the devices rxe1 and rxe2 of scripts/guest (veth) are not there")
    return "rxe1", "rxe2"


def said(caplog, words: str) -> list[str]:
    return [one.getMessage() for one in caplog.records if words in one.getMessage()]


# ---- Failover ------------------------------------------------------------------------------------


def test_what_is_held_over_rdma_comes_back_at_a_new_primary(primary: Primary, background) -> None:
    """kill -9, and another one: the same tokens, over RDMA again; a wait goes on."""
    with (dlock.connect(primary.address, timeout=PATIENCE_S) as holder,
          dlock.connect(primary.address, timeout=PATIENCE_S) as waiter):
        lock, writer = holder.lock("held"), holder.rwlock("rw").write()
        assert lock.acquire()
        assert writer.acquire()
        tokens = lock.token, writer.token
        waiting = background(waiter.lock("held").acquire)
        epoch = epoch_of(holder)
        primary.restart()
        for client in (holder, waiter):
            until(lambda client=client: epoch_of(client) > epoch, PATIENCE_S)
            back_at(client, epoch + 1)
            assert client.transport.kind == "verbs"
        lock.ensure_held()
        assert (lock.token, writer.token) == tokens
        lock.release()
        writer.release()
        assert waiting.result(PATIENCE_S)


def test_a_new_primary_without_rdma_is_reached_over_tcp(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    first = Primary(tmp_path, ttl_s=TTL_S, flags=("--transport", "verbs"))
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(dlock.connect(first.address, timeout=PATIENCE_S))
        lock = client.lock("held")
        assert lock.acquire()
        token, epoch = lock.token, epoch_of(client)
        first.kill()
        second = Primary(tmp_path, ttl_s=TTL_S, flags=("--transport", "tcp"))
        stack.callback(second.kill)
        until(lambda: epoch_of(client) > epoch, PATIENCE_S)
        back_at(client, epoch + 1)
        assert client.transport.kind == "tcp"
        assert lock.token == token
        lock.ensure_held()
        lock.release()
        client.close()
    assert len(said(caplog, "over TCP: the server has no RDMA")) == 1


# ---- Where RDMA is not to be had -----------------------------------------------------------------


def test_a_server_of_tcp_alone(caplog) -> None:
    one = Server(ServerConfig(port=0, wait_mode="block", transport="tcp"))
    with dlock.connect(one.address) as client, client.lock("a"):
        assert client.transport.kind == "tcp"
    one.stop()


def test_a_device_that_is_not_there_is_named() -> None:
    one = Server(ServerConfig(port=0, wait_mode="block", transport="verbs"))
    with pytest.raises(dlock.ConnectError, match="none_of_ours"):
        dlock.connect(one.address, transport="verbs", device="none_of_ours")
    with dlock.connect(one.address, device="none_of_ours") as client:
        assert client.transport.kind == "tcp"
        assert "none_of_ours" in client.transport.why
    one.stop()


@contextlib.contextmanager
def losing_all(interface: str) -> Iterator[None]:
    """What this interface sends is lost."""
    words = ["tc", "qdisc", "add", "dev", interface, "root", "netem", "loss", "100%"]
    subprocess.run(words, check=True)
    try:
        yield
    finally:
        subprocess.run(["tc", "qdisc", "del", "dev", interface, "root"], check=True)


def test_a_network_that_drops_rdma_is_gone_round_over_tcp(
    crossing: tuple[str, str], caplog
) -> None:
    caplog.set_level(logging.INFO)
    here, there = crossing
    one = Server(ServerConfig(port=0, wait_mode="block", transport="verbs", device=here))
    with dlock.connect(one.address, device=there) as client:  # each end has heard of the other
        assert client.transport.kind == "verbs"
    with losing_all("rdma1"), losing_all("rdma2"):
        with dlock.connect(one.address, device=there, timeout=PATIENCE_S) as client:
            assert client.transport.kind == "tcp"
            with client.lock("a"):
                pass
        (warning,) = (line for line in caplog.records if line.levelno == logging.WARNING
                      and line.name == "dlock.client")
        assert f"does not answer {there}" in warning.getMessage()
        # It is not tried again so soon.
        with dlock.connect(one.address, device=there, timeout=PATIENCE_S) as client:
            assert "a moment ago" in client.transport.why

        async def program() -> None:
            _pairing.avoided.forget(one.address, client._options.wish)
            async with dlock.aio.connect(
                one.address, device=there, timeout=PATIENCE_S
            ) as another:
                assert another.transport.kind == "tcp"
                async with another.lock("a"):
                    pass

        run(program(), 3 * PATIENCE_S)
    _pairing.avoided.forget(one.address, client._options.wish)
    with dlock.connect(one.address, device=there) as client, client.lock("a"):
        assert client.transport.kind == "verbs"
    one.stop()


def test_a_client_whose_packets_are_lost_comes_back_over_tcp_with_what_it_holds(
    crossing: tuple[str, str]
) -> None:
    here, there = crossing
    one = Server(ServerConfig(port=0, wait_mode="block", transport="verbs", device=here,
                              session_ttl_ms=int(TTL_S * 1000)))
    with dlock.connect(one.address, device=there) as client:
        assert client.transport.kind == "verbs"
        lock = client.lock("held")
        assert lock.acquire()
        token = lock.token
        with losing_all("rdma1"), losing_all("rdma2"):
            with client.lock("meanwhile"):  # it is asked for until it is granted, over TCP
                assert client.transport.kind == "tcp"
            lock.ensure_held()
            assert lock.token == token
        lock.release()
    one.stop()
