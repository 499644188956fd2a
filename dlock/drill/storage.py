"""What the locks of a drill protect: a file for each name that all client processes share.

A write goes through a `dlock.FenceGuard` whose highest token lies in the file itself; check, token
and write are one step under flock. So a writer that comes too late is refused, whatever it
believes, and the order in which writes were accepted is known.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from dlock import FenceGuard, StaleToken

_CELL: Final = struct.Struct("<QQ")  # highest token, number of accepted writes
TRIES: Final = 10
TRY_S: Final = 0.001


class Written(NamedTuple):
    """What became of a write: see `dlock.drill.records.Write`."""

    accepted: bool
    sequence: int
    highest: int


class Storage:
    """The files of one drill, in a folder of theirs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def write(self, name: str, token: int) -> Written | None:
        """Writes under this token, or is refused. None: the file is in use, for longer than a
        write takes: by a process that was stopped in the middle of one. Nothing was written."""
        with self._cell(name) as fd:
            if fd is None:
                return None
            highest, sequence = _CELL.unpack(os.pread(fd, _CELL.size, 0) or bytes(_CELL.size))
            before = highest

            def remember(seen: int) -> None:
                nonlocal highest
                highest = seen

            guard = FenceGuard(lambda: highest, remember)
            try:
                guard.check(token)
            except StaleToken:
                return Written(False, sequence, before)
            os.pwrite(fd, _CELL.pack(highest, sequence + 1), 0)
            return Written(True, sequence + 1, before)

    @contextlib.contextmanager
    def _cell(self, name: str) -> Iterator[int | None]:
        """The file of this name, locked; None: somebody else has it."""
        fd = os.open(self._folder / name.replace("/", "_"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            yield fd if _locked(fd) else None
        finally:
            os.close(fd)


def _locked(fd: int) -> bool:
    """Never waits for long: a loop of asyncio calls this, and heartbeats must go on."""
    for _ in range(TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(TRY_S)
    return False
