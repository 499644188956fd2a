"""What it costs that the server looks for cycles of waits: for a free lock, for one that is wanted
by many, and in the engine alone by the length of the queue."""

from __future__ import annotations

import time
from typing import Any, Final

from benchmarks.machine import cores, pinned
from benchmarks.part_latency import worker_on
from benchmarks.plan import Plan
from benchmarks.processes import Address, Worker
from benchmarks.report import Figures
from dlock import _core
from dlock._core import Command, Limits, Request, ffi, lib
from dlock._engine import Engine

SHARE: Final = 0.25  # of the plan's seconds
CLIENTS: Final = 4
LENGTHS: Final = (1, 100, 10_000)
QUICK_LENGTHS: Final = (1, 100)
SESSIONS: Final = 64
ASKED: Final = 64  # requests of a batch, each with its cancel
FOREVER: Final = _core.DLK_WAIT_FOREVER
CHECK: Final = _core.DLK_FLAG_DEADLOCK
STEPS: Final = _core.counter_names().index("DEADLOCK_STEPS")
NESTED: Final = {
    "alone": "a free lock, by a thread that holds nothing",
    "checked": "a free lock, by a thread that holds another",
    "unchecked": "the same, deadlock=False",
}


def nested(plan: Plan, figures: Figures, server: Address) -> None:
    """A lock that is free is granted without a look."""
    found = worker_on(server, "api_nested", wait="adaptive", seconds=SHARE * plan.seconds,
                      name="nested")["variants"]
    for variant, name in NESTED.items():
        figures.row(name, "us a pair").add(found[variant]["p50_us"])
    figures.row("a free lock: what the check takes", "us").add(
        found["checked"]["more_us"] - found["unchecked"]["more_us"])


def contended(plan: Plan, figures: Figures, server: Address) -> None:
    """Clients that each hold a lock of their own want one more: each request has to wait, so that
    the server looks. With the check and without in turn."""
    workers: list[Worker] = []
    try:
        for index in range(CLIENTS):
            workers.append(Worker("api_contended", cores()[1], {
                "host": server.host, "port": server.port, "wait": "adaptive",
                "seconds": plan.seconds, "name": "wanted", "own": f"own/{index}"}))
        for worker in workers:
            worker.wait("ready")
        for worker in workers:
            worker.go()
        for state in ("warm", "done"):
            for worker in workers:
                worker.wait(state)
        found = [worker.result() for worker in workers]
    finally:
        for worker in workers:
            worker.close()
    rates = {}
    for way in ("unchecked", "checked"):
        rates[way] = sum(one[way] for one in found)
        figures.row(f"{CLIENTS} processes on one lock, {way}", "pairs/s").add(rates[way])
    figures.row(f"{CLIENTS} processes on one lock, checked / unchecked", "times").add(
        rates["checked"] / rates["unchecked"])


# ---- The engine alone ----------------------------------------------------------------------------


def engine(plan: Plan, figures: Figures) -> None:
    """A request that has to wait, and its cancel, with the check and without. `queue`: so many wait
    for the lock already, and its holder waits for nobody. `chain`: its holder waits for another
    lock, whose holder waits, and so on: the search goes to the end. In both somebody waits for a
    lock of the one who asks, since otherwise there is nothing to search."""
    with pinned(cores()[1]):
        for shape in ("queue", "chain"):
            for length in QUICK_LENGTHS if plan.quick else LENGTHS:
                name = f"engine, {shape} of {length:,}"
                with Waits(shape, length) as waits:
                    plain_ns, _ = waits.ask(0, SHARE * plan.seconds / 4)
                    checked_ns, steps = waits.ask(CHECK, SHARE * plan.seconds / 4)
                figures.row(f"{name}, a request that waits and its cancel", "ns").add(plain_ns)
                figures.row(f"{name}, what the check takes", "ns").add(checked_ns - plain_ns)
                figures.row(f"{name}, entries looked at", "entries").add(steps)


