"""The primary of a drill: `dlock serve` in a process of its own that is killed, stopped and started
again on the same ports and the same state directory; or one of the operator's, by his commands."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final, Protocol, TypeVar

from dlock.admin import Admin, RecoveryStatus
from dlock.drill import child
from dlock.drill.places import HOMES, addresses
from dlock.drill.records import (
    PrimaryContinued,
    PrimaryExited,
    PrimaryKilled,
    PrimaryListening,
    PrimaryReady,
    PrimaryStarted,
    PrimaryStopped,
    Problem,
    Writer,
    now_ns,
)
from dlock.errors import ConnectError, DlockError

START_S: Final = 60.0
READY_S: Final = 120.0
COMMAND_S: Final = 120.0
ASK_S: Final = 0.5  # of looks, which are repeated
ANSWER_S: Final = 30.0  # of questions that are asked once
ASK_AGAIN_S: Final = 0.02
LOG_BYTES_SHOWN: Final = 2000
STATUS_REPLACED: Final = 1  # of a primary that found another one in its place
_GREETING: Final = re.compile(r"dlock serves on .* epoch (\d+),")
_T = TypeVar("_T")


class DrillError(Exception):
    """The drill cannot go on; the text says why."""


class Primaries(Protocol):
    """What faults do to a primary, and what the drill asks about it."""

    @property
    def newest(self) -> str: ...  # the name of the newest one
    # Of the newest one; ConnectError: it did not answer in so many seconds.
    def asked(self, question: Callable[[Admin], _T], seconds: float = ...) -> _T: ...
    def kill(self) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def go_on(self) -> None: ...
    def close(self) -> None: ...


def await_ready(primaries: Primaries, writer: Writer,
                seconds: float = READY_S) -> RecoveryStatus | None:
    """Until the newest one grants everything, which is written down. None: not in this time."""

    def ready(admin: Admin) -> RecoveryStatus | None:
        return admin.recovery() if admin.await_ready(ASK_S) else None

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            status = primaries.asked(ready, ASK_S)
        except ConnectError:
            time.sleep(ASK_AGAIN_S)
            continue
        if status is not None:
            writer.write(PrimaryReady(
                now_ns(), primaries.newest, status.expected, status.back, status.evicted))
            return status
    return None


def recovery_of(primaries: Primaries) -> RecoveryStatus | None:
    """How far the newest one is; None: it does not answer."""
    try:
        return primaries.asked(lambda admin: admin.recovery(), ASK_S)
    except DlockError:
        return None


# ---- Own ones ------------------------------------------------------------------------------------


class _Process:
    """One process of a primary."""

    def __init__(self, name: str, host: str, popen: subprocess.Popen[bytes]) -> None:
        self.name, self.host, self.popen = name, host, popen
        self.listens = self.stopped = self.killed = False

    @property
    def clean_ends(self) -> tuple[int, ...]:
        """What SIGTERM may come to; before it listens, it need not have a handler yet. A drill may
        be ended in the moment in which it kills one."""
        ends = (0,) if self.listens else (0, -signal.SIGTERM)
        return (*ends, -signal.SIGKILL) if self.killed else ends


class OwnPrimaries:
    """Primaries that the drill starts itself, one after another; at most one former one is kept,
    that was stopped and replaced."""

    def __init__(
        self, folder: Path, writer: Writer, ports: tuple[int, int], *, session_ttl_s: float,
        hosts: tuple[str, ...] = HOMES, network: str = child.NO_NETWORK,
        flags: tuple[str, ...] = (), label: str = "p",
    ) -> None:
        self.ports, self.hosts, self.session_ttl_s = ports, hosts, session_ttl_s
        self._folder, self._writer, self._network, self._flags = folder, writer, network, flags
        self._label = label
        self._count = 0
        self.epoch = 0  # of the newest one that listens
        self._host = hosts[0]
        self._process: _Process | None = None
        self._former: _Process | None = None
        self._log_path = folder / f"{label}.log"
        self._log = self._log_path.open("ab")
        self.moved: list[Callable[[str], object]] = []  # who is told at which host the next one is

    @property
    def newest(self) -> str:
        """Its name in the records."""
        return f"{self._label}{self._count}"

    @property
    def host(self) -> str:
        """Where the newest one listens."""
        return self._host

    @property
    def address(self) -> str:
        """HOST:PORT of the newest one."""
        return f"{self._host}:{self.ports[0]}"

    @property
    def addresses(self) -> str:
        """Where clients may find a primary."""
        return addresses(self.hosts, self.ports[0])

    @property
    def pid(self) -> int:
        """Of the newest one; 0: there is none."""
        return self._process.popen.pid if self._process else 0

    def asked(self, question: Callable[[Admin], _T], seconds: float = ANSWER_S) -> _T:
        """What the newest one answers. ConnectError."""

        def ask() -> _T:
            with Admin(self.address, timeout=seconds) as admin:
                return question(admin)

        return ask() if self._network == child.NO_NETWORK else within(self._network, ask)

    # ---- Starting --------------------------------------------------------------------------------

    def start(self, *, hours: int = 0) -> None:
        """Another one, in the place of the one that is dead; returns when it listens."""
        self.begin(hours=hours)
        self.listening()

    def begin(self, *, hours: int = 0, take_over: bool = False) -> None:
        """The same, without waiting for it."""
        self._count += 1
        flags = ("--take-over",) if take_over else ()
        words = child.words(
            "serve", "--listen", f"{self._host}:{self.ports[0]}", "--data-port",
            str(self.ports[1]), "--state-dir", str(self._folder / f"state-{self._label}"),
            "--session-ttl", str(self.session_ttl_s), "--wait", "block", *self._flags, *flags,
            hours=hours, network=self._network)
        started_ns = now_ns()
        popen = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log,
            start_new_session=True, env=clean_environment())
        self._process = _Process(self.newest, self._host, popen)
        self._writer.write(PrimaryStarted(started_ns, self.newest, popen.pid, self.address))

    def listening(self) -> None:
        """Waits until it says that it serves. DrillError: it ended instead, or says nothing."""
        process = self._process
        assert process is not None
        line = read_line(process.popen.stdout, START_S)
        found = _GREETING.match(line)
        if not found:
            status = process.popen.poll()
            text = f"dlock serve did not start (exit status {status}): {self.log()}"
            if self._count > 1:  # the first one did, in the same place
                self._writer.write(Problem(now_ns(), process.name, text))
            raise DrillError(text)
        self.epoch = int(found[1])
        process.listens = True
        self._writer.write(PrimaryListening(now_ns(), process.name, self.epoch))

    def log(self) -> str:
        """The end of what the primaries have logged."""
        return self._log_path.read_bytes()[-LOG_BYTES_SHOWN:].decode(errors="replace").strip()

    # ---- What befalls them -----------------------------------------------------------------------

    def kill(self) -> None:
        """kill -9 of the newest one."""
        process = self._running()
        process.killed = True
        self._writer.write(PrimaryKilled(now_ns(), process.name))
        process.popen.kill()
        process.popen.wait()
        _close(process.popen)
        self._process = None

    def stop(self) -> None:
        """SIGSTOP, and until it has stopped."""
        process = self._running()
        process.popen.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.popen.pid, os.WSTOPPED | os.WNOWAIT)
        process.stopped = True
        self._writer.write(PrimaryStopped(now_ns(), process.name))

    def go_on(self) -> None:
        """SIGCONT."""
        self._go_on(self._running())

    def _go_on(self, process: _Process) -> None:
        self._writer.write(PrimaryContinued(now_ns(), process.name))
        process.popen.send_signal(signal.SIGCONT)
        process.stopped = False

    def replace(self) -> None:
        """While the newest one stands still, another one takes over, at the other address."""
        self._former, self._process = self._running(), None
        self._host = self.hosts[(self.hosts.index(self._host) + 1) % len(self.hosts)]
        for tell in self.moved:
            tell(self._host)
        self.begin(take_over=True)
        self.listening()

    def former_goes_on(self, seconds: float = START_S) -> None:
        """The one that was replaced is continued, and stops by itself."""
        process, self._former = self._former, None
        assert process is not None
        self._go_on(process)
        try:
            status: int | None = process.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        if status is None:
            self._writer.write(Problem(now_ns(), process.name, "it was replaced by another primary "
                                       f"and still runs after {seconds:g} s"))
            process.popen.kill()
            status = process.popen.wait()
        self._writer.write(PrimaryExited(
            now_ns(), process.name, status, expected=status == STATUS_REPLACED))
        _close(process.popen)

    def check(self) -> None:
        """DrillError if the newest one has ended by itself."""
        process = self._process
        if process is not None and not process.stopped and process.popen.poll() is not None:
            self._writer.write(PrimaryExited(
                now_ns(), process.name, process.popen.returncode, expected=False))
            self._process = None
            raise DrillError(f"the primary {process.name} ended by itself: {self.log()}")

    def close(self) -> None:
        """Ends them all: the newest one as an operator does, a former one as it can be."""
        if self._former is not None:
            self._former.popen.kill()
            self._former.popen.wait()
            _close(self._former.popen)
        process, self._process, self._former = self._process, None, None
        if process is not None:
            process.popen.terminate()
            process.popen.send_signal(signal.SIGCONT)
            try:
                status = process.popen.wait(START_S)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                status = process.popen.wait()
            self._writer.write(PrimaryExited(
                now_ns(), process.name, status, expected=status in process.clean_ends))
            _close(process.popen)
        self._log.close()

    def _running(self) -> _Process:
        if self._process is None:
            raise DrillError("there is no primary")
        return self._process


def clean_environment() -> dict[str, str]:
    """That of this process without what it says of dlock."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DLOCK_")}


