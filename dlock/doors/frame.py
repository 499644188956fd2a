"""The life of a door process: the loop, the client, the signals, the ready file, the exit code.

    prepare -> connect, as long as it takes -> start -> ready file -> (a signal) -> stop -> close

It speaks no protocol, and starts no thread. docs/doors.md says what an operator sees of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from dlock import aio
from dlock.doors.door import Door, DoorError, Site
from dlock.doors.names import ROLE, Names
from dlock.errors import DlockError

EXIT_CLEAN, EXIT_FAILED = 0, 1
TRY_FIRST_S: Final = 2.0  # to reach the server; after that it is said that the door waits
TRY_S: Final = 10.0
PAUSE_S: Final = 0.5
LOOK_S: Final = 60.0  # between two looks for names that are idle
STOP_S: Final = 10.0  # for the door's own end, and again for leaving the server
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """What the frame is told: `address` as `connect` takes it, the namespace, the ready file."""

    address: str | None
    namespace: str
    ready_file: Path | None = None


def run(door: Door, place: Place, log: logging.Logger) -> int:
    """Runs the door until a signal ends it; returns the exit code. DoorError: it cannot begin.
    ValueError: the address or the namespace is none."""
    names = Names(place.namespace)
    _allow_descriptors()
    loop = _new_loop()
    try:
        return loop.run_until_complete(_Life(door, place, names, log, loop).whole())
    finally:
        loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where the extra is there."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return made


def _allow_descriptors() -> None:
    """A descriptor a connection: takes what the hard limit gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems call more than they give
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Life:
    def __init__(self, door: Door, place: Place, names: Names, log: logging.Logger,
                 loop: asyncio.AbstractEventLoop) -> None:
        self._door = door
        self._place = place
        self._names = names
        self._log = log
        self._loop = loop
        self._counters: Counter[str] = Counter()
        self._ended = asyncio.Event()
        self._failure: str | None = None

    async def whole(self) -> int:
        ready = ReadyFile(self._place.ready_file)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._loop.add_signal_handler(number, self._signalled)
        self._loop.add_signal_handler(signal.SIGUSR1, self._tell_counters)
        client = None
        try:
            await self._door.prepare()
            client = await self._connect()
            if client is not None:
                await self._serve(client, ready)
        except DoorError:
            self._signalled()  # nobody starts anything any more
            raise
        finally:
            ready.remove()
            await self._within("to stop", self._door.stop())
            if client is not None:
                await self._within("to leave the server", client.close())
        return EXIT_FAILED if self._failure else EXIT_CLEAN

    async def _serve(self, client: aio.Client, ready: ReadyFile) -> None:
        site = Site(client, self._names.namespace, self._names, self._counters, self._log,
                    self._loop, self._end)
        listeners = await self._or_end(self._door.start(site))
        if listeners is None:
            return
        ready.write(listeners)
        self._log.info("door serves kind=%s namespace=%s listeners=%s server=%s", self._door.kind,
                       self._names.namespace, ",".join(listeners), client.address)
        # What is there now stays for ever; the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        await self._or_end(self._tidy(client, self._door.idle_names_s))
        self._tell_counters()

    async def _connect(self) -> aio.Client | None:
        """The client, however long the server lets us wait, also one that is full; None: ended
        before that."""
        role = ROLE.format(kind=self._door.kind, namespace=self._names.namespace)
        told: type[DlockError] | None = None
        while not self._ended.is_set():
            try:
                return await self._or_end(self._enter(role, TRY_S if told else TRY_FIRST_S))
            except DlockError as problem:
                if type(problem) is not told:
                    self._log.warning("door waits for its server: %s", problem)
                told = type(problem)
            await self._or_end(asyncio.sleep(PAUSE_S))
        return None

    async def _enter(self, role: str, within_s: float) -> aio.Client:
        return await aio.connect(
            self._place.address, timeout=within_s, name=f"dlock door {self._door.kind}",
            wait="block" if os.environ.get("DLOCK_WAIT") == "block" else "adaptive", role=role,
            on_superseded=lambda: self._end(f"another door has taken its place ({role})"))

    async def _tidy(self, client: aio.Client, idle_s: float | None) -> None:
        """Gives up names that are idle, for as long as the door serves. A table of names that only
        grows would be full one day."""
        while True:
            await asyncio.sleep(LOOK_S)
            if idle_s is not None:
                with contextlib.suppress(DlockError):  # its end is told elsewhere
                    client.let_go_idle(idle_s)

    # ---- The end ---------------------------------------------------------------------------------

    def _signalled(self) -> None:
        self._ended.set()

    def _end(self, why: str) -> None:
        """Site.end"""
        if not self._ended.is_set():
            self._log.error("door ends: %s", why)
            self._failure = why
            self._ended.set()

    async def _or_end(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Its value; None if the door is to end before there is one: then it was cancelled."""
        task = self._loop.create_task(work)
        ended = self._loop.create_task(self._ended.wait())
        try:
            await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            return None
        finally:
            for one in (task, ended):
                one.cancel()
            await asyncio.wait({task, ended})

    async def _within(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        """Waits for a part of the end, not for ever, and goes on if it fails."""
        try:
            await asyncio.wait_for(work, STOP_S)
        except asyncio.TimeoutError:
            self._log.error("door took longer than %g s %s", STOP_S, what)
        except Exception:
            self._log.exception("door failed %s", what)

    def _tell_counters(self) -> None:
        """One line; SIGUSR1 asks for it."""
        told = " ".join(f"{name}={count}" for name, count in sorted(self._counters.items()))
        self._log.info("door counters kind=%s namespace=%s %s", self._door.kind,
                       self._names.namespace, told)


class ReadyFile:
    """The file that appears, whole, when every listener accepts, a line for each, and goes with
    the door. One that a killed door has left is removed at the start."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._content = b""
        if path is not None:
            self._fresh = path.with_name(f".{path.name}.{os.getpid()}")
            self._try(path, self._prepare)

    def _prepare(self) -> None:
        """Told now, what cannot be done later costs no predecessor its place."""
        assert self._path is not None
        self._fresh.write_bytes(b"")
        self._fresh.unlink()
        self._path.unlink(missing_ok=True)

    def write(self, listeners: list[str]) -> None:
        """DoorError: it cannot be written."""
        self._content = "".join(f"{one}\n" for one in listeners).encode()
        if self._path is not None:
            self._try(self._path, self._replace)

    def _replace(self) -> None:
        assert self._path is not None
        self._fresh.write_bytes(self._content)
        self._fresh.replace(self._path)

    def _try(self, path: Path, what: Callable[[], None]) -> None:
        try:
            what()
        except OSError as problem:
            with contextlib.suppress(OSError):
                self._fresh.unlink(missing_ok=True)
            raise DoorError(f"dlock door: the ready file {path} cannot be written: "
                            f"{problem.strerror}. Choose another place for it\n",
                            EXIT_FAILED) from None

    def remove(self) -> None:
        """At the end, if it is still ours."""
        if self._path is not None and self._content:
            with contextlib.suppress(OSError):
                if self._path.read_bytes() == self._content:
                    self._path.unlink()
