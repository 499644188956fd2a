"""What each durable request does to the tables: the law of `dlock.dss`, and records. SQL only: the
transaction around it, its end and the answers are the caller's; now is an argument.

    dss_lock   a lock that is taken: its id, its owner, when it was taken or last refreshed (µs)
    lane       of each asker the number of its last call, and what came of it: a call that is sent
               again, because its answer was lost, is told that and not carried out twice
    record     bytes under a key in a space; `number` is of the write, and never used again
    generation of each primary that has served what is here, its epoch and incarnation
    meta       what the store knows of itself
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from dlock.control import messages_durable as d
from dlock.control.messages_base import Message

SCHEMA: Final = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE generation (epoch INTEGER NOT NULL, incarnation BLOB NOT NULL,"
    " PRIMARY KEY (epoch, incarnation)) WITHOUT ROWID",
    "CREATE TABLE dss_lock (id BLOB PRIMARY KEY, owner BLOB NOT NULL, time_us INTEGER NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE lane (lane BLOB PRIMARY KEY, number INTEGER NOT NULL, error INTEGER NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE record (number INTEGER PRIMARY KEY AUTOINCREMENT, space BLOB NOT NULL,"
    " key BLOB NOT NULL, value BLOB NOT NULL, UNIQUE (space, key))",
)
SECOND_US: Final = 1_000_000
OWNER_ONLY: Final = {d.REFRESH, d.UNLOCK}


def refused(request: Message, error: int, epoch: int) -> Message:
    """The answer to this request that tells only an error."""
    if isinstance(request, d.DssCall | d.DssForget):
        return d.DssAnswer(error, epoch)
    if isinstance(request, d.RecordList):
        return d.RecordLines(error)
    return d.RecordPiece(error) if isinstance(request, d.RecordGet) else d.RecordAnswer(error)


def _blob(number: int) -> bytes:
    """SQLite's integers have a sign."""
    return number.to_bytes(8, "little")


