"""One queue pair and the stream socket that it stands for: frames that are read from the socket go
out as messages, messages that come go into the socket. What differs between a client and a server
is in their subclasses (client.py, server.py). Its pump owns it; every call is the pump thread's, or
made while the pump is held.

A message counts as taken when the socket has taken its frames, so that a reader who is slow slows
the other end down, and never fills memory here. The socket is read only while what was read before
can go on.
"""

from __future__ import annotations

import collections
import socket
import time
from typing import Final

from dlock import _verbs
from dlock.rdma.pair import Broken, Ended, Pair
from dlock.rdma.station import FRAME_BYTES, Station

INPUT_MAX: Final = 64 * 1024  # bytes read from the socket that wait for room
READ_BYTES: Final = 16 * 1024
LINGER_S: Final = 0.2  # how long a last message may take to arrive


class Lane:
    """`reads`, `writes`: what the pump is to watch the socket for. `deadline`: time.monotonic, when
    the pump is to call `due`; None: never. `over`: it is to be closed, for the reason `why`
    (empty: both ends have ended it). `broken`: how the queue pair failed, if it did."""

    def __init__(self, station: Station, number: int, *, operates: bool = False) -> None:
        self.pair = Pair(station, number, operates=operates)
        self.number = number
        self.socket: socket.socket | None = None
        self.watched: tuple[int, int] | None = None  # the pump's: descriptor and events
        self.over = False
        self.why = ""
        self.broken: Broken | None = None
        self.deadline: float | None = None
        self._input = bytearray()
        self._output = bytearray()
        self._ends: collections.deque[int] = collections.deque()
        self._written = 0  # bytes of messages and answers that the socket has taken, ever
        self._queued = 0  # bytes that it was to take
        self._ended = False  # nothing more comes from the socket

    # ---- What the pump asks ----------------------------------------------------------------------

    @property
    def reads(self) -> bool:
        """There is room for more from the socket."""
        return not self._ended and len(self._input) < INPUT_MAX and not self.over

    @property
    def writes(self) -> bool:
        """Something waits for the socket's room."""
        return bool(self._output) and not self.over

    def readable(self) -> None:
        """The socket has something, or has ended."""
        assert self.socket is not None
        try:
            data = self.socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # as if it had ended: the other end is told
            data = b""
        if data and not self.pair.heard_bye:
            self._input += data
            self.forward()
        elif not data:
            self._ended = True
            self.forward()

    def writable(self) -> None:
        """The socket has room."""
        assert self.socket is not None
        try:
            while self._output:
                count = self.socket.send(self._output)
                del self._output[:count]
                self._written += count
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # nobody reads it any more
            self._ended = True
            self._written = self._queued
            self._output.clear()
        while self._ends and self._ends[0] <= self._written:
            self._ends.popleft()
            self.pair.take()
        self.forward()

    def completed(self, completion: object) -> None:
        """A completion of its queue pair."""
        try:
            for one in self.pair.completed(completion):
                if isinstance(one, Ended):
                    self._write(self.answer(one))
                else:
                    self.arrived(one)
                    self._queued += len(one)
                    self._ends.append(self._queued)
                    self._output += one
        except Broken as broken:
            self.broken = broken
        if self.socket is not None:
            self.writable()
        if self.broken is not None and not self.over:
            self.finish(str(self.broken))

    def is_due(self, now: float) -> bool:
        """Its deadline has come."""
        return self.deadline is not None and now >= self.deadline

    def due(self, now: float) -> None:
        """Its deadline may have come."""
        if self.is_due(now):
            self.finish("" if self._ended or self.pair.heard_bye else
                        "nothing came over it in time")

    # ---- What it does ----------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        self._queued += len(data)
        self._output += data

    def forward(self) -> None:
        """Sends what can be sent, then tells what is owed; ends what is at its end."""
        if self.over or self.broken is not None or not self.pair.connected:
            return
        try:
            self._send()
            self.pair.tell()
            whole = len(self._input) >= FRAME_BYTES
            if self._ended and not whole and not self.pair.said_bye and not self.pair.heard_bye:
                self._say_bye()
        except Broken as broken:
            self.broken = broken
            self.finish(str(broken))
            return
        if self.pair.heard_bye and not self._output:
            self.heard_all()
        elif self.pair.said_bye and self.pair.delivered:
            self.finish("")

    def _send(self) -> None:
        """As much as there is room for. In a subclass some frames are no messages."""
        with memoryview(self._input) as frames:
            sent = self.consume(frames)
        del self._input[:sent]

    def consume(self, frames: memoryview) -> int:
        """Sends from these bytes; how many of them it took. Broken."""
        sent = 0
        while count := self.pair.send(frames[sent:]):
            sent += count
        return sent

    def _say_bye(self) -> None:
        """If there is no place for it, the other end has to take something first."""
        if self.pair.bye() or self.deadline is None:
            self.deadline = time.monotonic() + LINGER_S

    def finish(self, why: str) -> None:
        """It is over; the pump closes it."""
        if not self.over:
            self.over, self.why = True, why

    def close(self) -> None:
        """Destroys the queue pair and closes the socket."""
        self.over = True
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        self.pair.close()

    # ---- What subclasses say ---------------------------------------------------------------------

    def arrived(self, message: bytes) -> None:
        """A message has come, before it is handed on."""

    def answer(self, ended: Ended) -> bytes:
        """What the socket is told of an operation."""
        raise NotImplementedError

    def heard_all(self) -> None:
        """The other end has said its last message, and the socket has it."""
        self.finish("")

    # ---- Both ends -------------------------------------------------------------------------------

    @property
    def own(self) -> _verbs.Address:
        """For the other end."""
        return self.pair.own
