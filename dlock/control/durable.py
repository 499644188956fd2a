"""The thread of the durable store: takes what the control thread hands it, everything that waits as
one transaction, and hands the answers back when they are on the disk.

The two threads share two queues and nothing else. Neither waits for the other: a full queue is
refused (`offer`), and the control thread then stops reading the connections that fill it.

After each commit, and before any answer, the state directory is looked at: is it still ours? If a
later primary has taken it, nothing is answered and nothing is written any more: what was committed
since is in a file that counts no more, and those who asked find out from the next primary.

A store that cannot be opened (a full disk, a damaged file) is tried again when something is asked;
the server goes on without it.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from dlock import _core
from dlock.control import messages_durable as d
from dlock.control.durable_files import Home, RefusedError, judge_shown, open_store
from dlock.control.durable_store import DamagedError, Store, error_of
from dlock.control.durable_tables import refused
from dlock.control.messages_base import Message

QUEUE_MAX: Final = 4096  # requests that wait for the disk
QUEUE_BYTES_MAX: Final = 64 << 20
BATCH_MAX: Final = 1024
OPEN_AGAIN_S: Final = 1.0
LANE_IDLE_S: Final = 3600.0  # an asker that was silent for so long asks nothing again
SWEEP_S: Final = 60.0
SWEEP_MAX: Final = 256  # lanes that are forgotten at a time
NS_PER_US: Final = 1000

Log = Callable[[int, str, Mapping[str, object]], None]


class Asked(NamedTuple):
    """A request, and where its answer goes."""

    connection: int
    request_id: int
    message: Message


class Durable:
    """`offer`, `take` and `stats` are for the control thread, `run` or `turn` for the one of the
    store, `stop` for any."""

    def __init__(self, home: Home, confirm: Callable[[], object], log: Log) -> None:
        """`confirm` raises if the state directory is not ours any more. `wake` is to be set by
        whoever takes the answers: it is called, in the thread of the store, when there are some."""
        self._home = home
        self._confirm = confirm
        self._log = log
        self.wake: Callable[[], None] = lambda: None
        self._asked: deque[Asked] = deque()
        self._asked_bytes = 0
        self._answers: deque[tuple[Asked, Message]] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._stopping = False
        self.lost = False  # nothing is answered: another primary may have the directory
        self._counters: Counter[str] = Counter()
        self._store: Store | None = None
        self._told = ""  # the last problem, which is not logged again
        self._why_not = errno.ECOMM
        self._open_at_s = 0.0
        self._judged = {(home.epoch, home.incarnation)}  # by whom clients were answered
        self._lanes: dict[bytes, float] = {}
        self._sweep_at_s = 0.0

    # ---- The control thread ----------------------------------------------------------------------

    def offer(self, asked: Asked) -> bool:
        """Has this carried out; False: there is no room for it now."""
        size = len(asked.message.piece) if isinstance(asked.message, d.RecordPut) else 0
        with self._changed:
            if len(self._asked) >= QUEUE_MAX or (
                    self._asked and self._asked_bytes + size > QUEUE_BYTES_MAX):
                return False
            self._asked.append(asked)
            self._asked_bytes += size
            self._changed.notify()
        return True

    def take(self) -> tuple[Asked, Message] | None:
        """The next answer; None: there is none."""
        return self._answers.popleft() if self._answers else None

    @property
    def busy(self) -> bool:
        """No room is left for more."""
        return len(self._asked) > QUEUE_MAX // 2 or self._asked_bytes > QUEUE_BYTES_MAX // 2

    def stats(self) -> dict[str, int]:
        """Counters and gauges."""
        return {"durable_waiting": len(self._asked), "durable_served": int(self._store is not None),
                **{name: self._counters[name] for name in COUNTERS}}

    # ---- The store's thread ----------------------------------------------------------------------

    def run(self) -> None:
        """Serves until `stop`."""
        _core.block_signals()
        try:
            self._open()
            while self._wait():
                self.turn()
        finally:
            self.close()

    def stop(self) -> None:
        """Makes `run` return soon; what still waits is not answered."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def _wait(self) -> bool:
        with self._changed:
            while not self._asked and not self._stopping:
                self._changed.wait()
            return not self._stopping

    def turn(self) -> None:
        """Carries out what waits, in one transaction."""
        batch = self._next_batch()
        if not batch:
            return
        store = self._open()
        self._counters["DURABLE_REQUESTS"] += len(batch)
        answers = [refused(one.message, self._why_not, self._home.epoch) for one in batch]
        if store is not None and self._may_serve(batch):
            requests = [one.message for one in batch]
            answers, problems = store.transact(requests, time.time_ns() // NS_PER_US)
            self._counters["DURABLE_BATCHES"] += 1
            self._counters["DURABLE_ERRORS"] += len(problems)
            self._tell("; ".join(dict.fromkeys(problems)))
        else:
            self._counters["DURABLE_REFUSED"] += len(batch)
        if not self._confirmed():
            return
        self._answers.extend(zip(batch, answers, strict=True))
        self.wake()
        if self._store is not None:
            self._tidy(self._store, batch)

    def close(self) -> None:
        """Lets the store go."""
        if self._store is not None:
            try:
                self._store.close()
            except sqlite3.Error as problem:
                self._tell(str(problem))
            self._store = None

    def _next_batch(self) -> list[Asked]:
        with self._changed:
            batch = [self._asked.popleft() for _ in range(min(len(self._asked), BATCH_MAX))]
            self._asked_bytes -= sum(len(one.message.piece) for one in batch
                                     if isinstance(one.message, d.RecordPut))
        return batch

    def _confirmed(self) -> bool:
        """Is the state directory ours? What was committed may be answered only then; and a file
        that may be another one's by now is not written again before it is known."""
        try:
            self._confirm()
            self.lost = False
        except Exception as problem:  # whatever it is, it is no confirmation
            self.lost = True
            self._tell(str(problem))
            self.wake()
        return not self.lost

    def _may_serve(self, batch: list[Asked]) -> bool:
        """False: they are refused. A client that was answered by a primary which this store knows
        nothing of shows that it is not the last one's."""
        if self.lost and not self._confirmed():
            return False
        store = self._store
        if store is None:
            return False
        shown = {(one.message.seen_epoch, one.message.seen_incarnation) for one in batch
                 if isinstance(one.message, d.DssCall) and one.message.seen_incarnation}
        shown -= self._judged
        if not shown:
            return True
        if not self._confirmed():
            return False
        try:
            for epoch, incarnation in shown:
                judge_shown(self._home, store, epoch, incarnation)
                self._judged.add((epoch, incarnation))
        except (RefusedError, sqlite3.Error) as problem:
            self._refuse(problem)
        return self._store is not None

    # ---- Opening ---------------------------------------------------------------------------------

    def _open(self) -> Store | None:
        if self._store is not None or time.monotonic() < self._open_at_s:
            return self._store
        try:
            self._store = open_store(self._home)
            now_s = time.monotonic()
            self._lanes = dict.fromkeys(self._store.tables.lanes(), now_s)
            self._told = ""
        except (RefusedError, DamagedError, sqlite3.Error, OSError, MemoryError) as problem:
            self._refuse(problem)
        return self._store

    def _refuse(self, problem: Exception) -> None:
        """Not served until it can be opened."""
        self._counters["DURABLE_ERRORS"] += 1
        self._why_not = error_of(problem)
        self._open_at_s = time.monotonic() + OPEN_AGAIN_S
        self._tell(str(problem))
        self.close()

    def _tell(self, problem: str) -> None:
        """Logs a problem that was not there before."""
        if problem and problem != self._told:
            self._log(logging.ERROR, "the durable store", {
                "path": str(self._home.path), "problem": problem})
        self._told = problem

    # ---- Housekeeping ----------------------------------------------------------------------------

    def _tidy(self, store: Store, batch: list[Asked]) -> None:
        """What may be written besides, while the directory is ours for certain."""
        now_s = time.monotonic()
        for one in batch:
            if isinstance(one.message, d.DssCall):
                self._lanes[one.message.lane] = now_s
            elif isinstance(one.message, d.DssForget):
                self._lanes.pop(one.message.lane, None)
        try:
            store.tidy()
            if now_s >= self._sweep_at_s:
                self._sweep_at_s = now_s + SWEEP_S
                self._sweep(store, now_s - LANE_IDLE_S)
        except sqlite3.Error as problem:
            self._counters["DURABLE_ERRORS"] += 1
            self._tell(str(problem))

    def _sweep(self, store: Store, before_s: float) -> None:
        """Forgets askers that were not heard of since then: they ended without saying so."""
        idle = [lane for lane, used_s in self._lanes.items() if used_s < before_s][:SWEEP_MAX]
        for lane in idle:
            del self._lanes[lane]
        if idle:
            store.transact([d.DssForget(lane) for lane in idle], 0)


COUNTERS: Final = ("DURABLE_REQUESTS", "DURABLE_BATCHES", "DURABLE_ERRORS", "DURABLE_REFUSED")
