"""One hold of a client process: followed until it is over, and written down.

This decides what an actor believes, from what the client library says of the hold: the same for
threads, tasks and the mirror. It waits for nothing; the actor looks again and again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dlock import LockLost
from dlock.drill import records
from dlock.drill.beliefs import Board
from dlock.drill.load import SLOTS, Turn
from dlock.drill.records import Added, Failed, Hold, Problem, Told, Write, Writer, now_ns
from dlock.drill.storage import Storage
from dlock.errors import DlockError, ObjectLost, OutcomeUnknown

SILENT_NS: Final = 60 * 10**9  # nobody has to be told sooner, on any machine
LOOK_S: Final = 0.002
MARGIN_NS: Final = 5 * 10**6  # durations are whole milliseconds


class Process:
    """What the actors of one client process share."""

    def __init__(self, folder: Path, client: str, slots: int) -> None:
        self.client = client
        self.writer = Writer(folder / f"{client}{records.SUFFIX}")
        self.board = Board(folder / f"{client}.board", slots)
        self.storage = Storage(folder / "storage")


class Actor:
    """One thread or task, with its slot on the board."""

    def __init__(self, process: Process, session: int, actor: int, slot: int) -> None:
        self.process, self.session, self.actor, self.slot = process, session, actor, slot

    @property
    def who(self) -> tuple[str, int, int]:
        """As it stands in records."""
        return self.process.client, self.session, self.actor

    def told(self, name: str, token: int, said: str, how: str) -> None:
        """The library said what became of a hold."""
        self.process.writer.write(Told(now_ns(), *self.who, name, token, said, how))

    def failed(self, operation: str, name: str, error: object, asked_ns: int) -> None:
        """An error that a program has to expect under faults."""
        word = error if isinstance(error, str) else type(error).__name__
        self.process.writer.write(Failed(now_ns(), *self.who, operation, name, word, asked_ns))

    def problem(self, text: str) -> None:
        """Something that must not be."""
        self.process.writer.write(
            Problem(now_ns(), self.process.client, f"session {self.session}, actor {self.actor}: "
                                                   f"{text}"))

    def added(self, name: str, asked_ns: int, outcome: int | DlockError) -> None:
        """What came of a fetch-and-add: the number before it, or an error."""
        if isinstance(outcome, int):
            word, before = "done", outcome
        elif isinstance(outcome, OutcomeUnknown):
            word, before = "unknown", 0
        elif isinstance(outcome, ObjectLost):
            word, before = "lost", 0
        else:
            self.failed("fetch_add", name, outcome, asked_ns)
            return
        self.process.writer.write(Added(now_ns(), *self.who, name, word, before, asked_ns))


class Following:
    """Follows one hold: `more` until it is enough, or over; then `end`."""

    def __init__(self, actor: Actor, turn: Turn, token: int, asked_ns: int) -> None:
        """It was granted just now, or some time ago: a process can be stopped in between, so it
        counts from the first moment in which it is called HELD."""
        self._actor, self._turn = actor, turn
        granted_ns = now_ns()
        self._enough_ns = granted_ns + turn.hold_ns
        self._silent_ns = 0  # since when it is not called HELD; 0: it is
        self._suspended = 0
        self._ended = records.RELEASED
        self._begin_ns = self._end_ns = 0
        self._until_ns = 0  # until when it is HELD if nobody is heard of
        self._doubtful = False  # was its session ever suspended?
        self._hold = Hold(
            granted_ns, *actor.who, turn.name, turn.kind,
            SLOTS if turn.kind == "semaphore" else 0, turn.exclusive, token,
            int((turn.lease_s or 0) * 1000), turn.renew, asked_ns, granted_ns, granted_ns, 0,
            records.KILLED)
        actor.process.board.served(actor.slot, asked_ns)

    @property
    def token(self) -> int:
        """Of the hold."""
        return self._hold.token

    # ---- While it is held ------------------------------------------------------------------------

    def more(self, left_s: float, session_left_s: float, lost: bool, moment_ns: int) -> bool:
        """Looks once more: for how long its client calls it HELD, and its session good, was asked
        after `moment_ns`, and `lost` before that. False: enough seen, or it is over."""
        self._doubtful = self._doubtful or session_left_s == 0
        if left_s > 0:
            self._until_ns = moment_ns + int(min(left_s, session_left_s) * 1e9)
            self._seen(moment_ns, lost)
            return moment_ns < self._enough_ns
        if lost or self._ended == records.LOST:
            self._ended = records.LOST
            self._check_loss()
            return False
        if not self._turn.told:
            self._ended = records.LAPSED
            return False
        if not self._silent_ns:
            self._silent_ns = moment_ns
            self._suspended += 1
            self._say(records.TOLD_SUSPENDED, "held")
            self._write(late=True)
        elif moment_ns > self._silent_ns + SILENT_NS:
            self._ended = records.UNTOLD
            return False
        return True

    def _check_loss(self) -> None:
        """While its authority runs, nobody may take a hold away: not a new primary either. A lease
        may outlast its session; then nobody else gets the lock, but its client has lost it."""
        left_ns = self._until_ns - now_ns()
        if left_ns > MARGIN_NS and not self._doubtful:
            self._actor.problem(f"{self._turn.name} is lost (token {self.token}), and its client "
                                f"had called it HELD, and its session good, for "
                                f"{left_ns / 1e6:.0f} ms more")

    def _seen(self, moment_ns: int, lost: bool) -> None:
        if lost:
            self._actor.problem(f"{self._turn.name} is held after it was said to be lost "
                                f"(token {self.token})")
        if self._silent_ns:
            self._silent_ns = 0
            self._say(records.TOLD_CONFIRMED, "held")
        self._end_ns = moment_ns
        board, slot = self._actor.process.board, self._actor.slot
        if self._begin_ns:
            board.held(slot, moment_ns)
            return
        self._begin_ns = moment_ns
        self._hold = replace(self._hold, begin_ns=moment_ns, end_ns=moment_ns)
        board.begin(slot, self._hold)
        self._write(late=False)

    def _say(self, said: str, how: str) -> None:
        self._actor.told(self._turn.name, self.token, said, how)

    def _write(self, *, late: bool) -> None:
        """Writes to the storage, as a holder does; `late`: although it is not called HELD."""
        turn, actor = self._turn, self._actor
        if not turn.writes or not turn.exclusive:
            return
        written = actor.process.storage.write(turn.name, self.token)
        if written is not None:
            actor.process.writer.write(Write(
                now_ns(), *actor.who, turn.name, self.token, written.accepted, written.sequence,
                written.highest, late))

    # ---- Its end ---------------------------------------------------------------------------------

    def end(self, problem: BaseException | str | None = None) -> None:
        """It was given back; `problem`: what that raised, if it did, or a status."""
        if isinstance(problem, LockLost) and self._ended == records.RELEASED:
            self._ended = records.LOST if self._turn.told else records.LAPSED
            if self._turn.told:
                self._say(records.TOLD_LOST, type(problem).__name__)
        self._write_down()

    def lost(self, how: str) -> None:
        """It was said to be lost, by a status."""
        self._ended = records.LOST
        self._say(records.TOLD_LOST, how)

    def lapsed(self) -> None:
        """Its lease is over, as was agreed."""
        self._ended = records.LAPSED

    def _write_down(self) -> None:
        actor = self._actor
        if self._begin_ns:
            actor.process.writer.write(replace(
                self._hold, t_ns=now_ns(), end_ns=self._end_ns, suspended=self._suspended,
                ended=self._ended))
        elif self._ended == records.UNTOLD:
            actor.problem(f"{self._turn.name} was granted (token {self.token}), is not held, and "
                          "nobody says that it is lost")
        actor.process.board.over(actor.slot)


def watch_of(process: Process, session: int, said: str, how: str) -> Any:
    """A callback for `on_lost` or `on_suspended` of a client: it writes what it was told."""

    def tell(lock: Any) -> None:
        for token in lock.tokens:
            process.writer.write(Told(
                now_ns(), process.client, session, 0, str(lock.name), token, said, how))

    return tell
