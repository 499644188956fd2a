"""One process of a measurement: `python -m benchmarks.worker TASK ARGUMENTS-AS-JSON`.

It sets up, prints "ready", waits for a line, warms up, prints "warm", works, prints "done", waits
for a line (its connection is open until then, so that a server's process for it can still be
measured), and prints one line of JSON. Every answer of a server is looked at; anything but what was
asked for ends the worker with an error.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from benchmarks import tasks_aio, tasks_api, tasks_dss, tasks_recovery
from benchmarks.task import LEASE_S, WrongAnswerError, expect, repeat, say, wait_for_go

# ---- The floor -----------------------------------------------------------------------------------


def echo(listener: int, connections: int, wait: str) -> dict[str, Any]:
    """The bare C server of the floor."""
    from benchmarks import native

    wait_for_go("ready")
    native.echo_serve(listener, connections, wait)
    return {}


# ---- dlock ---------------------------------------------------------------------------------------


def _dlock_client(host: str, port: int, wait: str) -> int:
    from dlock import dclient
    from dlock.types import ClientCfg, DlockStatus

    expect(dclient.dclient_lib_init(ClientCfg(primary_port=port, wait_mode=wait)),
           DlockStatus.SUCCESS)
    status, client_id = dclient.client_init(host)
    expect(status, DlockStatus.SUCCESS)
    assert client_id is not None
    return client_id


def _dlock_leave(client_id: int) -> None:
    from dlock import dclient

    dclient.client_deinit(client_id)
    dclient.dclient_lib_deinit()


def dlock_pairs(host: str, port: int, wait: str, seconds: float, name: str,
                waits: bool = False) -> dict[str, Any]:
    """trylock (or, `waits`, lock) and unlock of one lock, one call at a time."""
    from dlock import dclient
    from dlock.types import DlockType, LockDesc, LockOp, LockRequest

    client_id = _dlock_client(host, port, wait)
    status, lock_id = dclient.get_lock(client_id, LockDesc(name.encode(), DlockType.ATOMIC))
    expect(status, 0)
    request = LockRequest(lock_id or 0, LockOp.LOCK_EXCLUSIVE, LEASE_S)
    take, give = dclient.lock if waits else dclient.trylock, dclient.unlock

    def once() -> None:
        status, _ = take(client_id, request)
        if status:
            raise WrongAnswerError(f"lock: {status!r}")
        status, _ = give(client_id, lock_id)
        if status:
            raise WrongAnswerError(f"unlock: {status!r}")

    result = repeat(once, 1, seconds)
    _dlock_leave(client_id)
    return result


def dlock_batches(host: str, port: int, wait: str, seconds: float, name: str,
                  size: int) -> dict[str, Any]:
    """batch_trylock and batch_unlock of so many locks."""
    from dlock import dclient
    from dlock.types import DlockType, LockDesc, LockOp, LockRequest

    client_id = _dlock_client(host, port, wait)
    descriptors = [LockDesc(f"{name}/{k}".encode(), DlockType.ATOMIC) for k in range(size)]
    status, lock_ids = dclient.batch_get_lock(client_id, descriptors)
    expect(status, 0)
    assert lock_ids
    requests = [LockRequest(one, LockOp.LOCK_EXCLUSIVE, LEASE_S) for one in lock_ids]

    def once() -> None:
        for status, results in (
            dclient.batch_trylock(client_id, requests), dclient.batch_unlock(client_id, lock_ids),
        ):
            if status or results is None or any(one.op_ret for one in results):
                raise WrongAnswerError(f"{status!r} {results}")

    result = repeat(once, size, seconds)
    _dlock_leave(client_id)
    return result


def dlock_in_flight(host: str, port: int, wait: str, seconds: float, name: str,
                    size: int) -> dict[str, Any]:
    """So many requests in flight on one client of the C library, called from Python."""
    from benchmarks.processes import Address
    from benchmarks.sessions import library_clients
    from dlock import _core
    from dlock._core import ffi, lib

    statuses = _core.layout("dlk_call", ("status",))
    with library_clients(Address(host, port, 0), 1, wait,
                         [f"{name}/{k}" for k in range(size)], "atomic") as (clients, lock_ids):
        calls = {}
        for verb in (lib.DLK_VERB_TRYLOCK, lib.DLK_VERB_UNLOCK):
            calls[verb] = ffi.new("struct dlk_call[]", [
                {"verb": verb, "lock_id": one, "lease_ms": LEASE_S * 1000} for one in lock_ids])

        def once() -> None:
            for array_of_calls in calls.values():
                status = lib.dlk_client_batch(clients[0], array_of_calls, size)
                while status == lib.DLK_STATUS_PENDING:
                    status = lib.dlk_client_batch_wait(clients[0], array_of_calls, size)
                data = ffi.buffer(array_of_calls)
                if status or any(one for (one,) in statuses.iter_unpack(data)):
                    raise WrongAnswerError(f"batch: {status}")

        return repeat(once, size, seconds)


# ---- Peers ---------------------------------------------------------------------------------------

RELEASE_SCRIPT: Final = (
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) "
    "else return 0 end"
)


def redis_lock(host: str, port: int, seconds: float, name: str) -> dict[str, Any]:
    """redis-py's own Lock."""
    import redis

    lock = redis.Redis(host=host, port=port).lock(name, timeout=LEASE_S)

    def once() -> None:
        expect(lock.acquire(blocking=False), True)
        lock.release()

    return repeat(once, 1, seconds)


