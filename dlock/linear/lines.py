"""How a history is written down: JSON, one object a line, a file for each process.

The first line says whose file it is. An operation has two lines, by its number: its begin, written
before anything is asked, and its end. So a process that is killed leaves whole lines behind, and of
what it was at only the begin. What asks nobody has one line. Times are ns of CLOCK_BOOTTIME.

    {"history": 1, "process": "c1"}               whose file it is
    {"b": 7, "t": ..., "do": "acquire", ...}      an operation begins
    {"e": 7, "t": ..., "out": "done", ...}        it has ended
    {"do": "held", "t": ..., "u": ..., ...}       between t and u its client called a hold HELD, and
                                                  good for left_ms if the server is not heard of
    {"do": "line", "t": ..., "u": ..., ...}       between t and u the server said who stands in line
    {"settled": [7, 9], "t": ...}                 nothing is left at the server of these acquires,
                                                  whose outcome is unknown
    {"do": "dropped", "t": ..., "hold": ...}      the object was dropped, and gives the hold back
    {"left": true, "t": ...}                      the process left the server, or ended by itself

Nothing is judged here. What follows from lines that are missing is said at `_File`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from dlock.linear.history import (
    ACQUIRE,
    CELL,
    DONE,
    END,
    GET,
    GONE,
    HELD,
    REFUSED,
    RELEASE,
    UNKNOWN,
    Operation,
)

VERSION: Final = 1
LOST: Final = "lost"  # an outcome of a release, and of entering again: the hold was over
SIGHT: Final = "line"
DROPPED: Final = "dropped"


class HistoryError(Exception):
    """A file is no history; the text says where."""


def read(paths: Iterable[str | os.PathLike[str]], *, promised: bool = True) -> list[Operation]:
    """The operations of these files. `promised`: what a killed process held is held against the
    promise that it was good for so long (`remaining`); False: an operator may have taken it away
    before. HistoryError; OSError."""
    files = []
    for path in map(Path, paths):
        file = _File(str(path), promised)
        with path.open(encoding="utf-8") as written:
            for number, line in enumerate(written, 1):
                if line.endswith("\n"):  # else it was cut short
                    file.take(number, line)
        files.append(file)
    return _with_sights(files)


def assemble(lines: Iterable[str], *, promised: bool = True) -> list[Operation]:
    """The operations of one file's lines. HistoryError."""
    file = _File("history", promised)
    for number, line in enumerate(lines, 1):
        file.take(number, line)
    return _with_sights([file])


