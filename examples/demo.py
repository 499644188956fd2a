"""The main job, shown and checked: one primary, 8 processes that contend, a verdict.

Every process does, under each kind of lock, what goes wrong without one: it reads a number in
shared memory, lets others run, and writes the number plus one. Then all of them count on one atomic
object. Afterwards the parent looks for what must not have happened: two holders at one time, a
count that was lost, a value that came back twice. The exit status is the verdict.

Usage: demo.py [--processes 8] [--seconds 1.5]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from mmap import mmap
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import dlock
from dlock import dclient
from dlock.types import (
    AtomicDesc,
    ClientCfg,
    DlockStatus,
    DlockType,
    LockDesc,
    LockOp,
    LockRequest,
)

LEASE_S = 10
OBJECT_LEASE_S = 60
WRITER_EVERY = 8  # of the operations on the rw lock one in so many writes
REGION_BYTES = 64  # of the shared file, for each kind: the counter, twice
START_TIMEOUT_S = 15.0
RUN_TIMEOUT_S = 60.0


@dataclass
class Turns:
    """What one process did under one kind of lock; all times are CLOCK_MONOTONIC ns."""

    wait_ns: list[int] = field(default_factory=list)
    held: list[tuple[int, int, bool]] = field(default_factory=list)  # from, to, exclusive
    writes: int = 0
    torn_reads: int = 0


@dataclass
class Work:
    """What one process did."""

    index: int
    turns: dict[str, Turns] = field(default_factory=dict)
    counted: list[int] = field(default_factory=list)  # the values before each addition
    count_ns: list[int] = field(default_factory=list)
    final_value: int = 0
    error: str = ""


# ---- a contending process ------------------------------------------------------------------------


def must(status: DlockStatus, doing: str) -> None:
    if status != DlockStatus.SUCCESS:
        raise RuntimeError(f"{doing}: {status.name}")


class Contender:
    def __init__(self, index: int, host: str, port: int, shared: Path) -> None:
        self.index = index
        self.work = Work(index)
        with open(shared, "r+b") as file:
            self.memory = mmap(file.fileno(), 0)
        must(dclient.dclient_lib_init(ClientCfg(primary_port=port)), "dclient_lib_init")
        status, client_id = dclient.client_init(host)
        must(status, "client_init")
        assert client_id is not None
        self.client_id = client_id

    def close(self) -> None:
        must(dclient.client_deinit(self.client_id), "client_deinit")
        must(dclient.dclient_lib_deinit(), "dclient_lib_deinit")

    def read(self, at: int) -> int:
        return int.from_bytes(self.memory[at : at + 8], "little")

    def write(self, at: int, value: int) -> None:
        self.memory[at : at + 8] = value.to_bytes(8, "little")

    def take(self, lock_id: int, op: LockOp) -> None:
        """Waits at the server; on a fair lock EAGAIN means that our place in the queue is kept."""
        status = DlockStatus.EAGAIN
        while status == DlockStatus.EAGAIN:
            status, _ = dclient.lock(self.client_id, LockRequest(lock_id, op, LEASE_S))
        must(status, f"lock ({op.name})")

    def contend(self, kind: DlockType, seconds: float, start: Barrier) -> None:
        """Takes and frees one lock of this kind until the time is over."""
        turns = self.work.turns[kind.name] = Turns()
        descriptor = LockDesc(f"demo/{kind.name}".encode(), kind, LEASE_S)
        status, lock_id = dclient.get_lock(self.client_id, descriptor)
        must(status, "get_lock")
        assert lock_id is not None
        start.wait(START_TIMEOUT_S)
        end_ns = time.monotonic_ns() + int(seconds * 1e9)
        step = self.index
        while (asked_ns := time.monotonic_ns()) < end_ns:
            step += 1
            exclusive = kind != DlockType.RW or step % WRITER_EVERY == 0
            self.take(lock_id, LockOp.LOCK_EXCLUSIVE if exclusive else LockOp.LOCK_SHARED)
            entered_ns = time.monotonic_ns()
            self.critical_section(kind, exclusive, turns)
            turns.held.append((entered_ns, time.monotonic_ns(), exclusive))
            turns.wait_ns.append(entered_ns - asked_ns)
            status, _ = dclient.unlock(self.client_id, lock_id)
            must(status, f"unlock of {kind.name}")
        must(dclient.release_lock(self.client_id, lock_id), "release_lock")

    def critical_section(self, kind: DlockType, exclusive: bool, turns: Turns) -> None:
        """A writer adds one to both numbers, slowly; a reader must find them equal."""
        first, second = kind * REGION_BYTES, kind * REGION_BYTES + 8
        value = self.read(first)
        os.sched_yield()  # an invitation to everybody who should be kept out
        if exclusive:
            self.write(first, value + 1)
            self.write(second, value + 1)
            turns.writes += 1
        elif self.read(second) != value:
            turns.torn_reads += 1

    def count(self, seconds: float, start: Barrier) -> None:
        """Adds one to an atomic object until the time is over; the first process creates it."""
        descriptor = AtomicDesc(b"demo/count", OBJECT_LEASE_S)
        if self.index == 0:
            status, _ = dclient.umo_atomic64_create(self.client_id, descriptor, 0)
            must(status, "umo_atomic64_create")
        start.wait(START_TIMEOUT_S)
        status, object_id = dclient.umo_atomic64_get(self.client_id, descriptor)
        must(status, "umo_atomic64_get")
        assert object_id is not None
        end_ns = time.monotonic_ns() + int(seconds * 1e9)
        while (asked_ns := time.monotonic_ns()) < end_ns:
            status, before = dclient.umo_atomic64_faa(self.client_id, object_id, 1)
            must(status, "umo_atomic64_faa")
            assert before is not None
            self.work.count_ns.append(time.monotonic_ns() - asked_ns)
            self.work.counted.append(before)
        start.wait(START_TIMEOUT_S)
        status, value = dclient.umo_atomic64_get_snapshot(self.client_id, object_id)
        must(status, "umo_atomic64_get_snapshot")
        assert value is not None
        self.work.final_value = value
        must(dclient.umo_atomic64_release(self.client_id, object_id), "umo_atomic64_release")


def contend(
    index: int,
    address: tuple[str, int],
    shared: Path,
    seconds: float,
    start: Barrier,
    results: Queue[Work],
) -> None:
    """The body of one process."""
    try:
        contender = Contender(index, *address, shared)
        for kind in DlockType:
            contender.contend(kind, seconds, start)
        contender.count(seconds, start)
        contender.close()
    except Exception as problem:  # told to the parent, which says it and fails
        start.abort()
        results.put(Work(index, error=f"{type(problem).__name__}: {problem}"))
        raise
    results.put(contender.work)


# ---- the parent ----------------------------------------------------------------------------------


def overlaps(held: Sequence[tuple[int, int, bool]]) -> int:
    """How many holds began while one that excludes them still ran."""
    found = exclusive_until = any_until = 0
    for start, end, exclusive in sorted(held):
        found += start < (any_until if exclusive else exclusive_until)
        any_until = max(any_until, end)
        if exclusive:
            exclusive_until = max(exclusive_until, end)
    return found


def milliseconds(values_ns: Sequence[int], quantile: float) -> str:
    ordered = sorted(values_ns)
    return f"{ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] / 1e6:.3f}"


@contextmanager
def primary(folder: Path) -> Iterator[tuple[str, int]]:
    """A `dlock serve` on a free port of the loopback; ended with SIGTERM, which must succeed."""
    address_file = folder / "address"
    command = [shutil.which("dlock", path=sysconfig.get_path("scripts")) or "dlock", "serve"]
    command += ["--listen", "127.0.0.1:0", "--log-level", "warning"]
    command += ["--state-dir", str(folder / "state"), "--address-file", str(address_file)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # there it only greets
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not address_file.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the primary did not start (exit status {server.poll()})")
            time.sleep(0.01)
        host, _, port = address_file.read_text(encoding="utf-8").splitlines()[0].rpartition(":")
        yield host, int(port)
        server.send_signal(signal.SIGTERM)
        if server.wait(5) != 0:
            raise RuntimeError(f"the primary ended with exit status {server.returncode}")
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def run_contenders(
    address: tuple[str, int], shared: Path, processes: int, seconds: float
) -> list[Work]:
    context = multiprocessing.get_context("spawn")
    results: Queue[Work] = context.Queue()
    start = context.Barrier(processes)
    started = [
        context.Process(
            target=contend, args=(index, address, shared, seconds, start, results), daemon=True
        )
        for index in range(processes)
    ]
    for process in started:
        process.start()
    works: list[Work] = []
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while len(works) < processes:
        try:
            works.append(results.get(timeout=0.5))
        except queue.Empty:
            if time.monotonic() > deadline or any((p.exitcode or 0) < 0 for p in started):
                break  # one was killed: its work is missing below
    silent = set(range(processes)) - {work.index for work in works}
    return [*works, *(Work(index, error="ended without a word") for index in silent)]


def judge_kind(kind: DlockType, works: Sequence[Work], counter: int, seconds: float) -> list[str]:
    """Prints the row of one kind; returns what was wrong."""
    turns = [work.turns[kind.name] for work in works]
    held = [hold for turn in turns for hold in turn.held]
    waits = [wait for turn in turns for wait in turn.wait_ns]
    writes = sum(turn.writes for turn in turns)
    torn = sum(turn.torn_reads for turn in turns)
    grants = [len(turn.held) for turn in turns]
    print(
        f"{kind.name:<16}{len(held):>9}{len(held) / seconds:>12.0f}{milliseconds(waits, 0.5):>12}"
        f"{milliseconds(waits, 0.99):>10}{min(grants):>9} to {max(grants):<9}{counter}/{writes}"
    )
    problems = []
    if found := overlaps(held):
        problems.append(f"{kind.name}: {found} holds overlap one that excludes them")
    if counter != writes:
        problems.append(f"{kind.name}: {writes} additions, but the shared counter says {counter}")
    if torn:
        problems.append(f"{kind.name}: {torn} readers saw a writer at work")
    return problems


def judge_count(works: Sequence[Work], seconds: float) -> list[str]:
    """Prints the row of the atomic object; returns what was wrong."""
    counted = sorted(value for work in works for value in work.counted)
    took = [value for work in works for value in work.count_ns]
    shares = [len(work.counted) for work in works]
    print(
        f"{'atomic object':<16}{len(counted):>9}{len(counted) / seconds:>12.0f}"
        f"{milliseconds(took, 0.5):>12}{milliseconds(took, 0.99):>10}"
        f"{min(shares):>9} to {max(shares):<9}{works[0].final_value}/{len(counted)}"
    )
    problems = []
    if counted != list(range(len(counted))):
        problems.append("atomic object: a value came back twice, or one is missing")
    if any(work.final_value != len(counted) for work in works):
        problems.append(f"atomic object: {len(counted)} additions, read {works[0].final_value}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each kind")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dlock-demo-") as name:
        shared = Path(name, "shared")
        shared.write_bytes(bytes(REGION_BYTES * len(DlockType)))
        with primary(Path(name)) as address:
            print(
                f"dlock {dlock.__version__}: primary at {address[0]}:{address[1]}, "
                f"{options.processes} processes on {os.cpu_count()} cores\n"
            )
            works = run_contenders(address, shared, options.processes, options.seconds)
        problems = [f"process {work.index}: {work.error}" for work in works if work.error]
        if not problems:
            print(
                f"{'':<16}{'grants':>9}{'a second':>12}{'median ms':>12}{'p99 ms':>10}"
                f"{'  a process got':<22}{'counted'}"
            )
            content = shared.read_bytes()
            for kind in DlockType:
                counter = int.from_bytes(content[kind * REGION_BYTES :][:8], "little")
                problems += judge_kind(kind, works, counter, options.seconds)
            problems += judge_count(works, options.seconds)
    for problem in problems:
        print(f"WRONG  {problem}")
    verdict = "exclusion broke" if problems else "every lock excluded, no count was lost"
    print(f"\n{verdict} ({time.monotonic() - began:.1f} s)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
