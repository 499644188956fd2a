"""The measuring ends of the C core (native/bench*.c), typed. They run without the interpreter
lock."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import add
from statistics import median
from typing import Any, Final

from dlock import _core
from dlock._core import ffi, lib

SAMPLES_MAX: Final = 1_000_000
CALL_SAMPLES_MAX: Final = 100_000
KINDS: Final = {
    "atomic": (_core.DLK_KIND_ATOMIC, _core.DLK_MODE_EXCLUSIVE),
    "rw": (_core.DLK_KIND_RW, _core.DLK_MODE_EXCLUSIVE),
    "rw shared": (_core.DLK_KIND_RW, _core.DLK_MODE_SHARED),
    "fair": (_core.DLK_KIND_FAIR, _core.DLK_MODE_EXCLUSIVE),
    "semaphore": (_core.DLK_KIND_SEMAPHORE, _core.DLK_MODE_EXCLUSIVE),
}
WAIT_MODES: Final = {
    "block": _core.DLK_WAIT_BLOCK,
    "adaptive": _core.DLK_WAIT_ADAPTIVE,
    "poll": _core.DLK_WAIT_POLL,
}


@dataclass
class Result:
    """What a measuring end counted."""

    count: int
    refused: int
    errors: int
    elapsed_s: float
    cpu_s: float
    samples_ns: array[int] = field(default_factory=lambda: array("I"))
    counts: list[int] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """A second."""
        return self.count / self.elapsed_s

    @property
    def cores(self) -> float:
        """Kept busy by the measuring process."""
        return self.cpu_s / self.elapsed_s

    def quantile_us(self, share: float) -> float:
        """Of the samples; RuntimeError if there are none: nothing happened in this time."""
        if not self.samples_ns:
            raise RuntimeError(f"nothing to measure happened in {self.elapsed_s:.2f} s")
        ordered = sorted(self.samples_ns)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] / 1000


def checked(error: int, out: Any, *, strict: bool = True) -> Result:
    """What a measuring end returned; `strict`: a wrong answer is an error too."""
    if error:
        raise OSError(error, os.strerror(error))
    result = Result(out.count, out.refused, out.errors, out.elapsed_ns / 1e9, out.cpu_ns / 1e9)
    if strict and result.errors:
        raise RuntimeError(f"{result.errors} wrong answers of {result.count}")
    return result


def samples_of(out: Any, buffer: Any) -> array[int]:
    """Those that were written."""
    samples = array("I")
    samples.frombytes(ffi.buffer(buffer, out.samples * ffi.sizeof("uint32_t"))[:])
    return samples


def engine(kind: str, locks: int, held: int, seconds: float, *, batch: int = 1024,
           sessions: int = 64, bare: bool = False) -> Result:
    """Pairs of the engine alone: `held` locks taken, then given back, in random order."""
    number, mode = KINDS[kind]
    config = ffi.new("struct dlk_bench_engine *", {
        "kind": number, "mode": mode, "locks": locks, "sessions": sessions, "batch": batch,
        "held": held, "duration_ms": round(seconds * 1000), "bare": int(bare),
    })
    out = ffi.new("struct dlk_bench_result *")
    return checked(lib.dlk_bench_engine(config, out), out)


def engine_memory(locks: int) -> dict[str, float]:
    """Resident bytes an open lock, a holder and a waiter."""
    out = ffi.new("struct dlk_bench_memory *")
    error = lib.dlk_bench_memory(locks, out)
    if error:
        raise OSError(error, os.strerror(error))
    return {
        "lock": (out.opened - out.empty) / locks,
        "holder": (out.held - out.opened) / locks,
        "waiter": (out.queued - out.held) / locks,
    }


def echo_serve(listener: int, connections: int, wait_mode: str) -> None:
    """Echoes until all connections have closed."""
    error = lib.dlk_bench_echo(listener, connections, WAIT_MODES[wait_mode])
    if error:
        raise OSError(error, os.strerror(error))


@dataclass(frozen=True)
class Locks:
    """Whom a load speaks for and what it locks: `window` locks for each client, one after the
    other."""

    client_ids: Sequence[int]
    lock_ids: Sequence[int]
    slots: Sequence[int]
    mode: int = _core.DLK_MODE_EXCLUSIVE
    wait_ms: int = 0


def load(fds: Sequence[int], window: int, seconds: float, wait_mode: str, *,
         locks: Locks | None = None, hand_over: bool = False, sampled: bool = False) -> Result:
    """Keeps `window` requests under way on each connection: pairs on `locks`, or echoes."""
    counts = ffi.new("uint64_t[]", len(fds))
    samples = ffi.new("uint32_t[]", SAMPLES_MAX) if sampled else ffi.NULL
    arrays: dict[str, Any] = {"fds": ffi.new("int32_t[]", list(fds))}
    if locks is not None:
        for name in ("client_ids", "lock_ids", "slots"):
            arrays[name] = ffi.new("uint32_t[]", list(getattr(locks, name)))
    config = ffi.new("struct dlk_bench_load *", {
        "work": lib.DLK_BENCH_ECHO if locks is None else lib.DLK_BENCH_PAIRS,
        "wait_mode": WAIT_MODES[wait_mode], "connections": len(fds), "window": window,
        "mode": locks.mode if locks else 0, "wait_ms": locks.wait_ms if locks else 0,
        "duration_ms": round(seconds * 1000), "hand_over": int(hand_over),
        "samples_room": SAMPLES_MAX if sampled else 0, "counts": counts, "samples_ns": samples,
        **arrays,
    })
    out = ffi.new("struct dlk_bench_result *")
    result = checked(lib.dlk_bench_load(config, out), out)
    result.counts = list(counts)
    if sampled:
        result.samples_ns = samples_of(out, samples)
    return result


def crowd(clients: Sequence[Any], lock_id: int, seconds: float, *, hold_us: int = 0,
          wait_ms: int = 30000) -> Result:
    """A thread for each `struct dlk_client *`, all on one lock that each has got."""
    counts = ffi.new("uint64_t[]", len(clients))
    samples = ffi.new("uint32_t[]", SAMPLES_MAX)
    pointers = ffi.new("struct dlk_client *[]", list(clients))
    config = ffi.new("struct dlk_bench_crowd *", {
        "clients": len(clients), "lock_id": lock_id, "wait_ms": wait_ms, "hold_us": hold_us,
        "duration_ms": round(seconds * 1000), "samples_room": SAMPLES_MAX, "client": pointers,
        "counts": counts, "samples_ns": samples,
    })
    out = ffi.new("struct dlk_bench_result *")
    result = checked(lib.dlk_bench_crowd(config, out), out)
    result.counts = list(counts)
    result.samples_ns = samples_of(out, samples)
    return result


CALL_WORKS: Final = {
    "lock": _core.DLK_BENCH_LOCK_UNLOCK,
    "faa": _core.DLK_BENCH_FETCH_ADD,
    "cas": _core.DLK_BENCH_COMPARE_SWAP,
    "read": _core.DLK_BENCH_READ,
}


@dataclass(frozen=True)
class Called:
    """What `calls` found. `took_ns` of the lock or the operation, `unlock_ns` of the unlock of the
    same pair, in the same order."""

    result: Result
    took_ns: Sequence[int]
    unlock_ns: Sequence[int]
    values: Sequence[int]

    @property
    def took_us(self) -> float:
        """The median."""
        return median(self.took_ns) / 1000

    @property
    def unlock_us(self) -> float:
        """The median."""
        return median(self.unlock_ns) / 1000

    @property
    def pair_us(self) -> float:
        """The median of both together."""
        return float(median(map(add, self.took_ns, self.unlock_ns))) / 1000


def calls(work: str, clients: Sequence[Any], ids: Sequence[int], seconds: float, *,
          values: Sequence[int] | None = None) -> Called:
    """One call after the other on each `struct dlk_client *`, each of which has got the lock or
    object with its id; `values`: what the objects hold."""
    buffers = [ffi.new("uint32_t[]", CALL_SAMPLES_MAX) for _ in range(2)]
    held = ffi.new("uint64_t[]", list(values or [0] * len(clients)))
    pointers = ffi.new("struct dlk_client *[]", list(clients))
    numbers = ffi.new("uint32_t[]", list(ids))
    config = ffi.new("struct dlk_bench_calls *", {
        "work": CALL_WORKS[work], "clients": len(clients), "duration_ms": round(seconds * 1000),
        "samples_room": CALL_SAMPLES_MAX, "client": pointers, "ids": numbers, "values": held,
        "samples_ns": buffers[0], "unlock_samples_ns": buffers[1],
    })
    out = ffi.new("struct dlk_bench_result *")
    result = checked(lib.dlk_bench_calls(config, out), out)
    if not result.count:
        raise RuntimeError(f"nothing was answered in {result.elapsed_s:.2f} s")
    took_ns, unlock_ns = (samples_of(out, buffer) for buffer in buffers)
    return Called(result, took_ns, unlock_ns, list(held))
