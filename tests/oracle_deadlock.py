"""Who waits for whom, as docs/lock-kinds.md says it under "Deadlock": the judge of that walk.

Searches everything and follows everybody until nothing changes. Like oracle.py it may not import
anything of dlock.
"""

from __future__ import annotations

from collections.abc import Iterator

from oracle_state import Actor, Cycle, Entry, Lock, World


def actor_of(entry: Entry) -> Actor | None:
    number = entry.owner >> 32
    return (entry.session, number) if number else None


def wait_is_over(entry: Entry, now: int) -> bool:
    return entry.wait_end is not None and entry.wait_end <= now


def is_ticket(entry: Entry) -> bool:
    """It is one, or becomes one at the end of its wait."""
    return entry.state == "TICKET" or entry.ticket


def waits_of(world: World, actor: Actor, now: int) -> list[tuple[Lock, Entry]]:
    return [
        (lock, entry)
        for lock, entry in world.all_entries()
        if entry.state == "QUEUED" and actor_of(entry) == actor and not wait_is_over(entry, now)
    ]


def incompatible(lock: Lock, left: Entry, right: Entry) -> bool:
    if lock.kind in ("ATOMIC", "SEMAPHORE"):
        return True
    return "exclusive" in (left.mode, right.mode)


def earlier_in_the_way(lock: Lock, entry: Entry) -> Iterator[Entry]:
    for other in lock.queue[: lock.queue.index(entry)]:
        if incompatible(lock, other, entry):
            yield other


def holders_go(lock: Lock, entry: Entry, going: set[Actor], now: int) -> bool:
    """Do those holders go that keep the entry from being granted?"""
    gone = {id(h) for h in lock.holders if h.lapsed(now) or goes(h, going)}
    if lock.kind == "SEMAPHORE":
        return len(lock.holders) < lock.size or bool(gone)
    return all(id(h) in gone for h in lock.holders if incompatible(lock, h, entry))


def goes(entry: Entry, going: set[Actor]) -> bool:
    actor = actor_of(entry)
    return actor is None or actor in going


def turn_comes(lock: Lock, entry: Entry, going: set[Actor], now: int) -> bool:
    """Does all go that is in the way of this entry of the queue?"""
    if not holders_go(lock, entry, going, now):
        return False
    for other in earlier_in_the_way(lock, entry):
        if actor_of(other) is None:
            continue
        if other.state == "QUEUED" and not wait_is_over(other, now):
            if not goes(other, going):
                return False
        elif is_ticket(other) and not turn_comes(lock, other, going, now):
            return False
    return True


def who_goes_on(world: World, now: int) -> set[Actor]:
    """Everybody who goes on, in the end."""
    everybody = {actor for _, entry in world.all_entries() if (actor := actor_of(entry))}
    going = {actor for actor in everybody if not waits_of(world, actor, now)}
    while True:
        more = {
            actor
            for actor in everybody - going
            if any(turn_comes(lock, e, going, now) for lock, e in waits_of(world, actor, now))
        }
        if not more:
            return going
        going |= more


def in_the_way(
    lock: Lock, entry: Entry, going: set[Actor], now: int, behind_waits: bool = False
) -> set[Actor]:
    """Whom that does not go on the entry waits for on this lock, directly or behind tickets; and
    those whom the waits before it wait for."""
    found: set[Actor] = set()
    if not holders_go(lock, entry, going, now):
        found |= {
            actor
            for holder in lock.holders
            if incompatible(lock, holder, entry) and not holder.lapsed(now)
            if (actor := actor_of(holder))
        }
    for other in earlier_in_the_way(lock, entry):
        actor = actor_of(other)
        if actor is None or (wait_is_over(other, now) and not is_ticket(other)):
            continue
        if other.state == "QUEUED" and not wait_is_over(other, now):
            found.add(actor)
            if not behind_waits:
                continue
        found |= in_the_way(lock, other, going, now, behind_waits)
    return found - going


def closed_cycle(world: World, lock: Lock, entry: Entry, now: int) -> Cycle | None:
    """What the waiting entry closes, if it does: its actor does not go on, and over others who do
    not go on there is a way from it back to its actor."""
    asker = actor_of(entry)
    if asker is None:
        return None
    going = who_goes_on(world, now)
    if asker in going:
        return None
    reached = in_the_way(lock, entry, going, now)
    while True:
        more = {
            further
            for actor in reached - {asker}
            for where, wait in waits_of(world, actor, now)
            for further in in_the_way(where, wait, going, now)
        } - reached
        if not more:
            break
        reached |= more
    if asker not in reached:
        return None
    ways: dict[tuple[Actor, int], set[Actor]] = {(asker, lock.slot): set()}
    for actor in reached:
        for where, wait in waits_of(world, actor, now):
            way = in_the_way(where, wait, going, now, behind_waits=True)
            ways.setdefault((actor, where.slot), set()).update(way)
    world.cycles += 1
    return Cycle(world.cycles, asker, lock.slot, ways)
