"""The C engine against the oracle: random worlds, the same inputs, equal replies, events and state.

Bounded by default and the same on every run; DLOCK_ORACLE_EXAMPLES and DLOCK_ORACLE_STEPS make
longer, random runs. A failure prints the steps that lead to it, shrunk.
"""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import dataclass

import engine_driver
import oracle
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from oracle_state import MS, Command, Entry, Lock, Request

EXAMPLES = int(os.environ.get("DLOCK_ORACLE_EXAMPLES", "0"))
STEPS = int(os.environ.get("DLOCK_ORACLE_STEPS", "60"))
KINDS = ("ATOMIC", "RW", "FAIR", "SEMAPHORE", "FAIR")
SESSIONS = 3
TTL_MS = 5000
MAX_LEASE_MS = 8000
ONE, TWO = 1 << 32, 2 << 32  # actors, in the upper half of an owner
STALE = 12  # how many tokens and handles of the past are remembered


@dataclass(frozen=True)
class Plan:
    """A request in relative terms: request_of() turns it into one that fits the world."""

    op: str
    session: int
    owner: int
    slot: int
    shared: bool
    lease_ms: int
    wait_ms: int | None
    ticket: bool
    final_expiry: bool
    deadlock: bool
    target: int  # which of the entries there are and were
    by_handle: bool
    odd: str  # what is wrong about the request


OPS = [
    *["LOCK"] * 8,
    *["REDEEM"] * 3,
    *["UNLOCK"] * 4,
    *["EXTEND"] * 2,
    "CANCEL",
    "GIVE_UP",
    "PING",
    "RESEND",
    "READ",
]
JUDGED = ["now", "now", "never", "before"]
SPANS = [1, 999, MS - 1, 300 * MS, 1000 * MS, 2000 * MS, 6000 * MS]
COMMANDS = [
    *["RENEW", "SUPERSEDE", "LEASE", "CLOSE", "END", "END", "END", "LOCK", "LOCK"],
    *["GRACE", "UNREADY", "READY", "READY", "READY"],
    *["BREAK", "BREAK", "BREAK", "BREAK", "BREAK NOW", "ATTACH", "ATTACH"],
]
ODD = [*[""] * 20, "session", "owner", "token", "lock_id", "slot", "lease", "mode", "flag"]
CHOICES: dict[str, list[object]] = {
    "op": [*OPS],
    "session": [*range(SESSIONS)],
    "owner": [1, 2, ONE | 1, ONE | 2, TWO | 1],
    "slot": [*range(len(KINDS))],
    "shared": [False, True],
    "lease_ms": [0, 0, 1000, 2000, 3500, 7000],
    "wait_ms": [0, 0, 0, 1000, 2000, 6000, None],
    "ticket": [False, True],
    "final_expiry": [False, False, True],
    "deadlock": [False, True],
    "target": [*range(31)],
    "by_handle": [False, True],
    "odd": [*ODD],
}
PLANS = st.builds(Plan, **{name: st.sampled_from(values) for name, values in CHOICES.items()})


@dataclass(frozen=True)
class Target:
    """An entry that a request may name, with what was known of it at some time."""

    session: int
    owner: int
    slot: int
    mode: str
    token: int
    handle: int
    request_id: int


