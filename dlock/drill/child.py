"""How a process of a drill begins: `python -m dlock.drill.child PARENT HOURS NETWORK MODULE ...`.

It ends when the drill ends, however that ends: the kernel sends SIGKILL then, also to what is
stopped. HOURS other than 0 puts it into a time namespace of its own first, in which the clock since
boot and the monotonic clock stand so many hours ahead (or behind), as on another machine. NETWORK
other than `-` is the path of a network namespace, which it enters. MODULE is
`serve` (`dlock serve` with these words), `client` (`dlock.drill.worker`), or `network`: nothing but
a network namespace of its own, for as long as it lives.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG: Final = 1
CLONE_NEWTIME: Final = 0x80
CLONE_NEWNET: Final = 0x40000000
SECONDS_PER_HOUR: Final = 3600
EXIT_ORPHAN: Final = 70
OFFSETS: Final = Path("/proc/self/timens_offsets")
NO_NETWORK: Final = "-"


def words(module: str, *rest: str, hours: int = 0, network: str = NO_NETWORK) -> list[str]:
    """The command line of such a process, as a child of this one. `network`: the path of a network
    namespace."""
    return [sys.executable, "-m", "dlock.drill.child", str(os.getpid()), str(hours), network,
            module, *rest]


def main() -> int:
    """Becomes the process."""
    parent, hours, network, module, *rest = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it had ended before
        return EXIT_ORPHAN
    if network != NO_NETWORK:
        enter_network(network)
    if int(hours):
        leave_time(int(hours))
        os.execv(sys.executable, [
            sys.executable, "-m", "dlock.drill.child", parent, "0", NO_NETWORK, module, *rest])
    if module == "serve":
        from dlock.cli import main as dlock

        return dlock(["serve", *rest])
    if module == "network":
        return keep_network()
    from dlock.drill import worker

    return worker.main(rest)


def leave_time(hours: int) -> None:
    """What this process begins from now on (exec too) has its own monotonic clocks. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWTIME):
        number = ctypes.get_errno()
        raise OSError(number, f"no time namespace: {os.strerror(number)}")
    offset = hours * SECONDS_PER_HOUR
    OFFSETS.write_text(f"monotonic {offset} 0\nboottime {offset} 0\n")


def keep_network() -> int:
    """Leaves the network for one of its own, and keeps that until standard input ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"no network namespace: {os.strerror(number)}")
    print("kept", flush=True)
    sys.stdin.read()
    return 0


def enter_network(path: str) -> None:
    """This thread is in that network namespace from now on. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"{path}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main())
