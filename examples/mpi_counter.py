"""The ranks of an MPI program share out numbered tasks and add up their results in one file.

Rank 0 runs the primary, on a port that is free, and tells the others where; nothing has to be there
before. The counter gives every task to one rank, the mutex lets one rank at a time rewrite the
file, and the report comes in the order of the ranks. (`-m mpi4py` ends all ranks when one fails.)

    mpirun -n 4 python -m mpi4py examples/mpi_counter.py
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from mpi4py import MPI

from dlock.mpi import Counter, Mutex, Sequential, serving


def solve(task: int) -> int:
    """A stand-in for real work."""
    return task * task


def add_to(path: Path, result: int) -> None:
    """Reads, adds, writes: correct only while nobody else does the same."""
    total = int(path.read_text(encoding="utf-8"))
    path.write_text(str(total + result), encoding="utf-8")


def main() -> int:
    """The exit status, the same at every rank: 0, the sum in the file is right."""
    parser = argparse.ArgumentParser(description="shares out numbered tasks among MPI ranks")
    parser.add_argument("--listen", default="0.0.0.0", help="where rank 0's primary listens")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--folder", help="a folder that all ranks see (default: rank 0's /tmp)")
    arguments = parser.parse_args()
    comm = MPI.COMM_WORLD

    with serving(comm, host=arguments.listen) as client:
        path = None
        if comm.rank == 0:
            handle, name = tempfile.mkstemp(prefix="mpi-counter-", dir=arguments.folder)
            os.write(handle, b"0")
            os.close(handle)
            path = Path(name)
        path = comm.bcast(path)

        tasks = Counter(comm=comm, client=client)
        mutex = Mutex(comm=comm, client=client)
        done = 0
        for task in tasks:
            if task >= arguments.tasks:
                break
            result = solve(task)
            with mutex:
                add_to(path, result)
            done += 1

        with Sequential(comm, client=client):
            print(f"rank {comm.rank} of {comm.size}: {done} tasks", flush=True)
        comm.barrier()
        total = int(path.read_text(encoding="utf-8"))
        comm.barrier()
        if comm.rank == 0:
            path.unlink()
            print(f"the sum is {total}", flush=True)
        mutex.free()
        tasks.free()
    return 0 if total == sum(map(solve, range(arguments.tasks))) else 1


if __name__ == "__main__":
    sys.exit(main())
