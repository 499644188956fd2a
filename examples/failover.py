"""A failover, shown and checked: the primary is killed with -9 while its clients hold locks of
every kind; another one starts, the clients bring everything back, and a table says what came of it.

This is what a program that uses the mirror does at a new primary, call by call: `client_reinit`,
`update_all_locks`, `client_reinit_done`, then `lock_extend` on what it believes to hold (a rw lock
is asked about by the first call on it). One client reports nothing, to show what that comes to, and
one lease ends while there is no primary. The exit status is the verdict.

Usage: failover.py [--locks 1000]
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import dlock
from dlock import dclient, dserver
from dlock.types import (
    AtomicDesc,
    ClientCfg,
    DlockStatus,
    DlockType,
    LockDesc,
    LockOp,
    LockRequest,
    PrimaryCfg,
    ServerCfg,
)

HOST = "127.0.0.1"
LEASE_S = 30
SHORT_LEASE_S = 1
BATCH = 31
RECOVER_TIMEOUT_S = 30.0

S = DlockStatus
EX, SH = LockOp.LOCK_EXCLUSIVE, LockOp.LOCK_SHARED


def must(status: DlockStatus, expected: DlockStatus, doing: str) -> None:
    if status != expected:
        raise RuntimeError(f"{doing}: {status.name}, expected {expected.name}")


# ---- The primary, in a process of its own --------------------------------------------------------


def serve(port: int, recovery_client_num: int) -> None:
    """Serves until standard input ends, or until kill -9."""
    must(dserver.dserver_lib_init(1), S.SUCCESS, "dserver_lib_init")
    primary = PrimaryCfg(
        server_ip_str=HOST, server_port=port, recovery_client_num=recovery_client_num
    )
    status, _ = dserver.server_start(ServerCfg(primary=primary))
    must(status, S.SUCCESS, "server_start")
    print("serving", flush=True)
    sys.stdin.read()


class Primary:
    """A primary that is waiting for so many clients to come back (0: it serves at once)."""

    def __init__(self, port: int, recovery_client_num: int = 0) -> None:
        self.started = time.monotonic()
        command = [sys.executable, __file__, "--serve", str(port), str(recovery_client_num)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != "serving":
            raise RuntimeError(f"the primary did not start (exit status {self.process.wait()})")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()


# ---- What is held, and what should come of it ----------------------------------------------------


@dataclass
class Row:
    """One line of the table."""

    client: str
    lock: str
    before: str
    asked: str  # the call that says what came of it
    expected: DlockStatus
    ask: Callable[[], DlockStatus]
    said: DlockStatus = S.ERROR


class Scene:
    """Five clients: ann and bob hold, cat has a ticket, dan has bad luck, eve reports nothing; and
    zoe, who comes afterwards."""

    def __init__(self) -> None:
        self.clients: dict[str, int] = {}
        self.rows: list[Row] = []
        for name in ("ann", "bob", "cat", "dan", "eve"):
            self.join(name)

    def join(self, name: str) -> None:
        status, client_id = dclient.client_init(HOST)
        must(status, S.SUCCESS, "client_init")
        assert client_id is not None
        self.clients[name] = client_id

    def get(self, name: str, descriptor: str, kind: DlockType) -> int:
        status, lock_id = dclient.get_lock(
            self.clients[name], LockDesc(descriptor.encode(), kind, LEASE_S)
        )
        must(status, S.SUCCESS, f"get_lock of {descriptor}")
        assert lock_id is not None
        return lock_id

    def take(
        self, name: str, descriptor: str, kind: DlockType, op: LockOp, lease_s: int = LEASE_S
    ) -> int:
        """Gets a lock and takes it; on a busy fair lock that is a ticket."""
        lock_id = self.get(name, descriptor, kind)
        status, _ = dclient.trylock(self.clients[name], LockRequest(lock_id, op, lease_s))
        if status != S.EAGAIN:
            must(status, S.SUCCESS, f"trylock of {descriptor}")
        return lock_id

    def trylock(self, name: str, lock_id: int, op: LockOp) -> DlockStatus:
        return dclient.trylock(self.clients[name], LockRequest(lock_id, op, LEASE_S))[0]

    def extend(self, name: str, lock_id: int, op: LockOp = LockOp.EXTEND_LOCK_EXCLUSIVE) -> S:
        return dclient.lock_extend(self.clients[name], LockRequest(lock_id, op, LEASE_S))[0]

    def row(
        self, name: str, lock: str, before: str, asked: str, expected: S, ask: Callable[[], S]
    ) -> None:
        self.rows.append(Row(name, lock, before, asked, expected, ask))

    def set(self) -> None:
        """Puts a client into every state that a failover can meet."""
        self.set_holders()
        self.set_queue()
        self.set_bad_luck()
        self.set_silence()

    def set_holders(self) -> None:
        ledger = self.take("ann", "atomic ledger", DlockType.ATOMIC, EX)
        must(self.trylock("ann", ledger, EX), S.ALREADY_LOCKED, "re-entry")
        self.row("ann", "atomic ledger", "held, entered twice", "lock_extend", S.SUCCESS,
                 lambda: self.extend("ann", ledger))
        self.row("ann", "atomic ledger", "the inner entry", "unlock", S.ALREADY_LOCKED,
                 lambda: dclient.unlock(self.clients["ann"], ledger)[0])
        table = self.take("ann", "rw table", DlockType.RW, SH)
        self.take("bob", "rw table", DlockType.RW, SH)
        self.row("ann", "rw table", "held shared", "trylock", S.ALREADY_LOCKED,
                 lambda: self.trylock("ann", table, SH))
        self.row("bob", "rw table", "held shared", "trylock", S.ALREADY_LOCKED,
                 lambda: self.trylock("bob", table, SH))
        index = self.take("bob", "rw index", DlockType.RW, EX)
        self.row("bob", "rw index", "held exclusive", "trylock", S.ALREADY_LOCKED,
                 lambda: self.trylock("bob", index, EX))
        spare = self.get("bob", "atomic spare", DlockType.ATOMIC)
        self.row("bob", "atomic spare", "got, not held", "trylock", S.SUCCESS,
                 lambda: self.trylock("bob", spare, EX))

    def set_queue(self) -> None:
        press = self.take("bob", "fair press", DlockType.FAIR, EX)
        self.take("cat", "fair press", DlockType.FAIR, EX)
        self.take("dan", "fair press", DlockType.FAIR, EX)
        self.row("bob", "fair press", "held", "lock_extend", S.SUCCESS,
                 lambda: self.extend("bob", press))
        self.row("dan", "fair press", "the second ticket", "trylock", S.EAGAIN,
                 lambda: self.trylock("dan", press, EX))
        self.row("bob", "fair press", "held", "unlock", S.SUCCESS,
                 lambda: dclient.unlock(self.clients["bob"], press)[0])
        self.row("cat", "fair press", "the first ticket", "trylock", S.SUCCESS,
                 lambda: self.trylock("cat", press, EX))

    def set_bad_luck(self) -> None:
        self.lapsing = self.take("dan", "atomic brief", DlockType.ATOMIC, EX, SHORT_LEASE_S)
        self.row("dan", "atomic brief", "its lease ended meanwhile", "lock_extend", S.FAIL,
                 lambda: self.extend("dan", self.lapsing))
        self.unlocked = self.take("dan", "atomic given", DlockType.ATOMIC, EX)
        self.row("dan", "atomic given", "unlocked, BAD_RESPONSE", "unlock", S.ALREADY_UNLOCKED,
                 lambda: dclient.unlock(self.clients["dan"], self.unlocked)[0])
        dan = self.clients["dan"]
        status, _ = dclient.umo_atomic64_create(dan, AtomicDesc(b"count", LEASE_S), 42)
        must(status, S.SUCCESS, "umo_atomic64_create")
        status, count = dclient.umo_atomic64_get(dan, AtomicDesc(b"count", LEASE_S))
        must(status, S.SUCCESS, "umo_atomic64_get")
        self.row("dan", "object count", "got", "umo_atomic64_faa", S.OBJECT_NOT_GET,
                 lambda: dclient.umo_atomic64_faa(dan, count, 1)[0])

    def set_silence(self) -> None:
        silent = self.take("eve", "atomic silent", DlockType.ATOMIC, EX)
        unused = self.get("eve", "atomic unused", DlockType.ATOMIC)
        self.row("eve", "atomic silent", "held, not reported", "lock_extend", S.FAIL,
                 lambda: self.extend("eve", silent))
        self.row("eve", "atomic unused", "got, not reported", "trylock", S.LOCK_NOT_GET,
                 lambda: self.trylock("eve", unused, EX))

    # ---- The failover ----------------------------------------------------------------------------

    def lose(self) -> None:
        """The primary is dead: an unlock gets no answer, and a lease ends."""
        dan = self.clients["dan"]
        must(dclient.unlock(dan, self.unlocked)[0], S.BAD_RESPONSE, "unlock without a primary")
        look = LockRequest(self.lapsing, EX, 0)
        while (state := dclient.trylock(dan, look)[1]) and state.time_out + 1 > time.time():
            time.sleep(0.05)

    def recover(self) -> None:
        """Every client in turn; the last answer means that the primary serves."""
        deadline = time.monotonic() + RECOVER_TIMEOUT_S
        for name, client_id in self.clients.items():
            while (status := dclient.client_reinit(client_id, HOST)) == S.NOT_READY:
                if time.monotonic() > deadline:
                    raise RuntimeError("no primary answers")
                time.sleep(0.05)
            must(status, S.SUCCESS, f"client_reinit of {name}")
            if name != "eve":
                while (status := dclient.update_all_locks(client_id)) == S.EAGAIN:
                    pass
                must(status, S.SUCCESS, f"update_all_locks of {name}")
            must(dclient.client_reinit_done(client_id), S.SUCCESS, f"client_reinit_done of {name}")

    def ask(self) -> None:
        """Every client asks about its own; a newcomer is kept out of what is held."""
        self.join("zoe")
        for lock, kind, op in (
            ("atomic ledger", DlockType.ATOMIC, EX),
            ("rw table", DlockType.RW, EX),
            ("rw index", DlockType.RW, SH),
        ):
            lock_id = self.get("zoe", lock, kind)
            self.row("zoe", lock, "no client yet", "trylock", S.FAIL,
                     partial(self.trylock, "zoe", lock_id, op))
        for row in self.rows:
            row.said = row.ask()


# ---- Many locks, beside the scene ----------------------------------------------------------------


def take_many(client_id: int, count: int) -> list[int]:
    """So many atomic locks, held."""
    lock_ids: list[int] = []
    for at in range(0, count, BATCH):
        descriptors = [LockDesc(b"many %d" % one) for one in range(at, min(at + BATCH, count))]
        status, got = dclient.batch_get_lock(client_id, descriptors)
        must(status, S.SUCCESS, "batch_get_lock")
        assert got is not None
        requests = [LockRequest(lock_id, EX, LEASE_S) for lock_id in got]
        status, _ = dclient.batch_trylock(client_id, requests)
        must(status, S.SUCCESS, "batch_trylock")
        lock_ids += got
    return lock_ids


def verify_many(client_id: int, lock_ids: Sequence[int]) -> int:
    """How many of them are held."""
    held = 0
    for at in range(0, len(lock_ids), BATCH):
        requests = [
            LockRequest(lock_id, LockOp.EXTEND_LOCK_EXCLUSIVE, LEASE_S)
            for lock_id in lock_ids[at : at + BATCH]
        ]
        _, results = dclient.batch_lock_extend(client_id, requests)
        held += sum(one.op_ret == S.SUCCESS for one in results or ())
    return held


# ---- The story -----------------------------------------------------------------------------------


def show(rows: Sequence[Row]) -> list[str]:
    """Prints the table; returns what was wrong."""
    print(f"{'':<5}{'lock':<16}{'when the primary died':<28}{'asked by':<18}said")
    problems = []
    for row in rows:
        right = row.said == row.expected
        print(
            f"{row.client:<5}{row.lock:<16}{row.before:<28}{row.asked:<18}{row.said.name}"
            f"{'' if right else '   WRONG'}"
        )
        if not right:
            problems.append(
                f"{row.client}, {row.lock}: {row.said.name} instead of {row.expected.name}"
            )
    return problems


def play(port: int, locks: int) -> list[str]:
    """The whole failover; returns what was wrong."""
    primary = Primary(port)
    try:
        must(dclient.dclient_lib_init(ClientCfg(primary_port=port)), S.SUCCESS, "dclient_lib_init")
        scene = Scene()
        scene.set()
        many = take_many(scene.clients["ann"], locks)
        print(
            f"dlock {dlock.__version__}: primary {primary.process.pid} at {HOST}:{port}, "
            f"{len(scene.clients)} clients\nkill -9 {primary.process.pid}"
        )
        primary.kill()
        scene.lose()
        primary = Primary(port, recovery_client_num=len(scene.clients))
        print(f"primary {primary.process.pid} waits for {len(scene.clients)} clients")
        must(dclient.client_init(HOST)[0], S.NOT_READY, "client_init meanwhile")
        began = time.monotonic()
        scene.recover()
        ready = time.monotonic()
        print(
            f"it serves {ready - primary.started:.2f} s after its start, {ready - began:.3f} s "
            f"after the first client came\n"
        )
        scene.ask()
        problems = show(scene.rows)
        held = verify_many(scene.clients["ann"], many)
        print(f"ann  and {held} of {len(many)} other locks that were held")
        if held != len(many):
            problems.append(f"{len(many) - held} of {len(many)} held locks were lost")
        must(dclient.dclient_lib_deinit(), S.SUCCESS, "dclient_lib_deinit")
        return problems
    finally:
        primary.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description="A failover, shown and checked.")
    parser.add_argument("--locks", type=int, default=1000, help="held beside those of the table")
    parser.add_argument("--serve", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return 0
    problems = play(free_port(), options.locks)
    for problem in problems:
        print(f"WRONG  {problem}")
    print("\nthe recovery broke" if problems else "\nevery lock came back, or said that it did not")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
