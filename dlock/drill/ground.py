"""What this machine, and what the operator has said, allow a drill to do; and if not, why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

PROBE: Final = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(int(sys.argv[1])):
    print(os.strerror(ctypes.get_errno()))
"""
PROBE_S: Final = 30.0
NEWTIME, NEWNET = 0x80, 0x40000000
CAP_SYS_TIME: Final = 25


@dataclass(frozen=True)
class Ground:
    """`joined`: the primary is the operator's; the commands are his, "" where there is none;
    `data_port`: of its data plane, 0: not known. `set_clock`: the clock of the machine may be
    stepped."""

    joined: str = ""
    kill: str = ""
    start: str = ""
    stop: str = ""
    go_on: str = ""
    data_port: int = 0
    set_clock: bool = False

    def kills(self) -> str:
        """Why a primary cannot be killed and started again; "": it can."""
        if self.joined and not (self.kill and self.start):
            return ("the primary was not started by the drill, so it needs --kill-command and "
                    "--start-command")
        return ""

    def stops(self) -> str:
        """Why a primary cannot be stopped and continued."""
        if self.joined and not (self.stop and self.go_on):
            return ("the primary was not started by the drill, so it needs --stop-command and "
                    "--continue-command")
        return ""

    def owns(self) -> str:
        """Why the primary's process cannot be watched closely."""
        if self.joined:
            return ("it needs a primary that the drill starts itself, and this one was joined with "
                    "--address")
        return ""

    def proxies(self) -> str:
        """Why the drill cannot stand between clients and primary."""
        if self.joined and not self.data_port:
            return ("the drill stands between clients and primary, for which it must know the data "
                    "port of a primary that it did not start: --data-port says it")
        return ""

    def networks(self) -> str:
        """Why there can be no network namespaces."""
        if os.geteuid() != 0:
            return "network namespaces need root"
        if shutil.which("ip") is None:
            return "network namespaces need the program ip (package iproute2)"
        problem = _unshare(NEWNET)
        return f"this machine gives no network namespace: {problem}" if problem else ""

    def times(self) -> str:
        """Why there can be no time namespaces."""
        if os.geteuid() != 0:
            return "time namespaces need root"
        problem = _unshare(NEWTIME)
        return f"this machine gives no time namespace: {problem}" if problem else ""

    def wall_clock(self) -> str:
        """Why the wall clock cannot be stepped."""
        if not self.set_clock:
            return ("it steps the wall clock of the whole machine, which everything that runs here "
                    "sees: only --set-clock allows it")
        with open("/proc/self/status", encoding="ascii") as file:
            (line,) = (line for line in file if line.startswith("CapEff:"))
        if not int(line.split()[1], 16) >> CAP_SYS_TIME & 1:
            return "to set the clock of this machine is not permitted (it needs CAP_SYS_TIME)"
        return ""


def _unshare(flag: int) -> str:
    """What a process that asks for this namespace is told; "": it has it."""
    done = subprocess.run([sys.executable, "-c", PROBE, str(flag)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=PROBE_S)
    return done.stdout.strip() or (f"exit status {done.returncode}" if done.returncode else "")
