"""The oracle's words and state: requests, replies, entries, locks, and what may hold together.

oracle.py builds the requests' rules on these. Results, operations and states are words; the driver
translates them. All times are nanoseconds, None is "never" or "not set". Like oracle.py it may not
import anything of dlock: what it shares with the engine is docs/lock-kinds.md alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

MS = 1_000_000
QUEUED_PER_SESSION = 16384
LEASED_KINDS = ("ATOMIC", "FAIR", "SEMAPHORE")
LOCK_OPS = ("LOCK", "REDEEM", "UNLOCK", "EXTEND", "CANCEL", "GIVE_UP")
CELL_OPS = ("FETCH_ADD", "COMPARE_SWAP", "READ")


@dataclass
class Request:
    op: str
    session: int = 0
    request_id: int = 0
    lock_id: int = 0
    slot: int = 0
    owner: int = 0
    mode: str = "exclusive"
    entry: int | None = None
    token: int = 0
    value: int = 0
    lease_ms: int = 0
    wait_ms: int | None = 0
    ticket: bool = False
    final_expiry: bool = False
    resend: bool = False
    deadlock: bool = False


@dataclass
class Command:
    op: str
    slot: int = 0
    id: int = 0
    kind: str = "ATOMIC"
    size: int = 0
    value: int = 0
    ttl_ms: int = 0
    lease_ms: int = 0
    cookie: int = 0
    early: bool = False  # SESSION_OPEN


@dataclass(frozen=True)
class Claim:
    """What a session says at a new primary of one lock and owner. `number`: token or stamp."""

    state: str  # GOT, HELD, QUEUED or TICKET
    slot: int
    lock_id: int
    kind: str = "ATOMIC"
    size: int = 1
    owner: int = 1
    mode: str = "exclusive"
    number: int = 0
    lapsed: bool = False
    leased: bool = False
    lease_ms: int = 0  # HELD: what remains; QUEUED: what is asked for
    request_id: int = 0
    wait_ms: int | None = 0
    ticket: bool = False
    final_expiry: bool = False


@dataclass
class Reply:
    result: str
    session: int
    request_id: int
    token: int = 0
    entry: int | None = None
    lease_ms: int = 0
    held_us: int = 0
    readers: int = 0
    served: tuple[int, int] = (0, 0)  # n_exclusive, n_shared
    handed: tuple[int, int] = (0, 0)  # m_exclusive, m_shared
    cycle: int = 0  # DEADLOCK: its number


@dataclass(frozen=True)
class Event:
    op: str
    slot: int = 0
    id: int = 0
    result: str = "DONE"
    cookie: int = 0
    value: int = 0
    client_id: int = 0  # DEADLOCK


Actor = tuple[int, int]  # session, upper half of the owner


@dataclass
class Cycle:
    """A refused wait: who asked, and every way that a cycle can go: from an actor that does not go
    on, over the lock it waits for, to those like it that are in its way."""

    number: int
    asker: Actor
    slot: int
    ways: dict[tuple[Actor, int], set[Actor]]


@dataclass
class Output:
    """What one input caused: the answer to the request itself, and what others were told."""

    own: Reply | None = None
    others: list[Reply] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    cycle: Cycle | None = None


@dataclass(eq=False)
class Entry:
    handle: int
    session: int
    owner: int
    mode: str
    state: str  # HELD, QUEUED or TICKET
    number: int  # HELD: the token; else the stamp
    request_id: int
    since: int
    lease_ms: int = 0
    end: int | None = None  # HELD: end of the lease
    wait_end: int | None = None  # QUEUED
    claim_end: int | None = None  # TICKET
    ticket: bool = False
    final_expiry: bool = False
    breaking: bool = False  # HELD: an operator has asked for it
    claimed: bool = False  # HELD, and not all is ready: its lease does not run
    live: bool = False  # claimed: its client could still believe in it
    lease_left_ms: int | None = None  # claimed, and leased
    awaited: bool = False  # comes of a waiter that was claimed before its session had a connection

    def leased(self) -> bool:
        return self.state == "HELD" and (self.end is not None or self.lease_left_ms is not None)

    def lapsed(self, now: int) -> bool:
        return self.end is not None and self.end <= now

    def over(self, now: int) -> bool:
        """A lapsed hold that was asked for with FINAL_EXPIRY, or that is breaking: its lease's end
        is its own."""
        return (self.final_expiry or self.breaking) and self.lapsed(now)


@dataclass(eq=False)
class Lock:
    slot: int
    id: int
    kind: str
    size: int
    closing: bool = False
    holders: list[Entry] = field(default_factory=list)
    queue: list[Entry] = field(default_factory=list)  # in the order of stamps
    served: dict[str, int] = field(default_factory=lambda: {"exclusive": 0, "shared": 0})
    handed: dict[str, int] = field(default_factory=lambda: {"exclusive": 0, "shared": 0})

    def entries(self) -> list[Entry]:
        return self.holders + self.queue

    def readers(self) -> int:
        return sum(holder.mode == "shared" for holder in self.holders)

    def compatible(self, mode: str) -> bool:
        if self.kind == "ATOMIC":
            return not self.holders
        if self.kind == "SEMAPHORE":
            return len(self.holders) < self.size
        if mode == "exclusive":
            return not self.holders
        return all(holder.mode == "shared" for holder in self.holders)


Rank = tuple[int, int, int]  # of a claimed hold: token, client id, owner


@dataclass
class Heard:
    """What the claims of one lock have told, the last that was claimed in its slot."""

    lock_id: int
    ranks: dict[str, list[Rank]] = field(
        default_factory=lambda: {"exclusive": [], "shared": []})
    certain: bool = False  # nobody can hold it who has not claimed it
    moved: bool = False  # certain, and found free since


@dataclass
class Session:
    slot: int
    id: int
    ttl: int
    max_lease_ms: int
    deadline: int
    early: bool = False
    ended: bool = False  # it is over, but keeps what it had until SESSION_END
    leaving: bool = False  # only leased holds are left


@dataclass
class World:
    max_entries: int
    claim_ms: int
    epoch: int = 1
    max_locks: int = 16
    ready: bool = False
    recovering: bool = False
    served: bool = False  # it has been ready
    grace: int = 0  # no session ends before
    counter: int = 0
    handles: int = 0
    cycles: int = 0  # refused so far
    sessions: dict[int, Session] = field(default_factory=dict)
    locks: dict[int, Lock] = field(default_factory=dict)
    cells: dict[int, int] = field(default_factory=dict)
    heard: dict[int, Heard] = field(default_factory=dict)  # by slot, until all is ready

    def certain(self, lock: Lock) -> Heard | None:
        heard = self.heard.get(lock.slot) if self.recovering else None
        return heard if heard and heard.lock_id == lock.id and heard.certain else None

    def next_number(self) -> int:
        self.counter += 1
        return (self.epoch << 43) + self.counter

    def all_entries(self) -> Iterator[tuple[Lock, Entry]]:
        for lock in self.locks.values():
            for entry in lock.entries():
                yield lock, entry

    def entries_in_use(self) -> int:
        return sum(1 for _ in self.all_entries())

    def queued_by(self, session: int) -> int:
        return sum(e.state == "QUEUED" and e.session == session for _, e in self.all_entries())


# ---- Replies ----


def answer(request: Request, result: str) -> Reply:
    return Reply(result, request.session, request.request_id)


def on_lock(lock: Lock, reply: Reply) -> Reply:
    """All replies on a lock carry the number of shared holders and the ticket counts."""
    reply.readers = lock.readers()
    reply.served = (lock.served["exclusive"] % 65536, lock.served["shared"] % 65536)
    reply.handed = (lock.handed["exclusive"] % 65536, lock.handed["shared"] % 65536)
    return reply


def remaining_ms(entry: Entry, now: int) -> int:
    if entry.lease_left_ms is not None:
        return entry.lease_left_ms
    return 0 if entry.end is None else max(0, entry.end - now) // MS


def speak(lock: Lock, entry: Entry, result: str, now: int, held: int = 0) -> Reply:
    """A reply in the name of an entry, to whoever asked for it."""
    reply = Reply(result, entry.session, entry.request_id)
    if result in ("GRANTED", "EXTENDED", "QUEUED", "TICKETED", "BROKEN"):
        reply.token = entry.number
        reply.entry = entry.handle
    if result in ("GRANTED", "EXTENDED", "BROKEN"):
        reply.lease_ms = remaining_ms(entry, now)
        reply.held_us = held // 1000
    return on_lock(lock, reply)


# ---- Coming, going, being granted ----


def create(world: World, lock: Lock, request: Request, now: int) -> Entry:
    """A new entry at the end of the queue."""
    world.handles += 1
    entry = Entry(
        handle=world.handles,
        session=request.session,
        owner=request.owner,
        mode=request.mode,
        state="QUEUED",
        number=world.next_number(),
        request_id=request.request_id,
        since=now,
        lease_ms=request.lease_ms,
        wait_end=wait_end(request, now),
        ticket=request.ticket,
        final_expiry=request.final_expiry,
    )
    lock.queue.append(entry)
    lock.handed[entry.mode] += 1
    return entry


def wait_end(request: Request, now: int) -> int | None:
    return None if request.wait_ms is None else now + request.wait_ms * MS


def grant(world: World, lock: Lock, entry: Entry, now: int) -> Reply:
    held = now - entry.since
    lock.queue.remove(entry)
    lock.holders.append(entry)
    lock.served[entry.mode] += 1
    entry.state = "HELD"
    entry.number = world.next_number()
    entry.since = now
    entry.end = now + entry.lease_ms * MS if entry.lease_ms else None
    entry.wait_end = entry.claim_end = None
    return speak(lock, entry, "GRANTED", now, held)
