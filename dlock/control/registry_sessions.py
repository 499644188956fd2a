"""Which client is which session: ids, secrets, slots, connections, and how a session ends.

A session is OPENED by ClientInit, may be taken up again by ClientReinit on another connection, and
ends by ClientDeinit or because the plane says that it has expired. From then on the client is gone;
its slot is free again when the plane says that nothing of it is left.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from dlock import _core
from dlock._core import Command, Event
from dlock.control import messages as m
from dlock.control.registry_effects import (
    Call,
    CloseConnection,
    Note,
    Outbox,
    PersistEnded,
    PersistLease,
    PersistSession,
    PersistStruck,
    Slots,
    carried_out,
)
from dlock.control.registry_locks import Got as GotLocks
from dlock.control.registry_objects import Got as GotObjects
from dlock.control.registry_recovery import RecoveryPlan
from dlock.control.registry_roles import GaveWay
from dlock.control.roster import RosterEntry, verifier_of, who_of
from dlock.types import DlockStatus

# A session whose control connection speaks is renewed at most this often a session_ttl.
RENEWALS_PER_TTL: Final = 8
MS_NS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """Limits, what a Welcome says, and what the state directory says.

    `recovery`: who is to be waited for, None: nobody. `durable`: epoch and roster are on disk.
    `trusted`: that nobody else is to be waited for is the word of an application (the mirror).
    `verbs`: the plane serves RDMA too.
    `random_bytes`: for ids and secrets.
    """

    random_bytes: Callable[[int], bytes]
    data_port: int
    epoch: int
    incarnation: int
    max_locks: int = _core.DLK_MAX_LOCKS_DEFAULT
    max_clients: int = _core.DLK_MAX_CLIENTS_DEFAULT
    max_objects: int = _core.DLK_MAX_OBJECTS_DEFAULT
    session_ttl_ms: int = _core.DLK_SESSION_TTL_MS_DEFAULT
    max_lease_ms: int = _core.DLK_MAX_LEASE_MS_DEFAULT
    recovery: RecoveryPlan | None = None
    durable: bool = True
    trusted: bool = False
    verbs: bool = False

    @property
    def undeclared_lease_ms(self) -> int:
        """The longest lease that a session may ask for without DeclareLease. A new primary waits
        for every session for session_ttl, so leases up to that are never written down; and none is
        where there is nothing to write on."""
        return min(self.session_ttl_ms, self.max_lease_ms) if self.durable else self.max_lease_ms

    @property
    def max_sessions(self) -> int:
        """Slots of the engine's session table: ended sessions keep theirs for a while."""
        return 2 * self.max_clients


@dataclass(slots=True, eq=False)
class Client:
    """One session. `early`: it can make use of a server that recovers; `adopted`: of a former
    primary, so its client knows the secret before the Welcome; `been_here`: its client had a
    Welcome of this start before it came last; `listed`: on the roster; `gone`: it
    has ended, only answers to it are still under way; `pair_asked`: the attach number for which it
    asked for a queue pair, `pair_given`: that for which it got one; 0: none; `role`: which at most
    one session has."""

    id: int
    slot: int
    secret: bytes = field(repr=False)
    connection: int | None
    declared_lease_ms: int
    info: dict[str, object]
    renewed_ns: int
    opened_ns: int
    role: str = ""
    attach: int = 1
    pair_asked: int = 0
    pair_given: int = 0
    opening: bool = True
    reinitialising: bool = False
    early: bool = False
    adopted: bool = False
    been_here: bool = False
    listed: bool = True
    gone: bool = False
    locks: GotLocks = field(default_factory=dict, repr=False)
    labels: dict[int, str] = field(default_factory=dict, repr=False)
    objects: GotObjects = field(default_factory=dict, repr=False)

    @property
    def named(self) -> dict[str, object]:
        """Who it is, for the log."""
        return {"client_id": self.id, "info": self.info}


def lease_granted_ms(lease_ms: int, max_lease_ms: int) -> int:
    """What a DeclareLease of lease_ms allows: the next power of two, within max_lease_ms."""
    power: int = 1 << (lease_ms - 1).bit_length()
    return min(power, max_lease_ms)


