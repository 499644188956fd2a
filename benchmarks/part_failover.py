"""kill -9 of a primary under eight busy clients, and another one at once: how long until the first
grant, beyond what the process itself needs to start."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.plan import Plan
from benchmarks.primary import HOST, primary
from benchmarks.processes import Worker
from benchmarks.report import Figures, at_most

CLIENTS: Final = 8
BEYOND_MS: Final = 300.0
TTL_S: Final = 10.0
BUSY_S: Final = 0.3  # of the plan's seconds: how long they have been at it when it dies


def measure(plan: Plan, figures: Figures) -> None:
    """Both in every run."""
    for _ in range(plan.runs):
        for contended in (False, True):
            failover(plan, figures, contended)


def failover(plan: Plan, figures: Figures, contended: bool) -> None:
    """One death; each client has a name of its own, or all have one."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        server = stack.enter_context(primary(
            Path(folder), session_ttl_s=TTL_S, max_locks=1000, max_clients=100))
        workers = [
            stack.enter_context(Worker("failover_client", None, {
                "host": HOST, "port": server.port, "wait": "adaptive",
                "name": "all" if contended else str(number)}))
            for number in range(CLIENTS)]
        for state in ("ready", "warm"):
            for one in workers:
                one.wait(state)
                if state == "ready":
                    one.go()
        time.sleep(BUSY_S * plan.seconds)
        killed_s = server.kill()
        started = server.start()
        for one in workers:
            one.wait("done")
        granted = sorted(one.result()["granted_s"] for one in workers)
    name = f"{CLIENTS} clients, {'one name' if contended else 'a name each'}"
    figures.row(f"{name}: exec to listening", "ms").add(started.own_s * 1e3)
    figures.row(f"{name}: kill to the first grant", "ms").add((granted[0] - killed_s) * 1e3)
    figures.row(f"{name}: the same, beyond the start of the process", "ms",
                at_most(BEYOND_MS)).add((granted[0] - killed_s - started.own_s) * 1e3)
    figures.row(f"{name}: until each has been granted one, beyond the start", "ms").add(
        (granted[-1] - killed_s - started.own_s) * 1e3)
