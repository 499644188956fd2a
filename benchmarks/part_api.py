"""The Python API, asyncio and the command line: what they cost beyond the mirror's calls, and
beside what others use, all in each run."""

from __future__ import annotations

from benchmarks import api_aio, api_deadlock, api_locks, api_process
from benchmarks.plan import Plan
from benchmarks.report import Figures


def measure(plan: Plan, figures: Figures) -> None:
    """Times in every run; what is counted in bytes, and needs many names or tasks, once."""
    redis = api_aio.Redis()
    for _ in range(plan.runs):
        for mode in api_locks.MODES:
            api_locks.pairs(plan, figures, mode)
        api_locks.first_use(plan, figures)
        api_aio.one_task(plan, figures)
        api_aio.crowds(plan, figures, redis)
        api_deadlock.nested(plan, figures)
        api_deadlock.contended(plan, figures)
        api_deadlock.engine(plan, figures)
        api_process.command(plan, figures)
    api_locks.names(plan, figures)
    api_aio.waiting(plan, figures)
    for _ in range(min(plan.runs, 2)):
        api_process.renewal(plan, figures)
