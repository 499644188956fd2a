"""A network between a client and a server that a test can cut, or silence, wholly or in part, and
mend again.

The server listens on 127.0.0.1; the proxy listens on the same two ports of 127.0.0.2, so that a
client which was given that address reaches both planes through it. It can lead to a server at
another address, and from one day to the next to another one, as long as the ports are the same.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Final

from dlock.server import Server

HOST: Final = "127.0.0.2"


class Proxy:
    """Forwards bytes in a thread of its own until `close`. `target`: to which host, from now on."""

    def __init__(self, server: Server, host: str = HOST, target: str = "127.0.0.1") -> None:
        self.ports = (server.port, server.data_port)
        self.address = f"{host}:{server.port}"
        self.target = target
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._ports: dict[socket.socket, int] = {}  # to which of the server's
        self._servers: set[socket.socket] = set()  # the ends that lead to the server
        self._silent = frozenset[int]()
        self._answers_held = False
        self._ended = False
        self.accepted = 0
        for port in self.ports:
            listener = socket.create_server((host, port))
            self._selector.register(listener, selectors.EVENT_READ, port)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self, *ports: int) -> None:
        """Ends every connection, or those to these ports, at both ends."""
        with self._lock:
            for one, other in list(self._pairs.items()):
                if not ports or (other.fileno() >= 0 and other.getpeername()[1] in ports):
                    self._drop(one)

    def silence(self, *ports: int) -> None:
        """From now on nothing passes, or nothing to and from these ports, and nobody is told."""
        self._silent = frozenset(ports or self.ports)

    def hold_answers(self) -> None:
        """From now on what the server says does not pass; what clients say does."""
        with self._lock:
            self._answers_held = True
            for one in self._servers:
                self._selector.unregister(one)

    def mend(self) -> None:
        """What was held back passes, and so does everything after it."""
        self._silent = frozenset()
        with self._lock:
            if self._answers_held:
                self._answers_held = False
                for one in self._servers:
                    self._selector.register(one, selectors.EVENT_READ, None)

    def close(self) -> None:
        self._ended = True
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(0.02):
                with self._lock:
                    one: socket.socket = key.fileobj  # type: ignore[assignment]
                    if (key.data or self._ports.get(one)) in self._silent:
                        continue
                    if key.data is not None:
                        self._accept(one, key.data)
                    else:
                        self._forward(one)
            if self._silent:
                threading.Event().wait(0.02)

    def _accept(self, listener: socket.socket, port: int) -> None:
        near, _ = listener.accept()
        try:
            far = socket.create_connection((self.target, port), 5)
        except OSError:
            near.close()
            return
        self.accepted += 1
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[one] = other
            self._ports[one] = port
            if one is near or not self._answers_held:
                self._selector.register(one, selectors.EVENT_READ, None)
        self._servers.add(far)

    def _forward(self, one: socket.socket) -> None:
        if one not in self._pairs:
            return
        try:
            data = one.recv(65536)
            if data:
                self._pairs[one].sendall(data)
                return
        except OSError:
            pass
        self._drop(one)

    def _drop(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        if other is None:
            return
        del self._pairs[other]
        for end in (one, other):
            if not (self._answers_held and end in self._servers):
                self._selector.unregister(end)
            self._servers.discard(end)
            del self._ports[end]
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
