"""The life of a glockd door: its pidfile, its listeners, its end; what its flags switch on and off.

The exit codes and words of what cannot begin are glockd's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Final

from dlock.doors import listen
from dlock.doors.door import Door, DoorError, Site
from dlock.doors.glockd.connection import LineTalk, Talk, WebsocketTalk
from dlock.doors.glockd.flags import Flags
from dlock.doors.glockd.service import Service

NO_LISTENER, NO_PIDFILE, PIDFILE_UNUSABLE, PIDFILE_LOCKED = 1, 2, 3, 4
UNIX_MODE: Final = 0o766
LAST_REPLIES_S: Final = 1.0
_PEER: Final = struct.Struct("3i")  # pid, uid, gid of who connected


class GlockdDoor(Door):
    """One glockd."""

    kind = "glockd"

    def __init__(self, flags: Flags) -> None:
        self.flags = flags
        self._pidfile = -1
        self._unix_clients = 0
        self._talks: set[Talk] = set()
        self._waiting: list[tuple[socket.socket, type[Talk], Called]] = []
        self._servers: list[asyncio.AbstractServer] = []

    async def prepare(self) -> None:
        """The pidfile is locked, and clients may connect, though nobody answers yet."""
        flags = self.flags
        if flags.verbose:
            for field in fields(flags):
                if field.name == "host":
                    continue  # glockd has no such flag
                shown = getattr(flags, field.name)
                text = str(shown).lower() if isinstance(shown, bool) else shown
                say(b"%-13b %b" % (f"cfg_{field.name}:".encode(), os.fsencode(str(text))))
        self._lock_pidfile(flags.pidfile)
        if flags.port:
            made = _tcp(flags.port, flags.host, "0.0.0.0", "error listening")
            self._waiting.append((made, LineTalk, tcp_peer))
        if flags.ws:
            made = _tcp(flags.ws, flags.host, "", "HTTP Listening Error")
            self._waiting.append((made, WebsocketTalk, tcp_peer))
        if flags.unix:
            self._waiting.append((self._unix(flags.unix), LineTalk, self._unix_peer))

    async def start(self, site: Site) -> list[str]:
        """Accepts."""
        flags = self.flags
        service = Service(
            site.client, site.names, site.counters, site.log, dump=flags.dump,
            registry=flags.registry, say=say if flags.verbose else None)
        shown = []
        while self._waiting:
            listener, kind, called = self._waiting.pop(0)
            shown.append(listen.shown(listener))
            self._servers.append(await listen.accept(listener, _maker(kind, service, called,
                                                                      self._talks)))
        return shown

    async def stop(self) -> None:
        """Every connection ends, as when glockd is ended. Pidfile and unix socket stay."""
        for server in self._servers:
            server.close()
        for listener, _, _ in self._waiting:
            listener.close()
        for talk in list(self._talks):
            talk.hang_up()
        deadline = asyncio.get_running_loop().time() + LAST_REPLIES_S
        while self._talks and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    # ---- What may fail at the start --------------------------------------------------------------

    def _lock_pidfile(self, path: str) -> None:
        try:
            self._pidfile = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except OSError as problem:
            raise DoorError(f"Error opening pidfile: {path}: open {path}: {_go(problem)}\n",
                            PIDFILE_UNUSABLE, "stdout") from None
        try:
            fcntl.flock(self._pidfile, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            raise DoorError(f"Error locking  pidfile: {path}: {_go(problem)}\n", PIDFILE_LOCKED,
                            "stdout") from None
        os.ftruncate(self._pidfile, 0)
        os.pwrite(self._pidfile, str(os.getpid()).encode(), 0)

    def _unix(self, path: str) -> socket.socket:
        with contextlib.suppress(OSError):
            os.remove(path)
        try:
            return listen.unix_socket(path, UNIX_MODE)
        except OSError as problem:
            raise DoorError(f"UNIX SOCKET Listener Error: listen unix {path}: bind: "
                            f"{_go(problem)}\n", NO_LISTENER) from None

    def _unix_peer(self, transport: asyncio.Transport) -> tuple[bytes, str]:
        """Clients of a unix socket have no address: they are counted."""
        self._unix_clients += 1
        called = f"unix:{self._unix_clients}"
        label = called
        with contextlib.suppress(OSError):
            peer = transport.get_extra_info("socket").getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            label = f"{called} pid {_PEER.unpack(peer)[0]}"
        return called.encode(), label


Called = Callable[[asyncio.Transport], "tuple[bytes, str] | None"]


def say(line: bytes) -> None:
    """What -verbose prints."""
    with contextlib.suppress(OSError):  # nobody reads it any more
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()


def tcp_peer(transport: asyncio.Transport) -> tuple[bytes, str] | None:
    """The peer's address, as Go prints it; None: it is gone already."""
    peer = transport.get_extra_info("peername")
    if not peer:
        return None
    host, port = peer[:2]
    if len(peer) == 4 and peer[3] and "%" not in host:
        with contextlib.suppress(OSError):
            host = f"{host}%{socket.if_indextoname(peer[3])}"
    shown = listen.host_port(host, port)
    return shown.encode(), shown


def _tcp(port: int, host: str, everywhere: str, problem_is: str) -> socket.socket:
    """`everywhere`: what glockd calls all addresses."""
    try:
        if not 0 < port < 1 << 16:
            raise DoorError(f"{problem_is}: listen tcp: address {port}: invalid port\n",
                            NO_LISTENER)
        return listen.tcp_socket(host, port)
    except OSError as problem:
        place = f"{host or everywhere}:{port}"
        raise DoorError(f"{problem_is}: listen tcp {place}: bind: {_go(problem)}\n",
                        NO_LISTENER) from None


def _go(problem: OSError) -> str:
    """What Go calls it."""
    return (problem.strerror or str(problem)).lower()


def _maker(
    kind: type[Talk], service: Service, called: Called, talks: set[Talk]
) -> Callable[[], Talk]:
    return lambda: kind(service, called, talks)
