"""The engine alone, in C on one core: pairs a second by CPU time, bytes a lock and a holder."""

from __future__ import annotations

from typing import Final

from benchmarks import native
from benchmarks.machine import cores, pinned
from benchmarks.plan import Plan
from benchmarks.report import Figures, Target, at_least, at_most

HOT_LOCKS: Final = 1024
BATCH: Final = 1024
KINDS: Final = ("atomic", "rw shared", "semaphore", "fair")
HOT_PAIRS: Final = 15e6
RANDOM_PAIRS: Final = 5e6
LOCK_BYTES: Final = 128
HOLDER_BYTES: Final = 64
# What is resident grows by pages of 2 MiB: as many records as fill some of them.
RECORDS_PER_PAGE: Final = (2 << 20) // 64


def measure(plan: Plan, figures: Figures) -> None:
    """Kinds side by side, run after run; `held` says how long a lock is held, in locks."""
    many = 16 * BATCH if plan.quick else 1_000_000 // BATCH * BATCH
    shapes: tuple[tuple[str, int, int, Target | None], ...] = (
        (f"{HOT_LOCKS} locks", HOT_LOCKS, BATCH, at_least(HOT_PAIRS)),
        (f"{many:,} locks in random order", many, BATCH, at_least(RANDOM_PAIRS)),
        (f"{many:,} locks in random order, all held at a time", many, many, None),
    )
    note = "by CPU time"
    with pinned(cores()[1]):
        for _ in range(plan.runs):
            for shape, locks, held, target in shapes:
                bare = native.engine("atomic", locks, held, plan.seconds, bare=True)
                row = figures.row(f"bare words, {shape}", "pairs/s", note=f"reference, {note}")
                row.add(bare.count / bare.cpu_s, client_cores=bare.cores)
                for kind in KINDS:
                    result = native.engine(kind, locks, held, plan.seconds)
                    row = figures.row(f"{kind}, {shape}", "pairs/s", target, note)
                    row.add(result.count / result.cpu_s, client_cores=result.cores)
    memory(plan, figures, many)


def memory(plan: Plan, figures: Figures, locks: int) -> None:
    """From the growth of what is resident."""
    if not plan.quick:
        locks = -(-locks // RECORDS_PER_PAGE) * RECORDS_PER_PAGE
    for _ in range(plan.runs):
        found = native.engine_memory(locks)
        for name, bound in (("lock", LOCK_BYTES), ("holder", HOLDER_BYTES), ("waiter", None)):
            figures.row(f"memory a {name}", "bytes", at_most(bound) if bound else None,
                        f"of {locks:,}").add(found[name])
