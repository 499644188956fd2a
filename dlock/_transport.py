"""What carries the data plane: what a client was told to use, and what it has. The one place that
checks these words, wherever they come from: an argument, a configuration, the environment.

Nothing here looks at a device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from dlock import _verbs
from dlock._frozen import Frozen

AUTO, VERBS, TCP = _verbs.TRANSPORTS

TRANSPORT_ENVIRONMENT: Final = "DLOCK_TRANSPORT"
DEVICE_ENVIRONMENT: Final = "DLOCK_DEVICE"
GID_ENVIRONMENT: Final = "DLOCK_GID"


class Wish(Frozen):
    """What was asked for. `transport`: "auto", "verbs" or "tcp"; `device`: which device, and which
    of its GIDs."""

    transport: str = AUTO
    device: _verbs.Wish = _verbs.Wish()


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
    if word not in _verbs.TRANSPORTS:
        raise ValueError(f"the transport {word!r} is not one of {', '.join(_verbs.TRANSPORTS)} "
                         f"(transport=..., {TRANSPORT_ENVIRONMENT})")
    return Wish(word, _verbs.wish_of(device or environment.get(DEVICE_ENVIRONMENT),
                                     gid or environment.get(GID_ENVIRONMENT)))


def wished_by_cfg(
    dev_name: str | None, eid: str | bytes | None, environment: Mapping[str, str] = os.environ
) -> Wish:
    """What a ClientCfg of the mirror says: with a device or an address RDMA, else what the
    environment says, or TCP. ValueError."""
    if dev_name or eid:
        return wished(VERBS, dev_name, eid, environment)
    return wished(environment.get(TRANSPORT_ENVIRONMENT) or TCP, environment=environment)
