"""One round of a drill, as an operator reads it: what was done, what the primaries and clients did,
what they were told, with times relative to the failure. A function of the records."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from dlock.cli.text import safe
from dlock.drill.failures import Failure
from dlock.drill.judge import Found, Verdict
from dlock.drill.records import (
    TOLD_BROKEN,
    TOLD_CONFIRMED,
    TOLD_LOST,
    TOLD_SUSPENDED,
    Added,
    ClientContinued,
    ClientEnded,
    ClientKilled,
    ClientStarted,
    ClientStopped,
    Failed,
    FaultBegun,
    FaultEnded,
    Hold,
    PrimaryContinued,
    PrimaryExited,
    PrimaryKilled,
    PrimaryListening,
    PrimaryReady,
    PrimaryStarted,
    PrimaryStopped,
    Problem,
    Record,
    RoundBegun,
    RoundEnded,
    Storm,
    Told,
    Write,
    epoch_of,
)
from dlock.drill.violations import who

EACH: Final = 6  # of one sort that are told one by one; more are told as a number
PREFIX: Final = "dlock-drill/"
NS: Final = 1e9


@dataclass(frozen=True)
class Event:
    """`seconds` after the first failure of the round; `word` says what sort it is, `text` what."""

    seconds: float
    word: str
    text: str


@dataclass(frozen=True)
class Timeline:
    """One round. `begun_s`: when the failure was, after the drill began."""

    round: int
    fault: str
    begun_s: float
    events: tuple[Event, ...]

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield f"round {self.round}: {self.fault}, {self.begun_s:.1f} s after the drill began"
        width = max((len(one.word) for one in self.events), default=0)
        for one in self.events:
            yield f"  {one.seconds:+8.3f} s  {one.word:<{width}}  {one.text}"


def short(name: str) -> str:
    """A lock's name for people, without what all names of a drill begin with."""
    if name.startswith(PREFIX):
        name = name[len(PREFIX):].partition("/")[2] or name
    return safe(name)


def timeline(records: Sequence[Record], verdict: Verdict, number: int) -> Timeline:
    """Of one round. `records` in the order of time, as `records.read` returns them."""
    begun = next(one for one in records if isinstance(one, RoundBegun) and one.round == number)
    end_ns = next((one.t_ns for one in records
                   if isinstance(one, RoundEnded) and one.round == number), records[-1].t_ns)
    times = attrgetter("t_ns")
    of_round = records[bisect_left(records, begun.t_ns, key=times):
                       bisect_right(records, end_ns, key=times)]
    failed = [one for one in verdict.failures if one.round == number]
    zero_ns = failed[0].t_ns if failed else begun.t_ns
    events = [(one.t_ns, *told) for one in _without_old_news(of_round)
              if (told := _TELLS.get(type(one), _nothing)(one)) is not None]
    events += _grants(failed)
    events += _clients_told(one for one in of_round if isinstance(one, Told))
    events += _fenced([one for one in of_round if isinstance(one, Write) and not one.accepted])
    events += _errors([one for one in of_round if isinstance(one, Failed)])
    events += _numbers([one for one in of_round if isinstance(one, Added)])
    events += [(one.violation.t_ns, "VIOLATION", f"{one.violation.kind}: {one.violation.text}")
               for one in verdict.found if one.round == number]
    start_ns = verdict.begun.t_ns if verdict.begun else records[0].t_ns
    return Timeline(
        number, begun.fault, (zero_ns - start_ns) / NS,
        tuple(Event((t_ns - zero_ns) / NS, word, text)
              for t_ns, word, text in sorted(events, key=lambda event: event[0])))


_Told = tuple[int, str, str]


def _without_old_news(records: Iterable[Record]) -> Iterator[Record]:
    """That a primary is ready is told of one that has started in this round, and once."""
    new: set[str] = set()
    for one in records:
        if isinstance(one, PrimaryListening):
            new.add(one.primary)
        if isinstance(one, PrimaryReady):
            if one.primary not in new:
                continue
            new.remove(one.primary)
        yield one