def _close(popen: subprocess.Popen[bytes]) -> None:
    for pipe in (popen.stdin, popen.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


def read_line(pipe: IO[bytes] | None, seconds: float) -> str:
    """The next line of this pipe; what there is of it when the time is over, or at its end."""
    assert pipe is not None
    found, deadline = b"", time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not found.endswith(b"\n") and (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                piece = os.read(pipe.fileno(), 4096)
                if not piece:
                    break
                found += piece
    return found.decode(errors="replace").strip()


# ---- The operator's ------------------------------------------------------------------------------


class JoinedPrimaries:
    """A primary that runs already, and the commands that do something to it. A command that is not
    given is never asked for: `dlock.drill.faults` has skipped what needs it."""

    def __init__(self, address: str, writer: Writer, *, kill: str, start: str, stop: str,
                 go_on: str) -> None:
        self._address, self._writer = address, writer
        self._commands = {"kill": kill, "start": start, "stop": stop, "continue": go_on}
        self._count = 1
        self._owed: Callable[[], None] | None = None  # what brings it back

    @property
    def newest(self) -> str:
        """Its name in the records."""
        return f"p{self._count}"

    def asked(self, question: Callable[[Admin], _T], seconds: float = ANSWER_S) -> _T:
        """What it answers. ConnectError."""
        with Admin(self._address, timeout=seconds) as admin:
            return question(admin)

    def kill(self) -> None:
        """By --kill-command."""
        self._writer.write(PrimaryKilled(now_ns(), self.newest))
        self._owed = self.start
        self._run("kill")

    def start(self) -> None:
        """By --start-command; returns when it answers."""
        self._count += 1
        self._writer.write(PrimaryStarted(now_ns(), self.newest, 0, self._address))
        self._run("start")
        self._owed = None
        deadline = time.monotonic() + START_S
        while recovery_of(self) is None:
            if time.monotonic() > deadline:
                raise DrillError(f"no primary answers at {self._address} after --start-command")
            time.sleep(ASK_AGAIN_S)
        self._writer.write(PrimaryListening(now_ns(), self.newest, 0))

    def stop(self) -> None:
        """By --stop-command."""
        self._owed = self.go_on
        self._run("stop")
        self._writer.write(PrimaryStopped(now_ns(), self.newest))

    def go_on(self) -> None:
        """By --continue-command."""
        self._writer.write(PrimaryContinued(now_ns(), self.newest))
        self._run("continue")
        self._owed = None

    def close(self) -> None:
        """It is not ours, and goes on as it was found, also where a drill was interrupted."""
        owed, self._owed = self._owed, None
        if owed is not None:
            owed()

    def _run(self, which: str) -> None:
        """In a thread: a signal that ends the drill meanwhile waits for the end of the command, so
        that what brings the primary back comes after what broke it."""
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self._run_to_its_end, which).result()

    def _run_to_its_end(self, which: str) -> None:
        """A command may leave something in the background that goes on."""
        command = self._commands[which]
        with tempfile.TemporaryFile() as said:
            popen = subprocess.Popen(
                command, shell=True, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                start_new_session=True, env={**os.environ, "DLOCK_ADDRESS": self._address})
            try:
                status = popen.wait(COMMAND_S)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()
                raise DrillError(f"--{which}-command has not ended within {COMMAND_S:g} s: "
                                 f"{command}") from None
            said.seek(0)
            if status:
                raise DrillError(
                    f"--{which}-command ended with {status}: {command}: "
                    f"{said.read(LOG_BYTES_SHOWN).decode(errors='replace').strip()}")


def within(network: str, body: Callable[[], _T]) -> _T:
    """What this returns in a thread that is in that network namespace: the sockets that it makes
    stay there."""
    with ThreadPoolExecutor(1, initializer=child.enter_network, initargs=(network,)) as pool:
        return pool.submit(body).result()
