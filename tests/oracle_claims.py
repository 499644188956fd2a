"""Claims at a new primary, as docs/lock-kinds.md says it under "Recovery": the judge of the merge.

Which holds stand is worked out anew from all that was ever claimed, where the engine keeps a floor.
Like oracle.py it may not import anything of dlock.
"""

from __future__ import annotations

from collections.abc import Iterable

from oracle import remove, settle
from oracle_state import (
    LEASED_KINDS,
    MS,
    QUEUED_PER_SESSION,
    Claim,
    Entry,
    Event,
    Heard,
    Lock,
    Output,
    Rank,
    Reply,
    Session,
    World,
    on_lock,
    speak,
)

SHARED_KINDS = ("RW", "FAIR")


def claim(
    world: World, slot: int, claims: Iterable[Claim], believed: bool, now: int
) -> tuple[list[str], Output]:
    """One CLAIM of a session; `believed`: its lapsed holds without a lease are."""
    out = Output()
    session = world.sessions[slot]
    return [claim_one(world, session, one, believed, now, out) for one in claims], out


def claim_one(
    world: World, session: Session, one: Claim, believed: bool, now: int, out: Output
) -> str:
    if not well_formed(world, session, one):
        return "INVALID"
    if one.slot >= world.max_locks:
        return "NO_RESOURCE"
    lock = world.locks.get(one.slot)
    if lock is not None and lock.id > one.lock_id:
        return "NO_LOCK"
    if lock is not None and lock.id == one.lock_id:
        if lock.kind != one.kind or (lock.kind == "SEMAPHORE" and lock.size != one.size):
            return "INVALID"
    elif lock is not None:
        lock.closing = False
        displace_lock(world, lock, now, out)
        del world.locks[one.slot]
        out.events.append(Event("LOCK_CLOSED", lock.slot, lock.id))
        lock = None
    if lock is None:
        lock = world.locks[one.slot] = Lock(one.slot, one.lock_id, one.kind, one.size)
    lock.closing = False
    heard = world.heard.get(one.slot)
    if heard is None or heard.lock_id != one.lock_id:
        world.heard[one.slot] = Heard(one.lock_id)
    if one.state == "GOT":
        return "DONE"
    if one.state == "HELD":
        return claim_hold(world, session, lock, one, believed, now, out)
    return claim_place(world, session, lock, one, now, out)


def well_formed(world: World, session: Session, one: Claim) -> bool:
    if one.state == "GOT":
        return True
    if one.mode == "shared" and one.kind not in SHARED_KINDS:
        return False
    lease_ms = int(one.leased) if one.state == "HELD" else one.lease_ms
    if lease_ms and one.kind not in LEASED_KINDS:
        return False
    if one.ticket and one.kind != "FAIR":
        return False
    if one.state == "TICKET" and one.kind != "FAIR":
        return False
    if one.state != "HELD" and lease_ms > session.max_lease_ms:
        return False
    return 0 < one.number < world.epoch << 43


def displace_lock(world: World, lock: Lock, now: int, out: Output) -> None:
    for entry in lock.entries():
        if entry.state == "HELD":
            displace(world, lock, entry, now, out)
            continue
        if entry.state == "QUEUED":
            out.others.append(Reply("NO_LOCK", entry.session, entry.request_id))
        remove(world, lock, entry, out)


def displace(world: World, lock: Lock, entry: Entry, now: int, out: Output) -> None:
    if not world.sessions[entry.session].ended:
        told = Reply("NOT_HELD", entry.session, 0, entry.number, entry.handle)
        out.others.append(on_lock(lock, told))
    remove(world, lock, entry, out)


# ---- Holds ----


def rank_of(world: World, entry: Entry) -> Rank:
    return entry.number, world.sessions[entry.session].id, entry.owner


def stands(heard: Heard, mode: str, rank: Rank) -> bool:
    """Does nothing that was claimed speak against this hold? Of a semaphore nothing is heard: that
    a slot was given out later says nothing of the others."""
    if mode == "shared":
        return all(rank[0] > other[0] for other in heard.ranks["exclusive"])
    no_later_reader = all(rank[0] >= other[0] for other in heard.ranks["shared"])
    return no_later_reader and all(rank >= other for other in heard.ranks["exclusive"])


def claim_hold(
    world: World,
    session: Session,
    lock: Lock,
    one: Claim,
    believed: bool,
    now: int,
    out: Output,
) -> str:
    heard = world.heard[lock.slot]
    rank = (one.number, session.id, one.owner)
    if lock.kind != "SEMAPHORE":
        heard.ranks[one.mode].append(rank)
    changed = False
    for entry in [entry for entry in lock.holders if entry.claimed]:
        if not stands(heard, entry.mode, rank_of(world, entry)):
            displace(world, lock, entry, now, out)
            changed = True
    live = not one.lapsed
    credible = live or (believed and not one.leased)
    held = [
        entry
        for entry in lock.holders
        if entry.claimed and entry.session == session.slot and entry.mode == one.mode
        and rank_of(world, entry) == rank
    ]
    result = "GRANTED" if held else "NOT_HELD"
    if held:
        changed = changed or (live and not held[0].live)
        held[0].live = held[0].live or live
    elif (
        credible
        and not heard.moved
        and stands(heard, one.mode, rank)
        and has_room(world, lock, one, rank, now, out)
    ):
        changed = True
        result = "GRANTED" if take_hold(world, session, lock, one, now) else "NO_RESOURCE"
    if changed and not heard.moved:
        heard.certain = filled(lock)
    return result


