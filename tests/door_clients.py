"""One client of each door, by its own protocol, behind the same few calls: what holds for all doors
is tested with all of them. A client is a connection of its own (LDLM over REST: a session)."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from door_tools import Door, Place, Ready, free_port

PATIENCE_S = 60.0  # for one answer; a primary may come back meanwhile
LONG_S = 3600


class GoneError(Exception):
    """The connection ended: by the protocol, what it held is free."""


class DoorClient(ABC):
    """Tries for locks by name, without waiting. GoneError."""

    @abstractmethod
    def try_lock(self, name: str) -> bool:
        """False: somebody else has it."""

    @abstractmethod
    def unlock(self, name: str) -> bool:
        """False: it was not ours any more."""

    def lock(self, name: str, wait_s: int) -> bool:
        """Waits. False: the wait is over. Only where the protocol has that (WAITING)."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Hangs up."""


class Glockd(DoorClient):
    """A socket and lines."""

    def __init__(self, door: Ready) -> None:
        self._socket = socket.create_connection(door.address, PATIENCE_S)
        self._lines = self._socket.makefile("rb")

    def _ask(self, verb: str, name: str) -> bytes:
        try:
            self._socket.sendall(f"{verb} {name}\n".encode())
            line = self._lines.readline()
        except ConnectionError as problem:
            raise GoneError from problem
        if not line.endswith(b"\n"):
            raise GoneError
        return line

    def try_lock(self, name: str) -> bool:
        line = self._ask("g", name)
        assert line in (f"1 Lock Get Success: {name}\r\n".encode(),
                        f"0 Lock Get Failure: {name}\r\n".encode()), line
        return line[:1] == b"1"

    def unlock(self, name: str) -> bool:
        line = self._ask("r", name)
        assert line.startswith((b"1 Lock Release", b"0 Lock Release")), line
        return line[:1] == b"1"

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class _Http(DoorClient):
    """What the two over HTTP share."""

    def __init__(self) -> None:
        self._requests = pytest.importorskip("requests")
        self._session = self._requests.Session()
        self._held: dict[str, str] = {}

    def _send(self, method: str, url: str, **options: Any) -> Any:
        try:
            return self._session.request(method, url, timeout=PATIENCE_S, **options)
        except self._requests.ConnectionError as problem:
            raise GoneError from problem

    def close(self) -> None:
        self._session.close()


class DoubleDutch(_Http):
    """Tokens with a lifetime; the connection means nothing."""

    def __init__(self, door: Ready) -> None:
        super().__init__()
        self._at = "http://{}:{}".format(*door.address)

    def try_lock(self, name: str) -> bool:
        return self.lock(name, 0)

    def lock(self, name: str, wait_s: int) -> bool:
        answer = self._send("GET", f"{self._at}/getlock", params={
            "lockname": name, "auth": "key", "lifetime": LONG_S, "timeout": wait_s})
        assert answer.status_code == 200, answer.text
        said = answer.json()
        if said["lockacquired"]:
            self._held[name] = said["sessiontoken"]
        return bool(said["lockacquired"])

    def unlock(self, name: str) -> bool:
        answer = self._send("DELETE", f"{self._at}/releaselock", params={
            "lockname": name, "token": self._held.pop(name)})
        assert answer.status_code in (200, 400), answer.text
        return bool(answer.json()["lockreleased"])


class LdlmRest(_Http):
    """LDLM's gateway: a session with a cookie."""

    def __init__(self, door: Ready) -> None:
        super().__init__()
        self._at = f"http://{door.listeners[1]}"
        assert self._send("POST", f"{self._at}/session").status_code == 201

    def _call(self, what: str, **body: object) -> Any:
        answer = self._send("POST", f"{self._at}/v1/{what}", json=body)
        if answer.status_code == 401:  # the session is gone, and with it what it held
            raise GoneError
        assert answer.status_code == 200, answer.text
        return answer.json()

    def try_lock(self, name: str) -> bool:
        said = self._call("lock", name=name)
        if said["locked"]:
            self._held[name] = said["key"]
        return bool(said["locked"])

    def unlock(self, name: str) -> bool:
        return bool(self._call("unlock", name=name, key=self._held.pop(name))["unlocked"])

    def slots(self, name: str, size: int) -> str:
        """Takes one of so many slots; the name of the error, or nothing."""
        said = self._call("lock", name=name, size=size)
        if said["locked"]:
            self._held[name] = said["key"]
        return str((said.get("error") or {}).get("code", ""))


class LdlmGrpc(DoorClient):
    """The stub that py-ldlm brings, with a connection of its own."""

    def __init__(self, door: Ready) -> None:
        self._grpc = pytest.importorskip("grpc")
        self._messages = pytest.importorskip("ldlm.protos.ldlm_pb2")
        stubs = pytest.importorskip("ldlm.protos.ldlm_pb2_grpc")
        self._channel = self._grpc.insecure_channel(
            "{}:{}".format(*door.address), [("grpc.use_local_subchannel_pool", 1)])
        self._stub = stubs.LDLMStub(self._channel)
        self._held: dict[str, str] = {}

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=PATIENCE_S)
        except self._grpc.RpcError as problem:
            if problem.code() is not self._grpc.StatusCode.UNAVAILABLE:
                raise
            raise GoneError from problem

    def try_lock(self, name: str) -> bool:
        answer = self._call(self._stub.TryLock, self._messages.TryLockRequest(name=name))
        assert not answer.HasField("error"), answer
        return self._locked(answer)

    def lock(self, name: str, wait_s: int) -> bool:
        answer = self._call(self._stub.Lock, self._messages.LockRequest(
            name=name, wait_timeout_seconds=wait_s))
        waited = answer.error.code == self._messages.LockWaitTimeout
        assert answer.locked or waited, answer
        return self._locked(answer)

    def _locked(self, answer: Any) -> bool:
        if answer.locked:
            self._held[answer.name] = answer.key
        return bool(answer.locked)

    def unlock(self, name: str) -> bool:
        answer = self._call(self._stub.Unlock, self._messages.UnlockRequest(
            name=name, key=self._held.pop(name)))
        return bool(answer.unlocked)

    def close(self) -> None:
        self._channel.close()


CLIENTS: Final[Mapping[str, Callable[[Ready], DoorClient]]] = {
    "glockd": Glockd, "doubledutch": DoubleDutch, "ldlm-rest": LdlmRest, "ldlm-grpc": LdlmGrpc,
}
WAITING: Final = ("doubledutch", "ldlm-grpc")


def door_for(client: str, place: Place, **options: str) -> Door:
    """A door for clients of this kind, with the words of its original."""
    kind = client.partition("-")[0]
    return place.door(kind, *words(kind, place.folder, options.get("name") or kind), **options)


def words(kind: str, folder: Path, name: str) -> list[str]:
    """The original's, for ports that are free now."""
    if kind == "glockd":
        return ["-host", "127.0.0.1", "-port", str(free_port()), "-ws", "0",
                "-pidfile", str(folder / f"{name}.pid")]
    if kind == "doubledutch":
        return [str(free_port()), "h", "0", "a", "key", "--host", "127.0.0.1"]
    return ["-l", "127.0.0.1:0", "-r", "127.0.0.1:0", "--ipc_socket_file", ""]
