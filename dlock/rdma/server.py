"""A server's end of queue pairs, over pyverbs: for each one a connection to the server's own data
port, over which a lane moves its frames. So the plane serves it as any other connection, and knows
nothing of verbs.

There is nothing one-sided here: the processor is the one that operates on objects, for everybody.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import socket
import time
from typing import Final

from dlock import _core, _verbs
from dlock._verbs import Made, VerbsError
from dlock.rdma.lane import Lane
from dlock.rdma.pair import ACCESS_ERROR
from dlock.rdma.pump import Pump
from dlock.rdma.station import COMPLETIONS, MESSAGE_BYTES, WINDOW, Station

ATTACH_S: Final = 5.0  # as long as a connection without an attach frame may last
LEAVE_S: Final = 5.0  # how long the plane may take to answer what came before the last message
NO_ROOM: Final[int] = _core.DLK_STATUS_SERVER_NO_RESOURCE
ANSWERED: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
NO_ADDRESS: Final = _verbs.Address(1, 0, _verbs.NO_GID, 0, 1, 0, 2, 64, 0)
PEER_GONE: Final = 12  # a status of a completion: retries exceeded
_log = logging.getLogger("dlock.rdma")


class ServerLane(Lane):
    """Connected to the data port when the first message comes; it has until then to come."""

    def __init__(self, station: Station, number: int, place: tuple[str, int]) -> None:
        super().__init__(station, number)
        self._place = place
        self._shut = False
        self.deadline = time.monotonic() + ATTACH_S

    def arrived(self, message: bytes) -> None:
        """The first one begins the connection; nothing is awaited."""
        if self.socket is not None:
            return
        self.deadline = None
        host, port = self._place
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self.socket = socket.socket(family, socket.SOCK_STREAM)
            self.socket.setblocking(False)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):
                self.socket.connect((host, port))
        except OSError as problem:
            self.finish(f"the server's own data port cannot be reached: {problem.strerror}")

    def heard_all(self) -> None:
        """What came before the last message is carried out: the plane is told that no more comes,
        and its end is awaited. A connection that was closed at once could lose it."""
        if self.socket is None or self._ended:
            self.finish("")
        elif not self._shut:
            self._shut = True
            self.deadline = time.monotonic() + LEAVE_S
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)


class PairServer:
    """The ends of one server, at this port, for so many clients if the device has room. `counters`
    are by the names of Stats. VerbsError: it cannot serve RDMA."""

    def __init__(self, port: _verbs.Port, host: str, data_port: int, clients: int) -> None:
        self._place = (ANSWERED.get(host, host), data_port)
        self.port = port
        self.counters: collections.Counter[str] = collections.Counter()
        self._pump = Pump(port, clients, self._ended, "dlock-rdma-server")

    @property
    def text(self) -> str:
        """With what it serves."""
        lanes = self._pump.lanes_max
        return (f"over pyverbs, {lanes} queue pairs (a completion queue of "
                f"{lanes * COMPLETIONS}), windows of {WINDOW} messages of {MESSAGE_BYTES} bytes; "
                f"nothing is one-sided")

    def verbs_pair(self, peer: _verbs.Address) -> Made:
        """An end that is ready for this client; it needs no LINK_OPEN."""
        if not self._pump.alive:
            return Made(_core.DLK_STATUS_ERROR, NO_ADDRESS, 0, "the RDMA device has failed")
        with self._pump.held():
            if self._pump.lanes >= self._pump.lanes_max:
                return Made(NO_ROOM, NO_ADDRESS, 0,
                            f"all {self._pump.lanes_max} queue pairs are in use")
            try:
                lane = self._pump.new_lane(
                    lambda station, number: ServerLane(station, number, self._place))
            except VerbsError as problem:
                return Made(NO_ROOM, NO_ADDRESS, 0, str(problem))
            try:
                self._pump.connect(lane, peer)
            except VerbsError as problem:
                self._pump.give_up(lane)
                return Made(_core.DLK_STATUS_ERROR, NO_ADDRESS, 0, str(problem))
            self.counters["VERBS_CONNECTIONS"] += 1
            return Made(_core.DLK_STATUS_SUCCESS, lane.own, lane.number, linked=True)

    def verbs_pair_free(self, number: int) -> None:
        """This end is not wanted."""
        with self._pump.held():
            lane = self._pump.lane(number)
            if lane is not None:
                self._pump.give_up(lane)

    def close(self) -> None:
        """Says the last message to every client, and gives the device back."""
        self._pump.stop()

    def _ended(self, lane: Lane) -> None:
        """In the pump's thread: counts and tells what was no leave."""
        broken = lane.broken
        if broken is None:
            return
        if broken.fault:
            name, level = "VERBS_WINDOW_FULL", logging.WARNING
        elif broken.status == PEER_GONE:
            name, level = "VERBS_PEER_GONE", logging.INFO
        elif broken.status == ACCESS_ERROR:
            name, level = "VERBS_ACCESS", logging.WARNING
        else:
            name, level = "VERBS_PAIR_ERROR", logging.WARNING
        self.counters[name] += 1
        _log.log(level, "the queue pair of a client has ended: %s", lane.why)
