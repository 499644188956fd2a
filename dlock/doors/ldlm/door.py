"""The LDLM door as a process: what is opened before, at and after its start. It wires the parts
together and decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from typing import Final

from dlock.aio import Client, keys
from dlock.aio.keys import Key
from dlock.doors import listen
from dlock.doors.door import Door, DoorError, Site
from dlock.doors.http import HttpServer
from dlock.doors.http_parse import Limits
from dlock.doors.ldlm import ipc
from dlock.doors.ldlm.config import Config
from dlock.doors.ldlm.grpc import GrpcServer, Settings
from dlock.doors.ldlm.logs import LEVELS, JsonLines
from dlock.doors.ldlm.records import Book, space_of
from dlock.doors.ldlm.rest import BODY_BYTES_MAX, Gateway
from dlock.doors.ldlm.service import LdlmService, Rules
from dlock.doors.names import Names
from dlock.errors import DlockError

EXIT_FAILED: Final = 1
STARTING: Final = "net.Run() error starting server: "
HTTP2, HTTP1 = ("h2",), ("http/1.1",)
_log: Final = logging.getLogger("dlock.doors.ldlm")


class LdlmDoor(Door):
    """An ldlm-server as `config` describes it."""

    kind = "ldlm"
    idle_names_s = None  # a name goes with its size, by LDLM's own collection

    def __init__(self, config: Config) -> None:
        self._config = config
        self.formatter = JsonLines()
        self.log_level = LEVELS[config.log_level]
        self._grpc_socket: socket.socket | None = None
        self._rest_socket: socket.socket | None = None
        self._ipc_socket: socket.socket | None = None
        self._ipc_file: os.stat_result | None = None
        self._grpc_tls: ssl.SSLContext | None = None
        self._rest_tls: ssl.SSLContext | None = None
        self._service: LdlmService | None = None
        self._grpc: GrpcServer | None = None
        self._gateway: Gateway | None = None
        self._http: HttpServer | None = None
        self._rest_server: asyncio.AbstractServer | None = None
        self._ipc: ipc.IpcServer | None = None

    # ---- Before there is a server ----------------------------------------------------------------

    async def prepare(self) -> None:
        """Certificates are read; the ports and the IPC socket are taken."""
        config = self._config
        if config.tls_cert or config.tls_key:
            self._grpc_tls = _tls(config, HTTP2)
            self._rest_tls = _tls(config, HTTP1)
            _log.info("Loaded TLS configuration")
        if config.ipc_socket_file:
            try:
                self._ipc_socket = await ipc.claim(config.ipc_socket_file)
                self._ipc_file = os.stat(config.ipc_socket_file)
            except OSError as problem:
                raise _cannot(f"ipc.Run(): file: {config.ipc_socket_file}: "
                              f"{problem.strerror or problem}") from None
        else:
            _log.warning("IPC server disabled because of empty socket file path")
        self._grpc_socket = _bound(config.listen_address)
        if config.rest_listen_address:
            self._rest_socket = _bound(config.rest_listen_address)

    # ---- With one --------------------------------------------------------------------------------

    async def start(self, site: Site) -> list[str]:
        """Locks of the last time are taken first, so that nobody gets in between."""
        config = self._config
        rules = Rules(config.lock_gc_interval, config.lock_gc_min_idle,
                      config.default_lock_timeout, config.no_clear_on_disconnect)
        book = None
        if config.state_file:
            space = space_of(site.namespace, config.state_file)
            book = Book(site.client.records(space), site.counters)
        self._service = service = LdlmService(
            site.client, Naming(site.client, site.names), rules, site.counters, book)
        try:
            await service.restore()
        except DlockError as problem:
            raise _cannot(f"the locks of the state file {config.state_file} cannot be read: "
                          f"{problem}") from None
        shown = await self._serve_grpc(site, service)
        shown += await self._serve_rest(site, service)
        if self._ipc_socket is not None:
            self._ipc = ipc.IpcServer(service, site.counters)
            await self._ipc.start(self._ipc_socket)
            shown.append(listen.shown(self._ipc_socket))
        return shown

    async def _serve_grpc(self, site: Site, service: LdlmService) -> list[str]:
        bound, config = self._grpc_socket, self._config
        assert bound is not None, "prepare comes first"
        settings = Settings(config.password or None, config.keepalive_interval,
                            config.keepalive_timeout)
        self._grpc = GrpcServer(service, settings, site.counters)
        await self._grpc.start(bound, self._grpc_tls)
        _log.warning("gRPC server started. Listening on %s", config.listen_address)
        return [listen.shown(bound)]

    async def _serve_rest(self, site: Site, service: LdlmService) -> list[str]:
        if self._rest_socket is None:
            return []
        config = self._config
        self._gateway = Gateway(service, idle_s=config.rest_session_timeout,
                                password=config.password, counters=site.counters)
        self._http = HttpServer(self._gateway.handle, limits=Limits(body_bytes=BODY_BYTES_MAX),
                                counters=site.counters)
        self._rest_server = await listen.accept(
            self._rest_socket, self._http.protocol, self._rest_tls)
        _log.warning("REST server started. Listening on %s", config.rest_listen_address)
        return [listen.shown(self._rest_socket)]

    # ---- The end ---------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Waits end as they do when an ldlm-server stops; what is written down stays."""
        _log.warning("Shutting down...")
        if self._rest_server is not None:
            self._rest_server.close()
        if self._ipc is not None:
            self._ipc.stop()
        if self._service is not None:
            await self._service.stop()
        if self._grpc is not None:
            await self._grpc.stop()
        if self._http is not None:
            await self._http.close()
        if self._gateway is not None:
            self._gateway.close()
        self._leave_socket()
        for one in (self._grpc_socket, self._rest_socket, self._ipc_socket):
            if one is not None:
                one.close()

    def _leave_socket(self) -> None:
        """The IPC socket file goes, if it is still ours."""
        mine = self._ipc_file
        if mine is not None:
            with contextlib.suppress(OSError):
                found = os.stat(self._config.ipc_socket_file)
                if (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino):
                    os.unlink(self._config.ipc_socket_file)


