"""One server: a primary and the threads that take its turns.

`Server` is what `dlock serve` and `dlock.dserver` start and stop. What it has, and what happens
when it cannot have it, is `dlock.primary`'s; here is who runs it, until when.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dlock import _core
from dlock.control.log import log_event
from dlock.control.registry_recovery import RecoveryPlan
from dlock.control.state_dir import StateDirError
from dlock.primary import (
    TRANSPORTS,
    WAIT_MODES,
    AddressError,
    Primary,
    ServerConfig,
    ServerError,
    StateError,
    TransportError,
    listen,
)

__all__ = [
    "TRANSPORTS", "WAIT_MODES", "AddressError", "CpuSetError", "Server", "ServerConfig",
    "ServerError", "StateError", "TransportError", "listen", "parse_cpus",
]

STOP_SECONDS: Final = 5.0  # both threads end within one; this is when we say that they do not


class CpuSetError(ServerError):
    """A CPU set is malformed, or names CPUs that this process may not use."""


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


class Server:
    """A primary that serves from `start` on, until `stop` or until it must not go on.

    Its threads live as long as its epoch: when a client has seen a higher one, both end, and begin
    anew above it, on the same control socket.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Takes every resource and starts the threads; ServerError or MemoryError if not all can
        be had, and then none is kept."""
        self._pid = os.getpid()
        self._lock = threading.RLock()  # that a start which fails ends as every other does
        self._ended = threading.Event()
        self._stopping = False
        self._failure: str | None = None
        self._cpus = [parse_cpus(text) if text else None
                      for text in (config.control_cpus, config.data_cpus)]
        self._primary = Primary(config)
        _stop_at_exit(self)
        self._start_threads()

    # ---- The threads -----------------------------------------------------------------------------

    def _start_threads(self) -> None:
        durable = self._primary.durable
        bodies = [("control", self._primary.loop.run, self._cpus[0]),
                  ("data", self._run_plane, self._cpus[1])]
        if durable is not None:
            bodies.append(("durable", durable.run, self._cpus[0]))
        self._threads = [
            threading.Thread(target=self._run, args=(name, body, cpu), daemon=True,
                             name=f"dlock-{name}-{self.port}")
            for name, body, cpu in bodies
        ]
        self._running = len(self._threads)
        started = 0
        try:
            for thread in self._threads:
                thread.start()
                started += 1
        except RuntimeError as problem:
            self._threads = self._threads[:started]
            self._end_all()
            for _ in range(self._running - started):
                self._thread_ended()
            raise ServerError(f"no thread can be started: {problem}") from None

    def _end_all(self) -> None:
        self._primary.loop.stop()
        self._primary.plane.stop()
        if self._primary.durable is not None:
            self._primary.durable.stop()

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
            self._end_all()
            self._thread_ended()

    def _run_plane(self) -> None:
        error = self._primary.plane.run()
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
            above = self._primary.loop.epoch_above
            again = above is not None and not self._stopping and self._failure is None
            if again and self._begin_anew():
                return
            self._primary.close()
        self._ended.set()

    def _begin_anew(self) -> bool:
        """False: it cannot be."""
        try:
            self._primary.begin_anew()
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
    def config(self) -> ServerConfig:
        """As it serves: with room for all whom it waits for."""
        return self._primary.config

    @property
    def host(self) -> str:
        """Where its control plane listens, as a number."""
        return self._primary.host

    @property
    def port(self) -> int:
        """Of its control plane."""
        return self._primary.port

    @property
    def data_port(self) -> int:
        """Of its data plane; another one in each epoch, unless the configuration names it."""
        return self._primary.data_port

    @property
    def transport(self) -> str:
        """What its data plane serves: "tcp", or "verbs": that too."""
        return "tcp" if self._primary.verbs_port is None else "verbs"

    @property
    def rdma(self) -> str | None:
        """Where it serves RDMA, in words; None: nowhere."""
        port = self._primary.verbs_port
        return None if port is None else str(port)

    @property
    def epoch(self) -> int:
        """The one that it serves in, or recovers for."""
        return self._primary.epoch

    @property
    def recovery(self) -> RecoveryPlan | None:
        """Whom it waits for, or has waited for, before it is ready; None: nobody."""
        return self._primary.recovery

    @property
    def failure(self) -> str | None:
        """Why it stopped by itself."""
        return self._failure

    @property
    def state_path(self) -> Path | None:
        """Its state directory."""
        return self._primary.state.path if self._primary.state else None

    @property
    def address(self) -> str:
        """HOST:PORT of the control plane, as a client would write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def wait(self, seconds: float) -> bool:
        """True once it has ended."""
        return self._ended.wait(seconds)

    def stop(self) -> None:
        """Ends its threads, wakes every waiter, gives the ports back. To its clients this is like
        a crash: what they hold they still believe in."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._stopping = True
            if self._running:
                self._end_all()
        if not self._ended.wait(STOP_SECONDS):
            log_event(logging.CRITICAL, "a thread does not end", {"port": self.port})
        for thread in self._threads:
            thread.join(0 if not self._ended.is_set() else STOP_SECONDS)

    def stats(self) -> dict[str, int]:
        """Counters (capital names) and gauges (small names) of both planes; any thread."""
        with self._lock:
            return self._primary.stats()


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
