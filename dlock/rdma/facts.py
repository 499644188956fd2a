"""What is known of RDMA on this machine, as values. They come from several sources (sysfs, the C
core, pyverbs), and whatever none of them says is None: a report is whole on any machine.
"""

from __future__ import annotations

from dlock._frozen import Frozen


class Gid(Frozen):
    """One address of a port. `text`: as 16 bytes in the form of an IPv6 address; `address`: the
    IPv4 or IPv6 address that it maps, None: it maps none; `type`: "RoCE v2", "RoCE v1" or
    "InfiniBand"; `used`: dlock would take this one at this port."""

    index: int
    text: str
    address: str | None
    type: str
    interface: str
    used: bool = False


class Port(Frozen):
    """`state`: as the kernel names it ("ACTIVE"); `link`: "Ethernet" or "InfiniBand"; `mtu`: bytes
    of a packet's data; `gids`: those that are set."""

    number: int
    state: str
    link: str
    rate: str
    mtu: int | None
    gids: tuple[Gid, ...]
    lid: int = 0

    @property
    def active(self) -> bool:
        """It is up."""
        return self.state == "ACTIVE"


class Device(Frozen):
    """`soft`: it is made of software. `kind`: what it is made by, a driver's name if that is known.
    `node`: its file under /dev/infiniband, None: there is none; `opens`: this process may use that
    file. `atomics`: "none", "device" (its atomic operations are so to each other only) or "global"
    (to the processor too). The limits are the device's own; `unfit`: why dlock cannot use it at
    all, None: it can."""

    name: str
    soft: bool
    kind: str
    firmware: str
    interface: str | None
    ports: tuple[Port, ...]
    node: str | None
    opens: bool
    mode: str | None = None
    group: str | None = None
    atomics: str | None = None
    windows_max: int | None = None
    completions_max: int | None = None
    receives_max: int | None = None
    queue_pairs_max: int | None = None
    reads_max: int | None = None
    inline_max: int | None = None
    unfit: str | None = None


class Part(Frozen):
    """Something that has to be there: whether it works, and what it is, or why it does not."""

    works: bool
    text: str


class Missing(Frozen):
    """`what` is wrong, and the commands that `mend` it, one a line. `blocks`: without that no RDMA;
    else something is less good than it could be."""

    what: str
    mend: tuple[str, ...]
    blocks: bool


class Use(Frozen):
    """What dlock would use. `by`: "core" or "pyverbs"; `one_sided`: clients of a server here can
    operate on atomic objects by themselves; `server` and `client`: in words."""

    device: str
    port: int
    gid_index: int
    gid: str
    gid_type: str
    by: str
    one_sided: bool
    why: str
    server: str
    client: str


class Card(Frozen):
    """A network card that could do RDMA. `module`: of the kernel, that its RDMA needs."""

    interface: str
    driver: str
    module: str
    loaded: bool
    found: bool  # for this kernel
    has_device: bool


class Machine(Frozen):
    """What the operating system says. `modules`: those that matter and are loaded; `modules_found`:
    those that could be loaded, None: this kernel has no folder of modules here; `interface`: one
    that soft-RoCE could be made on; `memlock`: bytes that a process may lock, None: any number;
    `privileged`: the limit does not hold for this one. `tools`: programs that are installed."""

    host: str
    kernel: str
    system: str
    container: bool
    root: bool
    modules: frozenset[str]
    modules_found: frozenset[str] | None
    devices: tuple[Device, ...]
    cards: tuple[Card, ...]
    interface: str | None
    memlock: int | None
    memlock_hard: int | None
    privileged: bool
    tools: frozenset[str]
    debian: bool


class Report(Frozen):
    """All of it. `usable`: dlock can use RDMA here, over `use`; else `why_not`. `clients`: for so
    many, `locked_bytes` of memory are to be locked by a server, `locked_by_client` by each client's
    process."""

    usable: bool
    use: Use | None
    why_not: str
    version: str
    machine: Machine
    core: Part
    library: Part
    pyverbs: Part
    clients: int
    locked_bytes: int
    locked_by_client: int
    missing: tuple[Missing, ...]
