"""A recovery, carried out: what `Recovery` decides becomes commands to the plane, lines of the
roster, answers and a log. And what goes on beside it: who waits for readiness, what operators ask,
clients that have seen a newer primary than this one.

The order of an end: nobody is absent; READY and GRACE are sent; the plane serves; whoever waits for
readiness is told, also the one whose ReinitDone ended it.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from enum import Enum
from functools import partial
from operator import attrgetter
from typing import Final

from dlock import _core
from dlock._core import Command, Event
from dlock.control import messages as m
from dlock.control.messages_recover import EVICT_ALL, EVICT_NONE
from dlock.control.registry_claims import Claims
from dlock.control.registry_effects import (
    Call,
    EpochShown,
    ForgetFormer,
    Note,
    Outbox,
    PersistSession,
    PersistStruck,
    ReadFormerRoster,
    TakeHigherEpoch,
)
from dlock.control.registry_locks import LockTable
from dlock.control.registry_recovery import Expected, Progress, Recovery, Verdict, left_ms
from dlock.control.registry_sessions import MS_NS, Client, RegistryConfig, Sessions
from dlock.control.roster import RosterEntry
from dlock.types import DlockStatus

SECOND_NS: Final = 1_000_000_000
NOTE_AT_LEAST_S: Final = 10  # how often the log says how far it is
NOTE_AT_MOST_S: Final = 1
NAMED_IN_A_NOTE: Final = 3
_NOBODY: Final = Progress(0, 0, 0, 0, 0)
_token: Final = attrgetter("token")
_stamp: Final = attrgetter("stamp")


class Phase(Enum):
    """RECOVERING: clients of a former primary could still believe in what it granted, and are
    waited for. ENDING: nobody is waited for any more, which the plane is being told. READY:
    everything is granted. OVER: this start must not grant anything any more."""

    RECOVERING = "recovering"
    ENDING = "ending"
    READY = "ready"
    OVER = "over"


class Restoring:
    """The way of one server to READY."""

    def __init__(
        self, config: RegistryConfig, outbox: Outbox, locks: LockTable, sessions: Sessions
    ) -> None:
        self._config = config
        self._out = outbox
        self._locks = locks
        self._sessions = sessions
        self._awaiting = _Awaiting(outbox)
        self._epoch = config.epoch
        self._recovery: Recovery | None = None
        self._progress = _NOBODY  # how it ended
        self._noted: tuple[int, ...] | None = None
        self._noted_ns = 0
        self.phase = Phase.READY
        if config.recovery is not None:
            self.phase = Phase.RECOVERING
            self._recovery = Recovery(
                config.recovery, config.max_lease_ms, config.session_ttl_ms)
            self._claims = Claims(outbox, locks)

    # ---- Clients that come -----------------------------------------------------------------------

    def reinit(self, call: Call, version: int) -> None:
        """ClientReinit while the server recovers."""
        message: m.ClientReinit = call.message
        recovery = self._recovery
        if self.phase is Phase.OVER:
            self._out.refuse(call, DlockStatus.NOT_READY)
            return
        if recovery is None:
            self._sessions.reinit(call, message, version)
            return
        verdict = recovery.judge(message.client_id, message.secret)
        if verdict is Verdict.LATER:
            self._out.refuse(call, DlockStatus.NOT_READY)
        elif verdict is Verdict.UNKNOWN:
            self._out.refuse(call, self._sessions.gave_way.status(message))
        elif verdict is Verdict.WRONG_SECRET:
            self._sessions.wrong_secret(call)
        else:
            lease_ms, listed = recovery.known(message.client_id)
            role = recovery.role_of(message.client_id, message.info)
            client = self._sessions.adopt(call, version, lease_ms, role, listed=listed)
            if client is not None:
                recovery.came(client.id, client.secret, client.info)
                self.may_lease(client)

    def take_role(self, role: str, now_ns: int) -> None:
        """Another client takes this role: whoever has it has no session any more, and is not waited
        for."""
        if self.phase is Phase.OVER:
            return
        recovery = self._recovery
        for client_id in self._sessions.supersede(role, now_ns):
            if recovery is not None:
                recovery.left(client_id)
        if recovery is not None:
            for one in recovery.give_up_role(role):
                self._sessions.gave_way.add(one.entry.client_id, one.entry.verifier)
                self._evicted([one], "another client has taken its role", now_ns)
            self._try_to_end(now_ns)

    def update(self, client: Client, call: Call) -> None:
        """UpdateLocks of a client that came."""
        recovery = self._recovery
        assert recovery is not None
        claims: Sequence[m.LockClaim] = call.message.claims
        newest = max(max(map(_token, claims)), max(map(_stamp, claims)))
        epoch = newest >> _core.DLK_COUNTER_BITS
        # Tokens of our own epoch are ours, if this client has been here; else of another start.
        another = not (self._config.durable or client.been_here)
        if self._epoch < epoch + another and epoch <= m.EPOCH_MAX:
            self._epoch_ahead(call, epoch, 0)  # a token does not say of which start it is
        else:
            self._claims.update(
                client, call, lapsed_believed=recovery.lapsed_believed(client.id),
                lease_limit_ms=max(
                    recovery.lease_granted_ms(client.id), client.declared_lease_ms))

    def may_lease(self, client: Client) -> None:
        """This client's leases may be as long as it has declared from now on."""
        if self._recovery is not None:
            self._recovery.may_lease(client.id, client.declared_lease_ms)

    def done(self, client: Client, now_ns: int) -> None:
        """This client has claimed everything."""
        if self._recovery is not None:
            self._recovery.done(client.id)
            self._try_to_end(now_ns)

    def left(self, client: Client, now_ns: int) -> None:
        """This client has ended its session, and is not waited for."""
        if self._recovery is not None:
            self._recovery.left(client.id)
            self._try_to_end(now_ns)

    # ---- Epochs ----------------------------------------------------------------------------------

    def epoch_taken(self, epoch: int) -> None:
        """Tokens may be of this epoch from now on."""
        self._epoch = epoch

    def is_of_the_past(self, call: Call) -> bool:
        """Has this client seen a newer primary, or another one of our epoch? Then it is answered
        here."""
        message: m.ClientReinit = call.message
        mine = (self._config.epoch, self._config.incarnation)
        ahead = message.seen_epoch > self._epoch or (
            message.seen_epoch == mine[0] and message.seen_incarnation != mine[1])
        if ahead and self._config.trusted and self.phase in (Phase.ENDING, Phase.READY):
            # An application has said how many clients there were, and they are back.
            self._out.refuse(call, DlockStatus.CLIENT_REMOVED_BY_SERVER)
        elif ahead:
            self._epoch_ahead(call, message.seen_epoch, message.seen_incarnation)
        return ahead

    def _epoch_ahead(self, call: Call, epoch: int, incarnation: int) -> None:
        """With a state directory nobody can have seen a newer epoch, unless it was served from
        another one. Without, that is how we hear of it: this start must not grant anything."""
        self._out.counters["EPOCH_AHEAD"] += 1
        fields: dict[str, object] = {"seen": epoch, "ours": self._epoch}
        if self._config.durable or epoch >= m.EPOCH_MAX:
            self._out.add(Note("a client of another primary", fields, logging.ERROR))
            if incarnation:
                self._out.add(EpochShown(epoch, incarnation))
            self._out.refuse(call, DlockStatus.ERROR)
            return
        if self.phase is not Phase.OVER:
            self.phase = Phase.OVER
            # While it waits it has granted nothing, and this is how it learns its epoch.
            level = logging.WARNING if self._recovery is None else logging.INFO
            self._out.add(Note("starts anew above the epoch of a client", fields, level))
            self._out.add(TakeHigherEpoch(epoch))
        self._out.refuse(call, DlockStatus.NOT_READY)

    # ---- Operators, and who waits ----------------------------------------------------------------

    def await_ready(self, call: Call) -> None:
        """AwaitReady, of any connection."""
        if self.phase is Phase.READY:
            self._out.status(call, DlockStatus.SUCCESS)
        else:
            self._awaiting.add(call)

    def disconnected(self, connection: int) -> None:
        """Whoever waited there does not any more."""
        self._awaiting.disconnected(connection)

    def recover(self, call: Call) -> None:
        """Recover: shown after what it asks for is done."""
        message: m.Recover = call.message
        all_met = True
        if message.evict != EVICT_NONE and self._recovery is not None:
            everybody = message.evict == EVICT_ALL
            evicted, all_met = self._recovery.evict(None if everybody else message.client_ids)
            self._evicted(evicted, "by an operator", call.now_ns)
            self._try_to_end(call.now_ns)
        elif message.evict != EVICT_NONE:
            all_met = not message.client_ids
        status = DlockStatus.SUCCESS if all_met else DlockStatus.FAIL
        self._out.when_done(self._out.last_cookie, partial(self._show, call, status))

    def _show(self, call: Call, status: DlockStatus) -> None:
        progress = self.progress
        recovery = self._recovery
        self._out.answer(call, m.RecoveryShown(
            status, int(self.phase is Phase.READY), progress.expected, progress.back,
            progress.evicted, left_ms(progress.until_ns, call.now_ns), progress.absent,
            recovery.lines(call.now_ns) if recovery is not None else ()))

    def _evicted(self, evicted: Iterable[Expected], why: str, now_ns: int) -> None:
        for one in evicted:
            self._out.counters["CLIENTS_EVICTED"] += 1
            self._out.add(Note(
                "client evicted", {**self._named(one), "why": why}, logging.WARNING))
            self._sessions.evict(one.entry.client_id, now_ns)

    @staticmethod
    def _named(one: Expected) -> dict[str, object]:
        return {"client_id": one.entry.client_id, "who": one.entry.who,
                "lease_ms": one.entry.lease_ms}

    # ---- Time ------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        """What time ends: waiting for absent clients, waiting for readiness."""
        self._awaiting.tick(now_ns)
        recovery = self._recovery
        if recovery is None or self.phase is Phase.OVER:
            return
        if recovery.wants_roster(now_ns):
            self._out.add(ReadFormerRoster())
        cut, evicted = recovery.overdue(now_ns)
        for one in cut:
            self._out.add(Note("client cut off", self._named(one), logging.WARNING))
            self._sessions.cut(one.entry.client_id)
        self._evicted(evicted, "stayed away", now_ns)
        self._note(recovery, now_ns)
        self._try_to_end(now_ns)

    def roster_read(self, entries: Iterable[RosterEntry], now_ns: int) -> None:
        """What ReadFormerRoster asked for."""
        recovery = self._recovery
        if recovery is not None:
            changed, struck = recovery.roster_read(entries)
            for entry in changed:
                self._out.add(PersistSession(entry))
            for entry in struck:
                self._out.add(PersistStruck(entry.client_id))
            self._try_to_end(now_ns)

    def next_deadline_ns(self) -> int | None:
        """When `tick` is due; None: never."""
        deadlines = [self._awaiting.next_deadline_ns()]
        if self._recovery is not None and self.phase is Phase.RECOVERING:
            deadlines += [self._recovery.next_deadline_ns(), self._note_due_ns(self._recovery)]
        return min((one for one in deadlines if one is not None), default=None)

    def _try_to_end(self, now_ns: int) -> None:
        recovery = self._recovery
        if recovery is None or self.phase is not Phase.RECOVERING or not recovery.over(now_ns):
            return
        self.phase = Phase.ENDING
        self._progress, self._recovery = recovery.progress(), None
        self._claims.end()
        ttl_ms = self._config.session_ttl_ms
        self._out.command(Command(
            _core.DLK_COMMAND_READY, value=_core.DLK_READY_ALL, ttl_ms=ttl_ms))
        self._out.command(Command(_core.DLK_COMMAND_GRACE, value=ttl_ms),
                          partial(self._ended, now_ns - recovery.plan.started_ns))

    def _ended(self, took_ns: int, _event: Event) -> None:
        if self.phase is not Phase.ENDING:
            return
        self.phase = Phase.READY
        done = self._progress
        self._out.add(Note("recovery ends", {
            "epoch": self._config.epoch, "expected": done.expected, "back": done.back,
            "evicted": done.evicted, **self._locks.gauges,
            "seconds": round(took_ns / SECOND_NS, 3)}))
        self._out.add(ForgetFormer())
        self._awaiting.ready()

    # ---- What is told ----------------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        """How far it is. Any thread may ask."""
        recovery = self._recovery
        return self._progress if recovery is None else recovery.progress()

    def gauges(self, now_ns: int) -> dict[str, int]:
        """For Stats."""
        progress = self.progress
        return {
            "ready": int(self.phase is Phase.READY),
            "recovering": int(self.phase is not Phase.READY),
            "recovery_expected": progress.expected,
            "recovery_back": progress.back,
            "recovery_absent": progress.absent,
            "recovery_left_ms": left_ms(progress.until_ns, now_ns),
        }

    def _note_due_ns(self, recovery: Recovery) -> int:
        seconds = NOTE_AT_MOST_S if recovery.counts != self._noted else NOTE_AT_LEAST_S
        return self._noted_ns + seconds * SECOND_NS

    def _note(self, recovery: Recovery, now_ns: int) -> None:
        if now_ns < self._note_due_ns(recovery):
            return
        progress = recovery.progress()
        fields: dict[str, object] = {
            "expected": progress.expected, "back": progress.back, "evicted": progress.evicted,
            "absent": progress.absent,
            "seconds_left": left_ms(progress.until_ns, now_ns) / 1000}
        named = recovery.lines(now_ns)[:NAMED_IN_A_NOTE]
        if named:
            fields["among_them"] = ", ".join(f"{one.client_id} ({one.who})" for one in named)
        begins = self._noted is None
        self._out.add(Note("recovery begins" if begins else "recovery goes on", fields))
        self._noted, self._noted_ns = recovery.counts, now_ns

    def check(self) -> None:
        """Asserts what must hold between any two inputs; for tests."""
        self._awaiting.check()
        if self._recovery is not None:
            self._recovery.check()
        assert (self._recovery is not None) == (self.phase is Phase.RECOVERING) or (
            self.phase is Phase.OVER)


