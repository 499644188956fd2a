"""Drives the C engine with the oracle's words, and compares what the two did.

Tokens and handles are the engine's own choice as long as tokens grow, so a Match keeps which of the
engine's belongs to which of the oracle's. DLOCK_ENGINE_LIBRARY names a shared library to judge in
the place of the installed extension (another build, or one that was broken on purpose).
"""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import oracle
import oracle_claims
import oracle_commands
from oracle_state import (
    MS,
    Claim,
    Command,
    Cycle,
    Entry,
    Event,
    Lock,
    Output,
    Reply,
    Request,
    World,
)

HEADER = Path(__file__).parent.parent / "native" / "dlock_abi.h"
UNKNOWN = 1 << 61  # added to a number of the oracle's that the engine never gave out
FOREVER_NS = 2**64 - 1


def load() -> tuple[Any, Any]:
    library = os.environ.get("DLOCK_ENGINE_LIBRARY")
    if not library:
        native = importlib.import_module("dlock._native")
        return native.ffi, native.lib
    ffi = importlib.import_module("cffi").FFI()
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    ffi.cdef("\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    return ffi, ffi.dlopen(library)


ffi, lib = load()


def names(prefix: str) -> dict[int, str]:
    return {
        getattr(lib, name): name.removeprefix(prefix)
        for name in dir(lib)
        if name.startswith(prefix) and not name.endswith("_COUNT")
    }


RESULTS = names("DLK_RESULT_")
EVENTS = names("DLK_EVENT_")
STATES = names("DLK_ENTRY_")
MODES = {lib.DLK_MODE_EXCLUSIVE: "exclusive", lib.DLK_MODE_SHARED: "shared"}
MODE_NUMBERS = {name: number for number, name in MODES.items()}


@dataclass
class View:
    """One entry as both sides show it; `number` and `handle` are Match's to compare."""

    session: int
    owner: int
    mode: str
    state: str
    request_id: int
    number: int
    end: int | None  # holds only
    breaking: bool
    handle: int

    def facts(self) -> tuple[object, ...]:
        return tuple(vars(replace(self, number=0, handle=0)).values())


class Engine:
    """The C engine: oracle words in, oracle words out, numbers and handles its own."""

    def __init__(self, world: World, max_sessions: int = 8) -> None:
        limits = ffi.new("struct dlk_limits *")
        limits.max_locks = world.max_locks
        limits.max_sessions = max_sessions
        limits.max_entries = world.max_entries
        limits.max_cells = 4
        limits.max_lease_ms = 3_600_000
        limits.ticket_claim_ms = world.claim_ms
        self._engine = ffi.gc(lib.dlk_engine_new(limits, world.epoch), lib.dlk_engine_free)
        self.epoch = world.epoch
        assert self._engine != ffi.NULL

    def claim(
        self, session: int, client_id: int, claims: list[Claim], believed: bool, now: int
    ) -> tuple[list[str], list[Reply], list[Event]]:
        array = ffi.new("struct dlk_claim[]", len(claims))
        for raw, claim in zip(array, claims, strict=True):
            self._fill_claim(raw, claim)
        raw = ffi.new("struct dlk_command *")
        raw.op, raw.slot, raw.id = lib.DLK_COMMAND_CLAIM, session, client_id
        raw.kind, raw.size, raw.value = believed, len(claims), int(ffi.cast("uintptr_t", array))
        lib.dlk_engine_command(self._engine, raw, now)
        replies, events = self._take()
        assert events.pop().result == "DONE"
        return [RESULTS[raw.result] for raw in array], replies, events

    @staticmethod
    def _fill_claim(raw: Any, claim: Claim) -> None:
        raw.kind = getattr(lib, f"DLK_KIND_{claim.kind}")
        state = "FREE" if claim.state == "GOT" else claim.state
        raw.state = getattr(lib, f"DLK_ENTRY_{state}")
        raw.mode = MODE_NUMBERS[claim.mode]
        raw.token = raw.stamp = claim.number
        raw.remaining_ms = claim.lease_ms
        raw.wait_ms = lib.DLK_WAIT_FOREVER if claim.wait_ms is None else claim.wait_ms
        raw.flags = (
            claim.ticket * lib.DLK_FLAG_TICKET + claim.final_expiry * lib.DLK_FLAG_FINAL_EXPIRY)
        raw.count = 1
        for name in ("owner", "lock_id", "slot", "size", "lapsed", "leased", "request_id"):
            setattr(raw, name, getattr(claim, name))

    def attached(self, session: int, now: int) -> tuple[list[Reply], list[Event]]:
        lib.dlk_engine_attached(self._engine, session, now)
        return self._take()

    def command(self, order: Command, now: int) -> tuple[list[Reply], list[Event]]:
        raw = ffi.new("struct dlk_command *")
        raw.op = getattr(lib, f"DLK_COMMAND_{order.op}")
        raw.kind = getattr(lib, f"DLK_KIND_{order.kind}")
        if order.op == "SESSION_OPEN":
            raw.kind = lib.DLK_SESSION_EARLY if order.early else lib.DLK_SESSION_PLAIN
        for name in ("slot", "id", "size", "value", "ttl_ms", "lease_ms", "cookie"):
            setattr(raw, name, getattr(order, name))
        lib.dlk_engine_command(self._engine, raw, now)
        return self._take()

    def step(self, requests: list[Request], now: int) -> tuple[list[Reply], list[Event]]:
        frames = ffi.new("struct dlk_request[]", len(requests))
        for frame, request in zip(frames, requests, strict=True):
            self._fill(frame, request)
        lib.dlk_engine_step(self._engine, frames, len(requests), now)
        return self._take()

    def tick(self, now: int, sessions_now: int) -> tuple[list[Reply], list[Event]]:
        lib.dlk_engine_tick(self._engine, now, sessions_now)
        return self._take()

    def stop(self) -> tuple[list[Reply], list[Event]]:
        lib.dlk_engine_stop(self._engine)
        return self._take()

    def check(self) -> int:
        return int(lib.dlk_engine_check(self._engine))

    def entries_in_use(self) -> int:
        return int(lib.dlk_engine_entries_in_use(self._engine))

    def next_deadline(self) -> int | None:
        deadline = int(lib.dlk_engine_next_deadline(self._engine))
        return None if deadline == FOREVER_NS else deadline

    def view(self, slot: int) -> list[View]:
        room = 256
        raw = ffi.new("struct dlk_entry_view[]", room)
        count = lib.dlk_engine_view(self._engine, slot, raw, room)
        assert count <= room
        return [self._view_of(raw[i]) for i in range(count)]

    def _view_of(self, raw: Any) -> View:
        state = STATES[raw.state]
        end = raw.end_ns if state == "HELD" and raw.end_ns != FOREVER_NS else None
        mode = MODES[raw.mode]
        breaking = bool(raw.flags & lib.DLK_ENTRY_BREAKING)
        return View(raw.session, raw.owner, mode, state, raw.request_id, raw.token, end, breaking,
                    raw.entry)

    def _fill(self, frame: Any, request: Request) -> None:
        frame.op = getattr(lib, f"DLK_OP_{request.op}")
        frame.mode = MODE_NUMBERS[request.mode]
        frame.flags = (
            request.ticket * lib.DLK_FLAG_TICKET
            + request.final_expiry * lib.DLK_FLAG_FINAL_EXPIRY
            + request.resend * lib.DLK_FLAG_RESEND
            + request.deadlock * lib.DLK_FLAG_DEADLOCK
        )
        for name in ("request_id", "session", "lock_id", "slot", "owner", "token", "value"):
            setattr(frame, name, getattr(request, name))
        frame.entry = lib.DLK_NONE if request.entry is None else request.entry
        frame.lease_ms = request.lease_ms
        frame.wait_ms = lib.DLK_WAIT_FOREVER if request.wait_ms is None else request.wait_ms

    def _take(self) -> tuple[list[Reply], list[Event]]:
        out = ffi.new("struct dlk_reply **")
        count = lib.dlk_engine_replies(self._engine, out)
        replies = [self._reply_of(out[0][i]) for i in range(count)]
        told = ffi.new("struct dlk_event **")
        count = lib.dlk_engine_events(self._engine, told)
        events = [self._event_of(told[0][i]) for i in range(count)]
        lib.dlk_engine_clear(self._engine)
        return replies, events

    def _reply_of(self, raw: Any) -> Reply:
        assert raw.epoch == self.epoch
        return Reply(
            result=RESULTS[raw.result],
            session=raw.session,
            request_id=raw.request_id,
            token=raw.token,
            entry=None if raw.entry == lib.DLK_NONE else raw.entry,
            lease_ms=raw.lease_ms,
            held_us=raw.held_us,
            readers=raw.readers,
            served=(raw.n_exclusive, raw.n_shared),
            handed=(raw.m_exclusive, raw.m_shared),
            cycle=raw.value if RESULTS[raw.result] == "DEADLOCK" else 0,
        )

    @staticmethod
    def _event_of(raw: Any) -> Event:
        op = EVENTS[raw.op]
        if op == "DEADLOCK":
            return Event(op, raw.slot, raw.id, "DONE", raw.cookie, raw.value, raw.result)
        result = RESULTS[raw.result] if op == "DONE" else "DONE"
        refused = "DONE" if result == "DONE" else "INVALID"
        return Event(op, raw.slot, raw.id, refused, raw.cookie, raw.value)


@dataclass
class Match:
    """Which token and handle of the engine's is which of the oracle's."""

    tokens: dict[int, int] = field(default_factory=dict)
    handles: dict[int, int] = field(default_factory=dict)
    highest: int = 0
    fresh: dict[int, int] = field(default_factory=dict)

    def begin(self) -> None:
        self.highest = max([self.highest, *self.fresh.values()])
        self.fresh = {}

    def token(self, ours: int, theirs: int) -> None:
        if ours in self.tokens:
            assert self.tokens[ours] == theirs, "a token changed"
            return
        assert theirs > self.highest, "a token that does not grow"
        assert theirs not in self.fresh.values(), "a token given twice"
        self.tokens[ours] = self.fresh[ours] = theirs

    def ordered(self) -> None:
        """In one step the tokens come in the order of the grants."""
        pairs = sorted(self.fresh.items())
        assert [theirs for _, theirs in pairs] == sorted(self.fresh.values())

    def for_engine(self, request: Request) -> Request:
        handle = None if request.entry is None else self.handles[request.entry]
        token = self.tokens.get(request.token, UNKNOWN + request.token)
        return replace(request, entry=handle, token=token)

    def reply(self, ours: Reply, theirs: Reply, counts: bool = True) -> None:
        left, right = facts(ours, counts), facts(theirs, counts)
        assert left == right, f"law: {ours}\nengine: {theirs}"
        if ours.entry is not None:
            assert theirs.entry is not None
            self.handles[ours.entry] = theirs.entry
            self.token(ours.token, theirs.token)

    def view(self, lock: Lock | None, theirs: list[View]) -> None:
        """Holders in any order, then the queue in its own."""
        if lock is None:
            assert not theirs, f"no such lock, but {theirs}"
            return
        held = sorted((v for v in theirs if v.state == "HELD"), key=by_number)
        queued = [v for v in theirs if v.state != "HELD"]
        assert theirs[: len(held)] == [v for v in theirs if v.state == "HELD"], "holders first"
        ours = sorted((view_of(e) for e in lock.holders), key=by_number)
        ours += [view_of(e) for e in lock.queue]
        theirs = held + queued
        left, right = [v.facts() for v in ours], [v.facts() for v in theirs]
        assert left == right, f"law: {ours}\nengine: {theirs}"
        for mine, other in zip(ours, theirs, strict=True):
            self.token(mine.number, other.number)
            assert self.handles.setdefault(mine.handle, other.handle) == other.handle


def by_number(view: View) -> tuple[int, int, int]:
    return view.number, view.session, view.owner


def view_of(entry: Entry) -> View:
    end = entry.end if entry.state == "HELD" else None
    return View(
        entry.session, entry.owner, entry.mode, entry.state, entry.request_id, entry.number, end,
        entry.breaking, entry.handle,
    )


def facts(reply: Reply, counts: bool) -> tuple[object, ...]:
    """What the law fixes of a reply, apart from its numbers and handles."""
    known: list[object] = [reply.session, reply.request_id, reply.result]
    known += [reply.lease_ms, reply.held_us, reply.cycle]
    if counts and reply.result not in ("REMOVED", "NOT_READY", "NO_LOCK"):
        known += [reply.readers, reply.served, reply.handed]
    return tuple(known)


class Pair:
    """The engine and the oracle side by side; every call compares them."""

    def __init__(self, max_entries: int = 8, claim_ms: int = 2000, epoch: int = 3) -> None:
        self.world = World(max_entries=max_entries, claim_ms=claim_ms, epoch=epoch)
        self.engine = Engine(self.world)
        self.match = Match()
        self.slots: set[int] = set()
        self.told = Output()  # what the last claims brought about beside their own answers
        self.now = MS

    def command(self, order: Command) -> Output:
        self.match.begin()
        expected = oracle_commands.command(self.world, order, self.now)
        self.slots.add(order.slot)
        if order.op == "BREAK" and order.value:
            order = replace(order, value=self.match.tokens.get(order.value, UNKNOWN))
        self.compare_together(expected, *self.engine.command(order, self.now))
        return expected

    def claim(self, slot: int, claims: list[Claim], believed: bool) -> list[str]:
        """The numbers of a former server are the same on both sides."""
        self.match.begin()
        for one in claims:
            self.match.tokens[one.number] = one.number
            self.slots.add(one.slot)
        expected, output = oracle_claims.claim(self.world, slot, claims, believed, self.now)
        client_id = self.world.sessions[slot].id
        results, replies, events = self.engine.claim(slot, client_id, claims, believed, self.now)
        assert results == expected, f"law: {expected}\nengine: {results}"
        self.compare_together(output, replies, events)
        self.told = output
        return results

    def attached(self, session: int) -> Output:
        """Which holds the session is told of at a new connection, in any order."""
        expected = oracle_commands.attached(self.world, session, self.now)
        self.compare_together(expected, *self.engine.attached(session, self.now))
        return expected

    def step(self, requests: list[Request]) -> list[Output]:
        self.match.begin()
        frames = [self.match.for_engine(request) for request in requests]
        expected = oracle.step(self.world, requests, self.now)
        replies, events = self.engine.step(frames, self.now)
        for output in expected:
            count = len(output.others) + 1
            self.compare_one(output, replies[:count])
            replies = replies[count:]
        assert not replies, f"replies that the law does not know: {replies}"
        edges = [event for event in events if event.op == "DEADLOCK"]
        for output in expected:
            if output.cycle is not None:
                edges = check_cycle(self.world, output.cycle, edges)
        assert not edges, f"a cycle that the law does not know: {edges}"
        others = [event for event in events if event.op != "DEADLOCK"]
        compare_events([e for output in expected for e in output.events], others)
        self.compare_state()
        self.match.ordered()
        return expected

    def tick(self, sessions_now: int | None = None) -> Output:
        self.match.begin()
        judged = self.now if sessions_now is None else sessions_now
        expected = oracle.tick(self.world, self.now, judged)
        self.compare_together(expected, *self.engine.tick(self.now, judged))
        deadline = self.engine.next_deadline()
        if judged == self.now:
            assert deadline is None or deadline > self.now, "a deadline that is never over"
        return expected

    def stop(self) -> None:
        expected = oracle.stop(self.world)
        replies, _ = self.engine.stop()
        compare_any_order(self.match, expected.others, replies)

    def compare_one(self, expected: Output, replies: list[Reply]) -> None:
        """One request: its own answer anywhere, what others are told in the order of the queue."""
        own = expected.own
        assert own is not None
        mine = [r for r in replies if same_request(r, own) and r.result == own.result]
        assert mine, f"law: {own}\nengine: {replies}"
        answered = mine[-1]  # a repetition may find that its first sending was just granted
        self.match.reply(own, answered)
        others = [r for r in replies if r is not answered]
        assert len(others) == len(expected.others), f"law: {expected}\nengine: {replies}"
        for ours, theirs in zip(expected.others, others, strict=True):
            self.match.reply(ours, theirs)

    def compare_together(self, expected: Output, replies: list[Reply], events: list[Event]) -> None:
        """Many causes at once (a tick, the end of a session): the order between locks is free."""
        compare_any_order(self.match, expected.others, replies)
        compare_events(expected.events, events)
        self.compare_state()

    def compare_state(self) -> None:
        for slot in sorted(self.slots):
            self.match.view(self.world.locks.get(slot), self.engine.view(slot))
        assert self.engine.entries_in_use() == self.world.entries_in_use(), "a leak"
        assert self.engine.check() == 0, f"invariant {self.engine.check()} is broken"
        due = oracle.next_due(self.world)
        deadline = self.engine.next_deadline()
        assert due is None or (deadline is not None and deadline <= due), "the timer comes late"


def check_cycle(world: World, cycle: Cycle, events: list[Event]) -> list[Event]:
    """The first events name a cycle that is one; returns the others."""
    length = events[0].value >> 32
    edges, rest = events[:length], events[length:]
    steps = []
    for edge in edges:
        assert edge.cookie == cycle.number
        assert edge.value >> 32 == length
        assert world.locks[edge.slot].id == edge.id
        session = next(s for s in world.sessions.values() if s.id == edge.client_id)
        steps.append(((session.slot, edge.value & 0xFFFFFFFF), edge.slot))
    assert steps[0] == (cycle.asker, cycle.slot)
    assert len(set(steps)) == length, "a cycle that goes round twice"
    for step, (following, _) in zip(steps, [*steps[1:], steps[0]], strict=True):
        assert following in cycle.ways[step], f"{step} does not wait for {following}: {cycle}"
    return rest


def same_request(left: Reply, right: Reply) -> bool:
    return (left.session, left.request_id) == (right.session, right.request_id)


def compare_any_order(match: Match, ours: list[Reply], theirs: list[Reply]) -> None:
    """Answers first: a notice may name a hold that was granted just before."""
    for asked in (True, False):
        compare_replies(
            match,
            [reply for reply in ours if (reply.request_id != 0) == asked],
            [reply for reply in theirs if (reply.request_id != 0) == asked])


def compare_replies(match: Match, ours: list[Reply], theirs: list[Reply]) -> None:
    def key(reply: Reply) -> tuple[int, int, str, int]:
        token = reply.token if reply.request_id == 0 else 0  # it has no request to be told by
        return reply.session, reply.request_id, reply.result, token

    def our_key(reply: Reply) -> tuple[int, int, str, int]:
        return key(replace(reply, token=match.tokens.get(reply.token, 0)))

    ours, theirs = sorted(ours, key=our_key), sorted(theirs, key=key)
    assert list(map(our_key, ours)) == list(map(key, theirs)), f"law: {ours}\nengine: {theirs}"
    for left, right in zip(ours, theirs, strict=True):
        match.reply(left, right, counts=left.result == "GRANTED")


def compare_events(ours: list[Event], theirs: list[Event]) -> None:
    def key(event: Event) -> tuple[str, int, int]:
        return event.op, event.slot, event.id

    assert sorted(ours, key=key) == sorted(theirs, key=key)
