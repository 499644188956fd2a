"""The control plane's state machine: sessions, locks and objects behind one door.

Input: a connection's request, the end of a connection, an event of the plane, a moment of time.
Output: effects, to be carried out in order (registry_effects). No sockets, no clock (now_ns is an
argument), no engine, no randomness of its own: the same inputs give the same effects.

Two laws. What the data plane must know is answered only after its DONE event. What must survive a
crash is on disk (Persist...) before the command that makes it true is sent.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from dlock import _core
from dlock._core import Command, Event
from dlock._verbs import Made
from dlock.control import messages as m
from dlock.control.registry_cycles import Cycles
from dlock.control.registry_effects import (
    AnswerStats,
    Call,
    Effect,
    Note,
    Outbox,
    PersistEpoch,
    Shown,
)
from dlock.control.registry_labels import Labels
from dlock.control.registry_locks import Lock, LockTable
from dlock.control.registry_objects import Object, ObjectTable
from dlock.control.registry_pairs import Pairs
from dlock.control.registry_restoring import Phase as Phase
from dlock.control.registry_restoring import Restoring
from dlock.control.registry_sessions import Client, RegistryConfig, Sessions
from dlock.control.registry_view import Operators
from dlock.control.roster import RosterEntry
from dlock.types import DlockStatus


def bad_peer(event: Event) -> Note:
    """What to say of a data connection that the plane has closed for what it sent. It has counted
    that itself."""
    address = ipaddress.IPv6Address(event.cookie.to_bytes(8, "little")
                                    + event.value.to_bytes(8, "little"))
    return Note("bad data connection", {
        "peer": str(address.ipv4_mapped or address), "client_id": event.id,
        "reason": _core.fault_text(event.result)}, logging.WARNING)


def negotiate(version_min: int, version_max: int) -> int | None:
    """The lower of the two highest versions; None if the ranges do not meet."""
    version = min(version_max, _core.DLK_PROTOCOL_VERSION_MAX)
    if version_min > version_max or version < max(version_min, _core.DLK_PROTOCOL_VERSION_MIN):
        return None
    return version


# What those are answered who have come while the server recovers, and who came early.
ALWAYS_ANSWERED: Final = frozenset(
    {m.UpdateLocks, m.ReinitDone, m.ClientDeinit, m.OpenQueuePair})
EARLY_ANSWERED: Final = frozenset({m.Heartbeat, m.DeclareLease})


class Registry:
    """See the head of this file. Every public method that takes input returns its effects."""

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._out = Outbox()
        self._locks = LockTable(config.max_locks, self._out)
        self._objects = ObjectTable(config.max_objects, self._out)
        self._sessions = Sessions(config, self._out, self._release_all)
        self._labels = Labels(self._out, self._locks)
        self._operators = Operators(self._out, self._locks, self._sessions, self._labels)
        self._cycles = Cycles(self._out, self._locks, self._sessions)
        self._pairs = Pairs(self._out, self._sessions)
        self._restoring = Restoring(config, self._out, self._locks, self._sessions)
        self._handlers: dict[type[m.Message], Callable[[Client, Call], None]] = {
            m.ReinitDone: self._reinit_done,
            m.ClientDeinit: self._deinit,
            m.Heartbeat: self._sessions.heartbeat,
            m.DeclareLease: self._declare_lease,
            m.GetLocks: self._get_locks,
            m.ReleaseLocks: self._release_locks,
            m.UpdateLocks: self._update_locks,
            m.ObjectCreate: self._object_create,
            m.ObjectGet: self._object_get,
            m.ObjectRelease: self._object_release,
            m.ObjectDestroy: self._object_destroy,
            m.OpenQueuePair: self._pairs.open,
            m.Describe: self._labels.describe,
        }

    # ---- Input -----------------------------------------------------------------------------------

    def request(
        self, connection: int, request_id: int, message: m.Request[Any], now_ns: int
    ) -> list[Effect]:
        """A client's message. Connections are numbers that are never used twice."""
        self._objects.tick(now_ns)
        call = Call(connection, request_id, message, now_ns)
        if isinstance(message, m.Stats):
            self._out.add(AnswerStats(connection, request_id, self.stats(now_ns)))
        elif isinstance(message, m.ClientInit | m.ClientReinit | m.EnterRole):
            self._enter(call, message)
        elif isinstance(message, m.AwaitReady):
            self._restoring.await_ready(call)
        elif isinstance(message, m.Recover):
            self._restoring.recover(call)
        elif self.phase is not Phase.READY:
            self._before_ready(call)
        elif self._operators.knows(message):
            self._operators.ask(call)
        elif isinstance(message, m.GetCycle):
            self._cycles.ask(call)
        elif (client := self._sessions.of(connection)) is None or client.opening:
            self._out.refuse(call, DlockStatus.CLIENT_NOT_INIT)
        elif client.gone:
            self._out.refuse(call, DlockStatus.CLIENT_REMOVED_BY_SERVER)
        else:
            self._sessions.renew(client, now_ns)
            self._handlers[type(message)](client, call)
        return self._out.drain()

    def disconnected(self, connection: int) -> list[Effect]:
        """The connection is closed; its session stays."""
        self._sessions.disconnected(connection)
        self._restoring.disconnected(connection)
        return self._out.drain()

    def event(self, event: Event, now_ns: int, shown: Shown = ()) -> list[Effect]:
        """An event of the plane; `shown`: what it has written, if it ends a look or claims."""
        if event.op == _core.DLK_EVENT_DONE:
            self._out.done(event, shown, now_ns)
        elif event.op == _core.DLK_EVENT_SESSION_ENDED:
            self._sessions.ended(event, now_ns)
        elif event.op == _core.DLK_EVENT_SESSION_FREED:
            self._sessions.freed(event)
        elif event.op == _core.DLK_EVENT_LOCK_CLOSED:
            self._locks.closed(event)
        elif event.op == _core.DLK_EVENT_EPOCH_LOW:
            self._epoch_low(event)
        elif event.op == _core.DLK_EVENT_DEADLOCK:
            self._cycles.tell(event)
        elif event.op == _core.DLK_EVENT_BAD_PEER:
            self._out.add(bad_peer(event))
        elif event.op == _core.DLK_EVENT_VERBS:
            self._pairs.event(event)
        return self._out.drain()

    def roster_read(self, entries: Iterable[RosterEntry], now_ns: int) -> list[Effect]:
        """What the effect ReadFormerRoster asked for."""
        self._restoring.roster_read(entries, now_ns)
        return self._out.drain()

    def pair_made(self, number: int, made: Made, began_ns: int, now_ns: int) -> list[Effect]:
        """What became of the effect OpenPair, which was begun then."""
        self._pairs.made(number, made, began_ns, now_ns)
        return self._out.drain()

    def tick(self, now_ns: int) -> list[Effect]:
        """What time ends: waiting for clients, leases of objects. And what was too much to do at
        once."""
        self._objects.tick(now_ns)
        self._locks.tick()
        self._restoring.tick(now_ns)
        return self._out.drain()

    def next_deadline_ns(self) -> int | None:
        """When `tick` is due; None: never. May be early, never late."""
        if self._locks.busy:
            return 0
        deadlines = (self._objects.next_deadline_ns(), self._restoring.next_deadline_ns())
        return min((one for one in deadlines if one is not None), default=None)

    # ---- What others ask -------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The one that it serves in."""
        return self._config.epoch

    @property
    def phase(self) -> Phase:
        """How far the server is."""
        return self._restoring.phase

    def stats(self, now_ns: int) -> dict[str, int]:
        """Counters (capital names, as in DebugStats) and gauges (small ones)."""
        return {
            **self._out.counters,
            **self._sessions.gauges,
            **self._locks.gauges,
            **self._objects.gauges,
            **self._operators.gauges,
            **self._pairs.gauges,
            **self._labels.gauges,
            "commands_under_way": self._out.under_way,
            "epoch": self._config.epoch,
            **self._restoring.gauges(now_ns),
        }

    def bound(self, connection: int) -> bool:
        """Does this connection speak for a session?"""
        return self._sessions.of(connection) is not None

    def check(self) -> None:
        """Asserts what must hold between any two inputs; for tests."""
        self._sessions.check(self._locks.leaving)
        self._locks.check()
        self._objects.check()
        self._pairs.check()
        self._restoring.check()

    # ---- Sessions --------------------------------------------------------------------------------

    def _enter(self, call: Call, message: m.ClientInit | m.ClientReinit | m.EnterRole) -> None:
        version = negotiate(message.version_min, message.version_max)
        if version is None:
            self._out.refuse(call, DlockStatus.PROTO_VERSION_NEGOTIATION_FAIL)
        elif isinstance(message, m.ClientReinit):
            if not self._restoring.is_of_the_past(call):
                self._restoring.reinit(call, version)
        elif isinstance(message, m.EnterRole):
            self._enter_role(call, message, version)
        elif self.phase is not Phase.READY:
            self._out.refuse(call, DlockStatus.NOT_READY)
        else:
            self._sessions.init(call, message, version)

    def _enter_role(self, call: Call, message: m.EnterRole, version: int) -> None:
        """Whoever has the role ends before this one is entered, and also while this one has to
        wait until the server is ready: that may be just because the other stays away."""
        if self._sessions.of(call.connection) is not None:
            self._out.refuse(call, DlockStatus.ERROR)
        elif not message.role:
            self._out.refuse(call, DlockStatus.EINVAL)
        else:
            if message.take:
                self._restoring.take_role(message.role, call.now_ns)
            if self.phase is not Phase.READY:
                self._out.refuse(call, DlockStatus.NOT_READY)
            elif self._sessions.has_role(message.role):
                self._out.refuse(call, DlockStatus.ALREADY_LOCKED)
            else:
                self._sessions.init(call, message, version, message.role)

    def _before_ready(self, call: Call) -> None:
        """Whoever has come may say what it has, and leave; who can make use of a server that
        recovers may also live and ask for leases."""
        client = self._sessions.of(call.connection)
        kind = type(call.message)
        if client is not None and client.gone:
            self._out.refuse(call, DlockStatus.CLIENT_REMOVED_BY_SERVER)
        elif client is None or client.opening or self.phase is Phase.OVER or not (
                kind in ALWAYS_ANSWERED or (client.early and kind in EARLY_ANSWERED)):
            self._out.refuse(call, DlockStatus.NOT_READY)
        else:
            self._sessions.renew(client, call.now_ns)
            self._handlers[kind](client, call)

    def _reinit_done(self, client: Client, call: Call) -> None:
        if client.reinitialising:
            self._restoring.done(client, call.now_ns)
        self._sessions.reinit_done(client, call)

    def _declare_lease(self, client: Client, call: Call) -> None:
        self._sessions.declare_lease(client, call)
        self._restoring.may_lease(client)

    def _deinit(self, client: Client, call: Call) -> None:
        """While the server recovers, the mirror's clients are told NOT_READY; they are gone all the
        same, and nobody waits for them."""
        told = self.phase is Phase.READY or client.early
        status = DlockStatus.SUCCESS if told else DlockStatus.NOT_READY
        self._sessions.deinit(client, call, status)
        self._restoring.left(client, call.now_ns)

    def _release_all(self, client: Client, now_ns: int) -> None:
        self._labels.left(client)
        self._locks.release_all(client.locks)
        self._objects.client_gone(client.id, client.objects, now_ns)

    # ---- Locks -----------------------------------------------------------------------------------

    def _get_locks(self, client: Client, call: Call) -> None:
        got = [self._locks.get(client.locks, spec) for spec in call.message.locks]
        cookie = max((one.cookie for one in got if isinstance(one, Lock)), default=0)
        self._out.when_done(cookie, partial(self._answer_locks, client, call, got))

    def _answer_locks(
        self, client: Client, call: Call, got: list[m.LockResult | Lock]
    ) -> None:
        results = tuple(
            self._locks.result(client.locks, one) if isinstance(one, Lock) else one for one in got)
        for result in results:
            self._out.count(result.status)
        self._out.answer(call, m.LockIds(DlockStatus.SUCCESS, results))

    def _release_locks(self, client: Client, call: Call) -> None:
        self._answer_statuses(call, tuple(
            self._locks.release(client.locks, lock_id) for lock_id in call.message.lock_ids))

    def _update_locks(self, client: Client, call: Call) -> None:
        if self.phase is Phase.RECOVERING:
            self._restoring.update(client, call)
            return
        self._answer_statuses(call, tuple(
            self._locks.check_claim(client.locks, claim) for claim in call.message.claims))

    def _answer_statuses(self, call: Call, statuses: tuple[DlockStatus, ...]) -> None:
        """After everything that was sent so far: a slot that a client has freed is free for it
        when it has the answer."""
        for status in statuses:
            self._out.count(status)
        answer = m.Statuses(DlockStatus.SUCCESS, statuses)
        self._out.when_done(self._out.last_cookie, partial(self._out.answer, call, answer))

    # ---- Objects ---------------------------------------------------------------------------------

    def _object_create(self, client: Client, call: Call) -> None:
        made = self._objects.create(client.id, call.message, call.now_ns)
        self._answer_object(call, made, DlockStatus.OBJECT_TOO_MANY)

    def _object_get(self, client: Client, call: Call) -> None:
        got = self._objects.get(client.objects, call.message, call.now_ns)
        self._answer_object(call, got, DlockStatus.OBJECT_NOT_CREATE)

    def _answer_object(
        self, call: Call, outcome: DlockStatus | Object, failed: DlockStatus
    ) -> None:
        """`failed`: what it is when the plane has refused to open the cell."""
        if isinstance(outcome, Object):
            self._out.when_done(
                outcome.cookie, partial(self._object_opened, call, outcome, failed))
        else:
            self._out.refuse(call, outcome)

    def _object_opened(self, call: Call, one: Object, failed: DlockStatus) -> None:
        if one.failed:
            self._out.refuse(call, failed)
        else:
            key = one.key if self._sessions.verbs else 0
            self._out.answer(call, m.ObjectId(DlockStatus.SUCCESS, one.id, one.slot, key))

    def _object_release(self, client: Client, call: Call) -> None:
        self._out.status_after_all(call, self._objects.release(
            client.objects, call.message.object_id, call.now_ns))

    def _object_destroy(self, client: Client, call: Call) -> None:
        self._out.status_after_all(call, self._objects.destroy(
            client.id, call.message.object_id, call.now_ns))

    # ---- The server's own ------------------------------------------------------------------------

    def _epoch_low(self, event: Event) -> None:
        """Half of an epoch's tokens are used: the next one may be taken, once it is on disk."""
        epoch = event.value + 1
        if epoch <= m.EPOCH_MAX:
            self._restoring.epoch_taken(epoch)
            self._out.add(PersistEpoch(epoch))
            self._out.command(Command(_core.DLK_COMMAND_EPOCH, value=epoch))
        else:
            self._out.add(Note("no epoch is left", {"epoch": event.value}, logging.ERROR))
