"""Refused waits against the law: random worlds in which nearly everybody holds and waits.

Each run draws its own mix of kinds, actors and habits, so that small tangles of every shape come
up: readers and writers, queues, semaphores, tickets, actors with several waits, waits of unknown
actors, leases and waits that end in the same moment. The oracle (oracle_deadlock) says of every
wait whether it closes a cycle, and of every cycle that is told whether it is one.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import engine_driver
import oracle
import oracle_deadlock
import pytest
from oracle_state import MS, Command, Entry, Lock, Request

SEEDS = int(os.environ.get("DLOCK_DEADLOCK_SEEDS", "200"))
STEPS = 250
TTL_MS = 10**9
KINDS = ("ATOMIC", "RW", "FAIR", "SEMAPHORE")
met: Counter[str] = Counter()


class Tangle:
    """One random world."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.pair = engine_driver.Pair(max_entries=self.dice.choice([6, 12, 40]))
        kinds = self.dice.choice([KINDS, ("FAIR", "RW"), ("SEMAPHORE", "ATOMIC"), ("FAIR",)])
        self.kinds = [self.dice.choice(kinds) for _ in range(self.dice.randint(2, 4))]
        self.actors = self.dice.choice([2, 3, 6])
        self.sessions = self.dice.choice([1, 2, 3])
        self.unknown = self.dice.choice([0, 0, 0.1])
        self.several = self.dice.choice([0, 0, 0.1, 0.5])  # who waits asks for more
        self.flagged = self.dice.choice([1, 1, 0.7, 0.3])
        self.timed = self.dice.choice([0, 0.3])
        self.requests = 0
        self.command("READY", value=1)
        for slot in range(self.sessions):
            self.command("SESSION_OPEN", slot=slot, id=slot + 1, ttl_ms=TTL_MS, lease_ms=8000)
        for slot, kind in enumerate(self.kinds):
            size = self.dice.randint(1, 3)
            self.command("LOCK_OPEN", slot=slot, id=slot + 100, kind=kind, size=size)

    def command(self, op: str, **fields: object) -> None:
        self.pair.command(Command(op, **fields))  # type: ignore[arg-type]

    def entries(self) -> list[tuple[Lock, Entry]]:
        return list(self.pair.world.all_entries())

    def chance(self, share: float) -> bool:
        return self.dice.random() < share

    def base(self, op: str, slot: int, session: int, owner: int) -> Request:
        self.requests += 1
        lock_id = slot + 100
        return Request(op, session, self.requests, lock_id, slot, owner)

    def lock(self) -> Request:
        slot = self.dice.randrange(len(self.kinds))
        kind = self.kinds[slot]
        session = self.dice.randrange(self.sessions)
        actor = 0 if self.chance(self.unknown) else self.dice.randint(1, self.actors)
        request = self.base("LOCK", slot, session, actor << 32 | self.requests)
        request.deadlock = self.chance(self.flagged)
        request.wait_ms = self.wait_ms()
        if kind in ("RW", "FAIR"):
            request.mode = self.dice.choice(["shared", "exclusive"])
        if kind == "FAIR" and self.chance(0.3):
            request.ticket = True
            request.wait_ms = self.dice.choice([0, 0, request.wait_ms])
        if kind != "RW" and self.chance(self.timed):
            request.lease_ms = self.dice.choice([1000, 3000])
        return request

    def wait_ms(self) -> int | None:
        return self.dice.choice([1000, 2000]) if self.chance(self.timed) else None

    def about(self, op: str, lock: Lock, entry: Entry) -> Request:
        request = self.base(op, lock.slot, entry.session, entry.owner)
        request.mode, request.token, request.value = entry.mode, entry.number, entry.request_id
        if op == "REDEEM":
            request.wait_ms = self.wait_ms()
            request.deadlock = self.chance(self.flagged)
            request.ticket = self.chance(0.5)
        return request

    def next_request(self) -> Request:
        there = self.entries()
        if not there or self.chance(0.7):
            request = self.lock()
            waits = oracle_deadlock.waits_of(
                self.pair.world, (request.session, request.owner >> 32), self.pair.now)
            if not waits or self.chance(self.several):
                return request
        if not there:
            return self.base("PING", 0, 0, 0)
        lock, entry = self.dice.choice(there)
        ops = {"HELD": ["UNLOCK"], "QUEUED": ["CANCEL", "REDEEM"], "TICKET": ["REDEEM", "GIVE_UP"]}
        op = self.dice.choice(ops[entry.state])
        if op == "REDEEM" and lock.kind != "FAIR":
            op = "CANCEL"
        return self.about(op, lock, entry)

    def move(self) -> None:
        if self.chance(0.08):
            self.pair.now += self.dice.choice([1, 500 * MS, 1000 * MS, 2000 * MS])
        elif self.chance(0.08):
            due = oracle.next_due(self.pair.world) or 0
            if due < self.pair.now + TTL_MS // 2 * MS:
                self.pair.now = max(self.pair.now, due)
        elif self.chance(0.08):
            self.pair.tick()
        else:
            for output in self.pair.step([self.next_request()]):
                assert output.own is not None
                met[output.own.result] += 1
                if output.cycle is not None:
                    met[f"cycle among {len({actor for actor, _ in output.cycle.ways})}"] += 1


@pytest.mark.parametrize("seed", range(SEEDS))
def test_tangle(seed: int) -> None:
    tangle = Tangle(seed)
    for _ in range(STEPS):
        tangle.move()
    tangle.pair.stop()


def test_the_tangles_are_what_they_are_meant_to_be() -> None:
    """Run after the others: a generator that meets no cycle would prove nothing."""
    if SEEDS and met["QUEUED"]:
        assert met["DEADLOCK"] > SEEDS, met
        assert met["QUEUED"] > met["DEADLOCK"]
        assert met["cycle among 3"], met
