"""kill -9 of a primary whose clients hold many locks: how long until the next one is READY, and
until every hold is confirmed at its client. Nothing may be lost."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.plan import Plan
from benchmarks.primary import HOST, Primary, Ready, Started, primary
from benchmarks.processes import Worker
from benchmarks.report import Figures, at_most

READY_S: Final = 2.0
DEAD_S: Final = 1.0  # between the kill and the next start: everybody has noticed, and waits


@dataclass(frozen=True)
class Shape:
    """How many clients, holds of them all, and processes that the clients are in. `ttl_s`: of the
    sessions; who has not come back after 1.26 times as long is not waited for."""

    clients: int
    locks: int
    processes: int = 32
    ttl_s: float = 10.0
    limit_s: float = 60.0

    def __str__(self) -> str:
        return f"{self.clients:,} clients, {self.locks:,} locks"


MAIN: Final = Shape(1000, 51_200)
GROWTH: Final = (Shape(10, 51_200, 10), Shape(100, 51_200), Shape(1000, 1000), Shape(1000, 10_000),
                 Shape(1000, 100_000, ttl_s=30.0))
LARGE: Final = Shape(1000, 1_000_000, ttl_s=300.0, limit_s=900.0)
QUICK: Final = Shape(4, 40, 2)


def measure(plan: Plan, figures: Figures) -> None:
    """The one with targets in every run, the others once."""
    if plan.quick:
        recovery(figures, QUICK)
        return
    for _ in range(plan.runs):
        recovery(figures, MAIN)
    for shape in (*GROWTH, *([LARGE] if plan.large else [])):
        recovery(figures, shape)


def recovery(figures: Figures, shape: Shape) -> None:
    """One death."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        server = stack.enter_context(primary(
            Path(folder), session_ttl_s=shape.ttl_s, max_locks=shape.locks,
            max_clients=shape.clients))
        workers = [stack.enter_context(Worker("recovery_holders", None, arguments))
                   for arguments in shares(server, shape)]
        for one in workers:
            one.wait("ready")
        server.kill()
        for one in workers:
            one.go()
        time.sleep(DEAD_S)
        started = server.start()
        ready = server.wait_ready(shape.limit_s)
        for one in workers:
            one.wait("done")
        _add(figures, shape, started, ready, [one.result() for one in workers])


def shares(server: Primary, shape: Shape) -> list[dict[str, Any]]:
    """What each process is told: clients and locks as even as can be."""
    count = min(shape.processes, shape.clients)

    def share(whole: int, number: int) -> int:
        return whole * (number + 1) // count - whole * number // count

    return [{"host": HOST, "port": server.port, "wait": "block", "ttl": shape.ttl_s,
             "limit": shape.limit_s, "clients": share(shape.clients, number),
             "locks": share(shape.locks, number), "name": str(number)} for number in range(count)]


def _add(figures: Figures, shape: Shape, started: Started, ready: Ready,
         found: list[dict[str, Any]]) -> None:
    bound = shape in (MAIN, QUICK)
    elapsed_s = ready.ready_s - started.exec_s
    confirmed_s = max(one["confirmed_s"] for one in found) - started.exec_s
    figures.row(f"{shape}: exec to listening", "s").add(started.own_s)
    figures.row(f"{shape}: exec to READY", "s", at_most(READY_S) if bound else None).add(
        elapsed_s, ready.cpu_s / elapsed_s)
    figures.row(f"{shape}: the primary's CPU until READY", "s").add(ready.cpu_s)
    figures.row(f"{shape}: the clients' CPU from the kill on", "s").add(
        sum(one["cpu_s"] for one in found))
    figures.row(f"{shape}: exec to every hold confirmed", "s").add(confirmed_s)
    figures.row(f"{shape}: lost", "holds", at_most(0)).add(sum(one["lost"] for one in found))
