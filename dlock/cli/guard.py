"""What `dlock run` does while the command runs and the hold changes its state: --on-lost.

The hold counts as lost for `kill` as soon as it could have ended by this client's clock: that comes
before the server can give the lock to anybody else. For `warn` and the exit code it is lost when
the server has said so, or when it could have ended and was not confirmed before the command ended.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Final, Protocol

from dlock.cli.child import Command
from dlock.cli.common import EXIT_LOST, say
from dlock.cli.text import safe
from dlock.errors import Broken, LockLost

WARN, KILL, IGNORE = "warn", "kill", "ignore"
LOOK_MOST: Final = 1.0
LOOK_LEAST: Final = 0.01
GRACE_SHARE: Final = 0.25  # of what the hold has left at first: a renewal keeps it well above this


class Held(Protocol):
    """What it asks of a lock."""

    @property
    def held(self) -> bool:
        """Does this object hold it, by the client's own clock?"""

    @property
    def remaining(self) -> float:
        """Seconds until it could end."""

    def ensure_held(self, min_left: float = 0.0) -> None:
        """LockLost if it is not held."""


class Guard:
    """One hold and the command that runs under it. Told by any thread, looks in the main one."""

    def __init__(self, name: bytes, on_lost: str, grace: float) -> None:
        self._name = safe(name)
        self._mode = on_lost
        self._grace = grace
        self._main = threading.main_thread().ident
        self._gone = False  # the server has said so
        self._told: set[str] = set()
        self._asked_at: float | None = None  # when SIGTERM went out
        self._lock: Held | None = None
        self._command: Command | None = None

    # ---- Told by the library's threads -----------------------------------------------------------

    def on_lost(self, _lock: object = None) -> None:
        """The server says that the hold is over."""
        self._gone = True
        self._wake()

    def on_suspended(self, _lock: object = None) -> None:
        """The hold could have ended; it may be confirmed yet."""
        self._wake()

    def _wake(self) -> None:
        """Ends the main thread's wait early: a signal that it waits for and that says nothing."""
        if self._lock is not None and self._main is not None:
            signal.pthread_kill(self._main, signal.SIGCHLD)

    # ---- The main thread -------------------------------------------------------------------------

    def begin(self, lock: Held, command: Command) -> None:
        """The lock is held, the command is about to start."""
        self._command = command
        self._early = min(self._grace, lock.remaining * GRACE_SHARE)
        self._lock = lock

    def pause(self) -> float | None:
        """How long the main thread may wait before it looks again; None: until it is woken."""
        if self._mode != KILL:
            return LOOK_MOST if self._told else None
        assert self._lock is not None
        due = self._lock.remaining - self._early
        if self._asked_at is not None:
            due = self._lock.remaining or self._asked_at + self._grace - time.monotonic()
        return min(max(due, LOOK_LEAST), LOOK_MOST)

    def look(self) -> None:
        """Does what the state of the hold asks for."""
        assert self._lock is not None
        if self._mode == WARN:
            self._warn(self._lock.held)
        elif self._mode == KILL:
            self._end(self._lock.remaining)

    def _warn(self, held: bool) -> None:
        if self._gone:
            self._tell("lost", f"{self._reason()}; the command goes on")
        elif not held and not self._told:
            self._tell("suspended", f"the hold on {self._name} could not be renewed and may have "
                                    "ended; the command goes on")
        elif held and self._told == {"suspended"}:
            self._told.clear()
            say("run", f"the hold on {self._name} is confirmed again: nobody had it in between")

    def _reason(self) -> Exception:
        """Why it is not held."""
        assert self._lock is not None
        try:
            self._lock.ensure_held()
        except LockLost as problem:
            return problem
        return LockLost(self._name)

    def _end(self, left: float) -> None:
        """--on-lost kill. A hold that an operator broke has been passed on already, so the command
        gets its grace; one that could end by itself must not outlast its end."""
        assert self._command is not None
        if not self._gone and left > self._early:
            return
        reason = self._reason() if self._gone or left <= 0 else None
        if self._asked_at is None and (reason is None or isinstance(reason, Broken)):
            self._tell("asked", f"{reason or self._unrenewed()}; the command is asked to end")
            self._asked_at = time.monotonic()
            self._command.ask_all_to_end()
        due = self._asked_at is None or time.monotonic() >= self._asked_at + self._grace
        if reason is not None and (due or not isinstance(reason, Broken)):
            self._tell("killed", f"{reason}; the command is killed")
            self._asked_at = self._asked_at or time.monotonic()
            self._command.end_all()

    def _unrenewed(self) -> str:
        return f"the hold on {self._name} could not be renewed and is about to end"

    def _tell(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            say("run", text)

    def lost_at_release(self, problem: LockLost) -> None:
        """The lock could not be given back: it was lost."""
        self._gone = True
        if self._mode == WARN or (self._mode == KILL and not self._told):
            self._tell("lost", str(problem))

    def judge(self, code: int) -> int:
        """The exit code, now that the command has ended with `code`; nothing that it started is
        left if it was ended."""
        if self._mode == KILL and self._asked_at is not None:
            assert self._command is not None
            self._command.end_all()
        if self._mode == IGNORE:
            return code
        gone = self._gone or self._asked_at is not None
        return EXIT_LOST if gone and (self._mode == KILL or code == 0) else code
