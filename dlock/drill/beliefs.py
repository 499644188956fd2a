"""What a client process believes at this moment, in memory that outlives it.

Each actor of a client process has a slot in a file that is mapped: the hold that it follows, the
last moment in which its client called it HELD, and when it asked for what it was last granted. A
process that is killed with SIGKILL takes nothing of it away, so the drill can write down what it
held; and the drill sees without asking that a client is served again.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dlock.drill import records
from dlock.drill.records import Hold

SLOT_BYTES: Final = 768
_HEAD: Final = struct.Struct("<QQQ")  # length of the hold's line, 0: none; last held; last served
_WORD: Final = struct.Struct("<Q")
_HELD_AT, _SERVED_AT = 8, 16


class Board:
    """The slots of one client process. Each is written by its actor alone."""

    def __init__(self, path: Path, slots: int, *, create: bool = False) -> None:
        self.slots = slots
        with path.open("w+b" if create else "r+b") as file:
            if create:
                file.truncate(slots * SLOT_BYTES)
            self._memory = mmap.mmap(file.fileno(), slots * SLOT_BYTES)

    def close(self) -> None:
        """Unmaps it."""
        self._memory.close()

    # ---- The actor -------------------------------------------------------------------------------

    def begin(self, slot: int, hold: Hold) -> None:
        """This hold is followed from now on."""
        line = records.to_line(hold).encode()
        at = slot * SLOT_BYTES
        if len(line) > SLOT_BYTES - _HEAD.size:
            raise ValueError(f"the name {hold.name!r} is too long for a drill")
        self._memory[at + _HEAD.size:at + _HEAD.size + len(line)] = line
        _WORD.pack_into(self._memory, at + _HELD_AT, hold.begin_ns)
        _WORD.pack_into(self._memory, at, len(line))  # last: from here on it is one

    def served(self, slot: int, asked_ns: int) -> None:
        """What it asked for at this moment was granted."""
        _WORD.pack_into(self._memory, slot * SLOT_BYTES + _SERVED_AT, asked_ns)

    def held(self, slot: int, t_ns: int) -> None:
        """Its client called it HELD at this moment."""
        _WORD.pack_into(self._memory, slot * SLOT_BYTES + _HELD_AT, t_ns)

    def over(self, slot: int) -> None:
        """It is written down, and over."""
        _WORD.pack_into(self._memory, slot * SLOT_BYTES, 0)

    # ---- The drill -------------------------------------------------------------------------------

    def served_ns(self, slot: int) -> int:
        """When this actor asked for what it was last granted; 0: nothing yet."""
        return int(_WORD.unpack_from(self._memory, slot * SLOT_BYTES + _SERVED_AT)[0])

    def holding(self, slot: int) -> bool:
        """Does this actor follow a hold?"""
        return bool(_WORD.unpack_from(self._memory, slot * SLOT_BYTES)[0])

    def holds(self) -> Iterator[Hold]:
        """What is followed now, up to the last moment in which it was called HELD."""
        for at in range(0, self.slots * SLOT_BYTES, SLOT_BYTES):
            length, held_ns, _ = _HEAD.unpack_from(self._memory, at)
            if length:
                line = self._memory[at + _HEAD.size:at + _HEAD.size + length].decode()
                hold = records.from_line(line)
                assert isinstance(hold, Hold)
                yield dataclasses.replace(hold, end_ns=held_ns)
