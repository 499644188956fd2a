"""A network between clients and a primary that can be cut, or silenced, wholly or in part, and
mended again.

A proxy listens on the same two ports as the primary (control plane, data plane), at an address of
its own, so that a client which was given that address reaches both planes through it. It can lead
to a primary at one address today and at another one tomorrow, as long as the ports are the same.
It knows nothing of what passes.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Final

CONNECT_S: Final = 5.0
LOOK_S: Final = 0.02
PIECE_BYTES: Final = 65536


class Proxy:
    """Forwards bytes in a thread of its own until `close`. `target`: to which host, from now on.
    `ports`: where it listens at `host`, and where it connects to at the target."""

    def __init__(self, ports: tuple[int, int], host: str, target: str) -> None:
        """OSError: the host has not these ports free."""
        self.ports = ports
        self.host = host
        self.address = f"{host}:{ports[0]}"
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
        try:
            for port in self.ports:
                listener = socket.create_server((host, port), backlog=1024)
                self._selector.register(listener, selectors.EVENT_READ, port)
        except OSError:
            self._close_all()
            raise
        self._thread = threading.Thread(target=self._run, name="dlock-drill-proxy", daemon=True)
        self._thread.start()

    def cut(self, *ports: int) -> None:
        """Ends every connection, or those to these ports, at both ends."""
        with self._lock:
            for one, other in list(self._pairs.items()):
                if not ports or (other.fileno() >= 0 and self._ports.get(one) in ports):
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
        """Ends it, and every connection through it."""
        self._ended = True
        self._thread.join()
        self._close_all()

    def _close_all(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        for one in self._servers:  # whose answers are held
            one.close()
        self._selector.close()

    # ---- The thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(LOOK_S):
                with self._lock:
                    one: socket.socket = key.fileobj  # type: ignore[assignment]
                    if (key.data or self._ports.get(one)) in self._silent:
                        continue
                    if key.data is not None:
                        self._accept(one, key.data)
                    else:
                        self._forward(one)
            if self._silent:
                threading.Event().wait(LOOK_S)

    def _accept(self, listener: socket.socket, port: int) -> None:
        near, _ = listener.accept()
        try:
            far = socket.create_connection((self.target, port), CONNECT_S)
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
            data = one.recv(PIECE_BYTES)
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
