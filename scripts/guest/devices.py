"""RDMA devices of soft-RoCE (rxe), made inside the guest, or on any machine that has its module.

dummy: one device, rxe0, on a network interface that leads nowhere; both ends of a queue pair are on
it, and packets never leave it. veth: two devices, rxe1 and rxe2, on the ends of a pair of
interfaces, in one network namespace; their packets really cross, so they can be lost and delayed.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

# Without crc32 a device is refused with "No such file or directory".
MODULES = ("crc32_generic", "ib_uverbs", "rdma_ucm", "rdma_rxe")
PATIENCE_S = 30.0

DUMMY = ("rxe0", "rdma0", "10.66.0.1")
VETH = (("rxe1", "rdma1", "10.66.3.1"), ("rxe2", "rdma2", "10.66.3.2"))
DUMMY_MTU = 4200  # the path's is 4096 then, the largest there is
VETH_MTU = 1500   # 1024
FIRST_TABLE = 101


def run(words: str) -> None:
    """A command of iproute2 or kmod; an error ends the program and says which."""
    subprocess.run(words.split(), check=True, stdin=subprocess.DEVNULL)


def make(kind: str) -> None:
    """The devices of this kind; they can be used when it returns."""
    run(f"modprobe -a {' '.join(MODULES)}")
    if kind == "dummy":
        make_dummy()
    else:
        make_veth()


def make_dummy() -> None:
    device, interface, address = DUMMY
    run("modprobe dummy numdummies=0")
    run(f"ip link add {interface} type dummy")
    run(f"ip addr add {address}/24 dev {interface}")
    run(f"ip link set {interface} mtu {DUMMY_MTU} up")
    run(f"rdma link add {device} type rxe netdev {interface}")
    await_address(device, address)


def make_veth() -> None:
    """Both addresses are this machine's own, and what is sent to one's own address never leaves.
    So: what goes from one end to the other is routed out of its interface, by rules that come
    before the table of local addresses; what comes in is looked up in that table at once."""
    (_, one, address_1), (_, two, address_2) = VETH
    run("modprobe veth")
    run(f"ip link add {one} mtu {VETH_MTU} type veth peer name {two} mtu {VETH_MTU}")
    for interface, address in ((one, address_1), (two, address_2)):
        run(f"ip addr add {address}/32 dev {interface}")
        run(f"ip link set {interface} up")
    for name in ("all", one, two):
        folder = Path("/proc/sys/net/ipv4/conf", name)
        (folder / "accept_local").write_text("1", encoding="ascii")
        (folder / "rp_filter").write_text("0", encoding="ascii")
    run(f"ip rule add pref 5 iif {one} lookup local")
    run(f"ip rule add pref 6 iif {two} lookup local")
    run(f"ip rule add pref 10 from {address_1} to {address_2} lookup {FIRST_TABLE}")
    run(f"ip rule add pref 11 from {address_2} to {address_1} lookup {FIRST_TABLE + 1}")
    run("ip rule add pref 100 lookup local")
    run("ip rule del pref 0")
    route_veth()
    for device, interface, _ in VETH:
        run(f"rdma link add {device} type rxe netdev {interface}")
    for device, _, address in VETH:
        await_address(device, address)


def route_veth() -> None:
    """A route goes with the link that it leads over; this brings both back."""
    (_, one, address_1), (_, two, address_2) = VETH
    run(f"ip route replace {address_2}/32 dev {one} src {address_1} table {FIRST_TABLE}")
    run(f"ip route replace {address_1}/32 dev {two} src {address_2} table {FIRST_TABLE + 1}")


def await_address(device: str, address: str) -> None:
    """The GID of an IPv4 address appears a moment after the device has been made."""
    numbers = [int(part) for part in address.split(".")]
    mapped = "ffff:{:02x}{:02x}:{:02x}{:02x}".format(*numbers)
    gids = Path("/sys/class/infiniband", device, "ports/1/gids")
    deadline = time.monotonic() + PATIENCE_S
    while not any(mapped in gid.read_text(encoding="ascii") for gid in gids.iterdir()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{device} has no GID for {address}")
        time.sleep(0.05)
