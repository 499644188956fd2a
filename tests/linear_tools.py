"""What the tests of the checker share: short ways to write histories, and an oracle.

The oracle knows nothing of how the checker searches. It goes through time in ticks and, in each,
lets any operation whose interval has this tick take effect, in any order; operations without an end
may do so at any tick after their begin, or never. What they do to a lock is written down here once
more, as plainly as it can be.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from dlock.linear import history as h
from dlock.linear.history import Operation

SIZE = 2


def acquire(who: str, begin: int, end: int | None, token: int = 0, **more: Any) -> Operation:
    kind = more.pop("kind", h.MUTEX)
    outcome = h.DONE if end is not None else h.UNKNOWN
    return Operation("a", kind, h.ACQUIRE, who, begin, end,
                     **{"outcome": outcome, "token": token, **more})


def refused(who: str, begin: int, end: int, **more: Any) -> Operation:
    return acquire(who, begin, end, **{"outcome": h.REFUSED, **more})


def release(who: str, begin: int, end: int | None, **more: Any) -> Operation:
    return Operation("a", more.pop("kind", h.MUTEX), h.RELEASE, who, begin, end, **more)


def held(who: str, begin: int, end: int, **more: Any) -> Operation:
    return Operation("a", more.pop("kind", h.MUTEX), h.HELD, who, begin, end, **more)


def ended(who: str, begin: int, end: int | None = None, **more: Any) -> Operation:
    return Operation("a", more.pop("kind", h.MUTEX), h.END, who, begin, end, **more)


def cell(who: str, action: str, begin: int, end: int | None, **more: Any) -> Operation:
    return Operation("a", h.CELL, action, who, begin, end, **{"size": 0, **more})


# ---- The oracle ----------------------------------------------------------------------------------


class Looked(NamedTuple):
    """Where the oracle is: the tick, what has taken effect, and the lock."""

    tick: int
    done: frozenset[int]
    holders: tuple[tuple[str, int, bool, int], ...]  # hold, token, shared, entries
    newest: int  # token
    number: tuple[int, int | None]  # life, value


def explained(operations: list[Operation]) -> bool:
    """Is there an order?"""
    last = max([one.begin_ns for one in operations]
               + [one.end_ns for one in operations if one.end_ns is not None], default=0)
    kinds = {one.kind for one in operations}
    start = next((one.size for one in operations if one.kind == h.CELL), 0)
    stack = [Looked(0, frozenset(), (), 0, (0, start))]
    seen = set(stack)
    while stack:
        at = stack.pop()
        if at.tick > last:
            return True
        followers = [
            changed._replace(done=at.done | {index})
            for index, one in enumerate(operations)
            if index not in at.done and one.begin_ns <= at.tick
            and (one.end_ns is None or at.tick <= one.end_ns)
            for changed in (_number(at, one) if h.CELL in kinds else _lock(at, index, operations))
        ]
        if not any(one.end_ns == at.tick and index not in at.done and not (
                one.action == h.ACQUIRE and one.outcome == h.UNKNOWN)
                   for index, one in enumerate(operations)):
            followers.append(at._replace(tick=at.tick + 1))
        for follower in followers:
            if follower not in seen:
                seen.add(follower)
                stack.append(follower)
    return False


def _lock(at: Looked, index: int, operations: list[Operation]) -> list[Looked]:
    one = operations[index]
    mine = [hold for hold in at.holders if hold[0] == one.key]
    others = tuple(hold for hold in at.holders if hold[0] != one.key)
    if one.action == h.HELD:
        return [at] if mine else []
    if one.action in (h.RELEASE, h.END):
        if not mine:
            return []
        (key, token, shared, count), = mine
        if one.action == h.RELEASE and count > 1:
            return [at._replace(holders=tuple(sorted((*others, (key, token, shared, count - 1)))))]
        return [at._replace(holders=others)]
    if one.outcome == h.UNKNOWN:
        return []  # what it did unheard of only matters to the refusals of others
    if one.waiting_ns is not None and at.tick < one.waiting_ns:
        return []
    if one.outcome == h.REFUSED:
        return [at] if _may_refuse(at, index, operations) else []
    if mine:
        (key, token, shared, count), = mine
        again = one.kind == h.REENTRANT or (one.kind in (h.RW, h.FAIR) and one.hold)
        if not again or token != one.token:
            return []
        return [at._replace(holders=tuple(sorted((*others, (key, token, shared, count + 1)))))]
    if (one.token and one.token <= at.newest) or not _room(at, one):
        return []
    for other, ahead in enumerate(operations):
        if (ahead.action == h.ACQUIRE and ahead.outcome != h.UNKNOWN and other not in at.done
                and other != index and ahead.queued_ns is not None
                and ahead.queued_ns < one.begin_ns):
            return []
    entry = (one.key, one.token, one.shared, 1)
    return [at._replace(holders=tuple(sorted((*at.holders, entry))),
                        newest=max(at.newest, one.token))]


def _room(at: Looked, one: Operation) -> bool:
    if one.kind == h.SEMAPHORE:
        return len(at.holders) < (one.size or 0)
    if one.kind in (h.RW, h.FAIR) and one.shared:
        return all(hold[2] for hold in at.holders)
    return not at.holders


def _may_refuse(at: Looked, index: int, operations: list[Operation]) -> bool:
    one = operations[index]
    for other, ghost in enumerate(operations):
        if other != index and ghost.action == h.ACQUIRE and ghost.begin_ns <= one.end_ns:
            unheard_of = ghost.outcome == h.UNKNOWN or ghost.again
            if unheard_of and (ghost.end_ns is None or ghost.end_ns >= one.begin_ns):
                return True
    if not _room(at, one):
        return True
    return bool(at.holders) and one.kind in (h.RW, h.FAIR) and one.shared and any(
        rival.action == h.ACQUIRE and rival.outcome != h.UNKNOWN and rival.waits
        and not rival.shared and rival.begin_ns <= at.tick and other not in at.done
        for other, rival in enumerate(operations))


def _number(at: Looked, one: Operation) -> list[Looked]:
    life, value = at.number
    if one.outcome == h.REFUSED:
        return [at]
    if one.life:
        if one.life < life:
            return []
        if one.life > life:
            value = one.size if life else value
            life = one.life
    if one.action == h.GONE or (one.action == h.GET and one.result in (value, None)):
        return [at._replace(number=(life, value))]
    if one.result not in (None, value):
        return []
    if one.action == h.ADD:
        return [at._replace(number=(life, (value + one.argument + 2**63) % 2**64 - 2**63))]
    if one.action == h.SWAP:
        made = one.desired if value == one.argument else value
        return [at._replace(number=(life, made))]
    return []


# ---- Small histories at random -------------------------------------------------------------------


def _span(chance: random.Random, ticks: int) -> tuple[int, int]:
    begin = chance.randrange(ticks)
    return begin, min(begin + chance.choice([0, 1, 1, 2, 3, 5]), ticks)


def small_lock(chance: random.Random, kind: str) -> list[Operation]:
    """Holds of a few actors, in intervals that often contradict each other, often do not."""
    found: list[Operation] = []
    ticks, token = 12, 0
    tokens = chance.random() < 0.5
    for number in range(chance.randint(2, 4)):
        who = f"c{number % 3}"
        hold = f"{who}.{number}" if kind != h.REENTRANT else ""
        same: dict[str, Any] = {
            "kind": kind, "hold": hold, "size": SIZE,
            "shared": kind in (h.RW, h.FAIR) and chance.random() < 0.5}
        begin, end = _span(chance, ticks)
        waits = chance.random() < 0.6
        again = chance.random() < 0.1
        roll = chance.random()
        if roll < 0.25:
            found.append(refused(who, begin, end, waits=waits, again=again, **same))
            continue
        if roll < 0.32:
            gone = chance.choice([None, end])
            found.append(acquire(who, begin, gone, outcome=h.UNKNOWN, **same))
            continue
        queued = chance.randint(begin, end) if waits and chance.random() < 0.4 else None
        waiting = chance.randint(begin, queued) if queued is not None else None
        token += chance.choice([1, 1, 1, 1, 1, 0, -1]) if tokens else 0
        token = max(token, int(tokens))
        found.append(acquire(who, begin, end, token, waits=waits, again=again, queued_ns=queued,
                             waiting_ns=waiting, **same))
        begin = max(end + chance.choice([0, 1, 2, -1]), 0)
        if chance.random() < 0.3:
            found.append(held(who, begin, begin + chance.randint(0, 2), **same))
        if kind in (h.REENTRANT, h.RW) and chance.random() < 0.3:
            found.append(acquire(who, begin, begin + 1, token, **same))
            found.append(release(who, begin + 1, begin + 2, **same))
        roll = chance.random()
        end = begin + chance.choice([0, 1, 2, 4])
        if roll < 0.7:
            found.append(release(who, begin, end, **same))
        elif roll < 0.8:
            found.append(release(who, begin, None, **same))
        elif roll < 0.9:
            found.append(ended(who, begin, None, **same))
    return found


def small_cell(chance: random.Random) -> list[Operation]:
    """Changes of one number by a few actors, with answers that are often right."""
    found: list[Operation] = []
    value, life = 0, chance.choice([0, 0, 1])
    time = 0
    for number in range(chance.randint(2, 6)):
        who = f"c{number % 3}"
        time += chance.choice([0, 0, 1, 2])
        begin, end = max(time - chance.randint(0, 2), 0), time + chance.choice([0, 1, 2])
        if life and chance.random() < 0.15:
            life, value = life + 1, 0
            found.append(cell(who, h.GONE, begin, end, life=life))
            continue
        seen = value if chance.random() < 0.85 else value + chance.choice([-1, 1])
        action = chance.choice([h.ADD, h.ADD, h.SWAP, h.GET])
        argument = chance.choice([1, 1, 2]) if action == h.ADD else chance.choice([value, 1, 2])
        desired = chance.choice([1, 2, 3])
        lost = action != h.GET and chance.random() < 0.3
        found.append(cell(
            who, action, begin, None if lost else end, argument=argument, desired=desired,
            outcome=h.UNKNOWN if lost else h.DONE, result=None if lost else seen,
            life=max(life - (chance.random() < 0.1), 0)))
        if lost and chance.random() < 0.5:
            continue
        if action == h.ADD:
            value += argument
        elif action == h.SWAP and value == argument:
            value = desired
    return found