def _nothing(_: Any) -> None:
    return None


def _ready(one: Any) -> tuple[str, str]:
    evicted = f", {one.evicted} given up" if one.evicted else ""
    return ("primary", f"{one.primary} is ready: {one.back} of {one.expected} clients came back"
                       f"{evicted}")


_TELLS: Final[dict[type[Record], Callable[[Any], tuple[str, str] | None]]] = {
    FaultBegun: lambda one: ("FAULT", safe(one.detail or one.fault)),
    FaultEnded: lambda one: ("fault", "over: " + safe(one.detail) if one.detail else "over"),
    PrimaryStarted: lambda one: ("primary", f"{one.primary} starts at {safe(one.address)}"),
    PrimaryListening: lambda one: (
        "primary", f"{one.primary} listens" + (f", epoch {one.epoch}" if one.epoch else "")),
    PrimaryReady: _ready,
    PrimaryStopped: lambda one: ("primary", f"{one.primary} stands still (SIGSTOP)"),
    PrimaryContinued: lambda one: ("primary", f"{one.primary} goes on (SIGCONT)"),
    PrimaryKilled: lambda one: ("primary", f"{one.primary} is killed"),
    PrimaryExited: lambda one: ("primary", f"{one.primary} ended with exit status {one.status}"),
    ClientStarted: lambda one: ("client", f"{one.client} starts ({one.flavour}, {one.sessions} "
                                          f"session{'s' * (one.sessions > 1)})"),
    ClientStopped: lambda one: ("client", f"{one.client} stands still (SIGSTOP)"),
    ClientContinued: lambda one: ("client", f"{one.client} goes on (SIGCONT)"),
    ClientKilled: lambda one: ("client", f"{one.client} is killed"),
    ClientEnded: lambda one: ("client", f"{one.client} ended with exit status {one.status}"),
    Storm: lambda one: ("storm", f"{one.clients} clients are back {one.back_s:.2f} s after the new "
                                 f"primary was started; {one.held_after} of {one.held_before} "
                                 "locks are held still"),
    RoundEnded: lambda one: ("served", "every client has been served again" if one.recovered
                             else "NOT every client has been served again"),
    Problem: lambda one: ("problem", f"{safe(one.who)}: {safe(one.text)}"),
}


def _grants(failed: Sequence[Failure]) -> Iterator[_Told]:
    """The first grant after each failure."""
    for number, one in enumerate(failed, 1):
        if one.grant_s is not None:
            which = "the failure" if len(failed) == 1 else f"failure {number}"
            yield (one.t_ns + int(one.grant_s * NS), "grant",
                   f"the first one, {one.grant_s:.3f} s after {which}")


def _clients_told(told: Iterable[Told]) -> Iterator[_Told]:
    """What the library said of holds: losses one by one, as long as they are few; the same hold may
    be told of by several ways."""
    first: dict[tuple[object, ...], Told] = {}
    for one in told:
        first.setdefault((one.said, one.client, one.session, one.name, one.token), one)
    for said, word in ((TOLD_SUSPENDED, "suspended"), (TOLD_CONFIRMED, "confirmed"),
                       (TOLD_LOST, "lost"), (TOLD_BROKEN, "broken")):
        of_one = [one for one in first.values() if one.said == said]
        one_by_one = EACH if said in (TOLD_LOST, TOLD_BROKEN) else 2
        if len(of_one) <= one_by_one:
            for one in of_one:
                yield (one.t_ns, word, f"{who(one)}: {short(one.name)}, token {one.token} "
                                       f"(epoch {epoch_of(one.token)}), told by {safe(one.how)}")
        else:
            yield (of_one[0].t_ns, word, f"{len(of_one)} holds, until {_span_s(of_one):.3f} s "
                                         f"later: {_by_client(of_one)}")


