"""What must not be, found in the records of a drill: a function of the records, nothing else.

Intervals are those in which the client's own clock called a hold HELD: from the first such moment
to the last, both included. Each check is one sweep over what is sorted by time or token, so that a
drill of many hours is judged in seconds.

The rules
- **exclusion**: two holds of a name, one of them exclusive, do not overlap. At no moment are there
  more holds of a semaphore than it has slots.
- **token order**: of two holds of a name, one of them exclusive, that do not overlap, the later one
  has the higher token. No two holds have the same token.
- **storage**: in the order in which a guarded resource accepted writes, tokens do not fall. A
  refused write is no violation: that is what the guard is there for.
- **told**: a hold whose client lived ends by a release, by the end of a lease that nobody renewed,
  or because its client was told that it is lost; and who was told does not hold it any more.
- **numbers**: while one primary lives, no two additions find the same number, and who asks after an
  addition has been answered finds a higher one.
- **ends**: whoever waits is served when a fault is over, and no process dies of what a drill does.

One hold may be written down twice, by actors that share a session: the same client, session and
token are the same hold. A fault may have primaries and clients of its own ("storm9-p1"): these are
another service, whose tokens have nothing to do with those of the first.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from dlock.drill.records import (
    TOLD_BROKEN,
    TOLD_LOST,
    UNTOLD,
    Added,
    ClientEnded,
    Hold,
    PrimaryExited,
    Problem,
    Record,
    RoundEnded,
    Told,
    Write,
)

EXCLUSION: Final = "exclusion"
TOKEN_ORDER: Final = "token order"
STORAGE: Final = "storage"
NOT_TOLD: Final = "untold loss"
BELIEVED_ON: Final = "held after it was told lost"
NUMBERS: Final = "numbers"
NO_END: Final = "a wait that did not end"
DIED: Final = "a process that died"
SEEN: Final = "seen by a process"
KINDS: Final = (EXCLUSION, TOKEN_ORDER, STORAGE, NOT_TOLD, BELIEVED_ON, NUMBERS, NO_END, DIED, SEEN)

_BEGIN: Final = attrgetter("begin_ns")
_END: Final = attrgetter("end_ns")
_DONE: Final = "done"


@dataclass(frozen=True)
class Violation:
    """`kind` is one of KINDS, `text` says it in a sentence. `t_ns`: when it was so, at the latest.
    `records`: those that contradict each other, or what says it."""

    kind: str
    text: str
    t_ns: int
    records: tuple[Record, ...]


def same(one: Hold, other: Hold) -> bool:
    """Are these one hold, written down twice?"""
    return (one.token == other.token and one.client == other.client
            and one.session == other.session)


def service_of(name: str) -> str:
    """The service that a client or primary belongs to, by its name; "": the one that is drilled."""
    return name.rpartition("-")[0]


def who(record: Hold | Told | Write | Added) -> str:
    """Client, session and actor."""
    return f"{record.client}/{record.session}/{record.actor}"


# ---- Holds against each other --------------------------------------------------------------------


def of_holds(holds: Iterable[Hold]) -> Iterator[Violation]:
    """Exclusion, slots, token order, tokens given out twice; all names."""
    by_name: dict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        by_name[hold.name].append(hold)
    for of_name in by_name.values():
        of_name.sort(key=_BEGIN)
        yield from _overlaps(of_name)
        yield from _order(of_name)
    yield from _twice(by_name.values())


def _overlaps(holds: Sequence[Hold]) -> Iterator[Violation]:
    """Of one name, in the order of their begins: what is held when each of them begins?"""
    active: list[Hold] = []
    for hold in holds:
        begin_ns = hold.begin_ns
        active = [one for one in active if one.end_ns >= begin_ns]
        for one in active:
            if (one.exclusive or hold.exclusive) and not same(one, hold):
                yield _overlap(one, hold)
        active.append(hold)
        if hold.slots and len(active) > hold.slots:
            yield from _too_many(active, hold)


def _overlap(one: Hold, other: Hold) -> Violation:
    until_ns = min(one.end_ns, other.end_ns)
    return Violation(
        EXCLUSION,
        f"{other.name!r} was held by {who(one)} ({_mode(one)}, token {one.token}) and by "
        f"{who(other)} ({_mode(other)}, token {other.token}) at the same time, for at least "
        f"{(until_ns - other.begin_ns) / 1e6:.3f} ms",
        until_ns, (one, other))


def _mode(hold: Hold) -> str:
    return "alone" if hold.exclusive else "shared"


def _too_many(active: Sequence[Hold], newest: Hold) -> Iterator[Violation]:
    """Of a semaphore, if these are too many holds indeed."""
    different = {(one.client, one.session, one.token): one for one in active}
    if len(different) > newest.slots:
        yield Violation(
            EXCLUSION,
            f"{newest.name!r} has {newest.slots} slots and was held {len(different)} times at the "
            f"same time: by " + ", ".join(
                f"{who(one)} (token {one.token})" for one in different.values()),
            newest.begin_ns, tuple(different.values()))


def _order(holds: Sequence[Hold]) -> Iterator[Violation]:
    """Of one name, in the order of their begins: had a hold that was over a higher token?"""
    by_end = sorted(holds, key=_END)
    at = 0
    newest: Hold | None = None  # with the highest token of all that are over
    newest_exclusive: Hold | None = None
    for hold in holds:
        while at < len(by_end) and by_end[at].end_ns < hold.begin_ns:
            over = by_end[at]
            at += 1
            if newest is None or over.token > newest.token:
                newest = over
            if over.exclusive and (
                    newest_exclusive is None or over.token > newest_exclusive.token):
                newest_exclusive = over
        before = newest if hold.exclusive else newest_exclusive
        if before is not None and before.token > hold.token:
            yield Violation(
                TOKEN_ORDER,
                f"{hold.name!r} was held by {who(before)} with token {before.token}, and "
                f"{(hold.begin_ns - before.end_ns) / 1e6:.3f} ms later by {who(hold)} with the "
                f"lower token {hold.token}",
                hold.begin_ns, (before, hold))


def _twice(names: Iterable[Sequence[Hold]]) -> Iterator[Violation]:
    """Tokens that two holds of one service have, of whatever names."""
    first: dict[str, dict[int, Hold]] = {}  # by client, one for all clients of a service
    services: dict[str, dict[int, Hold]] = {}
    for of_name in names:
        for hold in of_name:
            seen = first.get(hold.client)
            if seen is None:
                seen = services.setdefault(service_of(hold.client), {})
                first[hold.client] = seen
            one = seen.setdefault(hold.token, hold)
            if one is not hold and not (same(one, hold) and one.name == hold.name):
                yield Violation(
                    TOKEN_ORDER,
                    f"the token {hold.token} was given out twice: to {who(one)} for {one.name!r} "
                    f"and to {who(hold)} for {hold.name!r}",
                    max(one.begin_ns, hold.begin_ns), (one, hold))


# ---- Holds and what was said of them -------------------------------------------------------------


def of_ends(holds: Iterable[Hold], told: Iterable[Told]) -> Iterator[Violation]:
    """Holds that ended in silence, and holds that somebody believed in after their end was told."""
    lost = {(one.client, one.session, one.name, one.token): one
            for one in told if one.said in (TOLD_LOST, TOLD_BROKEN)}
    tokens = {one.token for one in lost.values()}
    for hold in holds:
        if hold.ended == UNTOLD:
            yield Violation(
                NOT_TOLD,
                f"{hold.name!r} was held by {who(hold)} with token {hold.token}, is not held any "
                "more, and nobody told it so",
                hold.t_ns, (hold,))
        if hold.token not in tokens:
            continue
        said = lost.get((hold.client, hold.session, hold.name, hold.token))
        if said is not None and said.t_ns < hold.end_ns:
            yield Violation(
                BELIEVED_ON,
                f"{who(hold)} was told that {hold.name!r} (token {hold.token}) is lost, and its "
                f"client called it held {(hold.end_ns - said.t_ns) / 1e6:.3f} ms later",
                hold.end_ns, (hold, said))


# ---- What storage accepted -----------------------------------------------------------------------


def of_writes(writes: Iterable[Write]) -> Iterator[Violation]:
    """Accepted writes in the storage's own order. A gap is a write whose process was killed before
    it could write that down."""
    by_name: dict[str, list[Write]] = defaultdict(list)
    for write in writes:
        if write.accepted:
            by_name[write.name].append(write)
        elif write.token >= write.highest:
            yield _of_storage(write, f"refused {who(write)} with token {write.token}, although "
                                     f"{write.highest} was the highest that it had seen")
    for of_name in by_name.values():
        of_name.sort(key=attrgetter("sequence", "t_ns"))
        before: Write | None = None
        for write in of_name:
            if write.token < write.highest:
                yield _of_storage(write, f"accepted a write of {who(write)} with token "
                                         f"{write.token} after it had seen {write.highest}")
            if before is not None and write.sequence == before.sequence:
                yield _of_storage(write, f"accepted two writes as its number {write.sequence}, of "
                                         f"{who(before)} and {who(write)}", before)
            elif before is not None and write.token < before.token:
                yield _of_storage(write, f"accepted a write of {who(write)} with token "
                                         f"{write.token} after one of {who(before)} with "
                                         f"{before.token}", before)
            before = write


def _of_storage(write: Write, text: str, *others: Write) -> Violation:
    return Violation(STORAGE, f"the storage of {write.name!r} {text}", write.t_ns,
                     (*others, write))


# ---- Numbers -------------------------------------------------------------------------------------


def of_numbers(
    added: Iterable[Added], changes_ns: Sequence[int], cut: Collection[tuple[int, int]]
) -> Iterator[Violation]:
    """`changes_ns`: when a primary came, went or stood still. Additions that were asked for and
    answered between two of them were answered by one primary. `cut`: from when until when all
    clients may have been cut off for so long that their sessions ended, and with the last of them
    the number: it may have begun anew, so nothing is judged there, or across."""
    edges_ns = sorted([*changes_ns, *(edge_ns for one in cut for edge_ns in one)])
    without = {
        span for begin_ns, end_ns in cut
        for span in range(bisect_right(edges_ns, begin_ns), bisect_left(edges_ns, end_ns) + 1)}
    spans: dict[tuple[str, str, int], list[Added]] = defaultdict(list)
    for one in added:
        span = bisect_left(edges_ns, one.asked_ns)
        if one.outcome == _DONE and span == bisect_left(edges_ns, one.t_ns) and span not in without:
            spans[service_of(one.client), one.name, span].append(one)
    for of_one in spans.values():
        yield from _of_a_number(of_one)


def _of_a_number(added: Sequence[Added]) -> Iterator[Violation]:
    first: dict[int, Added] = {}
    for one in added:
        other = first.setdefault(one.before, one)
        if other is not one:
            yield Violation(
                NUMBERS, f"{who(other)} and {who(one)} added to {one.name!r}, and both were "
                f"answered that it had been {one.before}", one.t_ns, (other, one))
    ended = sorted(added, key=attrgetter("t_ns"))
    highest: Added | None = None
    at = 0
    for one in sorted(added, key=attrgetter("asked_ns")):
        while at < len(ended) and ended[at].t_ns < one.asked_ns:
            if highest is None or ended[at].before > highest.before:
                highest = ended[at]
            at += 1
        if highest is not None and highest.before > one.before:
            yield Violation(
                NUMBERS, f"{who(highest)} added to {one.name!r} when it was {highest.before}; "
                f"{who(one)}, who asked later, was answered that it had been {one.before}",
                one.t_ns, (highest, one))


# ---- What the drill and its processes said -------------------------------------------------------


def said(records: Iterable[Record]) -> Iterator[Violation]:
    """Violations that a process has seen by itself."""
    for one in records:
        if isinstance(one, Problem):
            yield Violation(SEEN, f"{one.who}: {one.text}", one.t_ns, (one,))
        elif isinstance(one, RoundEnded) and not one.recovered:
            yield Violation(
                NO_END, f"in round {one.round} ({one.fault}) not everybody was served within "
                f"{one.waited_s:.1f} s after the fault was over", one.t_ns, (one,))
        elif isinstance(one, ClientEnded) and not one.expected:
            yield Violation(DIED, f"client {one.client} ended with exit status {one.status}, which "
                                  "nobody had asked of it", one.t_ns, (one,))
        elif isinstance(one, PrimaryExited) and not one.expected:
            yield Violation(DIED, f"primary {one.primary} ended with exit status {one.status}, "
                                  "which nobody had asked of it", one.t_ns, (one,))
