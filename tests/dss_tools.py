"""What the tests of durable locks share: primaries in this process and in others."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from dlock import dss
from dlock.server import Server, ServerConfig

LIMIT_S = 20.0

PRIMARY = """
import sys
from pathlib import Path
from dlock.server import Server, ServerConfig
server = Server(ServerConfig(port=int(sys.argv[2]), state_dir=Path(sys.argv[1]), take_over=True,
                             accept_empty_state=sys.argv[3] == "True",
                             session_ttl_ms=int(sys.argv[4])))
print(server.port, flush=True)
server.wait(300)
"""


def start(folder: Path | None, **config: Any) -> Server:
    """A primary in this process."""
    return Server(ServerConfig(**{"port": 0, "state_dir": folder, **config}))


def opened(server: Server | str) -> dss.DssHandle:
    """An open handle."""
    handle = dss.DssHandle(server if isinstance(server, str) else server.address)
    assert dss.dss_init(handle) == 0
    return handle


class Child:
    """A primary in a process of its own, which ends with the block at the latest."""

    def __init__(self, folder: Path, port: int = 0, *, accept: bool = False,
                 ttl_ms: int = 2000, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRIMARY, str(folder), str(port), str(accept), str(ttl_ms)],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, **environment})
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the primary did not start"
        self.port = int(line)
        self.address = f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """SIGKILL, and its end."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Relay:
    """Between handles and a primary. `lose`: the next answers are swallowed, and their connections
    cut; `hold`: what handles send is kept until `release`, on connections that are open then."""

    def __init__(self, port: int) -> None:
        self._target = "127.0.0.1", port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.lose = 0
        self._flowing = threading.Event()
        self._flowing.set()
        self.held = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """Keeps what connections that are open now, or are made until `pass_new`, send."""
        self._flowing = threading.Event()

    def pass_new(self) -> threading.Event:
        """New connections are relayed at once; the old ones when the event is set."""
        held, self._flowing = self._flowing, threading.Event()
        self._flowing.set()
        return held

    def close(self) -> None:
        """No more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            for body in (self._up, self._down):
                threading.Thread(target=body, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                flowing = self._flowing
                if not flowing.is_set():
                    self.held += 1
                    flowing.wait()
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if self.lose:
                    self.lose -= 1
                    break
                client.sendall(data)
        for one in (client, server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
