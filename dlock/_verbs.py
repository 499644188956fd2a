"""RDMA verbs as Python sees them: which port of which device, and the client's end of a queue pair.

Both ends choose with this; what is chosen is carried out in C. libibverbs is loaded by the first
call that needs it, never by an import. The plane's part is in `dlock._plane`.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Final, NamedTuple

from dlock._core import ffi, layout, lib
from dlock._owned import own

TRANSPORTS: Final = ("auto", "verbs", "tcp")
PORTS_MAX: Final = 256  # that are looked at
GID_BYTES: Final[int] = lib.DLK_GID_BYTES
DEVICE_BYTES_MAX: Final[int] = lib.DLK_DEVICE_NAME_BYTES - 1
NO_GID: Final = bytes(GID_BYTES)
_GID_TYPES: Final = {
    lib.DLK_GID_INFINIBAND: "InfiniBand",
    lib.DLK_GID_ROCE_1: "RoCE v1",
    lib.DLK_GID_ROCE_2: "RoCE v2",
}


class VerbsError(Exception):
    """RDMA cannot be used; the text says why, and what to do."""


# ---- What crosses the boundary, as tuples --------------------------------------------------------


class Wish(NamedTuple):
    """struct dlk_verbs_wish: what is asked for. All empty: whatever is best."""

    device: bytes = b""
    gid: bytes = NO_GID
    port: int = 0
    version: int = 0


class Address(NamedTuple):
    """struct dlk_verbs_address: what one end of a queue pair tells the other."""

    queue_pair: int
    packet: int
    gid: bytes
    lid: int
    mtu: int
    ethernet: int
    window: int
    message_bytes: int
    reads: int
    cells: int = 0


class Port(NamedTuple):
    """struct dlk_verbs_port: a port of a device, and the GID that would be used there. `device` is
    a C string with zeros behind it."""

    device: bytes
    gid: bytes
    port: int
    gid_index: int
    gid_type: int
    ethernet: int
    active: int
    soft: int
    mtu: int
    lid: int
    atomicity: int
    inline_max: int
    windows_max: int
    completions_max: int
    receives_max: int
    reads_max: int

    @property
    def name(self) -> str:
        """Of the device."""
        return self.device.rstrip(b"\0").decode("ascii", "replace")

    def __str__(self) -> str:
        """For people."""
        kind = ("soft " if self.soft else "") + _GID_TYPES.get(self.gid_type, "RDMA")
        return f"{self.name} port {self.port} ({kind}, GID {gid_text(self.gid)})"


class Made(NamedTuple):
    """What became of a server's end (`Plane.verbs_pair`): a DlockStatus; with SUCCESS our end and
    the plane's number of it; else why there is none, for people. `linked`: the plane needs no
    LINK_OPEN for it."""

    status: int
    own: Address
    pair: int = 0
    reason: str = ""
    linked: bool = False


_WISH: Final = layout("dlk_verbs_wish", Wish._fields)
_ADDRESS: Final = layout("dlk_verbs_address", Address._fields)
_PORT: Final = layout("dlk_verbs_port", Port._fields)


def address_struct(address: Address) -> Any:
    """A struct dlk_verbs_address *, which keeps its own bytes alive."""
    return ffi.from_buffer("struct dlk_verbs_address[]", _ADDRESS.pack(*address))


def address_from(written: Any) -> Address:
    """What C has written into a struct dlk_verbs_address."""
    return Address(*_ADDRESS.unpack_from(ffi.buffer(written)))


def port_struct(port: Port) -> Any:
    """A struct dlk_verbs_port *, which keeps its own bytes alive."""
    return ffi.from_buffer("struct dlk_verbs_port[]", _PORT.pack(*port))


def new_reason() -> Any:
    """Room for what C says to people."""
    return ffi.new("char[]", lib.DLK_REASON_BYTES)


def text_from(reason: Any) -> str:
    """What it has said."""
    return str(ffi.string(reason).decode("utf-8", "replace"))


# ---- Wishes --------------------------------------------------------------------------------------


def gid_from(text: str | bytes) -> bytes:
    """The GID that people mean: 16 bytes, an IPv6 address or GID, or an IPv4 address, which RoCE
    maps into one. ValueError: it is none."""
    if isinstance(text, bytes):
        if len(text) != GID_BYTES or text == NO_GID:
            raise ValueError(f"a GID is {GID_BYTES} bytes, not all 0; here are {len(text)}: "
                             f"{text[:GID_BYTES].hex()}")
        return text
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is no GID: write an IPv4 or IPv6 address of the device, as "
                         f"192.0.2.1 or fe80::1") from None
    if address.is_unspecified:
        raise ValueError(f"{text!r} is no GID of a device, but stands for any")
    if isinstance(address, ipaddress.IPv4Address):
        return bytes(10) + b"\xff\xff" + address.packed
    return address.packed


def gid_text(gid: bytes) -> str:
    """A GID for people: an IPv4 address where it maps one."""
    address = ipaddress.IPv6Address(gid)
    return str(address.ipv4_mapped or address)


def wish_of(device: str | None, gid: str | bytes | None) -> Wish:
    """What people ask for; ValueError says what is wrong with it. None and "" ask for nothing."""
    name = (device or "").encode("utf-8", "surrogatepass")
    if len(name) > DEVICE_BYTES_MAX or b"\0" in name:
        raise ValueError(f"{device!r} is no name of a device: names have at most "
                         f"{DEVICE_BYTES_MAX} bytes; `dlock rdma` lists those there are")
    return Wish(name, gid_from(gid) if gid else NO_GID)


# ---- Devices -------------------------------------------------------------------------------------


def load() -> str | None:
    """None: libibverbs is there; else why not, for people."""
    reason = new_reason()
    return None if lib.dlk_verbs_load(reason) else text_from(reason)


def ports() -> tuple[list[Port], str]:
    """Every port of every device, and why the last that was left out was."""
    reason = new_reason()
    array = ffi.new("struct dlk_verbs_port[]", PORTS_MAX)
    count = min(lib.dlk_verbs_ports(array, PORTS_MAX, reason), PORTS_MAX)
    found = _PORT.iter_unpack(ffi.buffer(array, count * _PORT.size)) if count else ()
    return [Port(*fields) for fields in found], text_from(reason)


def choose(wish: Wish) -> Port:
    """The port to use: hardware before software, RoCE v2 before v1. VerbsError: there is none."""
    reason, port = new_reason(), ffi.new("struct dlk_verbs_port *")
    wished = ffi.from_buffer("struct dlk_verbs_wish[]", _WISH.pack(*wish))
    if not lib.dlk_verbs_choose(wished, port, reason):
        raise VerbsError(text_from(reason))
    return Port(*_PORT.unpack_from(ffi.buffer(port)))


# ---- A client's end ------------------------------------------------------------------------------


class QueuePair:
    """One end, freed with the last reference to it unless it was handed over; never in a forked
    child. `own` is for the other end."""

    def __init__(self, port: Port) -> None:
        """VerbsError: there can be none at this port."""
        reason, address = new_reason(), ffi.new("struct dlk_verbs_address *")
        pointer = lib.dlk_queue_pair_new(port_struct(port), address, reason)
        if pointer == ffi.NULL:
            raise VerbsError(text_from(reason))
        self._pointer = own(pointer, lib.dlk_queue_pair_free)
        self.own = address_from(address)

    def hand_over(self) -> Any:
        """The struct dlk_queue_pair *, from now on the caller's."""
        pointer, self._pointer = self._pointer, None
        ffi.gc(pointer, None)
        return pointer

    def free(self) -> None:
        """Frees it now; nothing if it was handed over."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            ffi.release(pointer)
