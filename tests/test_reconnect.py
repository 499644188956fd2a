"""Lost links and new primaries: what comes back by itself, what is lost, who is told."""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mirror_tools import free_port, line_of, run_python
from proxy import Proxy
from session_tools import acquire, confirmed, ended, key, release, until

import dlock
from dlock import _notices, errors
from dlock._calls import Outcome
from dlock._notices import Notice
from dlock.admin import Admin
from dlock.server import Server, ServerConfig
from dlock.types import DlockStatus

Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers with these settings; all have ended after the test."""
    started: list[Server] = []

    def one(**settings: Any) -> Server:
        server = Server(ServerConfig(**{"port": 0, "wait_mode": "block", **settings}))
        started.append(server)
        return server

    yield one
    for server in started:
        server.stop()


@pytest.fixture
def proxied(start: Start) -> Iterator[Callable[..., tuple[Server, Proxy]]]:
    """A server, and a network to it."""
    proxies: list[Proxy] = []

    def one(**settings: Any) -> tuple[Server, Proxy]:
        server = start(**settings)
        proxies.append(Proxy(server))
        return server, proxies[-1]

    yield one
    for proxy in proxies:
        proxy.close()


class Watch:
    """Keeps what it is told of a hold."""

    def __init__(self, handle: Any) -> None:
        self.told: list[tuple[int, int]] = []
        handle.watcher = lambda kind, token: self.told.append((kind, token))

    def heard(self, kind: int) -> bool:
        return any(one == kind for one, _ in self.told)


# ---- The session goes on -------------------------------------------------------------------------


@pytest.mark.parametrize("plane", ["control", "data", "both"])
def test_a_cut_link_comes_back_by_itself_and_holds_stay(proxied, plane: str) -> None:
    server, proxy = proxied()
    client = dlock.connect(proxy.address)
    handle = acquire(client, key("a"))
    token, session, number = handle.acquire.token, client._session, client._session.id
    accepted = proxy.accepted
    proxy.cut(*{"control": (server.port,), "data": (server.data_port,), "both": ()}[plane])
    if plane == "control":
        client.stats()  # nobody looks at that link before it is used
    until(lambda: proxy.accepted >= accepted + 2 and client._whole())
    assert client._session is session
    assert session.id == number
    assert confirmed(handle)
    assert handle.acquire.token == token
    with dlock.connect(server.address) as other:
        rival = other._take(key("a"), 0, time.monotonic() + 10)
        rival.acquire.wait_ms = 0
        assert ended(rival, rival.acquire) == DlockStatus.FAIL
    assert release(handle) is Outcome.DONE
    client.close()


def test_over_rdma_the_end_of_the_control_link_is_seen_without_being_used(proxied) -> None:
    """A queue pair does not tell that its server has died."""
    server, proxy = proxied(session_ttl_ms=4000)
    client = dlock.connect(proxy.address, transport="tcp")
    handle, session = acquire(client, key("a")), client._session
    token = handle.acquire.token
    session.transport = dlock.Transport("verbs", "rxe7", "as if")
    accepted = proxy.accepted
    proxy.cut(server.port)
    until(lambda: proxy.accepted >= accepted + 2 and client._whole())
    assert client._session is session
    assert confirmed(handle)
    assert handle.acquire.token == token
    release(handle)
    client.close()


def test_whoever_waits_for_a_lock_waits_on(proxied, background) -> None:
    server, proxy = proxied()
    holder, client = dlock.connect(server.address), dlock.connect(proxy.address)
    held = acquire(holder, key("a"))
    waits = [background(acquire, client, key("a"), actor) for actor in range(1, 4)]
    until(lambda: server.stats()["WAITS"] >= 3)
    accepted = proxy.accepted
    proxy.cut()
    until(lambda: proxy.accepted >= accepted + 2 and client._whole())
    assert server.stats()["WAITS"] == 3  # they have kept their places
    release(held)
    for _ in range(3):
        until(lambda: any(wait.done() for wait in waits))
        done = next(wait for wait in waits if wait.done())
        waits.remove(done)
        assert release(done.result()) is Outcome.DONE
    client.close()
    holder.close()


def test_a_release_without_a_link_reaches_the_server(proxied) -> None:
    server, proxy = proxied()
    client, other = dlock.connect(proxy.address), dlock.connect(server.address)
    handle = acquire(client, key("a"))
    proxy.silence()
    proxy.cut()
    assert release(handle) is Outcome.UNANSWERED
    proxy.mend()
    release(acquire(other, key("a")))
    client.close()
    other.close()


def test_what_is_asked_meanwhile_waits_within_its_time(proxied, background) -> None:
    server, proxy = proxied()
    client = dlock.connect(proxy.address)
    proxy.silence()
    proxy.cut()
    with pytest.raises(errors.ConnectionLost) as raised:
        acquire(client, key("new"), seconds=0.3)
    assert proxy.address in str(raised.value)
    patient = background(acquire, client, key("new"))
    time.sleep(0.2)
    assert not patient.done()
    proxy.mend()
    assert release(patient.result(timeout=20)) is Outcome.DONE
    client.close()
    assert server.stats()["clients"] == 0


def test_locks_stay_exclusive_while_links_are_cut_again_and_again(proxied, background) -> None:
    _server, proxy = proxied()
    clients = [dlock.connect(proxy.address) for _ in range(2)]
    chance = random.Random(4)
    ended = threading.Event()
    inside: dict[int, int] = {}
    tokens: dict[int, list[int]] = {number: [] for number in range(4)}

    def work(client: dlock.Client, actor: int) -> int:
        turns = 0
        while not ended.is_set():
            number = (turns + actor) % 4
            handle = acquire(client, key(f"name {number}"), actor, seconds=60)
            if confirmed(handle):
                assert inside.setdefault(number, actor) == actor
                tokens[number].append(handle.acquire.token)
                del inside[number]
            release(handle)
            turns += 1
        return turns

    workers = [background(work, client, actor) for client in clients for actor in range(1, 4)]
    try:
        for _ in range(25):
            time.sleep(chance.random() / 10)
            proxy.cut(*chance.choice([(), proxy.ports[:1], proxy.ports[1:]]))
    finally:
        ended.set()
    assert all(worker.result(timeout=60) > 10 for worker in workers)
    for seen in tokens.values():
        assert seen == sorted(set(seen))  # fencing tokens only grow
    for client in clients:
        client.close()


def test_an_interrupt_on_the_control_link_leaves_nothing_locked(start: Start, monkeypatch) -> None:
    """Wherever it hits: here in the worst place, between taking the link and using it."""
    client = dlock.connect(start().address)
    session, link = client._session, client._session.link

    def interrupted(*_arguments: object) -> None:
        monkeypatch.undo()
        link._lock.acquire()
        raise KeyboardInterrupt

    monkeypatch.setattr(link, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        acquire(client, key("a"))
    release(acquire(client, key("a")))
    assert client._session is session
    assert client._session.link is not link
    client.close()


# ---- The session is over -------------------------------------------------------------------------


def test_a_session_that_was_removed_is_replaced_and_its_holds_are_lost(proxied, caplog) -> None:
    server, proxy = proxied(session_ttl_ms=1000)
    client = dlock.connect(proxy.address)
    old = client._session
    handle, idle = acquire(client, key("a")), acquire(client, key("b"))
    watch = Watch(handle)
    release(idle)
    proxy.silence()
    until(lambda: server.stats()["clients"] == 0)
    assert not confirmed(handle)  # suspended before the server gave up
    proxy.mend()
    until(lambda: watch.heard(_notices.LOST))
    assert watch.told[-1] == (_notices.LOST, handle.acquire.token)
    until(lambda: client._session is not old and client._whole())
    assert old.ended
    assert not confirmed(handle)
    assert isinstance(client._lost(handle), errors.LockLost)
    assert release(acquire(client, key("a"))) is Outcome.DONE
    assert "had ended" in caplog.text
    client.close()
    assert server.stats()["clients"] == 0


def test_a_lease_is_given_up_with_its_session_and_nobody_gets_it_before_its_end(proxied) -> None:
    server, proxy = proxied(session_ttl_ms=1000)
    client = dlock.connect(proxy.address)
    lock = client.lock("a", lease=60)
    assert lock.acquire()
    proxy.silence()
    until(lambda: server.stats()["clients"] == 0)
    assert lock.held  # the lease runs on, here as at the server
    proxy.mend()
    assert lock.lost.wait(20)
    assert not lock.held
    with pytest.raises(errors.LockLost):
        lock.release()
    with dlock.connect(server.address) as other:
        assert not other.lock("a").acquire(timeout=0.1)
    client.close()


def test_at_a_primary_that_knows_nobody_what_was_held_is_lost(
    start: Start, tmp_path: Path, background
) -> None:
    port = free_port()
    settings = {"port": port, "session_ttl_ms": 3000}
    former = start(**settings, state_dir=tmp_path / "former")
    client = dlock.connect(former.address)
    handle = acquire(client, key("a"))
    watch = Watch(handle)
    epoch, token = client._session.epoch, handle.acquire.token
    former.stop()
    waiting = background(acquire, client, key("a"))
    until(lambda: client._recovering is not None)
    start(**settings, state_dir=tmp_path / "another", epoch_above=epoch)
    again = waiting.result(timeout=30)
    assert client._session.epoch > epoch
    assert again.acquire.token > token
    until(lambda: watch.heard(_notices.LOST))
    assert release(again) is Outcome.DONE
    client.close()


SERVES = """
import sys
from pathlib import Path
from dlock.server import Server, ServerConfig

