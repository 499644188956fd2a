"""The floor of the machine: 64 bytes to and fro between two bare C programs over loopback TCP."""

from __future__ import annotations

import contextlib
from typing import Final

from benchmarks import native
from benchmarks.machine import Meter, cores, pinned
from benchmarks.plan import Plan
from benchmarks.processes import connect, echo_server
from benchmarks.report import Figures

# What is written in the tables, how the server waits, how the client does.
MODES: Final = (
    ("both block", "block", "block"),
    ("server polls, client blocks", "poll", "block"),
    ("both poll", "poll", "poll"),
)
# Connections, messages in flight on each.
SHAPES: Final = ((1, 1000), (16, 64), (64, 16), (256, 4), (64, 1))


def round_trip(server_wait: str, client_wait: str, seconds: float) -> tuple[float, float, float]:
    """Median µs, CPU of the server and of the client."""
    server_core, client_core = cores()
    with (echo_server(server_wait, 1, server_core) as server, connect(server) as connected,
          pinned(client_core)):
        meter = Meter(server.pid)
        result = native.load([connected.fileno()], 1, seconds, client_wait, sampled=True)
        server_cores = meter.cores()
    return result.quantile_us(0.5), server_cores, result.cores


def echo_rate(connections: int, window: int, seconds: float) -> tuple[float, float, float]:
    """Messages a second that come back, both polling; CPU of the server and of the client."""
    server_core, client_core = cores()
    with echo_server("poll", connections, server_core) as server, contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(server)) for _ in range(connections)]
        with pinned(client_core):
            meter = Meter(server.pid)
            result = native.load([one.fileno() for one in sockets], window, seconds, "poll")
            server_cores = meter.cores()
    return result.rate, server_cores, result.cores


def measure(plan: Plan, figures: Figures) -> None:
    """Round trips in each waiting mode, messages in each shape of a load."""
    for _ in range(plan.runs):
        for name, server_wait, client_wait in MODES:
            figures.row(f"round trip, {name}", "us").add(
                *round_trip(server_wait, client_wait, plan.seconds))
        for connections, window in SHAPES:
            name = f"echo, {connections} x {window} in flight"
            figures.row(name, "messages/s").add(*echo_rate(connections, window, plan.seconds))
