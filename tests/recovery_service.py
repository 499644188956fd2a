"""A service whose primaries die, are replaced and die again, and clients that come back to it: the
registry with the real engine, a disk that keeps what the effects say, and what each client believes
by its own clock. tests/test_recovery_random.py drives it.

A client here does what dlock/_enter.py and the book in C do: it claims what it has got, learns what
became of it, asks for each hold (EXTEND) before it believes in it again.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from registry_world import SECOND, TTL_MS, World

from dlock import _core
from dlock._core import Request
from dlock.control import messages as m
from dlock.control.registry import Phase
from dlock.control.registry_effects import (
    Effect,
    PersistEnded,
    PersistLease,
    PersistSession,
    PersistStruck,
    ReadFormerRoster,
)
from dlock.control.registry_recovery import RecoveryPlan
from dlock.control.roster import RosterEntry, with_margin_ms
from dlock.types import DlockStatus as S

MS = 1_000_000
LEASE_MS = 20_000  # over session_ttl, so it is declared
CLAIMS_PER_MESSAGE = 2
KINDS = {b"a": (0, 1), b"b": (0, 1), b"r": (1, 1), b"s": (3, 2)}  # name: kind, size
Roster = dict[int, RosterEntry]


class Primary(World):
    """One start of the server. `disk`: the roster that it has written, in its own file."""

    disk: Roster
    former: Roster | None = None  # of one that may serve still

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, PersistSession):
                self.disk[effect.entry.client_id] = effect.entry
            elif isinstance(effect, PersistStruck):
                self.disk.pop(effect.client_id, None)
            elif isinstance(effect, PersistLease):
                self._change(effect.client_id, lease_ms=effect.lease_ms)
            elif isinstance(effect, PersistEnded):
                self._change(effect.client_id, ended=True)
        super().take(effects)
        if any(isinstance(effect, ReadFormerRoster) for effect in effects):
            assert self.former is not None
            self.take(self.registry.roster_read(list(self.former.values()), self.now_ns))

    def _change(self, client_id: int, **changes: Any) -> None:
        if client_id in self.disk:
            self.disk[client_id] = RosterEntry(**{**vars(self.disk[client_id]), **changes})

    @property
    def ready(self) -> bool:
        return self.registry.phase is Phase.READY


@dataclass
class Hold:
    """What a client was granted. `until_ns`: it believes until then; `epoch`: of the primary that
    confirmed it last; `lease_end_ns`: None: it lasts as long as the session."""

    token: int
    owner: int
    mode: int
    until_ns: int
    epoch: int
    leased: bool
    entry: int = _core.DLK_NONE


class LinkLostError(Exception):
    """Thrown into a client's life."""


Life = Generator[m.Request[Any], Any, None]


