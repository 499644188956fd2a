"""Which port pyverbs uses, in the words of the C core (`dlock._verbs.Port`), for a core that was
built without verbs.
"""

from __future__ import annotations

from typing import Final

from dlock import _verbs
from dlock._verbs import VerbsError
from dlock.rdma import binding
from dlock.rdma.choice import INFINIBAND, ROCE_1, ROCE_2, Choice, choose
from dlock.rdma.choice import Wish as TextWish
from dlock.rdma.limits import ATOMICS, with_limits
from dlock.rdma.machine import gid_text, read_machine

GID_TYPES: Final = (INFINIBAND, ROCE_1, ROCE_2)  # by the numbers of enum dlk_gid_type


def choose_port(wish: _verbs.Wish) -> _verbs.Port:
    """The port to use. VerbsError: there is none, or no pyverbs."""
    try:
        modules = binding.load()
    except binding.PyverbsError as problem:
        raise VerbsError(f"pyverbs: {problem}. {binding.ADVICE[0]}") from None
    name = wish.device.rstrip(b"\0").decode("utf-8", "surrogateescape")
    gid = gid_text(wish.gid) if any(wish.gid) else ""
    choice, why = choose(read_machine().devices, TextWish(name, gid, wish.version))
    if choice is None:
        raise VerbsError(f"no RDMA port can be used: {why}. `dlock rdma` says what is missing")
    return _port(Choice(with_limits(modules, choice.device), choice.port, choice.gid))


def _port(choice: Choice) -> _verbs.Port:
    device, gid = choice.device, choice.gid
    (port,) = (one for one in device.ports if one.number == choice.port.number)
    if port.mtu is None:
        raise VerbsError(f"the device {device.name} cannot be opened")
    return _verbs.Port(
        device=device.name.encode("utf-8", "surrogateescape"),
        gid=_verbs.gid_from(gid.text),
        port=port.number,
        gid_index=gid.index,
        gid_type=GID_TYPES.index(gid.type),
        ethernet=int(port.link == "Ethernet"),
        active=1,
        soft=int(device.soft),
        mtu=port.mtu,
        lid=port.lid,
        atomicity=ATOMICS.index(device.atomics or ATOMICS[0]),
        inline_max=0,
        windows_max=0,  # none are made here
        completions_max=device.completions_max or 0,
        receives_max=device.receives_max or 0,
        reads_max=device.reads_max or 0,
    )
