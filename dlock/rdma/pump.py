"""The thread that moves frames between queue pairs and sockets: one a pump, and a pump has one port
of one device. It waits in epoll for the completion channel and for sockets, and never for anything
else.

Other threads hold the pump (`with pump.held()`) for what is short: to add a lane, to connect it, to
give one up. A forked child has nothing of it, and touches nothing of it: what pyverbs would give
back in the child is the parent's.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from dlock import _core, _verbs
from dlock._verbs import VerbsError
from dlock.rdma.lane import LINGER_S, Lane
from dlock.rdma.pair import pair_of
from dlock.rdma.station import Station

L = TypeVar("L", bound=Lane)

EVENTS_MAX: Final = 64
STOP_S: Final = 2.0
_log = logging.getLogger("dlock.rdma")


class _Process:
    def __init__(self) -> None:
        self.pumps: weakref.WeakSet[Pump] = weakref.WeakSet()
        self.registered = False


_process: Final = _Process()


class Pump:
    """At this port, for at most so many lanes (`lanes_max`, perhaps fewer). `ended`: called in its
    thread with each lane that is over. VerbsError: the device cannot be used."""

    def __init__(self, port: _verbs.Port, lanes_wanted: int, ended: Callable[[Lane], None],
                 name: str) -> None:
        self.station = Station(port, lanes_wanted)
        self.lanes_max = self.station.pairs_max
        self._ended = ended
        self._pid = os.getpid()
        self._lock = threading.RLock()  # what is collected as garbage may need it too
        self._lanes: dict[int, Lane] = {}
        self._touched: set[Lane] = set()  # to be looked at
        self._timed: set[Lane] = set()  # that have a deadline
        self._numbers = 0
        self._stopping = False
        self._stop_at = 0.0
        self._gone = False
        self._bell, self._knocker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self.station.channel_fd, select.EPOLLIN)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._by_socket: dict[int, Lane] = {}
        _remember(self)
        # Daemon: a program that forgets it still ends.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # ---- For other threads -----------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """It works, and belongs to this process."""
        return self._pid == os.getpid() and self._thread.is_alive() and not self._stopping

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Its thread does nothing meanwhile, and wakes afterwards."""
        with self._lock:
            yield
            if not self._gone:
                with contextlib.suppress(BlockingIOError):  # it is full: the thread wakes anyway
                    os.write(self._knocker, b"\0")

    def new_lane(self, make: Callable[[Station, int], L]) -> L:
        """Held: a lane that is not connected. VerbsError: there is no room for another."""
        if len(self._lanes) >= self.lanes_max:
            raise VerbsError(f"{self.station.port} has {len(self._lanes)} queue pairs, as many as "
                             f"its completion queue has room for")
        self._numbers += 1
        try:
            lane = make(self.station, self._numbers)
        except (self.station.problem, OSError) as problem:
            raise VerbsError(f"no queue pair at {self.station.port}: {problem}") from None
        self._lanes[lane.number] = lane
        self._touched.add(lane)
        return lane

    def connect(self, lane: Lane, peer: _verbs.Address) -> None:
        """Held. VerbsError: not with this other end."""
        try:
            lane.pair.connect(peer)
        except (self.station.problem, OSError) as problem:
            raise VerbsError(f"{self.station.port} cannot be connected to the other end at "
                             f"{_verbs.gid_text(peer.gid)}: {problem}") from None

    def lane(self, number: int) -> Lane | None:
        """Held."""
        return self._lanes.get(number)

    @property
    def lanes(self) -> int:
        """How many there are."""
        return len(self._lanes)

    def give_up(self, lane: Lane) -> None:
        """Held: it is of no use."""
        lane.finish("")
        self._touched.add(lane)

    def touch(self, lane: Lane) -> None:
        """Held: something about it has changed."""
        self._touched.add(lane)

    def stop(self) -> None:
        """Lanes have a moment to carry the last frames to their ends; then the last message is said
        on those that are left, and the device given back."""
        if self._pid != os.getpid():
            return
        with self.held():
            self._stopping = True
            self._stop_at = time.monotonic() + LINGER_S
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_S)

    # ---- Its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        _core.block_signals()
        try:
            while True:
                with self._lock:
                    self._complete()
                    self._look()
                    if self._stopping and (not self._lanes or self._late()):
                        break
                    wait_s = self._wait_s()
                for descriptor, events in self._epoll.poll(wait_s, EVENTS_MAX):
                    with self._lock:
                        self._handle(descriptor, events)
        except Exception:
            _log.exception("the thread of %s has failed; its clients come back by other ways",
                           self.station.port)
        finally:
            with self._lock:
                self._stopping = True
                self._give_everything_back()

    def _handle(self, descriptor: int, events: int) -> None:
        if descriptor == self.station.channel_fd:
            self.station.rung()
        elif descriptor == self._bell:
            with contextlib.suppress(BlockingIOError):
                os.read(self._bell, 4096)
        elif (lane := self._by_socket.get(descriptor)) is not None and not lane.over:
            self._touched.add(lane)
            if events & (select.EPOLLOUT | select.EPOLLERR):
                lane.writable()
            if events & (select.EPOLLIN | select.EPOLLHUP) and not lane.over:
                lane.readable()

    def _complete(self) -> None:
        """Takes every completion; afterwards the next one wakes it."""
        armed = False
        while True:
            found = self.station.poll()
            for completion in found:
                lane = self._lanes.get(pair_of(completion))
                if lane is not None and not lane.over:  # else of one that has been destroyed
                    self._touched.add(lane)
                    lane.completed(completion)
            if not found:
                if armed:
                    return
                self.station.arm()
                armed = True

    def _look(self) -> None:
        """Ends what is over, and watches the sockets for what each lane wants."""
        now = time.monotonic()
        while self._touched or any(lane.is_due(now) for lane in self._timed):
            lanes = {*self._touched, *(lane for lane in self._timed if lane.is_due(now))}
            self._touched.clear()
            for lane in lanes:
                lane.forward()
                lane.due(now)
                if lane.over:
                    self._end(lane)
                    continue
                self._watch(lane)
                if lane.deadline is not None:
                    self._timed.add(lane)
                else:
                    self._timed.discard(lane)

    def _wait_s(self) -> float | None:
        deadlines = [lane.deadline for lane in self._timed if lane.deadline is not None]
        if self._stopping:
            deadlines.append(self._stop_at)
        return max(min(deadlines) - time.monotonic(), 0) if deadlines else None

    def _late(self) -> bool:
        return time.monotonic() >= self._stop_at

    def _watch(self, lane: Lane) -> None:
        if lane.socket is None:
            return
        descriptor = lane.socket.fileno()
        events = (select.EPOLLIN if lane.reads else 0) | (select.EPOLLOUT if lane.writes else 0)
        if not events:  # else a socket whose other end is closed would wake it again and again
            self._unwatch(lane)
        elif lane.watched is None:
            self._epoll.register(descriptor, events)
            self._by_socket[descriptor] = lane
            lane.watched = (descriptor, events)
        elif lane.watched != (descriptor, events):
            self._epoll.modify(descriptor, events)
            lane.watched = (descriptor, events)

    def _unwatch(self, lane: Lane) -> None:
        if lane.watched is not None:
            self._epoll.unregister(lane.watched[0])
            del self._by_socket[lane.watched[0]]
            lane.watched = None

    def _end(self, lane: Lane) -> None:
        self._unwatch(lane)
        self._timed.discard(lane)
        if self._lanes.pop(lane.number, None) is None:
            return
        with contextlib.suppress(self.station.problem):  # the device may be gone
            lane.close()
        self._ended(lane)

    def _give_everything_back(self) -> None:
        for lane in list(self._lanes.values()):
            with contextlib.suppress(Exception):
                lane.pair.bye()
            lane.finish("")
            self._end(lane)
        self._gone = True
        self._epoll.close()
        os.close(self._bell)
        os.close(self._knocker)
        with contextlib.suppress(self.station.problem):
            self.station.close()


# ---- Forked children -----------------------------------------------------------------------------


def _remember(pump: Pump) -> None:
    if not _process.registered:
        _process.registered = True
        os.register_at_fork(after_in_child=_after_fork_in_child)
    _process.pumps.add(pump)


def _after_fork_in_child() -> None:
    """Nothing of the parent's is ever given back here, not even at the end of the child."""
    for pump in list(_process.pumps):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pump))
    _process.pumps = weakref.WeakSet()
