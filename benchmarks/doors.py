"""The doors as processes of a measurement, and what is said to each: one conversation a kind, in
which a lock is taken and given back by the words of the original's clients."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.processes import START_SECONDS, Address, end, start
from benchmarks.wire import Ask, Conversation, Piece, grpc_pair, hole, http

HOST: Final = "127.0.0.1"
KEY: Final = "k"
NAME_BYTES: Final = 7
TOKEN_BYTES: Final = 32  # of DoubleDutch, and of a session of LDLM's REST
UUID_BYTES: Final = 36
Talk = Callable[[int], Conversation]


def _name(number: int) -> bytes:
    return b"l%0*d" % (NAME_BYTES - 1, number)


# ---- What is said --------------------------------------------------------------------------------


def glockd(number: int) -> Conversation:
    """g, r."""
    name = _name(number)
    return Conversation([Ask(b"g " + name + b"\n", b"1 Lock Get Success"),
                         Ask(b"r " + name + b"\n", b"1 Lock Release Success")])


def doubledutch(number: int) -> Conversation:
    """getlock, releaselock with the token that came."""
    name, key = _name(number), KEY.encode()
    return Conversation([
        Ask(http("GET", b"/getlock?lockname=" + name + b"&auth=" + key),
            b'"lockacquired":true', Piece(b'"sessiontoken":"', TOKEN_BYTES)),
        Ask(http("DELETE", b"/releaselock?lockname=" + name + b"&auth=" + key + b"&token="
                 + hole(0, TOKEN_BYTES)), b'"lockreleased":true')])


def ldlm_grpc(number: int) -> Conversation:
    """TryLock, Unlock with the key that came."""
    name = b"\x0a" + bytes([NAME_BYTES]) + _name(number)
    key = bytes([UUID_BYTES])
    return grpc_pair(
        b"ldlm.LDLM",
        (b"TryLock", Ask(name, b"\x08\x01", Piece(b"\x1a" + key, UUID_BYTES))),
        (b"Unlock", Ask(name + b"\x12" + key + hole(0, UUID_BYTES), b"\x08\x01")))


def ldlm_rest(number: int) -> Conversation:
    """A session; then lock and unlock, with its cookie, and with the key that came."""
    name = _name(number)
    cookie = b"Cookie: ldlm-session=" + hole(1, TOKEN_BYTES)
    return Conversation([
        Ask(http("POST", "/session", b"{}"), b'"session_id"',
            Piece(b"ldlm-session=", TOKEN_BYTES, kept=1)),
        Ask(http("POST", "/v1/lock", b'{"name":"' + name + b'"}', cookie), b'"locked":true',
            Piece(b'"key":"', UUID_BYTES)),
        Ask(http("POST", "/v1/unlock",
                 b'{"name":"' + name + b'","key":"' + hole(0, UUID_BYTES) + b'"}', cookie),
            b'"unlocked":true')], repeat_from=1)


# ---- Processes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A door: how it is started (`listen` is a free port), which of its listeners is meant, the
    framing of its answers, and what is said."""

    words: Callable[[int, Path], list[str]]
    framing: str
    conversation: Talk
    door: str
    place: int = 0


def _glockd_words(port: int, folder: Path) -> list[str]:
    return ["-host", HOST, "-port", str(port), "-ws", "0", "-pidfile", str(folder / "pid")]


def _ldlm_words(port: int, folder: Path) -> list[str]:
    return ["-l", f"{HOST}:{port}", "-r", f"{HOST}:{free_port()}", "--ipc_socket_file", "",
            "-v", "error"]


def _doubledutch_words(port: int, folder: Path) -> list[str]:
    return [str(port), "h", "0", "a", KEY, "--host", HOST]


KINDS: Final = {
    "glockd": Kind(_glockd_words, "lines", glockd, "glockd"),
    "DoubleDutch": Kind(_doubledutch_words, "http", doubledutch, "doubledutch"),
    "LDLM gRPC": Kind(_ldlm_words, "http2", ldlm_grpc, "ldlm"),
    "LDLM REST": Kind(_ldlm_words, "http", ldlm_rest, "ldlm", place=1),
}


def free_port() -> int:
    """One that nobody listens on now. The originals' flags take no 0 for it."""
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _address(line: str, pid: int) -> Address:
    _, _, port = line.rpartition(":")
    return Address(HOST, int(port), pid)


@contextlib.contextmanager
def door(name: str, server: Address, namespace: str = "") -> Iterator[Address]:
    """A door of one of KINDS, before a server."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        words = [sys.executable, "-m", "dlock", "door", kind.door, "--connect",
                 f"{server.host}:{server.port}", "--ready-file", str(ready)]
        words += ["--namespace", namespace or f"bench-{kind.door}-{kind.place}"]
        process = start([*words, *kind.words(free_port(), Path(folder))])
        try:
            _wait(process, ready)
            yield _address(ready.read_text().splitlines()[kind.place], process.pid)
        finally:
            end(process)


def _wait(process: subprocess.Popen[str], ready: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"a door did not start: {process.args!r}")
        time.sleep(0.01)


@contextlib.contextmanager
def floor(framing: str) -> Iterator[Address]:
    """The bare server of a framing (benchmarks/floors.py)."""
    process = start([sys.executable, "-m", "benchmarks.floors", framing], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the floor of {framing} did not start")
        yield _address(line.strip(), process.pid)
    finally:
        end(process)


def of_floor(kind: Kind) -> Talk:
    """The same conversation with the bare server: lines come back as they were asked."""
    if kind.framing != "lines":
        return kind.conversation

    def echoed(number: int) -> Conversation:
        asks = kind.conversation(number).asks
        return Conversation([Ask(one.request, one.request[:2]) for one in asks])

    return echoed
