"""What the operating system says of RDMA: devices and their ports under /sys, device files, modules
of the kernel, limits. It opens no device and changes nothing; what cannot be read is left out.
"""

from __future__ import annotations

import grp
import os
import platform
import resource
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dlock.rdma.facts import Card, Device, Gid, Machine, Port

INFINIBAND: Final = "class/infiniband"
VERBS: Final = "class/infiniband_verbs"
NET: Final = "class/net"
NODES: Final = "infiniband"
NO_GID: Final = bytes(16)
V4_MAPPED: Final = bytes(10) + b"\xff\xff"
LINK_LOCAL: Final = b"\xfe\x80"
CAP_IPC_LOCK: Final = 14
# The module of the kernel that makes a device of a card, by the driver of the card.
MODULE_OF_DRIVER: Final = {
    "mlx5_core": "mlx5_ib", "mlx4_core": "mlx4_ib", "mlx4_en": "mlx4_ib", "bnxt_en": "bnxt_re",
    "ice": "irdma", "i40e": "irdma", "qede": "qedr", "hns3": "hns_roce_hw_v2", "mana": "mana_ib",
    "ionic": "ionic_rdma",
}
SOFT_ROCE: Final = "rdma_rxe"
UVERBS: Final = "ib_uverbs"
MODULES: Final = frozenset(
    {"ib_core", UVERBS, SOFT_ROCE, "siw", "rdma_cm", *MODULE_OF_DRIVER.values()})
# Devices without reliable-connected queue pairs that two processes can set up by themselves.
IWARP_NODE: Final = "4"
UNFIT_DRIVERS: Final = {
    "efa": "Amazon's EFA has no reliable-connected queue pairs",
    "usnic_verbs": "usNIC has no reliable-connected queue pairs",
}
TOOLS: Final = ("rdma", "modprobe", "ibv_devinfo", "ip", "systemctl")


class Roots:
    """Where the operating system's own files are; a test has others."""

    def __init__(self, sys: str = "/sys", dev: str = "/dev", proc: str = "/proc",
                 lib: str = "/lib/modules", etc: str = "/etc") -> None:
        self.sys, self.dev, self.proc = Path(sys), Path(dev), Path(proc)
        self.lib, self.etc = Path(lib), Path(etc)


