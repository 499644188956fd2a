"""One primary without its threads: state directory, control socket, data plane, control loop.

`Server` runs one with two threads; a program that has one thread for everything takes the turns of
`loop` and `plane` itself. It decides nothing about locks: it takes resources in order, gives them
back whatever happens, and says what could not be had. It starts no thread and waits for nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dlock import _core, _plane, _verbs
from dlock.control.durable import Durable
from dlock.control.durable_files import Home, prepare
from dlock.control.log import log_event
from dlock.control.loop import MS_NS, SERVES_PER_TTL, ControlLoop
from dlock.control.messages import EPOCH_MAX
from dlock.control.registry import Registry
from dlock.control.registry_recovery import RecoveryPlan
from dlock.control.registry_sessions import RegistryConfig
from dlock.control.roster import with_margin_ms
from dlock.control.state_dir import StateDir, StateDirError, open_state_dir
from dlock.rdma.instead import stands_in

WAIT_MODES: Final = {
    "block": _core.DLK_WAIT_BLOCK,
    "adaptive": _core.DLK_WAIT_ADAPTIVE,
    "poll": _core.DLK_WAIT_POLL,
}
TRANSPORTS: Final = _verbs.TRANSPORTS
BACKLOG: Final = 1024
EXTRA_CONNECTIONS: Final = 256  # above two a client: re-initialisations, tools


class ServerError(Exception):
    """The server cannot start; the text says what, why, and what to do."""


class AddressError(ServerError):
    """The address cannot be listened on."""


class TransportError(ServerError):
    """RDMA is asked for and cannot be had, or what is asked for is no device or GID."""


class StateError(ServerError):
    """The state directory cannot be used."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything that a server can be told.

    `host` is a name or number, `port` and `data_port` 0 are any. `wait_mode` is a key of
    WAIT_MODES. `control_cpus` and `data_cpus` pin the two threads ("0-3,8"; None: not).

    `transport` is one of TRANSPORTS. TCP is always served; "auto" serves RDMA too where it can be
    had, "verbs" does not start where it cannot, "tcp" does not look for it. `device` is the name of
    an RDMA device, `gid` one of its addresses (IPv4, IPv6, or a GID of 16 bytes); None: the best
    there is.

    With a `state_dir` a start waits for the clients that the former primary has written there;
    `take_over` says that it may start while that one has its lock still. Without one, or with one
    in which there never was a primary, it waits for `recovery_client_num` clients, whoever they
    are; its epoch is above `epoch_above`, and `settle_blindly` says whether to grant nothing for
    session_ttl and a margin first. `trusted`: any client may come, and claims of lapsed sessions
    are believed. Nobody is waited for longer than `recovery_deadline_ms`, if that is given.
    `accept_empty_state`: what the directory has of durable locks and records counts, although it
    may be older than what was promised.
    """

    host: str = "127.0.0.1"
    port: int = _core.DLK_CONTROL_PORT_DEFAULT
    data_port: int = 0
    max_locks: int = _core.DLK_MAX_LOCKS_DEFAULT
    max_clients: int = _core.DLK_MAX_CLIENTS_DEFAULT
    max_objects: int = _core.DLK_MAX_OBJECTS_DEFAULT
    session_ttl_ms: int = _core.DLK_SESSION_TTL_MS_DEFAULT
    max_lease_ms: int = _core.DLK_MAX_LEASE_MS_DEFAULT
    wait_mode: str = "adaptive"
    control_cpus: str | None = None
    data_cpus: str | None = None
    state_dir: Path | Callable[[int], Path | None] | None = None
    epoch_above: int = 0
    settle_blindly: bool = False
    accept_empty_state: bool = False
    take_over: bool = False
    recovery_client_num: int = 0
    trusted: bool = False
    recovery_deadline_ms: int | None = None
    transport: str = "auto"
    device: str | None = None
    gid: str | bytes | None = None

    def check(self) -> None:
        """ServerError names the first value that is out of range."""
        limits = (
            ("port", self.port, 0, 65535),
            ("data port", self.data_port, 0, 65535),
            ("max_locks", self.max_locks, 1, _core.DLK_MAX_LOCKS_LIMIT),
            ("max_clients", self.max_clients, 1, _core.DLK_MAX_CLIENTS_LIMIT),
            ("max_objects", self.max_objects, 1, _core.DLK_MAX_OBJECTS_LIMIT),
            ("session_ttl (ms)", self.session_ttl_ms, 1000, 2**31 - 1),
            ("max_lease (ms)", self.max_lease_ms, 1, 2**31 - 1),
            ("the epoch shown", self.epoch_above, 0, EPOCH_MAX - 1),
            ("recovery_client_num", self.recovery_client_num, 0, self.max_clients),
        )
        for name, value, low, high in limits:
            if not low <= value <= high:
                raise ServerError(f"{name} is {value}; it must be in {low}..{high}")
        least_ms = with_margin_ms(self.session_ttl_ms)
        if self.recovery_deadline_ms is not None and self.recovery_deadline_ms < least_ms:
            raise ServerError(
                f"the recovery deadline is {self.recovery_deadline_ms} ms; it must not be under "
                f"session_ttl and the margin, {least_ms} ms: until then clients believe in what "
                f"they hold")
        if self.wait_mode not in WAIT_MODES:
            raise ServerError(
                f"the waiting mode is {self.wait_mode!r}, not one of {', '.join(WAIT_MODES)}")
        if self.transport not in TRANSPORTS:
            raise TransportError(
                f"the transport is {self.transport!r}, not one of {', '.join(TRANSPORTS)}")
        _ = self.wish

    @property
    def wish(self) -> _verbs.Wish:
        """The RDMA port that is asked for."""
        try:
            return _verbs.wish_of(self.device, self.gid)
        except ValueError as problem:
            raise TransportError(str(problem)) from None

    @property
    def engine_limits(self) -> _core.Limits:
        """Sizes of the engine's tables. Entries are holds, waiters and tickets together: room for
        two a lock, and for every client to wait at some."""
        return _core.Limits(
            max_locks=self.max_locks,
            max_sessions=2 * self.max_clients,
            max_entries=2 * self.max_locks + 64 * self.max_clients,
            max_cells=self.max_objects,
            max_lease_ms=self.max_lease_ms,
            ticket_claim_ms=_core.DLK_TICKET_CLAIM_MS,
        )


def listen(host: str, port: int) -> socket.socket:
    """A listening control socket; AddressError if the address cannot be had."""
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as problem:
        raise AddressError(f"{host} is no address to listen on: {problem}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as problem:
        listener.close()
        raise AddressError(
            f"cannot listen on {host}:{port}: {problem.strerror}. Choose another port, or stop "
            f"what listens there") from None
    return listener


class Primary:
    """Everything of a primary but the threads that take its turns.

    `loop`, `plane` and `registry` live as long as an epoch. When a client has seen a higher one
    (`loop.epoch_above`), the loop takes no further turn; whoever takes the turns then ends both,
    which to all clients is like a crash, and calls `begin_anew`: the next ones listen on the same
    sockets.
    """

    def __init__(self, config: ServerConfig, *, listener: socket.socket | None = None,
                 data_listen_fd: int | None = None,
                 random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        """Takes every resource; ServerError or MemoryError if not all can be had, and then none is
        kept. A `listener` is its control socket from now on, whatever happens; of `data_listen_fd`,
        where data connections come in, it takes a copy. Both listen already, are of any family, and
        stand in for the host and the ports of the configuration, which are then what clients are
        told. `random_bytes`: where secrets and numbers come from that nobody may guess."""
        self.config = config
        self.state: StateDir | None = None
        self.durable: Durable | None = None
        self._random_bytes = random_bytes
        self._counted: Counter[str] = Counter()  # in epochs of this start that are over
        self._last_stats: dict[str, int] | None = None  # once there is no plane
        self._served = False  # in an epoch that is over
        self._data_listen_fd: int | None = None
        with contextlib.ExitStack() as undo:
            if listener is not None:
                undo.callback(listener.close)
            config.check()
            self.incarnation = self._new_incarnation()
            self._listener = listener or listen(config.host, config.port)
            undo.callback(self._listener.close)
            self.host, self.port = config.host, config.port
            if self._listener.family in (socket.AF_INET, socket.AF_INET6):
                self.host, self.port = self._listener.getsockname()[:2]
            if data_listen_fd is not None:
                self._data_listen_fd = self._copy(data_listen_fd)
                undo.callback(os.close, self._data_listen_fd)
            self._open_state(undo)
            self._new_epoch()
            undo.pop_all()

    # ---- Starting --------------------------------------------------------------------------------

    def _new_incarnation(self) -> int:
        return int.from_bytes(self._random_bytes(8), "little")

    def _copy(self, data_listen_fd: int) -> int:
        try:
            return os.dup(data_listen_fd)
        except OSError as problem:
            raise AddressError(f"descriptor {data_listen_fd}, to listen on for data, cannot be "
                               f"used: {problem.strerror}") from None

    def _open_state(self, undo: contextlib.ExitStack) -> None:
        config = self.config
        path = config.state_dir(self.port) if callable(config.state_dir) else config.state_dir
        self.epoch = config.epoch_above + 1
        if path is not None:
            try:
                self.state = open_state_dir(
                    path, self.incarnation, config.session_ttl_ms, config.epoch_above,
                    take_over=config.take_over)
            except StateDirError as problem:
                raise StateError(str(problem)) from None
            undo.callback(self.state.close)
            self.epoch = self.state.epoch
            self.durable = self._open_durable(self.state)
        blindly = config.settle_blindly and self.state is None
        self.recovery = self._plan(with_margin_ms(config.session_ttl_ms) if blindly else 0)
        if self.state is not None and self.recovery is None:
            self.state.forget_former()
        elif self.state is not None and self.recovery is not None:
            self._make_room(len(self.recovery.roster))

    def _open_durable(self, state: StateDir) -> Durable:
        """The store of what is durable, which its thread opens. Where it cannot be had the rest is
        served."""
        above, last = self.config.epoch_above, state.last_epoch
        doubt = (f"the address file shows epoch {above}, and the state directory {state.path} "
                 f"knows of {last or 'none'}" if above > last else "")
        home = Home(state.path, state.epoch, self.incarnation, state.durable, doubt,
                    self.config.accept_empty_state)
        try:
            prepare(home)
            state.declare_durable()
        except (sqlite3.Error, OSError) as problem:
            log_event(logging.ERROR, "no durable store can be made", {
                "path": str(state.path), "problem": str(problem)})
        return Durable(home, state.confirm, log_event)

    def _plan(self, settle_ms: int) -> RecoveryPlan | None:
        """Who is waited for, and how long nothing is granted in any case."""
        config = self.config
        started_ns = _core.now_ns()
        former = self.state.former if self.state is not None else None
        if former is None:
            if not config.recovery_client_num and not settle_ms:
                return None
            return RecoveryPlan(
                started_ns, config.session_ttl_ms, count=config.recovery_client_num,
                trusted=config.trusted, not_before_ns=started_ns + settle_ms * MS_NS,
                deadline_ms=config.recovery_deadline_ms)
        settle_ms = max(former.serves_ms, former.settle_ms)
        if not former.roster and not settle_ms:
            return None
        return RecoveryPlan(
            started_ns, former.session_ttl_ms or config.session_ttl_ms, former.roster,
            trusted=config.trusted, not_before_ns=started_ns + settle_ms * MS_NS,
            deadline_ms=config.recovery_deadline_ms, reread=not former.stopped)

    def _make_room(self, clients: int) -> None:
        """Everybody who had a session can come back."""
        if clients > self.config.max_clients:
            log_event(logging.WARNING, "more clients than max_clients are waited for",
                      {"max_clients": self.config.max_clients, "raised_to": clients})
            self.config = replace(self.config, max_clients=clients)

    def _new_epoch(self) -> None:
        """The parts that end with an epoch."""
        self.plane = self._new_plane()
        try:
            self.data_port = self.plane.port
            self.verbs_port = self._open_verbs()
            self.registry = self._new_registry()
            self.loop = ControlLoop(
                self._listener, self.plane, self.registry, self.state, self.config.session_ttl_ms,
                2 * self.config.max_clients + EXTRA_CONNECTIONS, self.durable)
        except BaseException:
            self.plane.free()
            raise
        self._last_stats = None

    def _new_plane(self) -> _plane.Plane:
        config = self.config
        readiness = _core.DLK_READY_ALL if self.recovery is None else _core.DLK_READY_RECOVERING
        own = self._data_listen_fd
        listen_fd = -1 if own is None else self._copy(own)  # the plane's, whatever happens
        try:
            return _plane.Plane(_plane.PlaneConfig(
                limits=config.engine_limits,
                epoch=self.epoch,
                wait_mode=WAIT_MODES[config.wait_mode],
                ready=readiness,
                host=self.host if own is None else "",
                port=config.data_port,
                confirm_ms=config.session_ttl_ms // SERVES_PER_TTL if self.state else 0,
                listen_fd=listen_fd,
            ))
        except OSError as problem:
            raise AddressError(
                f"cannot listen on {self.host}:{config.data_port} for data: {problem.strerror}. "
                f"Choose another data port, or 0 for any") from None

    def _open_verbs(self) -> _verbs.Port | None:
        """The plane serves RDMA at this port; None: only TCP. Says in one line which, and why. A
        server that has served goes on over TCP: nobody is helped by its end."""
        transport = self.config.transport
        port, why = None, "nothing else is asked for"
        if transport != "tcp":
            try:
                if stands_in():
                    port, why = self._open_pyverbs()
                    opened = True
                else:
                    port = _verbs.choose(self.config.wish)
                    opened, why = self.plane.verbs_open(port)
            except _verbs.VerbsError as problem:
                opened, why = False, str(problem)
            if not opened and transport == "verbs" and self._last_stats is None:
                raise TransportError(
                    f"RDMA is asked for and cannot be had: {why}. `dlock rdma` says what is "
                    f"missing; with the transport auto or tcp it starts without")
            port = port if opened else None
        missed = port is None and transport == "verbs"
        log_event(logging.WARNING if missed else logging.INFO, "transport", {
            "serves": "TCP" if port is None else f"RDMA at {port}, and TCP",
            "asked": transport, "why": why})
        return port

    def _open_pyverbs(self) -> tuple[_verbs.Port, str]:
        """pyverbs stands in for the core: a thread of its own, and connections to the data port.
        Imported here: who needs neither shall not pay for it. VerbsError."""
        from dlock.rdma.ports import choose_port
        from dlock.rdma.server import PairServer

        port = choose_port(self.config.wish)
        pairs = PairServer(port, self.host, self.data_port, self.config.max_clients)
        self.plane.verbs_instead(pairs)
        return port, pairs.text

    def _new_registry(self) -> Registry:
        config = self.config
        return Registry(RegistryConfig(
            random_bytes=self._random_bytes,
            data_port=self.data_port,
            epoch=self.epoch,
            incarnation=self.incarnation,
            max_locks=config.max_locks,
            max_clients=config.max_clients,
            max_objects=config.max_objects,
            session_ttl_ms=config.session_ttl_ms,
            max_lease_ms=config.max_lease_ms,
            recovery=self.recovery,
            durable=self.state is not None,
            trusted=config.trusted,
            verbs=self.verbs_port is not None,
        ))

    # ---- Its life --------------------------------------------------------------------------------

    def begin_anew(self) -> None:
        """Above the epoch that a client has seen, after the last turns of both parts. A recovery of
        its own: our clients and those of the newer primary alike come back within session_ttl and a
        margin, or believe in nothing any more. One that has granted nothing in any epoch yet waits
        for whom it waited for before. ServerError or MemoryError: it cannot be; `close`."""
        assert self.loop.epoch_above is not None, "no client has seen a higher epoch"
        last_stats = self._end_epoch()
        self._counted.update({name: count for name, count in last_stats.items()
                              if name.isupper()})
        self.epoch = self.loop.epoch_above + 1
        self.incarnation = self._new_incarnation()
        self._served |= (self.recovery is None or self.loop.recovered
                         or last_stats["GRANTS"] > 0)  # some are given before all are back
        blindly = self._served or self.config.settle_blindly
        self.recovery = self._plan(with_margin_ms(self.config.session_ttl_ms) if blindly else 0)
        self._new_epoch()

    def _end_epoch(self) -> dict[str, int]:
        if self._last_stats is None:
            self.loop.end()
            self._last_stats = self._stats_now()
            self.plane.free()
        return self._last_stats

    def _stats_now(self) -> dict[str, int]:
        stats = self.loop.stats()
        counters = self.plane.pair_counters
        return {**stats, **{name: stats.get(name, 0) + n for name, n in counters.items()}}

    def release_state(self) -> None:
        """Lets another primary have the state directory, as the end of this process would."""
        if self.state is not None:
            self.state.close()

    def close(self) -> None:
        """Gives everything back, after the last turns; again: nothing. To its clients this is like
        a crash: what they hold they still believe in."""
        self._end_epoch()
        self._listener.close()
        if self._data_listen_fd is not None:
            os.close(self._data_listen_fd)
            self._data_listen_fd = None
        self.release_state()

    def stats(self) -> dict[str, int]:
        """Counters (capital names) and gauges (small names) of both planes; any thread, but not
        while it begins anew or closes."""
        stats = self._stats_now() if self._last_stats is None else self._last_stats
        return {**stats,
                **{name: stats.get(name, 0) + count for name, count in self._counted.items()}}
