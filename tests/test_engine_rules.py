"""The tables of docs/lock-kinds.md against both the C engine and the oracle.

What is expected here was read off the page by hand, so that the engine and the oracle cannot be
wrong together; Pair has compared the two before anything is asserted.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from engine_driver import Pair
from oracle_state import MS, Command, Output, Reply, Request

EX, SH = "exclusive", "shared"
KINDS = ("ATOMIC", "RW", "FAIR", "SEMAPHORE")
SIZE = 2
TTL_MS = 10_000
MAX_LEASE_MS = 60_000


class Game:
    """Four sessions and a lock of each kind; slots in the order of KINDS."""

    def __init__(self, max_entries: int = 16) -> None:
        self.pair = Pair(max_entries=max_entries)
        self.requests = 0
        self.pair.command(Command("READY", value=1))
        for slot in range(4):
            self.pair.command(
                Command("SESSION_OPEN", slot, 50 + slot, ttl_ms=TTL_MS, lease_ms=MAX_LEASE_MS)
            )
        for slot, kind in enumerate(KINDS):
            self.pair.command(Command("LOCK_OPEN", slot, 100 + slot, kind, SIZE))

    def output(self, op: str, session: int, kind: str, **fields: Any) -> Output:
        self.requests += 1
        slot = KINDS.index(kind)
        request = replace(Request(op, session, self.requests, 100 + slot, slot), **fields)
        return self.pair.step([request])[0]

    def ask(self, op: str, session: int, kind: str, **fields: Any) -> Reply:
        reply = self.output(op, session, kind, **fields).own
        assert reply is not None
        return reply

    def lock(self, session: int, kind: str, mode: str = EX, **fields: Any) -> Reply:
        return self.ask("LOCK", session, kind, mode=mode, **fields)


# kind, modes held, mode asked for: is it granted?
COMPATIBLE = [
    ("ATOMIC", [], EX, True),
    ("ATOMIC", [EX], EX, False),
    ("SEMAPHORE", [], EX, True),
    ("SEMAPHORE", [EX], EX, True),
    ("SEMAPHORE", [EX, EX], EX, False),
    *[(kind, [], mode, True) for kind, mode in product(("RW", "FAIR"), (EX, SH))],
    *[(kind, [EX], mode, False) for kind, mode in product(("RW", "FAIR"), (EX, SH))],
    *[(kind, [SH], SH, True) for kind in ("RW", "FAIR")],
    *[(kind, [SH, SH], SH, True) for kind in ("RW", "FAIR")],
    *[(kind, [SH, SH], EX, False) for kind in ("RW", "FAIR")],
]


@pytest.mark.parametrize(("kind", "held", "mode", "granted"), COMPATIBLE)
def test_what_may_be_held_together(kind: str, held: list[str], mode: str, granted: bool) -> None:
    game = Game()
    for session, other in enumerate(held):
        assert game.lock(session, kind, other).result == "GRANTED"
    assert game.lock(3, kind, mode).result == ("GRANTED" if granted else "BUSY")
    if not granted:
        assert game.lock(3, kind, mode, wait_ms=1000).result == "QUEUED"


@pytest.mark.parametrize(("kind", "held"), [("ATOMIC", [EX]), ("SEMAPHORE", [EX, EX])])
def test_the_same_owner_does_not_re_enter(kind: str, held: list[str]) -> None:
    game = Game()
    for mode in held:
        assert game.lock(0, kind, mode, owner=9).result == "GRANTED"
    assert game.lock(0, kind, owner=9).result == "BUSY"


INVALID = [
    ("LOCK", "ATOMIC", {"mode": SH}),
    ("LOCK", "SEMAPHORE", {"mode": SH}),
    ("LOCK", "RW", {"lease_ms": 1}),
    *[("LOCK", kind, {"lease_ms": MAX_LEASE_MS + 1}) for kind in KINDS],
    *[("LOCK", kind, {"ticket": True}) for kind in KINDS if kind != "FAIR"],
    *[("REDEEM", kind, {}) for kind in KINDS if kind != "FAIR"],
    ("REDEEM", "FAIR", {"lease_ms": MAX_LEASE_MS + 1}),
    *[("EXTEND", kind, {"lease_ms": MAX_LEASE_MS + 1}) for kind in KINDS],
]


@pytest.mark.parametrize(("op", "kind", "fields"), INVALID)
def test_what_is_refused(op: str, kind: str, fields: dict[str, object]) -> None:
    game = Game()
    assert game.ask(op, 0, kind, **fields).result == "INVALID"
    assert game.pair.engine.entries_in_use() == 0


# What each request says about nothing, when there is such a lock and nothing held on it.
NOTHING_THERE = {
    "REDEEM": "PASSED",
    "UNLOCK": "NOT_HELD",
    "EXTEND": "NOT_HELD",
    "CANCEL": "CANCELLED",
    "GIVE_UP": "DONE",
    "PING": "DONE",
    "FETCH_ADD": "NO_OBJECT",
    "COMPARE_SWAP": "NO_OBJECT",
    "READ": "NO_OBJECT",
}


@pytest.mark.parametrize("op", NOTHING_THERE)
def test_asking_about_nothing(op: str) -> None:
    assert Game().ask(op, 0, "FAIR", token=7).result == NOTHING_THERE[op]


@pytest.mark.parametrize("op", ["LOCK", *NOTHING_THERE])
def test_who_is_refused_before_anything_is_looked_at(op: str) -> None:
    game = Game()
    assert game.ask(op, 6, "FAIR").result == "REMOVED"
    game.pair.command(Command("READY", value=0))
    assert game.ask(op, 0, "FAIR").result == ("DONE" if op == "PING" else "NOT_READY")
    game.pair.command(Command("READY", value=1))
    game.pair.command(Command("LOCK_CLOSE", KINDS.index("FAIR"), 102))
    lock_op = op not in ("PING", "FETCH_ADD", "COMPARE_SWAP", "READ")
    expected = "NO_LOCK" if lock_op else NOTHING_THERE[op]
    assert game.ask(op, 0, "FAIR").result == expected


# A hold's lease, is it final, the time; then unlock, extend by 3 s, and somebody else's try.
LEASES = [
    (0, False, 60_000, "RELEASED", "EXTENDED", "BUSY"),
    (2000, False, 1999, "RELEASED", "EXTENDED", "BUSY"),
    (2000, False, 2000, "RELEASED", "EXTENDED", "GRANTED"),
    (2000, True, 1999, "RELEASED", "EXTENDED", "BUSY"),
    (2000, True, 2000, "NOT_HELD", "NOT_HELD", "GRANTED"),
]


@pytest.mark.parametrize("kind", ["ATOMIC", "FAIR"])
@pytest.mark.parametrize("row", LEASES)
@pytest.mark.parametrize("ticked", [False, True])
def test_what_a_lapsed_lease_means(
    kind: str, row: tuple[int, bool, int, str, str, str], ticked: bool
) -> None:
    lease_ms, final, after_ms, unlocked, extended, tried = row
    asked = [
        ("UNLOCK", 0, unlocked),
        ("EXTEND", 0, extended),
        ("LOCK", 1, tried),
    ]
    for op, session, expected in asked:
        game = Game()
        held = game.lock(0, kind, lease_ms=lease_ms, final_expiry=final)
        game.pair.now += after_ms * MS
        if ticked:
            game.pair.tick(sessions_now=0)
        fields = {} if op == "LOCK" else {"token": held.token, "lease_ms": 3000}
        assert game.ask(op, session, kind, **fields).result == expected


def test_the_readers_of_a_group_are_granted_in_the_order_of_the_queue() -> None:
    game = Game()
    held = game.lock(0, "RW")
    order = [game.lock(session, "RW", SH, wait_ms=None).request_id for session in (3, 1, 2, 1)]
    told = game.output("UNLOCK", 0, "RW", token=held.token).others
    assert [(reply.result, reply.request_id) for reply in told] == [
        ("GRANTED", request_id) for request_id in order
    ]
    assert [reply.readers for reply in told] == [1, 2, 3, 4]
    tokens = [reply.token for reply in told]
    assert tokens == sorted(set(tokens))


@pytest.mark.parametrize("after_ms", [TTL_MS - 1, TTL_MS])
def test_what_a_session_leaves_behind(after_ms: int) -> None:
    """A place goes with the session. No lease and a ticket go when that is written down; a leased
    hold waits for its lease."""
    game = Game()
    game.lock(0, "ATOMIC", lease_ms=20_000)
    game.lock(0, "RW")
    game.lock(1, "FAIR", lease_ms=20_000)
    queued = game.lock(0, "FAIR", wait_ms=None)
    game.lock(0, "FAIR", ticket=True)
    game.pair.now += after_ms * MS
    for slot in (1, 2, 3):
        game.pair.command(Command("SESSION_RENEW", slot, 50 + slot))
    told = game.pair.tick()
    ended = after_ms == TTL_MS
    removed = [(r.result, r.request_id) for r in told.others]
    assert removed == ([("REMOVED", queued.request_id)] if ended else [])
    assert [event.op for event in told.events] == (["SESSION_ENDED"] if ended else [])
    done = game.pair.command(Command("SESSION_END", 0, 50)).events[0]
    assert (done.result, done.value) == (("DONE", 1) if ended else ("INVALID", 0))
    left = {kind: len(game.pair.engine.view(slot)) for slot, kind in enumerate(KINDS)}
    assert left == (
        {"ATOMIC": 1, "RW": 0, "FAIR": 1, "SEMAPHORE": 0}
        if ended
        else {"ATOMIC": 1, "RW": 1, "FAIR": 3, "SEMAPHORE": 0}
    )
