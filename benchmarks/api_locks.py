"""`with client.lock(name):` and its sisters beside the mirror's pair of the same run; the first use
of a name; names that are used once."""

from __future__ import annotations

from typing import Any, Final

from benchmarks.part_latency import worker_on
from benchmarks.plan import Plan
from benchmarks.processes import Address
from benchmarks.report import Figures, at_most

SHARE: Final = 0.2  # of the plan's seconds, for each variant
MORE_US: Final = 2.0
EXCHANGES: Final = 1.0
TIMES_APART: Final = 1.25
QUICK_NAMES: Final = 2000
# What a client and a server may grow by, however many names were used once.
GROWN_KIB: Final = 1024.0
NAMES_KEPT: Final = 1024 + 2 * 31

NAMED: Final = {
    "lock": "with client.lock(name)",
    "kept": "with a lock object that is kept",
    "lease": "with client.lock(name, lease=30)",
    "read": "with client.rwlock(name).read()",
    "fair": "with client.fair_lock(name)",
    "semaphore": "with client.semaphore(name, 4)",
}


def pairs(plan: Plan, figures: Figures, server: Address, mode: str) -> None:
    """All kinds of lock objects; server and client wait in this mode."""
    found = worker_on(server, "api_pairs", wait=mode, seconds=SHARE * plan.seconds,
                      name="pairs")["variants"]
    figures.row(f"mirror's trylock and unlock, {mode}", "us a pair").add(
        found["mirror"]["p50_us"])
    for variant, name in NAMED.items():
        figures.row(f"{name}, {mode}", "us a pair").add(found[variant]["p50_us"])
        # The target is that of the plain lock; the others stand beside it.
        target = at_most(MORE_US) if variant == "lock" else None
        figures.row(f"{name}, {mode}, more than the mirror's", "us", target).add(
            found[variant]["more_us"])
    figures.row(f"the mirror's again, {mode}, more than the mirror's", "us").add(
        found["mirror again"]["more_us"])


def first_use(plan: Plan, figures: Figures, server: Address) -> None:
    """A new name each time."""
    found = worker_on(server, "api_first_use", wait="adaptive", seconds=SHARE * plan.seconds,
                      name="first")
    us: dict[str, Any] = {name: one["p50_us"] for name, one in found["variants"].items()}
    figures.row("a lock whose name is known", "us a pair").add(us["known"])
    figures.row("a lock whose name is new", "us a pair").add(us["new"])
    figures.row("a control round trip: heartbeat", "us").add(us["heartbeat"])
    figures.row("a control round trip: bare request for a new name", "us").add(us["get"])
    figures.row("first use: exchanges on the control link", "a name", at_most(EXCHANGES)).add(
        found["exchanges_a_name"])
    figures.row("a bare request for a new name, then a lock whose name is known", "us").add(
        us["apart"])
    figures.row("first use / bare request and known name", "times", at_most(TIMES_APART)).add(
        us["new"] / us["apart"])


def names(plan: Plan, figures: Figures, server: Address) -> None:
    """Each name once: what stays behind. The first few thousand are not counted, since a client
    keeps about a thousand names that it may need again."""
    count = QUICK_NAMES if plan.quick else plan.names
    found = worker_on(server, "api_names", wait="adaptive", pid=server.pid, names=count,
                      name="once")
    shown = f"{count:,} names, each once"
    figures.row(shown, "names/s").add(found["names"] / found["elapsed_s"], found["server_cores"],
                                      found["client_cores"])
    for end in ("client", "server"):
        figures.row(f"{shown}: {end}'s memory at the end", "MiB").add(found[f"{end}_bytes"] / 2**20)
        # Quick runs end before either has reached its bound.
        figures.row(f"{shown}: {end}'s memory has grown by", "KiB",
                    None if plan.quick else at_most(GROWN_KIB)).add(found[f"{end}_grown"] / 1024)
    figures.row(f"{shown}: known at the client in the end", "names", at_most(NAMES_KEPT)).add(
        found["known"])
    figures.row(f"{shown}: locks at the server in the end", "locks").add(found["got"])
