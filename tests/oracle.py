"""The lock engine as docs/lock-kinds.md says it, in plain Python: the judge of the C engine.

Every function reads like the sentence of the page that it stands for, and searches lists where the
engine keeps indices: it must be obviously right, not fast. It may not import anything of dlock:
what it shares with the engine is the page alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from oracle_deadlock import closed_cycle
from oracle_state import (
    CELL_OPS,
    LEASED_KINDS,
    MS,
    QUEUED_PER_SESSION,
    Entry,
    Event,
    Lock,
    Output,
    Reply,
    Request,
    Session,
    World,
    answer,
    create,
    grant,
    on_lock,
    speak,
    wait_end,
)

# ---- Going, and being granted ----


def remove(world: World, lock: Lock, entry: Entry, out: Output) -> None:
    """Takes an entry away, and with it what only it kept: a closing lock, a leaving session."""
    if entry in lock.queue:
        lock.queue.remove(entry)
        lock.served[entry.mode] += 1
    else:
        lock.holders.remove(entry)
    if lock.closing and not lock.entries():
        del world.locks[lock.slot]
        out.events.append(Event("LOCK_CLOSED", lock.slot, lock.id))
    free_session_if_over(world, entry.session, out)


def free_session_if_over(world: World, slot: int, out: Output) -> None:
    session = world.sessions.get(slot)
    if session is None or not session.leaving:
        return
    if all(entry.session != slot for _, entry in world.all_entries()):
        del world.sessions[slot]
        out.events.append(Event("SESSION_FREED", slot, session.id))


def purge(world: World, lock: Lock, now: int, out: Output) -> None:
    for holder in list(lock.holders):
        if holder.lapsed(now):
            remove(world, lock, holder, out)


def serves(world: World, lock: Lock) -> bool:
    return world.ready or world.certain(lock) is not None


def settle(
    world: World, lock: Lock, now: int, out: Output, asking: Entry | None = None
) -> Reply | None:
    """Grants what can be granted, in order. The grant of `asking` is returned, not sent."""
    if not lock.queue or not serves(world, lock):
        return None
    purge(world, lock, now, out)
    heard = world.certain(lock)
    if heard and lock.compatible(lock.queue[0].mode):
        heard.moved = True
    own: Reply | None = None
    reservations: list[str] = []
    for entry in list(lock.queue):
        if "exclusive" in reservations or (entry.mode == "exclusive" and reservations):
            break
        if not lock.compatible(entry.mode):
            break
        if entry.state == "QUEUED":
            reply = grant(world, lock, entry, now)
            if entry is asking:
                own = reply
            else:
                out.others.append(reply)
            continue
        if entry.claim_end is None:
            entry.claim_end = now + world.claim_ms * MS
        if entry.claim_end <= now and entry is not lock.queue[-1]:
            remove(world, lock, entry, out)
        else:
            reservations.append(entry.mode)
    return own


# ---- Requests ----


def step(world: World, requests: Iterable[Request], now: int) -> list[Output]:
    return [step_one(world, request, now) for request in requests]


def step_one(world: World, request: Request, now: int) -> Output:
    out = Output()
    session = world.sessions.get(request.session)
    if session is None or session.ended:
        out.own = answer(request, "REMOVED")
        return out
    renew(session, now)
    if request.op == "PING":
        out.own = answer(request, "DONE")
    elif not world.ready and not served_early(world, session, request):
        out.own = answer(request, "NOT_READY")
    elif request.op in CELL_OPS:
        opened = world.cells.get(request.slot) == request.lock_id
        out.own = answer(request, "ACTION" if opened else "NO_OBJECT")
    else:
        lock = world.locks.get(request.slot)
        if lock is None or lock.id != request.lock_id:
            out.own = answer(request, "NO_LOCK")
        else:
            settle(world, lock, now, out)
            out.own = on_open_lock(world, session, lock, request, now, out)
    return out


def served_early(world: World, session: Session, request: Request) -> bool:
    """Before all is ready: what only frees, and all that is asked of a certain lock."""
    if not world.recovering or not session.early or request.op in CELL_OPS:
        return False
    if request.op in ("CANCEL", "GIVE_UP"):
        return True
    lock = world.locks.get(request.slot)
    if lock is None or lock.id != request.lock_id:
        return False
    heard = world.certain(lock)
    if heard and request.op == "LOCK" and not lock.queue and lock.compatible(request.mode):
        heard.moved = True
    return heard is not None


def on_open_lock(
    world: World, session: Session, lock: Lock, request: Request, now: int, out: Output
) -> Reply:
    if refused(session, lock, request):
        return on_lock(lock, answer(request, "INVALID"))
    if request.op == "LOCK":
        return lock_request(world, lock, request, now, out)
    if request.op == "REDEEM":
        return redeem_request(world, lock, request, now, out)
    if request.op == "UNLOCK":
        return unlock_request(world, lock, request, now, out)
    if request.op == "EXTEND":
        return extend_request(world, lock, request, now, out)
    if request.op == "CANCEL":
        mine = [e for e in entries_of(lock, request) if e.request_id == request.value]
        return undo(world, lock, mine[0] if mine else None, request, "CANCELLED", now, out)
    assert request.op == "GIVE_UP"
    return undo(world, lock, meant(lock, request), request, "DONE", now, out)


def renew(session: Session, now: int) -> None:
    session.deadline = now + session.ttl


def refused(session: Session, lock: Lock, request: Request) -> bool:
    too_long = request.lease_ms > session.max_lease_ms
    if request.op == "EXTEND":
        return too_long
    if request.op not in ("LOCK", "REDEEM"):
        return False
    if request.lease_ms and (too_long or lock.kind not in LEASED_KINDS):
        return True
    if request.op == "REDEEM":
        return lock.kind != "FAIR"
    if request.mode == "shared" and lock.kind in ("ATOMIC", "SEMAPHORE"):
        return True
    return request.ticket and lock.kind != "FAIR"


def entries_of(lock: Lock, request: Request) -> list[Entry]:
    return [
        entry
        for entry in lock.entries()
        if entry.session == request.session and entry.owner == request.owner
    ]


def meant(lock: Lock, request: Request) -> Entry | None:
    for entry in entries_of(lock, request):
        if request.entry is None and entry.number == request.token:
            return entry
        if request.entry is not None and entry.handle == request.entry:
            return entry
    return None


def meant_hold(lock: Lock, request: Request) -> Entry | None:
    entry = meant(lock, request)
    if entry is None or entry.state != "HELD" or entry.number != request.token:
        return None
    return entry


def lock_request(world: World, lock: Lock, request: Request, now: int, out: Output) -> Reply:
    if request.resend:
        for entry in entries_of(lock, request):
            if entry.request_id != request.request_id:
                continue
            if not entry.over(now):
                return resent(world, lock, entry, now, out)
            remove(world, lock, entry, out)
    if lock.closing:
        return answer(request, "NO_LOCK")
    if not lock.compatible(request.mode):
        purge(world, lock, now, out)
    if world.entries_in_use() == world.max_entries:
        return on_lock(lock, answer(request, "NO_RESOURCE"))
    if request.wait_ms != 0 and world.queued_by(request.session) >= QUEUED_PER_SESSION:
        return on_lock(lock, answer(request, "NO_RESOURCE"))
    free = not lock.queue and lock.compatible(request.mode)
    entry = create(world, lock, request, now)
    if free:
        return grant(world, lock, entry, now)
    own = settle(world, lock, now, out, asking=entry)
    if own is not None:
        return own
    if request.wait_ms != 0:
        return wait_in_queue(world, lock, entry, request, now, out)
    if request.ticket:
        return to_ticket(lock, entry, now)
    remove(world, lock, entry, out)
    settle(world, lock, now, out)
    return speak(lock, entry, "BUSY", now)


def wait_in_queue(
    world: World, lock: Lock, entry: Entry, request: Request, now: int, out: Output
) -> Reply:
    """It waits, unless it asks about cycles and closes one: then nothing of it is left."""
    if request.deadlock:
        out.cycle = closed_cycle(world, lock, entry, now)
    if out.cycle is None:
        return speak(lock, entry, "QUEUED", now)
    remove(world, lock, entry, out)
    settle(world, lock, now, out)
    reply = speak(lock, entry, "DEADLOCK", now)
    reply.cycle = out.cycle.number
    return reply


def resent(world: World, lock: Lock, entry: Entry, now: int, out: Output) -> Reply:
    """A request that was sent before; what it waited until now does not count as its wait."""
    if entry.state == "QUEUED":
        entry.since = now
    remind(world, lock, entry, now, out)
    result = {"HELD": "GRANTED", "QUEUED": "QUEUED", "TICKET": "TICKETED"}[entry.state]
    return speak(lock, entry, result, now)


def to_ticket(lock: Lock, entry: Entry, now: int) -> Reply:
    entry.state = "TICKET"
    entry.wait_end = None
    return speak(lock, entry, "TICKETED", now)


def redeem_request(world: World, lock: Lock, request: Request, now: int, out: Output) -> Reply:
    entry = meant(lock, request)
    if entry is None:
        return on_lock(lock, answer(request, "PASSED"))
    if entry.mode != request.mode:
        return on_lock(lock, answer(request, "INVALID"))
    if entry.over(now) or ends_unsaid(entry, request, now):
        remove(world, lock, entry, out)
        settle(world, lock, now, out)
        return on_lock(lock, answer(request, "PASSED"))
    if entry.state == "HELD":
        entry.request_id = request.request_id
        if not request.lease_ms and not entry.breaking:
            entry.end = None
        grow(entry, request.lease_ms, now)
        remind(world, lock, entry, now, out)
        return speak(lock, entry, "GRANTED", now)
    too_many = world.queued_by(request.session) >= QUEUED_PER_SESSION
    if entry.state == "TICKET" and request.wait_ms != 0 and too_many:
        return on_lock(lock, answer(request, "NO_RESOURCE"))
    entry.state = "QUEUED"
    entry.request_id = request.request_id
    entry.lease_ms = request.lease_ms
    entry.ticket, entry.final_expiry = request.ticket, request.final_expiry
    entry.awaited = False
    entry.wait_end = wait_end(request, now)
    entry.since = now
    own = settle(world, lock, now, out, asking=entry)
    if own is not None:
        return own
    if request.wait_ms != 0:
        return wait_in_queue(world, lock, entry, request, now, out)
    return to_ticket(lock, entry, now)


def ends_unsaid(entry: Entry, request: Request, now: int) -> bool:
    """A breaking hold whose lease has less left than the answer to a REDEEM without one can say."""
    short = entry.end is not None and entry.end - now < MS
    return entry.breaking and short and not request.lease_ms


def grow(entry: Entry, lease_ms: int, now: int) -> None:
    """A lease only ever grows; a hold without a lease stays without; a breaking one as it is."""
    if entry.lease_left_ms is not None and not entry.breaking:
        entry.lease_left_ms = max(entry.lease_left_ms, lease_ms)
    if entry.end is not None and lease_ms and not entry.breaking:
        entry.end = max(entry.end, now + lease_ms * MS)


def unlock_request(world: World, lock: Lock, request: Request, now: int, out: Output) -> Reply:
    hold = meant_hold(lock, request)
    if hold is None:
        return on_lock(lock, answer(request, "NOT_HELD"))
    over = hold.over(now)
    remove(world, lock, hold, out)
    settle(world, lock, now, out)
    return on_lock(lock, answer(request, "NOT_HELD" if over else "RELEASED"))


def extend_request(world: World, lock: Lock, request: Request, now: int, out: Output) -> Reply:
    hold = meant_hold(lock, request)
    if hold is None:
        return on_lock(lock, answer(request, "NOT_HELD"))
    if hold.mode != request.mode:
        return on_lock(lock, answer(request, "INVALID"))
    if hold.over(now):
        remove(world, lock, hold, out)
        settle(world, lock, now, out)
        return on_lock(lock, answer(request, "NOT_HELD"))
    grow(hold, request.lease_ms, now)
    remind(world, lock, hold, now, out)
    reply = speak(lock, hold, "EXTENDED", now)
    reply.request_id = request.request_id
    return reply


def notice(world: World, lock: Lock, entry: Entry, now: int, out: Output) -> None:
    """To the session of a holder, unasked, if it has not ended."""
    if not world.sessions[entry.session].ended:
        told = speak(lock, entry, "BROKEN", now)
        told.request_id = 0
        out.others.append(told)


def remind(world: World, lock: Lock, entry: Entry, now: int, out: Output) -> None:
    """Whoever is told of a breaking hold is told behind it that it is breaking."""
    if entry.breaking:
        notice(world, lock, entry, now, out)


def undo(
    world: World,
    lock: Lock,
    entry: Entry | None,
    request: Request,
    result: str,
    now: int,
    out: Output,
) -> Reply:
    if entry is not None:
        remove(world, lock, entry, out)
        settle(world, lock, now, out)
    return on_lock(lock, answer(request, result))


# ---- Time ----


def tick(world: World, now: int, sessions_now: int = 0) -> Output:
    """Sessions, then leases and claims, then waits. sessions_now 0: no session ends."""
    out = Output()
    open_sessions = [s for s in world.sessions.values() if not s.ended]
    if world.recovering:
        open_sessions = []  # No session ends.
    due = [s for s in open_sessions if max(s.deadline, world.grace) <= sessions_now]
    for session in due:
        session.ended = True
        out.events.append(Event("SESSION_ENDED", session.slot, session.id))
    for session in due:
        end_waits(world, session, out)
    end_holds_and_settle(world, now, out)
    for lock, entry in list(world.all_entries()):
        if entry.wait_end is not None and entry.wait_end <= now:
            end_wait(world, lock, entry, now, out)
    end_holds_and_settle(world, now, out)
    return out


def end_holds_and_settle(world: World, now: int, out: Output) -> None:
    """Leased holds of leaving sessions, and breaking ones, end on time; everybody else's when
    somebody waits."""
    for lock, entry in list(world.all_entries()):
        if entry.lapsed(now) and (entry.breaking or world.sessions[entry.session].leaving):
            remove(world, lock, entry, out)
    for lock in list(world.locks.values()):
        settle(world, lock, now, out)


def end_waits(world: World, session: Session, out: Output) -> None:
    for lock, entry in list(world.all_entries()):
        if entry.session == session.slot and entry.state == "QUEUED":
            out.others.append(Reply("REMOVED", entry.session, entry.request_id))
            remove(world, lock, entry, out)


def leave(world: World, session: Session, now: int, out: Output, keep_leased: bool) -> None:
    """Frees what the session has, but leased holds that are to stay until they end."""
    session.ended = session.leaving = True
    end_waits(world, session, out)
    for lock, entry in list(world.all_entries()):
        if entry.session == session.slot and not (entry.leased() and keep_leased):
            remove(world, lock, entry, out)
    free_session_if_over(world, session.slot, out)
    end_holds_and_settle(world, now, out)


def end_wait(world: World, lock: Lock, entry: Entry, now: int, out: Output) -> None:
    if lock.kind == "FAIR" and entry.ticket:
        entry.claim_end = None
        out.others.append(to_ticket(lock, entry, now))
    else:
        remove(world, lock, entry, out)
        out.others.append(speak(lock, entry, "TIMED_OUT", now))


def next_due(world: World) -> int | None:
    """The first moment at which a tick would change anything."""
    open_sessions = [s for s in world.sessions.values() if not s.ended]
    due = [max(one.deadline, world.grace) for one in open_sessions if not world.recovering]
    for lock, entry in world.all_entries():
        if entry.wait_end is not None:
            due.append(entry.wait_end)
        if entry.end is not None and (entry.breaking or world.sessions[entry.session].leaving):
            due.append(entry.end)
        if lock.queue and serves(world, lock):
            if entry.end is not None:
                due.append(entry.end)
            if entry.claim_end is not None and entry is not lock.queue[-1]:
                due.append(entry.claim_end)
    return min(due, default=None)


def stop(world: World) -> Output:
    out = Output()
    for _, entry in world.all_entries():
        if entry.state == "QUEUED":
            out.others.append(Reply("STOPPING", entry.session, entry.request_id))
    return out