def _fenced(refused: Sequence[Write]) -> Iterator[_Told]:
    """Late writes that the storage refused."""
    for one in refused[:EACH]:
        yield (one.t_ns, "fenced", f"{who(one)}: a write to {short(one.name)} with token "
                                   f"{one.token}, the storage had seen {one.highest}")
    if len(refused) > EACH:
        yield (refused[EACH].t_ns, "fenced", f"{len(refused) - EACH} more")


def _errors(failed: Sequence[Failed]) -> Iterator[_Told]:
    """What operations ended with, by name."""
    for error in dict.fromkeys(one.error for one in failed):
        of_one = [one for one in failed if one.error == error]
        until = f", until {_span_s(of_one):.3f} s later" if len(of_one) > 1 else ""
        yield of_one[0].t_ns, "errors", f"{safe(error)}{until}: {_by_client(of_one)}"


def _numbers(added: Sequence[Added]) -> Iterator[_Told]:
    """Additions whose outcome is not known, or whose number went with its primary."""
    for outcome, text in (("unknown", "additions with an unknown outcome"),
                          ("lost", "told that the number had gone")):
        of_one = [one for one in added if one.outcome == outcome]
        if of_one:
            yield of_one[0].t_ns, "numbers", f"{text}: {_by_client(of_one)}"


def _span_s(records: Sequence[Record]) -> float:
    return (records[-1].t_ns - records[0].t_ns) / NS


def _by_client(records: Iterable[Any]) -> str:
    """c1 3, c2 1."""
    counts = sorted(Counter(one.client for one in records).items())
    most = ", ".join(f"{client} {count}" for client, count in counts[:EACH])
    return most + (f" and {len(counts) - EACH} more" if len(counts) > EACH else "")


# ---- A violation in full -------------------------------------------------------------------------


def explained(found: Found, verdict: Verdict) -> Iterator[str]:
    """What contradicts what, and how to repeat it. Times are relative to the last failure before,
    or else to the begin of the drill."""
    violation = found.violation
    where = f"round {found.round}, {found.fault}" if found.round else "outside of all rounds"
    yield f"VIOLATION of {violation.kind} ({where}, {found.seconds:.3f} s after the drill began)"
    yield f"  {safe(violation.text)}"
    before = [one for one in verdict.failures if one.t_ns <= violation.t_ns]
    zero_ns = before[-1].t_ns if before else verdict.begun.t_ns if verdict.begun else 0
    for one in violation.records:
        yield f"  {described(one, zero_ns)}"
    if before:
        yield f"  (times after: {safe(before[-1].detail or before[-1].fault)})"
    if found.repeat:
        yield f"  to repeat it: {safe(found.repeat)}"


def described(one: Record, zero_ns: int) -> str:
    """A record in a line."""

    def at(t_ns: int) -> str:
        return f"{(t_ns - zero_ns) / NS:+.6f} s"

    if isinstance(one, Hold):
        lease = f"lease {one.lease_ms} ms" if one.lease_ms else "no lease"
        return (f"hold   {who(one)} {short(one.name)} ({one.kind}, "
                f"{'alone' if one.exclusive else 'shared'}, {lease}) token {one.token} (epoch "
                f"{epoch_of(one.token)}), asked for {at(one.asked_ns)}, HELD from "
                f"{at(one.begin_ns)} to {at(one.end_ns)}, suspended {one.suspended} times, "
                f"{one.ended}")
    if isinstance(one, Write):
        return (f"write  {who(one)} {short(one.name)} token {one.token} at {at(one.t_ns)}: "
                f"{f'accepted as number {one.sequence}' if one.accepted else 'refused'}, highest "
                f"token before {one.highest}{', by a holder that was late' if one.late else ''}")
    if isinstance(one, Told):
        return (f"told   {who(one)} {short(one.name)} token {one.token} at {at(one.t_ns)}: "
                f"{one.said}, by {safe(one.how)}")
    if isinstance(one, Added):
        return (f"added  {who(one)} {short(one.name)}, asked at {at(one.asked_ns)}, answered at "
                f"{at(one.t_ns)}: it had been {one.before}")
    return f"{one.what} at {at(one.t_ns)}"
