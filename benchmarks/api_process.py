"""Whole processes: what the renewal of leases burns, and `dlock run` beside flock(1)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from statistics import median
from typing import Final

from benchmarks.machine import cores
from benchmarks.part_latency import worker_on
from benchmarks.plan import Plan
from benchmarks.processes import ROOT, Address
from benchmarks.report import Figures

LEASE_S: Final = 3.0  # A renewal is due each second.
HOLDS: Final = (0, 1, 1000, 10_000)
QUICK_HOLDS: Final = (0, 100)
SECONDS: Final = 2.0  # of each measurement, in those of the plan
COMMANDS: Final = 5  # a run
DLOCK: Final = (sys.executable, "-c", "import sys; from dlock.cli import main; sys.exit(main())")


def renewal(plan: Plan, figures: Figures, server: Address) -> None:
    """A client that sleeps on its leased holds; with none of them there are only heartbeats."""
    quick = plan.quick
    for holds in QUICK_HOLDS if quick else HOLDS:
        found = worker_on(server, "api_renewal", wait="adaptive", holds=holds,
                          lease=0.3 if quick else LEASE_S, seconds=SECONDS * plan.seconds)
        name = f"{holds:,} leased holds"
        figures.row(f"{name}: client's CPU", "ms a second").add(
            found["client_cores"] * 1e3, found["server_cores"], found["client_cores"])
        rate = found["requests"] / found["elapsed_s"]
        figures.row(f"{name}: requests", "a second").add(rate)
        if holds >= 100:
            figures.row(f"{name}: client's CPU a renewal", "us").add(
                found["cpu_s"] / found["requests"] * 1e6)


def command(plan: Plan, figures: Figures, server: Address) -> None:
    """`true` under a lock, from the start of the process to its end; and an interpreter that does
    nothing, which is where most of the time goes."""
    times = 1 if plan.quick else COMMANDS
    flock, true = shutil.which("flock"), shutil.which("true") or "true"
    with tempfile.TemporaryDirectory() as folder:
        words = {"python -c pass": (sys.executable, "-c", "pass"),
                 "dlock run NAME -- true": (*DLOCK, "run", "--address",
                                            f"{server.host}:{server.port}", "job", "--", true)}
        if flock:
            words["flock FILE true"] = (flock, f"{folder}/lock", true)
        else:
            figures.skip("flock FILE true", "there is no flock here; it is in util-linux")
        durations: dict[str, list[float]] = {name: [] for name in words}
        for _ in range(times):
            for name, command_line in words.items():
                durations[name].append(_duration_s(command_line))
    for name, found in durations.items():
        figures.row(name, "ms").add(median(found) * 1e3)


def _duration_s(words: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(["taskset", "-c", str(cores()[1]), *words], check=True, cwd=ROOT,
                   stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
