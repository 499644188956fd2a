"""A contended lock: how long from one client's unlock to the return of the next one's lock, by the
number of clients that want it, and whether everybody gets the same share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks import native, part_floor
from benchmarks.machine import cores, cpu_seconds, pinned
from benchmarks.plan import Plan
from benchmarks.processes import Address, dlock_server
from benchmarks.report import Figures, at_least, at_most
from benchmarks.sessions import connections, library_clients

CLIENTS: Final = (2, 8, 64, 256)
ROUND_TRIPS: Final = 1.5
FAIR_CLIENTS: Final = 64
JAIN: Final = 0.99
WAIT_MS: Final = 30_000
# How server and clients wait, and the bare round trip that it is held against.
MODES: Final = (
    ("both block", "block", "block"),
    ("server polls, client blocks", "poll", "block"),
)


def jain(shares: Sequence[float]) -> float:
    """1: all the same; 1/n: one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def threads(server: Address, clients: int, wait: str, seconds: float,
            kind: str = "atomic") -> native.Result:
    """Clients of the C library, a thread each, on the client's core."""
    with (library_clients(server, clients, wait, [f"{kind}/{clients}"], kind) as (pointers, ids),
          pinned(cores()[1])):
        return native.crowd(pointers, ids[0], seconds)


def frames(server: Address, clients: int, seconds: float) -> native.Result:
    """The load generator: raw frames, polling, so that no thread has to be woken."""
    with (connections(server, clients, 1, shared_name=True, wait_ms=WAIT_MS) as (fds, locks),
          pinned(cores()[1])):
        return native.load(fds, 1, seconds, "poll", locks=locks, hand_over=True, sampled=True)


def _add(figures: Figures, name: str, server: Address, burnt: float, result: native.Result,
         floor_us: float) -> float:
    burnt = (cpu_seconds(server.pid) - burnt) / result.elapsed_s
    value = result.quantile_us(0.5)
    figures.row(f"hand-over, {name}", "us").add(value, burnt, result.cores)
    figures.row(f"... in bare round trips, {name}", "times", at_most(ROUND_TRIPS)).add(
        value / floor_us)
    return value


def measure(plan: Plan, figures: Figures) -> None:
    """In each mode beside the bare round trip of the same mode."""
    counts = CLIENTS[:2] if plan.quick else CLIENTS
    for _ in range(plan.runs):
        for mode, server_wait, client_wait in MODES:
            floor_us, *burnt = part_floor.round_trip(server_wait, client_wait, plan.seconds)
            figures.row(f"bare round trip, {mode}", "us").add(floor_us, *burnt)
            with dlock_server(server_wait, cores()[0]) as server:
                values = []
                for clients in counts:
                    before = cpu_seconds(server.pid)
                    result = threads(server, clients, client_wait, plan.seconds)
                    values.append(_add(figures, f"{clients} threads, {mode}", server, before,
                                       result, floor_us))
            figures.row(f"{counts[-1]} against {counts[0]} threads, {mode}", "times").add(
                values[-1] / values[0])
        floor_us, *burnt = part_floor.round_trip("poll", "poll", plan.seconds)
        figures.row("bare round trip, both poll", "us").add(floor_us, *burnt)
        with dlock_server("poll", cores()[0]) as server:
            for clients in counts:
                before = cpu_seconds(server.pid)
                _add(figures, f"{clients} raw clients, both poll", server, before,
                     frames(server, clients, plan.seconds), floor_us)
        fairness(plan, figures)


def fairness(plan: Plan, figures: Figures) -> None:
    """In the default mode."""
    with dlock_server("adaptive", cores()[0]) as server:
        result = threads(server, FAIR_CLIENTS, "adaptive", plan.seconds, "fair")
    figures.row(f"{FAIR_CLIENTS} clients on one fair lock, Jain index of grants", "index",
                at_least(JAIN)).add(jain(result.counts), client_cores=result.cores)
