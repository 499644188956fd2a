"""The tasks of worker processes for durable locks: `dlock.dss`, and rows of PostgreSQL as phobos
has them. Imported by benchmarks/worker.py."""

from __future__ import annotations

from typing import Any, Final

from benchmarks.task import expect, repeat

NAMES: Final = 64  # that one process takes and gives back in turn
# As the phobos guide has it, but for the anonymous block around the delete.
TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS lock (id varchar(2048) PRIMARY KEY, owner varchar(256) NOT NULL,"
    " timestamp timestamp DEFAULT now())")
INSERT: Final = "INSERT INTO lock (id, owner) VALUES (%s, %s)"
DELETE: Final = "DELETE FROM lock WHERE id = %s AND owner = %s"


def dss(host: str, port: int, seconds: float, name: str) -> dict[str, Any]:
    """lock and unlock of a handle, one after the other."""
    from dlock import dss as calls

    handle = calls.DssHandle(f"{host}:{port}")
    expect(calls.dss_init(handle), 0)
    turn = 0

    def once() -> None:
        nonlocal turn
        turn += 1
        lock_id = f"{name}/{turn % NAMES}"
        expect(calls.dss_lock(handle, lock_id, "owner"), 0)
        expect(calls.dss_unlock(handle, lock_id, "owner"), 0)

    try:
        return repeat(once, 1, seconds)
    finally:
        calls.dss_fini(handle)


def postgres_rows(host: str, port: int, seconds: float, name: str) -> dict[str, Any]:
    """The same as rows that are inserted and deleted, prepared, each a transaction of its own."""
    import psycopg

    with psycopg.connect(f"host={host} port={port} user=postgres dbname=postgres",
                         autocommit=True, prepare_threshold=0) as connection:
        cursor = connection.cursor()
        turn = 0

        def once() -> None:
            nonlocal turn
            turn += 1
            lock_id = f"{name}/{turn % NAMES}"
            for statement in (INSERT, DELETE):
                cursor.execute(statement, (lock_id, "owner"))
                expect(cursor.rowcount, 1)

        return repeat(once, 1, seconds)


def postgres_table(host: str, port: int) -> dict[str, Any]:
    """Makes the table."""
    import psycopg

    with psycopg.connect(f"host={host} port={port} user=postgres dbname=postgres",
                         autocommit=True) as connection:
        connection.execute(TABLE)
    return {}


TASKS: Final = (dss, postgres_rows, postgres_table)
