"""A primary that dies and is started anew: `dlock serve` with a state directory, on one port.

Times are of CLOCK_MONOTONIC in seconds, which all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.machine import cpu_seconds
from benchmarks.processes import end, start
from dlock.control.link import ControlLink, LinkError
from dlock.control.messages import AwaitReady
from dlock.types import DlockStatus

HOST: Final = "127.0.0.1"
REPLY_S: Final = 30.0
AWAIT_MS: Final = 5000  # of one question whether it is ready


@dataclass(frozen=True)
class Started:
    """When it was started (exec), and when it said that it listens."""

    exec_s: float
    listening_s: float

    @property
    def own_s(self) -> float:
        """What the process itself needs to start."""
        return self.listening_s - self.exec_s


@dataclass(frozen=True)
class Ready:
    """When it was READY, and the CPU that it had burnt by then."""

    ready_s: float
    cpu_s: float


class Primary:
    """One address and one state directory; the process behind them changes."""

    def __init__(self, folder: Path, *, session_ttl_s: float, max_locks: int,
                 max_clients: int) -> None:
        self.port = 0
        self._words = [
            "--state-dir", str(folder), "--session-ttl", str(session_ttl_s),
            "--max-locks", str(max_locks), "--max-clients", str(max_clients),
            "--log-level", "warning"]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Started:
        """Starts one, and returns when it listens."""
        exec_s = time.monotonic()
        self._process = process = start(
            [sys.executable, "-c", "import sys; from dlock.cli import main; sys.exit(main())",
             "serve", "--listen", f"{HOST}:{self.port}", *self._words], stdout=subprocess.PIPE)
        assert process.stdout
        greeting = process.stdout.readline()
        listening_s = time.monotonic()
        found = re.match(rf"dlock serves on {HOST}:(\d+) ", greeting)
        if not found:
            raise RuntimeError(f"dlock serve did not start: {greeting!r}")
        self.port = int(found[1])
        return Started(exec_s, listening_s)

    def kill(self) -> float:
        """As kill -9 does; returns when."""
        assert self._process
        killed_s = time.monotonic()
        self._process.kill()
        self._process.wait()
        end(self._process)
        return killed_s

    def wait_ready(self, seconds: float) -> Ready:
        """Until it is READY; RuntimeError when that takes longer."""
        assert self._process
        link = ControlLink.connect(HOST, self.port, REPLY_S)
        deadline = time.monotonic() + seconds
        try:
            while link.request(AwaitReady(AWAIT_MS), REPLY_S).status is not DlockStatus.SUCCESS:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the primary was not ready after {seconds:g} s")
            return Ready(time.monotonic(), cpu_seconds(self._process.pid))
        except LinkError as problem:
            raise RuntimeError(f"the primary is gone: {problem}") from None
        finally:
            link.close()

    def close(self) -> None:
        """Ends it."""
        if self._process:
            end(self._process)


@contextlib.contextmanager
def primary(folder: Path, *, session_ttl_s: float, max_locks: int,
            max_clients: int) -> Iterator[Primary]:
    """A primary that has been started, and is ended whatever happens."""
    one = Primary(folder, session_ttl_s=session_ttl_s, max_locks=max_locks,
                  max_clients=max_clients)
    try:
        one.start()
        yield one
    finally:
        one.close()