class Naming:
    """What dlock calls LDLM's names."""

    def __init__(self, client: Client, names: Names) -> None:
        self._client = client
        self._names = names

    def __call__(self, name: str, size: int) -> Key:
        """Exclusive at size 1, so that doors of other kinds may share it; else so many slots."""
        descriptor, text = self._names.exclusive(name.encode())
        key = keys.exclusive(descriptor) if size == 1 else keys.slots(descriptor, size)
        if text:
            self._client.describe(key, text)
        return key


def _tls(config: Config, alpn: tuple[str, ...]) -> ssl.SSLContext:
    if not (config.tls_cert and config.tls_key):
        raise _cannot("TLS needs both --tls_cert and --tls_key")
    try:
        return listen.server_tls(
            config.tls_cert, config.tls_key, client_ca=config.client_ca or None,
            ask_client=config.client_cert_verify, alpn=alpn)
    except OSError as problem:  # ssl.SSLError is one
        raise _cannot(f"the TLS certificate, key or client CA ({config.tls_cert}, "
                      f"{config.tls_key}{', ' if config.client_ca else ''}{config.client_ca}) "
                      f"cannot be used: {problem.strerror or problem}") from None


def _bound(address: str) -> socket.socket:
    host, port = _split(address)
    try:
        return listen.tcp_socket(host, port)
    except OSError as problem:
        raise _cannot(f"listen tcp {address}: bind: "
                      f"{(problem.strerror or str(problem)).lower()}") from None


def _split(address: str) -> tuple[str, int]:
    """HOST:PORT, :PORT, [V6]:PORT."""
    host, colon, port = address.rpartition(":")
    if not colon:
        raise _cannot(f"listen tcp: address {address}: missing port in address")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise _cannot(f"listen tcp: address {address}: too many colons in address")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise _cannot(f"listen tcp: address {address}: invalid port")
    return host, int(port)


def _cannot(why: str) -> DoorError:
    return DoorError(f"{STARTING}{why}\n", EXIT_FAILED)
