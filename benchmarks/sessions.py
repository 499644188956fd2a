"""Sessions made by hand: through the control plane like any client, then raw data connections for
the load generator, or clients of the C library for the contending threads."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Final

from benchmarks.native import KINDS, WAIT_MODES, Locks
from benchmarks.processes import Address, connect
from dlock import _core
from dlock._core import ffi, lib
from dlock.control.link import ControlLink
from dlock.control.messages import ClientDeinit, ClientInit, GetLocks, LockSpec, Welcome
from dlock.types import DlockStatus

TIMEOUT_S: Final = 10.0
VERSIONS: Final = (_core.DLK_PROTOCOL_VERSION_MIN, _core.DLK_PROTOCOL_VERSION_MAX)
_ATTACH = _core.layout("dlk_attach", ("request_id", "op", "version", "client_id", "session_slot",
                                      "attach", "magic", "secret"))
_REPLY_RESULT = _core.layout("dlk_reply", ("result",))


class Session:
    """One client, without a client library."""

    def __init__(self, server: Address) -> None:
        self.server = server
        self.link = ControlLink.connect(server.host, server.port, TIMEOUT_S)
        self.welcome: Welcome = self.link.request(
            ClientInit(*VERSIONS, {"program": "benchmarks"}), TIMEOUT_S)
        self._check(self.welcome.status)

    @staticmethod
    def _check(status: DlockStatus) -> None:
        if status is not DlockStatus.SUCCESS:
            raise RuntimeError(f"the server says {status.name}")

    def get_locks(self, names: Sequence[str], kind: str) -> list[tuple[int, int]]:
        """(lock id, slot) of each."""
        number, _ = KINDS[kind]
        found: list[tuple[int, int]] = []
        for first in range(0, len(names), _core.DLK_BATCH_MAX):
            batch = names[first:first + _core.DLK_BATCH_MAX]
            answer = self.link.request(
                GetLocks(tuple(LockSpec(name.encode(), number) for name in batch)), TIMEOUT_S)
            self._check(answer.status)
            for result in answer.results:
                self._check(result.status)
                found.append((result.lock_id, result.slot))
        return found

    def attach_socket(self) -> socket.socket:
        """A data connection that has proved this session."""
        welcome = self.welcome
        connected = connect(Address(self.server.host, welcome.data_port, 0))
        connected.sendall(_ATTACH.pack(
            1, lib.DLK_OP_ATTACH, welcome.version, welcome.client_id, welcome.session_slot,
            welcome.attach, lib.DLK_ATTACH_MAGIC, welcome.secret))
        answer = connected.recv(_core.DLK_FRAME_BYTES, socket.MSG_WAITALL)
        if len(answer) != _core.DLK_FRAME_BYTES or _REPLY_RESULT.unpack(answer)[0]:
            raise RuntimeError("the data plane refused the session")
        return connected

    def attach_client(self, wait_mode: str) -> Any:
        """A `struct dlk_client *`; the caller frees it."""
        welcome = self.welcome
        client = lib.dlk_client_new(ffi.new("struct dlk_client_config *", {
            "wait_mode": WAIT_MODES[wait_mode], "reply_timeout_ms": round(TIMEOUT_S * 1000)}))
        link = ffi.new("struct dlk_link *", {
            "host": self.server.host.encode(), "port": welcome.data_port,
            "client_id": welcome.client_id, "session_slot": welcome.session_slot,
            "attach": welcome.attach, "epoch": welcome.epoch,
            "session_ttl_ms": welcome.session_ttl_ms, "max_lease_ms": welcome.max_lease_ms,
            "timeout_ms": round(TIMEOUT_S * 1000), "secret": welcome.secret})
        status = lib.DLK_STATUS_PENDING
        while status == lib.DLK_STATUS_PENDING:
            status = lib.dlk_client_attach(client, link)
        if status:
            raise RuntimeError(f"attach: {_core.status_text(status)}")
        return client

    def close(self) -> None:
        """Leaves cleanly."""
        self.link.request(ClientDeinit(), TIMEOUT_S)
        self.link.close()


@contextlib.contextmanager
def connections(server: Address, clients: int, window: int, *, kind: str = "atomic",
                shared_name: bool = False, wait_ms: int = 0) -> Iterator[tuple[list[int], Locks]]:
    """Descriptors and locks for a load: `window` locks for each client, or one for all."""
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        client_ids: list[int] = []
        locks: list[tuple[int, int]] = []
        for index in range(clients):
            session = Session(server)
            stack.callback(session.close)
            sockets.append(stack.enter_context(session.attach_socket()))
            client_ids.append(session.welcome.client_id)
            names = ["all"] if shared_name else [f"{index}/{k}" for k in range(window)]
            got = session.get_locks(names, kind)
            locks += got * window if shared_name else got
        yield [one.fileno() for one in sockets], Locks(
            client_ids, [lock_id for lock_id, _ in locks], [slot for _, slot in locks],
            KINDS[kind][1], wait_ms)


@contextlib.contextmanager
def library_clients(server: Address, clients: int, wait_mode: str, names: Sequence[str],
                    kind: str) -> Iterator[tuple[list[Any], list[int]]]:
    """Clients of the C library that have all got the same locks: their pointers, the locks' ids."""
    with contextlib.ExitStack() as stack:
        pointers = []
        lock_ids: list[int] = []
        for _ in range(clients):
            session = Session(server)
            stack.callback(session.close)
            pointer = session.attach_client(wait_mode)
            stack.callback(lib.dlk_client_free, pointer)
            got = session.get_locks(names, kind)
            lock_ids = [lock_id for lock_id, _ in got]
            for lock_id, slot in got:
                lib.dlk_client_add_lock(pointer, lock_id, slot, KINDS[kind][0], 0)
            pointers.append(pointer)
        yield pointers, lock_ids
