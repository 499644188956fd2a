"""One task of examples/slurm_job.sh: draws numbered pieces of work until there are none left, and
enters each result into a sorted file that all tasks share.

DLOCK_ADDRESS names the address file of the job's primary, which may not exist yet.

    srun python examples/slurm_task.py RESULTS
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import dlock

PIECES = 100
CONNECT_S = 60  # a shared file system may show a new file late


def solve(piece: int) -> int:
    """A stand-in for real work."""
    time.sleep(0.01)
    return piece * piece


def enter(results: Path, line: str) -> None:
    """Writes the file anew with this line in its place: correct only while nobody else does so."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    lines = sorted([*lines, line], key=lambda one: int(one.split()[0]))
    results.write_text("".join(f"{one}\n" for one in lines), encoding="utf-8")


def main(results: Path) -> int:
    """Works until all is done; the exit status."""
    job = os.environ.get("SLURM_JOB_ID", "none")
    task = os.environ.get("SLURM_PROCID", "0")
    done = 0
    with dlock.connect(timeout=CONNECT_S) as client:
        pieces = client.atomic(f"job {job}/pieces")
        lock = client.lock(f"job {job}/results")
        for piece in pieces:
            if piece >= PIECES:
                break
            line = f"{piece} {solve(piece)} by task {task}"
            with lock:
                enter(results, line)
            done += 1
    print(f"task {task} on {os.uname().nodename}: {done} pieces", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