class _Awaiting:
    """The calls of AwaitReady: one a connection, the later in the place of the earlier."""

    def __init__(self, outbox: Outbox) -> None:
        self._out = outbox
        self._calls: dict[int, tuple[int, Call]] = {}  # by connection, with its end
        self._ends: list[tuple[int, int]] = []  # (end, connection) of each, in order

    def add(self, call: Call) -> None:
        """Answered when it is over, or by `ready`."""
        self._answer(call.connection, DlockStatus.NOT_READY)
        until_ns = call.now_ns + call.message.wait_ms * MS_NS
        self._calls[call.connection] = until_ns, call
        insort(self._ends, (until_ns, call.connection))
        self.tick(call.now_ns)

    def _answer(self, connection: int, status: DlockStatus) -> None:
        call = self._take(connection)
        if call is not None:
            self._out.status(call, status)

    def _take(self, connection: int) -> Call | None:
        """The call that waits there, which does so no longer; nor is its end kept, or a client
        that asks again and again would leave one each time."""
        until_ns, call = self._calls.pop(connection, (0, None))
        if call is not None:
            del self._ends[bisect_left(self._ends, (until_ns, connection))]
        return call

    def disconnected(self, connection: int) -> None:
        """Nobody is there to be answered."""
        self._take(connection)

    def ready(self) -> None:
        """Answers all."""
        calls, self._calls = self._calls, {}
        self._ends.clear()
        for _, call in calls.values():
            self._out.status(call, DlockStatus.SUCCESS)

    def tick(self, now_ns: int) -> None:
        """Answers those whose time is over."""
        while self._ends and self._ends[0][0] <= now_ns:
            self._answer(self._ends[0][1], DlockStatus.NOT_READY)

    def next_deadline_ns(self) -> int | None:
        """When `tick` is due."""
        return self._ends[0][0] if self._ends else None

    def check(self) -> None:
        """Asserts what must hold between any two inputs; for tests."""
        ends = [(until_ns, connection) for connection, (until_ns, _) in self._calls.items()]
        assert sorted(ends) == self._ends
