"""One SQLite file, written by one primary: transactions that are on the disk when they return.

WAL, synchronous=FULL: a commit is one write to the log and one fdatasync. The file is opened by
nobody else (locking_mode=EXCLUSIVE, which also needs no shared memory), each primary has its own
(durable_files). The log is as long as it will get before the first commit, and is used again from
its begin after each checkpoint, so that a commit changes no size and no block map: the file system
has nothing to write down but the data. Checkpoints are asked for (`tidy`), never automatic: what is
in the log may be copied by the next primary, and must not move while that is possible.

Used by one thread.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dlock.control import messages_durable as d
from dlock.control.durable_tables import SCHEMA, Tables, refused
from dlock.control.messages_base import Message

FORMAT: Final = 1
PAGE_BYTES: Final = 4096
LOG_PAGES: Final = 1024  # before a checkpoint
LOG_BYTES: Final = LOG_PAGES * (PAGE_BYTES + 256)
LOG_BYTES_KEPT: Final = 16 << 20  # of a log that long records have made longer
PAGES_A_CHANGE: Final = 3
CHECKED_BYTES_MAX: Final = 256 << 20  # a longer file is not read whole when it is opened

# Of SQLite's results, by their lowest byte.
SQLITE_NOMEM, SQLITE_READONLY, SQLITE_IOERR, SQLITE_CORRUPT = 7, 8, 10, 11
SQLITE_FULL, SQLITE_CANTOPEN, SQLITE_NOTADB = 13, 14, 26
ERRORS: Final = {
    SQLITE_FULL: errno.ENOSPC,
    SQLITE_NOMEM: errno.ENOMEM,
    SQLITE_IOERR: errno.EIO,
    SQLITE_READONLY: errno.EIO,
    SQLITE_CANTOPEN: errno.EIO,
}
# What Python 3.10 says of them, which has no numbers.
TEXTS: Final = {
    "database or disk is full": SQLITE_FULL,
    "disk I/O error": SQLITE_IOERR,
    "attempt to write a readonly database": SQLITE_READONLY,
    "unable to open database file": SQLITE_CANTOPEN,
    "database disk image is malformed": SQLITE_CORRUPT,
    "file is not a database": SQLITE_NOTADB,
}


class DamagedError(Exception):
    """The file is no store, or a broken one; the text says why."""


def error_of(problem: Exception) -> int:
    """The errno that a caller is told for what went wrong with a file."""
    if isinstance(problem, MemoryError):
        return errno.ENOMEM
    if isinstance(problem, OSError) and not isinstance(problem, ConnectionError):
        return errno.ENOSPC if problem.errno in (errno.ENOSPC, errno.EDQUOT) else errno.EIO
    return ERRORS.get(_result_of(problem), errno.ECOMM)


def is_damage(problem: Exception) -> bool:
    """The file cannot be read for what it is."""
    return _result_of(problem) in (SQLITE_CORRUPT, SQLITE_NOTADB)


def _result_of(problem: Exception) -> int:
    code = getattr(problem, "sqlite_errorcode", None)
    return TEXTS.get(str(problem), 0) if code is None else code & 0xFF


class Store:
    """An open file. sqlite3.Error, OSError, DamagedError where it cannot be opened."""

    def __init__(self, path: Path, epoch: int, incarnation: int, *, create: bool = False) -> None:
        """For the primary of this epoch and incarnation; `create`: makes a new one."""
        self.path = path
        self._epoch = epoch
        self._log_pages = 0
        # Transactions are begun and ended by hand.
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=0)
        try:
            self._prepare(create)
        except BaseException:
            self._connection.close()
            raise
        self.tables = Tables(self._connection, epoch, incarnation)

    def _prepare(self, create: bool) -> None:
        for pragma in (f"page_size = {PAGE_BYTES}", "locking_mode = EXCLUSIVE",
                       "synchronous = FULL", "wal_autocheckpoint = 0", "trusted_schema = OFF",
                       f"journal_size_limit = {LOG_BYTES_KEPT}", "secure_delete = OFF"):
            self._connection.execute(f"PRAGMA {pragma}")
        mode = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise DamagedError(f"the file system of {self.path} allows no write-ahead log")
        if create:
            self._connection.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA:
                self._connection.execute(statement)
            self._connection.execute("INSERT INTO meta VALUES ('format', ?)", (FORMAT,))
            self._connection.execute("COMMIT")
        try:
            found = self._connection.execute(
                "SELECT value FROM meta WHERE name = 'format'").fetchone()
        except sqlite3.OperationalError as problem:
            if "no such table" not in str(problem):
                raise
            found = None
        if found is None or found[0] != FORMAT:
            raise DamagedError(f"{self.path} is not of format {FORMAT}")

    def check(self) -> None:
        """Reads the file through, unless it is very long. DamagedError."""
        if self.path.stat().st_size <= CHECKED_BYTES_MAX:
            found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise DamagedError(f"{self.path} is damaged: {found}")

    # ---- Transactions ----------------------------------------------------------------------------

    def transact(self, requests: Sequence[Message], now_us: int) -> tuple[list[Message], list[str]]:
        """Carries these out, in their order, as one transaction, which is on the disk when this
        returns; their answers, and what went wrong. If it cannot be, each is one of its own, so
        that a request that has no room does not take the others with it."""
        try:
            return self._transaction(requests, now_us), []
        except (sqlite3.Error, MemoryError) as problem:
            problems = [str(problem)]
            self._roll_back()
            if len(requests) == 1:
                return [refused(requests[0], self._outcome(problem), self._epoch)], problems
        answers = []
        for request in requests:
            alone, also = self.transact([request], now_us)
            answers += alone
            problems += also
        return answers, problems

    def _transaction(self, requests: Sequence[Message], now_us: int) -> list[Message]:
        self._committing = False
        self._connection.execute("BEGIN IMMEDIATE")
        before = self._connection.total_changes
        answers = [self.tables.carry_out(request, now_us) for request in requests]
        self._committing = True
        self._connection.execute("COMMIT")
        self._log_pages += PAGES_A_CHANGE * (self._connection.total_changes - before)
        self._log_pages += sum(len(request.piece) // PAGE_BYTES for request in requests
                               if isinstance(request, d.RecordPut))
        return answers

    def _roll_back(self) -> None:
        self.tables.forget_read()
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _outcome(self, problem: Exception) -> int:
        """What to say of a request that failed. If that was in its commit, the log may have it all
        the same, whole, and a primary after a crash would find it there; unless something else has
        been written in its place since."""
        error = error_of(problem)
        if not self._committing or error == errno.ENOSPC:
            return error
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self.tables.set_meta("settled", str(self._connection.total_changes))
            self._connection.execute("COMMIT")
            return error
        except sqlite3.Error:
            self._roll_back()
            return errno.ECOMM

    # ---- The log ---------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Between transactions, while the file is ours for certain: begins the log anew when it is
        long. sqlite3.Error: that may be tried again."""
        if self._log_pages > LOG_PAGES:
            self.checkpoint()

    def checkpoint(self, mode: str = "PASSIVE") -> None:
        """Moves what is in the log into the file."""
        self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        self._log_pages = 0

    def close(self) -> None:
        """Lets the file go, whose log stays as it is if it cannot be emptied."""
        self._connection.close()


def log_of(path: Path) -> Path:
    """Where SQLite keeps the log of this file."""
    return path.with_name(path.name + "-wal")


def lay_out_log(path: Path) -> None:
    """Makes the log of a file that has none as long as it will be; SQLite takes zeros for an empty
    one. OSError."""
    fd = os.open(log_of(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, bytes(LOG_BYTES))
        os.fsync(fd)
    finally:
        os.close(fd)