class World:
    """A pair of engines, and how plans become requests."""

    def __init__(self, max_entries: int, claim_ms: int, size: int) -> None:
        self.pair = engine_driver.Pair(max_entries=max_entries, claim_ms=claim_ms)
        self.size = size
        self.next_request = 0
        self.next_lock = 100
        self.past: deque[Target] = deque(maxlen=STALE)
        self.begin()

    def begin(self) -> None:
        self.command("READY", value=1)
        for slot in range(SESSIONS):
            self.open_session(slot)
        for slot in range(len(KINDS)):
            self.open_lock(slot)
        self.command("CELL_OPEN", slot=1, id=77, value=5)

    def command(self, op: str, **fields: object) -> None:
        self.pair.command(Command(op, cookie=self.pair.now, **fields))  # type: ignore[arg-type]

    def open_session(self, slot: int) -> None:
        self.next_lock += 1
        self.command(
            "SESSION_OPEN", slot=slot, id=self.next_lock, ttl_ms=TTL_MS, lease_ms=MAX_LEASE_MS
        )

    def open_lock(self, slot: int) -> None:
        self.next_lock += 1
        self.command("LOCK_OPEN", slot=slot, id=self.next_lock, kind=KINDS[slot], size=self.size)

    def targets(self) -> list[Target]:
        present = [self.target_of(lock, entry) for lock, entry in self.pair.world.all_entries()]
        return [t for t in present if t.token in self.pair.match.tokens] + list(self.past)

    @staticmethod
    def target_of(lock: Lock, entry: Entry) -> Target:
        return Target(
            entry.session,
            entry.owner,
            lock.slot,
            entry.mode,
            entry.number,
            entry.handle,
            entry.request_id,
        )

    def request_of(self, plan: Plan, alone: bool) -> Request:
        self.next_request += 1
        request = Request(
            op=plan.op,
            session=plan.session,
            request_id=self.next_request,
            slot=plan.slot,
            owner=plan.owner,
            mode="shared" if plan.shared else "exclusive",
            lease_ms=plan.lease_ms,
            wait_ms=plan.wait_ms,
            ticket=plan.ticket,
            final_expiry=plan.final_expiry,
            deadlock=plan.deadlock,
        )
        self.make_legal(request, plan)
        targets = self.targets()
        if plan.op in ("REDEEM", "UNLOCK", "EXTEND", "CANCEL", "GIVE_UP", "RESEND") and targets:
            self.aim(request, plan, targets[plan.target % len(targets)], alone)
        if plan.op == "RESEND":
            request.op, request.resend = "LOCK", True
        if plan.op == "READ":
            request.slot, request.lock_id = 1, 77 + plan.target % 2
        else:
            lock = self.pair.world.locks.get(request.slot)
            request.lock_id = lock.id if lock else self.next_lock
        self.spoil(request, plan)
        return request

    @staticmethod
    def make_legal(request: Request, plan: Plan) -> None:
        kind = KINDS[request.slot]
        if kind in ("ATOMIC", "SEMAPHORE"):
            request.mode = "exclusive"
        if kind == "RW":
            request.lease_ms = 0
        if kind != "FAIR":
            request.ticket = False

    def aim(self, request: Request, plan: Plan, target: Target, alone: bool) -> None:
        request.session, request.owner, request.slot = target.session, target.owner, target.slot
        request.mode, request.token = target.mode, target.token
        request.value = target.request_id
        self.make_legal(request, plan)
        if plan.op == "RESEND":
            request.request_id = target.request_id
        elif target.handle not in self.pair.match.handles:
            pass  # of a claim: its client knows the token alone
        elif plan.by_handle and (alone or plan.op in ("UNLOCK", "EXTEND")):
            request.entry = self.present_owner_of(target.handle)

    def present_owner_of(self, handle: int) -> int:
        """The engine uses a handle again: it then names the newer entry, here as there."""
        handles = self.pair.match.handles
        for _, entry in self.pair.world.all_entries():
            if handles.get(entry.handle) == handles[handle]:
                return entry.handle
        return handle

    def spoil(self, request: Request, plan: Plan) -> None:
        if plan.odd == "session":
            request.session = 6 + plan.target
        elif plan.odd == "owner":
            request.owner += 1
        elif plan.odd == "token":
            request.token += 1 << 40
        elif plan.odd == "lock_id":
            request.lock_id += 1
        elif plan.odd == "slot":
            request.slot += 8 * plan.target
        elif plan.odd == "lease":
            request.lease_ms = MAX_LEASE_MS + plan.target % 2
        elif plan.odd == "mode":
            request.mode = "shared" if request.mode == "exclusive" else "exclusive"
        elif plan.odd == "flag":
            request.ticket = not request.ticket

    def step(self, plans: list[Plan]) -> None:
        self.past.extend(self.targets()[:STALE])
        requests = [self.request_of(plan, alone=len(plans) == 1) for plan in plans]
        self.pair.step(requests)

    def tick(self, judged: str) -> None:
        before = max(self.pair.now - 1000 * MS, 1)
        self.pair.tick({"now": self.pair.now, "never": 0, "before": before}[judged])

    def to_next_deadline(self, short: int) -> None:
        due = oracle.next_due(self.pair.world)
        if due is not None:
            self.pair.now = max(self.pair.now, due - short)

    def control(self, op: str, slot: int, ms: int) -> None:
        """A command of the control plane that makes sense now, or brings back what is gone."""
        session = self.pair.world.sessions.get(slot % SESSIONS)
        lock = self.pair.world.locks.get(slot)
        if op in ("RENEW", "CLOSE", "END", "LEASE", "SUPERSEDE"):
            if session is None:
                self.open_session(slot % SESSIONS)
            else:
                limit = MAX_LEASE_MS
                self.command(f"SESSION_{op}", slot=session.slot, id=session.id, lease_ms=limit)
        elif op == "LOCK":
            if lock is None:
                self.open_lock(slot)
            elif lock.closing:
                kind, size = lock.kind, lock.size
                self.command("LOCK_OPEN", slot=slot, id=lock.id, kind=kind, size=size)
            else:
                self.command("LOCK_CLOSE", slot=slot, id=lock.id)
        elif op == "GRACE":
            self.command("GRACE", value=ms)
        elif op == "ATTACH":
            self.pair.attached(slot % SESSIONS)
        elif op.startswith("BREAK"):
            self.break_holds(slot, ms, int(op == "BREAK NOW"))
        else:
            self.command("READY", value=int(op == "READY"))


    def break_holds(self, slot: int, which: int, at_once: int) -> None:
        """Every hold of a lock, or one by its token: one that there is, or was; most often of one
        that is held."""
        held = [lock.slot for lock in self.pair.world.locks.values() if lock.holders]
        slot = held[which % len(held)] if held and which % 8 else slot
        lock = self.pair.world.locks.get(slot)
        targets = [one for one in self.targets() if one.slot == slot]
        tokens = [0, 0, 1 << 40, *(one.token for one in targets)]
        self.command("BREAK", slot=slot, id=lock.id if lock else self.next_lock, size=at_once,
                     value=tokens[which // 8 % len(tokens)])


class EngineMachine(RuleBasedStateMachine):
    world: World

    @initialize(
        max_entries=st.sampled_from([2, 4, 6, 16]),
        claim_ms=st.sampled_from([2000, 1000]),
        size=st.integers(1, 3),
    )
    def begin(self, max_entries: int, claim_ms: int, size: int) -> None:
        self.world = World(max_entries, claim_ms, size)

    @rule(plans=st.lists(PLANS, min_size=1, max_size=4))
    def requests(self, plans: list[Plan]) -> None:
        self.world.step(plans)

    @rule(ns=st.sampled_from(SPANS))
    def time_passes(self, ns: int) -> None:
        self.world.pair.now += ns

    @rule(short=st.sampled_from([0, 0, 0, 1]))
    def time_reaches_the_next_deadline(self, short: int) -> None:
        self.world.to_next_deadline(short)

    @rule(judged=st.sampled_from(JUDGED))
    def tick(self, judged: str) -> None:
        self.world.tick(judged)

    @rule(op=st.sampled_from(COMMANDS), slot=st.integers(0, 4), ms=st.integers(0, 9000))
    def command(self, op: str, slot: int, ms: int) -> None:
        self.world.control(op, slot, ms)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.pair.stop()


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(
    max_examples=EXAMPLES or 150,
    stateful_step_count=STEPS,
    derandomize=not EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


MOVES = {"step": 50, "pass": 12, "deadline": 12, "tick": 16, "command": 10}  # and their weights


def random_run(seed: int, steps: int) -> None:
    """The same game without shrinking: many more steps in the same time."""
    dice = random.Random(seed)
    world = World(dice.choice([2, 4, 6, 16]), dice.choice([1000, 2000]), dice.randint(1, 3))
    for _ in range(steps):
        (move,) = dice.choices([*MOVES], [*MOVES.values()])
        if move == "step":
            count = dice.choice([1, 1, 2, 4])
            plans = [{n: dice.choice(v) for n, v in CHOICES.items()} for _ in range(count)]
            world.step([Plan(**plan) for plan in plans])  # type: ignore[arg-type]
        elif move == "pass":
            world.pair.now += dice.choice(SPANS)
        elif move == "deadline":
            world.to_next_deadline(dice.choice([0, 0, 0, 1]))
        elif move == "tick":
            world.tick(dice.choice(JUDGED))
        else:
            world.control(dice.choice(COMMANDS), dice.randrange(5), dice.randrange(9000))
    world.pair.stop()


@pytest.mark.parametrize("seed", range(int(os.environ.get("DLOCK_ORACLE_SEEDS", "80"))))
def test_random_run(seed: int) -> None:
    random_run(seed, steps=500)
