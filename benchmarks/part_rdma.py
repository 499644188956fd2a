"""RDMA: perftest's floor, the C library, and Python, over verbs and over TCP, in turn in each run.

It needs an RDMA device, or soft-RoCE: on a machine without, `make guest` has it. Every server runs
through the whole part; those that poll are stopped by a signal while another has its turn, since
two that poll on one core would take each other's time.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import dlock
from benchmarks import perftest
from benchmarks.linked import Linked, in_c, linked
from benchmarks.machine import cores, pinned
from benchmarks.native import Called
from benchmarks.peers import MissingError
from benchmarks.plan import Plan
from benchmarks.processes import Address, dlock_server
from benchmarks.report import Figures, at_least, at_most
from dlock import _verbs
from dlock.rdma.instead import ENVIRONMENT, PYVERBS

TRANSPORTS: Final = ("verbs", "tcp")
WAITS: Final = {"poll": "both poll", "block": "both block"}
OPERATIONS: Final = ("lock", "unlock", "faa", "cas", "read")
WORDS: Final = {
    "lock": "lock", "unlock": "unlock", "faa": "fetch-and-add", "cas": "compare-and-swap",
    "read": "read",
}
CLIENTS: Final = (1, 2, 4, 8, 16, 32)
MAX_CLIENTS: Final = 64

FRAME_BYTES: Final = "64"
ITERATIONS: Final = 5000
QUICK_ITERATIONS: Final = 200

# The goals, each with both ends polling.
LOCK_IN_ROUND_TRIPS: Final = 1.3
FAA_IN_ATOMICS: Final = 1.2
PYTHON_ADDS_TIMES_TCP: Final = 1.2
TCP_TIMES_VERBS: Final = 1.5

Micros = dict[str, float]


@dataclass
class Served:
    """A server that runs through the whole part, and one client of it."""

    server: Address
    wait: str
    transport: str
    client: Linked

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """While this is measured; the calling thread is on the client's core."""
        _wake(self.server, self.wait)
        try:
            with pinned(cores()[1]):
                yield
        finally:
            _rest(self.server, self.wait)


def _rest(server: Address, wait: str) -> None:
    if wait == "poll":
        os.kill(server.pid, signal.SIGSTOP)


def _wake(server: Address, wait: str) -> None:
    if wait == "poll":
        os.kill(server.pid, signal.SIGCONT)


@contextlib.contextmanager
def served(wait: str, transport: str, device: str) -> Iterator[Served]:
    """A server that stands still until it is its turn."""
    with dlock_server(wait, cores()[0], max_clients=MAX_CLIENTS, transport=transport,
                      device=device) as server, contextlib.ExitStack() as stack:
        stack.callback(_wake, server, wait)  # or it could not end
        with linked(server, 1, "alone", wait, transport, device) as (client,):
            stack.callback(_wake, server, wait)  # nor could the client leave
            _rest(server, wait)
            yield Served(server, wait, transport, client)
            _wake(server, wait)


def device_to_use(name: str | None) -> perftest.Device:
    """What dlock would choose, for perftest. MissingError says what is missing."""
    try:
        port = _verbs.choose(_verbs.wish_of(name, None))
    except _verbs.VerbsError as problem:
        raise MissingError(f"{problem}; `dlock rdma` says what to do, and `make guest "
                           f"CMD='python -m benchmarks rdma'` runs this in a guest that has one"
                           ) from None
    return perftest.Device(port.name, port.port, port.gid_index)


def measure(plan: Plan, figures: Figures) -> None:
    """Everything once in each run; ratios within the run."""
    try:
        device = device_to_use(plan.device)
        perftest.need_programs()
    except MissingError as problem:
        figures.skip("RDMA", str(problem))
        return
    with contextlib.ExitStack() as stack:
        ends = {(wait, transport): stack.enter_context(served(wait, transport, device.name))
                for wait in WAITS for transport in TRANSPORTS}
        pyverbs = stack.enter_context(over_pyverbs(ends["block", "verbs"], device.name, figures))
        for _ in range(plan.runs):
            for wait in WAITS:
                floor = floor_us(plan, device, wait)
                of_c = {one: c_us(plan, ends[wait, one]) for one in TRANSPORTS}
                of_python = {one: python_us(plan, ends[wait, one]) for one in TRANSPORTS}
                show(figures, wait, floor, of_c, of_python)
                compare(figures, wait, floor, of_c, of_python)
            if pyverbs is not None:
                show_pyverbs(figures, python_us(plan, pyverbs))
            for transport in TRANSPORTS:
                crowds(plan, figures, ends["poll", transport], device.name)


@contextlib.contextmanager
def over_pyverbs(one: Served, device: str, figures: Figures) -> Iterator[Served | None]:
    """Another client of the same server, whose frames are carried by pyverbs; None: it is not
    here. Both ends sleep: a client that polled would take the interpreter's time from it."""
    with contextlib.ExitStack() as stack:
        before = os.environ.get(ENVIRONMENT)
        os.environ[ENVIRONMENT] = PYVERBS
        try:
            (client,) = stack.enter_context(
                linked(one.server, 1, "pyverbs", one.wait, one.transport, device))
        except (dlock.ConnectError, RuntimeError) as problem:
            figures.skip("pyverbs", str(problem))
            yield None
            return
        finally:
            os.environ.pop(ENVIRONMENT)
            if before is not None:
                os.environ[ENVIRONMENT] = before
        yield Served(one.server, one.wait, one.transport, client)


