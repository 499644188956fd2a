"""A program of MPI ranks that uses what mpi4py's `util.sync` and `dlock.mpi` both have: what it
prints must not depend on which of the two it imports.

Usage: mpi_program.py (mpi4py.util.sync|dlock.mpi) FOLDER
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

DRAWS = 60
ROUNDS = 3

comm = MPI.COMM_WORLD


def refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except RuntimeError:
        return True
    return False


def alone(gate: Path) -> None:
    """Fails if another rank is here too."""
    os.close(os.open(gate, os.O_CREAT | os.O_EXCL))
    gate.unlink()


def counting(sync: Any) -> list[Any]:
    """What all ranks have drawn together, in order, and that others follow."""
    counter = sync.Counter(10, 2, comm=comm)
    drawn = []
    for number in counter:
        if number >= 10 + 2 * DRAWS:
            break
        drawn.append(number)
    every = comm.gather(drawn)
    comm.barrier()
    above = counter.next(0)
    comm.barrier()
    after = counter.next(incr=100)
    spread = sorted(comm.allgather(after))
    counter.free()
    together = sorted(number for some in every for number in some) if every else []
    return [together, above == 10 + 2 * (DRAWS + comm.size), spread[1] - spread[0],
            refused(counter.next)]


def excluding(sync: Any, folder: Path) -> list[Any]:
    """What a mutex says of itself in each state."""
    seen: list[Any] = []
    mutex = sync.Mutex(comm=comm)
    for _ in range(ROUNDS * 10):
        with mutex:
            alone(folder / "gate")
    with mutex:
        seen += [mutex.locked(), mutex.count(), refused(mutex.acquire)]
    seen += [mutex.locked(), mutex.count(), refused(mutex.release)]
    comm.barrier()
    if comm.rank == 0:
        mutex.acquire()
    comm.barrier()
    if comm.rank == 1:
        seen.append(mutex.acquire(blocking=False))
    comm.barrier()
    if comm.rank == 0:
        mutex.release()
    comm.barrier()
    mutex.free()
    seen += [refused(mutex.acquire), refused(mutex.locked)]
    recursive = sync.Mutex(recursive=True, comm=comm)
    with recursive, recursive:
        seen += [recursive.count(), recursive.acquire(), recursive.count()]
        recursive.release()
    seen += [recursive.count(), recursive.locked()]
    recursive.free()
    return seen


def slots(sync: Any) -> list[Any]:
    """All but one rank find a slot."""
    semaphore = sync.Semaphore(comm.size - 1, comm=comm)
    got = semaphore.acquire(blocking=False)
    comm.barrier()
    every = sorted(comm.allgather(bool(got)))
    comm.barrier()
    if got:
        semaphore.release()
    comm.barrier()
    with semaphore:
        pass
    comm.barrier()
    semaphore.free()
    return every


def in_order(sync: Any, path: Path) -> list[str]:
    """Who writes in each round, one after another; rounds of different ranks may overlap."""
    sequence = sync.Sequential(comm)
    for number in range(ROUNDS):
        with sequence, open(path, "a", encoding="utf-8") as file:
            file.write(f"{number}.{comm.rank}\n")
    comm.barrier()
    written = path.read_text(encoding="utf-8").split()
    return sorted(written, key=lambda line: line.partition(".")[0])  # a stable sort, by round


def main(module: str, folder: Path) -> None:
    sync = importlib.import_module(module)
    said = [counting(sync), excluding(sync, folder), slots(sync),
            in_order(sync, folder / "order")]
    for rank, lines in enumerate(comm.gather(said) or []):
        print(rank, lines)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
