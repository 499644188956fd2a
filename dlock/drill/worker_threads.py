"""The actors of a client process as threads of `dlock`."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from typing import Any, Final

import dlock
from dlock.drill import records
from dlock.drill.holds import LOOK_S, SILENT_NS, Actor, Following, Process, watch_of
from dlock.drill.load import SLOTS, Load, Turn
from dlock.drill.records import now_ns
from dlock.drill.worker import CONNECT_S, Orders, say_working
from dlock.errors import DlockError

COUNT: Final = "count"


def lock_for(client: Any, turn: Turn) -> Any:
    """The lock object of this turn; of `dlock` and `dlock.aio` alike."""
    leased = {"lease": turn.lease_s, "renew": turn.renew}
    if turn.kind == "rw":
        both = client.rwlock(turn.name)
        return both.read() if turn.shared else both.write()
    if turn.kind == "fair":
        return client.fair_lock(turn.name, shared=turn.shared, **leased)
    if turn.kind == "semaphore":
        return client.semaphore(turn.name, SLOTS, **leased)
    return client.lock(turn.name, **leased)


class Session:
    """One client, and its threads."""

    def __init__(self, orders: Orders, process: Process, number: int,
                 ended: threading.Event) -> None:
        self._orders, self._process, self._number, self._ended = orders, process, number, ended
        self._client = dlock.connect(
            orders.address, timeout=CONNECT_S, wait="block", name="dlock-drill",
            on_lost=watch_of(process, number, records.TOLD_LOST, "on_lost"),
            on_suspended=watch_of(process, number, records.TOLD_SUSPENDED, "on_suspended"))
        self._count = self._client.atomic(orders.prefix + COUNT)
        self.failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, args=(number, one)) for one in range(orders.actors)]

    def start(self) -> None:
        """Lets them work."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """When they have ended."""
        for thread in self._threads:
            thread.join()
        self._client.close()

    def _work(self, session: int, number: int) -> None:
        orders = self._orders
        slot = (session - 1) * orders.actors + number
        actor = Actor(self._process, session, number, slot)
        load = Load(orders.seed, orders.prefix, f"{orders.client}/{session}", number)
        try:
            while not self._ended.is_set():
                if load.adds:
                    self._add(actor)
                self._turn(actor, load.next())
                time.sleep(load.pause_s)
        except BaseException as problem:
            self.failures.append(problem)
            actor.problem(f"it ended with {problem!r}")
            raise

    def _add(self, actor: Actor) -> None:
        asked_ns = now_ns()
        try:
            outcome: int | DlockError = self._count.fetch_add(1)
        except DlockError as problem:
            outcome = problem
        actor.added(self._orders.prefix + COUNT, asked_ns, outcome)

    def _turn(self, actor: Actor, turn: Turn) -> None:
        lock = lock_for(self._client, turn)
        lost = lock.lost
        asked_ns = now_ns()
        try:
            taken = self._taken(lock, turn)
        except DlockError as problem:
            actor.failed("acquire", turn.name, problem, asked_ns)
            return
        if not taken:
            return
        following = Following(actor, turn, lock.token, asked_ns)
        try:
            while True:
                moment_ns, was_lost = now_ns(), lost.is_set()
                left_s, session_left_s = lock.remaining, self._client.session_left
                if not following.more(left_s, session_left_s, was_lost, moment_ns) \
                        or self._ended.is_set():
                    break
                time.sleep(LOOK_S)
        finally:
            said: DlockError | None = None
            try:
                lock.release()
            except DlockError as error:
                said = error
            following.end(said)

    def _taken(self, lock: Any, turn: Turn) -> bool:
        if turn.cancelled_s is None:
            return bool(lock.acquire(timeout=turn.timeout_s))
        future = lock.acquire_future(timeout=turn.timeout_s)
        time.sleep(turn.cancelled_s)
        try:
            return not future.cancel() and bool(future.result(SILENT_NS / 1e9))
        except CancelledError:
            return False


def run(orders: Orders, process: Process, ended: threading.Event) -> int:
    """Works until `ended`."""
    sessions = [
        Session(orders, process, number, ended) for number in range(1, orders.sessions + 1)]
    for session in sessions:
        session.start()
    say_working()
    for session in sessions:
        session.close()
    return 1 if any(session.failures for session in sessions) else 0
