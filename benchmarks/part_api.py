"""The Python API, asyncio and the command line: what they cost beyond the mirror's calls, and
beside what others use, all in each run."""

from __future__ import annotations

from benchmarks import api_aio, api_deadlock, api_locks, api_process
from benchmarks.machine import cores
from benchmarks.plan import Plan
from benchmarks.processes import dlock_server
from benchmarks.report import Figures


def measure(plan: Plan, figures: Figures) -> None:
    """Times in every run; what is counted in bytes, or takes its time, once."""
    core = cores()[0]
    redis = api_aio.Redis()
    for _ in range(plan.runs):
        with dlock_server("block", core) as server:
            api_locks.pairs(plan, figures, server, "block")
            api_aio.one_task(plan, figures, server)
        with dlock_server("adaptive", core) as server:
            api_locks.pairs(plan, figures, server, "adaptive")
            api_locks.first_use(plan, figures, server)
            rate = api_aio.crowds(plan, figures, server)
            api_aio.redis_crowds(plan, figures, redis, rate)
            api_deadlock.nested(plan, figures, server)
            api_deadlock.contended(plan, figures, server)
            api_process.command(plan, figures, server)
        with dlock_server("poll", core) as server:
            api_locks.pairs(plan, figures, server, "poll")
        api_deadlock.engine(plan, figures)
    with dlock_server("adaptive", core) as server:
        api_locks.names(plan, figures, server)
    with dlock_server("adaptive", core) as server:
        api_aio.waiting(plan, figures, server)
    with dlock_server("adaptive", core) as server:
        api_process.renewal(plan, figures, server)
