"""How many messages may be under way between two ends of a queue pair, and what their immediate
data says (docs/rdma.md, "Credits"); and where its own operations leave their results. Pure; of one
end.

Every message takes a place in the other end's window until that end has told that it took it. The
last place is for messages without a frame, which do nothing but tell.
"""

from __future__ import annotations

import random
import sys
from typing import Final

from dlock import _core

BYE: Final[int] = _core.DLK_VERBS_BYE & 0xFFFFFFFF
COUNT: Final = 0xFFFF
CELL_BYTES: Final = 8
UNUSED: Final = 0xFFFFFFFF & ~(BYE | COUNT)


class FlowError(Exception):
    """The other end broke the rules of the window; the text says how."""


class Flow:
    """`window`: messages that this end has room for; `peer_window`: those of the other one."""

    __slots__ = ("peer_window", "received", "said", "sent", "taken", "told", "window")

    def __init__(self, window: int, peer_window: int) -> None:
        self.window = window
        self.peer_window = peer_window
        self.sent = 0
        self.told = 0  # of those, how many the other end has said that it took
        self.received = 0
        self.taken = 0  # of those
        self.said = 0  # of those taken, how many this end has told

    def room(self) -> int:
        """How many messages with frames may be sent now."""
        return max(self.peer_window - 1 - (self.sent - self.told), 0)

    def place(self) -> bool:
        """May a message without frames be sent now?"""
        return self.sent - self.told < self.peer_window

    def owes(self) -> bool:
        """So much was taken and not told that it is to be told without waiting for frames."""
        return self.taken - self.said >= self.window // 2

    def send(self, bye: bool = False) -> int:
        """A message goes now; its immediate data."""
        assert self.place(), "the other end has no room"
        self.sent += 1
        self.said = self.taken
        return (self.taken & COUNT) | (BYE if bye else 0)

    def receive(self, immediate: int) -> bool:
        """A message has come; True: it is the last one. FlowError."""
        self.received += 1
        if self.received - self.said > self.window:
            raise FlowError("it sent more messages than it was told there is room for")
        if immediate & UNUSED:
            raise FlowError(f"its immediate data {immediate:#010x} has bits that mean nothing")
        news = (immediate - self.told) & COUNT
        if news > self.sent - self.told:
            raise FlowError("it tells of more messages than it was sent")
        self.told += news
        return bool(immediate & BYE)

    def take(self, messages: int = 1) -> None:
        """So many that came need their places no longer."""
        self.taken += messages


class Results:
    """The places in `memory`, 8 bytes each, where operations leave what they found.

    Soft-RoCE tells of some operations whose answer was lost that they succeeded, and writes no
    result. So a number that nobody can guess lies at a place beforehand; who finds it again does
    not know the result.
    """

    __slots__ = ("_blanks", "_memory")

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._blanks = [0] * (len(memory) // CELL_BYTES)

    def expect(self, place: int) -> None:
        """Before an operation is posted that leaves its result there."""
        self._blanks[place] = random.getrandbits(64)
        at = place * CELL_BYTES
        self._memory[at:at + CELL_BYTES] = self._blanks[place].to_bytes(CELL_BYTES, sys.byteorder)

    def take(self, place: int) -> int | None:
        """The cell as the operation found it, in the byte order of the host; None: not known."""
        at = place * CELL_BYTES
        found = int.from_bytes(self._memory[at:at + CELL_BYTES], sys.byteorder)
        return None if found == self._blanks[place] else found
