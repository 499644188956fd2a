"""The part of a long run that uses DLock's calls: leases, tickets, batches, objects, statuses, and
the re-initialisation that such a program does by itself when its primary has died."""

from __future__ import annotations

import random
import socket
import threading
import time
from typing import Final

from dlock import dclient
from dlock.address import parse
from dlock.drill.soak_load import COMMON, HOLD_S, Tally, pause_s, say
from dlock.types import (
    AtomicDesc,
    ClientCfg,
    DlockStatus,
    DlockType,
    LockDesc,
    LockOp,
    LockRequest,
)

LEASE_S: Final = 2
AGAIN_S: Final = 0.1
GIVE_UP_S: Final = 120.0
TURNS_A_CLIENT: Final = 2000  # then it leaves, and another one comes
BATCH: Final = 8
KINDS: Final = ((b"m/a", DlockType.ATOMIC), (b"m/f", DlockType.FAIR), (b"m/rw", DlockType.RW))
DOUBTFUL: Final = (DlockStatus.BAD_RESPONSE, DlockStatus.CLIENT_REMOVED_BY_SERVER)
SUCCESS: Final = DlockStatus.SUCCESS


class InDoubtError(Exception):
    """A call said that the link or the session is in doubt."""


class MirrorLoad:
    """One client of the mirror after the other, until the run ends."""

    def __init__(self, tally: Tally) -> None:
        self._tally, order = tally, tally.order
        self._chance = random.Random(f"{order.seed} {order.name}")
        endpoints, _ = parse(order.address).endpoints()
        self._host = socket.gethostbyname(endpoints[0].host)
        cfg = ClientCfg(primary_port=endpoints[0].port, wait_mode="block", lock_wait=2,
                        reply_timeout=2)
        if dclient.dclient_lib_init(cfg) is not SUCCESS:
            raise RuntimeError("dclient_lib_init failed")
        self._client, self._turns = 0, 0
        self._locks: dict[tuple[bytes, DlockType], int] = {}

    def run(self) -> None:
        """Until the run ends."""
        order, ended = self._tally.order, self._tally.ended
        telling = threading.Thread(target=self._tally.tell_until_ended)
        telling.start()
        try:
            self._begin()
            say("working")
            while not ended.wait(pause_s(order, self._chance, 1)):
                try:
                    self._turn()
                except InDoubtError:
                    self._tally.count("in doubt")
                    self._come_back()
            dclient.client_deinit(self._client)
            dclient.dclient_lib_deinit()
        finally:
            ended.set()
            telling.join()

    def _begin(self) -> None:
        """A new client, which has got its locks."""
        deadline = time.monotonic() + GIVE_UP_S
        while time.monotonic() < deadline:
            status, client = dclient.client_init(self._host)
            if status is SUCCESS and client is not None:
                self._client, self._turns, self._locks = client, 0, {}
                if all(self._get(name + b"/%d" % number, kind)
                       for name, kind in KINDS for number in range(COMMON)):
                    return
                dclient.client_deinit(client)
            time.sleep(AGAIN_S)
        raise RuntimeError(f"no client of the mirror in {GIVE_UP_S:g} s: {status!r}")

    def _get(self, name: bytes, kind: DlockType) -> bool:
        status, lock_id = dclient.get_lock(self._client, LockDesc(name, kind))
        self._locks[name, kind] = lock_id or 0
        return status is SUCCESS

    def _come_back(self) -> None:
        """client_reinit, update_all_locks, client_reinit_done, until a primary says SUCCESS."""
        deadline = time.monotonic() + GIVE_UP_S
        while time.monotonic() < deadline and not self._tally.ended.is_set():
            status = dclient.client_reinit(self._client, self._host)
            if status is SUCCESS:
                status = DlockStatus.EAGAIN
                while status is DlockStatus.EAGAIN:
                    status = dclient.update_all_locks(self._client)
            if status is SUCCESS:
                status = dclient.client_reinit_done(self._client)
            if status is SUCCESS:
                return
            if status is DlockStatus.CLIENT_REMOVED_BY_SERVER:
                dclient.client_deinit(self._client)
                self._begin()
                return
            time.sleep(AGAIN_S)
        if not self._tally.ended.is_set():
            raise RuntimeError(f"a client of the mirror does not come back: {status!r}")

    def _turn(self) -> None:
        self._turns += 1
        if self._turns > TURNS_A_CLIENT:
            dclient.client_deinit(self._client)
            self._begin()
            self._tally.count("session")
        what = self._chance.random()
        if what < 0.1:
            self._number()
        elif what < 0.2:
            self._batch()
        else:
            self._lock()

    def _lock(self) -> None:
        """A lock or a try, perhaps an extension, and the unlock."""
        (name, kind), lock_id = self._chance.choice(list(self._locks.items()))
        shared = kind is not DlockType.ATOMIC and self._chance.random() < 0.5
        mode = LockOp.LOCK_SHARED if shared else LockOp.LOCK_EXCLUSIVE
        call = self._chance.choice([dclient.trylock, dclient.lock])
        status, _ = call(self._client, LockRequest(lock_id, mode, LEASE_S))
        self._known(status)
        if status is DlockStatus.LOCK_NOT_GET:  # a new primary does not know it any more
            dclient.release_lock(self._client, lock_id)
            self._get(name, kind)
        if status is not SUCCESS:  # taken, a ticket, or a primary that recovers
            return
        time.sleep(self._chance.random() * HOLD_S)
        if kind is not DlockType.RW and self._chance.random() < 0.2:
            extend = LockOp.EXTEND_LOCK_SHARED if shared else LockOp.EXTEND_LOCK_EXCLUSIVE
            status, _ = dclient.lock_extend(self._client, LockRequest(lock_id, extend, LEASE_S))
            self._known(status)
        status, _ = dclient.unlock(self._client, lock_id)
        self._known(status)

    def _batch(self) -> None:
        """Names that are used once: got, tried, unlocked and released, all at a time."""
        names = [LockDesc(self._tally.fresh().encode(), DlockType.ATOMIC) for _ in range(BATCH)]
        status, ids = dclient.batch_get_lock(self._client, names)
        self._known(status)
        got = [one for one in ids or () if one >= 0]
        if not got:
            return
        requests = [LockRequest(one, LockOp.LOCK_EXCLUSIVE, LEASE_S) for one in got]
        for status, results in (dclient.batch_trylock(self._client, requests),
                                dclient.batch_unlock(self._client, got)):
            self._known(status)
            for one in results or ():
                self._tally.count(one.op_ret.name)
        status, _ = dclient.batch_release_lock(self._client, got)
        self._known(status)

    def _number(self) -> None:
        """An object that is made, got, counted up, given back and destroyed."""
        client, what = self._client, AtomicDesc(self._tally.fresh().encode(), LEASE_S)
        status, _ = dclient.umo_atomic64_create(client, what, 0)
        self._known(status)
        if status is not SUCCESS:
            return
        status, number = dclient.umo_atomic64_get(client, what)
        self._known(status)
        if status is SUCCESS:
            status, _ = dclient.umo_atomic64_faa(client, number, 1)
            self._known(status)
            self._known(dclient.umo_atomic64_release(client, number))
            self._known(dclient.umo_atomic64_destroy(client, number))

    def _known(self, status: DlockStatus) -> None:
        """Counted by its name; in doubt, the client has to come back."""
        self._tally.count(status.name)
        if status in DOUBTFUL:
            raise InDoubtError
