"""A writer that comes too late, and a file that refuses it.

The file carries the highest token that has written it. Who writes takes a local lock (flock) for
the moment of the write only, compares, and puts a new file in the old one's place: check, write and
token are one step. dlock decides who may work on the file for minutes; flock only keeps two writes
of microseconds apart, so it must work where the file lies (on NFS from version 4 on, or with its
lock daemon; else let one process of one node do the writing, with `FenceGuard.admit`).

    dlock serve &
    python examples/fencing_file.py
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dlock

LEASE_S = 0.3


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nobody else writes the file meanwhile. The lock is on a file of its own: `path` itself is
    replaced by every write."""
    with open(f"{path}.flock", "w", encoding="utf-8") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        yield  # closing the file frees it


def read_file(path: Path) -> dict[str, Any]:
    """What stands in the file: `token` and `content`."""
    try:
        with open(path, encoding="utf-8") as file:
            stands: dict[str, Any] = json.load(file)
            return stands
    except FileNotFoundError:
        return {"token": 0, "content": ""}


def replace_file(path: Path, stands: dict[str, Any]) -> None:
    """Puts a whole new file in the place of the old one, on disk before it is seen."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with open(fresh, "w", encoding="utf-8") as file:
        json.dump(stands, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def write_content(path: Path, token: int, content: str) -> None:
    """The write, with the token of the hold under which it is made."""
    with alone(path):
        stands = read_file(path)

        def remember(token: int) -> None:
            stands["token"] = token

        dlock.FenceGuard(lambda: int(stands["token"]), remember).check(token)
        stands["content"] = content
        replace_file(path, stands)


def run(address: str | None, path: Path) -> str:
    """Plays the story; what stands in the file at the end."""
    with dlock.connect(address) as slow, dlock.connect(address) as quick:
        late = slow.lock("results", lease=LEASE_S, renew=False)
        late.acquire()
        token = late.token
        print(f"first writer: holds the lock with token {token}, is held up")
        time.sleep(2 * LEASE_S)

        with quick.lock("results") as lock:
            write_content(path, lock.token, "the second writer's")
            print(f"second writer: token {lock.token}, has written")

        try:
            write_content(path, token, "the first writer's, too late")
        except dlock.StaleToken as error:
            print(f"first writer: refused: {error}")
        with contextlib.suppress(dlock.LockLost):
            late.release()
        return str(read_file(path)["content"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        left = run(sys.argv[1] if len(sys.argv) > 1 else None, Path(folder) / "results.json")
    print(f"in the file stands: {left}")
