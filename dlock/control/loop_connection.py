"""What the control loop keeps of a connection: its socket, and bytes on their way in and out."""

from __future__ import annotations

import selectors
import socket
from dataclasses import dataclass, field

from dlock.control.codec import Decoder


@dataclass(slots=True, eq=False)
class Connection:
    """One control connection. `ending`: closed as soon as its output is sent; `paused`: not read
    until the durable store has room."""

    number: int
    socket: socket.socket
    peer: str
    decoder: Decoder = field(default_factory=Decoder)
    output: bytearray = field(default_factory=bytearray)
    mask: int = selectors.EVENT_READ
    ending: bool = False
    paused: bool = False

    @property
    def takes(self) -> bool:
        """Requests of it may be carried out now."""
        return not self.ending and not self.paused


def peer_text(address: object) -> str:
    """Where a connection comes from, for the log; not every family has a host and a port."""
    return "{}:{}".format(*address[:2]) if isinstance(address, tuple) else str(address or "local")
