"""What the tests of the LDLM door's gRPC side share: a door, LDLM's own stubs on grpcio, and a
client of bare sockets for what no library does."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from door_tools import Door, Place
from failover_tools import PATIENCE_S
from http2_peer import EMPTY_SETTINGS, PREFACE, frame, framed
from ldlm.protos import ldlm_pb2 as pb
from ldlm.protos import ldlm_pb2_grpc

LOCK_HEADERS = (
    (":method", "POST"), (":scheme", "http"), (":authority", "localhost"), ("te", "trailers"),
    ("content-type", "application/grpc"))


def ldlm_door(place: Place, *flags: str, port: int = 0, **options: Any) -> Door:
    """An LDLM door, without its IPC socket, of which there is one a machine by default."""
    return place.door("ldlm", "-l", f"127.0.0.1:{port}", "--ipc_socket_file", "", *flags,
                      **options)


class Stub:
    """One connection of LDLM's generated client code."""

    def __init__(self, door: Door, credentials: Any = None, password: str | None = None,
                 **options: Any) -> None:
        chosen = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1),
                  *((name.replace("__", "."), value) for name, value in options.items())]
        target = "{}:{}".format(*door.address)
        if credentials is None:
            self.channel = grpc.insecure_channel(target, chosen)
        else:
            self.channel = grpc.secure_channel(target, credentials, chosen)
        self.calls = ldlm_pb2_grpc.LDLMStub(self.channel)
        self.more: dict[str, Any] = {
            "timeout": 2 * PATIENCE_S,
            "metadata": (("authorization", password),) if password is not None else None,
        }

    def lock(self, name: str, **fields: Any) -> Any:
        return self.calls.Lock(pb.LockRequest(name=name, **fields), **self.more)

    def lock_soon(self, name: str, *, timeout: float = 2 * PATIENCE_S, **fields: Any) -> Any:
        """A future."""
        more = {**self.more, "timeout": timeout}
        return self.calls.Lock.future(pb.LockRequest(name=name, **fields), **more)

    def try_lock(self, name: str, **fields: Any) -> Any:
        return self.calls.TryLock(pb.TryLockRequest(name=name, **fields), **self.more)

    def unlock(self, name: str, key: str) -> Any:
        return self.calls.Unlock(pb.UnlockRequest(name=name, key=key), **self.more)

    def renew(self, name: str, key: str, lock_timeout_seconds: int) -> Any:
        return self.calls.Renew(pb.RenewRequest(
            name=name, key=key, lock_timeout_seconds=lock_timeout_seconds), **self.more)

    def close(self) -> None:
        self.channel.close()


@contextlib.contextmanager
def stub(door: Door, *words: Any, **options: Any) -> Iterator[Stub]:
    """A connection that is closed afterwards."""
    made = Stub(door, *words, **options)
    try:
        yield made
    finally:
        made.close()


def refused(call: Any, *words: Any, **fields: Any) -> tuple[grpc.StatusCode, str]:
    """Status and text of a call that ends with one."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*words, **fields)
    return caught.value.code(), caught.value.details()


# ---- Bare sockets --------------------------------------------------------------------------------


def block(method: str) -> bytes:
    """The headers of a call, so that no table remembers them."""
    pairs = (*LOCK_HEADERS, (":path", f"/ldlm.LDLM/{method}"))
    ordered = sorted(pairs, key=lambda pair: not pair[0].startswith(":"))
    return b"".join(b"\x10" + bytes((len(name),)) + name.encode() + bytes((len(value),))
                    + value.encode() for name, value in ordered)


class Bare:
    """A client that writes frames by hand. It answers nothing by itself."""

    def __init__(self, door: Door, *, window_bytes: int = 1 << 30) -> None:
        self.socket = socket.create_connection(door.address, PATIENCE_S)
        self.socket.settimeout(PATIENCE_S)
        self._rest = b""
        self._next = 1
        self.send(PREFACE + EMPTY_SETTINGS
                  + frame(8, 0, 0, (window_bytes - 65_535).to_bytes(4, "big")))

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, method: str, message: Any) -> bytes:
        """The frames of a request; `stream` is its number."""
        self.stream = self._next
        self._next += 2
        body = framed(message.SerializeToString())
        return (frame(1, 4, self.stream, block(method)) + frame(0, 1, self.stream, body))

    def read(self) -> tuple[int, int, int, bytes] | None:
        """The next frame: kind, flags, stream, content; None: the end of the connection."""
        while len(self._rest) < 9 or len(self._rest) < 9 + int.from_bytes(self._rest[:3], "big"):
            try:
                more = self.socket.recv(65_536)
            except ConnectionResetError:
                return None
            if not more:
                return None
            self._rest += more
        length = int.from_bytes(self._rest[:3], "big")
        head, content = self._rest[:9], self._rest[9:9 + length]
        self._rest = self._rest[9 + length:]
        return head[3], head[4], int.from_bytes(head[5:], "big"), content

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Those up to the end of the connection."""
        while True:
            found = self.read()
            if found is None:
                return
            yield found

    def answered(self, method: str, message: Any) -> bytes:
        """Asks, and the message of the answer."""
        self.send(self.ask(method, message))
        body = b""
        for kind, flags, stream, content in self.frames():
            if stream == self.stream and kind == 0:
                body += content
            if stream == self.stream and kind == 1 and flags & 1:
                return body[5:]
        raise AssertionError("the connection has ended")

    def reset(self) -> None:
        """Ends the connection as a crash does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def goaway_of(bare: Bare) -> tuple[int, bytes]:
    """The code and the text of the GOAWAY with which the door ends the connection."""
    found = [content for kind, _, _, content in bare.frames() if kind == 7]
    assert len(found) == 1
    return int.from_bytes(found[0][4:8], "big"), found[0][8:]


# ---- Certificates --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificates:
    """An authority, and what it has signed for the server and for a client; PEM files."""

    folder: Path

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


def make_certificates(folder: Path) -> Certificates:
    """With openssl; skips the test where it is missing."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True,
                       stdin=subprocess.DEVNULL)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "30",
            "-subj", "/CN=test authority")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr",
                "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-CAcreateserial", "-days", "30", "-extfile", "names", "-out", f"{name}.pem")
    return Certificates(folder)
