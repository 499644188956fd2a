"""What happened to locks between two looks at a server: a function of what was seen.

A server is looked at now and then, so a hold that came and went between two looks is not seen; but
every lock counts what it has served, and that tells how many there were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from dlock.admin import Holder, LockDetails, LockSummary, Waiter

SERVED_MODULUS: Final = 1 << 16
FEW: Final = 50


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that happened. `what`: "held", "freed", "waits", "left" (a waiter is gone: it gave
    up, or held the lock so shortly that this was not seen), "breaking" (an operator asked the
    holder to give it up), "served" (`count` holds or waits came and went unseen), "new", "gone"."""

    what: str
    key: bytes
    who: Holder | Waiter | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """One lock at one look. `details` None: nobody held it or waited for it."""

    summary: LockSummary
    details: LockDetails | None


@dataclass(slots=True)
class History:
    """What was seen last, by name. `known`: every name that was there; `seen`: those that were
    looked at closely."""

    seen: dict[bytes, Seen] = field(default_factory=dict)
    known: set[bytes] = field(default_factory=set)
    turn: int = 0

    def worth_a_look(self, summaries: Iterable[LockSummary], most: int) -> list[LockSummary]:
        """Those that something has happened to since they were seen, at most so many, others in the
        next turn. While few are busy, these too: that a hold is being broken changes no count."""
        listed = list(summaries)
        busy = sum(1 for one in listed if one.holders or one.waiters)
        found = [one for one in listed
                 if (before := self.seen.get(one.key)) is None or before.summary != one
                 or (busy <= FEW and (one.holders or one.waiters))]
        if len(found) > most:
            start = self.turn % len(found)
            self.turn = start + most
            found = (found[start:] + found[:start])[:most]
        return found

    def look(self, summaries: Mapping[bytes, LockSummary],
             details: Mapping[bytes, LockDetails | None], first: bool = False) -> list[Change]:
        """Takes one look in: all locks there are, and the details of some. With `first`, locks that
        are already there are not told as new."""
        found: list[Change] = []
        for key in sorted(self.known - summaries.keys()):
            if key in self.seen:
                found += _ended(self.seen.pop(key))
            found.append(Change("gone", key))
        if not first:
            found += [Change("new", key) for key in sorted(summaries.keys() - self.known)]
        for key in sorted(details.keys() & summaries.keys()):
            now = Seen(summaries[key], details[key])
            found += _between(self.seen.get(key), now)
            self.seen[key] = now
        self.known = set(summaries)
        return found


def _ended(before: Seen) -> Iterator[Change]:
    """What a lock that is not known any more had."""
    for who in _holders(before).values():
        yield Change("freed", before.summary.key, who)
    for waiter in _waiters(before).values():
        yield Change("left", before.summary.key, waiter)


def _between(before: Seen | None, now: Seen) -> Iterator[Change]:
    """What happened to one lock, in the order in which it can have happened."""
    key = now.summary.key
    same = before is not None and before.summary.lock_id == now.summary.lock_id
    if before is not None and not same:
        yield from _ended(before)
    held_before = _holders(before) if before is not None and same else {}
    waited_before = _waiters(before) if before is not None and same else {}
    held, waited = _holders(now), _waiters(now)
    for token in sorted(held_before.keys() - held.keys()):
        yield Change("freed", key, held_before[token])
    owners = {(one.client_id, one.actor) for one in held.values()}
    left = [one for stamp, one in waited_before.items()
            if stamp not in waited and (one.client_id, one.actor) not in owners]
    for waiter in left:
        yield Change("left", key, waiter)
    fresh = [held[token] for token in sorted(held.keys() - held_before.keys())]
    if before is not None and same:
        served = (now.summary.served - before.summary.served) % SERVED_MODULUS
        unseen = served - len(fresh) - len(left)
        if unseen > 0:
            yield Change("served", key, count=unseen)
    for holder in fresh:
        yield Change("held", key, holder)
    for token in sorted(held.keys() & held_before.keys()):
        if held[token].breaking and not held_before[token].breaking:
            yield Change("breaking", key, held[token])
    for stamp in sorted(waited.keys() - waited_before.keys()):
        yield Change("waits", key, waited[stamp])


def _holders(seen: Seen) -> dict[int, Holder]:
    return {one.token: one for one in seen.details.holders} if seen.details else {}


def _waiters(seen: Seen) -> dict[int, Waiter]:
    return {one.stamp: one for one in seen.details.waiters} if seen.details else {}
