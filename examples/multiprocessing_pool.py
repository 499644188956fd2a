"""A pool of processes that take turns at a file. Lock objects are pickled to the workers, by name:
each worker connects by itself at the first use. A hold is never pickled.

    dlock serve &
    python examples/multiprocessing_pool.py
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from pathlib import Path

import dlock

PROCESSES = 4
TURNS = 50


def work(lock: dlock.Lock, path: Path, turns: int) -> int:
    """Adds to the number in the file, so many times; how often it did."""
    for _ in range(turns):
        with lock:
            number = int(path.read_text(encoding="utf-8"))
            path.write_text(str(number + 1), encoding="utf-8")
    return turns


def run(address: str | None, path: Path, start_method: str = "spawn") -> tuple[int, int]:
    """How often the workers added, and what stands in the file; the same, if nothing was lost."""
    path.write_text("0", encoding="utf-8")
    with dlock.connect(address) as client:
        lock = client.lock(f"file {path}")
        with multiprocessing.get_context(start_method).Pool(PROCESSES) as pool:
            turns = pool.starmap(work, [(lock, path, TURNS)] * PROCESSES)
    return sum(turns), int(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        added, stands = run(sys.argv[1] if len(sys.argv) > 1 else None, Path(folder) / "number")
    print(f"{PROCESSES} processes added {added} times, in the file stands {stands}")
    sys.exit(added != stands)
