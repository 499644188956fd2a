"""The first program of the guest: what it boots from, as a cpio archive, and the scripts in it.

The guest's root is a tmpfs over the host's files (9p, read-only): it sees every program of the
host, and what it writes is thrown away. Two folders are shared: `.guest`, through which the command
comes in and its exit status out, and, if asked for, one of the user's, which can be written.
"""

from __future__ import annotations

import shlex
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

from .prepare import Prepared

SHARE = "/.guest"
NINEP = "trans=virtio,version=9p2000.L,msize=512000"
# Needed before there is a file system to load modules from.
EARLY_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MOUNT_ROOT = """#!/bin/sh
set -e
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module; done
mount -t 9p -o ro,cache=loose,{ninep} root /host
mount -t tmpfs tmpfs /over; mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work overlay /root
mkdir -p /root{share} /root/proc /root/sys /root/dev /root/run
mount -t 9p -o rw,{ninep} share /root{share}
for place in proc sys dev; do mount --move /$place /root/$place; done
exec switch_root /root {share}/init
"""

RUN_COMMAND = """#!/bin/sh
export PATH={path} HOME=/root TERM=dumb
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm; mount -t tmpfs run /run
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin; ln -s fd/1 /dev/stdout; ln -s fd/2 /dev/stderr
mkdir -p /lib/modules; ln -sfn {modules} /lib/modules/{release}
ip link set lo up
{shared}
cd {folder} || cd /
. {share}/environment
/bin/sh {share}/command </dev/null >/dev/vport0p1 2>&1
echo $? >{share}/status
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


def early_modules(prepared: Prepared) -> list[Path]:
    """The files of EARLY_MODULES and of what they need, in the order in which they are loaded."""
    files: list[Path] = []
    for module in EARLY_MODULES:
        shown = subprocess.run(
            ["/sbin/modprobe", "-d", str(prepared.root), "-S", prepared.release,
             "--show-depends", module],
            stdout=subprocess.PIPE, text=True, check=True).stdout
        for line in shown.splitlines():
            kind, _, path = line.partition(" ")
            if kind == "insmod" and Path(path.strip()) not in files:
                files.append(Path(path.strip()))
    return files


def initrd(prepared: Prepared) -> bytes:
    """A busybox, the first modules, and the script that mounts the root."""
    modules = early_modules(prepared)
    script = MOUNT_ROOT.format(
        modules=" ".join(file.name for file in modules), ninep=NINEP, share=SHARE)
    folders = ("bin", "modules", "dev", "proc", "sys", "host", "over", "root")
    programs = ("sh", "mount", "mkdir", "insmod", "switch_root")
    return archive([
        *((name, stat.S_IFDIR | 0o755, b"") for name in folders),
        ("bin/busybox", stat.S_IFREG | 0o755, Path("/bin/busybox").read_bytes()),
        *((f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in programs),
        *((f"modules/{file.name}", stat.S_IFREG | 0o644, file.read_bytes()) for file in modules),
        ("init", stat.S_IFREG | 0o755, script.encode()),
    ])


def archive(entries: list[tuple[str, int, bytes]]) -> bytes:
    """cpio's "newc" form, as the kernel unpacks it: (name, mode, content), each padded to 4."""
    packed = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        path = name.encode() + b"\0"
        #        inode   mode  uid gid links time size    device and its like  name
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        packed += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        packed += b"\0" * (-len(packed) % 4) + content
        packed += b"\0" * (-len(packed) % 4)
    return bytes(packed)


def fill_share(
    share: Path, prepared: Prepared, command: str, environment: Mapping[str, str],
    folder: Path, shared: Path | None,
) -> None:
    """What the guest finds in its shared folder: the command and how it is to be run."""
    mount = "" if shared is None else f"mount -t 9p -o rw,{NINEP} shared {shlex.quote(str(shared))}"
    script = RUN_COMMAND.format(
        path=PATH, modules=shlex.quote(str(prepared.modules)), release=prepared.release,
        shared=mount, folder=shlex.quote(str(folder)), share=SHARE)
    (share / "init").write_text(script, encoding="utf-8")
    (share / "init").chmod(0o755)
    (share / "command").write_text(command + "\n", encoding="utf-8")
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()]
    (share / "environment").write_text("".join(lines), encoding="utf-8")


def status_from(share: Path) -> int | None:
    """The exit status of the command; None: the guest ended before it."""
    try:
        return int((share / "status").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