class _Hold:
    """What is known of one hold: how often it is entered, and since when it may be over: not before
    its client believed in it for the last time, nor before the end of what it was promised."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.entries = 0
        self.left: list[int] = []  # releases that were not its last, as places in the history
        self.believed_ns = operation.begin_ns
        self.promised_ns = 0


class _File:
    """One process.

    - An acquire or a change without its end has an unknown outcome; of a get nothing is known.
    - A release that the server did not confirm may be made at any time after its begin. One without
      its end proves nothing: the hold may have been over before it was begun.
    - A release that leaves its hold entered is counted by the client alone: of a hold that was lost
      it proves nothing either, unless its client believed in it later.
    - A hold that is not released ends some time after its client called it HELD for the last time.
      If the process did not leave, only the end of what it was promised then can have ended it.
    """

    def __init__(self, path: str, promised: bool) -> None:
        self._path = path
        self._promised = promised
        self._left = False
        self._open: dict[int, dict[str, Any]] = {}
        self._unclear: dict[int, int] = {}  # acquires of unknown outcome, by number
        self._holds: dict[str, _Hold] = {}
        self.operations: list[Operation] = []
        self.asked: dict[int, tuple[tuple[int, int], bool]] = {}  # by whom, with a place of its own
        self.sights: list[dict[str, Any]] = []

    def take(self, number: int, text: str) -> None:
        """One line."""
        try:
            line = json.loads(text)
            if "e" in line:
                begun = self._open.pop(line["e"])
                self._operation({**begun, **line, "t": begun["t"]}, line["t"], line["out"])
            elif "b" in line:
                self._open[line["b"]] = line
            elif line.get("do") == HELD:
                self._look(line["hold"], line["t"], line["u"], line["left_ms"])
            elif "settled" in line:
                for number in line["settled"]:
                    at = self._unclear[number]
                    self.operations[at] = self.operations[at]._replace(end_ns=line["t"])
            elif line.get("do") == DROPPED:
                if line["hold"] in self._holds:
                    self._lost(self._holds.pop(line["hold"]))
            elif line.get("do") == SIGHT:
                self.sights.append(line)
            elif "left" in line:
                self._left = True
            elif line.get("history") != VERSION:
                raise ValueError("not a line of this version")
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise HistoryError(f"{self._path}, line {number}: {text.strip()[:100]!r} is no line of "
                               f"a history ({type(problem).__name__}: {problem})") from None

    def finish(self) -> None:
        """After the last line."""
        for line in self._open.values():
            self._operation(line, None, UNKNOWN)
        for hold in self._holds.values():
            self._lost(hold, hold.promised_ns if self._promised and not self._left else 0)

    # ---- Operations ------------------------------------------------------------------------------

    def _operation(self, line: dict[str, Any], end_ns: int | None, outcome: str) -> None:
        if line["kind"] == CELL:
            self._number(line, end_ns, outcome)
        elif line["do"] == ACQUIRE:
            self._acquire(line, end_ns, outcome)
        else:
            self._release(line, end_ns, outcome)

    def _number(self, line: dict[str, Any], end_ns: int | None, outcome: str) -> None:
        if outcome == REFUSED or (outcome == UNKNOWN and line["do"] == GET):
            return  # nothing was done
        self.operations.append(Operation(
            line["name"], CELL, GONE if outcome == GONE else line["do"], line["who"], line["t"],
            end_ns if outcome != UNKNOWN else None, UNKNOWN if outcome == UNKNOWN else DONE,
            size=line["size"], argument=line.get("argument", 0), desired=line.get("desired", 0),
            result=line.get("result"), life=line["life"]))

    def _acquire(self, line: dict[str, Any], end_ns: int | None, outcome: str) -> None:
        if outcome == LOST:
            return  # it was to be entered again, and was over
        operation = Operation(
            line["name"], line["kind"], ACQUIRE, line["who"], line["t"],
            end_ns if outcome != UNKNOWN else None, outcome, line["hold"], line.get("token", 0),
            line["shared"], line["size"], line["waits"], again=line.get("again", False))
        asker = (line.get("client", 0), line.get("actor", 0))
        self.asked[len(self.operations)] = asker, line.get("place", True)
        if outcome == UNKNOWN:
            self._unclear[line["b"]] = len(self.operations)
        self.operations.append(operation)
        if outcome == DONE:
            self._holds.setdefault(operation.hold, _Hold(operation)).entries += 1
            if "seen" in line and end_ns is not None:
                self._look(operation.hold, line["seen"], end_ns, line["left_ms"])

    def _release(self, line: dict[str, Any], end_ns: int | None, outcome: str) -> None:
        hold = self._holds[line["hold"]]
        if outcome == REFUSED:
            return  # it was another thread's or task's
        hold.entries -= 1
        if hold.entries == 0 or outcome == LOST:
            del self._holds[line["hold"]]
        if outcome == DONE:
            if hold.entries:
                hold.left.append(len(self.operations))
            self.operations.append(hold.operation._replace(
                action=RELEASE, who=line["who"], begin_ns=line["t"],
                end_ns=end_ns if line.get("sure", False) else None, again=False))
        else:
            self._lost(hold)

    def _look(self, name: str, begin_ns: int, end_ns: int, left_ms: int) -> None:
        hold = self._holds.get(name)
        if hold is None or left_ms <= 0:
            return  # it is being given back by another thread; it proves nothing
        hold.believed_ns = max(hold.believed_ns, begin_ns)
        hold.promised_ns = max(hold.promised_ns, begin_ns + left_ms * 1_000_000)
        self.operations.append(hold.operation._replace(
            action=HELD, begin_ns=begin_ns, end_ns=end_ns, again=False))

    def _lost(self, hold: _Hold, promised_ns: int = 0) -> None:
        for at in hold.left:
            if self.operations[at].begin_ns >= hold.believed_ns:
                self.operations[at] = self.operations[at]._replace(end_ns=None)
        self.operations.append(hold.operation._replace(
            action=END, begin_ns=max(hold.believed_ns, promised_ns), end_ns=None, outcome=UNKNOWN,
            again=False))


def _with_sights(files: Sequence[_File]) -> list[Operation]:
    """All operations; those that were seen in line, by whichever process, know it. Who has asked
    for the same name before without a clear outcome could have been seen with that."""
    found: list[Operation] = []
    waits: dict[tuple[str, int, int], list[int]] = {}
    for file in files:
        file.finish()
        for index, (asker, place) in file.asked.items():
            operation = file.operations[index]
            if place and operation.waits and any(asker):
                waits.setdefault((operation.name, *asker), []).append(len(found) + index)
        found += file.operations
    for sight in (sight for file in files for sight in file.sights):
        for client, actor in sight["waiting"]:
            candidates = [index for index in waits.get((sight["name"], client, actor), ())
                          if found[index].begin_ns <= sight["u"]]
            unclear = any(found[index].again or found[index].outcome == UNKNOWN
                          for index in candidates[:-1])
            seen = [index for index in candidates if _until(found[index]) >= sight["t"]]
            if len(seen) == 1 and not unclear:
                one = found[seen[0]]
                found[seen[0]] = one._replace(
                    queued_ns=min(one.queued_ns or sight["u"], sight["u"]),
                    waiting_ns=max(one.waiting_ns or sight["t"], sight["t"]))
    return found


def _until(one: Operation) -> float:
    return float("inf") if one.end_ns is None else one.end_ns