class Waits:
    """An engine in which many wait. The one who asks is actor 1 of session 0; it holds lock 1, and
    asks for lock 0."""

    def __init__(self, shape: str, length: int) -> None:
        locks = length + 3
        self._engine = Engine(Limits(max_locks=locks, max_sessions=SESSIONS,
                                     max_entries=3 * length + 4 * ASKED + 8))
        self._requests = 0
        for session in range(SESSIONS):
            self._engine.command(Command(lib.DLK_COMMAND_SESSION_OPEN, slot=session,
                                         id=session + 1, ttl_ms=3_600_000), 1)
            lib.dlk_engine_attached(self._engine._pointer, session, 1)
        for slot in range(locks):
            self._engine.command(Command(lib.DLK_COMMAND_LOCK_OPEN, slot=slot, id=slot + 1,
                                         kind=_core.DLK_KIND_ATOMIC, size=1), 1)
        self._lock(1, actor=1)
        self._lock(1, actor=2)  # waits for the one who will ask
        self._lock(0, actor=10)
        if shape == "queue":
            for index in range(length):
                self._lock(0, actor=11 + index)
        else:  # actor 10 + k holds the k-th lock of the chain and waits for the next
            chain = [0, *range(2, length + 2)]
            for index, slot in enumerate(chain[1:]):
                self._lock(slot, actor=11 + index)
                self._lock(slot, actor=10 + index)

    def _lock(self, slot: int, actor: int) -> None:
        self._requests += 1
        self._engine.step([Request(
            self._requests, lib.DLK_OP_LOCK, _core.DLK_MODE_EXCLUSIVE, 0,
            0 if actor == 1 else 1 + actor % (SESSIONS - 1), slot + 1, slot,
            owner=actor << 32 | self._requests, wait_ms=FOREVER)], 1)

    def ask(self, flags: int, seconds: float) -> tuple[float, float]:
        """For so long; ns a request with its cancel, and entries looked at."""
        pointer, frames = self._engine._pointer, self._batch(flags)
        count = 2 * ASKED
        batches, looked = 0, self._engine.counters()[STEPS]
        replies = ffi.new("struct dlk_reply **")
        start = before = time.thread_time_ns()
        end = start + int(seconds * 1e9)
        while before < end:
            lib.dlk_engine_step(pointer, frames, count, 1)
            answers = lib.dlk_engine_replies(pointer, replies)
            if batches == 0:
                self._check([replies[0][index].result for index in range(answers)])
            lib.dlk_engine_clear(pointer)
            batches += 1
            before = time.thread_time_ns()
        asked = batches * ASKED
        looked = self._engine.counters()[STEPS] - looked
        return (before - start) / asked, looked / asked

    def _batch(self, flags: int) -> Any:
        frames = []
        for index in range(ASKED):
            self._requests += 1
            owner = 1 << 32 | self._requests
            place = {"session": 0, "lock_id": 1, "slot": 0, "owner": owner}
            mode = _core.DLK_MODE_EXCLUSIVE
            frames.append({"request_id": self._requests, "op": lib.DLK_OP_LOCK, "mode": mode,
                           "flags": flags, "entry": lib.DLK_NONE, "wait_ms": FOREVER, **place})
            frames.append({"request_id": self._requests + ASKED * 2 + index,
                           "op": lib.DLK_OP_CANCEL, "mode": mode, "entry": lib.DLK_NONE,
                           "value": self._requests, **place})
        self._requests += ASKED * 4
        return ffi.new("struct dlk_request[]", frames)

    @staticmethod
    def _check(results: list[int]) -> None:
        if lib.DLK_RESULT_QUEUED not in results or lib.DLK_RESULT_GRANTED in results:
            raise RuntimeError(f"the engine's answers are {sorted(set(results))}")

    def __enter__(self) -> Waits:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.free()
