"""One task of examples/slurm_job.sh: draws numbered pieces of work until there are none left, and
writes each result into a file that all tasks share.

DLOCK_ADDRESS names the address file of the job's primary, which may not exist yet.

    srun python examples/slurm_task.py RESULTS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import dlock

PIECES = 40
CONNECT_S = 60  # a shared file system may show a new file late


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
            result = piece * piece
            with lock, open(results, "a", encoding="utf-8") as file:
                file.write(f"{piece} {result} by task {task}\n")
            done += 1
    print(f"task {task} on {os.uname().nodename}: {done} pieces", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
