"""Pairs a second of one server core: from the C load generator, from Python, and Redis'."""

from __future__ import annotations

from typing import Any, Final

from benchmarks import native, part_floor, peers
from benchmarks.machine import Meter, cores, pinned
from benchmarks.part_latency import worker_on
from benchmarks.plan import Plan
from benchmarks.processes import Address, Worker, dlock_server
from benchmarks.report import Figures, at_least
from benchmarks.sessions import connections

# Clients, requests in flight of each: 1000 and more in all, as many clients in one process of
# numerical work have them.
SHAPES: Final = ((1, 1000), (16, 64), (64, 16), (256, 4))
MAX_LOCKS: Final = 10_000
WAIT_MS: Final = 30_000
PAIRS_OF_A_CORE: Final = 2.5e6
TIMES_REDIS: Final = 5.0
SHARE_OF_ECHO: Final = 1 / 3
REDIS_DEPTHS: Final = (1, 16, 50, 500)
BATCH: Final = 31
BATCH_PAIRS: Final = 200_000
BATCH_TIMES_REDIS: Final = 2.0
IN_FLIGHT: Final = 1000
PYTHON_CLIENTS: Final = (1, 16, 64, 256)


def load(server: Address, clients: int, window: int, seconds: float, *,
         shared_name: bool = False) -> tuple[float, float, float]:
    """Pairs a second, CPU of the server and of the generator."""
    wait_ms = WAIT_MS if shared_name else 0
    with (connections(server, clients, window, shared_name=shared_name,
                      wait_ms=wait_ms) as (fds, locks), pinned(cores()[1])):
        meter = Meter(server.pid)
        result = native.load(fds, window, seconds, "poll", locks=locks)
        server_cores = meter.cores()
    return result.rate, server_cores, result.cores


def generator(plan: Plan, figures: Figures) -> float:
    """The C load generator against a polling server; the best rate of this run."""
    best = 0.0
    for clients, window in SHAPES:
        shape = f"{clients} x {window} in flight"
        echo, *_ = part_floor.echo_rate(clients, window, plan.seconds)
        with dlock_server("poll", cores()[0], max_locks=MAX_LOCKS) as server:
            found = load(server, clients, window, plan.seconds)
        figures.row(f"C generator, {shape}", "pairs/s").add(*found)
        figures.row(f"its messages / bare echo, {shape}", "times", at_least(SHARE_OF_ECHO)).add(
            2 * found[0] / echo)
        best = max(best, found[0])
    figures.row("C generator, best shape", "pairs/s", at_least(PAIRS_OF_A_CORE)).add(best)
    with dlock_server("poll", cores()[0], max_locks=MAX_LOCKS) as server:
        for clients, _ in SHAPES:
            one = load(server, clients, 1, plan.seconds)
            figures.row(f"C generator, {clients} x 1 in flight", "pairs/s").add(*one)
            same = load(server, clients, 1, plan.seconds, shared_name=True)
            name = f"C generator, {clients} x 1, all waiting for one name"
            figures.row(name, "pairs/s").add(*same)
    return best


def redis(plan: Plan, figures: Figures, best: float, batches: float) -> None:
    """Redis' best pipelined rate, and redis-py's with batches as large as ours."""
    rates = []
    with peers.redis_server(cores()[0]) as server:
        for depth in REDIS_DEPTHS:
            found = worker_on(server, "redis_raw", seconds=plan.seconds, name="t", size=depth)
            rates.append(_add(figures, f"Redis, checked pairs, {depth} pipelined", found))
        found = worker_on(server, "redis_pipeline", seconds=plan.seconds, name="t", size=BATCH)
        pipelined = _add(figures, f"redis-py, pipeline of {BATCH}", found)
    figures.row("dlock C generator / Redis' best", "times", at_least(TIMES_REDIS)).add(
        best / max(rates))
    figures.row(f"dlock / redis-py, batches of {BATCH}", "times",
                at_least(BATCH_TIMES_REDIS)).add(batches / pipelined)


def _add(figures: Figures, name: str, found: dict[str, Any],
         target: float | None = None) -> float:
    rate: float = found["count"] / found["elapsed_s"]
    figures.row(name, "pairs/s", None if target is None else at_least(target)).add(
        rate, found["server_cores"], found["client_cores"])
    return rate


def python(plan: Plan, figures: Figures) -> float:
    """One Python client with batches and with many in flight; the rate of the batches."""
    arguments = {"wait": "adaptive", "seconds": plan.seconds, "name": "t"}
    with dlock_server("adaptive", cores()[0]) as server:
        found = worker_on(server, "dlock_batches", size=BATCH, **arguments)
        batches = _add(figures, f"one Python client, batches of {BATCH}", found, BATCH_PAIRS)
        found = worker_on(server, "dlock_in_flight", size=IN_FLIGHT, **arguments)
        _add(figures, f"one Python client, {IN_FLIGHT} requests in flight", found)
    return batches


def python_clients(plan: Plan, figures: Figures, clients: int, *, shared_name: bool) -> None:
    """So many Python processes, one call at a time each, in the default mode."""
    with dlock_server("adaptive", cores()[0]) as server:
        rate, *burnt = crowd_of_processes(server, clients, plan.seconds, "adaptive",
                                          shared_name=shared_name)
    name = "all on one name" if shared_name else "uncontended"
    figures.row(f"{clients} Python clients, {name}", "pairs/s").add(rate, *burnt)


def crowd_of_processes(server: Address, clients: int, seconds: float, wait: str, *,
                       shared_name: bool = False,
                       core: int | None = None) -> tuple[float, float, float]:
    """Pairs a second of many worker processes together, started on one word; CPU of the server,
    of all clients."""
    workers: list[Worker] = []
    try:
        for index in range(clients):
            workers.append(Worker("dlock_pairs", core, {
                "host": server.host, "port": server.port, "wait": wait, "seconds": seconds,
                "name": "all" if shared_name else f"own/{index}", "waits": shared_name}))
        for worker in workers:
            worker.wait("ready")
        for worker in workers:
            worker.go()
        workers[0].wait("warm")
        meter = Meter(server.pid)
        for worker in workers[1:]:
            worker.wait("warm")
        for worker in workers:
            worker.wait("done")
        server_cores = meter.cores()
        found = [worker.result() for worker in workers]
    finally:
        for worker in workers:
            worker.close()
    rate = sum(one["count"] / one["elapsed_s"] for one in found)
    elapsed = max(one["elapsed_s"] for one in found)
    return rate, server_cores, sum(one["cpu_s"] for one in found) / elapsed


def measure(plan: Plan, figures: Figures) -> None:
    """Everything once a run; the processes, which take long to start, in the first runs only."""
    missing = False
    for _ in range(plan.runs):
        best, batches = generator(plan, figures), python(plan, figures)
        if not missing:
            try:
                redis(plan, figures, best, batches)
            except peers.MissingError as problem:
                missing = True
                figures.skip("Redis", str(problem))
    for _ in range(min(plan.runs, 3)):
        for clients in PYTHON_CLIENTS[:1] if plan.quick else PYTHON_CLIENTS:
            python_clients(plan, figures, clients, shared_name=False)
            python_clients(plan, figures, clients, shared_name=True)
