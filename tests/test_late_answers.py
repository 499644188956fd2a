"""SUSPENDED comes before the server can give the lock to anyone else, also when an answer is late:
a grant that lay in a socket for longer than its lease, renewals that nobody hears of."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from far_process import FarProcess, Raised
from lock_tools import until
from proxy import Proxy

import dlock
from dlock._core import now_ns
from dlock.server import Server, ServerConfig

TTL_S = 3.0


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0, session_ttl_ms=int(TTL_S * 1000), wait_mode="block"))
    yield one
    one.stop()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    one = Proxy(server)
    yield one
    one.close()


@pytest.fixture
def client(server: Server) -> Iterator[dlock.Client]:
    with dlock.connect(server.address, timeout=20) as connected:
        yield connected


@pytest.fixture
def behind(proxy: Proxy) -> Iterator[FarProcess]:
    """A program whose answers go through the proxy."""
    process = FarProcess(proxy.address)
    yield process
    process.close()


@pytest.mark.parametrize("where", ["in the network", "in its own socket"])
def test_a_grant_that_lay_in_a_buffer_for_longer_than_its_lease(
    where: str, client: dlock.Client, proxy: Proxy, behind: FarProcess
) -> None:
    first = client.lock("it")
    first.acquire()
    behind.let("lock", "client.lock('it', renew=False)")
    behind.tell("=lock.acquire(lease=0.3, timeout=60)")
    until(lambda: len(client.admin.show("it").waiters) == 1)
    if where == "in the network":
        proxy.hold_answers()
    else:
        behind.signal(signal.SIGSTOP)
    first.release()
    other = client.lock("it")
    assert other.acquire(timeout=60)  # its lease has come and gone; it has not heard of it
    if where == "in the network":
        proxy.mend()
    else:
        behind.signal(signal.SIGCONT)
    assert behind.result() is True  # it was granted, once
    assert behind.ask("lock.held") is False
    assert behind.ask("lock.remaining") == 0
    with pytest.raises(Raised) as caught:
        behind.ask("lock.release()")
    assert caught.value.kind == "LockLost"
    assert other.held


def test_renewals_that_nobody_hears_of_are_not_believed(
    client: dlock.Client, proxy: Proxy, behind: FarProcess
) -> None:
    """The server hears of the client and renews its session; only an answer tells the client so."""
    behind.let("lock", "client.lock('it')")
    assert behind.ask("lock.acquire()") is True
    assert behind.ask("lock.lost.is_set()") is False
    proxy.hold_answers()
    held_until_ns = behind.ask("now_ns() + int(lock.remaining * 1e9)")
    while now_ns() < held_until_ns + int(TTL_S / 4 * 1e9):
        time.sleep(0.01)
    assert behind.ask("lock.held") is False
    late_from_ns = now_ns()
    proxy.mend()
    until(lambda: behind.ask("lock.held") or behind.ask("lock.lost.is_set()"))
    believed_until_ns = behind.ask("now_ns() + int(lock.remaining * 1e9)")
    if behind.ask("lock.held"):  # by an answer to what was asked after the silence
        assert believed_until_ns > late_from_ns + int(TTL_S / 2 * 1e9)
        assert not client.lock("it").acquire(blocking=False)
        behind.ask("lock.release()")