def has_room(
    world: World, lock: Lock, one: Claim, rank: Rank, now: int, out: Output
) -> bool:
    """A semaphore keeps the live ones first, and of these and of the others the highest."""
    if lock.kind != "SEMAPHORE" or len(lock.holders) < lock.size:
        return True
    last = min(lock.holders, key=lambda entry: (entry.live, rank_of(world, entry)))
    if (last.live, rank_of(world, last)) > (not one.lapsed, rank):
        return False
    displace(world, lock, last, now, out)
    return True


def filled(lock: Lock) -> bool:
    exclusive = [entry for entry in lock.holders if entry.mode == "exclusive"]
    slots = lock.size if lock.kind == "SEMAPHORE" else 1
    return len(exclusive) == slots and all(entry.live for entry in exclusive)


def new_entry(world: World, session: Session, lock: Lock, one: Claim, now: int) -> Entry | None:
    if world.entries_in_use() == world.max_entries:
        return None
    world.handles += 1
    lock.handed[one.mode] += 1
    return Entry(
        handle=world.handles, session=session.slot, owner=one.owner, mode=one.mode,
        state=one.state, number=one.number, request_id=one.request_id, since=now)


def take_hold(world: World, session: Session, lock: Lock, one: Claim, now: int) -> bool:
    entry = new_entry(world, session, lock, one, now)
    if entry is None:
        return False
    entry.claimed, entry.live = True, not one.lapsed
    entry.final_expiry = one.final_expiry
    entry.lease_left_ms = max(one.lease_ms, 1) if one.leased else None
    lock.served[one.mode] += 1
    lock.holders.append(entry)
    return True


# ---- Places ----


def claim_place(
    world: World, session: Session, lock: Lock, one: Claim, now: int, out: Output
) -> str:
    waits = one.state == "QUEUED"
    known = [entry for entry in lock.entries() if same_place(session, entry, one)]
    if known and not (
        waits and known[0].state == "TICKET" and known[0].request_id != one.request_id
    ):
        return "TICKETED" if known[0].state == "TICKET" else "QUEUED"
    if waits and world.queued_by(session.slot) >= QUEUED_PER_SESSION:
        return "NO_RESOURCE"
    entry = known[0] if known else new_entry(world, session, lock, one, now)
    if entry is None:
        return "NO_RESOURCE"
    if not known:
        lock.queue.append(entry)
        lock.queue.sort(key=lambda entry: rank_of(world, entry))
        for behind in lock.queue[lock.queue.index(entry) + 1 :]:
            behind.claim_end = None
    if waits:
        entry.state = "QUEUED"
        entry.awaited = True
        entry.request_id = one.request_id
        entry.since = now
        entry.lease_ms = one.lease_ms
        entry.ticket, entry.final_expiry = one.ticket, one.final_expiry
        entry.wait_end = None if one.wait_ms is None else now + one.wait_ms * MS
    settle(world, lock, now, out)
    return "QUEUED" if waits else "TICKETED"


def same_place(session: Session, entry: Entry, one: Claim) -> bool:
    if entry.session != session.slot or entry.owner != one.owner:
        return False
    if one.state == "QUEUED" and not entry.claimed and entry.request_id == one.request_id:
        return True
    return entry.state != "HELD" and entry.number == one.number


def attached(world: World, slot: int, now: int, out: Output) -> None:
    """The session has its first connection: what its waiters were told meanwhile was lost. They
    count what is left of a lease from there."""
    for lock, entry in list(world.all_entries()):
        if entry.session == slot and entry.awaited:
            entry.awaited = False
            if entry.state == "HELD":
                told = speak(lock, entry, "GRANTED", now)
                out.others.append(told)
            elif entry.state == "TICKET":
                out.others.append(speak(lock, entry, "TICKETED", 0))


# ---- The end ----


def by_any_clock_ms(lease_ms: int) -> int:
    """What a client has left by its own clock, by any that is up to 0.1 % faster."""
    return lease_ms + lease_ms // 1000 + 1


def end(world: World, least_ms: int, now: int) -> None:
    """All is ready: leases run."""
    for _, entry in world.all_entries():
        if entry.lease_left_ms is not None:
            entry.end = now + max(by_any_clock_ms(entry.lease_left_ms), least_ms) * MS
        entry.claimed, entry.lease_left_ms, entry.awaited = False, None, False
    world.heard = {}
