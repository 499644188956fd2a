"""A contended lock: how long from one client's unlock to the return of the next one's lock, by the
number of clients that want it, and whether everybody gets the same share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks import native, part_floor
from benchmarks.machine import Meter, cores, pinned
from benchmarks.plan import Plan
from benchmarks.processes import Address, dlock_server
from benchmarks.report import Figures, at_least, at_most
from benchmarks.sessions import connections, library_clients

CLIENTS: Final = (2, 8, 64, 256)
ROUND_TRIPS: Final = 1.5
FAIR_CLIENTS: Final = 64
JAIN: Final = 0.99
WAIT_MS: Final = 30_000
# How long each holds the lock: until the one before has asked again and come to rest. Without it
# the clients, which share a core, would keep it busy with that while the next one is to be woken.
HOLD_US: Final = 300
# How the server waits, how the clients do, and how the server of the bare round trips that the
# hand-over is held against (their client blocks). In the default mode nobody spins for as long as a
# holder holds, so both ends sleep; beside that stands what it costs against a server that polls.
MODES: Final = (
    ("both block", "block", "block", ("block",)),
    ("server polls, clients block", "poll", "block", ("poll",)),
    ("both adaptive", "adaptive", "adaptive", ("block", "poll")),
)


def jain(shares: Sequence[float]) -> float:
    """1: all the same; 1/n: one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def threads(server: Address, clients: int, wait: str, seconds: float,
            kind: str = "atomic", hold_us: int = 0) -> tuple[native.Result, float]:
    """Clients of the C library, a thread each, on the client's core; and the server's CPU."""
    with (library_clients(server, clients, wait, [f"{kind}/{clients}"], kind) as (pointers, ids),
          pinned(cores()[1])):
        meter = Meter(server.pid)
        result = native.crowd(pointers, ids[0], seconds, hold_us=hold_us)
        return result, meter.cores()


def frames(server: Address, clients: int, seconds: float) -> tuple[native.Result, float]:
    """The load generator: raw frames, polling, so that no thread has to be woken."""
    with (connections(server, clients, 1, shared_name=True, wait_ms=WAIT_MS) as (fds, locks),
          pinned(cores()[1])):
        meter = Meter(server.pid)
        result = native.load(fds, 1, seconds, "poll", locks=locks, hand_over=True, sampled=True)
        return result, meter.cores()


def of_threads(plan: Plan, figures: Figures, counts: Sequence[int]) -> None:
    """In each mode beside the bare round trip of the same mode."""
    for mode, server_wait, client_wait, floor_waits in MODES:
        floors_us = {}
        for wait in floor_waits:
            floors_us[wait], *burnt = part_floor.round_trip(wait, "block", plan.seconds)
            figures.row(f"bare round trip, {wait}, beside {mode}", "us").add(
                floors_us[wait], *burnt)
        values = []
        with dlock_server(server_wait, cores()[0]) as server:
            for clients in counts:
                result, server_cores = threads(server, clients, client_wait, plan.seconds,
                                               hold_us=HOLD_US)
                values.append(result.quantile_us(0.5))
                name = f"{clients} threads, {mode}"
                figures.row(f"hand-over, {name}", "us").add(
                    values[-1], server_cores, result.cores)
                against_floors(figures, name, values[-1], floors_us)
        figures.row(f"hand-over, {counts[-1]} against {counts[0]} threads, {mode}", "times").add(
            values[-1] / values[0])
        with dlock_server(server_wait, cores()[0]) as server:
            result, server_cores = threads(server, counts[-1], client_wait, plan.seconds)
        name, value = f"{counts[-1]} threads that hold for no time, {mode}", result.quantile_us(0.5)
        figures.row(f"hand-over, {name}", "us").add(value, server_cores, result.cores)
        against_floors(figures, name, value, floors_us)


def against_floors(figures: Figures, name: str, value_us: float,
                   floors_us: dict[str, float]) -> None:
    """One row for each bare round trip that it is held against, all with the same target."""
    for wait, floor_us in floors_us.items():
        figures.row(f"hand-over in bare round trips ({wait}), {name}", "times",
                    at_most(ROUND_TRIPS)).add(value_us / floor_us)


def of_frames(plan: Plan, figures: Figures, counts: Sequence[int]) -> None:
    """Both ends poll; no thread has to be woken."""
    floor_us, *burnt = part_floor.round_trip("poll", "poll", plan.seconds)
    figures.row("bare round trip, both poll", "us").add(floor_us, *burnt)
    with dlock_server("poll", cores()[0]) as server:
        for clients in counts:
            result, server_cores = frames(server, clients, plan.seconds)
            figures.row(f"hand-over, {clients} raw clients, both poll", "us").add(
                result.quantile_us(0.5), server_cores, result.cores)


def measure(plan: Plan, figures: Figures) -> None:
    """By the number of clients."""
    counts = CLIENTS[:2] if plan.quick else CLIENTS
    for _ in range(plan.runs):
        of_threads(plan, figures, counts)
        of_frames(plan, figures, counts)
        fairness(plan, figures)


def fairness(plan: Plan, figures: Figures) -> None:
    """In the default mode."""
    with dlock_server("adaptive", cores()[0]) as server:
        result, server_cores = threads(server, FAIR_CLIENTS, "adaptive", plan.seconds, "fair")
    figures.row(f"{FAIR_CLIENTS} clients on one fair lock, Jain index of grants", "index",
                at_least(JAIN)).add(jain(result.counts), server_cores, result.cores)
