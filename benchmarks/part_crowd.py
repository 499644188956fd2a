"""More clients than cores: many processes in the default mode against the blocking mode. Spinning
must cost nothing where there is no core to spin on."""

from __future__ import annotations

from typing import Final

from benchmarks.part_throughput import crowd_of_processes
from benchmarks.plan import Plan
from benchmarks.processes import dlock_server
from benchmarks.report import Figures, at_least

CLIENTS: Final = 64
QUICK_CLIENTS: Final = 4
# "Not slower": what two runs of the same thing differ by on a quiet machine is not slowness.
NOT_SLOWER: Final = 1.0


def measure(plan: Plan, figures: Figures) -> None:
    """Nothing is pinned: the scheduler has to find its way as on a user's machine."""
    clients = QUICK_CLIENTS if plan.quick else CLIENTS
    for _ in range(plan.runs):
        rates = {}
        for mode in ("block", "adaptive"):
            with dlock_server(mode) as server:
                rates[mode], *burnt = crowd_of_processes(server, clients, plan.seconds, mode)
            figures.row(f"{clients} processes, {mode}", "pairs/s").add(rates[mode], *burnt)
        figures.row(f"{clients} processes, adaptive / block", "times", at_least(NOT_SLOWER)).add(
            rates["adaptive"] / rates["block"])
