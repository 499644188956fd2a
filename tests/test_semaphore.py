"""Semaphores from end to end: control plane, client in C, data plane. The mirror has no name for
them, so the C client is driven directly, as the Python API will."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from control_client import Client, eventually

from dlock import _core, _mirror_data
from dlock._core import ffi, lib
from dlock.control import messages as m
from dlock.server import Server, ServerConfig
from dlock.types import DlockStatus as S

SIZE = 2
OWNERS = (1, 2, 3)
WAIT_MS = 20_000


class Slots:
    """One client of a semaphore of SIZE, with an owner for each slot that it asks for."""

    def __init__(self, server: Server) -> None:
        self.control = Client(server.host, server.port)
        answer = self.control.ask(
            m.GetLocks((m.LockSpec(b"licences", _core.DLK_KIND_SEMAPHORE, SIZE),)))
        self.lock = answer.results[0]
        assert self.lock.status is S.SUCCESS
        self.client = _mirror_data.new_client(_core.DLK_WAIT_ADAPTIVE, WAIT_MS)
        welcome = self.control.welcome
        assert _mirror_data.attach(self.client, server.host, WAIT_MS, welcome) == S.SUCCESS
        for owner in OWNERS:
            added = lib.dlk_client_add_lock(
                self.client, self.lock.lock_id, self.lock.slot, _core.DLK_KIND_SEMAPHORE, owner)
            assert added == S.SUCCESS

    def ask(self, verb: int, owner: int, wait_ms: int = 0) -> tuple[int, int]:
        """The status, and the token of the slot."""
        call: Any = ffi.new("struct dlk_call *")
        call.verb, call.lock_id, call.owner, call.wait_ms = (
            verb, self.lock.lock_id, owner, wait_ms)
        return _mirror_data.run(self.client, call), int(call.token)


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0))
    yield one
    one.stop()


def test_as_many_as_its_size_hold_it_and_the_next_waits(server: Server) -> None:
    here, there = Slots(server), Slots(server)
    trylock, lock, unlock = lib.DLK_VERB_TRYLOCK, lib.DLK_VERB_LOCK, lib.DLK_VERB_UNLOCK
    first, second = here.ask(trylock, 1), there.ask(trylock, 1)
    assert (first[0], second[0]) == (S.SUCCESS, S.SUCCESS)
    assert 0 < first[1] < second[1]
    assert here.ask(trylock, 2)[0] == S.FAIL
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(there.ask, lock, 2, WAIT_MS)
        assert eventually(lambda: server.stats()["WAITS"] == 1)
        assert here.ask(unlock, 1)[0] == S.SUCCESS
        status, token = waiting.result()
    assert status == S.SUCCESS
    assert token > second[1]
    assert here.ask(trylock, 3)[0] == S.FAIL
    assert here.ask(unlock, 1)[0] == S.ALREADY_UNLOCKED


def test_its_size_is_that_of_the_first_to_get_it(server: Server) -> None:
    slots = Slots(server)
    other = Client(server.host, server.port)
    spec = m.LockSpec(b"licences", _core.DLK_KIND_SEMAPHORE, SIZE + 1)
    assert other.ask(m.GetLocks((spec,))).results[0].status is S.ERROR
    assert slots.ask(lib.DLK_VERB_TRYLOCK, 1)[0] == S.SUCCESS
