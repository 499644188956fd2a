"""What the tests of the mirror share: requests in one word, and a service to ask."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from dlock import dclient, dserver
from dlock.types import (
    ClientCfg,
    DlockStatus,
    DlockType,
    LockDesc,
    LockOp,
    LockRequest,
    PrimaryCfg,
    ServerCfg,
)

S = DlockStatus
ATOMIC, RW, FAIR = DlockType.ATOMIC, DlockType.RW, DlockType.FAIR
LEASE_S = 60

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
        status, client_id = dclient.client_init("127.0.0.1")
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


@dataclass
class FarService(Service):
    """A server in a process of its own."""

    process: subprocess.Popen[str] = field(kw_only=True)

    def stop_in_its_tracks(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)  # until it has stopped

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


SERVER_PROGRAM = """
import sys
from dlock import dserver
from dlock.types import DlockStatus, PrimaryCfg, ServerCfg

port, session_ttl = map(int, sys.argv[1:])
dserver.dserver_lib_init(1)
primary = PrimaryCfg(server_ip_str="127.0.0.1", server_port=port)
cfg = ServerCfg(primary=primary, sleep_mode_enable=True, session_ttl=session_ttl)
assert dserver.server_start(cfg)[0] is DlockStatus.SUCCESS
print("serving", flush=True)
sys.stdin.read()
"""


def get(client: int, desc: LockDesc) -> int:
    status, lock_id = dclient.get_lock(client, desc)
    assert status is S.SUCCESS
    assert lock_id is not None
    return lock_id


def server_cfg(port: int, **limits: object) -> ServerCfg:
    primary = PrimaryCfg(server_ip_str="127.0.0.1", server_port=port)
    return ServerCfg(primary=primary, sleep_mode_enable=True, **limits)  # type: ignore[arg-type]


def start_server(port: int, **limits: object) -> int:
    status, server_id = dserver.server_start(server_cfg(port, **limits))
    assert status is S.SUCCESS
    assert server_id is not None
    return server_id


def client_cfg(port: int, **settings: object) -> ClientCfg:
    settings.setdefault("wait_mode", "block")
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
