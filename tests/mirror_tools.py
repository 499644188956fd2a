"""What the tests of the mirror share: requests in one word, and a service to ask."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from dlock import _mirror_data, _mirror_table, dclient, dserver
from dlock.types import (
    ClientCfg,
    DlockStatus,
    DlockType,
    LockDesc,
    LockOp,
    LockRequest,
    PrimaryCfg,
    ServerCfg,
    State,
)

S = DlockStatus
ATOMIC, RW, FAIR = DlockType.ATOMIC, DlockType.RW, DlockType.FAIR
LEASE_S = 60
LONG_S = 40.0  # more than enough, on whatever machine
HOST = "127.0.0.1"

_names = itertools.count()


def ex(lock_id: int, expire_s: int = LEASE_S) -> LockRequest:
    return LockRequest(lock_id, LockOp.LOCK_EXCLUSIVE, expire_s)


def sh(lock_id: int, expire_s: int = LEASE_S) -> LockRequest:
    return LockRequest(lock_id, LockOp.LOCK_SHARED, expire_s)


def extend_ex(lock_id: int, expire_s: int = LEASE_S) -> LockRequest:
    return LockRequest(lock_id, LockOp.EXTEND_LOCK_EXCLUSIVE, expire_s)


def extend_sh(lock_id: int, expire_s: int = LEASE_S) -> LockRequest:
    return LockRequest(lock_id, LockOp.EXTEND_LOCK_SHARED, expire_s)


def free_port() -> int:
    """A port that nobody listens on (the mirror takes 0 for its default)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits for a condition that must come true; how soon is not asserted."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


@dataclass
class Service:
    """A server in this process, and clients of it."""

    port: int
    server_id: int
    clients: list[int] = field(default_factory=list)

    def client(self) -> int:
        status, client_id = dclient.client_init(HOST)
        assert status is S.SUCCESS
        assert client_id is not None
        self.clients.append(client_id)
        return client_id

    def lock(self, kind: DlockType, *clients: int) -> int:
        """A lock of its own name, got by these clients."""
        desc = LockDesc(b"lock %d" % next(_names), kind)
        lock_ids = {get(client, desc) for client in clients}
        assert len(lock_ids) == 1
        return lock_ids.pop()

    def crash(self) -> None:
        """To its clients it is as if the server had died."""
        assert dserver.server_stop(self.server_id) is S.SUCCESS

    def start(self, recovery_client_num: int = 0, **limits: object) -> None:
        """Another primary, at the same address."""
        self.server_id = start_server(self.port, recovery_client_num, **limits)

    def fail_over(self, recovery_client_num: int = 0, **limits: object) -> None:
        """The primary dies, and another one takes its place."""
        self.crash()
        self.start(recovery_client_num, **limits)


