"""What a long run starts and ends: two services, each a primary with its client processes.

Whatever was started ends with the process that started it, also if that is killed: clients when
their standard input ends, primaries by a signal of the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from dlock.drill.soak_load import Order
from dlock.drill.soak_report import Life

HOST: Final = "127.0.0.1"
SESSION_TTL_S: Final = 2.0
LOADS: Final = ("threads", "tasks", "mirror", "churn")
CHURN_SHARE: Final = 0.05  # a session costs about as much as so many operations
END_S: Final = 60.0
PR_SET_PDEATHSIG: Final = 1
SERVE: Final = (sys.executable, "-c", "import sys; from dlock.cli import main; sys.exit(main())",
                "serve")


class SoakError(Exception):
    """It cannot be carried out, or something ended that should not have; the text says what."""


@dataclass
class Process:
    """A process that this run has started."""

    name: str
    popen: subprocess.Popen[str]

    def end(self) -> int:
        """Asks, then insists; returns its exit status."""
        if self.popen.stdin:
            with contextlib.suppress(OSError):
                self.popen.stdin.close()
        try:
            status = self.popen.wait(END_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            status = self.popen.wait()
        if self.popen.stdout:
            self.popen.stdout.close()
        return status

    def kill(self) -> None:
        """As kill -9 does."""
        self.popen.kill()
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()

    def wait_for(self, word: str) -> None:
        """Until it says this."""
        assert self.popen.stdout
        line = self.popen.stdout.readline()
        if not line.startswith(word):
            raise SoakError(f"{self.name} did not say {word!r} but {line!r}; its errors are in the "
                            f"log beside the results")


@dataclass
class Service:
    """A primary, its state directory and the processes that use it. `fails`: it is killed and
    started anew now and then."""

    name: str
    fails: bool
    folder: Path
    log: IO[str]
    rate: float
    seed: int
    plant: tuple[str, ...]
    primary: Process | None = None
    clients: list[Process] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    victims: int = 0
    port: int = 0

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def begun(self) -> Path:
        """A file that is there once the load is complete."""
        return self.folder / "begun"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def _started(self, name: str, words: Sequence[str]) -> Process:
        _libc()
        return Process(name, subprocess.Popen(
            words, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            preexec_fn=_end_with_us))

    def serve(self) -> None:
        """Another primary, and waits until it listens."""
        self.primary = self._started(f"primary, {self.name}", [
            *SERVE, "--listen", self.address, "--state-dir", str(self.state),
            "--session-ttl", f"{SESSION_TTL_S:g}", "--max-locks", "8192", "--max-clients", "2000",
            "--max-objects", "1024", "--wait", "block", "--log-level", "error"])
        assert self.primary.popen.stdout
        greeting = self.primary.popen.stdout.readline()
        if f"serves on {HOST}:" not in greeting:
            raise SoakError(f"dlock serve did not start: {greeting!r}")
        self.port = int(greeting.split(f"{HOST}:", 1)[1].split()[0])
        self.lives.append(Life(time.monotonic()))

    def client(self, kind: str) -> Process:
        """A client process, which works when this returns; a victim holds its locks."""
        name = f"{kind}, {self.name}"
        plant = self.plant if kind == "threads" and not self.fails else ()
        order = Order(
            kind, self.address, name.replace(", ", "-"), str(self.folder / f"{kind}.jsonl"),
            self.rate * (CHURN_SHARE if kind == "churn" else 1.0), self.seed, plant,
            plant_from=str(self.begun))
        process = self._started(
            name, [sys.executable, "-m", "dlock.drill.soak_load", order.as_argument()])
        try:
            process.wait_for("holding" if kind == "victim" else "working")
        except BaseException:
            process.kill()
            raise
        return process

    def victim(self) -> None:
        """A client that is killed while it holds locks."""
        self.client("victim").kill()
        self.victims += 1

    def fail(self) -> None:
        """kill -9 of the primary, and the next one. Who looks meanwhile sees none."""
        dying, self.primary = self.primary, None
        assert dying
        dying.kill()
        self.serve()

    def all(self) -> Iterator[Process]:
        """Every process that lives for longer than a moment."""
        primary = self.primary
        if primary:
            yield primary
        yield from self.clients


@functools.cache
def _libc() -> ctypes.CDLL:
    """Opened before the first fork: a child of a process with threads must not."""
    return ctypes.CDLL(None)


def _end_with_us() -> None:
    """In the child, before it begins."""
    _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
