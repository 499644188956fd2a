"""Records of a drill made by hand, for the tests of those who judge, tell and draw it."""

from __future__ import annotations

from typing import Any

from dlock.drill.records import (
    EPOCH_SHIFT,
    RELEASED,
    Added,
    DrillBegun,
    DrillEnded,
    FaultBegun,
    FaultEnded,
    Hold,
    PrimaryKilled,
    PrimaryListening,
    PrimaryReady,
    PrimaryStarted,
    Record,
    RoundBegun,
    RoundEnded,
    Write,
)

MS = 1_000_000
S = 1_000_000_000
COMMAND = "dlock drill --seed 7 --faults kill-primary --rounds 20"


def token(counter: int, epoch: int = 1) -> int:
    return epoch << EPOCH_SHIFT | counter


def hold(begin: float, end: float, count: int, **changed: Any) -> Hold:
    """Held alone from `begin` to `end` (ms), with this token of epoch 1."""
    fields: dict[str, Any] = {
        "t_ns": int(end * MS) + 1000, "client": "c1", "session": 1, "actor": 0, "name": "a",
        "kind": "atomic", "slots": 0, "exclusive": True, "token": token(count), "lease_ms": 0,
        "renewed": True, "asked_ns": int(begin * MS) - 1000, "begin_ns": int(begin * MS),
        "end_ns": int(end * MS), "suspended": 0, "ended": RELEASED, **changed}
    return Hold(**fields)


def slot(begin: float, end: float, count: int, **changed: Any) -> Hold:
    return hold(begin, end, count, **{
        "name": "s", "kind": "semaphore", "slots": 2, "exclusive": False, **changed})


def reader(begin: float, end: float, count: int, **changed: Any) -> Hold:
    return hold(begin, end, count, **{"kind": "rw", "exclusive": False, **changed})


def write(at: float, count: int, sequence: int, highest: int, **changed: Any) -> Write:
    fields: dict[str, Any] = {
        "t_ns": int(at * MS), "client": "c1", "session": 1, "actor": 0, "name": "a",
        "token": token(count), "accepted": True, "sequence": sequence,
        "highest": token(highest) if highest else 0, "late": False, **changed}
    return Write(**fields)


def added(asked: float, at: float, before: int, **changed: Any) -> Added:
    fields: dict[str, Any] = {
        "t_ns": int(at * MS), "client": "c1", "session": 1, "actor": 0, "name": "n",
        "outcome": "done", "before": before, "asked_ns": int(asked * MS), **changed}
    return Added(**fields)


def a_drill(*records: Record, interrupted: bool = False, why: str = "") -> list[Record]:
    """One round from 100 ms to 900 ms, a primary killed at 200 ms, and these records."""
    return [
        DrillBegun(0, 7, COMMAND, "0.1.0", ["kill-primary"], 20, 0.0, 6, 1, 1.0, ""),
        PrimaryStarted(1 * MS, "p1", 10, "127.0.0.1:1"), PrimaryListening(2 * MS, "p1", 1),
        RoundBegun(100 * MS, 1, "kill-primary"),
        FaultBegun(200 * MS, 1, "kill-primary", "primary", "kill -9 of p1"),
        PrimaryKilled(201 * MS, "p1"), PrimaryStarted(250 * MS, "p2", 11, "127.0.0.1:1"),
        FaultEnded(251 * MS, 1, "kill-primary", "p2 was started"),
        PrimaryListening(400 * MS, "p2", 2), PrimaryReady(500 * MS, "p2", 6, 6, 0),
        RoundEnded(900 * MS, 1, "kill-primary", True, 0.6),
        *records, DrillEnded(1 * S, interrupted, why)]
