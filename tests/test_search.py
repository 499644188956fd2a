"""Of the clients of a process that look for one server, one looks for all."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from failover_tools import Primary
from far_process import FarProcess
from lock_tools import until

import dlock
import dlock.aio
from dlock import _reconnect, _search
from dlock._search import Seeker
from dlock.control.link import ControlLink, LinkError
from dlock.server import Server, ServerConfig

CLIENTS = 12


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_search, "_searches", {})


def seeking(port: int | str = "") -> list[int]:
    """How many look for the same, for each thing that is looked for at this port (none: at any);
    others of this process may look elsewhere. Threads come and go."""
    return [len(everybody) for (_, what), everybody in list(_search._searches.items())
            if f":{port}" in what]


def three() -> tuple[list[Seeker], list[int]]:
    """Who look for the same, and whom a call has reached."""
    seekers, woken = [Seeker("here") for _ in range(3)], []
    for number, one in enumerate(seekers):
        one.wake = lambda number=number: woken.append(number)
    return seekers, woken


def test_one_leads_and_the_others_are_called_when_it_has_found_somebody() -> None:
    (first, second, third), woken = three()
    assert [one.join() for one in (first, second, third)] == [True, False, False]
    assert first.join()  # once more is the same
    first.found()
    assert second.called
    assert third.called
    assert second.told
    assert third.told
    assert set(woken) == {1, 2}
    second.looks()
    assert not second.called
    assert not second.told
    assert second.join()
    assert not third.join()
    assert not first.join()  # that was nothing: it stands behind the others now


def test_who_gives_up_leaves_its_place_to_the_next() -> None:
    (first, second, third), woken = three()
    for one in (first, second, third):
        one.join()
    with first:
        pass
    assert woken == [1]  # so that it does not rest any longer
    assert not second.told  # which is no news
    assert second.join()
    with second, third, third:
        pass
    assert woken == [1]
    assert not _search._searches  # nothing is left of a search that is over
    assert Seeker("here").join()


def test_one_that_never_joined_calls_the_others_too() -> None:
    (first, second, third), woken = three()
    first.join()
    second.join()
    third.found()
    assert set(woken) == {0, 1}


def test_addresses_and_processes_have_searches_of_their_own(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Seeker("here").join()
    assert Seeker("there").join()
    assert not Seeker("here").join()
    monkeypatch.setattr(os, "getpid", lambda: -1)  # a forked child, whose parent had seekers
    assert Seeker("here").join()


def test_a_search_that_is_dropped_ends() -> None:
    def steps() -> Iterator[bool]:
        with Seeker("here") as seeker:
            yield seeker.join()

    dropped = steps()
    next(dropped)
    second = Seeker("here")
    assert not second.join()
    del dropped
    gc.collect()
    assert second.join()
    assert second.called


# ---- Clients -------------------------------------------------------------------------------------


def started(port: int = 0) -> Server:
    """One that knows nothing of another, and takes no time to settle."""
    return Server(ServerConfig(port=port, wait_mode="block", epoch_above=1 if port else 0))


def test_one_knocks_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    knocks: Counter[str] = Counter()

    def connect(*_: object) -> ControlLink:
        knocks[threading.current_thread().name] += 1
        raise LinkError("nobody is there")

    server = started()
    clients = [dlock.connect(server.address, timeout=20) for _ in range(CLIENTS)]
    monkeypatch.setattr(ControlLink, "connect", connect)
    server.stop()
    until(lambda: max(knocks.values(), default=0) >= 30)
    most, *others = sorted(knocks.values(), reverse=True)
    for one in clients:
        one.close()
    assert sum(others) < most * len(others) / 2


def test_all_clients_of_a_process_come_back() -> None:
    server = started()
    clients = [dlock.connect(server.address, timeout=20) for _ in range(CLIENTS)]
    port = server.port
    server.stop()
    until(lambda: sum(seeking(port)) == CLIENTS)
    server = started(port)
    try:
        until(lambda: all(one._whole() for one in clients))
        until(lambda: not any(seeking(port)))
        for number, one in enumerate(clients):
            assert one.lock(str(number)).acquire(timeout=20)
    finally:
        for one in clients:
            one.close()
        server.stop()


def test_tasks_come_back_too() -> None:
    async def story() -> None:
        server = started()
        clients = [await dlock.aio.connect(server.address, timeout=20) for _ in range(CLIENTS)]
        port = server.port
        server.stop()
        while sum(seeking(port)) < CLIENTS:
            await asyncio.sleep(0.01)
        server = started(port)
        try:
            for number, one in enumerate(clients):
                assert await one.lock(str(number)).acquire(timeout=20)
            assert not any(seeking(port))
        finally:
            for one in clients:
                await one.close()
            server.stop()

    asyncio.run(asyncio.wait_for(story(), 60))


def test_a_client_that_is_closed_while_it_looks_leaves_its_place() -> None:
    server = started()
    clients = [dlock.connect(server.address, timeout=20) for _ in range(3)]
    port = server.port
    server.stop()
    until(lambda: sum(seeking(port)) == 3)
    for left, one in zip((2, 1, 0), clients, strict=True):
        one.close()
        until(lambda: sum(seeking(port)) == left)  # noqa: B023


def test_one_asks_for_all_whether_the_server_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    ask = _reconnect._ask_ready
    monkeypatch.setattr(_reconnect, "READY_REST_S", 1000)
    monkeypatch.setattr(_reconnect, "_ask_ready", lambda *all: (asked.append(all), ask(*all)))
    primary = Primary(tmp_path, ttl_s=60)
    away = FarProcess(primary.address)
    clients = [dlock.connect(primary.address, timeout=30) for _ in range(CLIENTS)]
    held = [one.rwlock(str(number)).read() for number, one in enumerate(clients)]
    try:
        for lock in held:
            assert lock.acquire()
        away.close()  # it will be waited for
        primary.restart()
        with primary.admin() as admin:
            until(lambda: admin.recovery().back == CLIENTS)
            until(lambda: CLIENTS in seeking())
            until(lambda: sum(one._awaits_ready is not None for one in clients) == 1)
            assert not any(one._session.ready for one in clients)
            admin.evict()
        until(lambda: all(one._session.ready for one in clients))
        assert all(lock.held for lock in held)
        assert len(asked) < CLIENTS  # the others were told
    finally:
        for one in clients:
            one.close()
        primary.kill()