@dataclass
class FarService(Service):
    """A server in a process of its own."""

    process: subprocess.Popen[str] = field(kw_only=True)

    def stop_in_its_tracks(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)  # until it has stopped

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def crash(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def start(self, recovery_client_num: int = 0, **limits: object) -> None:
        self.process = start_far(self.port, recovery_client_num, **limits)


SERVER_PROGRAM = """
import json, sys
from dlock import dserver
from dlock.types import DlockStatus, PrimaryCfg, ServerCfg

primary, limits = map(json.loads, sys.argv[1:])
dserver.dserver_lib_init(1)
cfg = ServerCfg(primary=PrimaryCfg(**primary), sleep_mode_enable=True, **limits)
assert dserver.server_start(cfg)[0] is DlockStatus.SUCCESS
print("serving", flush=True)
sys.stdin.read()
"""


def start_far(port: int, recovery_client_num: int = 0, **limits: object) -> subprocess.Popen[str]:
    """A server in a process of its own, which ends with its standard input."""
    primary = {"server_ip_str": HOST, "server_port": port,
               "recovery_client_num": recovery_client_num}
    process = run_python(SERVER_PROGRAM, json.dumps(primary), json.dumps(limits))
    assert line_of(process) == "serving"
    return process


def get(client: int, desc: LockDesc) -> int:
    status, lock_id = dclient.get_lock(client, desc)
    assert status is S.SUCCESS
    assert lock_id is not None
    return lock_id


def server_cfg(port: int, recovery_client_num: int = 0, **limits: object) -> ServerCfg:
    primary = PrimaryCfg(
        server_ip_str=HOST, server_port=port, recovery_client_num=recovery_client_num)
    return ServerCfg(primary=primary, sleep_mode_enable=True, **limits)  # type: ignore[arg-type]


def start_server(port: int, recovery_client_num: int = 0, **limits: object) -> int:
    status, server_id = dserver.server_start(server_cfg(port, recovery_client_num, **limits))
    assert status is S.SUCCESS
    assert server_id is not None
    return server_id


def client_cfg(port: int, **settings: object) -> ClientCfg:
    settings.setdefault("wait_mode", "block")
    settings.setdefault("lock_wait", 30)  # whoever waits gets it; none waits for that in vain
    return ClientCfg(primary_port=port, **settings)  # type: ignore[arg-type]


def run_python(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own; its standard output is for the test to read."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# ---- Coming back ---------------------------------------------------------------------------------


def reinit(client: int) -> None:
    """Takes up the session at a living server."""
    assert dclient.client_reinit(client, HOST) is S.SUCCESS
    assert dclient.client_reinit_done(client) is S.SUCCESS


def report(client: int) -> None:
    """The first two calls of a recovery."""
    assert dclient.client_reinit(client, HOST) is S.SUCCESS
    assert dclient.update_all_locks(client) is S.SUCCESS


def recover(*clients: int) -> None:
    """What an application does at a new primary, client by client."""
    for client in clients:
        report(client)
        assert dclient.client_reinit_done(client) is S.SUCCESS


def recover_all(*clients: int) -> None:
    """The same, until the primary serves: one without a state directory begins anew when a client
    shows it a higher epoch, and those that came before have to come again."""
    deadline = time.monotonic() + LONG_S
    waiting = list(clients)
    while waiting:
        assert time.monotonic() < deadline, "the primary does not serve"
        recover(*waiting)
        waiting = [one for one in clients if dclient.client_heartbeat(one, 20) is S.BAD_RESPONSE]
    assert dclient.client_heartbeat(clients[0], 20) is S.SUCCESS


def shown(client: int, lock_id: int) -> State:
    """The local state of a lock; asks nothing of the server."""
    status, state = dclient.trylock(client, ex(lock_id, 0))
    assert status is S.SUCCESS
    assert state is not None
    return state


def local_state(client: int) -> list[tuple[object, ...]]:
    """Everything that a client believes of its locks, apart from what runs with time."""
    pointer = _mirror_table.clients[client].pointer
    return [
        (*claim._replace(remaining_ms=0, lapsed=0), shown(client, claim.lock_id))
        for claim in _mirror_data.claims(pointer).items
    ]


class Held:
    """A client, `me`, with something in every state, and another one."""

    def __init__(self, service: Service) -> None:
        self.me, self.other = service.client(), service.client()
        locks = [service.lock(kind, self.me, self.other) for kind in (ATOMIC, RW, RW, FAIR, FAIR)]
        self.atomic, self.writer, self.reader, self.fair, self.ticket = locks
        # One that is free, but was not always: it shows what it has seen.
        self.free = service.lock(FAIR, self.me, self.other)
        assert dclient.trylock(self.other, ex(self.free))[0] is S.SUCCESS
        assert dclient.trylock(self.me, ex(self.free))[0] is S.EAGAIN
        assert dclient.unlock(self.me, self.free)[0] is S.SUCCESS
        assert dclient.unlock(self.other, self.free)[0] is S.SUCCESS
        assert dclient.trylock(self.other, ex(self.ticket))[0] is S.SUCCESS
        for request in (ex(self.atomic), ex(self.writer), sh(self.reader), sh(self.fair)):
            assert dclient.trylock(self.me, request)[0] is S.SUCCESS
        assert dclient.trylock(self.me, ex(self.ticket))[0] is S.EAGAIN
