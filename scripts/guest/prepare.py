"""What the guest is made of: Debian's packages on this machine, and its stock kernel with pyverbs
in a cache folder, unpacked and not installed. The second time finds all of it there.
"""

from __future__ import annotations

import fcntl
import glob
import json
import lzma
import os
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

# Each package, and a file of its (a pattern) that shows that it is there.
PACKAGES = {
    "qemu-system-x86": "/usr/bin/qemu-system-x86_64",
    "busybox-static": "/bin/busybox",
    "kmod": "/sbin/modprobe",
    "iproute2": "/sbin/ip",
    "ibverbs-providers": "/usr/lib/*/libibverbs/librxe-rdmav*.so",
    "libibverbs-dev": "/usr/include/infiniband/verbs.h",
    "ibverbs-utils": "/usr/bin/ibv_devinfo",
    "perftest": "/usr/bin/ib_send_lat",
}
# The flavour named -cloud has neither rdma_rxe nor 9p.
KERNEL = "linux-image-amd64"
PYVERBS = "python3-pyverbs"

# Of the kernel's modules, what the guest could need: RDMA, its network, the files of the host.
MODULES = re.compile(
    r"""\./lib/modules/[^/]+/(?: modules\.[^/]+ | kernel/(?:
        (?: drivers/infiniband | drivers/virtio | net | fs/9p | fs/netfs | fs/fscache
          | fs/overlayfs | fs/configfs | crypto | lib | arch/x86/crypto )/.+
      | drivers/net/[^/]+\.ko | drivers/char/virtio_console\.ko ))""",
    re.VERBOSE)
# A folder that was made by another form of this file is made anew.
FORM = 1


class Unavailable(Exception):  # noqa: N818 - it tells why, and what would mend it
    """The guest cannot be had on this machine."""


@dataclass(frozen=True)
class Prepared:
    """`root` holds lib/modules/`release`; `pyverbs` is a folder for PYTHONPATH."""

    kernel: Path
    root: Path
    release: str
    pyverbs: Path

    @property
    def modules(self) -> Path:
        return self.root / "lib" / "modules" / self.release


def default_cache() -> Path:
    """Where the kernel is kept: DLOCK_GUEST_CACHE, or in the user's cache folder."""
    chosen = os.environ.get("DLOCK_GUEST_CACHE")
    if chosen:
        return Path(chosen).resolve()
    user = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(user, "dlock", "guest").resolve()


def missing_packages() -> list[str]:
    return [name for name, sign in PACKAGES.items() if not glob.glob(sign)]


def found(cache: Path) -> Prepared | None:
    """What an earlier `prepare` has left here."""
    try:
        record = json.loads((cache / "prepared.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record.get("form") != FORM:
        return None
    prepared = Prepared(
        cache / record["kernel"], cache / "kernel", record["release"], cache / "python")
    return prepared if prepared.kernel.exists() and prepared.modules.is_dir() else None


def ready(cache: Path) -> Prepared:
    """What is prepared, or Unavailable; fetches nothing."""
    prepared = found(cache)
    missing = missing_packages()
    if missing:
        raise Unavailable(f"missing: {' '.join(missing)} (python3 scripts/guest prepare)")
    if prepared is None:
        raise Unavailable(f"no kernel in {cache} (python3 scripts/guest prepare)")
    return prepared


def prepare(cache: Path) -> Prepared:
    """Fetches what is missing. Unavailable: it cannot be had here."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        raise Unavailable(f"it is a Linux for x86-64; this is {platform.platform()}")
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"it is made of Debian's packages, and there is no {tool} here")
    fresh = install(missing_packages())
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return found(cache) or fetch(cache, update=not fresh)


def install(packages: list[str]) -> bool:
    """The packages that are missing, by apt; says whether apt's lists have been brought up."""
    if not packages:
        return False
    if os.geteuid() != 0:
        raise Unavailable(f"missing: run as root: apt-get install {' '.join(packages)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-qq"], env=quiet)
    run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], env=quiet)
    still = missing_packages()
    if still:
        raise Unavailable(f"installed, yet not found: {' '.join(still)}")
    return True


