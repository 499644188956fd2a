"""The machine: which cores to use, the CPU time that processes burn, and what it is made of."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def cores() -> tuple[int, int]:
    """One core for the server, another for the client; the same where there is but one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """This thread on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """CPU time of all living threads of a process, to the nanosecond where the kernel tells."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


class Meter:
    """How many cores a process keeps busy, from now on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._spent = cpu_seconds(pid)
        self._since = time.monotonic()

    def cores(self) -> float:
        """Until now."""
        return (cpu_seconds(self._pid) - self._spent) / (time.monotonic() - self._since)


def facts() -> dict[str, Any]:
    """What a figure should not be read without."""
    return {
        "cpu": _first_line_of("/proc/cpuinfo", "model name"),
        "cores": sorted(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load average at the start": os.getloadavg(),
    }


def _first_line_of(path: str, key: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return platform.machine()
