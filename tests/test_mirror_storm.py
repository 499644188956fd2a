"""Random programs of several clients, through one failover after another: after each of them every
client has exactly what it had (specification, section 7.2).

The model knows who holds what. Primaries die between calls, while somebody is told of an unlock,
and in the middle of recoveries; links break. A seed repeats a run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from mirror_tools import (
    ATOMIC,
    HOST,
    RW,
    S,
    Service,
    ex,
    extend_ex,
    get,
    recover_all,
    reinit,
    report,
    sh,
)

from dlock import _mirror_table, dclient
from dlock._core import lib
from dlock.types import DlockType, LockDesc

CLIENTS = 4
STEPS = 120


@dataclass
class Lock:
    """What the model knows of a lock: how often each client holds it, and in which mode."""

    desc: LockDesc
    ids: dict[int, int] = field(default_factory=dict)  # of those that have got it
    counts: dict[int, int] = field(default_factory=dict)
    shared: bool = False

    @property
    def kind(self) -> DlockType:
        return DlockType(self.desc.lock_type)

    def trylock(self, client: int, shared: bool) -> S:
        if shared and self.kind is ATOMIC:
            return S.EINVAL
        if client in self.counts:
            if shared != self.shared:
                return S.EINVAL
            self.counts[client] += 1
            return S.ALREADY_LOCKED
        if self.counts and not (shared and self.shared):
            return S.FAIL
        self.counts[client], self.shared = 1, shared
        return S.SUCCESS

    def unlock(self, client: int, answered: bool = True) -> S:
        count = self.counts.get(client, 0)
        if count > 1:
            self.counts[client] -= 1
            return S.ALREADY_LOCKED
        if count == 0:
            return S.ALREADY_UNLOCKED
        del self.counts[client]
        return S.SUCCESS if answered else S.BAD_RESPONSE


class Storm:
    def __init__(self, service: Service, seed: int) -> None:
        self.service = service
        self.random = random.Random(seed)
        self.clients = [service.client() for _ in range(CLIENTS)]
        self.locks = [Lock(LockDesc(b"lock %d" % n, ATOMIC if n % 2 else RW)) for n in range(5)]
        self.failovers = 0

    def run(self) -> None:
        for _ in range(STEPS):
            step = self.random.choices(
                (self.trylock, self.unlock, self.get, self.release, self.fail_over, self.cut),
                (30, 30, 12, 4, 6, 2))[0]
            step()
        self.fail_over()

    def pick(self) -> tuple[Lock, int, int] | None:
        """A lock, and a client that has got it."""
        lock = self.random.choice(self.locks)
        if not lock.ids:
            return None
        client = self.random.choice(sorted(lock.ids))
        return lock, client, lock.ids[client]

    # ---- Calls ----

    def get(self) -> None:
        lock, client = self.random.choice(self.locks), self.random.choice(self.clients)
        if client in lock.ids:
            assert dclient.get_lock(client, lock.desc) == (S.ERROR, None)
            return
        lock.ids[client] = get(client, lock.desc)
        assert len(set(lock.ids.values())) == 1

    def release(self) -> None:
        if picked := self.pick():
            lock, client, lock_id = picked
            held = client in lock.counts
            assert dclient.release_lock(client, lock_id) is (S.ERROR if held else S.SUCCESS)
            if not held:
                del lock.ids[client]

    def trylock(self) -> None:
        if picked := self.pick():
            lock, client, lock_id = picked
            shared = self.random.random() < 0.5
            request = sh(lock_id) if shared else ex(lock_id)
            assert dclient.trylock(client, request)[0] is lock.trylock(client, shared)

    def unlock(self) -> None:
        if picked := self.pick():
            lock, client, lock_id = picked
            assert dclient.unlock(client, lock_id)[0] is lock.unlock(client)

    # ---- Faults ----

    def cut(self) -> None:
        """A client's link breaks; an unlock gets no answer."""
        if picked := self.pick():
            lock, client, lock_id = picked
            lib.dlk_client_detach(_mirror_table.clients[client].pointer)
            assert dclient.unlock(client, lock_id)[0] is lock.unlock(client, answered=False)
            reinit(client)

    def fail_over(self) -> None:
        """The primary dies, perhaps some in a row; an unlock gets no answer."""
        self.failovers += 1
        self.service.crash()
        if (picked := self.pick()) and self.random.random() < 0.5:
            lock, client, lock_id = picked
            assert dclient.unlock(client, lock_id)[0] is lock.unlock(client, answered=False)
        self.service.start(CLIENTS)
        while self.random.random() < 0.3:
            came = self.random.sample(self.clients, self.random.randrange(CLIENTS))
            for client in came:
                self.random.choice((report, lambda one: dclient.client_reinit(one, HOST)))(client)
            self.service.crash()
            for client in came:  # it does not hear that what they did not report is not got
                assert dclient.client_reinit_done(client) is S.BAD_RESPONSE
            self.service.start(CLIENTS)
        recover_all(*self.random.sample(self.clients, CLIENTS))
        self.verify()

    def verify(self) -> None:
        """Who holds is held to hold, and nobody else."""
        for lock in self.locks:
            for client, lock_id in lock.ids.items():
                held = client in lock.counts
                if held and lock.kind is ATOMIC:
                    assert dclient.lock_extend(client, extend_ex(lock_id))[0] is S.SUCCESS
                elif held:
                    request = sh(lock_id) if lock.shared else ex(lock_id)
                    assert dclient.trylock(client, request)[0] is S.ALREADY_LOCKED
                    lock.counts[client] += 1
                elif lock.counts:
                    assert dclient.trylock(client, ex(lock_id))[0] is S.FAIL


@pytest.mark.parametrize("seed", range(6))
def test_every_client_has_what_it_had(start_service, seed: int) -> None:
    storm = Storm(start_service(), seed)
    storm.run()
    assert storm.failovers > 1
