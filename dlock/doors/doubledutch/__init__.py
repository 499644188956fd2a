"""The door of DoubleDutch's clients: an HTTP(S) interface of three requests, and its command line.
docs/door-doubledutch.md says what it does and where it is not the original's twin.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path

from dlock.doors import listen
from dlock.doors.door import Door, DoorError, Site
from dlock.doors.doubledutch import flags
from dlock.doors.doubledutch.flags import EXIT_FAILED, Flags, error_text
from dlock.doors.doubledutch.routes import Routes
from dlock.doors.doubledutch.service import Service
from dlock.doors.http import HttpServer


def make(words: list[str], environ: Mapping[str, str]) -> Door:
    """The door with these words behind `dlock door doubledutch`. Usage."""
    return DoubleDutch(flags.parse(words))


class DoubleDutch(Door):
    """One DoubleDutch server."""

    kind = "doubledutch"

    def __init__(self, told: Flags) -> None:
        self._flags = told
        self._api_key = ""
        self._tls: ssl.SSLContext | None = None
        self._socket: socket.socket | None = None
        self._accepts: asyncio.AbstractServer | None = None
        self._http: HttpServer | None = None
        self._service: Service | None = None

    async def prepare(self) -> None:
        told = self._flags
        self._api_key = told.api_key or _first_line(told.config_path)
        if told.https:
            self._tls = _tls(told)
        try:
            self._socket = listen.tcp_socket(told.host, told.port)
        except OSError as problem:
            raise _failed(f"port {told.port}: {problem.strerror}") from None

    async def start(self, site: Site) -> list[str]:
        assert self._socket is not None, "prepare comes first"
        told = self._flags
        service = self._service = Service(site.client, site.names, site.counters, site.log,
                                          site.loop, told.precision_ms / 1000)
        routes = Routes(service, site.client, told.server_name, self._api_key)
        http = self._http = HttpServer(routes.handle, counters=site.counters,
                                       server_name=told.server_name, on_closed=routes.closed)
        self._accepts = await listen.accept(self._socket, http.protocol, self._tls)
        return [listen.shown(self._socket)]

    async def stop(self) -> None:
        if self._accepts is not None:
            self._accepts.close()
        elif self._socket is not None:
            self._socket.close()
        if self._service is not None:
            self._service.stop()
        if self._http is not None:
            await self._http.close()


def _first_line(path: str) -> str:
    try:
        with Path(path).open(encoding="utf-8", errors="surrogateescape") as file:
            line = file.readline().strip()
    except OSError:
        raise _failed("No API-key file found") from None
    if not line:
        raise _failed("Empty key file")
    return line


def _tls(told: Flags) -> ssl.SSLContext:
    if not (Path(told.certificate_path).is_file() and Path(told.key_path).is_file()):
        raise _failed(".key / .crt file not found")
    try:
        return listen.server_tls(told.certificate_path, told.key_path)
    except OSError as problem:  # ssl.SSLError is one
        raise _failed(f".key / .crt file not usable: {problem}") from None


def _failed(message: str) -> DoorError:
    return DoorError(error_text(message), EXIT_FAILED)
