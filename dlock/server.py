"""One server: state directory, control socket, data plane and the two threads that run them.

`Server` is what `dlock serve` and `dlock.dserver` start and stop. It decides nothing about locks;
it takes resources in order, gives them back whatever happens, and says what could not be had.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dlock import _core
from dlock.control.loop import MS_NS, SERVES_PER_TTL, ControlLoop, log_event
from dlock.control.messages import EPOCH_MAX
from dlock.control.registry import Registry
from dlock.control.registry_recovery import RecoveryPlan
from dlock.control.registry_sessions import RegistryConfig
from dlock.control.roster import with_margin_ms
from dlock.control.state_dir import StateDir, StateDirError, open_state_dir

WAIT_MODES: Final = {
    "block": _core.DLK_WAIT_BLOCK,
    "adaptive": _core.DLK_WAIT_ADAPTIVE,
    "poll": _core.DLK_WAIT_POLL,
}
BACKLOG: Final = 1024
EXTRA_CONNECTIONS: Final = 256  # above two a client: re-initialisations, tools
STOP_SECONDS: Final = 5.0  # both threads end within one; this is when we say that they do not


class ServerError(Exception):
    """The server cannot start; the text says what, why, and what to do."""


class AddressError(ServerError):
    """The address cannot be listened on."""


class StateError(ServerError):
    """The state directory cannot be used."""


class CpuSetError(ServerError):
    """A CPU set is malformed, or names CPUs that this process may not use."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything that a server can be told.

    `host` is a name or number, `port` and `data_port` 0 are any. `wait_mode` is a key of
    WAIT_MODES. `control_cpus` and `data_cpus` pin the two threads ("0-3,8"; None: not).

    With a `state_dir` a start waits for the clients that the former primary has written there;
    `take_over` says that it may start while that one has its lock still. Without one, or with one
    in which there never was a primary, it waits for `recovery_client_num` clients, whoever they
    are; its epoch is above `epoch_above`, and `settle_blindly` says whether to grant nothing for
    session_ttl and a margin first. `trusted`: any client may come, and claims of lapsed sessions
    are believed. Nobody is waited for longer than `recovery_deadline_ms`, if that is given.
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
    take_over: bool = False
    recovery_client_num: int = 0
    trusted: bool = False
    recovery_deadline_ms: int | None = None

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


