"""`look`: everything about RDMA on this machine, from all who know something of it: sysfs, the C
core and, where it loads, pyverbs. It opens devices to ask them, and leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from importlib import metadata
from typing import Any, Final

from dlock import _core, _verbs
from dlock.rdma import advice, binding
from dlock.rdma.choice import Choice, choose
from dlock.rdma.choice import Wish as PythonWish
from dlock.rdma.facts import Device, Gid, Machine, Missing, Part, Port, Report, Use
from dlock.rdma.limits import ATOMICS, with_limits
from dlock.rdma.machine import gid_text, read_machine

LIBRARY: Final = "libibverbs.so.1"
CLIENTS: Final[int] = _core.DLK_MAX_CLIENTS_DEFAULT
OBJECTS: Final[int] = _core.DLK_MAX_OBJECTS_DEFAULT
WINDOW: Final[int] = _core.DLK_VERBS_WINDOW
MESSAGE_BYTES: Final[int] = _core.DLK_VERBS_MESSAGE_BYTES
RECEIVES_BYTES: Final = WINDOW * MESSAGE_BYTES
# What the drivers of hardware lock besides, of each queue pair and its share of the others; rxe
# locks nothing of its queues.
QUEUES_BYTES: Final = 48 * 1024
CLIENT_BYTES: Final = 128 * 1024


def look(device: str = "", gid: str = "", clients: int = CLIENTS) -> Report:
    """What RDMA this machine has, what dlock would use, and what is missing. `device` and `gid`
    (an address of a port) are asked for as of a server or client; `clients`: for how many of a
    server the memory is reckoned. ValueError: no such words can be asked for."""
    wish = _verbs.wish_of(device, gid)
    library = _library()
    pyverbs, modules = _pyverbs()
    machine = read_machine()
    core, ports = _core_ports(library)
    machine = _with(machine, devices=tuple(
        _merged(one, ports, modules) for one in machine.devices))
    used, why = _use(machine, core, pyverbs, wish)
    locked = _locked_bytes(machine, used, clients)
    problems = list(advice.missing(
        machine, core, library, pyverbs, locked, _client_bytes(machine), clients))
    problems += _unanswered(used, why, problems, device, gid)
    blocked = any(one.blocks for one in problems)
    machine = _marked(machine, used)
    return Report(
        usable=used is not None and not blocked,
        use=used,
        why_not="" if used is not None and not blocked else _why_not(why, problems),
        version=_version(),
        machine=machine,
        core=core,
        library=library,
        pyverbs=pyverbs,
        clients=clients,
        locked_bytes=locked,
        locked_by_client=_client_bytes(machine),
        missing=tuple(sorted(problems, key=lambda one: not one.blocks)),
    )


def _with(value: Any, **changes: Any) -> Any:
    """The same value with other fields."""
    known = {name: getattr(value, name) for name in type(value)._fields}
    return type(value)(**{**known, **changes})


def _version() -> str:
    try:
        return metadata.version("dlock")
    except metadata.PackageNotFoundError:
        return "unknown"


# ---- The parts -----------------------------------------------------------------------------------


def _library() -> Part:
    """libibverbs, and of which rdma-core it is."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as problem:
        return Part(False, str(problem))
    path = _mapped(LIBRARY.partition(".so")[0])
    found = re.search(r"\.so\.1\.\d+\.(\d+)", path)
    return Part(True, f"{path or LIBRARY}" + (f" (rdma-core {found[1]})" if found else ""))


