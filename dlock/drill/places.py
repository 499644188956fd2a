"""Where the processes of a drill listen: ports that nobody uses, on addresses that only this
machine can reach.

A primary that is replaced while it still stands there cannot give its address to the next one. So
a drill has two homes for primaries, HOMES, on the same two ports, and a proxy before each, at
PROXIES. Clients are told both homes, or both proxies.
"""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path
from typing import Final

HOMES: Final = ("127.0.0.1", "127.0.0.3")
PROXIES: Final = ("127.0.0.2", "127.0.0.4")
TRIES: Final = 200
PORT_LEAST: Final = 10000
EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
EPHEMERAL_DEFAULT: Final = 32768


class PlaceError(Exception):
    """There is no room; the text says for what."""


def addresses(hosts: tuple[str, ...], port: int) -> str:
    """As `dlock.connect` takes them."""
    return ",".join(f"{host}:{port}" for host in hosts)


def free_ports(hosts: tuple[str, ...] = (*HOMES, *PROXIES)) -> tuple[int, int]:
    """Two ports that are free at all of these hosts. Below those that the kernel gives to outgoing
    connections: while a primary is dead, such a connection could take its port, or meet itself."""
    below = _ephemeral()
    for _ in range(TRIES):
        first, second = random.SystemRandom().sample(range(min(PORT_LEAST, below - 100), below), 2)
        if all(_free(host, port) for port in (first, second) for host in hosts):
            return first, second
    raise PlaceError(f"no two ports are free at {', '.join(hosts)}")


def _ephemeral() -> int:
    with contextlib.suppress(OSError, ValueError):
        first = int(EPHEMERAL.read_text().split()[0])
        if first > 2048:
            return first
    return EPHEMERAL_DEFAULT


def _free(host: str, port: int) -> bool:
    try:
        socket.create_server((host, port)).close()
    except OSError:
        return False
    return True
