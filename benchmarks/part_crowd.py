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
# The row of block against block shows how much two runs of the same thing differ.
NOT_SLOWER: Final = 1.0
ORDER: Final = ("block", "adaptive", "block", "adaptive", "block")
SECONDS: Final = 3  # of each measurement, in those of the plan: the scheduler takes its time


def measure(plan: Plan, figures: Figures) -> None:
    """The two modes in turn, blocking first and last. Nothing is pinned: the scheduler has to find
    its way as on a user's machine."""
    clients = QUICK_CLIENTS if plan.quick else CLIENTS
    for _ in range(plan.runs):
        rates = []
        for mode in ORDER:
            with dlock_server(mode) as server:
                rate, *burnt = crowd_of_processes(server, clients, SECONDS * plan.seconds, mode)
            figures.row(f"{clients} processes, {mode}", "pairs/s").add(rate, *burnt)
            rates.append(rate)
        for before, default, after in (rates[:3], rates[2:]):
            figures.row(f"{clients} processes, adaptive / block", "times",
                        at_least(NOT_SLOWER)).add(2 * default / (before + after))
            figures.row(f"{clients} processes, block / block", "times").add(after / before)