@dataclass(eq=False)
class Person:
    """A client. `locks`: id and slot by name; `at`: the primary that it is connected to."""

    service: Service
    number: int
    locks: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    holds: dict[bytes, Hold] = field(default_factory=dict)
    session: m.Welcome | None = None
    sealed_epoch: int = 0  # it has claimed everything at the primary of this epoch
    inside: bool = False
    dead: bool = False
    at: Primary | None = None
    connection: int = 0
    pending: tuple[int, int] | None = None
    life: Life | None = None
    owners: int = 0
    losses: int = 0

    # ---- What it believes ------------------------------------------------------------------------

    def believes(self, name: bytes) -> Hold | None:
        hold = self.holds.get(name)
        live = hold is not None and not self.dead and self.service.now_ns < hold.until_ns
        return hold if live else None

    def _renewed(self) -> None:
        """The primary that it is attached to has answered it."""
        assert self.session is not None
        for hold in self.holds.values():
            if not hold.leased and hold.epoch == self.session.epoch:
                hold.until_ns = self.service.now_ns + TTL_MS * MS

    def _removed(self) -> None:
        self.losses += len(self.holds)
        self.locks, self.holds, self.session, self.inside = {}, {}, None, False

    def _lost(self, name: bytes) -> None:
        self.losses += self.holds.pop(name, None) is not None

    # ---- The control plane -----------------------------------------------------------------------

    def step(self) -> None:
        """Takes its answer, if it is there, and asks the next thing."""
        if self.dead:
            return
        if self.at is None or self.connection in self.at.closed:
            self.connect()
        answer = None
        if self.pending is not None:
            assert self.at is not None
            if self.pending not in self.at.answers:
                return
            answer, self.pending = self.at.answers[self.pending], None
        elif self.inside:
            return
        self._go_on(answer)

    def _go_on(self, answer: Any) -> None:
        assert self.life is not None
        assert self.at is not None
        try:
            request = self.life.send(answer)
        except StopIteration:
            self.inside = True
        else:
            self.pending = self.at.send(self.connection, request)

    def connect(self) -> None:
        """A new connection, to the newest primary."""
        self.hang_up()
        self.at = self.service.primary
        self.connection = self.service.new_connection()
        self.life = self._entering()

    def hang_up(self) -> None:
        """Its link breaks. What is pending may be carried out, and is never heard of."""
        if self.at is not None and self.connection not in self.at.closed:
            self.at.closed.append(self.connection)
            self.at.take(self.at.registry.disconnected(self.connection))
        self.at, self.pending, self.life, self.inside = None, None, None, False

    def _entering(self) -> Life:
        old = self.session
        while old is not None:
            welcome: m.Welcome = yield m.ClientReinit(
                1, 1, old.client_id, old.secret, old.epoch, old.incarnation, 1, {})
            if welcome.status is S.NOT_READY:
                continue
            if welcome.status is S.CLIENT_REMOVED_BY_SERVER:
                self._removed()
                break
            assert welcome.status is S.SUCCESS, welcome.status
            self.session = welcome
            if self.sealed_epoch != welcome.epoch:
                yield from self._claiming()
                if self.session is None:
                    break
                self.sealed_epoch = welcome.epoch
                self._attached()
            done: m.Status = yield m.ReinitDone()
            if done.status is S.SUCCESS:
                self.service.entered(self)
                return
            assert done.status in (S.CLIENT_REMOVED_BY_SERVER, S.CLIENT_NOT_INIT), done.status
            self._removed()
            break
        while True:
            fresh: m.Welcome = yield m.ClientInit(1, 1, {"pid": self.number})
            if fresh.status is S.SUCCESS:
                self.session, self.sealed_epoch = fresh, fresh.epoch
                return

    def _attached(self) -> None:
        """The data plane answers; the worst that can be: this renews what is believed still."""
        for name, hold in self.holds.items():
            if not hold.leased and self.believes(name):
                hold.until_ns = self.service.now_ns + TTL_MS * MS

    def _claiming(self) -> Life:
        names = list(self.locks)
        for first in range(0, len(names), CLAIMS_PER_MESSAGE):
            these = names[first : first + CLAIMS_PER_MESSAGE]
            answer: m.Statuses = yield m.UpdateLocks(tuple(map(self._claim, these)))
            if answer.status is not S.SUCCESS:
                self._removed()
                return
            for name, status in zip(these, answer.statuses, strict=True):
                if status is not S.SUCCESS:
                    self._lost(name)
                if status not in (S.SUCCESS, S.FAIL):
                    del self.locks[name]

    def _claim(self, name: bytes) -> m.LockClaim:
        kind, size = KINDS[name]
        lock_id, slot = self.locks[name]
        hold = self.holds.get(name)
        if hold is None:
            return m.LockClaim(name, size, lock_id, slot, kind, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        live = self.believes(name) is not None
        left_ms = (hold.until_ns - self.service.now_ns) // MS if hold.leased and live else 0
        return m.LockClaim(
            name, size, lock_id, slot, kind, hold.owner, hold.token, 0, _core.DLK_ENTRY_HELD,
            hold.mode, 1, left_ms, int(not live), int(hold.leased), 0, 0, 0)

    def ask(self, request: m.Request[Any]) -> Any:
        """One question to the end, of one who is inside; None: the link is gone meanwhile."""
        if not self.inside or self.pending is not None or self.at is None:
            return None
        key = self.at.send(self.connection, request)
        self.at.run()
        answer: Any = self.at.answers.get(key)
        if answer is not None and answer.status in (
                S.CLIENT_REMOVED_BY_SERVER, S.CLIENT_NOT_INIT):
            self._removed()
            self.hang_up()
            return None
        return answer

    def get(self, name: bytes) -> None:
        kind, size = KINDS[name]
        answer = self.ask(m.GetLocks((m.LockSpec(name, kind, size),)))
        if answer is not None and answer.status is S.SUCCESS:
            (result,) = answer.results
            if result.lock_id > 0:
                self.locks[name] = (result.lock_id, result.slot)

    def leave(self) -> None:
        answer = self.ask(m.ClientDeinit())
        if answer is not None and answer.status is S.SUCCESS:
            self._removed()
            self.hang_up()

    def leave_unheard(self) -> None:
        """It gives everything up and says so, and its link breaks before the answer; then it comes
        again all the same."""
        if self.inside and self.at is not None and self.pending is None:
            self.locks, self.holds = {}, {}
            self.at.send(self.connection, m.ClientDeinit())
            self.hang_up()

    # ---- The data plane --------------------------------------------------------------------------

    def _data(self, name: bytes, **fields: Any) -> _core.Reply | None:
        """A request on a lock, answered at once; None: it is not connected, or has not got it."""
        if not self.inside or self.at is None or self.session is None or name not in self.locks:
            return None
        lock_id, slot = self.locks[name]
        reply = self.at.data(Request(
            session=self.session.session_slot, lock_id=lock_id, slot=slot, **fields))
        if reply.result == _core.DLK_RESULT_REMOVED:
            self._removed()
            self.hang_up()
            return None
        self._renewed()
        return reply

    def lock(self, name: bytes, mode: int, *, leased: bool, heard: bool) -> None:
        """Tries; `heard`: the answer arrives."""
        mode = mode if KINDS[name][0] == 1 else 0
        leased = leased and KINDS[name][0] != 1
        if name in self.holds or (leased and not self._may_lease()):
            return
        self.owners += 1
        reply = self._data(name, op=_core.DLK_OP_LOCK, mode=mode, owner=self.owners,
                           lease_ms=LEASE_MS if leased else 0)
        if reply is not None and reply.result == _core.DLK_RESULT_GRANTED and heard:
            assert self.session is not None
            ms = LEASE_MS if leased else TTL_MS
            self.holds[name] = Hold(
                reply.token, self.owners, mode, self.service.now_ns + ms * MS,
                self.session.epoch, leased, reply.entry)

    def _may_lease(self) -> bool:
        answer = self.ask(m.DeclareLease(LEASE_MS))
        return answer is not None and answer.status is S.SUCCESS

    def unlock(self, name: bytes) -> None:
        """It stops believing before it sends this."""
        hold = self.holds.get(name)
        if hold is not None and self.inside:
            del self.holds[name]
            self._data(name, op=_core.DLK_OP_UNLOCK, owner=hold.owner, token=hold.token,
                       mode=hold.mode, entry=_core.DLK_NONE)

    def verify(self, name: bytes) -> int | None:
        """Asks for a hold: EXTENDED, NOT_HELD (then it is lost) or NOT_READY."""
        hold = self.holds.get(name)
        if hold is None:
            return None
        reply = self._data(name, op=_core.DLK_OP_EXTEND, owner=hold.owner, token=hold.token,
                           mode=hold.mode, entry=_core.DLK_NONE)
        if reply is None or self.session is None:
            return None
        if reply.result == _core.DLK_RESULT_EXTENDED:
            hold.epoch = self.session.epoch
            ms = reply.lease_ms if hold.leased else TTL_MS
            hold.until_ns = max(hold.until_ns, self.service.now_ns + ms * MS)
        elif reply.result in (_core.DLK_RESULT_NOT_HELD, _core.DLK_RESULT_NO_LOCK):
            self._lost(name)
        else:
            assert reply.result == _core.DLK_RESULT_NOT_READY, reply.result
        return int(reply.result)


class Service:
    """The disk, the clock, the newest primary, and one before it that may serve still."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * SECOND
        self.people: list[Person] = []
        self.old: tuple[Primary, int] | None = None  # and until when it serves at most
        self._connections = 0
        self.epoch = 0
        self.primary: Primary
        self._start({}, None)

    def _start(self, former: Roster, plan: RecoveryPlan | None) -> None:
        self.epoch += 1
        roster = dict(former)
        self.primary = Primary(plan, True, self.epoch, 1000 + self.epoch, self.now_ns, 32)
        self.primary.disk = roster
        self.later(0)

    def crash(self) -> None:
        """The primary dies, and another one is started."""
        self._drop_old()
        former = self.primary
        self._hang_up(former)
        plan = RecoveryPlan(self.now_ns, TTL_MS, tuple(former.disk.values()))
        self._start(former.disk, plan if former.disk else None)

    def take_over(self) -> None:
        """Another one is started, and does not insist on the lock: the present one serves on for
        up to session_ttl / 4, and does not know."""
        self._drop_old()
        former = self.primary
        quarter_ms = TTL_MS // 4
        self.old = former, self.now_ns + quarter_ms * MS
        plan = RecoveryPlan(
            self.now_ns, TTL_MS, tuple(former.disk.values()), reread=True,
            not_before_ns=self.now_ns + with_margin_ms(quarter_ms) * MS)
        self._start(former.disk, plan)
        self.primary.former = former.disk

    def _drop_old(self) -> None:
        if self.old is not None:
            self._hang_up(self.old[0])
            self.old = None

    def _hang_up(self, primary: Primary) -> None:
        for person in self.people:
            if person.at is primary:
                person.hang_up()

    def new_connection(self) -> int:
        self._connections += 1
        return self._connections

    def entered(self, person: Person) -> None:
        """For tests to see."""

    def later(self, seconds: float) -> None:
        """Time passes for all; an old primary stops when its time is over."""
        end_ns = self.now_ns + round(seconds * SECOND)
        if self.old is not None:
            primary, until_ns = self.old
            moment_ns = min(end_ns, until_ns)
            primary.later((moment_ns - primary.now_ns) / SECOND)
            if moment_ns == until_ns:
                self._drop_old()
        self.now_ns = end_ns
        self.primary.now_ns = end_ns
        self.primary.later(0)

    def primaries(self) -> list[Primary]:
        return [self.primary, *([self.old[0]] if self.old else [])]

    def check(self) -> None:
        """No two clients believe in holds that exclude each other."""
        for name, (_, size) in KINDS.items():
            holds = [hold for one in self.people if (hold := one.believes(name)) is not None]
            exclusive = [hold for hold in holds if hold.mode == 0]
            if exclusive:
                assert len(holds) <= size, (name, holds)