def read_machine(roots: Roots | None = None) -> Machine:
    """Everything that can be had without opening a device."""
    roots = roots or Roots()
    kernel = platform.release()
    devices = tuple(_devices(roots))
    loaded = frozenset(name for name in MODULES if (roots.sys / "module" / name).is_dir())
    found = _modules_found(roots.lib / kernel)
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return Machine(
        host=socket.gethostname(),
        kernel=kernel,
        system=f"{platform.system()} {platform.machine()}",
        container=_in_container(roots),
        root=os.geteuid() == 0,
        modules=loaded,
        modules_found=found,
        devices=devices,
        cards=tuple(_cards(roots, devices, loaded, found)),
        interface=_interface(roots),
        memlock=None if soft == resource.RLIM_INFINITY else soft,
        memlock_hard=None if hard == resource.RLIM_INFINITY else hard,
        privileged=_may_lock(roots),
        tools=frozenset(name for name in TOOLS if _which(name)),
        debian=(roots.etc / "debian_version").exists(),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # it is not there, or not set: the kernel refuses to read unset GID entries
        return ""


def _number(text: str) -> int:
    """As the kernel writes one ("0x1"); 0 if it is none."""
    try:
        return int(text, 0)
    except ValueError:
        return 0


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _which(name: str) -> bool:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    return shutil.which(name, path=path) is not None


# ---- Devices -------------------------------------------------------------------------------------


def _devices(roots: Roots) -> Iterator[Device]:
    nodes = {_text(roots.sys / VERBS / name / "ibdev"): name
             for name in _names(roots.sys / VERBS) if name.startswith("uverbs")}
    for name in _names(roots.sys / INFINIBAND):
        folder = roots.sys / INFINIBAND / name
        soft = "/virtual/" in str(folder.resolve()) and not (folder / "device").exists()
        driver = _driver(folder / "device")
        parent = _text(folder / "parent") or None
        node = nodes.get(name)
        path = roots.dev / NODES / node if node else None
        mode, group = _permissions(path)
        yield Device(
            name=name,
            soft=soft,
            kind=driver or (_soft_kind(folder) if soft else "unknown"),
            firmware=_text(folder / "fw_ver"),
            interface=parent,
            ports=tuple(_ports(folder / "ports")),
            node=str(path) if path is not None and path.exists() else None,
            opens=path is not None and os.access(path, os.R_OK | os.W_OK),
            mode=mode,
            group=group,
            unfit=_unfit(folder, driver),
        )


def _driver(device: Path) -> str:
    driver = device / "driver"
    return driver.resolve().name if driver.exists() else ""


def _soft_kind(folder: Path) -> str:
    """Of software devices: iWARP names itself in its node type, else it is soft-RoCE."""
    return "siw" if _text(folder / "node_type").startswith(IWARP_NODE) else "soft-RoCE"


def _unfit(folder: Path, driver: str) -> str | None:
    if _text(folder / "node_type").startswith(IWARP_NODE):
        return "it is iWARP: its queue pairs can be connected by the RDMA connection manager only"
    return UNFIT_DRIVERS.get(driver)


def _permissions(path: Path | None) -> tuple[str | None, str | None]:
    if path is None:
        return None, None
    try:
        status = path.stat()
    except OSError:
        return None, None
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return stat.filemode(status.st_mode), group


def _ports(folder: Path) -> Iterator[Port]:
    for number in sorted(int(name) for name in _names(folder) if name.isdecimal()):
        port = folder / str(number)
        yield Port(
            number=number,
            state=_text(port / "state").rpartition(" ")[2] or "unknown",
            link=_text(port / "link_layer") or "unknown",
            rate=_text(port / "rate"),
            mtu=None,
            gids=tuple(_gids(port, _text(port / "link_layer"))),
            lid=_number(_text(port / "lid")),
        )


def _gids(port: Path, link: str) -> Iterator[Gid]:
    for index in sorted(int(name) for name in _names(port / "gids") if name.isdecimal()):
        raw = gid_bytes(_text(port / "gids" / str(index)))
        if raw == NO_GID or (raw[:2] == LINK_LOCAL and not any(raw[8:])):
            continue
        kind = _text(port / "gid_attrs" / "types" / str(index))
        yield Gid(index, gid_text(raw), gid_address(raw, link), _gid_type(kind, link),
                  _text(port / "gid_attrs" / "ndevs" / str(index)))


def _gid_type(kind: str, link: str) -> str:
    if link != "Ethernet":
        return "InfiniBand"
    return "RoCE v2" if "v2" in kind else "RoCE v1"


def gid_bytes(text: str) -> bytes:
    """The 16 bytes of a GID as the kernel writes it; zeros if that is none."""
    try:
        raw = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        return NO_GID
    return raw if len(raw) == len(NO_GID) else NO_GID


def gid_text(raw: bytes) -> str:
    """A GID in the form of an IPv6 address."""
    return socket.inet_ntop(socket.AF_INET6, raw)


def gid_address(raw: bytes, link: str) -> str | None:
    """The address of the network that a GID maps; None: it maps none."""
    if link != "Ethernet":
        return None
    if raw.startswith(V4_MAPPED):
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return gid_text(raw)


# ---- Modules and cards ---------------------------------------------------------------------------


def _modules_found(folder: Path) -> frozenset[str] | None:
    """Of MODULES, those that this kernel could load or has built in; None: nothing is known."""
    lists = [_text(folder / name) for name in ("modules.dep", "modules.builtin")]
    if not any(lists):
        return None
    names = {Path(line.partition(":")[0]).name.partition(".")[0].replace("-", "_")
             for text in lists for line in text.splitlines()}
    return frozenset(MODULES & names)


def _cards(roots: Roots, devices: tuple[Device, ...], loaded: frozenset[str],
           found: frozenset[str] | None) -> Iterator[Card]:
    places = {(roots.sys / INFINIBAND / one.name / "device").resolve()
              for one in devices if not one.soft}
    for interface in _names(roots.sys / NET):
        device = roots.sys / NET / interface / "device"
        driver = _driver(device)
        module = MODULE_OF_DRIVER.get(driver)
        if module is not None:
            yield Card(interface, driver, module, module in loaded,
                       found is not None and module in found, device.resolve() in places)


def _interface(roots: Roots) -> str | None:
    """One that soft-RoCE could be made on: it is up, no loopback, and real if any is."""
    up = [name for name in _names(roots.sys / NET)
          if name != "lo" and _text(roots.sys / NET / name / "operstate") in ("up", "unknown")]
    real = [name for name in up if (roots.sys / NET / name / "device").exists()]
    return next(iter([*real, *up]), None)


# ---- Limits --------------------------------------------------------------------------------------


def _may_lock(roots: Roots) -> bool:
    """This process has CAP_IPC_LOCK, so that the limit of locked memory does not hold for it."""
    for line in _text(roots.proc / "self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_IPC_LOCK & 1)
    return False


def _in_container(roots: Roots) -> bool:
    marks = (roots.etc.parent / ".dockerenv", roots.etc.parent / "run/.containerenv")
    return any(mark.exists() for mark in marks) or "KUBERNETES_SERVICE_HOST" in os.environ
