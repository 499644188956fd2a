"""Where doors listen: TCP, unix sockets, TLS. It makes sockets and contexts, and reads no byte of a
protocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

BACKLOG: Final = 4096  # the kernel takes as many of them as net.core.somaxconn allows
EVERYWHERE: Final = ("", "0.0.0.0", "::")


def tcp_socket(host: str, port: int) -> socket.socket:
    """A socket that listens, and that nobody accepts from yet. An empty host: all addresses, IPv6
    and IPv4 with one socket where the machine has both. A name with several addresses: its first
    IPv4 one, as Go takes it. OSError as from bind."""
    if host == "":
        return _everywhere(port)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found.sort(key=lambda one: one[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    return _listening(family, address)


def _everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return _listening(socket.AF_INET6, ("::", port), both=True)
    return _listening(socket.AF_INET, ("0.0.0.0", port))


def _listening(family: int, address: Any, both: bool = False) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What is accepted has these too.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        made.setblocking(False)
        made.bind(address)
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def unix_socket(path: str, mode: int | None = None) -> socket.socket:
    """The same at a path. What lies there must be gone before: whether it may be removed, the door
    knows. OSError as from bind."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.bind(path)
        if mode is not None:
            os.chmod(path, mode)
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def somebody_listens(path: str) -> bool:
    """Does a living process accept at this unix socket? A file that a dead one left refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        with contextlib.suppress(OSError):
            probe.connect(path)
            return True
    return False


def shown(listener: socket.socket) -> str:
    """As the ready file has it: `HOST:PORT`, `[V6]:PORT`, `unix:PATH`. All addresses are shown as
    the loopback one, which can be connected to."""
    address = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{address}"
    host, port = address[:2]
    return host_port("127.0.0.1" if host in EVERYWHERE else host, port)


def host_port(host: str, port: int) -> str:
    """`HOST:PORT` as Go prints it: IPv6 in brackets, an IPv4 address that came over IPv6 plain."""
    host = host.removeprefix("::ffff:") if "." in host else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def accept(
    listener: socket.socket, protocol: Callable[[], asyncio.BaseProtocol],
    tls: ssl.SSLContext | None = None,
) -> asyncio.AbstractServer:
    """Accepts from now on, a protocol for each connection. `close` of what is returned ends that,
    and leaves the connections."""
    loop = asyncio.get_running_loop()
    if listener.family != socket.AF_UNIX:
        return await loop.create_server(protocol, sock=listener, backlog=BACKLOG, ssl=tls)
    # Whether the file goes with its server is for the door to say.
    stays: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
    return await loop.create_unix_server(protocol, sock=listener, backlog=BACKLOG, ssl=tls, **stays)


def server_tls(
    certificate: str, key: str, *, client_ca: str | None = None, ask_client: bool = False,
    alpn: Sequence[str] = (),
) -> ssl.SSLContext:
    """TLS from 1.2 on. `client_ca`: clients show a certificate that this one has signed;
    `ask_client`: one that a certificate of the system has. OSError, ssl.SSLError: the files cannot
    be read, or do not fit."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    if client_ca or ask_client:
        if not client_ca:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        context.verify_mode = ssl.CERT_REQUIRED
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context