def _mapped(name: str) -> str:
    """The file of a library that this process has loaded."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                path = line.rstrip("\n").partition("/")[2]
                if f"/{name}." in f"/{path}":
                    return os.path.realpath(f"/{path}")
    except OSError:
        pass
    return ""


def _pyverbs() -> tuple[Part, Any]:
    try:
        modules = binding.load()
    except binding.PyverbsError as problem:
        return Part(False, str(problem)), None
    found = binding.version()
    return Part(True, f"version {found}" if found else "of the distribution"), modules


def _core_ports(library: Part) -> tuple[Part, list[_verbs.Port]]:
    problem = _verbs.load()
    if problem is not None:
        return Part(False, problem), []
    ports, _reason = _verbs.ports()
    return Part(True, "built with verbs"), ports


def _merged(device: Device, ports: list[_verbs.Port], modules: Any) -> Device:
    """With what pyverbs and the C core say of it; the core has the last word."""
    if device.opens and modules is not None:
        device = with_limits(modules, device)
    own = [one for one in ports if one.name == device.name]
    if not own:
        return device
    best = own[0]
    mtus = {one.port: one.mtu for one in own}
    return Device(**{
        **{name: getattr(device, name) for name in Device._fields},
        "ports": tuple(_with(port, mtu=mtus.get(port.number, port.mtu)) for port in device.ports),
        "atomics": ATOMICS[min(best.atomicity, 2)],
        "windows_max": best.windows_max,
        "completions_max": best.completions_max,
        "receives_max": best.receives_max,
        "reads_max": best.reads_max,
        "inline_max": best.inline_max or device.inline_max,
    })


# ---- The choice ----------------------------------------------------------------------------------


def _use(machine: Machine, core: Part, pyverbs: Part, wish: _verbs.Wish
         ) -> tuple[Use | None, str]:
    name = wish.device.decode("utf-8", "surrogatepass")
    gid = gid_text(wish.gid) if any(wish.gid) else ""
    choice, why = choose(machine.devices, PythonWish(name, gid))
    if core.works:
        try:
            port = _verbs.choose(wish)
        except _verbs.VerbsError as problem:
            return None, str(problem)
        choice = _chosen(machine, port, choice)
    if choice is None:
        return None, why
    by = "core" if core.works else "pyverbs"
    if not core.works and not pyverbs.works:
        return None, "neither the C core nor pyverbs can use it"
    return _described(choice, by, why), why


def _chosen(machine: Machine, port: _verbs.Port, other: Choice | None) -> Choice | None:
    """The port that the core takes, in the words of sysfs."""
    text = gid_text(port.gid)
    for device in machine.devices:
        for one in device.ports:
            if (device.name, one.number) == (port.name, port.port):
                kind = ("InfiniBand", "RoCE v1", "RoCE v2")[min(port.gid_type, 2)]
                known = {gid.index: gid for gid in one.gids}
                gid = known.get(port.gid_index) or Gid(port.gid_index, text, None, kind, "")
                return Choice(device, one, gid)
    return other


def _described(choice: Choice, by: str, why: str) -> Use:
    device = choice.device
    one_sided = by == "core" and device.atomics in ("device", "global") \
        and bool(device.windows_max)
    return Use(
        device=device.name,
        port=choice.port.number,
        gid_index=choice.gid.index,
        gid=choice.gid.address or choice.gid.text,
        gid_type=choice.gid.type,
        by=by,
        one_sided=one_sided,
        why=why,
        server=_server_words(device, by, one_sided),
        client=("lock operations by messages; numbers (AtomicInt64) one-sided, if the server's "
                "device can" if device.atomics != "none" else
                "lock operations and numbers (AtomicInt64) by messages: the device has no atomics"),
    )


def _server_words(device: Device, by: str, one_sided: bool) -> str:
    if by == "pyverbs":
        return "everything by messages, over pyverbs: slower than the C core, and nothing one-sided"
    if not one_sided:
        lacks = "atomics" if device.atomics in (None, "none") else "memory windows"
        return f"everything by messages: the device has no {lacks}"
    if device.atomics == "global":
        return "clients operate on numbers one-sided; the processor does it for those over TCP"
    return ("clients operate on numbers one-sided; for those over TCP the server does it through "
            "the device too, since its atomics are such to each other only")


def _marked(machine: Machine, used: Use | None) -> Machine:
    """With the GID that would be used."""
    if used is None:
        return machine

    def port_marked(device: Device, port: Port) -> Port:
        here = (device.name, port.number) == (used.device, used.port)
        return Port(**{
            **{name: getattr(port, name) for name in Port._fields},
            "gids": tuple(_with(gid, used=here and gid.index == used.gid_index)
                          for gid in port.gids)})

    devices = tuple(_with(one, ports=tuple(port_marked(one, port) for port in one.ports))
                    for one in machine.devices)
    marked: Machine = _with(machine, devices=devices)
    return marked


# ---- What it comes to ----------------------------------------------------------------------------


def _locked_bytes(machine: Machine, used: Use | None, clients: int) -> int:
    """Of a server: receive buffers, numbers, and what hardware locks of its queues."""
    soft = any(one.soft for one in machine.devices if used is None or one.name == used.device)
    each = RECEIVES_BYTES + (0 if soft else QUEUES_BYTES)
    numbers = 8 * OBJECTS if used is None or used.by == "core" else 0
    return _pages(each * clients + numbers)


def _client_bytes(machine: Machine) -> int:
    soft = any(one.soft for one in machine.devices)
    return _pages(2 * RECEIVES_BYTES if soft else CLIENT_BYTES)


def _pages(count: int) -> int:
    return -(-count // mmap.PAGESIZE) * mmap.PAGESIZE


def _unanswered(used: Use | None, why: str, problems: list[Missing], device: str, gid: str
                ) -> list[Missing]:
    """There is RDMA, but not what was asked for."""
    if used is not None or any(one.blocks for one in problems):
        return []
    asked = " ".join(filter(None, (device, gid)))
    what = f"no port fits what was asked for ({asked}): {why}" if asked else why
    return [Missing(what, ("dlock rdma   # lists devices and their GIDs",) if asked else (), True)]


def _why_not(why: str, problems: list[Missing]) -> str:
    return next((one.what for one in problems if one.blocks), why)
