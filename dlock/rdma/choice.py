"""Which port and GID is used, where the C core cannot choose since it was built without verbs: the
same order as native/verbs_device.c has, over what sysfs and pyverbs say. Pure.

Active ports only; hardware before software; RoCE v2 before v1; of those alike the first. On a port
an IPv4 address comes before an IPv6 one, and one that is routed before one of the link alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dlock._frozen import Frozen
from dlock.rdma.facts import Device, Gid, Port

ROCE_2: Final = "RoCE v2"
ROCE_1: Final = "RoCE v1"
INFINIBAND: Final = "InfiniBand"


class Wish(Frozen):
    """What is asked for: the name of a device, the text of a GID, 4 or 6 for the version of the
    internet protocol that it should map; empty and 0: any."""

    device: str = ""
    gid: str = ""
    version: int = 0


class Choice(Frozen):
    """A port and the GID to use there."""

    device: Device
    port: Port
    gid: Gid


def choose(devices: Iterable[Device], wish: Wish) -> tuple[Choice | None, str]:
    """The best of them, or None; and why, for people."""
    found: list[Choice] = []
    refused: list[str] = []
    for device in devices:
        if wish.device not in ("", device.name):
            continue
        if device.unfit is not None:
            refused.append(f"{device.name}: {device.unfit}")
        elif not device.opens:
            refused.append(f"{device.name}: this process may not open it")
        else:
            for port in device.ports:
                gid = best_gid(port, wish)
                if not port.active:
                    refused.append(f"{device.name} port {port.number}: it is {port.state}")
                elif gid is None:
                    refused.append(f"{device.name} port {port.number}: it has no such GID")
                else:
                    found.append(Choice(device, port, gid))
    if not found:
        named = f"no device is named {wish.device}" if wish.device else "there is no device"
        return None, "; ".join(refused) or named
    best = min(found, key=lambda one: (one.device.soft, one.gid.type == ROCE_1))
    return best, _why(best, found, wish)


def best_gid(port: Port, wish: Wish) -> Gid | None:
    """The GID to use at this port."""
    fit = [gid for gid in port.gids
           if wish.gid in ("", gid.text) and (not wish.version or _version(gid) == wish.version)]
    return min(fit, key=_rank, default=None)


def _version(gid: Gid) -> int:
    if gid.address is None:
        return 0
    return 6 if ":" in gid.address else 4


def _rank(gid: Gid) -> tuple[bool, bool, bool, int]:
    return (gid.type == ROCE_1, gid.text.startswith("fe80:") and gid.type != INFINIBAND,
            _version(gid) == 6, gid.index)


def _why(best: Choice, found: list[Choice], wish: Wish) -> str:
    if wish.device or wish.gid:
        return "it is the one that was asked for"
    if len(found) == 1:
        return "it is the only port that is up"
    if not best.device.soft and any(one.device.soft for one in found):
        return "hardware comes before soft-RoCE"
    if any(one.gid.type == ROCE_1 for one in found) and best.gid.type == ROCE_2:
        return "RoCE v2 comes before v1"
    return f"it is the first of {len(found)} that are alike"
