"""A client's end of queue pairs, over pyverbs: the C client is given one end of a pair of stream
sockets and talks as over TCP, a lane moves its frames.

What the C client marks with a key (bit 32 of `reserved`, the key below) is no message: the lane
carries it out on the server's cell by itself and answers in the server's place, with the flag that
says so. Whether a session is live enough for that, the C client has decided before, and judges
again when the answer has come.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
from typing import Final

from dlock import _core, _verbs
from dlock._verbs import VerbsError
from dlock.rdma.flow import CELL_BYTES
from dlock.rdma.lane import Lane
from dlock.rdma.pair import Ended, Operation
from dlock.rdma.pump import Pump
from dlock.rdma.station import FRAME_BYTES, FRAMES_MAX, Station

LANES_MAX: Final = 256  # of a process, at one port
ADOPT: Final[int] = _core.DLK_LINK_ADOPT
OPERATES: Final[int] = _core.DLK_LINK_OPERATES
KEY: Final = 0xFFFFFFFF
VERBS: Final = {
    _core.DLK_OP_FETCH_ADD: "add",
    _core.DLK_OP_COMPARE_SWAP: "swap",
    _core.DLK_OP_READ: "read",
}
_REQUEST: Final = struct.Struct("<IBBHIIIIQQQIIQ")  # struct dlk_request
_REPLY: Final = struct.Struct("<IBBHIIQQQIIIHHHHI")  # struct dlk_reply
_EPOCH: Final = struct.Struct("<12xI")  # of a reply
_RESERVED: Final = struct.Struct("<56xQ")  # of a request
_log = logging.getLogger("dlock.rdma")

assert _REQUEST.size == _REPLY.size == _RESERVED.size == FRAME_BYTES


class ClientLane(Lane):
    """`cells`: where the server's object 0 lies; 0: nothing can be operated on."""

    def __init__(self, station: Station, number: int) -> None:
        super().__init__(station, number, operates=True)
        self.cells = 0
        self._epoch = 0

    def arrived(self, message: bytes) -> None:
        """Every reply names the epoch of its server; the first comes before any operation."""
        if message:
            (self._epoch,) = _EPOCH.unpack_from(message)

    def consume(self, frames: memoryview) -> int:
        """Messages and operations, in their order."""
        sent, whole = 0, len(frames) // FRAME_BYTES * FRAME_BYTES
        while sent < whole:
            if _key(frames, sent):
                if not self._operate(frames, sent):
                    break
                sent += FRAME_BYTES
                continue
            end = sent + FRAME_BYTES
            while end < min(whole, sent + FRAMES_MAX * FRAME_BYTES) and not _key(frames, end):
                end += FRAME_BYTES
            count = self.pair.send(frames[sent:end])
            if not count:
                break
            sent += count
        return sent

    def _operate(self, frames: memoryview, at: int) -> bool:
        request = _REQUEST.unpack_from(frames, at)
        (_id, op, _mode, _flags, _session, _object, slot, _entry, _owner, token, value, _lease,
         _wait, reserved) = request
        if not self.cells or not self.pair.operates or op not in VERBS:
            # Nothing of that kind is known here: the server is asked, as over TCP.
            plain = bytearray(frames[at:at + FRAME_BYTES])
            plain[56:64] = bytes(8)
            return self.pair.send(memoryview(plain)) > 0
        operand, swap = (token, value) if op == _core.DLK_OP_COMPARE_SWAP else (value, 0)
        return self.pair.operate(Operation(
            VERBS[op], self.cells + CELL_BYTES * slot, reserved & KEY, operand, swap,
            request))

    def answer(self, ended: Ended) -> bytes:
        """What the server would have answered."""
        request_id, op, mode, _flags, session, *_rest = ended.operation.cookie
        result = _core.DLK_RESULT_DONE
        if ended.refused:
            result = _core.DLK_RESULT_NO_OBJECT
        elif op == _core.DLK_OP_COMPARE_SWAP and ended.value != ended.operation.operand:
            result = _core.DLK_RESULT_CAS_FAILED
        return _REPLY.pack(
            request_id, op, mode, result, session, self._epoch, 0, ended.value, 0, 0,
            _core.DLK_NONE, 0, 0, 0, 0, 0, _core.DLK_REPLY_ONE_SIDED)


def _key(frames: memoryview, at: int) -> bool:
    (reserved,) = _RESERVED.unpack_from(frames, at)
    return bool(reserved)


class ClientPair:
    """A client's end. `own` is for the server. Until it is connected it ends with its last
    reference, then with the socket that `connect` gives."""

    def __init__(self, port: _verbs.Port) -> None:
        """VerbsError: there can be none at this port."""
        self._pump = _pump_at(port)
        with self._pump.held():
            self._lane = self._pump.new_lane(ClientLane)
        self.own = self._lane.own

    def __del__(self) -> None:
        if hasattr(self, "_lane"):
            self.free()

    def free(self) -> None:
        """It is not wanted; nothing if it is connected."""
        if self._lane.socket is None and self._pump.alive:
            with self._pump.held():
                self._pump.give_up(self._lane)

    def hand_over(self, peer: _verbs.Address) -> dict[str, int]:
        """What a C client is to have of a struct dlk_link to talk to this other end: from here on
        the socket is its own."""
        flags, theirs = self.connect(peer)
        return {"flags": flags, "fd": theirs.detach()}

    def connect(self, peer: _verbs.Address) -> tuple[int, socket.socket]:
        """Connected to the server's end: the flags of a struct dlk_link, and the socket to talk
        over. If it cannot be connected, the other end of that socket is closed."""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            ours.setblocking(False)
            theirs.setblocking(False)
            with self._pump.held():
                if self._lane.over or not self._pump.alive:
                    return ADOPT, theirs
                try:
                    self._pump.connect(self._lane, peer)
                except VerbsError as problem:
                    _log.warning("%s", problem)
                    self._pump.give_up(self._lane)
                    return ADOPT, theirs
                self._lane.cells = peer.cells
                self._lane.socket = ours
                self._pump.touch(self._lane)
                undo.pop_all()
        return (ADOPT | OPERATES if self.operates else ADOPT), theirs

    @property
    def operates(self) -> bool:
        """Connected: it carries out operations on objects with a key."""
        return self._lane.pair.operates and self._lane.cells != 0


# ---- One pump a port -----------------------------------------------------------------------------


class _Process:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pid = 0
        self.pumps: dict[_verbs.Port, Pump] = {}


_process: Final = _Process()


def _pump_at(port: _verbs.Port) -> Pump:
    """The one of this process; begun when it is first wanted, and after it has failed."""
    if _process.pid != os.getpid():  # a forked child begins anew, with a lock that nobody holds
        _process.lock, _process.pumps, _process.pid = threading.Lock(), {}, os.getpid()
    with _process.lock:
        pump = _process.pumps.get(port)
        if pump is None or not pump.alive:
            pump = _process.pumps[port] = Pump(port, LANES_MAX, _ended, "dlock-rdma")
        return pump


def _ended(lane: Lane) -> None:
    if lane.why:
        _log.info("a queue pair of this client has ended: %s", lane.why)
