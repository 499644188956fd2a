"""What is missing for RDMA on a machine, and the commands that mend it. Pure: facts in, advice out.

Only what stands in the way is named, in the order in which it is to be mended: a module before its
device, a device before its permission. What makes something less good comes last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dlock.rdma.binding import ADVICE as PYVERBS_ADVICE
from dlock.rdma.facts import Device, Machine, Missing, Part
from dlock.rdma.machine import SOFT_ROCE, UVERBS

KIB: Final = 1024
RDMA_GROUP: Final = "rdma"


def missing(machine: Machine, core: Part, library: Part, pyverbs: Part, locked_bytes: int,
            locked_by_client: int, clients: int) -> Iterator[Missing]:
    """Everything, what blocks first."""
    yield from _modules(machine)
    yield from _devices(machine)
    yield from _permissions(machine)
    yield from _library(library)
    yield from _software(core, pyverbs, library)
    yield from _memory(machine, locked_bytes, locked_by_client, clients)
    yield from _better(core, pyverbs)


# ---- Software ------------------------------------------------------------------------------------


def _library(library: Part) -> Iterator[Missing]:
    if not library.works:
        yield Missing(
            f"libibverbs is not here: {library.text}",
            ("apt-get install ibverbs-providers   # Debian, Ubuntu; brings libibverbs1",
             "dnf install libibverbs              # Fedora, RHEL and their like"), True)


def _software(core: Part, pyverbs: Part, library: Part) -> Iterator[Missing]:
    if core.works or not library.works or pyverbs.works:
        return
    yield Missing(f"the C core cannot use RDMA: {core.text}", _build(), True)


def _better(core: Part, pyverbs: Part) -> Iterator[Missing]:
    """What is not needed, but would be better."""
    if core.works:
        return
    if pyverbs.works:
        yield Missing(f"the C core cannot use RDMA, so that pyverbs is used, which is slower: "
                      f"{core.text}", _build(), False)
    else:
        yield Missing(f"pyverbs, which could stand in for the C core, is not usable: "
                      f"{pyverbs.text}", PYVERBS_ADVICE, False)


def _build() -> tuple[str, ...]:
    return ("apt-get install libibverbs-dev   # Debian, Ubuntu; dnf install rdma-core-devel",
            "make                             # in the source tree; elsewhere: pip install "
            "--force-reinstall --no-binary dlock dlock")


# ---- The kernel ----------------------------------------------------------------------------------


def _modules(machine: Machine) -> Iterator[Missing]:
    usable = [one for one in machine.devices if one.unfit is None]
    for card in machine.cards:
        if card.has_device:
            continue
        if not card.loaded:
            how = (f"modprobe {card.module}",) if card.found or machine.modules_found is None \
                else (*_kernel_package(machine), f"modprobe {card.module}")
            yield Missing(f"the network card {card.interface} ({card.driver}) may do RDMA, but the "
                          f"kernel's module {card.module} is not loaded", how, not usable)
        else:
            yield Missing(
                f"the module {card.module} is loaded, but has made no device of the network card "
                f"{card.interface}: RDMA may be switched off in its firmware",
                ("dmesg | grep -i -e rdma -e " + card.module,
                 f"devlink dev param show   # enable_roce of {card.interface}"), not usable)
    if usable and UVERBS not in machine.modules and not any(one.node for one in usable):
        yield Missing("the kernel's module ib_uverbs, by which programs use RDMA devices, is not "
                      "loaded", (f"modprobe {UVERBS}",), True)


def _devices(machine: Machine) -> Iterator[Missing]:
    usable = [one for one in machine.devices if one.unfit is None]
    for device in machine.devices:
        if device.unfit is not None:
            yield Missing(f"{device.name} is of no use to dlock: {device.unfit}", (), False)
    if not usable:
        yield Missing("there is no RDMA device. Without hardware, soft-RoCE makes one of any "
                      "network interface", tuple(_soft_roce(machine)), True)
    elif not any(port.active for one in usable for port in one.ports):
        yield Missing("no port of any RDMA device is up", tuple(_raise_ports(usable)), True)
    elif not any(port.gids for one in usable for port in one.ports if port.active):
        yield Missing("the active ports have no address yet (no GID)",
                      tuple(f"ip addr add ADDRESS/24 dev {one.interface or 'INTERFACE'}"
                            for one in usable), True)


def _soft_roce(machine: Machine) -> Iterator[str]:
    if machine.container:
        yield "# in a container: on its host, and then start it with --device=/dev/infiniband"
    if SOFT_ROCE not in machine.modules:
        if machine.modules_found is None or SOFT_ROCE not in machine.modules_found:
            yield from _kernel_package(machine)
        yield f"modprobe {SOFT_ROCE}"
    if "rdma" not in machine.tools:
        yield "apt-get install iproute2   # for the command rdma; dnf install iproute"
    yield f"rdma link add rxe0 type rxe netdev {machine.interface or 'INTERFACE'}"


def _kernel_package(machine: Machine) -> Iterator[str]:
    if machine.modules_found is None:
        yield (f"# this kernel ({machine.kernel}) has no modules under /lib/modules here. If none "
               f"can be installed, `make test-rdma` shows RDMA in a guest (docs/rdma.md)")
    elif machine.debian:
        yield ("apt-get install linux-image-amd64   # Debian: the kernels named cloud lack it; "
               "Ubuntu: linux-modules-extra-$(uname -r)")
    else:
        yield "dnf install kernel-modules-extra-$(uname -r)"


def _raise_ports(devices: list[Device]) -> Iterator[str]:
    for device in devices:
        interface = device.interface
        if interface:
            yield f"ip link set {interface} up"
        elif any(port.link == "InfiniBand" for port in device.ports):
            yield (f"ibstat {device.name}   # \"Initializing\": no subnet manager runs; "
                   f"systemctl start opensm on one node")
        else:
            yield f"rdma link show {device.name}/1   # names its interface: ip link set NAME up"


# ---- Permissions and limits ----------------------------------------------------------------------


def _permissions(machine: Machine) -> Iterator[Missing]:
    for device in machine.devices:
        if device.unfit is not None or device.opens:
            continue
        if device.node is None:
            if UVERBS in machine.modules:
                make = ("# start the container with --device=/dev/infiniband" if machine.container
                        else "udevadm trigger --subsystem-match=infiniband_verbs   # as root")
                yield Missing(f"{device.name} has no file under /dev/infiniband", (make,),
                              not _others(machine, device))
            continue
        how: tuple[str, ...]
        if device.group == RDMA_GROUP and device.mode is not None and device.mode[4:6] == "rw":
            how = (f"usermod -aG {RDMA_GROUP} \"$USER\"   # as root; then log in again",)
        else:
            how = ("echo 'KERNEL==\"uverbs*\", GROUP=\"rdma\", MODE=\"0660\"' > "
                   "/etc/udev/rules.d/90-rdma.rules   # as root",
                   "groupadd -f rdma; usermod -aG rdma \"$USER\"; udevadm control --reload; "
                   "udevadm trigger --subsystem-match=infiniband_verbs")
        yield Missing(f"this user may not open {device.node} of {device.name} ({device.mode}, "
                      f"group {device.group})", how, not _others(machine, device))


def _others(machine: Machine, device: Device) -> bool:
    return any(one.opens and one.unfit is None for one in machine.devices if one is not device)


def _memory(machine: Machine, locked_bytes: int, locked_by_client: int, clients: int
            ) -> Iterator[Missing]:
    limit = machine.memlock
    if limit is None or machine.privileged or limit >= locked_bytes:
        return
    blocks = limit < locked_by_client
    who = ("neither a client nor a server can use RDMA" if blocks else
           f"a client can use RDMA, a server for {clients} clients cannot: it takes fewer over "
           f"RDMA, and serves the others over TCP")
    yield Missing(
        f"the limit of locked memory is {size(limit)}; a server for {clients} clients needs about "
        f"{size(locked_bytes)}, a client {size(locked_by_client)}: {who}",
        tuple(_more_memory(machine)), blocks)


def _more_memory(machine: Machine) -> Iterator[str]:
    if machine.memlock_hard is None:
        yield "ulimit -l unlimited   # in the shell that starts it"
    yield ("printf '* soft memlock unlimited\\n* hard memlock unlimited\\n' > "
           "/etc/security/limits.d/90-rdma.conf   # as root; then log in again")
    yield "LimitMEMLOCK=infinity   # in the [Service] section of a systemd unit, slurmd's too"
    if machine.container:
        yield "docker run --ulimit memlock=-1:-1   # in a container"


def size(count: int) -> str:
    """Bytes for people."""
    if count < KIB * KIB:
        return f"{-(-count // KIB)} KiB"
    return f"{count / KIB / KIB:.1f} MiB"
