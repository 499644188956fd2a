"""The proxy of drills (`dlock.drill.network.Proxy`) between a client and a server of a test.

The server listens on 127.0.0.1; the proxy listens on the same two ports of 127.0.0.2, so that a
client which was given that address reaches both planes through it. It can lead to a server at
another address, and from one day to the next to another one, as long as the ports are the same.
"""

from __future__ import annotations

from typing import Final

from dlock.drill import network
from dlock.server import Server

HOST: Final = "127.0.0.2"


class Proxy(network.Proxy):
    """Forwards bytes until `close`. `target`: to which host, from now on."""

    def __init__(self, server: Server, host: str = HOST, target: str = "127.0.0.1") -> None:
        super().__init__((server.port, server.data_port), host, target)
