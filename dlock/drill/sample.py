"""What a process of this machine uses at this moment: memory, descriptors, threads. Linux only; it
looks at processes and touches none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
KIB: Final = 1024
MEMORY: Final = ("RssAnon", "RssShmem", "VmSwap")


@dataclass(frozen=True, slots=True)
class Usage:
    """`memory_bytes`: pages that are the process' own, in memory or swapped out. Pages of programs
    and other files are not among them, since the kernel takes and brings those as it likes;
    `resident_bytes` has them. `cpu_s`: user and system, since its start."""

    memory_bytes: int
    resident_bytes: int
    descriptors: int
    threads: int
    cpu_s: float


def usage(pid: int) -> Usage:
    """Of this process; of one that has ended but was not waited for, nothing is left but its
    processor time. ProcessLookupError: there is none, or nothing may be seen of it."""
    folder = PROC / str(pid)
    try:
        status = dict(
            line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        stat = (folder / "stat").read_text().rpartition(")")[2].split()
        descriptors = len(os.listdir(folder / "fd"))
    except OSError as problem:
        raise ProcessLookupError(f"process {pid} cannot be looked at: {problem}") from None
    return Usage(
        memory_bytes=sum(_bytes(status, name) for name in MEMORY),
        resident_bytes=_bytes(status, "VmRSS"), descriptors=descriptors,
        threads=int(status["Threads"]),
        cpu_s=(int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"))


def _bytes(status: dict[str, str], name: str) -> int:
    words = status.get(name, "0 kB").split()
    return int(words[0]) * KIB


def folder_bytes(folder: Path) -> tuple[int, int]:
    """How many files there are in a folder, and how long they are together; files that go in the
    meantime do not count."""
    count = size = 0
    for one in folder.iterdir():
        try:
            size += one.stat().st_size
        except OSError:
            continue
        count += 1
    return count, size
