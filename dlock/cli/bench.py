"""`dlock bench`: how fast a server answers here, for a user.

It starts a private server unless it is told of one, runs clients in processes of their own, and
ends everything that it started."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

from dlock import dclient
from dlock.cli.common import EXIT_CLEAN, EXIT_FAILED, EXIT_USAGE, add_parser
from dlock.server import WAIT_MODES, AddressError, Server, ServerConfig, ServerError
from dlock.types import (
    AtomicDesc,
    ClientCfg,
    DlockStatus,
    DlockType,
    LockDesc,
    LockOp,
    LockRequest,
)

CLIENTS_MAX: Final = 256
SECONDS_MAX: Final = 60.0
BATCH_MAX: Final = 31
LEASE_S: Final = 60
WARM_UP_SHARE: Final = 0.1
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 5.0
EXIT_CODES: Final = {
    EXIT_CLEAN: "measured",
    EXIT_FAILED: "it could not be measured; the message says why",
    EXIT_USAGE: "a flag or value is wrong",
}


@dataclass(frozen=True)
class Job:
    """One row: what every client does. `shared`: all on one name, waiting for it."""

    name: str
    kind: DlockType | None  # None: fetch-and-add
    op: LockOp = LockOp.LOCK_EXCLUSIVE
    shared: bool = False


JOBS: Final = (
    Job("atomic", DlockType.ATOMIC),
    Job("rw, reading", DlockType.RW, LockOp.LOCK_SHARED),
    Job("rw, writing", DlockType.RW),
    Job("fair", DlockType.FAIR),
    Job("atomic, all on one name", DlockType.ATOMIC, shared=True),
    Job("fair, all on one name", DlockType.FAIR, shared=True),
    Job("fetch-and-add", None, shared=True),
)


@dataclass
class Row:
    """What came of a job: operations (lock and unlock together are one) of all clients."""

    name: str
    clients: int
    batch: int
    per_second: float
    p50_us: float
    p99_us: float


class BenchError(Exception):
    """It cannot go on; the text says why."""


def register(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_parser(
        subparsers, "bench", help="measure latency and throughput", exit_codes=EXIT_CODES,
        description="Measures lock and unlock pairs of each kind, and fetch-and-add.")
    parser.add_argument("--connect", metavar="HOST:PORT",
                        help="a running server; default: a private one, ended afterwards")
    parser.add_argument("--clients", metavar="N", type=_between(int, 1, CLIENTS_MAX), default=1,
                        help="processes, a client each (default 1)")
    parser.add_argument("--seconds", metavar="S", type=_between(float, 0.01, SECONDS_MAX),
                        default=1.0, help="for each row (default 1)")
    parser.add_argument("--batch", metavar="N", type=_between(int, 1, BATCH_MAX), default=1,
                        help=f"locks a call, 1..{BATCH_MAX} (default 1)")
    parser.add_argument("--wait", choices=tuple(WAIT_MODES),
                        default=os.environ.get("DLOCK_WAIT") or "adaptive",
                        help="how clients, and the private server, wait (default adaptive)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def _between(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not in {low}..{high}")
        return value

    return parse


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints; returns the exit code."""
    started = Started()
    try:
        address = _address(arguments.connect) if arguments.connect else None
        host, port = address or started.server(arguments.wait)
        clients = [started.client(host, port, arguments.wait) for _ in range(arguments.clients)]
        rows = measure(clients, arguments.seconds, arguments.batch)
    except BenchError as problem:
        print(f"dlock bench: {problem}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        started.end()
    where = arguments.connect or "a private server"
    if arguments.json:
        print(json.dumps({"server": where, "wait": arguments.wait,
                          "rows": [asdict(row) for row in rows]}))
    else:
        print(f"{arguments.clients} clients at {where}, waiting {arguments.wait}, "
              f"{arguments.batch} a call; a pair is lock and unlock\n")
        print(f"{'':<26}{'a second':>12}{'median us':>12}{'99 % us':>12}")
        for row in rows:
            print(f"{row.name:<26}{row.per_second:>12,.0f}{row.p50_us:>12.1f}{row.p99_us:>12.1f}")
    return EXIT_CLEAN


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BenchError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def measure(clients: Sequence[Connection], seconds: float, batch: int) -> list[Row]:
    """Has every client do each job at the same time."""
    prefix = f"dlock-bench/{os.getpid()}/{os.urandom(4).hex()}"
    for client in clients:
        _answer(client, START_SECONDS)
    rows = []
    for job in JOBS:
        size = 1 if job.shared else batch
        for number, client in enumerate(clients):
            whose = "all" if job.shared else str(number)
            client.send((job, f"{prefix}/{job.name}/{whose}", seconds, size))
        samples = array("Q")
        rate = 0.0
        for client in clients:
            count, elapsed_ns, measured = _answer(client, START_SECONDS + 4 * seconds)
            samples.frombytes(measured)
            rate += count * 1e9 / elapsed_ns
        rows.append(Row(job.name, len(clients), size, rate, _quantile_us(samples, 0.5),
                        _quantile_us(samples, 0.99)))
    return rows


def _answer(client: Connection, seconds: float) -> Any:
    try:
        answer = client.recv() if client.poll(seconds) else BenchError("a client does not answer")
    except (EOFError, OSError):
        answer = BenchError("a client process ended")
    if isinstance(answer, BenchError):
        raise answer
    return answer


def _quantile_us(samples: array[int], share: float) -> float:
    ordered = sorted(samples)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] / 1000 if ordered else 0.0


