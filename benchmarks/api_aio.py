"""dlock.aio: one task beside a blocking client, a thousand tasks, ten thousand that wait; and
redis.asyncio's Lock in the same run."""

from __future__ import annotations

from typing import Any, Final

from benchmarks import part_floor, peers
from benchmarks.machine import cores
from benchmarks.part_latency import worker_on
from benchmarks.plan import Plan
from benchmarks.processes import Address
from benchmarks.processes import measure as measure_worker
from benchmarks.report import Figures, at_least, at_most

SHARE: Final = 0.5  # of the plan's seconds
TASKS: Final = 1000
QUICK_TASKS: Final = 50
WAITING: Final = 10_000
PAIRS: Final = 50_000.0
TIMES_BLOCKING: Final = 1.5


class Redis:
    """Whether there is one; it is looked for once."""

    def __init__(self) -> None:
        self.missing = False


def one_task(plan: Plan, figures: Figures, server: Address) -> None:
    """Beside a blocking client of the same process; both, and the server, sleep while they wait."""
    found = worker_on(server, "aio_one_task", wait="block", seconds=SHARE * plan.seconds,
                      name="one")
    figures.row("blocking client, blocking mode", "us a pair").add(found["blocking"]["p50_us"])
    figures.row("one task", "us a pair").add(found["task"]["p50_us"])
    figures.row("one task, 99 of 100", "us a pair").add(found["task"]["p99_us"])
    figures.row("one task / blocking client", "times", at_most(TIMES_BLOCKING)).add(
        found["times"])


def crowds(plan: Plan, figures: Figures, server: Address) -> float:
    """Many tasks of one event loop; pairs a second where each has a name of its own."""
    tasks = QUICK_TASKS if plan.quick else TASKS
    seconds = SHARE * plan.seconds
    own = _crowd(figures, server, "aio_crowd", f"{tasks} tasks, a name each", seconds, tasks,
                 target=PAIRS)
    one = _crowd(figures, server, "aio_crowd", f"{tasks} tasks, one name", seconds, tasks,
                 one_name=True)
    floor_us, *_ = part_floor.round_trip("block", "block", seconds / 2)
    # Each task's release brings the next one's grant: a round trip a pair, whatever else is done.
    figures.row(f"{tasks} tasks, one name: a hand-over in bare round trips (block)", "times").add(
        1e6 / one / floor_us)
    return own


def redis_crowds(plan: Plan, figures: Figures, redis: Redis, own: float) -> None:
    """redis.asyncio's Lock, a name each; `own`: what dlock's tasks came to."""
    if redis.missing:
        return
    tasks = QUICK_TASKS if plan.quick else TASKS
    try:
        with peers.redis_server(cores()[0]) as server:
            for count in (1, tasks):
                name = f"redis.asyncio Lock, {'one task' if count == 1 else f'{count} tasks'}"
                rate = _crowd(figures, server, "redis_aio_crowd", name, SHARE * plan.seconds, count)
                figures.row(f"{name}: a pair", "us").add(1e6 / rate)
            figures.row(f"{tasks} tasks, dlock.aio / redis.asyncio", "times").add(own / rate)
    except peers.MissingError as problem:
        redis.missing = True
        figures.skip("redis.asyncio Lock", str(problem))


def _crowd(figures: Figures, server: Address, task: str, name: str, seconds: float, tasks: int, *,
           one_name: bool = False, target: float | None = None) -> float:
    found = worker_on(server, task, seconds=seconds, name="crowd", tasks=tasks, one_name=one_name)
    rate: float = found["count"] / found["elapsed_s"]
    figures.row(name, "pairs/s", None if target is None else at_least(target)).add(
        rate, found["server_cores"], found["client_cores"])
    # What others do on this core takes from the rate, but hardly from this.
    figures.row(f"{name}: client's CPU a pair", "us").add(found["cpu_s"] / found["count"] * 1e6)
    return rate


def waiting(plan: Plan, figures: Figures, server: Address) -> None:
    """All on one lock that is held: the memory of those who wait, then how they are served."""
    tasks = 10 * QUICK_TASKS if plan.quick else WAITING
    found: dict[str, Any] = worker_on(server, "aio_waiting", pid=server.pid, tasks=tasks,
                                      name="waiting")
    bare = measure_worker("aio_bare_waiting", cores()[1], tasks=tasks)
    shown = f"{tasks:,} tasks that wait"
    figures.row(f"{shown}: client's memory", "bytes a task").add(found["bytes_a_task"])
    figures.row(f"{shown}, for a bare future", "bytes a task").add(bare["bytes_a_task"])
    figures.row(f"{shown}: server's memory", "bytes a task").add(found["server_bytes_a_task"])
    figures.row(f"{shown}, served one by one", "us a task").add(
        found["elapsed_s"] / tasks * 1e6, found["server_cores"], found["client_cores"])