class Sessions:
    """All sessions of a server. `on_end` releases what a client that is gone has got."""

    def __init__(
        self, config: RegistryConfig, outbox: Outbox, on_end: Callable[[Client, int], None]
    ) -> None:
        self._config = config
        self._out = outbox
        self._on_end = on_end
        self._slots = Slots(config.max_sessions)
        self._clients: dict[int, Client] = {}
        self._leaving: dict[int, Client] = {}  # by slot: ended, but the slot is not free yet
        self._by_slot: dict[int, Client] = {}  # all of them, those that are leaving too
        self._bound: dict[int, Client] = {}  # connection -> its session
        self.verbs = config.verbs  # RDMA is served
        self.gave_way = GaveWay(outbox.counters)

    @property
    def gauges(self) -> dict[str, int]:
        """For Stats."""
        return {"clients": len(self._clients), "sessions_leaving": len(self._leaving)}

    def of(self, connection: int) -> Client | None:
        """The session that this connection speaks for."""
        return self._bound.get(connection)

    @property
    def slots(self) -> int:
        """How many slots have ever been used: the first so many."""
        return self._slots.high

    def in_slot(self, slot: int) -> Client | None:
        """The session in this slot; one that is gone while a hold of it still runs."""
        return self._by_slot.get(slot)

    def info_of(self, client_id: int) -> dict[str, object]:
        """What this client says of itself; nothing if it is gone."""
        client = self._clients.get(client_id)
        return {} if client is None else client.info

    def at(self, slot: int, client_id: int) -> Client | None:
        """The session that the plane means."""
        client = self._by_slot.get(slot)
        return client if client is not None and client.id == client_id else None

    def disconnected(self, connection: int) -> None:
        """The connection is closed; its session stays."""
        client = self._bound.pop(connection, None)
        if client is not None:
            client.connection = None

    # ---- Beginning -------------------------------------------------------------------------------

    def init(
        self, call: Call, message: m.ClientInit | m.EnterRole, version: int, role: str = ""
    ) -> None:
        """ClientInit or EnterRole at a server that is ready."""
        if call.connection in self._bound:
            self._out.refuse(call, DlockStatus.ERROR)
            return
        full = len(self._clients) >= self._config.max_clients
        slot = None if full else self._slots.take()
        if slot is None:
            self._out.refuse(call, DlockStatus.SERVER_NO_RESOURCE)
            return
        client = Client(
            self._new_id(), slot, self._config.random_bytes(m.SECRET_BYTES), call.connection,
            self._config.undeclared_lease_ms, dict(message.info), call.now_ns, call.now_ns, role)
        self._clients[client.id] = self._bound[call.connection] = client
        self._by_slot[slot] = client
        self._write_down(client, 0)
        self._open(call, client, version)

    def _write_down(self, client: Client, lease_ms: int) -> None:
        self._out.add(PersistSession(RosterEntry(
            client.id, lease_ms, False, verifier_of(client.secret), who_of(client.info),
            client.role)))

    def _open(self, call: Call, client: Client, version: int) -> None:
        kind = _core.DLK_SESSION_EARLY if client.early else _core.DLK_SESSION_PLAIN
        self._out.command(
            Command(_core.DLK_COMMAND_SESSION_OPEN, slot=client.slot, id=client.id, kind=kind,
                    secret=client.secret, attach=client.attach,
                    ttl_ms=self._config.session_ttl_ms, lease_ms=client.declared_lease_ms),
            partial(self._opened, call, client, version))

    def _new_id(self) -> int:
        """Random and unused, so that a client of a former server is not taken for one of ours."""
        while True:
            number = int.from_bytes(self._config.random_bytes(4), "little") & m.ID_MAX
            leaving = any(one.id == number for one in self._leaving.values())
            if number and number not in self._clients and not leaving:
                return number

    def _opened(self, call: Call, client: Client, version: int, event: Event) -> None:
        client.opening = False
        if not carried_out(event):
            if not client.gone:
                del self._clients[client.id]
            self._leaving.pop(client.slot, None)
            self._unbind(client)
            self._free(client)
            if not client.adopted:  # One that is waited for stays on the roster.
                self._strike(client)
            self._out.refuse(call, DlockStatus.SERVER_NO_RESOURCE)
        elif client.gone:
            self._out.refuse(call, DlockStatus.CLIENT_REMOVED_BY_SERVER)
        elif client.attach != 1:
            self._out.refuse(call, DlockStatus.ERROR)  # A later connection has taken its place.
        elif client.connection is None and not client.adopted:
            self._close(client, call.now_ns)  # Nobody will ever know its secret.
        else:
            self._out.add(Note("session opened", client.named, logging.DEBUG))
            self._out.answer(call, self._welcome(client, version))

    def _welcome(self, client: Client, version: int) -> m.Welcome:
        config = self._config
        return m.Welcome(
            DlockStatus.SUCCESS, version, client.id, client.slot, client.secret, client.attach,
            config.data_port, config.epoch, config.incarnation, config.session_ttl_ms,
            config.max_lease_ms, client.declared_lease_ms, int(self.verbs))

    def reinit(self, call: Call, message: m.ClientReinit, version: int) -> None:
        """ClientReinit at a server that is ready. The secret stays what it was: were it changed,
        a lost Welcome would lock the client out."""
        client = self._clients.get(message.client_id)
        if client is None or (client.opening and not client.adopted):
            self._out.refuse(call, self.gave_way.status(message))
        elif not hmac.compare_digest(client.secret, message.secret):
            self.wrong_secret(call)
        elif self._bound.get(call.connection) not in (None, client):
            self._out.refuse(call, DlockStatus.ERROR)
        else:
            self._supersede(call, client, version)

    def wrong_secret(self, call: Call) -> None:
        """Whoever this is, it is not that client."""
        self._out.counters["CLIENT_ID_VERIFY_FAIL"] += 1
        self._out.add(Note(
            "wrong secret", {"client_id": call.message.client_id}, logging.WARNING))
        self._out.refuse(call, DlockStatus.CLIENT_REMOVED_BY_SERVER)

    def adopt(
        self, call: Call, version: int, lease_ms: int, role: str, *, listed: bool
    ) -> Client | None:
        """ClientReinit of a client of a former primary, whose secret is right: the session is
        opened again under its id; `listed`: it is on the roster. None: it cannot be. However many
        clients there may be, one that is waited for is taken while a slot is free."""
        message: m.ClientReinit = call.message
        known = self._clients.get(message.client_id)
        if known is not None:
            self.reinit(call, message, version)
            return known
        if call.connection in self._bound:
            self._out.refuse(call, DlockStatus.ERROR)
            return None
        slot = self._slots.take()
        if slot is None:
            self._out.refuse(call, DlockStatus.SERVER_NO_RESOURCE)
            return None
        config = self._config
        client = Client(
            message.client_id, slot, message.secret, call.connection,
            max(config.undeclared_lease_ms, min(lease_ms, config.max_lease_ms)),
            dict(message.info), call.now_ns, call.now_ns, role,
            reinitialising=True, early=bool(message.early), adopted=True)
        self._clients[client.id] = self._bound[call.connection] = client
        self._by_slot[slot] = client
        if not listed:
            self._write_down(client, lease_ms)
        self._open(call, client, version)
        return client

    def _supersede(self, call: Call, client: Client, version: int) -> None:
        """This connection is the session's from now on; the older ones, of both planes, are
        closed before it is answered."""
        older = client.connection
        if older is not None and older != call.connection:
            self._unbind(client)
            self._out.add(CloseConnection(older, "superseded"))
        client.connection = call.connection
        self._bound[call.connection] = client
        client.attach += 1
        client.reinitialising = True
        client.info = dict(call.message.info) or client.info
        client.been_here = call.message.seen_incarnation == self._config.incarnation
        self._out.command(
            Command(_core.DLK_COMMAND_SESSION_SUPERSEDE, slot=client.slot, id=client.id,
                    secret=client.secret, attach=client.attach),
            partial(self._superseded, call, client, version, client.attach))

    def _superseded(
        self, call: Call, client: Client, version: int, attach: int, event: Event
    ) -> None:
        if client.gone or not carried_out(event):
            self._out.refuse(call, DlockStatus.CLIENT_REMOVED_BY_SERVER)
        elif attach != client.attach:
            self._out.refuse(call, DlockStatus.ERROR)  # The same here.
        else:
            self._out.add(Note("session taken up again", {"client_id": client.id}))
            self._out.answer(call, self._welcome(client, version))

    def reinit_done(self, client: Client, call: Call) -> None:
        """The client has settled what was open. If it was the last one that a recovery waited for,
        both planes serve when it is told so."""
        status = DlockStatus.SUCCESS if client.reinitialising else DlockStatus.ERROR
        client.reinitialising = False
        self._out.status_after_all(call, status)

    # ---- Life ------------------------------------------------------------------------------------

    def renew(self, client: Client, now_ns: int) -> None:
        """Whoever speaks on the control plane lives; nobody waits for this renewal."""
        ttl_ns = self._config.session_ttl_ms * MS_NS
        if now_ns - client.renewed_ns >= ttl_ns // RENEWALS_PER_TTL:
            client.renewed_ns = now_ns
            self._out.command(
                Command(_core.DLK_COMMAND_SESSION_RENEW, slot=client.slot, id=client.id))

    def heartbeat(self, client: Client, call: Call) -> None:
        """Renews the session, answered by what the plane says."""
        client.renewed_ns = call.now_ns
        self._out.command(
            Command(_core.DLK_COMMAND_SESSION_RENEW, slot=client.slot, id=client.id),
            partial(self._done_or_removed, call))

    def _done_or_removed(self, call: Call, event: Event) -> None:
        self._out.status(call, DlockStatus.SUCCESS if carried_out(event)
                         else DlockStatus.CLIENT_REMOVED_BY_SERVER)

    def declare_lease(self, client: Client, call: Call) -> None:
        """Allows longer leases, once a restart would wait for them."""
        if call.message.lease_ms > self._config.max_lease_ms:
            self._out.status(call, DlockStatus.EINVAL)
            return
        granted_ms = lease_granted_ms(call.message.lease_ms, self._config.max_lease_ms)
        if call.message.lease_ms > client.declared_lease_ms:
            client.declared_lease_ms = granted_ms
            self._out.add(PersistLease(client.id, granted_ms))
            self._out.command(
                Command(_core.DLK_COMMAND_SESSION_LEASE, slot=client.slot, id=client.id,
                        lease_ms=granted_ms),
                partial(self._done_or_removed, call))
        else:  # An earlier declaration may still be under way.
            self._out.status_after_all(call, DlockStatus.SUCCESS)

    # ---- End -------------------------------------------------------------------------------------

    def deinit(self, client: Client, call: Call, status: DlockStatus) -> None:
        """The client leaves; answered with this when nothing of it is left."""
        self._unbind(client)
        self._close(client, call.now_ns)
        self._out.add(Note("session closed", {"client_id": client.id}, logging.DEBUG))
        self._out.status_after_all(call, status)

    def cut(self, client_id: int) -> None:
        """Closes the connections of this client, of both planes: nothing renews its session."""
        client = self._clients.get(client_id)
        if client is None:
            return
        client.attach += 1
        self._out.command(Command(
            _core.DLK_COMMAND_SESSION_SUPERSEDE, slot=client.slot, id=client.id,
            secret=client.secret, attach=client.attach))
        self._close_connection(client, "too late")

    def evict(self, client_id: int, now_ns: int) -> None:
        """Nobody waits for this client any more: it has no session from now on, if it had one."""
        client = self._clients.get(client_id)
        if client is None:
            self._out.add(PersistStruck(client_id))
            return
        self._close(client, now_ns)
        self._out.when_done(
            self._out.last_cookie, partial(self._close_connection, client, "evicted"))

    # ---- Roles: at most one session has each ---------------------------------------------------

    def has_role(self, role: str) -> bool:
        """Has a session that has not ended this role?"""
        return any(one.role == role and not one.gone for one in self._by_slot.values())

    def supersede(self, role: str, now_ns: int) -> list[int]:
        """Another client takes this role: who has it has no session from now on, nor anything that
        it held; of one that has ended, what still runs goes too. The ids of those ended now."""
        ended = []
        for client in [one for one in self._by_slot.values() if one.role == role]:
            client.role = ""
            self.gave_way.add(client.id, verifier_of(client.secret))
            if client.gone:
                self._strike(client)
                self._out.command(
                    Command(_core.DLK_COMMAND_SESSION_CLOSE, slot=client.slot, id=client.id))
                continue
            self._out.add(Note("session superseded", {**client.named, "role": role},
                               logging.WARNING))
            ended.append(client.id)
            self._close(client, now_ns)
            self._out.when_done(self._out.last_cookie, partial(
                self._close_connection, client, "another client has taken its role"))
        return ended

    def _close(self, client: Client, now_ns: int) -> None:
        """Ends a session that has not ended by itself."""
        self._strike(client)
        self._out.command(
            Command(_core.DLK_COMMAND_SESSION_CLOSE, slot=client.slot, id=client.id))
        self._drop(client, now_ns)

    def _strike(self, client: Client) -> None:
        if client.listed:
            client.listed = False
            self._out.add(PersistStruck(client.id))

    def _drop(self, client: Client, now_ns: int) -> None:
        client.gone = True
        del self._clients[client.id]
        self._leaving[client.slot] = client
        self._on_end(client, now_ns)

    def _unbind(self, client: Client) -> None:
        if client.connection is not None:
            del self._bound[client.connection]
            client.connection = None

    def ended(self, event: Event, now_ns: int) -> None:
        """SESSION_ENDED of the plane."""
        client = self._clients.get(event.id)
        if client is None or client.slot != event.slot:
            return  # It left by itself meanwhile.
        self._out.add(PersistEnded(client.id))
        self._drop(client, now_ns)
        self._out.add(Note("session expired", client.named))
        self._out.command(Command(_core.DLK_COMMAND_SESSION_END, slot=client.slot, id=client.id))
        # What was asked before is answered (CLIENT_REMOVED_BY_SERVER) before the end.
        self._out.when_done(
            self._out.last_cookie, partial(self._close_connection, client, "session expired"))

    def _close_connection(self, client: Client, reason: str) -> None:
        connection = client.connection
        if connection is not None:
            self._unbind(client)
            self._out.add(CloseConnection(connection, reason))

    def freed(self, event: Event) -> None:
        """SESSION_FREED of the plane, after SESSION_CLOSE or SESSION_END."""
        client = self._leaving.get(event.slot)
        if client is not None and client.id == event.id:
            del self._leaving[event.slot]
            self._free(client)
            self._strike(client)

    def _free(self, client: Client) -> None:
        del self._by_slot[client.slot]
        self._slots.give(client.slot)

    def check(self, leaving: Iterable[GotLocks]) -> None:
        """Asserts what must hold between any two inputs; for tests. `leaving`: what clients that
        are gone had got and is not released yet."""
        slots = [one.slot for one in self._clients.values()] + list(self._leaving)
        assert len(set(slots)) == len(slots) == self._slots.in_use
        assert sorted(slots) == sorted(self._by_slot)
        limit = self._config.max_sessions if self._config.recovery else self._config.max_clients
        assert len(self._clients) <= limit
        refs: dict[int, int] = {}
        locks = {}
        for client in self._clients.values():
            assert not client.gone
            assert client.connection is None or self._bound[client.connection] is client
        for got in [*(client.locks for client in self._clients.values()), *leaving]:
            for lock in got.values():
                refs[lock.id] = refs.get(lock.id, 0) + 1
                locks[lock.id] = lock
        assert all(lock.refs == refs[lock_id] for lock_id, lock in locks.items())
