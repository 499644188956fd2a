"""The commands of the control plane, as docs/lock-kinds.md says them: the rest of the oracle.

Like oracle.py it may not import anything of dlock.
"""

from __future__ import annotations

import oracle_claims
from oracle import (
    end_holds_and_settle,
    leave,
    notice,
    remove,
    renew,
    settle,
)
from oracle_state import MS, Command, Event, Lock, Output, Session, World


def command(world: World, order: Command, now: int) -> Output:
    """The DONE event comes first; where the command is refused its result is INVALID."""
    out = Output()
    if order.op.startswith("SESSION_"):
        done, value = session_command(world, order, now, out)
    elif order.op.startswith("LOCK_"):
        done, value = lock_command(world, order, now, out)
    elif order.op == "BREAK":
        done, value = break_holds(world, order, now, out)
    else:
        done, value = other_command(world, order, now, out), 0
    result = "DONE" if done else "INVALID"
    out.events.insert(0, Event("DONE", order.slot, order.id, result, order.cookie, value))
    return out


def session_command(world: World, order: Command, now: int, out: Output) -> tuple[bool, int]:
    session = world.sessions.get(order.slot)
    if order.op == "SESSION_OPEN":
        if session is not None:
            return False, 0
        ttl = order.ttl_ms * MS
        world.sessions[order.slot] = Session(
            order.slot, order.id, ttl, order.lease_ms, now + ttl, order.early)
        return True, 0
    if session is None or session.id != order.id:
        return False, 0
    if order.op == "SESSION_CLOSE":  # also of one of which leased holds are left
        leave(world, session, now, out, keep_leased=False)
        return True, 0
    if session.leaving:
        return False, 0
    if order.op == "SESSION_END":
        if not session.ended:
            return False, 0
        leave(world, session, now, out, keep_leased=True)
        return True, sum(entry.session == order.slot for _, entry in world.all_entries())
    if session.ended:
        return False, 0
    if order.op == "SESSION_LEASE":
        session.max_lease_ms = order.lease_ms
    else:
        assert order.op in ("SESSION_RENEW", "SESSION_SUPERSEDE")
        renew(session, now)
    return True, 0


def lock_command(world: World, order: Command, now: int, out: Output) -> tuple[bool, int]:
    lock = world.locks.get(order.slot)
    if order.op == "LOCK_OPEN":
        if lock is None:
            world.locks[order.slot] = Lock(order.slot, order.id, order.kind, order.size)
            return True, 0
        if lock.id != order.id:
            return False, 0
        lock.closing = False
        return True, 0
    assert order.op == "LOCK_CLOSE"
    if lock is None or lock.id != order.id:
        return False, 0
    lock.closing = order.size == 0
    if order.size == 1:
        oracle_claims.displace_lock(world, lock, now, out)
    elif lock.entries():
        return True, 0
    del world.locks[lock.slot]
    return True, 1


def other_command(world: World, order: Command, now: int, out: Output) -> bool:
    if order.op == "CELL_OPEN":
        if order.slot in world.cells:
            return False
        world.cells[order.slot] = order.id
    elif order.op == "CELL_CLOSE":
        if world.cells.get(order.slot) != order.id:
            return False
        del world.cells[order.slot]
    elif order.op == "READY":
        return ready(world, order, now, out)
    else:
        assert order.op == "GRACE"
        world.grace = max(world.grace, now + order.value * MS)
    return True


def ready(world: World, order: Command, now: int, out: Output) -> bool:
    if order.value > 2 or (order.value == 2 and world.served):
        return False
    if world.recovering and order.value != 2:
        world.grace = max(world.grace, now + order.ttl_ms * MS)
    world.ready, world.recovering = order.value == 1, order.value == 2
    world.served = world.served or world.ready
    if world.ready:
        oracle_claims.end(world, order.ttl_ms, now)
    end_holds_and_settle(world, now, out)
    return True


# ---- Breaking ----


def break_holds(world: World, order: Command, now: int, out: Output) -> tuple[bool, int]:
    """size 0: the clients are asked; 1: the holds are removed at once."""
    lock = world.locks.get(order.slot)
    if lock is None or lock.id != order.id:
        return False, 0
    met = [holder for holder in lock.holders if order.value in (0, holder.number)]
    for holder in reversed(met):
        notice(world, lock, holder, now, out)
        if order.size == 1 or holder.lapsed(now):
            remove(world, lock, holder, out)
        else:
            holder.breaking = True
    settle(world, lock, now, out)
    return True, len(met)


def attached(world: World, slot: int, now: int) -> Output:
    """A session has a new connection."""
    out = Output()
    session = world.sessions.get(slot)
    if not world.ready and session is not None and not session.ended:
        oracle_claims.attached(world, slot, now, out)
    for lock, entry in world.all_entries():
        if entry.session == slot and entry.breaking:
            notice(world, lock, entry, now, out)
    return out
