"""What came of a drill, as text for a terminal and as JSON. It prints nothing and asks nobody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, Final

from dlock.cli.text import NOTHING, duration, safe, table
from dlock.drill.failures import Failure
from dlock.drill.judge import CLEAN, NOT_CARRIED_OUT, Verdict
from dlock.drill.records import Record, RoundBegun
from dlock.drill.timeline import explained, timeline

TIMELINES: Final = 12  # rounds that are told in full
VIOLATIONS: Final = 20  # that are explained
HEADS: Final = ("FAULT", "ROUNDS", "FIRST GRANT", "SLOWEST", "READY", "SERVED", "HELD", "KEPT",
                "RELEASED", "LOST", "UNTOLD", "KILLED")


def text(verdict: Verdict, records: Sequence[Record]) -> str:
    """The report. `records` in the order of time."""
    parts = ["\n".join(_head(verdict))]
    if verdict.failures:
        parts.append(table(HEADS, _rows(verdict), HEADS[1:]))
    parts.append("\n".join(_counts(verdict)))
    parts += ["\n".join(timeline(records, verdict, number).lines())
              for number in rounds_to_tell(verdict, records)]
    parts += ["\n".join(explained(one, verdict)) for one in verdict.found[:VIOLATIONS]]
    parts.append("\n".join(_end(verdict)))
    return "\n\n".join(part for part in parts if part)


def rounds_to_tell(verdict: Verdict, records: Sequence[Record]) -> list[int]:
    """All rounds, if they are few; else those with a violation, and of each fault the round in
    which the first grant took longest."""
    begun = [one.round for one in records if isinstance(one, RoundBegun)]
    if len(begun) <= TIMELINES:
        return begun
    violated = list(dict.fromkeys(one.round for one in verdict.found if one.round))
    slowest: dict[str, Failure] = {}
    for one in verdict.failures:
        if (one.grant_s or 0) > (slowest[one.fault].grant_s or 0 if one.fault in slowest else -1):
            slowest[one.fault] = one
    wanted = [*violated, *(one.round for one in slowest.values())]
    return sorted(dict.fromkeys(wanted).keys() & set(begun))[:TIMELINES]


def _head(verdict: Verdict) -> Iterator[str]:
    begun = verdict.begun
    joined = f" at {safe(begun.joined)}" if begun and begun.joined else ""
    seed = f", seed {begun.seed}" if begun else ""
    yield (f"dlock drill{joined}: {_of(len(verdict.rounds), 'round')} in "
           f"{duration(verdict.seconds)}{seed}: {verdict_in_words(verdict)}")


def verdict_in_words(verdict: Verdict) -> str:
    """no violation; 3 violations; not carried out: why."""
    if verdict.status == CLEAN:
        return "no violation"
    if verdict.status == NOT_CARRIED_OUT:
        return f"not carried out: {safe(verdict.why_not)}"
    count = verdict.counts.total()
    kinds = ", ".join(f"{kind} {number}" for kind, number in verdict.counts.most_common())
    return f"{_of(count, 'VIOLATION')} ({kinds})"


def _of(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s" if word.islower() else "S")


def _rows(verdict: Verdict) -> Iterator[tuple[str, ...]]:
    """A row a fault, in the order of their names."""
    for fault in sorted({one.fault for one in verdict.failures}):
        of_one = [one for one in verdict.failures if one.fault == fault]
        grants = [one.grant_s for one in of_one if one.grant_s is not None]
        yield (fault, str(len({one.round for one in of_one})),
               duration(median(grants)) if grants else NOTHING,
               duration(max(grants)) if grants else NOTHING,
               _median([one.ready_s for one in of_one]), _median([one.served_s for one in of_one]),
               *(f"{sum(getattr(one, name) for one in of_one):,}" for name in (
                   "held", "kept", "released", "lost", "untold", "killed")))


def _median(values: Sequence[float | None]) -> str:
    there = [one for one in values if one is not None]
    return duration(median(there)) if there else NOTHING


def _counts(verdict: Verdict) -> Iterator[str]:
    ends, writes, numbers = verdict.ends, verdict.writes, verdict.numbers
    yield (f"holds    {verdict.holds:,} of {_of(verdict.names, 'name')} by "
           f"{_of(verdict.clients, 'client')}: {ends['released']:,} released, {ends['lapsed']:,} "
           f"leases ran out, {ends['lost']:,} lost and told, {ends['untold']:,} lost untold, "
           f"{ends['killed']:,} killed with their client; {verdict.suspended:,} were suspended for "
           "a while")
    yield (f"writes   {writes['accepted']:,} accepted (of these {writes['late']:,} by a holder who "
           f"was late, before anybody newer wrote), {writes['fenced']:,} fenced")
    if numbers:
        yield (f"numbers  {numbers['done']:,} additions answered, {numbers['unknown']:,} with an "
               f"unknown outcome, {numbers['lost']:,} times told that the number had gone")
    if verdict.errors:
        yield "errors   " + ", ".join(
            f"{safe(error)} {count:,}" for error, count in verdict.errors.most_common())
    for one in verdict.skipped:
        yield f"skipped  {one.fault}: {safe(one.why)}"


def _end(verdict: Verdict) -> Iterator[str]:
    more = verdict.counts.total() - min(len(verdict.found), VIOLATIONS)
    if more > 0:
        yield f"{_of(more, 'violation')} more are not told here"
    if verdict.begun:
        yield f"again: {safe(verdict.begun.command)}"
    yield f"verdict: {verdict_in_words(verdict)}"


# ---- JSON ----------------------------------------------------------------------------------------


def as_json(verdict: Verdict, records: Sequence[Record]) -> dict[str, Any]:
    """Everything but the records themselves, which lie in the drill's folder."""
    begun = verdict.begun
    return {
        "status": verdict.status, "verdict": verdict_in_words(verdict), "why_not": verdict.why_not,
        "drill": asdict(begun) if begun else None,
        "seconds": verdict.seconds, "rounds": [asdict(one) for one in verdict.rounds],
        "skipped": [{"fault": one.fault, "why": one.why} for one in verdict.skipped],
        "violations": dict(verdict.counts),
        "found": [{
            "kind": one.violation.kind, "text": one.violation.text, "round": one.round,
            "fault": one.fault, "seconds": one.seconds, "repeat": one.repeat,
            "records": [{"what": record.what, **asdict(record)}
                        for record in one.violation.records]} for one in verdict.found],
        "failures": [asdict(one) for one in verdict.failures],
        "holds": {"all": verdict.holds, "names": verdict.names, "clients": verdict.clients,
                  "suspended": verdict.suspended, **verdict.ends},
        "writes": {name: verdict.writes[name] for name in ("accepted", "late", "fenced")},
        "numbers": {name: verdict.numbers[name] for name in ("done", "unknown", "lost")},
        "errors": dict(verdict.errors), "records": verdict.records,
        "timelines": [
            {"round": one.round, "fault": one.fault, "begun_s": one.begun_s,
             "events": [asdict(event) for event in one.events]}
            for number in rounds_to_tell(verdict, records)
            for one in (timeline(records, verdict, number),)],
    }