def parse_cpus(text: str) -> set[int]:
    """The CPUs of a list like "0-3,8"; CpuSetError if it is none, or they are not ours."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise CpuSetError(f"{text!r} is no list of CPUs; write it like 0-3,8")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high >= 1 << 16:
            raise CpuSetError(f"{text!r} is no list of CPUs: {part.strip()} is no range")
        cpus.update(range(low, high + 1))
    allowed = os.sched_getaffinity(0)
    if not cpus <= allowed:
        missing = ", ".join(map(str, sorted(cpus - allowed)))
        raise CpuSetError(
            f"CPU {missing} of {text!r} cannot be used; this process may use "
            f"{', '.join(map(str, sorted(allowed)))}")
    return cpus


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


class Server:
    """A primary that serves from `start` on, until `stop` or until it must not go on.

    Its plane and its loop live as long as its epoch: when a client has seen a higher one, both end,
    which to all clients is like a crash, and begin anew above it, on the same control socket.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Takes every resource and starts the threads; ServerError or MemoryError if not all can
        be had, and then none is kept."""
        config.check()
        self.config = config
        self._pid = os.getpid()
        self._lock = threading.RLock()  # that a start which fails ends as every other does
        self._ended = threading.Event()
        self._stopping = False
        self._failure: str | None = None
        self._counted: Counter[str] = Counter()  # in epochs of this start that are over
        self._state: StateDir | None = None
        self._incarnation = int.from_bytes(os.urandom(8), "little")
        self._cpus = [parse_cpus(text) if text else None
                      for text in (config.control_cpus, config.data_cpus)]
        with contextlib.ExitStack() as undo:
            self._listener = listen(config.host, config.port)
            undo.callback(self._listener.close)
            self.host, self.port = self._listener.getsockname()[:2]
            self._open_state(undo)
            self._new_epoch()
            undo.callback(self._plane.free)
            undo.pop_all()
        _stop_at_exit(self)
        self._start_threads()

    # ---- Starting --------------------------------------------------------------------------------

    def _open_state(self, undo: contextlib.ExitStack) -> None:
        config = self.config
        path = config.state_dir(self.port) if callable(config.state_dir) else config.state_dir
        self.epoch = config.epoch_above + 1
        if path is not None:
            try:
                self._state = open_state_dir(
                    path, self._incarnation, config.session_ttl_ms, config.epoch_above,
                    take_over=config.take_over)
            except StateDirError as problem:
                raise StateError(str(problem)) from None
            undo.callback(self._state.close)
            self.epoch = self._state.epoch
        blindly = config.settle_blindly and self._state is None
        self.recovery = self._plan(with_margin_ms(config.session_ttl_ms) if blindly else 0)
        if self._state is not None and self.recovery is None:
            self._state.forget_former()
        elif self._state is not None and self.recovery is not None:
            self._make_room(len(self.recovery.roster))

    def _plan(self, settle_ms: int) -> RecoveryPlan | None:
        """Who is waited for, and how long nothing is granted in any case."""
        config = self.config
        started_ns = _core.now_ns()
        former = self._state.former if self._state is not None else None
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
        self._plane = self._new_plane()
        try:
            self.data_port = self._plane.port
            self._loop = self._new_loop()
        except BaseException:
            self._plane.free()
            raise
        self._threads = [
            threading.Thread(target=self._run, args=(name, body, cpu), daemon=True,
                             name=f"dlock-{name}-{self.port}")
            for name, body, cpu in (("control", self._loop.run, self._cpus[0]),
                                    ("data", self._run_plane, self._cpus[1]))
        ]
        self._running = len(self._threads)

    def _new_plane(self) -> _core.Plane:
        config = self.config
        readiness = _core.DLK_READY_ALL if self.recovery is None else _core.DLK_READY_RECOVERING
        try:
            return _core.Plane(_core.PlaneConfig(
                limits=config.engine_limits,
                epoch=self.epoch,
                wait_mode=WAIT_MODES[config.wait_mode],
                ready=readiness,
                host=self.host,
                port=config.data_port,
                confirm_ms=config.session_ttl_ms // SERVES_PER_TTL if self._state else 0,
            ))
        except OSError as problem:
            raise AddressError(
                f"cannot listen on {self.host}:{config.data_port} for data: {problem.strerror}. "
                f"Choose another data port, or 0 for any") from None

    def _new_loop(self) -> ControlLoop:
        config = self.config
        registry = Registry(RegistryConfig(
            random_bytes=os.urandom,
            data_port=self.data_port,
            epoch=self.epoch,
            incarnation=self._incarnation,
            max_locks=config.max_locks,
            max_clients=config.max_clients,
            max_objects=config.max_objects,
            session_ttl_ms=config.session_ttl_ms,
            max_lease_ms=config.max_lease_ms,
            recovery=self.recovery,
            durable=self._state is not None,
            trusted=config.trusted,
        ))
        return ControlLoop(self._listener, self._plane, registry, self._state,
                           config.session_ttl_ms, 2 * config.max_clients + EXTRA_CONNECTIONS)

    def _start_threads(self) -> None:
        started = 0
        try:
            for thread in self._threads:
                thread.start()
                started += 1
        except RuntimeError as problem:
            self._threads = self._threads[:started]
            self._loop.stop()
            self._plane.stop()
            for _ in range(self._running - started):
                self._thread_ended()
            raise ServerError(f"no thread can be started: {problem}") from None

    # ---- The threads -----------------------------------------------------------------------------

    def _run(self, name: str, body: Callable[[], None], cpus: set[int] | None) -> None:
        _core.block_signals()
        try:
            if cpus is not None:
                os.sched_setaffinity(0, cpus)
            body()
        except StateDirError as problem:
            self._failed(str(problem))
        except Exception as problem:
            logging.getLogger("dlock.control").exception("the %s thread broke", name)
            self._failed(f"the {name} thread broke: {problem!r}")
        finally:
            self._loop.stop()
            self._plane.stop()
            self._thread_ended()

    def _run_plane(self) -> None:
        error = self._plane.run()
        if error:
            self._failed(f"the data plane cannot go on: {os.strerror(error)}")

    def _failed(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
        log_event(logging.CRITICAL, "stops serving", {"port": self.port, "reason": reason})

    def _thread_ended(self) -> None:
        """The last one out begins anew above the epoch that a client has seen, or gives everything
        back."""
        with self._lock:
            self._running -= 1
            if self._running:
                return
            self._last_stats = self._loop.stats()
            self._plane.free()
            above = self._loop.epoch_above
            again = above is not None and not self._stopping and self._failure is None
            if again and above is not None and self._begin_anew(above):
                return
            self._listener.close()
            if self._state is not None:
                self._state.close()
        self._ended.set()

    def _begin_anew(self, epoch_above: int) -> bool:
        """A recovery of its own: our clients and those of the newer primary alike come back within
        session_ttl and a margin, or believe in nothing any more. One that was not ready yet has
        granted nothing, and waits for whom it waited for before. False: it cannot be."""
        self._counted.update({name: count for name, count in self._last_stats.items()
                              if name.isupper()})
        self.epoch = epoch_above + 1
        self._incarnation = int.from_bytes(os.urandom(8), "little")
        served = self.recovery is None or self._loop.recovered
        blindly = served or self.config.settle_blindly
        self.recovery = self._plan(with_margin_ms(self.config.session_ttl_ms) if blindly else 0)
        try:
            self._new_epoch()
        except (ServerError, MemoryError) as problem:
            self._failed(str(problem))
            return False
        try:
            self._start_threads()
        except ServerError as problem:
            self._failed(str(problem))  # What there is of it ends as every thread does.
        return True

    # ---- Its owner -------------------------------------------------------------------------------

    @property
    def failure(self) -> str | None:
        """Why it stopped by itself."""
        return self._failure

    @property
    def state_path(self) -> Path | None:
        """Its state directory."""
        return self._state.path if self._state else None

    @property
    def address(self) -> str:
        """HOST:PORT of the control plane, as a client would write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def wait(self, seconds: float) -> bool:
        """True once it has ended."""
        return self._ended.wait(seconds)

    def stop(self) -> None:
        """Ends both threads, wakes every waiter, gives the ports back. To its clients this is like
        a crash: what they hold they still believe in."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._stopping = True
            if self._running:
                self._loop.stop()
                self._plane.stop()
        if not self._ended.wait(STOP_SECONDS):
            log_event(logging.CRITICAL, "a thread does not end", {"port": self.port})
        for thread in self._threads:
            thread.join(0 if not self._ended.is_set() else STOP_SECONDS)

    def stats(self) -> dict[str, int]:
        """Counters (capital names) and gauges (small names) of both planes; any thread."""
        with self._lock:
            stats = self._loop.stats() if self._running else dict(self._last_stats)
            counted = {name: stats.get(name, 0) + count for name, count in self._counted.items()}
        return {**stats, **counted}


_servers: weakref.WeakSet[Server] = weakref.WeakSet()
_at_exit = threading.Lock()


def _stop_at_exit(server: Server) -> None:
    """A program that forgets to stop its server still ends."""
    with _at_exit:
        if not _servers:
            atexit.unregister(_stop_all)
            atexit.register(_stop_all)
        _servers.add(server)


def _stop_all() -> None:
    for server in list(_servers):
        server.stop()
