"""The guest as a process: qemu with its devices, from its start to the exit status of the command.

The processor is emulated (TCG) unless KVM is asked for, which is never tried by itself: there are
machines whose /dev/kvm is there and hangs. The guest dies with the process that has started it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from . import image
from .prepare import Prepared

NO_STATUS = 125  # as `timeout` and `env` say it of themselves: the command said nothing
SERIAL_LOG_BYTES = 6000  # of it, how much is shown
KERNEL_WORDS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off tsc=reliable"
    " random.trust_cpu=on")


@dataclass(frozen=True)
class Guest:
    """What it is made of, and what it gets to see. `shared`: a folder that it may write."""

    prepared: Prepared
    cpus: int = 2
    memory: str = "1G"
    kvm: bool = False
    limit_s: float = 600.0
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = field(default_factory=Path.cwd)
    shared: Path | None = None

    def run(self, command: str, output: BinaryIO | None = None) -> int:
        """Boots, runs a shell command, and returns its exit status; what it prints goes to
        `output` (ours, if not given). NO_STATUS: the guest gave none; its log is on stderr."""
        with tempfile.TemporaryDirectory(prefix="dlock-guest-") as made:
            place = Path(made)
            share = place / "share"
            share.mkdir()
            (place / "initrd").write_bytes(image.initrd(self.prepared))
            shared = self.shared.resolve() if self.shared is not None else None
            image.fill_share(
                share, self.prepared, command, self.environment, self.folder, shared)
            why = run_qemu(self.words(place, shared), self.limit_s, output or sys.stdout.buffer)
            status = image.status_from(share)
            if status is None:
                tell_why(why, place / "serial")
                return NO_STATUS
            return status

    def words(self, place: Path, shared: Path | None) -> list[str]:
        """qemu's command line."""
        processor = (
            ["-accel", "kvm", "-cpu", "host"] if self.kvm
            else ["-accel", "tcg,thread=multi", "-cpu", "max"])
        words = [
            "qemu-system-x86_64", "-M", "q35", *processor, "-smp", str(self.cpus),
            "-m", self.memory, "-nodefaults", "-no-user-config", "-display", "none",
            "-no-reboot", "-kernel", str(self.prepared.kernel), "-initrd", str(place / "initrd"),
            "-append", KERNEL_WORDS, "-serial", f"file:{place / 'serial'}",
            # A port without a terminal's habits: every byte comes out as it was written.
            "-device", "virtio-serial-pci", "-chardev", "stdio,id=out,signal=off",
            "-device", "virtserialport,chardev=out,name=out",
            *shared_folder("root", Path("/"), ",readonly=on,multidevs=remap"),
            *shared_folder("share", place / "share"),
        ]
        return words if shared is None else [*words, *shared_folder("shared", shared)]


def shared_folder(name: str, path: Path, more: str = "") -> list[str]:
    """A folder of the host that the guest can mount by this name."""
    escaped = str(path).replace(",", ",,")
    return [
        "-fsdev", f"local,id={name},path={escaped},security_model=none{more}",
        "-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]


def run_qemu(words: list[str], limit_s: float, output: BinaryIO) -> str:
    """Until it has ended, at the latest after `limit_s`; says how it ended."""
    # Its input stays open and silent: at its end the port would count as closed, for both ways.
    qemu = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert qemu.stdin is not None
    assert qemu.stdout is not None
    copying = threading.Thread(target=copy, args=(qemu.stdout, output), daemon=True)
    copying.start()
    try:
        return f"qemu ended with status {qemu.wait(limit_s)}"
    except subprocess.TimeoutExpired:
        return f"it had not ended after {limit_s:g} s"
    finally:
        qemu.kill()
        qemu.wait()
        qemu.stdin.close()
        copying.join()


def copy(source: BinaryIO, target: BinaryIO) -> None:
    """As it comes, so that people can watch."""
    while chunk := source.read1(65536):  # type: ignore[attr-defined]
        target.write(chunk)
        target.flush()


def tell_why(why: str, serial: Path) -> None:
    log = serial.read_bytes()[-SERIAL_LOG_BYTES:] if serial.exists() else b""
    print(f"the guest gave no exit status: {why}; its log ends with:", file=sys.stderr)
    print(log.decode(errors="replace") or "(nothing)", file=sys.stderr)
