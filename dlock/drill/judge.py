"""The verdict on a drill: violations, what each failure meant, and counts; a function of what the
processes of the drill wrote down (`dlock/drill/records.py`). It starts nothing and asks nobody.

`dlock/drill/violations.py` has the rules, `dlock/drill/failures.py` what each failure meant.
"""

from __future__ import annotations

import itertools
import shlex
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from dlock.drill import violations as rules
from dlock.drill.failures import Failure, ended_counts, failures
from dlock.drill.records import (
    Added,
    DrillBegun,
    DrillEnded,
    Failed,
    FaultBegun,
    Hold,
    PrimaryExited,
    PrimaryKilled,
    PrimaryListening,
    PrimaryStarted,
    PrimaryStopped,
    Record,
    RoundBegun,
    RoundEnded,
    Skipped,
    Told,
    Write,
)
from dlock.drill.violations import Violation

CLEAN, VIOLATED, NOT_CARRIED_OUT = 0, 1, 2  # exit codes
KEPT: Final = 1000  # violations that are told in full; all are counted
_CHANGES: Final = (
    PrimaryStarted, PrimaryListening, PrimaryStopped, PrimaryKilled, PrimaryExited)


@dataclass(frozen=True)
class Found:
    """A violation in its place. `round`, `fault`: of the round that it was in, 0 and "" outside of
    all; `seconds`: after the drill began; `repeat`: the command that repeats the drill up to that
    round."""

    violation: Violation
    round: int
    fault: str
    seconds: float
    repeat: str


@dataclass
class Verdict:
    """All that is to be said. `counts`: violations by kind, also those beyond the first `KEPT`,
    which `found` has. `ends`: how holds ended; `writes`: accepted, of these by holders whose own
    client did not call the lock HELD any more ("late"), and fenced; `numbers`, `errors`: what came
    of additions, which errors the clients met."""

    begun: DrillBegun | None = None
    ended: DrillEnded | None = None
    found: list[Found] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    rounds: list[RoundEnded] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    holds: int = 0
    suspended: int = 0
    names: int = 0
    clients: int = 0
    seconds: float = 0.0
    ends: dict[str, int] = field(default_factory=dict)
    writes: Counter[str] = field(default_factory=Counter)
    numbers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    records: int = 0

    @property
    def why_not(self) -> str:
        """Why it was not carried out to its end; "": it was."""
        if self.begun is None:
            return "there are no records of a drill"
        if self.ended is None:
            return "the drill did not come to its end: its records stop in the middle"
        if self.ended.interrupted:
            return self.ended.why or "the drill was interrupted"
        return "" if self.holds else "nothing was ever held, so nothing was tested"

    @property
    def status(self) -> int:
        """The exit code: 0 clean, 1 a violation, 2 it could not be carried out."""
        if self.counts.total():
            return VIOLATED
        return NOT_CARRIED_OUT if self.why_not else CLEAN


def judge(records: Iterable[Record]) -> Verdict:
    """The verdict on these records, which may stand in any order."""
    verdict = Verdict()
    holds: list[Hold] = []
    told: list[Told] = []
    writes: list[Write] = []
    added: list[Added] = []
    others: list[Record] = []
    piles: dict[type[Record], list[Record]] = {
        Hold: holds, Told: told, Write: writes, Added: added}  # type: ignore[dict-item]
    for one in records:
        piles.get(type(one), others).append(one)
    others.sort(key=lambda one: one.t_ns)
    _count(verdict, holds, told, writes, added, others)
    changes_ns = [one.t_ns for one in others if isinstance(one, _CHANGES)]
    places = _Places(verdict, others)
    for violation in itertools.chain(
            rules.of_holds(holds), rules.of_ends(holds, told), rules.of_writes(writes),
            rules.of_numbers(added, changes_ns, list(_cut(others))), rules.said(others)):
        verdict.counts[violation.kind] += 1
        if len(verdict.found) < KEPT:
            verdict.found.append(places.of(violation))
    verdict.found.sort(key=lambda one: one.violation.t_ns)
    verdict.failures = failures(others, holds)
    return verdict


def _count(verdict: Verdict, holds: list[Hold], told: list[Told], writes: list[Write],
           added: list[Added], others: list[Record]) -> None:
    """Everything that is only counted."""
    for one in others:
        if isinstance(one, DrillBegun):
            verdict.begun = one
        elif isinstance(one, DrillEnded):
            verdict.ended = one
        elif isinstance(one, RoundEnded):
            verdict.rounds.append(one)
        elif isinstance(one, Skipped):
            verdict.skipped.append(one)
        elif isinstance(one, Failed):
            verdict.errors[one.error] += 1
    verdict.records = len(holds) + len(told) + len(writes) + len(added) + len(others)
    if others:
        verdict.seconds = (others[-1].t_ns - others[0].t_ns) / 1e9
    verdict.holds = len(holds)
    verdict.suspended = sum(one.suspended > 0 for one in holds)
    verdict.names = len({one.name for one in holds})
    verdict.clients = len({one.client for one in holds})
    verdict.ends = ended_counts(holds)
    for write in writes:
        verdict.writes["accepted" if write.accepted else "fenced"] += 1
        verdict.writes["late"] += write.accepted and write.late
    verdict.numbers.update(one.outcome for one in added)


def _cut(others: Iterable[Record]) -> Iterator[tuple[int, int]]:
    """From when until when the network failed, or a primary stood still: long enough, it may be,
    for every session to end. `others` in the order of time."""
    begun_ns: int | None = None
    for one in others:
        failed = isinstance(one, PrimaryStopped) or (
            isinstance(one, FaultBegun) and one.fails == "network")
        if failed and begun_ns is None:
            begun_ns = one.t_ns
        elif isinstance(one, RoundEnded | DrillEnded) and begun_ns is not None:
            yield begun_ns, one.t_ns
            begun_ns = None


class _Places:
    """Which round a moment lies in: the last that had begun."""

    def __init__(self, verdict: Verdict, others: Iterable[Record]) -> None:
        self._rounds = [one for one in others if isinstance(one, RoundBegun)]
        self._begins = [one.t_ns for one in self._rounds]
        self._command = verdict.begun.command if verdict.begun else ""
        self._start_ns = verdict.begun.t_ns if verdict.begun else 0

    def of(self, violation: Violation) -> Found:
        """The violation in its place."""
        at = bisect_right(self._begins, violation.t_ns) - 1
        number, fault = (self._rounds[at].round, self._rounds[at].fault) if at >= 0 else (0, "")
        return Found(violation, number, fault, (violation.t_ns - self._start_ns) / 1e9,
                     repeat(self._command, number))


def repeat(command: str, rounds: int) -> str:
    """The command of a drill, such that it ends after this round. The same faults come at the same
    moments; what the machine does in the meantime is not repeated."""
    words = shlex.split(command)
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in ("--rounds", "--seconds"):
            skip = True
        elif not word.startswith(("--rounds=", "--seconds=")):
            kept.append(word)
    return shlex.join([*kept, *(["--rounds", str(rounds)] if rounds and kept else [])])
