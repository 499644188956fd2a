"""One synchronous Python client's lock and unlock: against two bare round trips in the same waiting
mode, and against the peers, all in each run."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks import part_floor, peers
from benchmarks.machine import cores, cpu_seconds
from benchmarks.plan import Plan
from benchmarks.processes import Address, Worker, dlock_server
from benchmarks.processes import measure as measure_worker
from benchmarks.report import Figures, Target, at_least, at_most

# How both ends wait, and the floor that the mode is held against.
FLOOR_OF: Final = {"block": "block", "adaptive": "poll", "poll": "poll"}
TARGET_OF: Final = {"block": at_most(1.2), "adaptive": at_most(1.5), "poll": at_most(1.5)}
REDIS_TIMES_ADAPTIVE: Final = 5.0


def worker_on(server: Address, task: str, **arguments: Any) -> dict[str, Any]:
    """One worker against one server; adds what the server burnt."""
    with Worker(task, cores()[1],
                {"host": server.host, "port": server.port, **arguments}) as worker:
        worker.wait("ready")
        worker.go()
        worker.wait("warm")
        before = server_cpu_seconds(server.pid)
        worker.wait("done")
        burnt = sum(spent - before.get(pid, 0)
                    for pid, spent in server_cpu_seconds(server.pid).items())
        found = worker.result()
    return {**found, "server_cores": burnt / found["elapsed_s"],
            "client_cores": found["cpu_s"] / found["elapsed_s"]}


def server_cpu_seconds(pid: int) -> dict[int, float]:
    """Of a server and its children (PostgreSQL has one a connection), by process."""
    spent = {pid: cpu_seconds(pid)}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    spent[int(child)] = cpu_seconds(int(child))
    return spent


def dlock_pair(mode: str, seconds: float) -> dict[str, Any]:
    """trylock and unlock through dlock.dclient, both ends in this mode."""
    with dlock_server(mode, cores()[0]) as server:
        return worker_on(server, "dlock_pairs", wait=mode, seconds=seconds, name="latency")


def redis_pair(seconds: float) -> dict[str, Any]:
    """redis-py's Lock."""
    with peers.redis_server(cores()[0]) as server:
        return worker_on(server, "redis_lock", seconds=seconds, name="latency")


def postgres_pair(seconds: float) -> dict[str, Any]:
    """PostgreSQL's advisory locks."""
    with peers.postgres_server(cores()[0]) as server:
        return worker_on(server, "postgres", seconds=seconds, name="latency")


def file_pair(seconds: float) -> dict[str, Any]:
    """FileLock; no server at all."""
    peers.need_module("filelock")
    with tempfile.TemporaryDirectory() as folder:
        found = measure_worker("file_lock", cores()[1], path=f"{folder}/lock", seconds=seconds)
    return {**found, "server_cores": None, "client_cores": found["cpu_s"] / found["elapsed_s"]}


PEERS: Final[dict[str, Callable[[float], dict[str, Any]]]] = {
    "redis-py Lock": redis_pair,
    "PostgreSQL advisory lock": postgres_pair,
    "FileLock (one host only)": file_pair,
}


def measure(plan: Plan, figures: Figures) -> None:
    """Each run measures everything once, so that a ratio compares neighbours in time."""
    missing: set[str] = set()
    for _ in range(plan.runs):
        pairs = {mode: _beside_floor(plan, figures, mode, FLOOR_OF[mode]) for mode in FLOOR_OF}
        for name, peer in PEERS.items():
            if name in missing:
                continue
            try:
                found = peer(plan.seconds)
            except peers.MissingError as problem:
                missing.add(name)
                figures.skip(name, str(problem))
                continue
            _add(figures, name, found)
            _compare(figures, name, found["p50_us"], pairs)


def _beside_floor(plan: Plan, figures: Figures, mode: str, floor: str) -> float:
    """dlock's pair between two measurements of the floor; its µs."""
    before, *burnt = part_floor.round_trip(floor, floor, plan.seconds / 2)
    found = dlock_pair(mode, plan.seconds)
    after, *_ = part_floor.round_trip(floor, floor, plan.seconds / 2)
    figures.row(f"two bare round trips, {floor}, beside {mode}", "us").add(before + after, *burnt)
    _add(figures, f"dlock, {mode}", found)
    figures.row(f"dlock {mode} / two round trips {floor}", "times", TARGET_OF[mode]).add(
        found["p50_us"] / (before + after))
    pair_us: float = found["p50_us"]
    return pair_us


def _add(figures: Figures, name: str, found: dict[str, Any]) -> None:
    figures.row(name, "us a pair").add(found["p50_us"], found["server_cores"],
                                       found["client_cores"])
    figures.row(f"{name}, 99 of 100", "us a pair").add(found["p99_us"])


def _compare(figures: Figures, name: str, peer_us: float, pairs: dict[str, float]) -> None:
    if name.startswith("FileLock"):
        return
    ahead: Target = at_least(1.0)
    default = at_least(REDIS_TIMES_ADAPTIVE) if name.startswith("redis") else ahead
    figures.row(f"{name} / dlock adaptive", "times", default).add(peer_us / pairs["adaptive"])
    figures.row(f"{name} / dlock block", "times", ahead).add(peer_us / pairs["block"])
