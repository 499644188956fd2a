"""Who is waited for after a restart, for how long, and when it is over. Pure: now is an argument.

A client of the former primary is AWAY until it re-initialises, CAME until it has said that all is
claimed, then BACK; one that ends its session meanwhile has LEFT, and needs nothing any more. One
that stays away is waited for as long as it could believe in what it held (or as an operator says),
then it is EVICTED and never taken back. One that came and did not say that it was done may have
been renewed here: it is CUT off first, which ends that, and EVICTED when it can believe no longer.
A session of which only leased holds were left (ended) cannot come back; it is only waited for. The
recovery is over when nobody is waited for any more, and not before `not_before_ns`.

This file decides; registry.py sends the commands, writes the roster and answers.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final

from dlock._frozen import Frozen
from dlock.control.fields import U32_MAX
from dlock.control.messages_recover import ABSENT_LINES_MAX, AbsentLine
from dlock.control.roster import (
    ROLE_BYTES_MAX,
    RosterEntry,
    believed_ms,
    is_secret_of,
    verifier_of,
    who_of,
    with_margin_ms,
)

MS_NS: Final = 1_000_000


class RecoveryPlan(Frozen):
    """What a new primary knows of its predecessor's clients.

    `roster`: the sessions that are waited for. `count`: how many are waited for where there is no
    roster, whoever they are. With neither, anybody may come until `not_before_ns`, and nobody who
    has not come by then is waited for. `trusted`: anybody may come, and lapsed sessions are
    believed. `started_ns`: from when on the predecessor did not serve, or could know that it was
    replaced; `not_before_ns`: nothing is granted before. `deadline_ms`: nobody is waited for longer
    than this from the start; None: for as long as they could believe. `session_ttl_ms`: the longest
    that the predecessor promised. `reread`: the predecessor may serve until not_before_ns: its
    roster is then read again (ReadFormerRoster), and until then nobody is taken back.
    """

    started_ns: int
    session_ttl_ms: int
    roster: tuple[RosterEntry, ...] = ()
    count: int = 0
    trusted: bool = False
    not_before_ns: int = 0
    deadline_ms: int | None = None
    reread: bool = False

    @property
    def anybody(self) -> bool:
        """May those come who are on no roster?"""
        return self.trusted or self.count > 0 or not (self.roster or self.reread)

    @property
    def lapsed_believed(self) -> bool:
        """Are lapsed sessions believed that are on no roster?"""
        return self.trusted or self.count > 0

    def until_ns(self, lease_ms: int) -> int:
        """How long one that has declared this lease is waited for."""
        wait_ms = believed_ms(self.session_ttl_ms, lease_ms)
        if self.deadline_ms is not None:
            wait_ms = min(wait_ms, max(self.deadline_ms, with_margin_ms(self.session_ttl_ms)))
        return self.started_ns + wait_ms * MS_NS


class State(Enum):
    """See the head of this file."""

    AWAY = "away"
    CAME = "came"
    BACK = "back"
    LEFT = "left"
    CUT = "cut"
    EVICTED = "evicted"


_AWAITED: Final = (State.AWAY, State.CAME, State.CUT)
_OUT: Final = (State.EVICTED, State.LEFT, State.CUT)


class Verdict(Enum):
    """What becomes of a ClientReinit."""

    WELCOME = "welcome"
    UNKNOWN = "unknown"
    WRONG_SECRET = "wrong secret"
    LATER = "later"


class Expected:
    """One who is waited for. `listed`: on the roster; `lease_here_ms`: the longest lease that it
    can have asked for here."""

    __slots__ = ("entry", "lease_here_ms", "listed", "state", "until_ns")

    def __init__(self, entry: RosterEntry, until_ns: int, *, listed: bool) -> None:
        self.entry = entry
        self.until_ns = until_ns
        self.listed = listed
        self.lease_here_ms = entry.lease_ms
        self.state = State.AWAY


class Progress(Frozen):
    """How far it is; `absent` of `expected` are waited for, at most until `until_ns`."""

    expected: int
    back: int
    evicted: int
    absent: int
    until_ns: int


class Recovery:
    """One recovery, from the start until it is over."""

    def __init__(self, plan: RecoveryPlan, max_lease_ms: int, session_ttl_ms: int) -> None:
        self.plan = plan
        self._session_ttl_ms = max(session_ttl_ms, plan.session_ttl_ms)
        self._roster_known = not plan.reread
        # Of those without an entry it is not known which leases they had; where nothing at all is
        # known, nothing longer than a session is waited for.
        self._unlisted_lease_ms = max_lease_ms if plan.lapsed_believed else 0
        self._who: dict[int, Expected] = {}
        self._deadlines: list[tuple[int, int]] = []  # a heap of (until_ns, client id)
        self._counts: Counter[State] = Counter()
        self._nameless = plan.count  # how many of `count` have not come
        self._nameless_until_ns = plan.until_ns(max_lease_ms)
        self._nameless_evicted = 0
        self._reading = False
        for entry in plan.roster:
            self._add(entry, listed=True)

    def _add(self, entry: RosterEntry, *, listed: bool) -> Expected:
        until_ns = self.plan.until_ns(entry.lease_ms)
        one = self._who[entry.client_id] = Expected(entry, until_ns, listed=listed)
        self._counts[one.state] += 1
        self._wait_until(one, until_ns)
        return one

    def _become(self, one: Expected, state: State) -> None:
        self._counts[one.state] -= 1
        one.state = state
        self._counts[state] += 1

    # ---- Those who come --------------------------------------------------------------------------

    def judge(self, client_id: int, secret: bytes) -> Verdict:
        """May this client be taken back?"""
        if not self._roster_known:
            return Verdict.LATER
        one = self._who.get(client_id)
        if one is None:
            return Verdict.WELCOME if self.plan.anybody else Verdict.UNKNOWN
        if not is_secret_of(one.entry, secret):
            return Verdict.WRONG_SECRET
        gone = one.entry.ended or one.state in _OUT
        return Verdict.UNKNOWN if gone else Verdict.WELCOME

    def known(self, client_id: int) -> tuple[int, bool]:
        """The longest lease that this client may have declared, and whether it is on the roster."""
        one = self._who.get(client_id)
        return (self._unlisted_lease_ms, False) if one is None else (one.entry.lease_ms, one.listed)

    def role_of(self, client_id: int, info: Mapping[str, object]) -> str:
        """Which role this client has: as the roster says, or, if it is on none, it itself."""
        one = self._who.get(client_id)
        said = info.get("role", "") if one is None or not one.listed else one.entry.role
        return said[:ROLE_BYTES_MAX] if isinstance(said, str) else ""

    def lease_granted_ms(self, client_id: int) -> int:
        """The longest lease that the predecessor can have granted to this client. Without a word of
        the client's every lease may be as long as a session."""
        return max(self.known(client_id)[0], self.plan.session_ttl_ms)

    def came(self, client_id: int, secret: bytes, info: dict[str, object]) -> Expected:
        """A client that is welcome re-initialises. Who comes again stays BACK if it was: what it
        had to claim is claimed."""
        one = self._who.get(client_id)
        if one is None:
            self._nameless = max(0, self._nameless - 1)
            one = self._add(
                RosterEntry(client_id, self._unlisted_lease_ms, False, verifier_of(secret),
                            who_of(info)), listed=False)
        if one.state is State.AWAY:
            self._become(one, State.CAME)
        return one

    def may_lease(self, client_id: int, lease_ms: int) -> None:
        """This client can ask for leases of this length from now on."""
        one = self._who.get(client_id)
        if one is not None:
            one.lease_here_ms = max(one.lease_here_ms, lease_ms)

    def done(self, client_id: int) -> None:
        """All of this client is claimed."""
        one = self._who.get(client_id)
        if one is not None and one.state is State.CAME:
            self._become(one, State.BACK)

    def left(self, client_id: int) -> None:
        """This client's session is over, as it wished."""
        one = self._who.get(client_id)
        if one is not None:
            self._become(one, State.LEFT)

    def lapsed_believed(self, client_id: int) -> bool:
        """Are the lapsed holds of this client's session believed? What a session on the roster had
        was given to nobody."""
        one = self._who.get(client_id)
        return self.plan.lapsed_believed or (one is not None and one.listed)

    # ---- Those who stay away ---------------------------------------------------------------------

    def overdue(self, now_ns: int) -> tuple[list[Expected], list[Expected]]:
        """Cuts off and evicts those who have been waited for long enough; returns both."""
        cut: list[Expected] = []
        evicted: list[Expected] = []
        if not self._roster_known:
            return cut, evicted  # It may say that they are to be waited for longer.
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, client_id = heapq.heappop(self._deadlines)
            one = self._who.get(client_id)
            if one is None or one.until_ns > now_ns or one.state not in _AWAITED:
                continue
            if one.state is State.CAME:
                self._become(one, State.CUT)
                self._wait_until(one, now_ns + self._believed_here_ms(one) * MS_NS)
                cut.append(one)
            else:
                self._become(one, State.EVICTED)
                evicted.append(one)
        if now_ns >= self._nameless_until_ns:
            self._give_nameless_up()
        return cut, evicted

    def _believed_here_ms(self, one: Expected) -> int:
        """How long one that came can believe in what it heard here. With a deadline of the
        operator's leases do not count: those who hold them are known to be dead."""
        lease_ms = one.lease_here_ms if self.plan.deadline_ms is None else 0
        return with_margin_ms(max(self._session_ttl_ms, lease_ms))

    def _wait_until(self, one: Expected, until_ns: int) -> None:
        one.until_ns = until_ns
        heapq.heappush(self._deadlines, (until_ns, one.entry.client_id))

    def evict(self, client_ids: Iterable[int] | None) -> tuple[list[Expected], bool]:
        """Nobody waits for these any more (None: for all who are absent). Those that this meets;
        False: there was one among them who is not waited for."""
        if client_ids is None:
            self._give_nameless_up()
            client_ids = [one.entry.client_id for one in self._absent()]
        evicted, all_met = [], True
        for client_id in client_ids:
            one = self._who.get(client_id)
            if one is not None and one.state in _AWAITED:
                self._become(one, State.EVICTED)
                evicted.append(one)
            else:
                all_met = False
        return evicted, all_met

    def give_up_role(self, role: str) -> list[Expected]:
        """Nobody waits any more for those who have this role and have not come; who they were."""
        mine = [client_id for client_id, one in self._who.items() if one.entry.role == role]
        return self.evict(mine)[0]

    def _give_nameless_up(self) -> None:
        self._nameless_evicted += self._nameless
        self._nameless = 0

    # ---- The roster, read again ------------------------------------------------------------------

    def wants_roster(self, now_ns: int) -> bool:
        """Is it time to read the former roster again? True once."""
        due = not self._roster_known and not self._reading and now_ns >= self.plan.not_before_ns
        self._reading = self._reading or due
        return due

    def roster_read(
        self, entries: Iterable[RosterEntry]
    ) -> tuple[list[RosterEntry], list[RosterEntry]]:
        """The predecessor has stopped, and this is what it left. Returns what is new in it or has
        changed, and what is not on it any more."""
        left = {entry.client_id: entry for entry in entries}
        before = {client_id: one.entry for client_id, one in self._who.items()}
        changed = []
        for client_id, entry in left.items():
            if client_id not in before:
                self._add(entry, listed=True)
                changed.append(entry)
            elif entry != before[client_id] and self._who[client_id].state is not State.EVICTED:
                self._change(self._who[client_id], entry)
                changed.append(self._who[client_id].entry)
        struck = [entry for client_id, entry in before.items() if client_id not in left]
        for entry in struck:
            self._counts[self._who.pop(entry.client_id).state] -= 1
        self._roster_known = True
        return changed, struck

    def _change(self, one: Expected, entry: RosterEntry) -> None:
        lease_ms = max(entry.lease_ms, one.entry.lease_ms)
        one.entry = RosterEntry(
            entry.client_id, lease_ms, entry.ended, entry.verifier, entry.who, entry.role)
        self._wait_until(one, self.plan.until_ns(lease_ms))

    # ---- How far it is ---------------------------------------------------------------------------

    @property
    def absent(self) -> int:
        """How many are waited for."""
        return sum(self._counts[state] for state in _AWAITED) + self._nameless

    def over(self, now_ns: int) -> bool:
        """Is nobody waited for any more?"""
        return self._roster_known and not self.absent and now_ns >= self.plan.not_before_ns

    @property
    def counts(self) -> tuple[int, ...]:
        """What changes when something does; cheap."""
        return len(self._who), *(self._counts[one] for one in State), self._nameless

    def progress(self) -> Progress:
        """In numbers. Looks at all who are waited for."""
        until = [one.until_ns for one in self._absent()]
        if self._nameless:
            until.append(self._nameless_until_ns)
        return Progress(
            len(self._who) + self._nameless + self._nameless_evicted,
            self._counts[State.BACK] + self._counts[State.LEFT],
            self._counts[State.EVICTED] + self._nameless_evicted,
            self.absent,
            max((*until, self.plan.not_before_ns)),
        )

    def _absent(self) -> list[Expected]:
        """Any thread may ask for progress, so the table is copied before it is walked."""
        return [one for one in list(self._who.values()) if one.state in _AWAITED]

    def lines(self, now_ns: int) -> tuple[AbsentLine, ...]:
        """Who is waited for, those first who are waited for longest."""
        first = heapq.nlargest(ABSENT_LINES_MAX, self._absent(), key=lambda one: one.until_ns)
        return tuple(
            AbsentLine(
                one.entry.client_id, min(one.entry.lease_ms, U32_MAX),
                left_ms(one.until_ns, now_ns), int(one.state is not State.AWAY), one.entry.who)
            for one in first)

    def next_deadline_ns(self) -> int | None:
        """When something is to be done by time; may be early, never late."""
        if not self._roster_known:
            return None if self._reading else self.plan.not_before_ns
        deadlines = [self._deadlines[0][0]] if self._deadlines else []
        if self._nameless:
            deadlines.append(self._nameless_until_ns)
        if not self.absent:
            deadlines.append(self.plan.not_before_ns)
        return min(deadlines, default=None)

    def check(self) -> None:
        """Asserts what must hold between any two inputs; for tests."""
        assert self._counts == Counter(one.state for one in self._who.values())
        assert self._nameless >= 0


def left_ms(until_ns: int, now_ns: int) -> int:
    """What is left until then, rounded up."""
    return min(max(0, -(-(until_ns - now_ns) // MS_NS)), U32_MAX)