class Tables:
    """The tables behind one connection. `carry_out` runs inside the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection, epoch: int, incarnation: int) -> None:
        self._sql: Callable[..., sqlite3.Cursor] = connection.execute
        self._epoch = epoch
        self._incarnation = incarnation
        self._read: tuple[int, bytes] = -1, b""  # the value that was read last, by its number
        self._handlers: dict[type[Message], Callable[[Any, int], Message]] = {
            d.DssCall: self._call,
            d.DssForget: self._forget,
            d.RecordPut: self._put,
            d.RecordDelete: self._delete,
            d.RecordList: self._list,
            d.RecordGet: self._get,
        }

    def carry_out(self, request: Message, now_us: int) -> Message:
        """Its answer, which may be given once the transaction is on the disk. sqlite3.Error."""
        return self._handlers[type(request)](request, now_us)

    # ---- What the store knows of itself ----------------------------------------------------------

    def meta(self, name: str) -> Any:
        """A value; None: there is none."""
        row = self._sql("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def set_meta(self, name: str, value: str | int | bytes | None) -> None:
        """None: it is known no more."""
        self._sql("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def served_by(self, epoch: int, incarnation: int) -> bool:
        """Was that primary's store this one?"""
        return self._sql("SELECT 1 FROM generation WHERE epoch = ? AND incarnation = ?",
                         (epoch, _blob(incarnation))).fetchone() is not None

    def add_generation(self, epoch: int, incarnation: int) -> None:
        """From now on it was."""
        self._sql("INSERT OR REPLACE INTO generation VALUES (?, ?)", (epoch, _blob(incarnation)))

    # ---- Locks -----------------------------------------------------------------------------------

    def _call(self, call: d.DssCall, now_us: int) -> d.DssAnswer:
        if call.number == 0:
            return self._status(call) if call.operation == d.STATUS else self._answer(errno.EINVAL)
        row = self._sql("SELECT number, error FROM lane WHERE lane = ?", (call.lane,)).fetchone()
        if row is not None and row[0] > call.number:
            return self._answer(errno.ECOMM)  # nobody waits for it: a later one was carried out
        if row is not None and row[0] == call.number and call.operation != d.STATUS:
            return self._answer(row[1])
        answer = self._status(call) if call.operation == d.STATUS else self._change(call, now_us)
        if answer.error and not call.again and call.operation != d.STATUS:
            return answer  # Nothing has changed: whoever asks again may ask as if it were new.
        self._sql("INSERT OR REPLACE INTO lane VALUES (?, ?, ?)",
                  (call.lane, call.number, answer.error))
        return answer

    def _change(self, call: d.DssCall, now_us: int) -> d.DssAnswer:
        held = self._sql("SELECT owner FROM dss_lock WHERE id = ?", (call.lock_id,)).fetchone()
        if call.operation == d.LOCK:
            if held is not None:
                return self._answer(errno.EEXIST)
            self._sql("INSERT INTO dss_lock VALUES (?, ?, ?)", (call.lock_id, call.owner, now_us))
            return self._answer(0)
        if held is None:
            return self._answer(errno.ENOLCK)
        if call.operation in OWNER_ONLY and held[0] != call.owner:
            return self._answer(errno.EACCES)
        if call.operation == d.REFRESH:
            self._sql("UPDATE dss_lock SET time_us = ? WHERE id = ?", (now_us, call.lock_id))
        else:
            self._sql("DELETE FROM dss_lock WHERE id = ?", (call.lock_id,))
        return self._answer(0)

    def _status(self, call: d.DssCall) -> d.DssAnswer:
        row = self._sql(
            "SELECT owner, time_us FROM dss_lock WHERE id = ?", (call.lock_id,)).fetchone()
        if row is None:
            return self._answer(errno.ENOLCK)
        seconds, microseconds = divmod(row[1], SECOND_US)
        return d.DssAnswer(0, self._epoch, self._incarnation, row[0], seconds, microseconds)

    def _answer(self, error: int) -> d.DssAnswer:
        return d.DssAnswer(error, self._epoch, self._incarnation)

    def _forget(self, forget: d.DssForget, _now_us: int) -> d.DssAnswer:
        self.forget_lanes([forget.lane])
        return self._answer(0)

    def lanes(self) -> list[bytes]:
        """Of all askers that there were."""
        return [row[0] for row in self._sql("SELECT lane FROM lane")]

    def forget_lanes(self, lanes: Sequence[bytes]) -> None:
        """They ask nothing any more."""
        for lane in lanes:
            self._sql("DELETE FROM lane WHERE lane = ?", (lane,))

    # ---- Records ---------------------------------------------------------------------------------

    def _put(self, put: d.RecordPut, _now_us: int) -> d.RecordAnswer:
        self._sql("INSERT OR REPLACE INTO record (space, key, value) VALUES (?, ?, ?)",
                  (put.space, put.key, put.piece))
        return d.RecordAnswer(0)

    def _delete(self, delete: d.RecordDelete, _now_us: int) -> d.RecordAnswer:
        self._sql("DELETE FROM record WHERE space = ? AND key = ?", (delete.space, delete.key))
        return d.RecordAnswer(0)

    def _list(self, asked: d.RecordList, _now_us: int) -> d.RecordLines:
        where = "space = ? AND key > ?" if asked.onward else "space = ? AND key >= ?"
        rows = self._sql(
            f"SELECT key, number, length(value) FROM record WHERE {where} ORDER BY key LIMIT ?",
            (asked.space, asked.after if asked.onward else b"", d.LINES_MAX + 1)).fetchall()
        lines: list[d.RecordLine] = []
        room = d.LINES_BYTES_MAX
        for key, number, size in rows[:d.LINES_MAX]:
            cost = d.LINE_BYTES + len(key) + min(size, d.PIECE_BYTES)
            if cost > room and lines:
                return d.RecordLines(0, tuple(lines), True)
            room -= cost
            lines.append(d.RecordLine(key, number, size, self._value(number)[:d.PIECE_BYTES]))
        return d.RecordLines(0, tuple(lines), len(rows) > d.LINES_MAX)

    def _get(self, asked: d.RecordGet, _now_us: int) -> d.RecordPiece:
        row = self._sql("SELECT number FROM record WHERE space = ? AND key = ?",
                        (asked.space, asked.key)).fetchone()
        if row is None or row[0] != asked.version:
            return d.RecordPiece(errno.ESTALE)
        value = self._value(asked.version)
        return d.RecordPiece(0, value[asked.offset:asked.offset + d.PIECE_BYTES])

    def forget_read(self) -> None:
        """What was read may not be so: the transaction is undone."""
        self._read = -1, b""

    def _value(self, number: int) -> bytes:
        """Kept until the next one is asked for: a long one is read in many pieces."""
        if self._read[0] != number:
            row = self._sql("SELECT value FROM record WHERE number = ?", (number,)).fetchone()
            self._read = number, cast(bytes, row[0])
        return self._read[1]
