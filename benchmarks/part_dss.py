"""Durable locks: pairs of lock and unlock, each call on the disk before it returns, by one process
and by eight; beside the cost of a sync of this disk, and the same rows in PostgreSQL with fsync.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from typing import Final

from benchmarks import peers
from benchmarks.machine import Meter
from benchmarks.plan import Plan
from benchmarks.processes import Address, Worker, dlock_server
from benchmarks.report import Figures, at_least

# What phobos does on PostgreSQL with fsync on such a machine, by processes.
TARGETS: Final = {1: 130, 8: 1700}
COMMIT_BYTES: Final = 2 * (4096 + 24)  # what a commit writes: two pages, each with its head
FILE_BYTES: Final = 4 << 20
SYNCS: Final = 400


def sync_us(syncs: int) -> float:
    """A write of a commit's size into a file that has its length already, and fdatasync; the mean,
    in the folder in which the servers of this part keep their state."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(FILE_BYTES))
        os.fsync(file.fileno())
        data = os.urandom(COMMIT_BYTES)
        began = time.perf_counter()
        for number in range(syncs):
            os.pwrite(file.fileno(), data, number * COMMIT_BYTES % (FILE_BYTES - COMMIT_BYTES))
            os.fdatasync(file.fileno())
        return (time.perf_counter() - began) / syncs * 1e6


def pairs(server: Address, task: str, processes: int, seconds: float) -> tuple[float, float]:
    """Pairs a second of all processes together, and the server's CPU."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(task, arguments={
            "host": server.host, "port": server.port, "seconds": seconds, "name": str(number)}))
            for number in range(processes)]
        for state in ("ready", "warm"):
            for one in workers:
                one.wait(state)
            if state == "ready":
                for one in workers:
                    one.go()
        meter = Meter(server.pid)
        for one in workers:
            one.wait("done")
        server_cores = meter.cores()
        return sum(map(_rate, workers)), server_cores


def _rate(worker: Worker) -> float:
    found = worker.result()
    return float(found["count"] / found["elapsed_s"])


def of_dlock(plan: Plan, figures: Figures) -> None:
    """Each count of processes, with what a sync costs in between."""
    for processes, target in TARGETS.items():
        sync = sync_us(SYNCS // 10 if plan.quick else SYNCS)
        with dlock_server("adaptive") as server:
            found, server_cores = pairs(server, "dss", processes, plan.seconds)
        figures.row("a write of a commit's size and fdatasync", "us").add(sync)
        figures.row(_name(processes), "pairs/s", at_least(target)).add(found, server_cores)
        figures.row(f"{_name(processes)}: time of a pair / two bare syncs", "times").add(
            processes / found / (2e-6 * sync) / processes)


def of_postgres(plan: Plan, figures: Figures) -> None:
    """The same rows there, with fsync."""
    try:
        with peers.postgres_server(None, durable=True) as server:
            with Worker("postgres_table", arguments={
                    "host": server.host, "port": server.port}) as made:
                made.result()
            for processes in TARGETS:
                found, _ = pairs(server, "postgres_rows", processes, plan.seconds)
                figures.row(f"PostgreSQL, {_name(processes)}", "pairs/s").add(found)
    except peers.MissingError as problem:
        figures.skip("PostgreSQL", str(problem))


def _name(processes: int) -> str:
    return f"lock and unlock, {processes} process{'es'[:2 * (processes > 1)]}"


def measure(plan: Plan, figures: Figures) -> None:
    """Both, in turn."""
    for _ in range(plan.runs):
        of_dlock(plan, figures)
        of_postgres(plan, figures)
