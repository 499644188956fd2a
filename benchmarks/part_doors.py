"""The doors: a lock taken and given back by the originals' own words, over 1, 16 and 64
connections, beside a bare server of the same protocol; and many connections at once
(benchmarks/doors_scale.py).

What the originals did, and so the targets, was measured once on this kind of machine, with the
client on the same two cores; nothing here starts them.
"""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import dataclass
from typing import Final

from benchmarks import doors, doors_scale, native, wire
from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from benchmarks.processes import Address, connect, dlock_server
from benchmarks.report import Figures, at_least

CONNECTIONS: Final = (1, 16, 64)
# Pairs a second of the originals with so many connections, and which share of them is the target.
ORIGINALS: Final = {
    "glockd": ((17_100, 32_800, 32_100), (0.5, 0.8, 0.8)),
    "DoubleDutch": ((5_400, 5_600, 4_900), (1.0, 1.0, 1.0)),
    "LDLM gRPC": ((6_800, 13_300, 14_300), (0.25, 0.25, 0.25)),
    "LDLM REST": ((5_800, 12_500, 13_300), (0.25, 0.25, 0.25)),
}
NEEDED: Final = ("uvloop", "httptools", "h2")


@dataclass(frozen=True)
class Found:
    """One measurement, and the CPU that it took of those who took part, in us a pair."""

    result: native.Result
    server_us: float
    primary_us: float

    @property
    def client_us(self) -> float:
        """The load generator's."""
        return self.result.cpu_s / self.result.count * 1e6


def converse(address: Address, framing: str, connections: int, conversation: doors.Talk,
             seconds: float, primary: Address | None = None) -> Found:
    """So many connections in conversation with a server."""
    watched = [address.pid, *([primary.pid] if primary else [])]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(address)) for _ in range(connections)]
        wire.talk(sockets, framing, conversation, seconds / 4)  # warm
        for one in sockets:
            one.close()
        sockets = [stack.enter_context(connect(address)) for _ in range(connections)]
        before = [cpu_seconds(pid) for pid in watched]
        result = wire.talk(sockets, framing, conversation, seconds)
        spent = [cpu_seconds(pid) - was for pid, was in zip(watched, before, strict=True)]
    spent_us = [one / result.count * 1e6 for one in spent]
    return Found(result, spent_us[0], spent_us[1] if primary else 0.0)


def measure(plan: Plan, figures: Figures) -> None:
    """Floors and doors in turn, in every run; then the crowds."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        figures.skip("doors", f"{', '.join(missing)}: pip install 'dlock[doors]'")
        return
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(dlock_server("adaptive"))
        floors = {framing: stack.enter_context(doors.floor(framing))
                  for framing in sorted({one.framing for one in doors.KINDS.values()})}
        running = {name: stack.enter_context(doors.door(name, primary)) for name in doors.KINDS}
        for _ in range(plan.runs):
            for place, connections in enumerate(CONNECTIONS):
                for name, address in running.items():
                    one_shape(plan, figures, name, place, connections,
                              (address, floors[doors.KINDS[name].framing], primary))
    doors_scale.measure(plan, figures)


def one_shape(plan: Plan, figures: Figures, name: str, place: int, connections: int,
              servers: tuple[Address, Address, Address]) -> None:
    """One door and its floor with so many connections."""
    kind = doors.KINDS[name]
    address, floor, primary = servers
    bare = converse(floor, kind.framing, connections, doors.of_floor(kind), plan.seconds)
    found = converse(address, kind.framing, connections, kind.conversation, plan.seconds, primary)
    shape = f"{name}, {connections} connection{'s' if connections > 1 else ''}"
    originals, shares = ORIGINALS[name]
    figures.row(shape, "pairs/s").add(
        found.result.rate, found.server_us * found.result.rate / 1e6, found.result.cores)
    figures.row(f"{shape}: of the original's {originals[place]:,}", "times",
                at_least(shares[place])).add(found.result.rate / originals[place])
    figures.row(f"{shape}: of the bare {kind.framing}", "times").add(
        found.result.rate / bare.result.rate)
    figures.row(f"{shape}: the bare {kind.framing}", "pairs/s").add(
        bare.result.rate, bare.server_us * bare.result.rate / 1e6, bare.result.cores)
    for what, value in (("CPU of the door", found.server_us),
                        ("CPU of the bare server", bare.server_us),
                        ("CPU of the primary", found.primary_us),
                        ("CPU of the generator", found.client_us)):
        figures.row(f"{shape}: {what}", "us a pair").add(value)
    figures.row(f"{shape}: a request, median", "us").add(found.result.quantile_us(0.5))
    figures.row(f"{shape}: a request, 99th percentile", "us").add(found.result.quantile_us(0.99))
