"""What carries the data plane: what a client or a server was told to use, and what a client has.

The one place that checks these words, wherever they come from: an argument, the environment, a
setting. Nothing here looks at a device.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

from dlock import _core
from dlock._frozen import Frozen

AUTO: Final = "auto"
VERBS: Final = "verbs"
TCP: Final = "tcp"
TRANSPORTS: Final = (AUTO, VERBS, TCP)

TRANSPORT_ENVIRONMENT: Final = "DLOCK_TRANSPORT"
DEVICE_ENVIRONMENT: Final = "DLOCK_DEVICE"
GID_ENVIRONMENT: Final = "DLOCK_GID"

GID_BYTES: Final[int] = _core.DLK_GID_BYTES
DEVICE_BYTES_MAX: Final[int] = _core.DLK_DEVICE_NAME_BYTES - 1
ANY_GID: Final = bytes(GID_BYTES)
_IPV4_MAPPED: Final = bytes(10) + b"\xff\xff"


class Wish(Frozen):
    """What was asked for. `transport`: one of TRANSPORTS; `device`: the name of an RDMA device,
    empty: any; `gid`: 16 bytes, ANY_GID: any."""

    transport: str = AUTO
    device: str = ""
    gid: bytes = ANY_GID


class Transport(Frozen):
    """What carries the data plane of a client. `kind`: "verbs" or "tcp"; `device`: the RDMA device,
    None over TCP; `why`: in words, why it is this one."""

    kind: str
    device: str | None
    why: str

    def __str__(self) -> str:
        return self.kind if self.device is None else f"{self.kind} {self.device}"


def wished(
    transport: str | None = None, device: str | None = None, gid: str | bytes | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Wish:
    """What these say; None: what the environment says, else whatever is best. ValueError.

    Where TCP is asked for, a device means nothing. So an operator turns RDMA off with one word.
    """
    word = transport or environment.get(TRANSPORT_ENVIRONMENT) or AUTO
    if word not in TRANSPORTS:
        raise ValueError(f"the transport {word!r} is not one of {', '.join(TRANSPORTS)} "
                         f"(transport=..., {TRANSPORT_ENVIRONMENT})")
    return Wish(word, device_name(device or environment.get(DEVICE_ENVIRONMENT) or ""),
                gid_bytes(gid or environment.get(GID_ENVIRONMENT) or ANY_GID))


def wished_by_cfg(dev_name: str | None, eid: str | bytes | None) -> Wish:
    """What a ServerCfg or a ClientCfg of the mirror says: with a device or an address RDMA, else
    what the environment says, or TCP. ValueError."""
    if dev_name or eid:
        return wished(VERBS, dev_name, eid)
    return wished(os.environ.get(TRANSPORT_ENVIRONMENT) or TCP)


def device_name(text: str) -> str:
    """The name of a device, checked for its form. ValueError."""
    name = text.encode("utf-8", "surrogateescape")
    if len(name) > DEVICE_BYTES_MAX or b"\0" in name or b"/" in name:
        raise ValueError(f"{text!r} is no name of an RDMA device: `dlock rdma` lists those there "
                         f"are (device=..., {DEVICE_ENVIRONMENT})")
    return text


def gid_bytes(gid: str | bytes) -> bytes:
    """The 16 bytes of a GID: an IPv4 or IPv6 address, a GID in the form of one, or the bytes.
    ValueError."""
    if isinstance(gid, bytes):
        if len(gid) == GID_BYTES:
            return gid
    else:
        for family, prefix in ((socket.AF_INET, _IPV4_MAPPED), (socket.AF_INET6, b"")):
            try:
                return prefix + socket.inet_pton(family, gid)
            except (OSError, UnicodeError, ValueError):
                continue
    raise ValueError(f"{gid!r} is no GID: write the IPv4 or IPv6 address of a port, a GID as "
                     f"`dlock rdma` shows it, or its {GID_BYTES} bytes (gid=..., "
                     f"{GID_ENVIRONMENT})")