def fetch(cache: Path, update: bool) -> Prepared:
    """The kernel and pyverbs, beside what is there; put in its place when all of it is whole."""
    if update and os.geteuid() == 0:
        run(["apt-get", "update", "-qq"])
    package = kernel_package()
    release = package.removeprefix("linux-image-")
    making = cache / "making"
    shutil.rmtree(making, ignore_errors=True)
    (making / "debs").mkdir(parents=True)
    # As the user _apt, apt could not write here.
    run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package, PYVERBS],
        cwd=making / "debs")
    (kernel_deb,) = (making / "debs").glob(f"{package}_*.deb")
    (pyverbs_deb,) = (making / "debs").glob(f"{PYVERBS}_*.deb")
    image = f"./boot/vmlinuz-{release}"
    unpack(kernel_deb, making / "kernel", lambda name: name == image or bool(MODULES.match(name)))
    run(["/sbin/depmod", "-b", str(making / "kernel"), release])
    kernel = uncompressed(making / "kernel" / image)
    take_pyverbs(pyverbs_deb, making / "python")
    for part in ("kernel", "python"):
        shutil.rmtree(cache / part, ignore_errors=True)
        os.replace(making / part, cache / part)
    record = {"form": FORM, "release": release, "kernel": str(kernel.relative_to(making))}
    (making / "prepared.json").write_text(json.dumps(record), encoding="utf-8")
    os.replace(making / "prepared.json", cache / "prepared.json")
    shutil.rmtree(making)
    prepared = found(cache)
    assert prepared is not None
    return prepared


def kernel_package() -> str:
    """The package that Debian's name for its newest stock kernel stands for."""
    shown = run(["apt-cache", "depends", KERNEL])
    named = re.search(r"Depends: (linux-image-\S+)", shown)
    if named is None:
        raise Unavailable(f"apt knows no {KERNEL}: it is Debian's stock kernel that is needed")
    return named[1]


def unpack(deb: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Those files of a package whose names are wanted."""
    words = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as reading, \
            tarfile.open(fileobj=reading.stdout, mode="r|") as members:
        for member in members:
            if wanted(member.name) and member.isreg():
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                source = members.extractfile(member)
                assert source is not None
                with source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file)
    if reading.returncode != 0:
        raise Unavailable(f"{deb.name} cannot be unpacked")


def take_pyverbs(deb: Path, folder: Path) -> None:
    """Only the package `pyverbs`, so that nothing else of the system comes along on PYTHONPATH."""
    place = "./usr/lib/python3/dist-packages/"
    unpack(deb, folder / "unpacked", lambda name: name.startswith(f"{place}pyverbs/"))
    os.replace(folder / "unpacked" / place / "pyverbs", folder / "pyverbs")
    shutil.rmtree(folder / "unpacked")


def uncompressed(image: Path) -> Path:
    """The kernel as qemu boots it two seconds faster: Debian's images hold it packed by xz. The
    image itself, if there is none in it."""
    data = image.read_bytes()
    for start in occurrences(data, b"\xfd7zXZ\x00"):
        try:
            unpacked = lzma.LZMADecompressor().decompress(data[start:])
        except lzma.LZMAError:
            continue
        if unpacked.startswith(b"\x7fELF"):
            target = image.with_name(image.name.replace("vmlinuz", "vmlinux"))
            target.write_bytes(unpacked)
            return target
    return image


def occurrences(data: bytes, sign: bytes) -> Iterable[int]:
    return (match.start() for match in re.finditer(re.escape(sign), data))


def run(words: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """A program to its end, and what it printed. Unavailable: it failed; what it said."""
    try:
        done = subprocess.run(
            words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False)
    except OSError as problem:
        raise Unavailable(f"{words[0]}: {problem}") from problem
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(words[:3])}: {done.stderr.strip()[-500:]}")
    return done.stdout
