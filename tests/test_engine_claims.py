"""Recovery: any claims in any order, in any grouping, some of them twice, come to the same.

Two judges, both of docs/lock-kinds.md, "Recovery". `merged` says what is held of a set of claims,
all at once: the engine must come to that whatever the order was. And a recovering engine goes side
by side with the oracle through claims, requests, commands and time. Bounded by default;
DLOCK_ORACLE_SEEDS makes longer runs.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import engine_driver
import pytest
import test_engine_oracle as game
from oracle_claims import by_any_clock_ms
from oracle_state import MS, Claim, Command

SEEDS = int(os.environ.get("DLOCK_ORACLE_SEEDS", "80"))
KINDS = game.KINDS
EPOCH = 3
LEAST_MS = 4000  # what READY names
CLIENTS = (700, 900, 800)  # client ids by session: not in the order of the slots
PERMUTATIONS = 5
NOW = 1000 * MS


def former(number: int) -> int:
    """What a former server counted; also those of the one before it."""
    return ((EPOCH - 1 - number // 2 % 2) << 43) + number


@dataclass(frozen=True)
class Said:
    """A claim, who says it, and whether lapsed sessions are believed then."""

    session: int
    claim: Claim
    believed: bool = False


OWNERS = (1, 2, game.ONE | 1)
STATES = ("HELD", "QUEUED", "TICKET", "GOT")


def any_claim(
    dice: random.Random, session: int, odd: bool = False, own: bool = False
) -> Said:
    """Few numbers, owners and sessions: most claims meet others. One place has one request.
    Sometimes of another lock that claims the same slot. `odd`: what no client may say. `own`: no
    two owners or locks have one number."""
    slot = dice.randrange(len(KINDS))
    owner, number = dice.choice(OWNERS), dice.randint(1, 12)
    if own:
        number = len(OWNERS) * (len(CLIENTS) * number + session) + OWNERS.index(owner)
        number = len(KINDS) * number + slot
    state = dice.choice(["HELD"] * 6 + ["QUEUED"] * 3 + ["TICKET", "GOT"])
    number = 2 * number + (state != "HELD")  # one counter serves tokens and stamps
    kind = KINDS[slot]
    if state == "TICKET" and kind != "FAIR":
        state = "QUEUED"
    shared = kind in ("RW", "FAIR") and dice.random() < 0.5
    leased = kind != "RW" and dice.random() < 0.3
    claim = Claim(
        state, slot, lock_id=50 + slot + (10 if dice.random() < 0.05 else 0), kind=kind,
        size=2 if kind == "SEMAPHORE" else 1, owner=owner,
        request_id=100_000 * (1 + STATES.index(state)) + 10_000 * slot + 3_000 * shared + number,
        mode="shared" if shared else "exclusive", number=former(number),
        lapsed=dice.random() < 0.3)
    if state == "HELD":
        lease_ms = dice.choice([0, 1, 3000, 9000]) if leased and not claim.lapsed else 0
        claim = replace(claim, leased=leased, lease_ms=lease_ms)
    else:
        claim = replace(
            claim, lapsed=False,
            lease_ms=3000 if leased else 0, wait_ms=dice.choice([0, 1000, 6000, None, None]),
            ticket=kind == "FAIR" and dice.random() < 0.5)
    if odd:
        claim = spoiled(dice, claim)
    return Said(session, claim, believed=dice.random() < 0.5)


def spoiled(dice: random.Random, claim: Claim) -> Claim:
    return dice.choice([
        replace(claim, number=0),
        replace(claim, number=EPOCH << 43),
        replace(claim, mode="shared"),
        replace(claim, leased=True, lease_ms=game.MAX_LEASE_MS + 1),
        replace(claim, kind="RW"),
        replace(claim, ticket=True),
        replace(claim, slot=99),
        replace(claim, kind="SEMAPHORE", size=7),
    ])


# ---- A set of claims, at once --------------------------------------------------------------------

Held = tuple[int, int, int, str]  # token, client id, owner, mode


def merged(said: Iterable[Said]) -> dict[int, set[Held]]:
    """What is held in each slot, of all that was said."""
    of_locks: dict[int, dict[int, list[Said]]] = {}
    for one in said:
        of_locks.setdefault(one.claim.slot, {}).setdefault(one.claim.lock_id, []).append(one)
    return {slot: merged_lock(locks[max(locks)]) for slot, locks in of_locks.items()}


def merged_lock(said: list[Said]) -> set[Held]:
    holds = [one for one in said if one.claim.state == "HELD"]
    exclusive = [rank(one) for one in holds if one.claim.mode == "exclusive"]
    readers = [one.claim.number for one in holds if one.claim.mode == "shared"]
    credible = [
        one for one in holds
        if not one.claim.lapsed or (one.believed and not one.claim.leased)
    ]
    live = {held(one) for one in credible if not one.claim.lapsed}
    if said[0].claim.kind == "SEMAPHORE":
        order = sorted({held(one) for one in credible}, key=lambda one: (one in live, one))
        return set(order[-said[0].claim.size:])
    floor = max((token for token, _, _ in exclusive), default=0)
    return {
        held(one) for one in credible
        if (one.claim.number > floor if one.claim.mode == "shared" else
            rank(one) == max(exclusive) and all(rank(one)[0] >= other for other in readers))
    }


def rank(one: Said) -> tuple[int, int, int]:
    return one.claim.number, CLIENTS[one.session], one.claim.owner


def held(one: Said) -> Held:
    return *rank(one), one.claim.mode


@dataclass
class Recovery:
    """A recovering engine, told of claims in some order."""

    engine: engine_driver.Engine = field(default_factory=lambda: engine_driver.Engine(
        game.World(512, 2000, 2).pair.world))
    now: int = NOW

    def __post_init__(self) -> None:
        self.engine.command(Command("READY", value=2), self.now)
        for slot, client_id in enumerate(CLIENTS):
            self.engine.command(
                Command("SESSION_OPEN", slot, client_id, ttl_ms=10_000, early=True,
                        lease_ms=game.MAX_LEASE_MS), self.now)

    def tell(self, said: list[Said], dice: random.Random) -> None:
        """In groups of a session's, as long as chance has it."""
        while said:
            first = said[0]
            count = 1
            while count < min(len(said), 31) and dice.random() < 0.6 and same_batch(
                first, said[count]
            ):
                count += 1
            batch, said = [one.claim for one in said[:count]], said[count:]
            self.engine.claim(
                first.session, CLIENTS[first.session], batch, first.believed, self.now)
            assert self.engine.check() == 0
            self.exclusion()

    def exclusion(self) -> None:
        for slot, kind in enumerate(KINDS):
            modes = [view.mode for view in self.engine.view(slot) if view.state == "HELD"]
            if kind == "SEMAPHORE":
                assert len(modes) <= 2
            else:
                assert "exclusive" not in modes or len(modes) == 1

    def holds(self) -> dict[int, set[Held]]:
        found: dict[int, set[Held]] = {}
        for slot in range(len(KINDS)):
            held = [view for view in self.engine.view(slot) if view.state == "HELD"]
            found[slot] = {(v.number, CLIENTS[v.session], v.owner, v.mode) for v in held}
            assert len(found[slot]) == len(held)
        return found

    def queues(self) -> list[list[tuple[int, int, int, str]]]:
        return [
            [(v.number, CLIENTS[v.session], v.owner, v.state)
             for v in self.engine.view(slot) if v.state != "HELD"]
            for slot in range(len(KINDS))
        ]

    def become_ready(self) -> list[tuple[str, int, int]]:
        replies, _ = self.engine.command(
            Command("READY", value=1, ttl_ms=LEAST_MS), self.now)
        assert self.engine.check() == 0
        return sorted((reply.result, reply.session, reply.request_id) for reply in replies)


