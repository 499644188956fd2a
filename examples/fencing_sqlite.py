"""A writer that comes too late, and an SQLite database that refuses it.

Two processes' worth of work in one: the first writer takes the lock with a short lease and is then
held up for longer than that (a full disk, a long garbage collection, a suspended machine). The lock
passes on to the second writer. When the first one goes on, it still believes that it may write; the
database knows better, since it has seen the second one's token.

    dlock serve &
    python examples/fencing_sqlite.py
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import dlock

LEASE_S = 0.3

SCHEMA = """
CREATE TABLE account (name TEXT PRIMARY KEY, balance INTEGER NOT NULL);
CREATE TABLE fence (resource TEXT PRIMARY KEY, token INTEGER NOT NULL);
INSERT INTO account VALUES ('petty cash', 100);
INSERT INTO fence VALUES ('petty cash', 0);
"""


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """One step: all of it or nothing, and nobody else in between."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def fence_of(db: sqlite3.Connection, resource: str) -> dlock.FenceGuard:
    """The guard of one resource, which keeps its token in a row of the same database."""

    def read() -> int:
        row = db.execute("SELECT token FROM fence WHERE resource = ?", (resource,)).fetchone()
        return int(row[0])

    def write(token: int) -> None:
        db.execute("UPDATE fence SET token = ? WHERE resource = ?", (token, resource))

    return dlock.FenceGuard(read, write)


def set_balance(db: sqlite3.Connection, token: int, balance: int) -> None:
    """The write, with the token of the hold under which it is made."""
    with transaction(db):
        fence_of(db, "petty cash").check(token)
        db.execute("UPDATE account SET balance = ? WHERE name = 'petty cash'", (balance,))


def balance_of(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT balance FROM account").fetchone()[0])


def run(address: str | None, path: Path) -> int:
    """Plays the story; what the account holds at the end."""
    with (
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db,
        dlock.connect(address) as slow,
        dlock.connect(address) as quick,
    ):
        db.executescript(SCHEMA)
        late = slow.lock("petty cash", lease=LEASE_S, renew=False)
        late.acquire()
        token, seen = late.token, balance_of(db)
        print(f"first writer: holds the lock with token {token}, read {seen}, is held up")
        time.sleep(2 * LEASE_S)

        with quick.lock("petty cash") as lock:
            set_balance(db, lock.token, seen - 30)
            print(f"second writer: token {lock.token}, wrote {seen - 30}")

        try:
            set_balance(db, token, seen + 50)
        except dlock.StaleToken as error:
            print(f"first writer: refused: {error}")
        with contextlib.suppress(dlock.LockLost):
            late.release()
        return balance_of(db)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        left = run(sys.argv[1] if len(sys.argv) > 1 else None, Path(folder) / "cash.db")
    print(f"the account holds {left}")