def redis_pipeline(host: str, port: int, seconds: float, name: str, size: int) -> dict[str, Any]:
    """redis-py's pipeline: so many SET NX PX, then so many compare-and-delete."""
    import redis

    connection = redis.Redis(host=host, port=port)
    script = connection.script_load(RELEASE_SCRIPT)
    names = [f"{name}/{k}" for k in range(size)]
    token = os.urandom(16).hex()
    taken, freed = [True] * size, [1] * size

    def once() -> None:
        with connection.pipeline(transaction=False) as pipe:
            for one in names:
                pipe.set(one, token, nx=True, px=LEASE_S * 1000)
            expect(pipe.execute(), taken)
            for one in names:
                pipe.evalsha(script, 1, one, token)
            expect(pipe.execute(), freed)

    return repeat(once, size, seconds)


def _resp(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(
        b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words)


def redis_raw(host: str, port: int, seconds: float, name: str, size: int) -> dict[str, Any]:
    """The same with requests written beforehand and answers compared as bytes: no client library
    could be cheaper, so that Redis is what is measured."""
    connected = socket.create_connection((host, port))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.sendall(_resp("SCRIPT", "LOAD", RELEASE_SCRIPT))
    script = connected.recv(4096).split(b"\r\n")[1].decode()
    token = os.urandom(16).hex()
    names = [f"{name}/{k}" for k in range(size)]
    take = b"".join(_resp("SET", one, token, "NX", "PX", str(LEASE_S * 1000)) for one in names)
    give = b"".join(_resp("EVALSHA", script, "1", one, token) for one in names)
    exchanges = [(take, b"+OK\r\n" * size), (give, b":1\r\n" * size)]
    receive = connected.recv

    def once() -> None:
        for question, wanted in exchanges:
            connected.sendall(question)
            answer = receive(65536)
            while len(answer) < len(wanted):
                more = receive(65536)
                if not more:
                    raise WrongAnswerError("the connection ended")
                answer += more
            if answer != wanted:
                raise WrongAnswerError(repr(answer[:80]))

    with connected:
        return repeat(once, size, seconds)


def postgres(host: str, port: int, seconds: float, name: str) -> dict[str, Any]:
    """Advisory locks of a PostgreSQL session, prepared statements, no transaction around."""
    import psycopg

    with psycopg.connect(f"host={host} port={port} user=postgres dbname=postgres",
                         autocommit=True, prepare_threshold=0) as connection:
        cursor = connection.cursor()
        key = abs(hash(name)) % 2**31

        def once() -> None:
            for statement in ("SELECT pg_try_advisory_lock(%s)", "SELECT pg_advisory_unlock(%s)"):
                cursor.execute(statement, (key,))
                expect(cursor.fetchone(), (True,))

        return repeat(once, 1, seconds)


def file_lock(path: str, seconds: float) -> dict[str, Any]:
    """FileLock: flock on a file of this host."""
    import filelock

    lock = filelock.FileLock(path)

    def once() -> None:
        lock.acquire(timeout=0)
        lock.release()

    return repeat(once, 1, seconds)


ALL: Final[tuple[Callable[..., dict[str, Any]], ...]] = (
    echo, dlock_pairs, dlock_batches, dlock_in_flight, redis_lock, redis_pipeline, redis_raw,
    postgres, file_lock, *tasks_api.TASKS, *tasks_aio.TASKS, *tasks_recovery.TASKS,
    *tasks_dss.TASKS,
)
TASKS: Final = {task.__name__: task for task in ALL}


def main() -> None:
    """See the module."""
    say(json.dumps(TASKS[sys.argv[1]](**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
