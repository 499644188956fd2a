"""A client process in the words of DLock: leases, statuses, and its own re-initialisation.

A session has one actor only, since a program of DLock re-initialises between its calls.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import Final

from dlock import dclient
from dlock.drill.holds import LOOK_S, Actor, Following, Process
from dlock.drill.load import Turn
from dlock.drill.records import now_ns
from dlock.drill.worker import CONNECT_S, Orders, say_working
from dlock.types import (
    ClientCfg,
    DlockStatus,
    DlockType,
    LockDesc,
    LockOp,
    LockRequest,
    State,
)

S = DlockStatus
KINDS: Final = {"atomic": DlockType.ATOMIC, "fair": DlockType.FAIR}
DOUBTFUL: Final = (S.BAD_RESPONSE, S.CLIENT_REMOVED_BY_SERVER)  # link or session
CLOCK_RATE: Final = 0.999  # what is left of a duration when clocks run at different rates
ASK_AGAIN_S: Final = 0.02
REPLY_S: Final = 1  # what does not answer within it is in doubt
LOCK_WAIT_S: Final = 2
TURN: Final = Turn("", "", False, 1.0, False, LOCK_WAIT_S, 0, None, True)


class LinkError(Exception):
    """A call said that link or session are in doubt."""


class Session:
    """One client, and its thread."""

    def __init__(self, orders: Orders, process: Process, number: int,
                 ended: threading.Event) -> None:
        self._orders, self._ended = orders, ended
        self._actor = Actor(process, number, 0, (number - 1) * orders.actors)
        self._chance = random.Random(f"{orders.seed} {orders.client}/{number}")
        self._own = f"{orders.prefix}own/{orders.client}/{number}"
        self._names = {
            self._own: "atomic", **{f"{orders.prefix}{kind}": kind for kind in KINDS}}
        self._hosts = itertools.cycle(orders.hosts)
        self._host = next(self._hosts)
        self._client = 0
        self._locks: dict[str, int] = {}
        self.failed = False
        self._thread = threading.Thread(target=self._work)
        self._begin()

    def start(self) -> None:
        """Lets it work."""
        self._thread.start()

    def close(self) -> None:
        """When it has ended."""
        self._thread.join()

    # ---- Its session -----------------------------------------------------------------------------

    def _begin(self) -> None:
        """A new client, which has got its locks."""
        deadline = time.monotonic() + CONNECT_S
        while True:
            status, client = dclient.client_init(self._host)
            if status is S.SUCCESS and client is not None:
                self._client = client
                if all(map(self._got, self._names)):
                    return
                dclient.client_deinit(client)
            if time.monotonic() > deadline:
                raise RuntimeError(f"no client in time: {status.name}")
            self._host = next(self._hosts)
            time.sleep(ASK_AGAIN_S)

    def _got(self, name: str) -> bool:
        kind = KINDS[self._names[name]]
        status, lock_id = dclient.get_lock(self._client, LockDesc(name.encode(), kind))
        self._locks[name] = lock_id or 0
        return status is S.SUCCESS

    def _come_back(self) -> None:
        """client_reinit, update_all_locks until it is no EAGAIN, client_reinit_done; a new client
        where the session is over."""
        deadline = time.monotonic() + CONNECT_S
        while time.monotonic() < deadline:
            status = dclient.client_reinit(self._client, self._host)
            if status is S.SUCCESS:
                status = dclient.update_all_locks(self._client)
                while status is S.EAGAIN:
                    status = dclient.update_all_locks(self._client)
            if status is S.SUCCESS:
                status = dclient.client_reinit_done(self._client)
            if status is S.SUCCESS:
                return
            if status is S.CLIENT_REMOVED_BY_SERVER:
                dclient.client_deinit(self._client)
                self._begin()
                return
            self._host = next(self._hosts)
            time.sleep(ASK_AGAIN_S)
        raise RuntimeError(f"the client does not come back: {status.name}")

    # ---- What it does ----------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._ended.is_set():
                try:
                    self._turn()
                except LinkError:
                    self._come_back()
            dclient.client_deinit(self._client)
        except BaseException as problem:
            self.failed = True
            self._actor.problem(f"it ended with {problem!r}")
            raise

    def _turn(self) -> None:
        chance = self._chance
        name = self._own if chance.random() < 0.3 else chance.choice(list(self._names))
        lease_s = chance.choice((1, 1, 2))
        call = chance.choice((dclient.trylock, dclient.lock))
        asked_ns = now_ns()
        lock_id = self._locks[name]
        status, state = call(
            self._client, LockRequest(lock_id, LockOp.LOCK_EXCLUSIVE, lease_s))
        if status is S.SUCCESS:
            assert state is not None
            hold_ns = int(chance.random() * 20e6 * chance.choice((1, 1, 1, 1, 20, 100)))
            self._hold(TURN._replace(
                name=name, kind=self._names[name], lease_s=float(lease_s), hold_ns=hold_ns),
                state, asked_ns)
            return
        if status is S.LOCK_NOT_GET:  # of a lock that the new primary does not know
            dclient.release_lock(self._client, lock_id)
            if not self._got(name):
                raise LinkError
        elif status in DOUBTFUL:
            self._actor.failed(call.__name__, name, status.name, asked_ns)
            raise LinkError
        time.sleep(chance.random() * ASK_AGAIN_S)  # taken, or a primary that recovers

    def _hold(self, turn: Turn, state: State, asked_ns: int) -> None:
        """Works under the lease, and extends it now and then; what is in doubt is asked with
        lock_extend after the return, which says whether somebody had it in between."""
        following = Following(self._actor, turn, state.token, asked_ns)
        lock_id = self._locks[turn.name]
        until_ns = _good_until(asked_ns, turn.lease_s or 0)
        extends = self._chance.random() < 0.5
        ending: str | None = None
        try:
            while True:
                moment_ns = now_ns()
                left_s = (until_ns - moment_ns) / 1e9
                if not following.more(left_s, 0.0, False, moment_ns) or self._ended.is_set():
                    break
                if extends and self._chance.random() < 0.1:
                    until_ns = self._extend(following, lock_id, until_ns)
                time.sleep(LOOK_S)
            status, _ = dclient.unlock(self._client, lock_id)
            while status is S.NOT_READY and not self._ended.is_set():
                time.sleep(ASK_AGAIN_S)
                status, _ = dclient.unlock(self._client, lock_id)
            ending = status.name
            if status in DOUBTFUL:
                raise LinkError
        finally:
            following.end(ending)

    def _extend(self, following: Following, lock_id: int, until_ns: int) -> int:
        """Until when it is good. After a failure the client comes back first and asks again, also
        when it can not be good any more: the answer says whether it was lost."""
        deadline = time.monotonic() + CONNECT_S
        while time.monotonic() < deadline:
            asked_ns = now_ns()
            status, state = dclient.lock_extend(
                self._client, LockRequest(lock_id, LockOp.EXTEND_LOCK_EXCLUSIVE, 1))
            if status is S.SUCCESS:
                assert state is not None
                if state.token != following.token:
                    self._actor.problem(f"an extension of token {following.token} was answered "
                                        f"with token {state.token}")
                return max(until_ns, _good_until(asked_ns, 1))
            if status is S.NOT_READY:
                time.sleep(ASK_AGAIN_S)
            elif status in DOUBTFUL:
                self._come_back()
            else:
                following.lost(status.name)
                return 0
        raise RuntimeError("nobody says what became of a hold")


def _good_until(asked_ns: int, lease_s: float) -> int:
    return asked_ns + int(lease_s * 1e9 * CLOCK_RATE)


def run(orders: Orders, process: Process, ended: threading.Event) -> int:
    """Works until `ended`."""
    cfg = ClientCfg(primary_port=orders.port, wait_mode="block", lock_wait=LOCK_WAIT_S,
                    reply_timeout=REPLY_S)
    status = dclient.dclient_lib_init(cfg)
    if status is not S.SUCCESS:
        raise RuntimeError(f"dclient_lib_init: {status.name}")
    sessions = [
        Session(orders, process, number, ended) for number in range(1, orders.sessions + 1)]
    for session in sessions:
        session.start()
    say_working()
    for session in sessions:
        session.close()
    dclient.dclient_lib_deinit()
    return 1 if any(session.failed for session in sessions) else 0