# ---- What is measured ----------------------------------------------------------------------------


def floor_us(plan: Plan, device: perftest.Device, wait: str) -> Micros:
    """Of perftest; `send` is a whole round trip of a frame."""
    iterations = QUICK_ITERATIONS if plan.quick else ITERATIONS

    def typical_us(program: str, *extra: str) -> float:
        return perftest.measure(program, device, iterations=iterations, events=wait == "block",
                                extra=extra).typical_us

    return {
        "send": 2 * typical_us("ib_send_lat", "-s", FRAME_BYTES),
        "faa": typical_us("ib_atomic_lat", "-A", "FETCH_AND_ADD"),
        "cas": typical_us("ib_atomic_lat", "-A", "CMP_AND_SWAP"),
        "read": typical_us("ib_read_lat", "-s", "8"),
    }


def c_us(plan: Plan, one: Served) -> Micros:
    """The C library's operations."""
    found: Micros = {}
    with one.turn():
        pairs = in_c([one.client], "lock", plan.seconds)
        found["lock"], found["unlock"] = pairs.took_us, pairs.unlock_us
        found["pair"] = pairs.pair_us
        for work in ("faa", "cas", "read"):
            found[work] = in_c([one.client], work, plan.seconds).took_us
    return found


def python_us(plan: Plan, one: Served) -> Micros:
    """The same from Python, through the same client."""
    with one.turn():
        return one.client.in_python(plan.seconds)


def crowds(plan: Plan, figures: Figures, one: Served, device: str) -> None:
    """Several clients with one call under way each, driven by one thread that polls."""
    for count in CLIENTS[:2] if plan.quick else CLIENTS:
        name = f"{count} clients, {one.transport}"
        with one.turn(), linked(one.server, count, "crowd", one.wait, one.transport,
                                device) as clients:
            pairs: Called = in_c(clients, "lock", plan.seconds)
            adds: Called = in_c(clients, "faa", plan.seconds)
        figures.row(f"{name}: pairs of lock and unlock", "a second").add(pairs.result.rate)
        figures.row(f"{name}: a pair", "us").add(pairs.pair_us)
        figures.row(f"{name}: fetch-and-add", "a second").add(adds.result.rate)
        figures.row(f"{name}: one of them", "us").add(adds.took_us)


# ---- What is said --------------------------------------------------------------------------------


def show(figures: Figures, wait: str, floor: Micros, of_c: dict[str, Micros],
         of_python: dict[str, Micros]) -> None:
    """Everything in µs."""
    how = WAITS[wait]
    figures.row(f"{how}: two of ib_send_lat's, 64 bytes", "us").add(floor["send"])
    for name, program in (("faa", "ib_atomic_lat, fetch-and-add"),
                          ("cas", "ib_atomic_lat, compare-and-swap"),
                          ("read", "ib_read_lat, 8 bytes")):
        figures.row(f"{how}: {program}", "us").add(floor[name])
    for transport in TRANSPORTS:
        for operation in OPERATIONS:
            name = f"{how}: {WORDS[operation]}, {transport}"
            figures.row(f"{name}, C", "us").add(of_c[transport][operation])
            figures.row(f"{name}, Python", "us").add(of_python[transport][operation])
        figures.row(f"{how}: lock and unlock, {transport}, C", "us").add(of_c[transport]["pair"])


def show_pyverbs(figures: Figures, found: Micros) -> None:
    """In µs, of a server in C."""
    for operation in OPERATIONS:
        figures.row(f"{WAITS['block']}: {WORDS[operation]}, verbs, pyverbs", "us").add(
            found[operation])


def _lock_operation(found: Micros) -> float:
    return (found["lock"] + found["unlock"]) / 2


def compare(figures: Figures, wait: str, floor: Micros, of_c: dict[str, Micros],
            of_python: dict[str, Micros]) -> None:
    """The ratios; those of ends that poll have goals."""
    how, goal = WAITS[wait], wait == "poll"
    verbs, tcp = (_lock_operation(of_c[one]) for one in TRANSPORTS)
    added, added_tcp = (_lock_operation(of_python[one]) - _lock_operation(of_c[one])
                        for one in TRANSPORTS)
    figures.row(f"{how}: lock operation, verbs, C / two of ib_send_lat's", "times",
                at_most(LOCK_IN_ROUND_TRIPS) if goal else None).add(verbs / floor["send"])
    for name in ("faa", "cas", "read"):
        target = at_most(FAA_IN_ATOMICS) if goal and name == "faa" else None
        program = "ib_read_lat" if name == "read" else "ib_atomic_lat"
        figures.row(f"{how}: {WORDS[name]}, verbs, C / {program}", "times", target).add(
            of_c["verbs"][name] / floor[name])
    figures.row(f"{how}: lock operation, C, tcp / verbs", "times",
                at_least(TCP_TIMES_VERBS) if goal else None).add(tcp / verbs)
    figures.row(f"{how}: what Python adds to a lock operation, tcp", "us").add(added_tcp)
    figures.row(f"{how}: what Python adds to a lock operation, verbs", "us").add(added)
    if goal:
        figures.row(f"{how}: what Python adds, verbs / tcp", "times",
                    at_most(PYTHON_ADDS_TIMES_TCP)).add(added / added_tcp)
