"""What clients believe in, over all of them and all primaries: nobody beside another, nothing after
a newer grant, nothing that ends unsaid.

A belief is what the client says when it is asked, by its own clock. One that has been looked at
goes on without its process: a client that stands still believes until its time is over, since
nothing can be done to it meanwhile. So a belief is looked at when its own client has had a turn,
and only when it is new, or reaches further than before, is it held against all others: what ends by
time only ends conflicts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Final

from dlock._calls import EXCLUSIVE, SEMAPHORE
from dlock._handle import Key
from sim.diary import Diary, Hold, token_text
from sim.laws_engine import EngineView
from sim.scene import MS_NS, SECOND_NS, LawBroken

# How long a client that runs may take to tell of what it knows, by its own clock and in turns.
TELL_NS: Final = SECOND_NS
TELL_TURNS: Final = 60
LOOSE: Final = b"loose"  # the lock whose holds operators break at once: only its token is safe


class Beliefs:
    """All holds that are in somebody's hands, by lock. `newest`: the engine of the newest primary;
    `is_believed`: says whether a hold is believed now."""

    def __init__(self, is_believed: Callable[[Hold], bool]) -> None:
        self.is_believed = is_believed
        self.tell_ns = TELL_NS
        self.newest: EngineView | None = None
        self.breaks: set[bytes] = set()  # locks of which an operator has begun to break a hold
        self._in_hands: dict[Key, list[Hold]] = defaultdict(list)
        self._granted: dict[Key, list[int]] = defaultdict(lambda: [0, 0])  # newest token by mode
        self._owners: dict[int, Hold] = {}  # by token

    def of(self, key: Key) -> list[Hold]:
        """The holds of this lock that are in somebody's hands."""
        return self._in_hands.get(key, [])

    def all(self) -> list[Hold]:
        """Every hold that is in somebody's hands."""
        return [hold for holds in self._in_hands.values() for hold in holds]

    # ---- What a client believes now --------------------------------------------------------------

    def look(self, diary: Diary) -> None:
        """Its client has had a turn."""
        if diary.fresh:
            for hold in diary.fresh:
                self._take(hold)
            diary.fresh.clear()
        own_ns = diary.node.now_ns()
        for hold in list(diary.holds.values()):
            token, left_ms = hold.look()
            if token != hold.token:
                self._gone(hold, own_ns)
            elif left_ms:
                self._believed(hold, own_ns + (left_ms - 1) * MS_NS)
            else:
                self._doubted(hold, own_ns)

    def _take(self, hold: Hold) -> None:
        other = self._owners.setdefault(hold.token, hold)
        if other is not hold:
            raise LawBroken(f"{hold} has the token that {other} was given")
        self._in_hands[hold.key].append(hold)

    def let_go(self, hold: Hold) -> None:
        """Its user has given it up."""
        holds = self._in_hands[hold.key]
        if hold in holds:
            holds.remove(hold)

    def _believed(self, hold: Hold, until_ns: int) -> None:
        further = until_ns > hold.until_ns + MS_NS
        if not further and until_ns >= hold.until_ns - MS_NS:
            return
        if not hold.until_ns and hold.was_suspended:
            hold.diary.seen["suspended, then confirmed"] += 1
            hold.suspended = hold.was_suspended = False
        hold.until_ns, hold.amiss_since = until_ns, 0
        if further:
            if hold.lost:
                raise LawBroken(f"{hold} was told to be lost, and is held again")
            self._check(hold)

    def _doubted(self, hold: Hold, own_ns: int) -> None:
        """SUSPENDED: its user must be told."""
        if not hold.was_suspended:
            hold.was_suspended = True
            hold.until_ns = hold.amiss_since = 0
        if hold.watched and not hold.suspended:
            self._overdue(hold, own_ns, "is suspended")

    def _gone(self, hold: Hold, own_ns: int) -> None:
        """The client knows that it is lost: its user must be told, and it must not have been so
        while it could be believed; unless an operator broke it, or it is given up with its
        session, which a lease outlives."""
        left_ms = (hold.until_ns - own_ns) // MS_NS
        if left_ms > 0 and hold.leased and hold.handle.name.table.ended:
            if self.newest is not None and not _loose(hold):
                self.newest.check_believed(hold)  # its lease was kept all the same
            hold.diary.seen["leases given up with their session"] += 1
        elif left_ms > 0:
            if hold.key[0] not in self.breaks:
                raise LawBroken(f"{hold} is gone while it was believed for {left_ms} ms more")
            hold.taken_ms = left_ms
        hold.until_ns = 0
        if hold.told:
            if hold.taken_ms and not (hold.handle.broken or _loose(hold)):
                raise LawBroken(f"{hold} was lost while it was believed for {hold.taken_ms} ms "
                                f"more, and no operator took it")
            return
        if hold.watched and hold.diary.node.client is not None:
            whole = hold.diary.node.client._connection.settled
            if whole:
                self._overdue(hold, own_ns, "is lost")
            else:
                hold.amiss_since = 0

    def _overdue(self, hold: Hold, own_ns: int, what: str) -> None:
        if not hold.amiss_since:
            hold.amiss_since, hold.amiss_turns = own_ns, 0
        hold.amiss_turns += 1
        if hold.amiss_turns > TELL_TURNS and own_ns - hold.amiss_since > self.tell_ns:
            raise LawBroken(f"{hold} {what} since {(own_ns - hold.amiss_since) // MS_NS} ms, and "
                            f"nobody was told")

    # ---- Against all others ----------------------------------------------------------------------

    def _check(self, hold: Hold) -> None:
        if _loose(hold):
            return
        self._check_beside(hold)
        self._check_since(hold)
        if self.newest is not None:
            self.newest.check_believed(hold)

    def _check_beside(self, hold: Hold) -> None:
        """Nobody else believes in what this excludes."""
        slots = 0
        for other in self._in_hands[hold.key]:
            if not self.is_believed(other):
                continue
            slots += 1
            if other is not hold and hold.excludes(other) and self.is_believed(hold):
                raise LawBroken(f"two at a time: {hold}, and {other}")
        if hold.key[1] == SEMAPHORE and slots > hold.key[2]:
            raise LawBroken(f"{hold}: {slots} believe in a slot, and it has {hold.key[2]}")

    def _check_since(self, hold: Hold) -> None:
        """Nothing that it excludes was granted after it, by any primary, heard of or not."""
        newest = self.newest_against(hold)
        if newest > hold.token:
            raise LawBroken(f"{hold} is believed, and {token_text(newest)} was granted since")
        self.granted(hold.key, hold.mode, hold.token)

    def granted(self, key: Key, mode: int, token: int) -> None:
        """An engine, or a client, has a hold with this token."""
        granted = self._granted[key]
        if token > granted[mode]:
            granted[mode] = token

    def newest_against(self, hold: Hold) -> int:
        """The newest token among its own and those of what it excludes; 0: it excludes nothing."""
        if hold.key[1] == SEMAPHORE or _loose(hold):
            return 0
        granted = self._granted[hold.key]
        return max(granted) if hold.mode == EXCLUSIVE else granted[EXCLUSIVE]

    def check_engine(self, key: Key) -> None:
        """The engine that counts has changed this lock, or has become ready."""
        if self.newest is None or key[0] == LOOSE:
            return
        for hold in self._in_hands.get(key, ()):
            if self.is_believed(hold):
                self.newest.check_believed(hold)


def believed(hold: Hold) -> bool:
    """Is it believed now, by the clock of its client?"""
    return hold.until_ns >= hold.diary.node.now_ns()


def _loose(hold: Hold) -> bool:
    return hold.key[0] == LOOSE
