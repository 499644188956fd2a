"""The unix socket over which `ldlm-lock` asks a door of its machine: which locks are held, and
force one open.

    request   {"call": "list"} or {"call": "unlock", "name": N, "key": K}, one line of JSON
    answer    {"locks": [[name, key, size], ...]}, {"unlocked": true} or {"error": text}, one line

One request a connection. Who may write to the socket may unlock anything: it is its owner's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import stat
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, cast

from dlock.doors import listen
from dlock.doors.ldlm.logs import fields
from dlock.doors.ldlm.problems import NO_SUCH_LOCK, Answer
from dlock.doors.ldlm.request import ShutDown

if TYPE_CHECKING:
    from dlock.doors.ldlm.service import LdlmService

MODE: Final = 0o600
REQUEST_BYTES_MAX: Final = 1 << 20
REQUEST_S: Final = 10.0  # in which a client must have asked
CLAIM_S: Final = 2.0
CLAIM_STEP_S: Final = 0.05
_log: Final = logging.getLogger("dlock.doors.ldlm")


async def claim(path: str) -> socket.socket:
    """The listening socket. What a dead server has left is replaced. OSError: somebody listens
    there, it is no socket, or it cannot be made."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        await _alone(folder)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise FileExistsError(errno.EEXIST, "it exists, and is no socket", path)
            if _somebody_listens(path):
                raise FileExistsError(
                    errno.EEXIST, "another ldlm server is listening on it: shut that one down, or "
                    "specify a different IPC socket file", path)
            os.unlink(path)
        return listen.unix_socket(path, MODE)
    finally:
        os.close(folder)


async def _alone(folder: int) -> None:
    """Two servers that start at once replace a socket one after the other. Somebody who keeps the
    folder locked does not keep us from starting."""
    for _ in range(int(CLAIM_S / CLAIM_STEP_S)):
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            await asyncio.sleep(CLAIM_STEP_S)
        except OSError:  # a file system without such locks
            return


def _somebody_listens(path: str) -> bool:
    """Only a refusal says that nobody does; a queue that is full is somebody's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)


class IpcServer:
    """Answers on a socket that was claimed."""

    def __init__(self, service: LdlmService, counters: Counter[str]) -> None:
        self._service = service
        self._counters = counters
        self._server: asyncio.AbstractServer | None = None

    async def start(self, claimed: socket.socket) -> None:
        """Accepts."""
        self._server = await listen.accept(claimed, lambda: _Connection(self))
        _log.info("IPC server started", extra=fields(socket=claimed.getsockname()))

    def stop(self) -> None:
        """Accepts nobody any more."""
        if self._server is not None:
            self._server.close()

    def answer(self, line: bytes) -> dict[str, Any] | asyncio.Future[Answer]:
        """What a request comes to; a future for an unlock."""
        try:
            said = json.loads(line)
            call = said["call"]
            if call == "list":
                self._counters["ipc_lists"] += 1
                return {"locks": self._service.list()}
            if call == "unlock":
                name, key = said["name"], said["key"]
                if isinstance(name, str) and isinstance(key, str):
                    return self._service.force_unlock(name, key)
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        self._counters["ipc_malformed"] += 1
        return {"error": "the request is malformed: is ldlm-lock of another version?"}


def said_of(answer: Answer) -> dict[str, Any]:
    """An unlock, as its answer."""
    problem = answer.error
    if problem is None:
        return {"unlocked": answer.ok}
    if problem is NO_SUCH_LOCK:
        return {"error": problem.message}
    return {"error": f"failed to unlock lock: {problem.message}"}


class _Connection(asyncio.Protocol):
    """One client, one request."""

    def __init__(self, server: IpcServer) -> None:
        self._server = server
        self._transport = cast(asyncio.Transport, None)
        self._timer: asyncio.TimerHandle | None = None
        self._received = b""
        self._asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(REQUEST_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._asked:
            return
        self._received += data
        line, newline, _ = self._received.partition(b"\n")
        if not newline and len(self._received) <= REQUEST_BYTES_MAX:
            return
        self._asked = True
        self._stop_timer()
        outcome = self._server.answer(line if newline else b"")
        if isinstance(outcome, dict):
            self._write(outcome)
        else:
            outcome.add_done_callback(self._unlocked)

    def eof_received(self) -> bool:
        return self._asked  # a client may close its side behind its request

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _unlocked(self, outcome: asyncio.Future[Answer]) -> None:
        if outcome.cancelled() or isinstance(outcome.exception(), ShutDown):
            self._write({"error": "the ldlm server is shutting down"})
        else:
            self._write(said_of(outcome.result()))

    def _write(self, said: dict[str, Any]) -> None:
        if not self._transport.is_closing():
            self._transport.write(json.dumps(said).encode() + b"\n")
            self._transport.close()
