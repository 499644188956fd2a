"""The doors that `dlock serve` runs beside its primary: started when it serves, watched, ended with
it.

Each is `python -m dlock door ...` of this interpreter, a process of its own: in the primary's it
would share the interpreter lock with the heartbeats. This file knows no door, only how processes
live.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from dlock.cli.door_words import Wish

PR_SET_PDEATHSIG: Final = 1
EXIT_ORPHAN: Final = 1
CHECK_SECONDS: Final = 60.0
STOP_SECONDS: Final = 25.0  # a door takes at most twice 10 s to end by itself
PAUSE_FIRST_S: Final = 0.2
PAUSE_MOST_S: Final = 10.0
STEADY_S: Final = 10.0  # one that ran so long has not failed at its start
_log = logging.getLogger("dlock.serve")


def problem_of(wishes: Sequence[Wish]) -> str | None:
    """Asks the doors themselves whether they could begin with these words; the first complaint."""
    asked = [subprocess.Popen(
        _command(wish, "--check"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace")
        for wish in wishes]
    found = None
    for wish, one in zip(wishes, asked, strict=True):
        try:
            said, _ = one.communicate(timeout=CHECK_SECONDS)
        except subprocess.TimeoutExpired:
            one.kill()
            said = f"no answer within {CHECK_SECONDS:g} s"
            one.communicate()
        if one.returncode != 0 and found is None:
            found = f"--door {wish}: {said.strip() or f'exit code {one.returncode}'}"
    return found


def _command(wish: Wish, *ours: str) -> list[str]:
    return [sys.executable, "-m", "dlock", "door", wish.kind, *ours, *wish.ours(), *wish.flags]


class _Kept:
    """One door: its process, or when there is to be another."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.process: subprocess.Popen[bytes] | None = None
        self.started_s = 0.0
        self.next_s = 0.0
        self.pause_s = PAUSE_FIRST_S


class Doors:
    """Those of one primary; `address` is its own. `look` is to be called again and again."""

    def __init__(self, wishes: Sequence[Wish], address: str, log_level: str) -> None:
        self._address = address
        self._environment = {**os.environ, "DLOCK_LOG_LEVEL": log_level}
        self._kept = [_Kept(wish) for wish in wishes]

    def look(self) -> None:
        """Notes who has ended, and starts whose time has come. The first look starts all."""
        now = time.monotonic()
        for one in self._kept:
            if one.process is not None and one.process.poll() is not None:
                _note_end(one, one.process, now)
            if one.process is None and now >= one.next_s:
                self._start(one, now)

    def _start(self, one: _Kept, now: float) -> None:
        command = _command(one.wish, "--parent", str(os.getpid()), "--connect", self._address)
        try:
            # Its own session, so that Ctrl-C at the terminal reaches the primary alone, which ends
            # its doors before itself.
            one.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(),
                env=self._environment, start_new_session=True)
        except OSError as problem:
            _log.error("a door cannot be started kind=%s namespace=%s why=%s",
                       one.wish.kind, one.wish.namespace, problem)
            _put_off(one, now)
            return
        one.started_s = now
        _log.info("a door starts kind=%s namespace=%s pid=%d", one.wish.kind, one.wish.namespace,
                  one.process.pid)

    def tell_counters(self) -> None:
        """Has each put its counters into the log. One that has only begun does not listen yet, and
        SIGUSR1 would end it."""
        now = time.monotonic()
        for one in self._kept:
            if one.process is not None and now - one.started_s >= STEADY_S:
                with contextlib.suppress(ProcessLookupError):
                    one.process.send_signal(signal.SIGUSR1)

    def end(self) -> None:
        """Ends them all, by force those that do not end; while the primary still serves, so that
        what they hold is free at once."""
        running = [one.process for one in self._kept if one.process is not None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                _log.error("a door does not end and is killed pid=%d", process.pid)
                process.kill()
                process.wait()
        self._kept = []


def _note_end(one: _Kept, process: subprocess.Popen[bytes], now: float) -> None:
    if now - one.started_s >= STEADY_S:
        one.pause_s = PAUSE_FIRST_S
    _log.warning("a door has ended kind=%s namespace=%s pid=%d code=%d again_in_s=%.1f",
                 one.wish.kind, one.wish.namespace, process.pid, process.returncode, one.pause_s)
    _put_off(one, now)


def _put_off(one: _Kept, now: float) -> None:
    one.process = None
    one.next_s = now + one.pause_s
    one.pause_s = min(one.pause_s * 2, PAUSE_MOST_S)


# ---- In the door ---------------------------------------------------------------------------------


def end_with(parent: int) -> None:
    """The kernel kills this process when its parent ends, however that ends. Ends at once if it is
    too late for that."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(EXIT_ORPHAN)