# ---- What is started -----------------------------------------------------------------------------


class Started:
    """Processes that end when their end of the pipe closes: also when this one is killed."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._running: list[tuple[BaseProcess, Connection]] = []

    def _start(self, body: Callable[..., None], *arguments: object) -> Connection:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=body, args=(theirs, *arguments), daemon=True)
        process.start()
        theirs.close()
        self._running.append((process, ours))
        return ours

    def server(self, wait: str) -> tuple[str, int]:
        """Starts one; (host, port)."""
        host, port = _answer(self._start(_serve, wait), START_SECONDS)
        return host, port

    def client(self, host: str, port: int, wait: str) -> Connection:
        """Starts one; it says when it is there."""
        return self._start(_client, host, port, wait)

    def end(self) -> None:
        """Clients first, then the server that they leave."""
        server, clients = self._running[:1], self._running[1:]
        for group in (clients, server):
            for _, pipe in group:
                pipe.close()
            for process, _ in group:
                process.join(STOP_SECONDS)
                if process.is_alive():
                    process.kill()
                    process.join()


def _serve(pipe: Connection, wait: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        server = Server(ServerConfig(port=0, wait_mode=wait))
    except (AddressError, ServerError, MemoryError) as problem:
        pipe.send(BenchError(str(problem)))
        return
    pipe.send((server.host, server.port))
    _wait_for_end(pipe)
    server.stop()


def _wait_for_end(pipe: Connection) -> None:
    try:
        pipe.recv()
    except (EOFError, OSError):
        return


# ---- A client process ----------------------------------------------------------------------------


def _client(pipe: Connection, host: str, port: int, wait: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _must(dclient.dclient_lib_init(ClientCfg(primary_port=port, wait_mode=wait)), "init")
        status, client_id = dclient.client_init(host)
        if status == DlockStatus.BAD_RESPONSE:
            raise BenchError(f"no server answers at {host}:{port}; is `dlock serve` running there?")
        _must(status, f"client_init at {host}:{port}")
        assert client_id is not None
        pipe.send("ready")
        while True:
            job, name, seconds, batch = pipe.recv()
            pipe.send(_repeat(_operation(client_id, job, name, batch), batch, seconds))
    except BenchError as problem:
        pipe.send(problem)
    except (EOFError, OSError):
        pass
    finally:
        dclient.dclient_lib_deinit()


def _must(status: DlockStatus, doing: str) -> None:
    if status != DlockStatus.SUCCESS:
        raise BenchError(f"{doing}: {status.name}")


def _repeat(once: Callable[[], None], batch: int, seconds: float) -> tuple[int, int, bytes]:
    """(operations, ns, samples: ns an operation), without a warm-up."""
    clock = time.perf_counter_ns
    warm = clock() + int(seconds * WARM_UP_SHARE * 1e9)
    while clock() < warm:
        once()
    samples = array("Q")
    begin = before = clock()
    end = begin + int(seconds * 1e9)
    while before < end:
        once()
        after = clock()
        samples.append((after - before) // batch)
        before = after
    return len(samples) * batch, before - begin, samples.tobytes()


def _operation(client_id: int, job: Job, name: str, batch: int) -> Callable[[], None]:
    if job.kind is None:
        return _adding(client_id, name)
    descriptors = [LockDesc(f"{name}/{k}".encode(), job.kind) for k in range(batch)]
    status, lock_ids = dclient.batch_get_lock(client_id, descriptors)
    _must(status, "get_lock")
    if not lock_ids or min(lock_ids) < 0:
        raise BenchError("get_lock: the server gives out no more locks")
    requests = [LockRequest(lock_id, job.op, LEASE_S) for lock_id in lock_ids]
    if batch > 1:
        return _batches(client_id, requests, lock_ids)
    return _pairs(client_id, requests[0], waits=job.shared)


def _pairs(client_id: int, request: LockRequest, *, waits: bool) -> Callable[[], None]:
    take = dclient.lock if waits else dclient.trylock
    lock_id = request.lock_id

    def once() -> None:
        status, _ = take(client_id, request)
        while waits and status in (DlockStatus.EAGAIN, DlockStatus.FAIL):
            status, _ = take(client_id, request)
        if status:
            raise BenchError(f"lock: {status.name}")
        status, _ = dclient.unlock(client_id, lock_id)
        if status:
            raise BenchError(f"unlock: {status.name}")

    return once


def _batches(client_id: int, requests: list[LockRequest],
             lock_ids: list[int]) -> Callable[[], None]:
    def once() -> None:
        for status, results in (dclient.batch_trylock(client_id, requests),
                                dclient.batch_unlock(client_id, lock_ids)):
            if status or results is None or any(result.op_ret for result in results):
                raise BenchError("a batch: not every item succeeded")

    return once


def _adding(client_id: int, name: str) -> Callable[[], None]:
    description = AtomicDesc(name.encode(), LEASE_S)
    status, _ = dclient.umo_atomic64_create(client_id, description, 0)
    if status != DlockStatus.OBJECT_ALREADY_EXISTED:
        _must(status, "umo_atomic64_create")
    status, object_id = dclient.umo_atomic64_get(client_id, description)
    _must(status, "umo_atomic64_get")
    assert object_id is not None
    added = object_id

    def once() -> None:
        status, _ = dclient.umo_atomic64_faa(client_id, added, 1)
        if status:
            raise BenchError(f"umo_atomic64_faa: {status.name}")

    return once