def same_batch(one: Said, other: Said) -> bool:
    return (one.session, one.believed) == (other.session, other.believed)


def consistent(said: list[Said]) -> list[Said]:
    """A session is believed or not; one that says the same hold twice may differ in whether its
    authority had ended, and in nothing else. A ticket awaits no answer: its claim names no request,
    least of all that of the waiter it became."""
    believed = {one.session: one.believed for one in said}
    leases: dict[tuple[int, ...], Claim] = {}
    out = []
    for one in said:
        claim = one.claim
        key = (claim.slot, claim.lock_id, one.session, claim.owner, claim.number)
        if claim.state == "HELD":
            first = leases.setdefault((*key, claim.mode == "shared"), claim)
            lease_ms = 0 if claim.lapsed else first.lease_ms or 500
            leased = first.leased
            claim = replace(claim, leased=leased, lease_ms=lease_ms if leased else 0)
        elif claim.state != "GOT":
            first = leases.setdefault((*key, 2), claim)
            request_id = 0 if claim.state == "TICKET" else first.request_id
            claim = replace(first, state=claim.state, request_id=request_id)
        out.append(Said(one.session, claim, believed[one.session]))
    return out


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_order_of_claims_means_nothing(seed: int) -> None:
    dice = random.Random(seed)
    count = dice.choice([3, 8, 20, 60])
    said = [any_claim(dice, dice.randrange(len(CLIENTS))) for _ in range(count)]
    said = consistent(said)
    expected = merged(said)
    places = None
    granted = None
    for _ in range(PERMUTATIONS):
        world = Recovery()
        twice = said + dice.choices(said, k=len(said) // 3)
        dice.shuffle(twice)
        world.tell(twice, dice)
        assert world.holds() == {slot: expected.get(slot, set()) for slot in range(len(KINDS))}
        places = places or world.queues()
        assert world.queues() == places
        assert all(queue == sorted(queue) for queue in places)
        ends = leases_of(twice, expected)
        result = world.become_ready()
        granted = result if granted is None else granted
        assert result == granted
        for slot in range(len(KINDS)):
            for view in world.engine.view(slot):
                key = (slot, view.number, view.session, view.owner, view.mode)
                if view.state == "HELD" and view.number < EPOCH << 43:
                    least = max(by_any_clock_ms(ends[key]), LEAST_MS) if ends[key] else None
                    assert view.end == (None if least is None else NOW + least * MS)


def test_a_place_claimed_as_a_ticket_and_as_a_waiter_waits_whatever_comes_first() -> None:
    waiter = Claim("QUEUED", 2, lock_id=52, kind="FAIR", size=1, owner=1, request_id=9,
                   mode="exclusive", number=former(5), wait_ms=None)
    said = [Said(0, waiter), Said(0, replace(waiter, state="TICKET", request_id=0))]
    for order in (said, said[::-1], said * 2, said[::-1] * 2):
        world = Recovery()
        for one in order:
            world.tell([one], random.Random(0))
        assert world.queues()[2] == [(former(5), CLIENTS[0], 1, "QUEUED")]
        assert world.become_ready() == [("GRANTED", 0, 9)]


def leases_of(
    said: list[Said], expected: dict[int, set[Held]]
) -> dict[tuple[int, int, int, int, str], int]:
    """What the believed claim of each hold says of its lease; 0: it has none."""
    newest = {slot: max((one.claim.lock_id for one in said if one.claim.slot == slot), default=0)
              for slot in expected}
    return {
        (one.claim.slot, one.claim.number, one.session, one.claim.owner, one.claim.mode):
            max(one.claim.lease_ms, 1) if one.claim.leased else 0
        for one in said
        if one.claim.state == "HELD" and held(one) in expected[one.claim.slot]
        and one.claim.lock_id == newest[one.claim.slot]
        and not (one.claim.lapsed and one.claim.leased)
    }


# ---- Side by side with the oracle ----------------------------------------------------------------


class Recovering(game.World):
    """Claims, requests, commands and time at an engine that recovers; session 2 is not early."""

    def begin(self) -> None:
        self.said: list[Said] = []
        self.command("READY", value=2)
        for slot in range(game.SESSIONS):
            self.open_session(slot)

    def open_session(self, slot: int) -> None:
        self.command("SESSION_OPEN", slot=slot, id=CLIENTS[slot], early=slot != 2,
                     ttl_ms=game.TTL_MS, lease_ms=game.MAX_LEASE_MS)

    def claim(self, dice: random.Random) -> None:
        """Some claims of one session: new ones, or what it has said before."""
        count = dice.choice([1, 1, 1, 3])
        slot = dice.randrange(len(CLIENTS))
        said = [any_claim(dice, slot, dice.random() < 0.1, own=True) for _ in range(count)]
        said = [one for one in said if self.kind_fits(one.claim)]
        if self.said and dice.random() < 0.3:
            said = [dice.choice(self.said)]
            if dice.random() < 0.3:
                lapsed = replace(said[0].claim, lapsed=not said[0].claim.lapsed)
                said = [replace(said[0], claim=lapsed)]
        if not said:
            return
        session = self.pair.world.sessions.get(said[0].session)
        if session is None:
            self.open_session(said[0].session)
        self.said += said
        self.pair.claim(said[0].session, [one.claim for one in said], said[0].believed)

    def kind_fits(self, claim: Claim) -> bool:
        """Who says another kind may not be the first: then it would be the kind."""
        lock = self.pair.world.locks.get(claim.slot)
        known = lock is not None and lock.id == claim.lock_id
        return known or claim.slot >= len(KINDS) or claim.kind == KINDS[claim.slot]

    def close_at_once(self, slot: int) -> None:
        lock = self.pair.world.locks.get(slot)
        if lock is not None:
            self.command("LOCK_CLOSE", slot=slot, id=lock.id, size=1)


MOVES = {"claim": 40, "step": 40, "pass": 5, "deadline": 6, "tick": 10, "command": 10, "close": 1,
         "pause": 1}
COMMANDS = ["RENEW", "SUPERSEDE", "LEASE", "CLOSE", "END", "GRACE", "LOCK", "BREAK", "BREAK",
            "BREAK NOW", "ATTACH", "ATTACH", "ATTACH"]


def one_move(world: Recovering, dice: random.Random, moves: dict[str, int]) -> None:
    (move,) = dice.choices([*moves], [*moves.values()])
    if move == "claim":
        world.claim(dice)
    elif move == "step":
        count = dice.choice([1, 1, 2, 4])
        plans = [{n: dice.choice(v) for n, v in game.CHOICES.items()} for _ in range(count)]
        world.step([game.Plan(**plan) for plan in plans])  # type: ignore[arg-type]
    elif move == "pass":
        world.pair.now += dice.choice(game.SPANS)
    elif move == "deadline":
        world.to_next_deadline(dice.choice([0, 0, 0, 1]))
    elif move == "tick":
        world.tick(dice.choice(game.JUDGED))
    elif move == "close":
        world.close_at_once(dice.randrange(5))
    elif move == "pause":
        world.command("READY", value=0)
        world.command("READY", value=2)
    else:
        world.control(dice.choice(COMMANDS), dice.randrange(5), dice.randrange(9000))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_recovery_goes_as_the_law_says(seed: int) -> None:
    dice = random.Random(seed)
    world = Recovering(dice.choice([3, 6, 12, 40]), dice.choice([1000, 2000]), 2)
    for _ in range(dice.choice([5, 40, 300])):
        one_move(world, dice, MOVES)
    world.command("READY", value=1, ttl_ms=LEAST_MS)
    after = {name: weight for name, weight in MOVES.items() if name not in ("claim", "pause")}
    for _ in range(60):
        one_move(world, dice, after)
    world.pair.stop()