server = Server(ServerConfig(port=int(sys.argv[1]), state_dir=Path(sys.argv[2]), wait_mode="block",
                             session_ttl_ms=1000, epoch_above=int(sys.argv[3])))
print("serving", flush=True)
sys.stdin.read()
"""


@pytest.mark.data_plane
def test_a_primary_that_is_killed(tmp_path: Path) -> None:
    port = free_port()
    former = run_python(SERVES, port, tmp_path / "former", 0)
    assert line_of(former) == "serving"
    client = dlock.connect(f"127.0.0.1:{port}")
    handle = acquire(client, key("a"))
    watch = Watch(handle)
    former.kill()
    former.wait()
    successor = run_python(SERVES, port, tmp_path / "another", 1)  # one that knows nobody
    again = acquire(client, key("a"), seconds=60)
    assert again.acquire.token > handle.acquire.token
    until(lambda: watch.heard(_notices.LOST))
    client.close()
    successor.communicate("", timeout=60)


@pytest.mark.data_plane
def test_a_new_primary_at_another_address(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "address"
    former = start(state_dir=tmp_path / "state", session_ttl_ms=1000)
    file.write_text(f"{former.address}\n")
    client = dlock.connect(file)
    former.stop()
    successor = start(state_dir=tmp_path / "state", session_ttl_ms=1000)
    file.write_text(f"{successor.address}\n")
    release(acquire(client, key("a"), seconds=30))
    until(lambda: successor.stats()["clients"] == 1)
    client.close()


def test_one_of_several_addresses_is_found(start: Start, tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    settings = {"state_dir": tmp_path, "session_ttl_ms": 1000}
    former = start(port=ports[0], **settings)
    client = dlock.connect(",".join(f"127.0.0.1:{port}" for port in ports))
    former.stop()
    start(port=ports[1], **settings)
    release(acquire(client, key("a"), seconds=30))
    client.close()


@pytest.mark.parametrize(("first", "second"), [(5, 3), (5, 5)])
def test_a_primary_of_the_past_is_not_obeyed(
    start: Start, tmp_path: Path, first: int, second: int
) -> None:
    file = tmp_path / "address"
    present = start(epoch_above=first - 1)
    file.write_text(present.address)
    client = dlock.connect(file)
    handle = acquire(client, key("a"))
    past = start(epoch_above=second - 1, state_dir=tmp_path / "past")
    file.write_text(past.address)
    present.stop()
    until(lambda: past.stats()["connections"] > 0)
    with pytest.raises(errors.ConnectionLost):
        acquire(client, key("b"), seconds=1)
    assert not client._session.ended  # what it says counts for nothing
    until(lambda: past.stats()["clients"] == 0)  # but for the moment in which it is looked at
    assert past.stats()["GRANTS"] == 0
    file.write_text(start(epoch_above=first).address)
    release(acquire(client, key("b"), seconds=30))
    assert client._session.epoch == first + 1
    del handle
    client.close()


def test_closing_while_there_is_no_server_is_quick_and_ends_the_search(start: Start) -> None:
    server = start()
    client = dlock.connect(server.address)
    server.stop()
    until(lambda: client._recovering is not None)
    thread = client._recovering
    client.close()
    until(lambda: not thread.is_alive())


def test_a_session_that_is_taken_up_for_a_client_that_was_closed_ends_at_once(proxied) -> None:
    server, proxy = proxied(session_ttl_ms=60_000)
    client = dlock.connect(proxy.address)
    handle = acquire(client, key("a"))
    proxy.cut()
    proxy.silence()
    until(lambda: client._recovering is not None)
    time.sleep(0.1)
    client.close()
    proxy.mend()
    until(lambda: server.stats()["clients"] == 0, 30)
    assert not confirmed(handle)


def test_a_client_that_is_closed_without_a_link_says_so_to_the_server(proxied) -> None:
    server, proxy = proxied(session_ttl_ms=60_000)
    client = dlock.connect(proxy.address)
    handle = acquire(client, key("a"))
    client._recovering = threading.current_thread()  # nobody brings the links back
    proxy.cut()
    until(lambda: client._session.link.closed or not client._session.attached)
    client.close()
    until(lambda: server.stats()["clients"] == 0)
    assert not confirmed(handle)


def test_a_client_that_was_dropped_is_not_searched_for(start: Start, recwarn) -> None:
    server = start()
    clients = [dlock.connect(server.address)]
    server.stop()
    until(lambda: clients[0]._recovering is not None)
    thread = clients[0]._recovering
    clients.clear()

    def is_over() -> bool:
        gc.collect()
        return not thread.is_alive()

    until(is_over)
    until(lambda: any("unclosed" in str(one.message) for one in recwarn))


# ---- Notices -------------------------------------------------------------------------------------


def test_a_callback_that_fails_hurts_nobody(start: Start, caplog) -> None:
    client = dlock.connect(start().address)
    bad, good = acquire(client, key("a")), acquire(client, key("b"))

    def fail(_kind: int, _token: int) -> None:
        raise ValueError("on purpose")

    bad.watcher = fail
    watch = Watch(good)
    with caplog.at_level(logging.ERROR, "dlock.client"):
        for handle in (bad, good):
            _notices._bring(Notice(client._session.number, handle.owner, 7, 0, _notices.BROKEN))
    assert watch.told == [(_notices.BROKEN, 7)]
    assert "on purpose" in caplog.text
    assert isinstance(client._lost(good), errors.Broken)
    client.close()


@pytest.mark.data_plane
def test_a_suspended_session_is_told_to_holds_without_a_lease(start: Start) -> None:
    client = dlock.connect(start().address)
    plain, leased = acquire(client, key("a")), acquire(client, key("b"))
    leased.acquire.lease_ms = 1000
    watches = [Watch(plain), Watch(leased)]
    for kind in (_notices.SESSION_SUSPENDED, _notices.SESSION_CONFIRMED):
        _notices._bring(Notice(client._session.number, 0, 0, 0, kind))
    assert [kind for kind, _ in watches[0].told] == [_notices.SUSPENDED, _notices.CONFIRMED]
    assert watches[1].told == []
    client.close()


def test_after_notices_were_dropped_every_hold_is_looked_at(start: Start) -> None:
    client = dlock.connect(start().address)
    held, lost = acquire(client, key("a")), acquire(client, key("b"))
    watches = [Watch(held), Watch(lost)]
    assert ended(lost, lost.release) == DlockStatus.SUCCESS  # and nobody was told
    _notices._bring(Notice(0, 0, 0, 0, _notices.OVERFLOW))
    assert watches[0].told == []
    assert watches[1].told == [(_notices.LOST, lost.acquire.token)]
    client.close()


@pytest.mark.data_plane
def test_a_hold_that_an_operator_breaks_is_told_and_given_back(start: Start) -> None:
    server = start()
    client = dlock.connect(server.address)
    handle = acquire(client, key("a"))
    watch = Watch(handle)
    Admin(server.address).break_lock("a")
    until(lambda: watch.heard(_notices.BROKEN))
    assert watch.told[0] == (_notices.BROKEN, handle.acquire.token)
    assert release(handle) is Outcome.LOST
    assert isinstance(client._lost(handle), errors.Broken)
    release(acquire(client, key("a")))
    client.close()


def test_notices_of_a_session_of_the_past_reach_nobody(start: Start) -> None:
    client = dlock.connect(start().address)
    handle = acquire(client, key("a"))
    watch = Watch(handle)
    _notices._bring(Notice(client._session.number + 1000, handle.owner, 7, 0, _notices.LOST))
    client.close()
    _notices._bring(Notice(client._session.number, handle.owner, 7, 0, _notices.LOST))
    assert watch.told == []
